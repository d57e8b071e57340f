"""Kronecker products of low-bit factors."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nxmiformer.sets.base import Shape, Storage
from nxmiformer.sets.bits import pack_bits
from nxmiformer.sets.fields import check_fields
from nxmiformer.sets.grid import Grid
from nxmiformer.sets.kronecker import truncated
from nxmiformer.sets.products import Products, kron, outer
from nxmiformer.sets.recover import recovered

PROBES = 64  # elements of a right factor that a number of levels must explain before all are looked at
ALTERNATIONS = 3  # of the two factors, each the best for the other and then rounded


@dataclass(frozen=True)
class QuantizedKronecker(Products):
    """The matrices A (x) B with B of rows x cols, and both factors on grids of so many bits.

    A (out / rows, in / cols) is a point of `Grid(bits)`: codes, and a scale for each row. B is codes over the largest
    of them: its scale is in A's. One of its largest is 1, so a column of the rearranged matrix is A itself, and both
    factors can be read from a weight to the last bit. In 16 bits that can fail for many levels; B takes fewer then.

    The nearest such matrix is a problem over integers, and this is a local search: the nearest product of floats (Van
    Loan and Pitsianis 1993), and then each factor in turn, the best for the other, rounded.
    """

    rows: int
    cols: int
    bits: int = 8

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rows < 1 or self.cols < 1 or not 2 <= self.bits <= 8:
            raise ValueError(
                f"QuantizedKronecker needs a right factor of rows >= 1 and cols >= 1, and 2 <= bits <= 8, not "
                f"{self.rows} x {self.cols} and bits={self.bits}"
            )

    def __str__(self) -> str:
        return f"kron{self.rows}x{self.cols}+{self.grid_of_factors}"

    @property
    def grid_of_factors(self) -> Grid:
        """The grid of each."""
        return Grid(self.bits)

    def storage(self, shape: Shape, dtype: torch.dtype = torch.float32) -> Storage:
        above, across = self._left(shape)
        return Storage(values=(above * across + self.rows * self.cols) * self.bits, scales=above * 32)

    def pack(self, w: Tensor) -> dict[str, Tensor]:
        (left,), (right,) = self.expected(w)
        scales, _ = recovered(self.grid_of_factors, left, None)
        codes = self.grid_of_factors.codes(left, scales), _whole(right.flatten(), self.grid_of_factors.top)
        values = torch.cat([each.flatten().double() for each in codes]) + self.grid_of_factors.top
        return {"values": pack_bits(values, self.bits), "scales": scales}

    def unpack_factors(
        self, tensors: dict[str, Tensor], shape: Shape, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        above, across = self._left(shape)
        codes = self.grid_of_factors.unpack_codes(tensors, above * across + self.rows * self.cols)
        left = torch.empty(above, across, dtype=dtype, device=codes.device)
        self.grid_of_factors.scale_codes(codes[: above * across].view(above, across), tensors, left)
        return left[None], _over(codes[above * across :], dtype).view(1, self.rows, self.cols)

    def factors(self, w: Tensor) -> tuple[Tensor, Tensor] | None:
        shape = self._left((w.shape[0], w.shape[1]))
        found = self._read(self.arranged(w), shape)
        return None if found is None else (found[0].view(1, *shape), found[1].view(1, self.rows, self.cols))

    def rounded(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        grid, rows = self.grid_of_factors, (left[0], right.flatten()[None])
        near = (grid.apply(each, grid.piece(each, recover=False)) for each in rows)
        return next(near).view(left.shape), next(near).view(right.shape)

    def nearest(self, w: Tensor) -> Tensor:
        table, shape = self.arranged(w), self._left((w.shape[0], w.shape[1]))
        best = self._read(table, shape) or self._found(table, shape)
        return kron(best[0].view(1, *shape), best[1].view(1, self.rows, self.cols))

    def _left(self, shape: Shape) -> Shape:
        """The shape of the left factor."""
        return shape[0] // self.rows, shape[1] // self.cols

    def _found(self, table: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
        """The factors (n,) and (m,) of the nearest product to `table` (n, m) that the search comes by, the right one
        with as many levels as it can be read with."""
        for bits in range(self.bits, 1, -1):
            tried = [(a, b) for a, b in self._alternated(table, shape, bits) if self._read(_outer(a, b), shape)]
            if tried:
                return min(tried, key=lambda pair: float((_outer(*pair).double() - table.double()).square().sum()))
        return _none(table)

    def _alternated(self, table: Tensor, shape: Shape, bits: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Factors (n,) and (m,), the right one of so many bits: in each turn the best for the other, rounded."""
        wide, grid = table.double(), Grid(bits)
        wide = wide / (peak := wide.abs().amax().clamp(min=torch.finfo(table.dtype).tiny))
        right = (near := truncated(wide, 1))[near.abs().amax(1).argmax()]
        before = None
        for _ in range(ALTERNATIONS):
            row = right[None] / right.abs().amax()
            codes = grid.codes(row, grid.piece(row).scales.flatten())[0]
            codes = codes * codes[codes.abs().argmax()].sign()  # the first of the largest is positive
            if before is not None and torch.equal(codes, before):
                return
            before = codes
            right = _over(codes, table.dtype).double()
            left = (wide @ right) / (right @ right) * peak
            point = self.grid_of_factors.project(left.view(shape).to(table.dtype)).flatten()
            yield point, right.to(table.dtype)
            left = point.double() / peak
            right = left @ wide
            if not right.any():
                return

    def _read(self, table: Tensor, shape: Shape) -> tuple[Tensor, Tensor] | None:
        """The factors (n,) and (m,), in normal form, whose product is `table` (n, m) to the last bit."""
        wide, dtype = table.double(), table.dtype
        if not wide.any():
            return _none(table)
        left = table[:, int(wide.abs().argmax()) % table.shape[1]].contiguous()
        if not bool(recovered(self.grid_of_factors, left.view(shape), None)[1].all()):
            return None
        share = left.double() / (peak := wide.abs().amax())
        right = share @ (wide / peak) / (share @ share)
        for most in _levels(right, self.grid_of_factors.top, max(4 * torch.finfo(dtype).eps, 1e-9)):
            exact = ((right * most).round() / most).to(dtype)
            if torch.equal(_outer(left, exact), table):
                return left, exact
        return None


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """The product (n, m) of factors (n,) and (m,)."""
    return outer(left[:, None], right[None])


def _none(table: Tensor) -> tuple[Tensor, Tensor]:
    return table.new_zeros(table.shape[0]), table.new_zeros(table.shape[1])


def _over(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes (m,) over the largest magnitude of them."""
    wide = codes.double()
    return (wide / wide.abs().amax().clamp(min=1)).to(dtype)


def _whole(right: Tensor, top: int) -> Tensor:
    """The codes (m,), up to `top`, of which `_over` makes `right` (m,)."""
    wide = right.double()
    found = ((wide * most).round() for most in _levels(wide, top, torch.finfo(right.dtype).eps))
    return next(codes for codes in found if torch.equal(_over(codes, right.dtype), right))


def _levels(right: Tensor, top: int, near: float) -> list[int]:
    """The largest codes, up to `top`, with which some elements of a right factor (m,), float64, are near levels."""
    probe = right[:: max(1, len(right) // PROBES)]
    most = torch.arange(1, top + 1, device=right.device)
    levels = (probe * most[:, None]).round() / most[:, None]
    return most[((levels - probe).abs() <= near).all(1)].tolist()  # type: ignore[no-any-return]
