"""Laws that every set keeps, for every set, dtype and kind of weight."""

import dataclasses
import functools
import pickle

import naive
import pytest
import torch
from every import GRIDS, JOINT, SETS, SPARSE
from torch import Tensor

from nxmiformer.sets import (
    NM,
    Block,
    ConstraintSet,
    Grid,
    Kronecker,
    QuantizedKronecker,
    SparsitySet,
    Then,
    Transposed,
    Unstructured,
)
from nxmiformer.sets.base import DTYPES

SHAPE = (8, 128)


def name(value: object) -> str:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    grid = getattr(value, "grid", None)
    return f"{value}-absmax" if grid is not None and grid.scale == "absmax" else str(value)


every_set = pytest.mark.parametrize("points", SETS, ids=name)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=name)


def gaussian(seed: int, dtype: torch.dtype = torch.float32, shape: tuple[int, int] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(dtype: torch.dtype) -> list[Tensor]:
    """Gaussian, heavy-tailed, mostly zero (of both signs), full of ties, and with rows of very unequal size."""
    heavy = gaussian(1, torch.float64) / gaussian(2, torch.float64).abs().clamp(min=0.02)
    sparse = gaussian(3, torch.float64) * (gaussian(4) > 1)
    ties = (gaussian(5, torch.float64) * 2).round() / 4
    unequal = gaussian(6, torch.float64) * torch.logspace(-2, 3, SHAPE[0], dtype=torch.float64)[:, None]
    return [w.to(dtype) for w in (gaussian(0), heavy, sparse, ties, unequal)]


@functools.lru_cache(len(SETS) * len(DTYPES))
def projections(points: ConstraintSet, dtype: torch.dtype) -> list[Tensor]:
    """Of each of the inputs."""
    return list(map(points.project, inputs(dtype)))


def random_support(points: SparsitySet | None, seed: int, full: bool) -> Tensor:
    """A support that the set allows, chosen by chance; `full` ones keep as many elements as they may."""
    chance = torch.Generator().manual_seed(seed)
    noise = torch.rand(SHAPE, generator=chance)
    thin = torch.ones(SHAPE, dtype=torch.bool) if full else torch.rand(SHAPE, generator=chance) < 0.8
    if points is None:
        return thin
    if isinstance(points, NM):
        ranks = noise.view(-1, points.group).argsort(1).argsort(1).view(SHAPE)
        return (ranks < points.keep) & thin
    if isinstance(points, Unstructured):
        return (noise.flatten().argsort().argsort().view(SHAPE) < points.kept(SHAPE)) & thin
    assert isinstance(points, Block)
    tiles = noise[:: points.rows, :: points.cols]
    ranks = tiles.flatten().argsort().argsort().view(tiles.shape)
    kept = ranks < points.kept(SHAPE) // (points.rows * points.cols)
    return torch.kron(kept.int(), torch.ones(points.rows, points.cols, dtype=torch.int32)).bool() & thin


def random_codes(grid: Grid, seed: int) -> Tensor:
    """Codes of which each scale's group uses those up to a largest one of its own."""
    chance = torch.Generator().manual_seed(seed)
    largest = torch.randint(1, grid.top + 1, (SHAPE[0] * grid.groups(SHAPE), 1), generator=chance)
    codes = (torch.rand(grid.rows(torch.zeros(SHAPE)).shape, generator=chance) * (2 * largest + 1)).floor() - largest
    return torch.where(codes == 0, 1.0, codes).sign() if grid.bits == 1 else codes


def members(points: ConstraintSet, dtype: torch.dtype) -> list[Tensor]:
    """Points of the set that no projection had a part in."""
    if isinstance(points, Kronecker):
        return [naive.kronecker_member(points.rows, points.cols, points.rank, SHAPE, dtype, seed) for seed in range(4)]
    if isinstance(points, QuantizedKronecker):
        # 16 bits cannot tell the products of many levels apart
        bits = min(points.bits, 3) if dtype in (torch.bfloat16, torch.float16) else points.bits
        return [naive.quantized_kronecker_member(points.rows, points.cols, bits, SHAPE, dtype, n) for n in range(4)]
    found = []
    for seed in range(4):
        sign = points.grid is not None and points.grid.bits == 1  # no zero on its grid
        support = random_support(points.sparsity, seed, full=seed % 2 == 0 or sign)
        if points.grid is None:
            values = gaussian(seed, dtype)
        else:
            chance = torch.Generator().manual_seed(seed + 100)
            codes = random_codes(points.grid, seed)
            scales = torch.exp(torch.randn(codes.shape[0], 1, generator=chance) - 2)
            compute = torch.float64 if dtype == torch.float64 else torch.float32
            values = (codes.to(compute) * scales).to(dtype).view(SHAPE) + 0
            if points.sparsity is None and not sign:
                support |= True
        found.append(torch.where(support, values, 0))
    return found


def sign_of_blocks(points: ConstraintSet) -> bool:
    """Whether the scale is found after the blocks, so that they need not be the best for it."""
    return isinstance(points.sparsity, Block) and points.grid is not None and points.grid.bits == 1


def squared(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).square().sum())


