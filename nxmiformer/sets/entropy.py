"""A support in about as many bits as there can be: asymmetric numeral systems (Duda 2013, arXiv 1311.2540).

Each bit is coded by its frequency, so that a mask of K of N takes about N * H(K / N) bits, whichever K they are. The
length is known in advance. The mask is cut into lanes of equal length, which are coded side by side, a column at a
time; a lane costs the 5 bytes of its state.
"""

import math

import numpy as np
from numpy.typing import NDArray

PRECISION = 12  # bits of a probability
LOW = 1 << 24  # a lane's state is in [LOW, LOW * 2**16)
STATE, WORD = 5, 2  # bytes of a state, and of what a state gives away
LANE = 2000  # bits of code for each lane, about: its state adds 2 %
Words = NDArray[np.int64]


def _model(keep: int, total: int) -> tuple[int, int, float]:
    """How often a one and a zero occur, of 2**PRECISION, and the bits that all of them take."""
    whole = 1 << PRECISION
    ones = min(whole - 1, max(1, round(whole * keep / max(1, total))))
    return ones, whole - ones, keep * -math.log2(ones / whole) + (total - keep) * -math.log2(1 - ones / whole)


def _layout(keep: int, total: int) -> tuple[int, int, int]:
    """Lanes, columns, and the words that are given away at most."""
    _, zeros, cost = _model(keep, total)
    lanes = max(1, int(cost) // LANE)
    columns = -(-total // lanes)
    cost += (lanes * columns - total) * (PRECISION - math.log2(zeros))
    rounding = 1.5 * lanes * columns * 2.0**PRECISION / LOW  # a bit is coded to a factor of 1 + 2**PRECISION / LOW
    return lanes, columns, math.ceil((cost + rounding) / (8 * WORD))


def nbytes(keep: int, total: int) -> int:
    """The bytes that any mask of so many of so many takes."""
    lanes, _, words = _layout(keep, total)
    return STATE * lanes + WORD * words


def encode(mask: NDArray[np.bool_], keep: int) -> NDArray[np.uint8]:
    """The flat mask, of which `keep` are set, as `nbytes` bytes."""
    lanes, columns, most = _layout(keep, mask.size)
    ones, zeros, _ = _model(keep, mask.size)
    bits = np.zeros(lanes * columns, dtype=bool)
    bits[: mask.size] = mask
    state = np.full(lanes, LOW, dtype=np.int64)
    given = []
    for column in bits.reshape(lanes, columns).T[::-1]:
        share = np.where(column, ones, zeros)
        full = state >= share << 28  # LOW * 2**16 / 2**PRECISION
        given.append((state[full] & 0xFFFF)[::-1])
        state[full] >>= 16
        state = (state // share << PRECISION) + state % share + np.where(column, 0, ones)
    words = np.concatenate([*given, np.zeros(0, dtype=np.int64)])[::-1]
    words = np.concatenate([words, np.zeros(most - words.size, dtype=np.int64)])
    return np.concatenate([_bytes(state, STATE), _bytes(words, WORD)])


def decode(packed: NDArray[np.uint8], keep: int, total: int) -> NDArray[np.bool_]:
    """The mask that `encode` was given.

    Raises:
        ValueError: the bytes are not what it made of a mask of `keep` of `total`.
    """
    lanes, columns, most = _layout(keep, total)
    ones, zeros, _ = _model(keep, total)
    state, words = _numbers(packed[: STATE * lanes], STATE), _numbers(packed[STATE * lanes :], WORD)
    words = np.concatenate([words, np.zeros(lanes, dtype=np.int64)])  # a damaged code may ask for more
    bits, taken = np.zeros((columns, lanes), dtype=bool), 0
    for column in bits:
        slot = state & ((1 << PRECISION) - 1)
        column[:] = slot < ones
        state = np.where(column, ones, zeros) * (state >> PRECISION) + slot - np.where(column, 0, ones)
        empty = np.flatnonzero(state < LOW)
        if taken + empty.size > most:
            break
        state[empty] = state[empty] << 16 | words[taken : taken + empty.size]
        taken += empty.size
    flat = bits.T.flatten()
    if (state != LOW).any() or words[taken:].any() or flat[total:].any() or int(flat.sum()) != keep:
        raise ValueError(f"the indices are damaged: they are not a code of {keep} of {total}")
    return flat[:total]


def _bytes(numbers: Words, size: int) -> NDArray[np.uint8]:
    return numbers.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :size].flatten()


def _numbers(packed: NDArray[np.uint8], size: int) -> Words:
    padded = np.zeros((packed.size // size, 8), dtype=np.uint8)
    padded[:, :size] = packed.reshape(-1, size)
    return padded.view("<i8").astype(np.int64).flatten()
