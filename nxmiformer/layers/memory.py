"""New memory for many tensors."""

import math
import mmap
import sys
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

BLOCK = 2**26  # bytes that are asked of the system at once
ALIGNMENT = 64  # bytes: the widest vectors of a CPU


class Memory:
    """Gives out new tensors on `device`, one after another.

    On a CPU under Linux they are in mappings with huge pages: touching new memory for the first time, 4 KiB by 4 KiB,
    takes longer than unpacking a weight into it. A mapping is freed with the last of its tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._block: mmap.mmap | None = None
        self._used = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of this shape and dtype, with anything in it, and a storage of its own."""
        count = math.prod(shape)
        if sys.platform != "linux" or self.device.type != "cpu" or count == 0:
            return torch.empty(shape, dtype=dtype, device=self.device)
        size = -(-count * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        if self._block is None or self._used + size > len(self._block):
            self._block, self._used = mmap.mmap(-1, max(size, BLOCK), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), 0
            with suppress(OSError):  # a system without huge pages
                self._block.madvise(mmap.MADV_HUGEPAGE)
        tensor = torch.frombuffer(self._block, dtype=dtype, count=count, offset=self._used).view(shape)
        self._used += size
        return tensor
