"""Sparse and low-bit at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nxmiformer.sets.base import ConstraintSet, Piece, Shape, SparsitySet, Storage, masked
from nxmiformer.sets.fused import fused
from nxmiformer.sets.grid import Grid
from nxmiformer.sets.lookup import look_up
from nxmiformer.sets.products import Products

ALTERNATIONS = 3  # of scale and mask, where they are coupled


@dataclass(frozen=True)
class Then(ConstraintSet):
    """The intersection of a sparsity set and a grid. The projection prunes, and then rounds.

    This is the exact joint projection for a symmetric uniform grid and a fixed scale. The gain of keeping an element,
    w^2 - (w - Q(w))^2, never falls as |w| grows. So the mask is that of the magnitudes for every scale, and the scale
    is then searched on the remaining elements alone. The other order is not exact, and is refused.

    With importance f the gain is f * (w^2 - (w - Q(w))^2), and with blocks it is the sum over a block. Both depend on
    the scale. Scale and mask are then found in turn, the mask last, so that the point is the exact joint projection for
    its scale. For bits=1 the scale is last.
    """

    first: SparsitySet
    second: Grid

    def __post_init__(self) -> None:
        if isinstance(self.first, Products):
            raise ValueError(
                f"Then({self.first!r}, {self.second!r}): a rounded sum of Kronecker products is not one any more: "
                f"give the factors a grid, with QuantizedKronecker(rows, cols, bits)"
            )
        if not isinstance(self.first, SparsitySet) or not isinstance(self.second, Grid):
            raise ValueError(
                f"Then(first, second) sparsifies and then rounds: first must be a sparsity set and second a Grid, "
                f"not {self.first!r} and {self.second!r}"
            )

    def __str__(self) -> str:
        return f"{self.first}+{self.second}"

    @property
    def rowwise(self) -> bool:
        return self.first.rowwise

    @property
    def sparsity(self) -> SparsitySet:
        return self.first

    @property
    def grid(self) -> Grid:
        return self.second

    def rejects(self, shape: Shape) -> str | None:
        return self.first.rejects(shape) or self.second.rejects(shape)

    def piece(
        self, w: Tensor, importance: Tensor | None = None, mask: Tensor | None = None, recover: bool = True
    ) -> Piece:
        if mask is not None:
            return Piece(mask, self._scales(w, importance, mask, recover))
        mask = self.first.piece(w, importance).mask
        assert mask is not None
        coupled = importance is not None or not self.first.elementwise
        for _ in range(ALTERNATIONS if coupled else 1):
            scales = self._scales(w, importance, mask, recover)
            mask = self._best(w, importance, scales) if coupled else mask
        if coupled and self.second.bits == 1:  # a row that has only now something to keep has no scale yet
            scales = self._scales(w, importance, mask, recover)
        return Piece(mask, scales)

    def _best(self, w: Tensor, importance: Tensor | None, scales: Tensor | None) -> Tensor:
        """The support of the nearest point on the grid of `scales`."""
        point = self.second.apply(w, Piece(scales=scales)).double()
        gain = point * (2 * w.double() - point)
        return self.first.mask(gain if importance is None else gain * importance)

    def _scales(self, w: Tensor, importance: Tensor | None, mask: Tensor, recover: bool) -> Tensor | None:
        return self.second.piece(masked(w, mask), importance, mask, recover).scales

    def apply(self, w: Tensor, piece: Piece) -> Tensor:
        assert piece.mask is not None
        assert piece.scales is not None
        return _rounded(self.second, w, piece.mask, piece.scales)

    def contains(self, w: Tensor) -> bool:
        return self.fits(w) and self.first.contains(w) and self.second.explains(w, self._support(w))

    def _support(self, w: Tensor) -> Tensor:
        return self.first.mask(w.abs())

    def storage(self, shape: Shape, dtype: torch.dtype = torch.float32) -> Storage:
        return Storage(
            values=self.first.kept(shape) * self.second.bits,
            indices=self.first.index_bits(shape),
            scales=self.second.storage(shape).scales,
        )

    def pack(self, w: Tensor) -> dict[str, Tensor]:
        if not self.contains(w):
            raise ValueError(f"the weight is not a point of {self}, so it cannot be packed as one: project it first")
        support = self._support(w)
        return {**self.second.pack_codes(w, support), **self.first.pack_mask(support)}

    def unpack(self, tensors: dict[str, Tensor], shape: Shape, dtype: torch.dtype = torch.float32) -> Tensor:
        codes = self._codes(tensors, shape)
        return self.second.scale_codes(codes, tensors, torch.empty_like(codes, dtype=dtype))

    def unpack_into(self, out: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        return self.second.scale_codes(self._codes(tensors, (out.shape[0], out.shape[1])), tensors, out)

    def _codes(self, tensors: dict[str, Tensor], shape: Shape) -> Tensor:
        """The codes (out, in), int8, and zeros off the support."""
        found = look_up(self.first, self.second, tensors, shape)
        if found is not None:
            return found
        return self.first.place(self.second.unpack_codes(tensors, self.first.kept(shape)), tensors, shape)


@fused
def _rounded(grid: Grid, w: Tensor, mask: Tensor, scales: Tensor) -> Tensor:
    """The point on the grids of `scales` with support `mask` nearest to `w`."""
    return masked(grid.apply(w, Piece(scales=scales)), mask)
