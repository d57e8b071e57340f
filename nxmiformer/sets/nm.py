"""N:M sparsity."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nxmiformer.sets.base import Shape, SparsitySet
from nxmiformer.sets.bits import pack_bits, unpack_bits

PAIRWISE = 16  # up to this group size, comparing all pairs is faster than sorting each group


@dataclass(frozen=True)
class NM(SparsitySet):
    """At most `keep` non-zero elements in every `group` consecutive ones of a row (2:4 is keep=2, group=4).

    { W : ||W[i, g*group : (g+1)*group]||_0 <= keep for every row i and group g }, 1 <= keep <= group <= 64.
    The nearest point keeps the `keep` largest magnitudes of each group (Zhou et al. 2021, arXiv 2102.04010).
    """

    keep: int
    group: int

    def __post_init__(self) -> None:
        if not 1 <= self.keep <= self.group <= 64:
            raise ValueError(f"NM needs 1 <= keep <= group <= 64, not keep={self.keep}, group={self.group}")

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}"

    def rejects(self, shape: Shape) -> str | None:
        if shape[1] % self.group:
            return f"in_features {shape[1]} is not a multiple of the group {self.group}"
        return None

    def kept(self, shape: Shape) -> int:
        return shape[0] * shape[1] // self.group * self.keep

    def mask(self, score: Tensor) -> Tensor:
        grouped = score.reshape(score.numel() // self.group, self.group)
        if self.keep == self.group:
            return torch.ones_like(score, dtype=torch.bool)
        if self.group <= PAIRWISE:
            return _pairwise(grouped, self.keep).view(score.shape)
        order = grouped.argsort(dim=1, descending=True, stable=True)[:, : self.keep]
        return torch.zeros_like(grouped, dtype=torch.bool).scatter_(1, order, True).view(score.shape)

    @property
    def _position_bits(self) -> int:
        return 0 if self.keep == self.group else (self.group - 1).bit_length()

    def index_bits(self, shape: Shape) -> int:
        """ceil(log2(group)) bits a kept element, its position in the group, as 2:4 hardware stores it."""
        return self.kept(shape) * self._position_bits

    def pack_mask(self, mask: Tensor) -> dict[str, Tensor]:
        if not self._position_bits:
            return {}
        positions = mask.reshape(mask.numel() // self.group, self.group).nonzero()[:, 1]
        return {"indices": pack_bits(positions, self._position_bits)}

    def unpack_mask(self, tensors: dict[str, Tensor], shape: Shape) -> Tensor:
        if not self._position_bits:
            return torch.ones(shape, dtype=torch.bool)
        if "indices" not in tensors:
            raise ValueError(f"the packed weight has no 'indices', only {sorted(tensors)}")
        kept = self.kept(shape)
        positions = unpack_bits(tensors["indices"], self._position_bits, kept).view(kept // self.keep, self.keep)
        if (positions >= self.group).any() or (positions.diff(dim=1) <= 0).any():
            raise ValueError(f"the indices are not {self.keep} ascending positions below {self.group} in each group")
        mask = torch.zeros(positions.shape[0], self.group, dtype=torch.bool, device=positions.device)
        return mask.scatter_(1, positions, True).view(shape)


def _pairwise(grouped: Tensor, keep: int) -> Tensor:
    """The top `keep` of each row of (n, group): an element stays if fewer than `keep` others beat it. One comparison
    settles a pair for both, and a tie for the lower index."""
    columns = grouped.t().contiguous()
    beaten = torch.zeros(columns.shape, dtype=torch.int8, device=grouped.device)
    for low in range(len(columns)):
        wins = columns[low] >= columns[low + 1 :]
        beaten[low + 1 :] += wins
        beaten[low] += (~wins).sum(0, dtype=torch.int8)
    return (beaten < keep).t().contiguous()
