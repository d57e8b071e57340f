"""Sets by the words that reports call them by."""

import re

from nxmiformer.sets.base import ConstraintSet, SparsitySet
from nxmiformer.sets.grid import Grid
from nxmiformer.sets.kronecker import Kronecker
from nxmiformer.sets.nm import NM
from nxmiformer.sets.quantized_kronecker import QuantizedKronecker
from nxmiformer.sets.then import Then

_SPARSITY, _GRID = re.compile(r"(\d+):(\d+)(c?)"), re.compile(r"int(\d+)(?:g(\d+))?")
_FACTORS = re.compile(r"kron(\d+)x(\d+)(?:r(\d+)|\+int(\d+))?")


def from_words(words: str) -> ConstraintSet:
    """The set whose `str` is `words`: "2:4", "2:4c" (densely coded), "int8", "int4g64" (a scale for 64 columns),
    "2:4+int4", or "kron1x8" (a Kronecker product with a right factor of 1 x 8; "kron1x8r2" has two terms, and
    the factors of "kron1x8+int8" have 8 bits).

    Raises:
        ValueError: these words are no N:M set, grid or both, in this order, nor Kronecker products.
    """
    if factors := _FACTORS.fullmatch(words):
        rows, cols = int(factors[1]), int(factors[2])
        if factors[4]:
            return QuantizedKronecker(rows, cols, int(factors[4]))
        return Kronecker(rows, cols, int(factors[3] or 1))
    first, plus, second = words.partition("+")
    sparsity, grid = _SPARSITY.fullmatch(first), _GRID.fullmatch(second if plus else first)
    if plus and sparsity and grid:
        return Then(_sparsity(sparsity), _grid(grid))
    if not plus and sparsity:
        return _sparsity(sparsity)
    if not plus and grid:
        return _grid(grid)
    raise ValueError(
        f"{words!r} is not a set: there are keep:group such as '2:4', 'int4', 'int4g64' and '2:4+int4', "
        "and Kronecker products such as 'kron1x8', of low-bit factors 'kron1x8+int8'"
    )


def _sparsity(match: re.Match[str]) -> SparsitySet:
    return NM(int(match[1]), int(match[2]), "dense" if match[3] else "hardware")


def _grid(match: re.Match[str]) -> Grid:
    return Grid(int(match[1]), None if match[2] is None else int(match[2]))
