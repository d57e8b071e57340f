"""Weights and packed parts at the edge of what a set takes, and beyond it."""

import naive
import pytest
import torch
from torch import Tensor

from nxmiformer.sets import NM, Block, ConstraintSet, Grid, SparsitySet, Then, Unstructured
from nxmiformer.sets.base import DTYPES
from nxmiformer.sets.bits import pack_bits, unpack_bits

SPARSE: list[SparsitySet] = [NM(1, 1), NM(2, 4), NM(8, 16), NM(5, 64), Unstructured(0.3), Block(4, 4, 0.5)]
GRIDS = [Grid(1), Grid(2), Grid(4), Grid(8), Grid(8, scale="absmax"), Grid(4, group=4), Grid(1, group=4)]
JOINT = [
    Then(NM(2, 4), Grid(1)),
    Then(NM(2, 4), Grid(8)),
    Then(NM(8, 16), Grid(4, group=16)),
    Then(Unstructured(0.3), Grid(3)),
    Then(Block(4, 4, 0.5), Grid(4)),
]
SETS: list[ConstraintSet] = [*SPARSE, *GRIDS, *JOINT]
SHAPE = (8, 64)

every_set = pytest.mark.parametrize("points", SETS, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def gaussian(seed: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def check_round_trip(points: ConstraintSet, w: Tensor) -> Tensor:
    """The projection of w, after checking that it is a fixed, packable member."""
    point = points.project(w)
    assert point.dtype == w.dtype
    assert point.isfinite().all()
    assert points.contains(point)
    assert naive.same_bits(points.project(point), point)
    assert naive.same_bits(points.unpack(points.pack(point), (w.shape[0], w.shape[1]), w.dtype), point)
    return point


@every_set
@every_dtype
@pytest.mark.parametrize("shape", [(0, 64), (8, 0), (0, 0)])
def test_an_empty_matrix_is_its_own_projection(
    points: ConstraintSet, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    point = check_round_trip(points, torch.zeros(shape, dtype=dtype))
    assert point.shape == shape
    assert points.project(point, torch.zeros(shape)).shape == shape


@pytest.mark.parametrize("shape", [(7, 1), (1, 7), (1, 1)])
@pytest.mark.parametrize(
    "points", [NM(1, 1), Unstructured(0.5), Block(1, 1, 0.5), Grid(1), Grid(4), Grid(8, group=1)], ids=str
)
def test_one_column_or_row_is_enough(points: ConstraintSet, shape: tuple[int, int]) -> None:
    point = check_round_trip(points, gaussian(0, shape))
    assert point.any()


@every_set
@every_dtype
def test_zero_projects_to_positive_zero(points: ConstraintSet, dtype: torch.dtype) -> None:
    assert naive.same_bits(check_round_trip(points, torch.zeros(SHAPE, dtype=dtype)), torch.zeros(SHAPE, dtype=dtype))


@every_set
@every_dtype
@pytest.mark.parametrize("value", [1.0, -0.3])
def test_equal_elements_are_kept_in_order_and_in_exact_number(
    points: ConstraintSet, dtype: torch.dtype, value: float
) -> None:
    w = torch.full(SHAPE, value).to(dtype)
    point = check_round_trip(points, w)
    if points.sparsity is None:
        assert naive.same_bits(point, w)
    else:
        assert int((point != 0).sum()) == points.sparsity.kept(SHAPE)
        assert (point[point != 0] == w[0, 0]).all()
        assert point[0, 0] == w[0, 0]


def test_the_lower_index_wins_a_tie() -> None:
    w = torch.tensor([[1.0, -1.0, 1.0, -1.0, 0.0, 2.0, -2.0, 2.0]])
    assert NM(2, 4).project(w).tolist() == [[1, -1, 0, 0, 0, 2, -2, 0]]
    assert NM(5, 8).project(w).tolist() == [[1, -1, 0, 0, 0, 2, -2, 2]]
    assert Unstructured(0.5).project(w).tolist() == [[1, 0, 0, 0, 0, 2, -2, 2]]
    assert Block(1, 2, 0.5).project(w).tolist() == [[0, 0, 0, 0, 0, 2, -2, 2]]
    assert Block(1, 2, 0.5).project(torch.ones(1, 8)).tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize("points", [Unstructured(0.25), Unstructured(1e-6), NM(2, 4), NM(5, 64)], ids=str)
def test_of_a_million_equal_elements_the_exact_number_is_kept(points: SparsitySet) -> None:
    shape = (1000, 1024)
    mask = points.mask(torch.ones(shape))
    assert int(mask.sum()) == points.kept(shape)
    if isinstance(points, Unstructured):
        assert mask.flatten()[: points.kept(shape)].all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_million_equal_elements_are_a_member(bits: int) -> None:
    points = Then(NM(2, 4), Grid(bits))
    point = points.project(torch.full((1000, 1024), 0.3))
    assert points.contains(point)
    assert int((point != 0).sum()) == 512_000


@every_set
@every_dtype
def test_the_largest_numbers_do_not_overflow(points: ConstraintSet, dtype: torch.dtype) -> None:
    largest = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
    for w in (torch.full(SHAPE, largest, dtype=dtype), gaussian(0, SHAPE, dtype).clamp(-1, 1) * largest):
        point = check_round_trip(points, w)
        kept = point != 0
        assert kept.any()
        assert (point[kept].double() / largest).abs().max() > 0.3


@every_set
@every_dtype
def test_the_tiniest_numbers_go_to_a_member(points: ConstraintSet, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    for size in (info.tiny, info.tiny * info.eps, info.tiny * 100, info.tiny * 1e5):
        w = (gaussian(0, SHAPE, torch.float64) * size).to(dtype)
        point = check_round_trip(points, w)
        assert (point.double().abs().max() <= w.double().abs().max() * 1.01) or points.grid is None


@pytest.mark.parametrize("points", SPARSE, ids=str)
def test_subnormal_numbers_are_told_apart(points: SparsitySet) -> None:
    w = gaussian(0) * 1e-3
    tiny = (w.double() * 1e-38).float()
    assert torch.equal(points.project(tiny) != 0, points.project(tiny.double()) != 0)


@every_set
@every_dtype
def test_a_negative_zero_survives_or_becomes_a_positive_one(points: ConstraintSet, dtype: torch.dtype) -> None:
    w = gaussian(0, SHAPE, dtype)
    w[:, ::3] = -0.0
    w[0] = -0.0
    point = check_round_trip(points, w)
    assert (points.project(w.abs()) != 0).equal(point != 0)
    if isinstance(points, SparsitySet):
        member = points.project(gaussian(1, SHAPE, dtype)) * -1  # zeros outside of the support are negative
        assert points.contains(member)
        assert torch.equal(points.unpack(points.pack(member), SHAPE, dtype), member)  # equal, if not in the sign of 0
    else:
        assert not (point == 0).logical_and(torch.signbit(point)).any()


@every_set
@pytest.mark.parametrize("what", ["weight", "importance"])
def test_what_is_not_finite_is_counted_and_refused(points: ConstraintSet, what: str) -> None:
    bad = gaussian(0).abs()
    bad[0, :3], bad[1, 0], bad[1, 1] = torch.nan, torch.inf, -torch.inf
    with pytest.raises(ValueError, match=f"{what} holds 3 NaN and 2 infinite values"):
        points.project(*((bad,) if what == "weight" else (gaussian(0), bad)))


@every_set
def test_importance_of_another_shape_or_sign_is_refused(points: ConstraintSet) -> None:
    w = gaussian(0)
    with pytest.raises(ValueError, match=r"importance has shape \(64, 8\), the weight \(8, 64\)"):
        points.project(w, w.t().abs())
    with pytest.raises(ValueError, match=r"importance must not be negative, its least value is -0\.5"):
        points.project(w, torch.full(SHAPE, -0.5))


@every_set
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64], ids=str)
def test_a_weight_that_is_not_of_floats_is_refused(points: ConstraintSet, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="projects float weights of 16 to 64 bits, not torch"):
        points.project(torch.ones(SHAPE, dtype=dtype))


@every_set
@pytest.mark.parametrize("shape", [(64,), (8, 64, 1), ()], ids=str)
def test_a_weight_that_is_not_a_matrix_is_refused(points: ConstraintSet, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"rejects a weight of shape .*: it has {len(shape)} dimensions, not 2"):
        points.project(torch.ones(shape))


@every_set
@every_dtype
def test_importance_of_zero_everywhere_still_gives_a_member(points: ConstraintSet, dtype: torch.dtype) -> None:
    point = points.project(gaussian(0, SHAPE, dtype), torch.zeros(SHAPE))
    assert points.contains(point)
    if isinstance(points, NM) and points.group > 1:
        assert not point.view(-1, points.group)[:, points.keep :].any()  # all are worth the same: ties by index


def test_importance_changes_which_elements_are_kept() -> None:
    w, importance = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[100.0, 30.0, 1.0, 1.0]])
    assert NM(2, 4).project(w).tolist() == [[0, 0, 3, 4]]
    assert NM(2, 4).project(w, importance).tolist() == [[1, 2, 0, 0]]
    assert Unstructured(0.5).project(w, importance).tolist() == [[1, 2, 0, 0]]
    assert Block(1, 2, 0.5).project(w, importance).tolist() == [[1, 2, 0, 0]]
    assert Then(NM(2, 4), Grid(8)).project(w, importance).nonzero()[:, 1].tolist() == [0, 1]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_importance_moves_the_scale_to_what_is_important(bits: int) -> None:
    w = gaussian(0, (4, 256))
    w[:, 0] = 20.0
    importance = torch.ones_like(w)
    importance[:, 0] = 0
    grid = Grid(bits)
    errors = [(w - grid.project(w, f)).square()[:, 1:].sum(1) for f in (importance, None)]
    assert (errors[0] < errors[1]).all()


