"""Small unsigned integers, packed back to back into bytes."""

from functools import cache

import torch
from torch import Tensor

from nxmiformer.sets.chunks import parts

WORDS = {1: torch.int64, 2: torch.int32, 4: torch.int16}  # that hold, a byte each, the codes of one packed byte


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Codes (n,) in [0, 2**bits), 1 <= bits <= 8, as ceil(n * bits / 8) bytes (uint8), least significant bit first.

    Eight codes fill `bits` bytes exactly, so they are shifted into one 64-bit word and the word is cut into bytes.
    """
    n = codes.numel()
    padded = torch.zeros(-(-n // 8), 8, dtype=torch.int64, device=codes.device)
    padded.view(padded.numel())[:n] = codes.to(torch.int64)
    shifts = torch.arange(8, device=codes.device)
    words = (padded << (shifts * bits)).sum(1)
    packed = (words[:, None] >> (shifts[:bits] * 8)) & 0xFF
    return packed.to(torch.uint8).flatten()[: -(-n * bits // 8)]


def unpack_bits(packed: Tensor, bits: int, n: int) -> Tensor:
    """The n codes (uint8) that `pack_bits` was given; those of 8 bits are `packed` itself.

    Raises:
        ValueError: `packed` is not ceil(n * bits / 8) flat bytes, or the bits after the last code are not zero.
    """
    size = -(-n * bits // 8)
    if packed.dtype != torch.uint8 or packed.shape != (size,):
        raise ValueError(f"{n} codes of {bits} bits are {size} bytes, not {tuple(packed.shape)} of {packed.dtype}")
    if bits == 8:
        return packed
    if bits in WORDS:
        table = _bytes(bits, packed.device)
        words = torch.empty(packed.shape, dtype=table.dtype, device=packed.device)
        for part in parts(packed[:, None]):
            torch.index_select(table, 0, packed[part].int(), out=words[part])
        codes = words.view(torch.uint8)
    else:
        codes = _cut(packed, bits, -(-n // 8))
    if codes.numel() > n and codes[n:].any():
        raise ValueError(f"the bits after the last of {n} codes are not zero")
    return codes[:n]


@cache
def _bytes(bits: int, device: torch.device) -> Tensor:
    """The codes in each of the 256 bytes, (256,) words of 8 / bits bytes: looking up is the fastest way to unpack."""
    shifts = torch.arange(0, 8, bits, device=device)
    return (
        (torch.arange(256, device=device)[:, None] >> shifts & (2**bits - 1))
        .to(torch.uint8)
        .view(WORDS[bits])
        .flatten()
    )


def _cut(packed: Tensor, bits: int, words: int) -> Tensor:
    """The codes (words * 8,) uint8 of any width, from words of `bits` bytes with 8 codes in each."""
    padded = torch.zeros(words, bits, dtype=torch.uint8, device=packed.device)
    padded.view(padded.numel())[: packed.numel()] = packed
    joined = torch.zeros(words, dtype=torch.int64, device=packed.device)
    for i in range(bits):
        joined |= padded[:, i].to(torch.int64) << (8 * i)
    codes = torch.empty(words, 8, dtype=torch.uint8, device=packed.device)
    for i in range(8):
        codes[:, i] = joined >> (bits * i) & (2**bits - 1)
    return codes.flatten()


def pack_wide(codes: Tensor, bits: int) -> Tensor:
    """Codes (n,) in [0, 2**bits), 1 <= bits <= 63, as ceil(n * bits / 8) bytes: all lowest bytes, then all second ones,
    and so on, and at last what is left of each, packed back to back."""
    whole, left = divmod(bits, 8)
    parts = [((codes >> (8 * i)) & 0xFF).to(torch.uint8) for i in range(whole)]
    return torch.cat([*parts, *([pack_bits(codes >> (8 * whole), left)] if left else [])])


def unpack_wide(packed: Tensor, bits: int, n: int) -> Tensor:
    """The n codes (int64) that `pack_wide` was given.

    Raises:
        ValueError: as `unpack_bits`.
    """
    size = -(-n * bits // 8)
    if packed.dtype != torch.uint8 or packed.shape != (size,):
        raise ValueError(f"{n} codes of {bits} bits are {size} bytes, not {tuple(packed.shape)} of {packed.dtype}")
    whole, left = divmod(bits, 8)
    parts = list(packed[: whole * n].to(torch.int64).view(whole, n))
    parts += [unpack_bits(packed[whole * n :], left, n).to(torch.int64)] if left else []
    codes = torch.zeros(n, dtype=torch.int64, device=packed.device)
    for i, part in enumerate(parts):
        codes |= part << (8 * i)
    return codes
