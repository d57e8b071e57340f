"""Block sparsity."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nxmiformer.sets.base import Piece, Shape, SparsitySet, energy
from nxmiformer.sets.bits import pack_bits
from nxmiformer.sets.fields import check_fields
from nxmiformer.sets.unstructured import check_density, count, top, unpack_bitmap


def tile_sums(x: Tensor, tile: Shape) -> Tensor:
    """The sum of each block of rows x cols of a matrix (out, in): (out / rows, in / cols)."""
    if tile == (1, 1):
        return x
    rows, cols = tile
    return x.reshape(x.shape[0] // rows, rows, x.shape[1] // cols, cols).sum((1, 3))


def spread(blocks: Tensor, tile: Shape) -> Tensor:
    """The matrix (out, in) in which every element of a block of rows x cols has the block's value."""
    if tile == (1, 1):
        return blocks
    return blocks.repeat_interleave(tile[0], 0).repeat_interleave(tile[1], 1)


@dataclass(frozen=True)
class Block(SparsitySet):
    """At most round(density * blocks) non-zero blocks of rows x cols, tiled from the top left corner.

    The nearest point keeps the blocks of largest squared Frobenius norm. The support takes one bit a block.
    """

    rows: int
    cols: int
    density: float

    elementwise = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rows < 1 or self.cols < 1:
            raise ValueError(f"a block needs rows >= 1 and cols >= 1, not {self.rows} x {self.cols}")
        check_density(self.density)

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}@{self.density:g}"

    @property
    def rowwise(self) -> bool:
        return False

    @property
    def tile(self) -> Shape:
        return self.rows, self.cols

    def rejects(self, shape: Shape) -> str | None:
        if shape[0] % self.rows or shape[1] % self.cols:
            return f"it does not divide into blocks of {self.rows} x {self.cols}"
        return None

    def _blocks(self, shape: Shape) -> int:
        return shape[0] // self.rows * (shape[1] // self.cols)

    def kept(self, shape: Shape) -> int:
        return count(self.density, self._blocks(shape)) * self.rows * self.cols

    def piece(
        self, w: Tensor, importance: Tensor | None = None, mask: Tensor | None = None, recover: bool = True
    ) -> Piece:
        if mask is not None:
            return Piece(mask=mask)
        return Piece(mask=self.mask(energy(w, torch.ones_like(w) if importance is None else importance)))

    def mask(self, score: Tensor) -> Tensor:
        tiled = tile_sums(score, self.tile)
        return spread(top(tiled, count(self.density, tiled.numel())), self.tile)

    def keeping(self, density: float) -> "Block":
        return replace(self, density=min(1.0, max(self.density, density)))

    def prices(self, w: Tensor, inverse: Callable[[int], Tensor]) -> Tensor:
        """Each row of a block is priced as one, w^T (H^-1)^-1 w / 2 (Kurtic et al. 2022, arXiv 2203.07259, eq. 5)."""
        runs = w.double().view(w.shape[0], -1, self.cols, 1)
        price = (runs * torch.linalg.solve(inverse(self.cols).double(), runs)).sum((2, 3))
        return (price / (2 * self.cols)).repeat_interleave(self.cols, 1)

    def contains(self, w: Tensor) -> bool:
        if not self.fits(w):
            return False
        occupied = int((tile_sums(w != 0, self.tile) > 0).sum())
        return occupied <= count(self.density, self._blocks((w.shape[0], w.shape[1])))

    def index_bits(self, shape: Shape) -> int:
        return self._blocks(shape)

    def pack_mask(self, mask: Tensor) -> dict[str, Tensor]:
        return {"indices": pack_bits(mask[:: self.rows, :: self.cols].flatten(), 1)}

    def unpack_mask(self, tensors: dict[str, Tensor], shape: Shape) -> Tensor:
        total = self._blocks(shape)
        kept = unpack_bitmap(tensors, total, count(self.density, total))
        return spread(kept.view(shape[0] // self.rows, shape[1] // self.cols), self.tile)
