"""Sets by the words that reports call them by."""

import re
from collections.abc import Callable

from nxmiformer.sets.base import ConstraintSet, SparsitySet
from nxmiformer.sets.block import Block
from nxmiformer.sets.grid import Grid
from nxmiformer.sets.kronecker import Kronecker
from nxmiformer.sets.nm import NM
from nxmiformer.sets.quantized_kronecker import QuantizedKronecker
from nxmiformer.sets.then import Then
from nxmiformer.sets.unstructured import Unstructured

_SHARE = r"(\d*\.?\d+(?:e-\d+)?)"
_GRID = re.compile(r"int(\d+)(?:g(\d+))?")
_FACTORS = re.compile(r"kron(\d+)x(\d+)(?:r(\d+)|\+int(\d+))?")
_NM, _BLOCK = re.compile(r"(\d+):(\d+)(c?)"), re.compile(rf"(\d+)x(\d+)@{_SHARE}")
_UNSTRUCTURED = re.compile(rf"{_SHARE}dense(c?)")
_SPARSITIES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], SparsitySet]], ...] = (
    (_NM, lambda found: NM(int(found[1]), int(found[2]), "dense" if found[3] else "hardware")),
    (_BLOCK, lambda found: Block(int(found[1]), int(found[2]), float(found[3]))),
    (_UNSTRUCTURED, lambda found: Unstructured(float(found[1]), "entropy" if found[2] else "bitmap")),
)


def from_words(words: str) -> ConstraintSet:
    """The set whose `str` is `words`: "2:4", "2:4c" (densely coded), "32x32@0.5" (half of the blocks of 32 x 32),
    "0.2dense" (a fifth of all weights; "0.2densec" with the entropy coding), "int8", "int4g64" (a scale for 64
    columns), "2:4+int4", or "kron1x8" (a Kronecker product with a right factor of 1 x 8; "kron1x8r2" has two terms, and
    the factors of "kron1x8+int8" have 8 bits). A share is told with six digits.

    Raises:
        ValueError: these words are no sparsity set, grid or both, in this order, nor Kronecker products.
    """
    if factors := _FACTORS.fullmatch(words):
        rows, cols = int(factors[1]), int(factors[2])
        if factors[4]:
            return QuantizedKronecker(rows, cols, int(factors[4]))
        return Kronecker(rows, cols, int(factors[3] or 1))
    first, plus, second = words.partition("+")
    sparsity, grid = _sparsity(first), _GRID.fullmatch(second if plus else first)
    if plus and sparsity and grid:
        return Then(sparsity, _grid(grid))
    if not plus and sparsity:
        return sparsity
    if not plus and grid:
        return _grid(grid)
    raise ValueError(
        f"{words!r} is not a set: there are keep:group such as '2:4', 'int4', 'int4g64' and '2:4+int4', blocks such as "
        "'32x32@0.5', a share of all weights such as '0.2dense', and Kronecker products such as 'kron1x8', of low-bit "
        "factors 'kron1x8+int8'"
    )


def _sparsity(words: str) -> SparsitySet | None:
    return next((make(found) for pattern, make in _SPARSITIES if (found := pattern.fullmatch(words))), None)


def _grid(match: re.Match[str]) -> Grid:
    return Grid(int(match[1]), None if match[2] is None else int(match[2]))
