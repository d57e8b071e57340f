"""Sets by the words that reports call them by."""

import re

from nxmiformer.sets.base import ConstraintSet, SparsitySet
from nxmiformer.sets.grid import Grid
from nxmiformer.sets.nm import NM
from nxmiformer.sets.then import Then

_SPARSITY, _GRID = re.compile(r"(\d+):(\d+)(c?)"), re.compile(r"int(\d+)(?:g(\d+))?")


def from_words(words: str) -> ConstraintSet:
    """The set whose `str` is `words`: "2:4", "2:4c" (densely coded), "int8", "int4g64" (a scale for 64 columns), or
    "2:4+int4".

    Raises:
        ValueError: these words are no N:M set, grid or both, in this order.
    """
    first, plus, second = words.partition("+")
    sparsity, grid = _SPARSITY.fullmatch(first), _GRID.fullmatch(second if plus else first)
    if plus and sparsity and grid:
        return Then(_sparsity(sparsity), _grid(grid))
    if not plus and sparsity:
        return _sparsity(sparsity)
    if not plus and grid:
        return _grid(grid)
    raise ValueError(f"{words!r} is no set: there are keep:group such as '2:4', 'int4', 'int4g64' and '2:4+int4'")


def _sparsity(match: re.Match[str]) -> SparsitySet:
    return NM(int(match[1]), int(match[2]), "dense" if match[3] else "hardware")


def _grid(match: re.Match[str]) -> Grid:
    return Grid(int(match[1]), None if match[2] is None else int(match[2]))