@every_set
@every_dtype
def test_a_projection_is_a_member_of_the_same_dtype_and_shape_and_projecting_it_changes_no_bit(
    points: ConstraintSet, dtype: torch.dtype
) -> None:
    for w, point in zip(inputs(dtype), projections(points, dtype), strict=True):
        assert point.dtype == dtype
        assert point.shape == w.shape
        assert points.contains(point)
        assert naive.same_bits(points.project(point), point)


@every_set
@every_dtype
def test_a_member_is_contained_and_projects_to_itself(points: ConstraintSet, dtype: torch.dtype) -> None:
    for member in members(points, dtype):
        assert points.contains(member)
        assert naive.same_bits(points.project(member), member)


@pytest.mark.parametrize("points", SPARSE, ids=name)
@every_dtype
def test_no_sampled_support_is_nearer_than_the_projections(points: SparsitySet, dtype: torch.dtype) -> None:
    for w, point in zip(inputs(dtype), projections(points, dtype), strict=True):
        distance = squared(w, point)
        for seed in range(20):
            support = random_support(points, seed, full=True)
            assert distance <= squared(w, torch.where(support, w, 0)) * (1 + 1e-12)


@pytest.mark.parametrize("points", SPARSE, ids=name)
def test_no_swap_of_a_kept_for_a_dropped_element_is_nearer(points: SparsitySet) -> None:
    for w in inputs(torch.float64):
        distance = squared(w, points.project(w))
        for member in members(points, torch.float64):
            for step in (1.0, 1e-2, 1e-4):  # towards any other member's support, with the best values on it
                near = points.project(w + step * member)
                assert distance <= squared(w, torch.where(near != 0, w, 0)) * (1 + 1e-12)


@pytest.mark.parametrize("points", [p for p in [*GRIDS, *JOINT] if not sign_of_blocks(p)], ids=name)
@every_dtype
def test_no_sampled_member_on_the_projections_grid_is_nearer(points: ConstraintSet, dtype: torch.dtype) -> None:
    grid = points.grid
    assert isinstance(grid, Grid)
    slack = 4 * torch.finfo(dtype).eps  # a point of the grid is itself rounded to the dtype
    for w in inputs(dtype):
        piece = points.piece(w)
        assert piece.scales is not None
        distance = squared(w, points.apply(w, piece))
        size = float(w.double().square().sum())
        scales = piece.scales.double().flatten()[:, None]
        for seed in range(8):
            best = (grid.rows(w.double()) / torch.where(scales > 0, scales, 1)).round()
            other = best + (random_codes(grid, seed).sign() if seed % 2 else 0)
            codes = random_codes(grid, seed) if seed > 4 or grid.bits == 1 else other.clamp(-grid.top, grid.top)
            support = random_support(points.sparsity, seed, full=True) if points.sparsity else torch.tensor(True)
            member = torch.where(support, (codes * scales).view(SHAPE), 0)
            assert distance <= squared(w, member) + slack * size


