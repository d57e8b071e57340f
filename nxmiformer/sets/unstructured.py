"""Unstructured sparsity."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from nxmiformer.errors import unknown
from nxmiformer.sets import entropy
from nxmiformer.sets.base import Shape, SparsitySet, expect
from nxmiformer.sets.bits import pack_bits, unpack_bits
from nxmiformer.sets.fields import ADDED, check_fields

Coding = Literal["bitmap", "entropy"]


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

    The nearest point keeps the largest magnitudes of the whole matrix.

    `coding` says how a support is packed. "bitmap" takes a bit an element. "entropy" takes about H(density) bits, 0.29
    at 5 % and 0.47 at 10 %, and some tenths of a second to unpack a matrix of any size: see `nxmiformer.sets.entropy`.
    """

    density: float
    coding: Coding = field(default="bitmap", metadata=ADDED)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.coding not in get_args(Coding):
            raise unknown("coding of an unstructured support", self.coding, get_args(Coding))
        check_density(self.density)

    def __str__(self) -> str:
        return f"{self.density:g}dense" + ("c" if self.coding == "entropy" else "")

    @property
    def rowwise(self) -> bool:
        return False

    def rejects(self, shape: Shape) -> str | None:
        return None

    def kept(self, shape: Shape) -> int:
        return count(self.density, shape[0] * shape[1])

    def mask(self, score: Tensor) -> Tensor:
        return top(score, self.kept((score.shape[0], score.shape[1])))

    def keeping(self, density: float) -> "Unstructured":
        return replace(self, density=min(1.0, max(self.density, density)))

    def index_bits(self, shape: Shape) -> int:
        total = shape[0] * shape[1]
        return total if self.coding == "bitmap" else 8 * entropy.nbytes(self.kept(shape), total)

    def pack_mask(self, mask: Tensor) -> dict[str, Tensor]:
        if self.coding == "bitmap":
            return {"indices": pack_bits(mask.flatten(), 1)}
        flat = mask.flatten().cpu().numpy()
        return {"indices": torch.from_numpy(entropy.encode(flat, int(flat.sum()))).to(mask.device)}

    def unpack_mask(self, tensors: dict[str, Tensor], shape: Shape) -> Tensor:
        total, keep = shape[0] * shape[1], self.kept(shape)
        if self.coding == "bitmap":
            return unpack_bitmap(tensors, total, keep).view(shape)
        packed = expect(tensors, "indices", entropy.nbytes(keep, total), torch.uint8)
        mask = torch.from_numpy(entropy.decode(packed.cpu().numpy(), keep, total))
        return mask.to(packed.device).view(shape)
