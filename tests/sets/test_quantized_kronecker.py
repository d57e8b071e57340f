"""Kronecker products of low-bit factors against all of them, and against products of floats."""

from itertools import product

import pytest
import torch
from torch import Tensor

from nxmiformer.sets import Grid, Kronecker, QuantizedKronecker
from nxmiformer.sets.values import from_values, to_values


def gaussian(shape: tuple[int, int], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def error(w: Tensor, point: Tensor) -> float:
    return float((w - point).square().sum() / w.square().sum())


def least_error(w: Tensor) -> float:
    """Of all ternary A (x) B of a matrix (4, 4), B of 2 x 2: every B, every row of A's codes, and its best scale."""
    blocks = w.view(2, 2, 2, 2).transpose(1, 2)  # (row of A, column of A, row of B, column of B)
    found = torch.inf
    for right in product((-1.0, 0.0, 1.0), repeat=4):
        b, left = torch.tensor(right, dtype=torch.float64).view(2, 2), 0.0
        for row in blocks:
            gains = [0.0]
            for codes in product((-1.0, 0.0, 1.0), repeat=2):
                point = torch.stack([code * b for code in codes])
                if point.any():
                    gains.append(float((row * point).sum().clamp(min=0) ** 2 / point.square().sum()))
            left += float(row.square().sum()) - max(gains)
        found = min(found, left)
    return found / float(w.square().sum())


def test_the_local_search_is_near_the_best_of_all_ternary_products() -> None:
    ratios = []
    for seed in range(20):
        w = gaussian((4, 4), seed)
        ratios.append(error(w, QuantizedKronecker(2, 2, 2).project(w)) / least_error(w))
    assert min(ratios) >= 1 - 1e-6
    assert sum(ratios) / len(ratios) < 1.1


@pytest.mark.parametrize(("rows", "cols"), [(2, 2), (8, 16), (1, 8)])
def test_more_bits_come_nearer_and_eight_are_as_near_as_floats(rows: int, cols: int) -> None:
    w = gaussian((64, 48), 1, torch.float32)
    errors = [error(w, QuantizedKronecker(rows, cols, bits).project(w)) for bits in (2, 4, 8)]
    exact = error(w, Kronecker(rows, cols).project(w))
    assert exact <= errors[2] < 1.001 * exact
    assert errors[2] < errors[1] < errors[0]


def test_both_factors_of_a_point_are_on_the_grid_and_the_largest_of_the_right_one_is_one() -> None:
    points = QuantizedKronecker(2, 4, 4)
    found = points.factors(points.project(gaussian((24, 16), 2, torch.float32)))
    assert found is not None
    left, right = found
    assert right.max() == right.abs().max() == 1
    assert Grid(4).contains(left[0])
    assert Grid(4).contains(right.flatten()[None])


def test_what_is_added_to_one_element_is_seen() -> None:
    points = QuantizedKronecker(2, 4, 4)
    off = points.project(gaussian((24, 16), 3, torch.float32))
    place = off.abs().argmin()
    off.view(-1)[place] += 1e-3
    assert not points.contains(off)
    with pytest.raises(ValueError, match=r"not a point of kron2x4\+int4"):
        points.pack(off)


@pytest.mark.parametrize("points", [Kronecker(1, 17), QuantizedKronecker(1, 17)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_weights_at_the_end_of_a_dtype_have_a_point_though_the_best_left_factor_is_larger(points, dtype) -> None:
    w = torch.full((64, 17), 0.25, dtype=torch.float64)
    w[:, 0], w[0, 0], w[0, 1:] = 0.5, 0.0, 1.0
    point = points.project((w * 0.99 * torch.finfo(dtype).max).to(dtype))
    assert point.isfinite().all()
    assert points.contains(point)


def test_a_right_factor_without_a_code_is_refused_where_the_left_one_has_any() -> None:
    points, shape = QuantizedKronecker(2, 4), (24, 16)
    parts = points.pack(points.project(gaussian(shape, 4, torch.float32)))
    parts["values"][-8:] = 127
    with pytest.raises(ValueError, match="no code other than 0"):
        points.unpack(parts, shape)


def test_codes_and_scales_alone_are_stored_to_the_bit() -> None:
    storage = QuantizedKronecker(2, 2, 8).storage((768, 768))
    assert storage.values == 8 * (384 * 384 + 4)
    assert storage.scales == 32 * 384


def test_what_no_set_can_be_is_refused_and_the_set_is_written_as_values() -> None:
    for wrong in ((0, 4, 8), (2, 4, 1), (2, 4, 9)):
        with pytest.raises(ValueError, match="right factor of rows >= 1 and cols >= 1, and 2 <= bits <= 8"):
            QuantizedKronecker(*wrong)
    points = QuantizedKronecker(2, 4, 3)
    assert from_values(type(points), to_values(points)) == points
    with pytest.raises(ValueError, match=r"kron5x4\+int8 rejects .*blocks of 5 x 4, the shape of the right"):
        QuantizedKronecker(5, 4).project(torch.zeros(24, 16))