@pytest.mark.parametrize("points", [p for p in [*GRIDS, *JOINT] if p.grid.scale == "mse"], ids=name)
@every_dtype
def test_the_searched_scale_is_never_worse_than_the_largest_magnitudes(
    points: ConstraintSet, dtype: torch.dtype
) -> None:
    grid = dataclasses.replace(points.grid, scale="absmax")
    plain = grid if points.sparsity is None else Then(points.sparsity, grid)
    for w, point in zip(inputs(dtype), projections(points, dtype), strict=True):
        searched = grid.rows((w.double() - point.double()).square()).sum(1)
        absmax = grid.rows((w.double() - plain.project(w).double()).square()).sum(1)
        assert searched.sum() <= absmax.sum()
        if not isinstance(points.sparsity, Block):  # which blocks are kept depends on the scale
            assert (searched <= absmax).all()


@every_set
@every_dtype
def test_projecting_leaves_its_input_and_the_random_state_alone_and_repeats(
    points: ConstraintSet, dtype: torch.dtype
) -> None:
    for w in inputs(dtype)[:2]:
        before, importance = w.clone(), gaussian(9).abs()
        kept = importance.clone()
        state = torch.get_rng_state()
        first = points.project(w), points.project(w, importance)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(7)
        second = points.project(w), points.project(w, importance)
        assert naive.same_bits(first[0], second[0])
        assert naive.same_bits(first[1], second[1])
        assert naive.same_bits(w, before)
        assert naive.same_bits(importance, kept)


@every_set
@every_dtype
def test_a_projection_with_importance_is_a_member(points: ConstraintSet, dtype: torch.dtype) -> None:
    for seed, w in enumerate(inputs(dtype)):
        importance = gaussian(seed + 20).square() * (gaussian(seed + 30) > -1)
        point = points.project(w, importance)
        assert points.contains(point)
        assert naive.same_bits(points.project(point), point)


@every_set
@every_dtype
def test_equal_importance_changes_no_bit_of_the_support(points: ConstraintSet, dtype: torch.dtype) -> None:
    if isinstance(points, SparsitySet):
        for w, point in zip(inputs(dtype), projections(points, dtype), strict=True):
            assert naive.same_bits(points.project(w, torch.full(SHAPE, 0.25)), point)
    else:
        w, plain = gaussian(0, dtype), projections(points, dtype)[0]
        even = points.project(w, torch.full(SHAPE, 0.25))
        assert squared(w, even) <= squared(w, plain) * 1.02 + 1e-12


@every_set
@every_dtype
def test_packing_and_unpacking_anew_or_into_memory_that_is_there_changes_no_bit(
    points: ConstraintSet, dtype: torch.dtype
) -> None:
    for member in [*projections(points, dtype), *members(points, dtype)]:
        packed = points.pack(member)
        assert set(packed) <= {"values", "indices", "scales"}
        assert all(part.ndim == 1 for part in packed.values())
        out = torch.full_like(member, torch.nan, memory_format=torch.contiguous_format)
        assert points.unpack_into(out, packed) is out
        assert naive.same_bits(out, member)
        assert naive.same_bits(points.unpack(packed, SHAPE, dtype), member)