def test_what_has_no_importance_is_clipped_to_the_grid_of_the_rest() -> None:
    w, importance = torch.tensor([[1.0, -2.0, 3.0, 50.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert Grid(3).project(w, importance).tolist() == [[1, -2, 3, 3]]


def damaged(points: ConstraintSet) -> dict[str, Tensor]:
    return {key: part.clone() for key, part in points.pack(points.project(gaussian(0))).items()}


@pytest.mark.parametrize("points", SETS, ids=str)
def test_a_missing_part_is_named(points: ConstraintSet) -> None:
    for key in damaged(points):
        parts = damaged(points)
        del parts[key]
        with pytest.raises(ValueError, match=f"no '{key}', only"):
            points.unpack(parts, SHAPE)


@pytest.mark.parametrize("points", SETS, ids=str)
def test_a_part_of_the_wrong_size_dtype_or_dimension_is_refused(points: ConstraintSet) -> None:
    for key, part in damaged(points).items():
        for wrong in (part[:-1], torch.cat([part, part[:1]]), part.to(torch.int32), part[None]):
            with pytest.raises(ValueError, match=r"should be|are \d+ bytes"):
                points.unpack({**damaged(points), key: wrong}, SHAPE)


@pytest.mark.parametrize("points", [p for p in SETS if p.grid is not None], ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -1.0])
def test_a_scale_that_cannot_be_one_is_refused(points: ConstraintSet, bad: float) -> None:
    parts = damaged(points)
    parts["scales"][0] = bad
    with pytest.raises(ValueError, match="scales hold values that are negative or not finite"):
        points.unpack(parts, SHAPE)


@pytest.mark.parametrize("points", [p for p in SETS if p.grid is not None and p.grid.bits > 1], ids=str)
def test_the_code_that_a_narrow_grid_does_not_have_is_refused(points: ConstraintSet) -> None:
    parts = damaged(points)
    parts["values"][0] = 255
    with pytest.raises(ValueError, match=f"codes above {2 * points.grid.top}, which int"):
        points.unpack(parts, SHAPE)


@pytest.mark.parametrize("points", [NM(2, 4), NM(8, 16), NM(5, 64), Then(NM(2, 4), Grid(4))], ids=str)
def test_positions_that_do_not_ascend_are_refused(points: ConstraintSet) -> None:
    nm = points.sparsity
    assert isinstance(nm, NM)
    bits = (nm.group - 1).bit_length()
    good = torch.arange(nm.keep).repeat(nm.kept(SHAPE) // nm.keep)
    assert points.unpack({**damaged(points), "indices": pack_bits(good, bits)}, SHAPE).shape == SHAPE
    for first, second in [(1, 0), (0, 0), (nm.group - 1, 1)]:
        order = good.clone()
        order[0], order[1] = first, second
        with pytest.raises(ValueError, match=f"not {nm.keep} ascending positions below {nm.group} in each group"):
            points.unpack({**damaged(points), "indices": pack_bits(order, bits)}, SHAPE)


def test_a_position_beyond_the_group_is_refused() -> None:
    points = NM(2, 3)
    parts = points.pack(points.project(torch.ones(1, 3)))
    parts["indices"] = pack_bits(torch.tensor([0, 3]), 2)
    with pytest.raises(ValueError, match="not 2 ascending positions below 3 in each group"):
        points.unpack(parts, (1, 3))


@pytest.mark.parametrize("points", [Unstructured(0.3), Block(4, 4, 0.5), Then(Unstructured(0.3), Grid(3))], ids=str)
def test_a_bitmap_that_keeps_another_number_is_refused(points: ConstraintSet) -> None:
    parts = damaged(points)
    parts["indices"][0] ^= 1
    with pytest.raises(ValueError, match=r"the indices keep \d+ of \d+, not \d+"):
        points.unpack(parts, SHAPE)


@pytest.mark.parametrize(
    ("points", "shape", "key"),
    [(Grid(3), (1, 3), "values"), (NM(1, 4), (1, 4), "indices"), (Unstructured(0.5), (1, 3), "indices")],
    ids=str,
)
def test_padding_bits_that_are_not_zero_are_refused(points: ConstraintSet, shape: tuple[int, int], key: str) -> None:
    parts = points.pack(points.project(gaussian(0, shape)))
    parts[key][-1] |= 128
    with pytest.raises(ValueError, match="the bits after the last of"):
        points.unpack(parts, shape)


def test_bits_of_the_wrong_size_or_dtype_are_refused() -> None:
    packed = pack_bits(torch.arange(5), 3)
    assert unpack_bits(packed, 3, 5).tolist() == [0, 1, 2, 3, 4]
    for wrong in (packed[:-1], packed.int(), packed[None]):
        with pytest.raises(ValueError, match="5 codes of 3 bits are 2 bytes, not"):
            unpack_bits(wrong, 3, 5)
