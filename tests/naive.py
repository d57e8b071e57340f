"""Slow and obviously right twins of what the library does fast: plain loops, exact fractions, brute force."""

from fractions import Fraction
from itertools import combinations, product

import numpy as np
import torch
from torch import Tensor

INTEGERS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16}
INTEGERS[torch.bfloat16] = torch.int16


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every bit, the sign of zero included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    kind = INTEGERS.get(a.dtype)
    return (
        bool((a == b).all()) if kind is None else bool((a.contiguous().view(kind) == b.contiguous().view(kind)).all())
    )


def array(w: Tensor) -> np.ndarray:
    """A tensor as a float64 array."""
    return w.double().numpy()


def exact(values: np.ndarray) -> list[Fraction]:
    """Floats as the fractions they are."""
    return [Fraction(float(v)) for v in values.flatten()]


def round_half_up(density: float, total: int) -> int:
    """How many of `total` a density keeps."""
    return int(Fraction(density) * total + Fraction(1, 2))


def best_support(worth: list[Fraction], keep: int) -> tuple[int, ...]:
    """The `keep` positions worth most together: every choice is tried, the first in lexical order wins a tie."""
    chosen, most = (), Fraction(-1)
    for support in combinations(range(len(worth)), keep):
        total = sum((worth[i] for i in support), Fraction(0))
        if total > most:
            chosen, most = support, total
    return chosen


def weights_of(w: np.ndarray, importance: np.ndarray | None) -> list[Fraction]:
    """importance * w^2 of each element, exactly."""
    squares = [v * v for v in exact(w)]
    return squares if importance is None else [f * s for f, s in zip(exact(importance), squares, strict=True)]


def project_nm(w: np.ndarray, keep: int, group: int, importance: np.ndarray | None = None) -> np.ndarray:
    """The nearest matrix with at most `keep` non-zeros in each group, every support of every group tried."""
    result = np.zeros_like(w)
    for row in range(w.shape[0]):
        for start in range(0, w.shape[1], group):
            cells = slice(start, start + group)
            worth = weights_of(w[row, cells], None if importance is None else importance[row, cells])
            for i in best_support(worth, keep):
                result[row, start + i] = w[row, start + i]
    return result


def project_unstructured(w: np.ndarray, density: float, importance: np.ndarray | None = None) -> np.ndarray:
    """The nearest matrix with at most density * size non-zeros, every support tried."""
    result = np.zeros(w.size)
    for i in best_support(weights_of(w, importance), round_half_up(density, w.size)):
        result[i] = w.flatten()[i]
    return result.reshape(w.shape)


def project_block(
    w: np.ndarray, rows: int, cols: int, density: float, importance: np.ndarray | None = None
) -> np.ndarray:
    """The nearest matrix with at most density * blocks non-zero blocks, every choice of blocks tried."""
    corners = [(i, j) for i in range(0, w.shape[0], rows) for j in range(0, w.shape[1], cols)]
    tiles = [(slice(i, i + rows), slice(j, j + cols)) for i, j in corners]
    worth = [sum(weights_of(w[t], None if importance is None else importance[t]), Fraction(0)) for t in tiles]
    result = np.zeros_like(w)
    for chosen in best_support(worth, round_half_up(density, len(tiles))):
        result[tiles[chosen]] = w[tiles[chosen]]
    return result


def codes_of(bits: int) -> list[int]:
    """Every code of a grid."""
    if bits == 1:
        return [-1, 1]
    top = 2 ** (bits - 1) - 1
    return list(range(-top, top + 1))


def nearest_distance(x: float, scale: float, bits: int) -> Fraction:
    """The distance of x to the nearest scale * code, every code tried."""
    return min(abs(Fraction(x) - Fraction(scale) * code) for code in codes_of(bits))


def nearest_codes(row: np.ndarray, scale: float, bits: int) -> list[int]:
    """The code nearest to each element of a row; of two as near, the even one."""
    return [
        min(codes_of(bits), key=lambda code: (abs(Fraction(float(x)) - Fraction(scale) * code), code % 2)) for x in row
    ]


def joint_error(
    row: np.ndarray, keep: int, group: int, scale: float, bits: int, importance: np.ndarray | None = None
) -> Fraction:
    """The least (weighted) squared error of a row with `keep` of each group kept and those on one grid: every support
    is tried, and every code for every element."""
    weight = exact(np.ones_like(row) if importance is None else importance)
    values = exact(row)
    rounded = [f * nearest_distance(float(x), scale, bits) ** 2 for x, f in zip(values, weight, strict=True)]
    dropped = [f * x * x for x, f in zip(values, weight, strict=True)]
    total = Fraction(0)
    for start in range(0, len(row), group):
        cells = range(start, start + group)
        errors = (sum(rounded[i] if i in s else dropped[i] for i in cells) for s in combinations(cells, keep))
        total += min(Fraction(error) for error in errors)
    return total


