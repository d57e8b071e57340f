"""N:M sparsity."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from math import ceil, comb
from typing import Literal, get_args

import torch
from torch import Tensor

from nxmiformer.errors import unknown
from nxmiformer.sets.base import WORDS, Shape, SparsitySet
from nxmiformer.sets.bits import pack_bits, pack_wide, unpack_bits, unpack_wide
from nxmiformer.sets.fields import check_fields
from nxmiformer.sets.fused import fused, pays

Coding = Literal["hardware", "dense"]
PATTERNS = 100  # of a group, that are looked at one by one
PAIRWISE = 16  # up to this group size, comparing all pairs is faster than sorting each group


@dataclass(frozen=True)
class NM(SparsitySet):
    """At most `keep` non-zero elements in every `group` consecutive ones of a row (2:4 is keep=2, group=4).

    { W : ||W[i, g*group : (g+1)*group]||_0 <= keep for every row i and group g }, 1 <= keep <= group <= 64.
    The nearest point keeps the `keep` largest magnitudes of each group (Zhou et al. 2021, arXiv 2102.04010).

    `coding` says how a support is packed. "hardware" stores the position of each remaining element in its group, in
    ceil(log2(group)) bits, as 2:4 hardware reads them. "dense" stores the number of the group's pattern among all
    C(group, keep), in ceil(log2 C(group, keep)) bits: 3 instead of 4 for 2:4, 14 instead of 32 for 8:16.
    """

    keep: int
    group: int
    coding: Coding = "hardware"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.coding not in get_args(Coding):
            raise unknown("coding of an N:M support", self.coding, get_args(Coding))
        if not 1 <= self.keep <= self.group <= 64:
            raise ValueError(f"NM needs 1 <= keep <= group <= 64, not keep={self.keep}, group={self.group}")

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}" + ("c" if self.coding == "dense" else "")

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
        if self.group <= PAIRWISE and pays(score):
            compiled = _pairwise_compiled if score.device.type == "cpu" else _beaten_by_few
            return compiled(score, self.group, self.keep)
        if self.group <= PAIRWISE:
            return _pairwise(grouped, self.keep).view(score.shape)
        order = grouped.argsort(dim=1, descending=True, stable=True)[:, : self.keep]
        return torch.zeros_like(grouped, dtype=torch.bool).scatter_(1, order, True).view(score.shape)

    def keeping(self, density: float) -> "NM":
        """So many of each group, rounded up."""
        return replace(self, keep=min(self.group, max(self.keep, ceil(density * self.group - 1e-9))))

    @property
    def run(self) -> int:
        alone = self.keep == self.group or comb(self.group, self.keep) > PATTERNS
        return 1 if alone else self.group

    def cheapest(self, w: Tensor, inverse: Callable[[int], Tensor]) -> Tensor:
        """Of each group the pattern whose pruned elements cost least together, w^T (H^-1)^-1 w / 2, among all of them;
        where there are more than PATTERNS, each element is priced alone."""
        if self.run == 1:
            return super().cheapest(w, inverse)
        groups, parts = w.double().view(-1, self.group, 1), inverse(self.run).double().flatten(0, 1)
        chosen = list(combinations(range(self.group), self.group - self.keep))  # torch's lists all products first
        patterns = torch.tensor(chosen, device=w.device)
        prices = []
        for pattern in patterns:
            cut = groups[:, pattern]
            prices.append((cut * torch.linalg.solve(parts[:, pattern][:, :, pattern], cut)).sum((1, 2)))
        # Ties go to the last pattern, which prunes the higher indices.
        pruned = patterns[torch.stack(prices, 1).flip(1).argmin(1).neg().add(len(patterns) - 1)]
        mask = torch.ones(len(groups), self.group, dtype=torch.bool, device=w.device)
        return mask.scatter_(1, pruned, False).view(w.shape)

    @property
    def _position_bits(self) -> int:
        return 0 if self.keep == self.group else (self.group - 1).bit_length()

    @property
    def _group_bits(self) -> int:
        """Bits that tell the support of one group."""
        if self.coding == "dense":
            return (comb(self.group, self.keep) - 1).bit_length()
        return self.keep * self._position_bits

    def index_bits(self, shape: Shape) -> int:
        return shape[0] * shape[1] // self.group * self._group_bits

    def pack_mask(self, mask: Tensor) -> dict[str, Tensor]:
        if not self._group_bits:
            return {}
        positions = mask.reshape(mask.numel() // self.group, self.group).nonzero()[:, 1]
        if self.coding == "hardware":
            return {"indices": pack_bits(positions, self._position_bits)}
        return {"indices": pack_wide(_rank(positions.view(-1, self.keep)), self._group_bits)}

    def unpack_mask(self, tensors: dict[str, Tensor], shape: Shape) -> Tensor:
        device = next((part.device for part in tensors.values()), torch.device("cpu"))
        return self.place(torch.ones(self.kept(shape), dtype=torch.bool, device=device), tensors, shape)

    def place(self, values: Tensor, tensors: dict[str, Tensor], shape: Shape) -> Tensor:
        if not self._group_bits:
            return values.view(shape)
        if "indices" not in tensors:
            raise ValueError(f"the packed weight has no 'indices', only {sorted(tensors)}")
        positions = self._positions(tensors["indices"], self.kept(shape) // self.keep)
        if values.dtype == torch.int8 and self.group in WORDS:
            return _joined(values.view(positions.shape), positions, WORDS[self.group]).view(torch.int8).view(shape)
        starts = torch.arange(0, shape[0] * shape[1], self.group, device=positions.device)
        where = (positions + starts[:, None]).flatten()
        w = torch.zeros(shape[0] * shape[1], dtype=values.dtype, device=positions.device)
        return w.scatter_(0, where, values.to(w.device)).view(shape)

    def _positions(self, indices: Tensor, groups: int) -> Tensor:
        """The positions (groups, keep) of the kept elements, ascending, uint8."""
        if self.coding == "hardware":
            positions = unpack_bits(indices, self._position_bits, groups * self.keep).view(groups, self.keep)
            ascending = all((positions[:, i] < positions[:, i + 1]).all() for i in range(self.keep - 1))
            if not ascending or (groups and int(positions.amax()) >= self.group):
                raise ValueError(
                    f"the indices are not {self.keep} ascending positions below {self.group} in each group"
                )
            return positions
        ranks, patterns = unpack_wide(indices, self._group_bits, groups), comb(self.group, self.keep)
        if (ranks >= patterns).any():
            raise ValueError(f"the indices are not all below {patterns}, the number of {self} patterns")
        if patterns > len(ranks):
            return _unrank(ranks, self.keep)
        return _unrank(torch.arange(patterns, device=ranks.device), self.keep).index_select(0, ranks)


def _joined(values: Tensor, positions: Tensor, word: torch.dtype) -> Tensor:
    """Each row of values (groups, keep), int8, moved to its positions in a word of bytes, (groups,)."""
    words = torch.zeros(len(values), dtype=word, device=values.device)
    for value, position in zip(_columns(values, word), _columns(positions, word), strict=True):
        words |= value.bitwise_left_shift_(position.mul_(8))
    return words


def _columns(rows: Tensor, word: torch.dtype) -> Iterator[Tensor]:
    """The columns (n,) of rows (n, k) of bytes, k no more than the bytes of a word, as words."""
    if rows.shape[1] in WORDS:  # shifts are faster than reading every k-th byte
        joined = rows.view(WORDS[rows.shape[1]]).flatten().to(word)
        return (joined >> 8 * i & 0xFF for i in range(rows.shape[1]))
    return (rows[:, i].view(torch.uint8).to(word) for i in range(rows.shape[1]))


@cache
def _binomials(device: torch.device) -> Tensor:
    """C(n, k) for 0 <= n < 64 and 0 <= k <= 64, int64: (64, 65). Those that a rank needs are below 2^63."""
    return torch.tensor([[min(comb(n, k), 2**63 - 1) for k in range(65)] for n in range(64)], device=device)


def _rank(positions: Tensor) -> Tensor:
    """The number (groups,) of each ascending combination (groups, keep) in the combinatorial number system: the sum of
    C(p_i, i) over its positions p_1 < ... < p_keep (Knuth, The Art of Computer Programming 4A, 7.2.1.3, eq. 20)."""
    table = _binomials(positions.device)
    return table[positions, torch.arange(1, positions.shape[1] + 1, device=positions.device)].sum(1)


def _unrank(ranks: Tensor, keep: int) -> Tensor:
    """The combinations (groups, keep) of these numbers: from the last position down, the largest that fits."""
    table = _binomials(ranks.device)
    positions = torch.empty(len(ranks), keep, dtype=torch.int64, device=ranks.device)
    for i in range(keep, 0, -1):
        column = table[:, i].contiguous()
        positions[:, i - 1] = torch.searchsorted(column, ranks, right=True) - 1
        ranks = ranks - column[positions[:, i - 1]]
    return positions.to(torch.uint8)


@fused
def _beaten_by_few(score: Tensor, group: int, keep: int) -> Tensor:
    """`_pairwise` for a compiler: each element looks at all of its group, which costs a GPU nothing but the look."""
    rows = score.view(score.shape[0], -1, group)
    place = torch.arange(group, device=score.device)
    mine, others = rows[..., :, None], rows[..., None, :]
    beats = (others > mine) | ((others == mine) & (place[None, :] < place[:, None]))
    return (beats.sum(-1, dtype=torch.int32) < keep).view(score.shape)


@fused
def _pairwise_compiled(score: Tensor, group: int, keep: int) -> Tensor:
    """`_pairwise` for the compiler of a CPU: one loop over groups, each of which is a few numbers in registers."""
    members = score.view(-1, group).unbind(1)
    beaten = [torch.zeros_like(members[0], dtype=torch.int32) for _ in members]
    for low in range(group):
        for high in range(low + 1, group):
            wins = (members[low] >= members[high]).to(torch.int32)
            beaten[high], beaten[low] = beaten[high] + wins, beaten[low] + (1 - wins)
    return torch.stack([each < keep for each in beaten], 1).view(score.shape)


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
