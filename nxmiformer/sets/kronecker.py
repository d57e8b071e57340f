"""Sums of Kronecker products."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nxmiformer.sets.base import Shape, Storage, expect
from nxmiformer.sets.fields import check_fields
from nxmiformer.sets.products import Products, kron, none, outer, truncated

FINEST = 2**-44  # grid of the right factor in float64, where what they are read by is not exact itself
STEPS = 8  # of the right factor's grid that are tried, each four times as coarse as the one before
SETTLINGS = 4  # of the pivots, which the rounding of the factors may move


@dataclass(frozen=True)
class Kronecker(Products):
    """The matrices A_1 (x) B_1 + ... + A_rank (x) B_rank with B_k of rows x cols, and A_k (out / rows, in / cols).

    The nearest point is the truncated singular value decomposition of the rearranged matrix (Van Loan and Pitsianis
    1993), whose rows are the blocks of rows x cols. The error is the tail of its singular values. The factors alone are
    stored.

    A weight is a point if factors in their normal form give it to the last bit. Many pairs of factors (c A, B / c) have
    the same product, and the normal form is one of them. As many columns of the rearranged matrix as there are terms
    are the left factors themselves. The right factors are rounded to a few units in the last place of 1. So the factors
    can be read from a weight again. In 16 bits that can fail for more than one term; fewer are kept then.
    """

    rows: int
    cols: int
    rank: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rows < 1 or self.cols < 1 or self.rank < 1:
            raise ValueError(
                f"Kronecker needs a right factor of rows >= 1 and cols >= 1, and rank >= 1 terms, not {self.rows} x "
                f"{self.cols} and {self.rank}"
            )

    def __str__(self) -> str:
        return f"kron{self.rows}x{self.cols}" + (f"r{self.rank}" if self.rank > 1 else "")

    def rejects(self, shape: Shape) -> str | None:
        if reason := super().rejects(shape):
            return reason
        most = min(shape[0] // self.rows * (shape[1] // self.cols), self.rows * self.cols)
        if 0 < most < self.rank:
            return f"{self.rank} terms are more than the {most} that give every matrix of this shape"
        return None

    def storage(self, shape: Shape, dtype: torch.dtype = torch.float32) -> Storage:
        left = shape[0] // self.rows * (shape[1] // self.cols)
        return Storage(values=self.rank * (left + self.rows * self.cols) * dtype.itemsize * 8)

    def pack(self, w: Tensor) -> dict[str, Tensor]:
        return {"values": torch.cat([factor.flatten() for factor in self.member_factors(w)])}

    def unpack_factors(
        self, tensors: dict[str, Tensor], shape: Shape, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        left, right = (shape[0] // self.rows, shape[1] // self.cols), (self.rows, self.cols)
        size = left[0] * left[1]
        values = expect(tensors, "values", self.rank * (size + self.rows * self.cols), dtype)
        if not values.isfinite().all():
            raise ValueError("the factors hold values that are not finite")
        return values[: self.rank * size].view(-1, *left), values[self.rank * size :].view(-1, *right)

    def factors(self, w: Tensor) -> tuple[Tensor, Tensor] | None:
        table = self.arranged(w)
        found = _read(table, self.rank)
        if found is None:
            return None
        shape, missing = (w.shape[0] // self.rows, w.shape[1] // self.cols), self.rank - found[0].shape[1]
        left = torch.cat([found[0].t(), table.new_zeros(missing, table.shape[0])])
        right = torch.cat([found[1], table.new_zeros(missing, table.shape[1])])
        return left.view(self.rank, *shape), right.view(self.rank, self.rows, self.cols)

    def rounded(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return left, right

    def nearest(self, w: Tensor) -> Tensor:
        table = self.arranged(w)
        left, right = _read(table, self.rank) or _found(table, self.rank)
        shape = (w.shape[0] // self.rows, w.shape[1] // self.cols)
        return kron(left.t().reshape(-1, *shape), right.view(-1, self.rows, self.cols))


def _found(table: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors (n, terms) and (terms, m), in normal form, of the nearest matrix to `table` (n, m) of at most
    `rank` terms; fewer where those cannot be read from the matrix."""
    wide = table.double()
    for terms in range(rank, 0, -1):
        near = truncated(wide, terms)
        for _ in range(SETTLINGS):
            pivots = _pivots(near, terms, torch.finfo(table.dtype).eps)
            if not pivots or near[:, pivots[:1]].abs().amax() < torch.finfo(table.dtype).tiny:
                return none(table)
            most = torch.finfo(table.dtype).max
            left = near[:, pivots].clamp(-most, most).to(table.dtype)
            if (found := _rounded(left, wide, pivots, rank)) is not None:
                return found
            near = outer(left, _fitted(left, wide).to(table.dtype)).double()
    return none(table)


def _rounded(left: Tensor, table: Tensor, pivots: list[int], rank: int) -> tuple[Tensor, Tensor] | None:
    """`left` and the right factor that is best for it, on the finest grid from which both can be read again."""
    for right in _grids(left, table, pivots):
        found = _read(outer(left, right), rank)
        if found is not None:
            return found
    return None


def _read(table: Tensor, rank: int) -> tuple[Tensor, Tensor] | None:
    """The factors (n, terms) and (terms, m), in normal form, whose product is `table` (n, m) to the last bit."""
    wide = table.double()
    if not wide.any():
        return none(table)
    if not wide.isfinite().all():
        return None
    pivots = _pivots(wide, rank, torch.finfo(table.dtype).eps)
    left = table[:, pivots]
    for right in _grids(left, wide, pivots):
        made = outer(left, right)
        if torch.equal(made, table):
            return left, right
        if (made.double() - wide).abs().amax() > wide.abs().amax() / 8:  # by no rounding
            return None
    return None


def _grids(left: Tensor, table: Tensor, pivots: list[int]) -> Iterator[Tensor]:
    """The right factor (terms, m) that brings `left` (n, terms) nearest to the table (n, m), on ever coarser grids."""
    exact = _fitted(left, table)
    exact[:, pivots] = torch.eye(len(pivots), dtype=torch.float64, device=table.device)
    step = max(4 * torch.finfo(left.dtype).eps, FINEST)
    for _ in range(STEPS):
        if step > 1:
            return
        yield (exact / step).round().mul(step).add(0.0).to(left.dtype)
        step *= 4


def _fitted(left: Tensor, table: Tensor) -> Tensor:
    """The right factor (terms, m) of least squared error of left (n, terms) times it, by the normal equations."""
    wide = left.double()
    wide, size = wide / (peaks := wide.abs().amax(0)), peaks[:, None]
    most = torch.exp2(table.abs().amax().clamp(min=torch.finfo(torch.float64).tiny).log2().floor())
    table = table / most  # exact, and sums of it do not overflow
    gram = wide.t() @ wide
    first = torch.linalg.lstsq(gram, wide.t() @ table).solution
    more = torch.linalg.lstsq(gram, wide.t() @ (table - wide @ first)).solution
    return (first + more) / size * most


def _pivots(table: Tensor, terms: int, eps: float) -> list[int]:
    """The columns that span the table (n, m), by elimination with complete pivoting: at most so many, each with the
    largest element that those before it leave; fewer where what they leave is rounding."""
    left, least, found = table, table.abs().amax().item() * 16 * eps, list[int]()
    for _ in range(terms):
        size = left.abs()
        peak = size.amax()
        if peak <= (least if found else 0):
            break
        row, column = (size == peak).nonzero()[0].tolist()
        found.append(column)
        if len(found) < terms:
            left = left - left[:, column, None] * (left[row] / left[row, column])
    return found