def joint_error_by_points(values: np.ndarray, keep: int, scale: float, bits: int) -> Fraction:
    """As `joint_error` for one group, with every combination of codes written out: for a few small codes only."""
    numbers = exact(values)
    points = (p for p in product([0, *codes_of(bits)], repeat=len(numbers)) if sum(c != 0 for c in p) <= keep)
    return min(
        sum(((x - Fraction(scale) * c) ** 2 for x, c in zip(numbers, p, strict=True)), Fraction(0)) for p in points
    )


def sweep_error(row: np.ndarray, bits: int, steps: int = 4000) -> float:
    """The least squared error of a row on a grid, over a dense sweep of scales from almost 0 to beyond absmax's."""
    top = max(codes_of(bits))
    peak = np.abs(row).max() / top
    if bits == 1:
        return min(float(((np.abs(row) - s) ** 2).sum()) for s in np.linspace(0, peak, steps))
    scales = np.linspace(peak / steps, peak * 1.05, steps)
    return min(float(((row - np.clip(np.round(row / s), -top, top) * s) ** 2).sum()) for s in scales)


def pack_bits(codes: list[int], bits: int) -> bytes:
    """Codes one after the other in one long number, least significant first."""
    number = 0
    for position, code in enumerate(codes):
        number |= code << (position * bits)
    return number.to_bytes((len(codes) * bits + 7) // 8, "little")


def unpack_bits(packed: bytes, bits: int, n: int) -> list[int]:
    """What `pack_bits` was given."""
    number = int.from_bytes(packed, "little")
    return [(number >> (position * bits)) & (2**bits - 1) for position in range(n)]


def kron(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The sum of the Kronecker products of left[k] and right[k], element by element."""
    (terms, m1, n1), (_, m2, n2) = left.shape, right.shape
    w = np.zeros((m1 * m2, n1 * n2))
    for row, col in product(range(m1 * m2), range(n1 * n2)):
        w[row, col] = sum(left[k, row // m2, col // n2] * right[k, row % m2, col % n2] for k in range(terms))
    return w


def kronecker_tail(w: np.ndarray, rows: int, cols: int, rank: int) -> float:
    """The distance of a matrix from the nearest sum of `rank` Kronecker products: the root of the sum of the squares of
    all singular values but the largest of the matrix whose rows are its blocks (Van Loan and Pitsianis 1993)."""
    starts = product(range(0, w.shape[0], rows), range(0, w.shape[1], cols))
    table = np.array([w[i : i + rows, j : j + cols].flatten() for i, j in starts])
    return float(np.sqrt((np.linalg.svd(table, compute_uv=False)[rank:] ** 2).sum()))


def kronecker_member(rows: int, cols: int, rank: int, shape: tuple[int, int], dtype: torch.dtype, seed: int) -> Tensor:
    """A sum of Kronecker products of random left factors, and of right factors of eighths, which have an element of 1
    each where the others have 0."""
    chance = torch.Generator().manual_seed(seed)
    left = torch.randn(rank, shape[0] // rows, shape[1] // cols, generator=chance).to(dtype).double()
    right = torch.randint(-2, 3, (rank, rows * cols), generator=chance).double() / 8
    right[:, torch.randperm(rows * cols, generator=chance)[:rank]] = torch.eye(rank, dtype=torch.float64)
    return torch.from_numpy(kron(left.numpy(), right.view(rank, rows, cols).numpy()) + 0.0).to(dtype)


def quantized_kronecker_member(
    rows: int, cols: int, bits: int, shape: tuple[int, int], dtype: torch.dtype, seed: int
) -> Tensor:
    """The Kronecker product of random codes with a scale for each row, and of random codes over the largest of them."""
    chance, top = torch.Generator().manual_seed(seed), 2 ** (bits - 1) - 1
    codes = torch.randint(-top, top + 1, (shape[0] // rows, shape[1] // cols), generator=chance)
    scales = torch.exp(torch.randn(len(codes), 1, generator=chance) - 2)
    left = (codes.to(torch.promote_types(dtype, torch.float32)) * scales).to(dtype).double()
    right = torch.randint(-top, top + 1, (rows, cols), generator=chance).double()
    right.view(-1)[int(torch.randint(rows * cols, (1,), generator=chance))] = top
    right = (right / top).to(dtype).double()
    return torch.from_numpy(kron(left[None].numpy(), right[None].numpy()) + 0.0).to(dtype)
