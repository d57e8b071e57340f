"""Sets of weights that are stored the other way round."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nxmiformer.sets.base import ConstraintSet, Piece, Shape, SparsitySet, Storage, ValueSet
from nxmiformer.sets.fields import check_fields


@dataclass(frozen=True)
class Transposed(ConstraintSet):
    """The matrices whose transpose is in `inner`: what `transformers`' Conv1D, which stores (in, out), needs.

    Its pieces are those of `inner`, in inner's orientation.
    """

    inner: ConstraintSet

    def __post_init__(self) -> None:
        check_fields(self)

    def __str__(self) -> str:
        return f"{self.inner}ᵀ"

    @property
    def rowwise(self) -> bool:
        return False

    @property
    def sparsity(self) -> SparsitySet | None:
        return self.inner.sparsity

    @property
    def grid(self) -> ValueSet | None:
        return self.inner.grid

    def rejects(self, shape: Shape) -> str | None:
        return self.inner.rejects((shape[1], shape[0]))

    def piece(
        self, w: Tensor, importance: Tensor | None = None, mask: Tensor | None = None, recover: bool = True
    ) -> Piece:
        return self.inner.piece(w.t(), None if importance is None else importance.t(), mask, recover)

    def apply(self, w: Tensor, piece: Piece) -> Tensor:
        return self.inner.apply(w.t(), piece).t()

    def contains(self, w: Tensor) -> bool:
        return w.ndim == 2 and self.inner.contains(w.t())

    def storage(self, shape: Shape, dtype: torch.dtype = torch.float32) -> Storage:
        return self.inner.storage((shape[1], shape[0]), dtype)

    def pack(self, w: Tensor) -> dict[str, Tensor]:
        return self.inner.pack(w.t())

    def unpack(self, tensors: dict[str, Tensor], shape: Shape, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.inner.unpack(tensors, (shape[1], shape[0]), dtype).t()
