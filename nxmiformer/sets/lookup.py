"""Sparse codes, looked up a group at a time."""

from functools import cache
from itertools import combinations

import torch
from torch import Tensor

from nxmiformer.sets.base import WORDS, Shape, SparsitySet
from nxmiformer.sets.bits import unpack_bits
from nxmiformer.sets.grid import Grid
from nxmiformer.sets.nm import NM

MOST = 12  # bits of a group, codes and support, all cases of which are listed: 4096 words stay in the cache of a CPU
NONE = -128  # a byte that is no code


def look_up(first: SparsitySet, second: Grid, tensors: dict[str, Tensor], shape: Shape) -> Tensor | None:
    """The codes (out, in), int8, of a packed matrix, zero off its support; None where the sets have too many cases to
    list, or the parts are not all cases of theirs.

    The codes of a group lie back to back in `values`, its support in `indices`: a number each, and the two together are
    the place of the group's codes in a table.
    """
    if not isinstance(first, NM) or first.group not in WORDS or not tensors.keys() >= {"values", "indices"}:
        return None
    bits, support = first.keep * second.bits, first.index_bits((1, first.group))
    if not 0 < support <= 8 or bits > 8 or bits + support > MOST:
        return None
    groups = shape[0] * shape[1] // first.group
    values, supports = unpack_bits(tensors["values"], bits, groups), unpack_bits(tensors["indices"], support, groups)
    places = supports.int().bitwise_left_shift_(bits).bitwise_or_(values)
    codes = _table(first, second, places.device).index_select(0, places).view(torch.int8)
    return None if codes.numel() and int(codes.amin()) == NONE else codes.view(shape)


@cache
def _table(first: NM, second: Grid, device: torch.device) -> Tensor:
    """The codes of each case of a group, as a word of bytes: (2 ** (bits of the codes + bits of the support),)."""
    bits, support = first.keep * second.bits, first.index_bits((1, first.group))
    values, places = torch.arange(2**bits, device="cpu"), torch.arange(first.keep, device="cpu")
    shifted = values[:, None] >> places * second.bits & 2**second.bits - 1
    codes = shifted * 2 - 1 if second.bits == 1 else shifted - second.top
    valid = (codes <= second.top).all(1)
    table = torch.full((2**support, 2**bits, first.group), NONE, dtype=torch.int8, device="cpu")
    for positions in combinations(range(first.group), first.keep):
        mask = torch.zeros(1, first.group, dtype=torch.bool, device="cpu")
        mask[0, list(positions)] = True
        case = torch.zeros(len(values), first.group, dtype=torch.int8, device="cpu")
        case[:, positions] = codes.to(torch.int8)
        table[int(first.pack_mask(mask)["indices"])][valid] = case[valid]
    return table.view(WORDS[first.group]).flatten().to(device)