@every_set
@every_dtype
def test_storage_is_the_size_of_the_packed_parts(points: ConstraintSet, dtype: torch.dtype) -> None:
    for shape in [SHAPE, (16, 64), (8, 0), (0, 64)]:
        packed = points.pack(points.project(gaussian(0, dtype, shape)))
        storage = points.storage(shape, dtype)
        for part in ("values", "indices", "scales"):
            tensor = packed.get(part, torch.zeros(0))
            assert tensor.numel() * tensor.element_size() == -(-getattr(storage, part) // 8)
        assert storage.nbytes == sum(part.numel() * part.element_size() for part in packed.values())
        assert storage.total == storage.values + storage.indices + storage.scales


def just_off_the_support(points: SparsitySet, member: Tensor) -> Tensor | None:
    """A member with every allowed element used, and one more: the smallest number of the dtype."""
    unused = (~points.mask(member.abs())).nonzero()
    if not len(unused):
        return None
    off = torch.where(points.mask(member.abs()) & (member == 0), 1, member)
    off[tuple(unused[len(unused) // 2])] = torch.finfo(member.dtype).smallest_normal
    return off


@pytest.mark.parametrize("points", [p for p in SPARSE if p.kept(SHAPE) < SHAPE[0] * SHAPE[1]], ids=name)
@every_dtype
def test_one_element_too_many_is_not_contained_and_not_packed(points: SparsitySet, dtype: torch.dtype) -> None:
    off = just_off_the_support(points, points.project(gaussian(0, dtype)))
    assert off is not None
    assert not points.contains(off)
    with pytest.raises(ValueError, match="project it first"):
        points.pack(off)


@pytest.mark.parametrize("points", [p for p in JOINT if p.first.kept(SHAPE) < SHAPE[0] * SHAPE[1]], ids=name)
@every_dtype
def test_one_element_too_many_on_the_grid_is_not_contained(points: Then, dtype: torch.dtype) -> None:
    member = points.project(gaussian(0, dtype))
    filler = points.grid.project(gaussian(0, dtype))
    off = torch.where(member == 0, filler, member)
    off = torch.where(off == 0, member.abs().amax(), off)
    assert not points.contains(off)
    with pytest.raises(ValueError, match="project it first"):
        points.pack(off)


@pytest.mark.parametrize("points", [p for p in [*GRIDS, *JOINT] if p.grid.group != 1], ids=name)
@every_dtype
def test_half_a_step_off_the_grid_is_not_contained(points: ConstraintSet, dtype: torch.dtype) -> None:
    member = points.project(gaussian(0, dtype))
    rows = points.grid.rows(member)
    crowded = int((rows != 0).sum(1).argmax())
    row = rows[crowded].clone()
    used = (row != 0).nonzero().flatten()
    row[used[0]], row[used[1:]] = row.abs().max(), row[used[1:]]
    row[used[1]] = row.abs().max() / points.grid.top / 2
    off = rows.clone()
    off[crowded] = row
    off = off.view(SHAPE)
    assert len(used) > 1
    assert not points.contains(off)
    with pytest.raises(ValueError, match="project it first"):
        points.pack(off)


@pytest.mark.parametrize("points", [p for p in [*GRIDS, *JOINT] if p.grid.group != 1], ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_one_unit_in_the_last_place_off_the_grid_is_not_contained(points: ConstraintSet, dtype: torch.dtype) -> None:
    off = points.project(gaussian(0, dtype))
    rows = points.grid.rows(off)
    for row in rows:
        sizes, counts = row.abs()[row != 0].unique(return_counts=True)
        if len(sizes) and counts.max() > 1:  # two that are equal cannot become two that are almost equal
            first = (row.abs() == sizes[counts.argmax()]).nonzero()[0]
            row[first] = row[first].nextafter(torch.tensor(0, dtype=dtype))
            break
    else:
        pytest.fail("no two elements share a magnitude")
    assert not points.contains(rows.view(SHAPE))


@every_set
def test_what_is_not_finite_or_not_a_matrix_is_not_contained(points: ConstraintSet) -> None:
    member = points.project(gaussian(0))
    for bad in (torch.nan, torch.inf, -torch.inf):
        broken = member.clone()
        broken[tuple(member.nonzero()[0])] = bad
        assert not points.contains(broken)
        with pytest.raises(ValueError, match="project it first"):
            points.pack(broken)
    assert not points.contains(member[0])
    assert not points.contains(member[None])


REJECTED = [
    (NM(2, 4), (4, 6), "in_features 6 is not a multiple of the group 4"),
    (NM(5, 64), (4, 32), "in_features 32 is not a multiple of the group 64"),
    (Block(4, 8, 0.5), (6, 16), "does not divide into blocks of 4 x 8"),
    (Block(4, 8, 0.5), (8, 12), "does not divide into blocks of 4 x 8"),
    (Grid(4, group=16), (4, 24), "in_features 24 is not a multiple of the scale group 16"),
    (Then(NM(2, 4), Grid(4)), (4, 6), "in_features 6 is not a multiple of the group 4"),
    (Then(NM(2, 4), Grid(4, group=16)), (4, 24), "in_features 24 is not a multiple of the scale group 16"),
    (Then(Block(4, 4, 0.5), Grid(4)), (6, 8), "does not divide into blocks of 4 x 4"),
]


@pytest.mark.parametrize(("points", "shape", "reason"), REJECTED, ids=name)
def test_a_rejected_shape_is_refused_with_set_shape_and_reason(
    points: ConstraintSet, shape: tuple[int, int], reason: str
) -> None:
    assert reason in (points.rejects(shape) or "")
    with pytest.raises(ValueError, match="rejects a weight") as caught:
        points.project(torch.ones(shape))
    assert all(part in str(caught.value) for part in (str(points), str(shape), reason))
    assert not points.contains(torch.zeros(shape))
    with pytest.raises(ValueError, match="project it first"):
        points.pack(torch.zeros(shape))


@every_set
def test_a_fitting_shape_is_not_rejected(points: ConstraintSet) -> None:
    assert points.rejects(SHAPE) is None


@every_set
def test_a_set_is_frozen_and_equals_its_copy(points: ConstraintSet) -> None:
    copy = pickle.loads(pickle.dumps(points))
    assert copy == points
    assert hash(copy) == hash(points)
    field = dataclasses.fields(points)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(points, field, getattr(points, field))


def test_sets_that_differ_are_unequal_and_told_apart_by_their_parts() -> None:
    assert len(set(SETS)) == len(SETS)
    for points in SPARSE:
        assert points.sparsity is points
        assert points.grid is None
    for points in GRIDS:
        assert points.sparsity is None
        assert points.grid is points
    for points in JOINT:
        assert (points.sparsity, points.grid) == (points.first, points.second)


BAD = [
    lambda: NM(0, 4),
    lambda: NM(5, 4),
    lambda: NM(1, 65),
    lambda: NM(2, 4, "hard"),  # type: ignore[arg-type]
    lambda: Unstructured(0),
    lambda: Unstructured(1.1),
    lambda: Unstructured(float("nan")),
    lambda: Block(0, 4, 0.5),
    lambda: Block(4, 0, 0.5),
    lambda: Block(4, 4, 0),
    lambda: Grid(0),
    lambda: Grid(9),
    lambda: Grid(4, group=0),
    lambda: Grid(4, scale="max"),  # type: ignore[arg-type]
    lambda: Grid(4.0),  # type: ignore[arg-type]
    lambda: Grid(True),
    lambda: Grid(4, group=8.0),  # type: ignore[arg-type]
    lambda: Grid(4, scale=1),  # type: ignore[arg-type]
    lambda: NM("2", 4),  # type: ignore[arg-type]
    lambda: NM(2, 4.0),  # type: ignore[arg-type]
    lambda: NM(2, 4, None),  # type: ignore[arg-type]
    lambda: Unstructured(float("nan")),
    lambda: Unstructured("0.5"),  # type: ignore[arg-type]
    lambda: Unstructured(True),
    lambda: Block(4, 4.0, 0.5),  # type: ignore[arg-type]
    lambda: Block(4, 4, float("nan")),
    lambda: Transposed("2:4"),  # type: ignore[arg-type]
    lambda: Then(Grid(4), NM(2, 4)),  # type: ignore[arg-type]
    lambda: Then(NM(2, 4), NM(2, 4)),  # type: ignore[arg-type]
    lambda: Then(Then(NM(2, 4), Grid(4)), Grid(4)),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("make", BAD, ids=range(len(BAD)))
def test_a_set_that_makes_no_sense_cannot_be_made(make) -> None:
    with pytest.raises(ValueError, match=r"needs|must be|knows|sparsifies|unknown coding"):
        make()


@pytest.mark.parametrize("points", [*SPARSE, *JOINT], ids=name)
@every_dtype
def test_a_frozen_mask_is_kept(points: ConstraintSet, dtype: torch.dtype) -> None:
    mask = random_support(points.sparsity, 3, full=True)
    for w in inputs(dtype):
        for importance in (None, gaussian(8).abs()):
            piece = points.piece(w, importance, mask)
            assert piece.mask is not None
            assert torch.equal(piece.mask, mask)
            point = points.apply(w, piece)
            assert not point[~mask].any()
            if isinstance(points, Then):
                assert naive.same_bits(points.apply(point, points.piece(point, importance, mask)), point)


@every_set
def test_a_point_does_not_depend_on_the_weights_memory_layout(points: ConstraintSet) -> None:
    w = gaussian(0)
    strided = w.t().contiguous().t()
    assert not strided.is_contiguous()
    assert naive.same_bits(points.project(strided).contiguous(), points.project(w))
    point = points.project(strided)
    assert naive.same_bits(points.unpack(points.pack(point), SHAPE), points.project(w))
