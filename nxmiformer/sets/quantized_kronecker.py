"""Kronecker products of low-bit factors."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nxmiformer.sets.base import Shape, Storage
from nxmiformer.sets.bits import pack_bits
from nxmiformer.sets.fields import check_fields
from nxmiformer.sets.grid import Grid
from nxmiformer.sets.products import Products, kron, outer, truncated
from nxmiformer.sets.recover import recovered

PROBES = 64  # elements, or rows of a table, that a number of levels must explain before all are looked at
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
        return f"kron{self.rows}x{self.cols}+{self.factor_grid}"

    @property
    def factor_grid(self) -> Grid:
        """The grid of the factors."""
        return Grid(self.bits)

    def storage(self, shape: Shape, dtype: torch.dtype = torch.float32) -> Storage:
        above, across = self._left(shape)
        return Storage(values=(above * across + self.rows * self.cols) * self.bits, scales=above * 32)

    def pack(self, w: Tensor) -> dict[str, Tensor]:
        (left,), (right,) = self.member_factors(w)
        scales, _ = recovered(self.factor_grid, left, None)
        codes = self.factor_grid.codes(left, scales), _whole(right.flatten(), self.factor_grid.top)
        values = torch.cat([each.flatten().double() for each in codes]) + self.factor_grid.top
        return {"values": pack_bits(values, self.bits), "scales": scales}

    def unpack_factors(
        self, tensors: dict[str, Tensor], shape: Shape, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        above, across = self._left(shape)
        codes = self.factor_grid.unpack_codes(tensors, above * across + self.rows * self.cols)
        left = torch.empty(above, across, dtype=dtype, device=codes.device)
        self.factor_grid.scale_codes(codes[: above * across].view(above, across), tensors, left)
        right = codes[above * across :]
        if bool(left.any()) and not bool(right.any()):
            raise ValueError("the right factor has no code other than 0, and the left one has")
        return left[None], _over(right, dtype).view(1, self.rows, self.cols)

    def factors(self, w: Tensor) -> tuple[Tensor, Tensor] | None:
        shape = self._left((w.shape[0], w.shape[1]))
        found = self._read(self.arranged(w), shape)
        return None if found is None else (found[0].view(1, *shape), found[1].view(1, self.rows, self.cols))

    def rounded(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        grid, row = self.factor_grid, right.flatten()[None]
        above = grid.apply(left[0], grid.piece(left[0], recover=False))
        return above[None], grid.apply(row, grid.piece(row, recover=False)).view(right.shape)

    def nearest(self, w: Tensor) -> Tensor:
        table, shape = self.arranged(w), self._left((w.shape[0], w.shape[1]))
        best = self._read(table, shape) or self._found(table, shape)
        return kron(best[0].view(1, *shape), best[1].view(1, self.rows, self.cols))

    def _left(self, shape: Shape) -> Shape:
        """The shape of the left factor."""
        return shape[0] // self.rows, shape[1] // self.cols

    def _found(self, table: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
        """The factors (n,) and (m,) of the nearest product to `table` (n, m) that the search comes by, the right one
        with as many bits as it can be read with."""
        first = truncated(table.double() / table.abs().amax(), 1)
        start = first[first.abs().amax(1).argmax()]
        for bits in range(self.bits, 1, -1):
            tried = [(a, b) for a, b in self._alternated(table, start, shape, bits) if self._read(_outer(a, b), shape)]
            if tried:
                return min(tried, key=lambda pair: float((_outer(*pair).double() - table.double()).square().sum()))
        return _zero(table)

    def _alternated(self, table: Tensor, right: Tensor, shape: Shape, bits: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Factors (n,) and (m,), the right one of so many bits: in each turn the best for the other, rounded. The
        first is for `right` (m,)."""
        info, grid, before = torch.finfo(table.dtype), Grid(bits), None
        peak = table.double().abs().amax().clamp(min=info.tiny)
        wide = table.double() / peak
        for _ in range(ALTERNATIONS):
            if not right.any():
                return
            row = right[None] / right.abs().amax()
            scales = grid.piece(row).scales
            assert scales is not None
            codes = grid.codes(row, scales.flatten())[0]
            codes = codes * codes[codes.abs().argmax()].sign()  # the first of the largest is positive
            if before is not None and torch.equal(codes, before):
                return
            before, right = codes, _over(codes, table.dtype).double()
            left = ((wide @ right) / (right @ right) * peak).clamp(-info.max, info.max)
            point = self.factor_grid.project(left.view(shape).to(table.dtype)).flatten()
            yield point, right.to(table.dtype)
            right = (point.double() / peak) @ wide

    def _read(self, table: Tensor, shape: Shape) -> tuple[Tensor, Tensor] | None:
        """The factors (n,) and (m,), in normal form, whose product is `table` (n, m) to the last bit."""
        wide, dtype = table.double(), table.dtype
        if not wide.any():
            return _zero(table)
        place = int(wide.abs().argmax())
        left = table[:, place % table.shape[1]].contiguous()
        if not bool(recovered(self.factor_grid, left.view(shape), None)[1].all()):
            return None
        share = left.double() / (peak := wide.flatten()[place].abs())
        right = share @ (wide / peak) / (share @ share)
        probe = slice(None, None, max(1, len(left) // PROBES))
        for most in _levels(right, self.factor_grid.top, max(4 * torch.finfo(dtype).eps, 1e-9)):
            exact = ((right * most).round() / most).to(dtype)
            if all(torch.equal(_outer(left[some], exact), table[some]) for some in (probe, slice(None))):
                return left, exact
        return None


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """The product (n, m) of factors (n,) and (m,)."""
    return outer(left[:, None], right[None])


def _zero(table: Tensor) -> tuple[Tensor, Tensor]:
    return table.new_zeros(table.shape[0]), table.new_zeros(table.shape[1])


def _over(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes (m,) over the largest magnitude of them."""
    wide = codes.double()
    return (wide / wide.abs().amax().clamp(min=1)).to(dtype)


def _whole(right: Tensor, top: int) -> Tensor:
    """The codes (m,), up to `top`, of which `_over` makes `right` (m,)."""
    wide = right.double()
    found = ((wide * most).round() for most in _levels(wide, top, torch.finfo(right.dtype).eps))
    codes = next((each for each in found if torch.equal(_over(each, right.dtype), right)), None)
    if codes is None:
        raise ValueError(f"the right factor is not codes up to {top} over the largest of them")
    return codes


def _levels(right: Tensor, top: int, near: float) -> list[int]:
    """The largest codes, up to `top`, that a right factor (m,), float64, may have: for each of them a sample of its
    elements are fractions of it, within `near`."""
    probe = right[:: max(1, len(right) // PROBES)]
    most = torch.arange(1, top + 1, device=right.device)
    levels = (probe * most[:, None]).round() / most[:, None]
    return most[((levels - probe).abs() <= near).all(1)].tolist()
