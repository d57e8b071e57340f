"""Sums of Kronecker products against loops, singular values, and products of torch."""

import naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from nxmiformer.sets import Grid, Kronecker, Then
from nxmiformer.sets.products import kron, kron_rows
from nxmiformer.sets.values import from_values, to_values

CASES = [(2, 2, 1), (1, 8, 1), (4, 1, 2), (2, 4, 3), (8, 8, 1), (6, 4, 2)]
SHAPE = (24, 16)
FLOATS = (torch.float64, torch.float32)


def gaussian(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def factors(rows: int, cols: int, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    left = gaussian((rank, SHAPE[0] // rows, SHAPE[1] // cols), seed)
    return left, gaussian((rank, rows, cols), seed + 1000)


@pytest.mark.parametrize(("rows", "cols", "rank"), CASES)
def test_the_product_is_that_of_a_loop_of_torch_and_its_rows_are_its_rows(rows: int, cols: int, rank: int) -> None:
    left, right = factors(rows, cols, rank, 0)
    w = kron(left, right)
    np.testing.assert_allclose(w.numpy(), naive.kron(left.numpy(), right.numpy()), rtol=0, atol=1e-14)
    torch.testing.assert_close(w, sum(map(torch.kron, left, right)), rtol=0, atol=1e-14)
    for dtype in (*FLOATS, torch.bfloat16):
        narrow = left.to(dtype), right.to(dtype)
        numbers = torch.tensor([3, 0, 23, 3])
        assert naive.same_bits(kron_rows(*narrow, numbers), kron(*narrow)[numbers])


@pytest.mark.parametrize(("rows", "cols", "rank"), CASES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_error_is_the_tail_of_the_singular_values(
    rows: int, cols: int, rank: int, dtype: torch.dtype, seed: int
) -> None:
    w = gaussian(SHAPE, seed, dtype)
    error = float((w.double() - Kronecker(rows, cols, rank).project(w).double()).norm())
    tail = naive.kronecker_tail(naive.array(w), rows, cols, rank)
    assert abs(error - tail) <= 100 * torch.finfo(dtype).eps * float(w.norm())


@pytest.mark.parametrize(("rows", "cols", "rank"), CASES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_any_sum_of_products_is_recovered_and_so_is_what_a_layer_computes_with_it(
    rows: int, cols: int, rank: int, dtype: torch.dtype
) -> None:
    points = Kronecker(rows, cols, rank)
    for seed in range(3):
        left, right = factors(rows, cols, rank, seed)
        w = kron(left.to(dtype), right.to(dtype))
        point = points.project(w)
        near = {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]
        torch.testing.assert_close(point, w, rtol=0, atol=near * float(w.abs().max()))
        found = points.factors(point)
        assert found is not None
        x = gaussian((5, SHAPE[1]), seed, dtype)
        whole = sum(F.linear(x.double(), torch.kron(a, b)) for a, b in zip(left, right, strict=True))
        torch.testing.assert_close(
            F.linear(x, kron(*found)).double(), whole, rtol=0, atol=near * float(whole.abs().max())
        )


def test_no_alternating_least_squares_from_the_projection_comes_nearer() -> None:
    w = gaussian(SHAPE, 5)
    points = Kronecker(4, 2, 2)
    point = points.project(w)
    found = points.factors(point)
    assert found is not None
    table, right = points.arranged(w), found[1].flatten(1)
    for _ in range(20):
        left = torch.linalg.lstsq(right.t(), table.t()).solution.t()
        right = torch.linalg.lstsq(left, table).solution
    assert (table - left @ right).norm() >= (w - point).norm() * (1 - 1e-12)


def test_importance_brings_the_point_nearer_by_its_own_measure() -> None:
    w, importance = gaussian(SHAPE, 6), gaussian(SHAPE, 7).exp()

    def error(point: Tensor) -> float:
        return float((importance * (w - point).square()).sum())

    points = Kronecker(2, 4, 2)
    assert error(points.project(w, importance)) < 0.99 * error(points.project(w))


def test_fewer_terms_than_the_set_has_are_a_point_of_it_and_so_is_nothing() -> None:
    for rank in range(3):
        left, right = factors(2, 4, 3, 8)
        right = (right * 8).round() / 8
        w = kron(left[:rank], right[:rank]) if rank else torch.zeros(SHAPE, dtype=torch.float64)
        point = Kronecker(2, 4, 3).project(w)
        torch.testing.assert_close(point, w, rtol=0, atol=1e-12)
        assert Kronecker(2, 4, 3).contains(point)
        assert Kronecker(2, 4, max(1, rank)).contains(point)


@pytest.mark.parametrize("scale", [1e-42, 1e-37, 1e-20, 1e18, 1e37])
def test_weights_of_any_size_have_a_nearest_point(scale: float) -> None:
    points = Kronecker(2, 4, 2)
    point = points.project((gaussian(SHAPE, 9) * scale).float())
    assert point.isfinite().all()
    assert points.contains(point)
    assert bool(point.any()) == (scale > 1e-40)


def test_what_is_added_to_one_element_is_seen() -> None:
    for dtype in FLOATS:
        off = Kronecker(2, 4).project(gaussian(SHAPE, 10, dtype))
        place = off.abs().argmin()
        off.view(-1)[place] = off.view(-1)[place].nextafter(torch.tensor(9, dtype=dtype))
        assert not Kronecker(2, 4).contains(off)


def test_a_shape_that_does_not_divide_is_refused_with_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"kron5x4 rejects .*\(24, 16\): .*blocks of 5 x 4, the shape of the right"):
        Kronecker(5, 4).project(torch.zeros(SHAPE))
    with pytest.raises(ValueError, match="3 terms are more than the 2 that give every matrix"):
        Kronecker(1, 2, 3).project(torch.zeros(SHAPE))


def test_factors_that_are_cut_short_or_not_finite_are_refused() -> None:
    points = Kronecker(2, 4)
    values = points.pack(points.project(gaussian(SHAPE, 11, torch.float32)))["values"]
    with pytest.raises(ValueError, match="'values' should be 56 elements"):
        points.unpack({"values": values[:-1]}, SHAPE)
    values[3] = torch.inf
    with pytest.raises(ValueError, match="not finite"):
        points.unpack({"values": values}, SHAPE)


def test_a_grid_on_a_product_is_refused_and_the_set_is_written_as_values() -> None:
    with pytest.raises(ValueError, match="a rounded sum of Kronecker products is not one any more"):
        Then(Kronecker(2, 4), Grid(8))  # type: ignore[arg-type]
    points = Kronecker(2, 4, 3)
    assert from_values(type(points), to_values(points)) == points
    with pytest.raises(ValueError, match="rank >= 1"):
        Kronecker(2, 4, 0)
