"""Unstructured sparsity."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nxmiformer.sets.base import Shape, SparsitySet, expect
from nxmiformer.sets.bits import pack_bits, unpack_bits
from nxmiformer.sets.fields import check_fields


def count(density: float, total: int) -> int:
    """density * total, rounded half up."""
    return math.floor(density * total + 0.5)


def check_density(density: float) -> None:
    """Raise a ValueError unless 0 < density <= 1."""
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], not {density}")


def top(score: Tensor, keep: int) -> Tensor:
    """The mask (bool, of the score's shape) of the `keep` largest scores; ties go to the lower index."""
    flat = score.flatten()
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.argsort(descending=True, stable=True)[:keep]] = True
    return mask.view(score.shape)


def unpack_bitmap(tensors: dict[str, Tensor], total: int, keep: int) -> Tensor:
    """The flat mask (total,) behind one bit an element, after checking that `keep` of them are set."""
    packed = expect(tensors, "indices", -(-total // 8), torch.uint8)
    mask = unpack_bits(packed, 1, total).bool()
    if int(mask.sum()) != keep:
        raise ValueError(f"the indices keep {int(mask.sum())} of {total}, not {keep}")
    return mask


@dataclass(frozen=True)
class Unstructured(SparsitySet):
    """At most round(density * elements) non-zero elements, anywhere: { W : ||W||_0 <= round(density * out * in) }.

    The nearest point keeps the largest magnitudes of the whole matrix. The support is packed as a bitmap.
    """

    density: float

    def __post_init__(self) -> None:
        check_fields(self)
        check_density(self.density)

    def __str__(self) -> str:
        return f"{self.density:g}dense"

    @property
    def rowwise(self) -> bool:
        return False

    def rejects(self, shape: Shape) -> str | None:
        return None

    def kept(self, shape: Shape) -> int:
        return count(self.density, shape[0] * shape[1])

    def mask(self, score: Tensor) -> Tensor:
        return top(score, self.kept((score.shape[0], score.shape[1])))

    def index_bits(self, shape: Shape) -> int:
        return shape[0] * shape[1]

    def pack_mask(self, mask: Tensor) -> dict[str, Tensor]:
        return {"indices": pack_bits(mask.flatten(), 1)}

    def unpack_mask(self, tensors: dict[str, Tensor], shape: Shape) -> Tensor:
        return unpack_bitmap(tensors, shape[0] * shape[1], self.kept(shape)).view(shape)
