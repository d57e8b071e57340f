"""The hidden states of many windows, on disk: what goes into a block, and what comes out."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from nxmiformer.files import whole


class Activations:
    """Hidden states (windows, tokens, width) of batch after batch in one file, read one batch at a time.

    They are read and written, and not mapped into memory, where pages of a file would count as the process's.

    Attributes:
        shapes: of the batches.
        dtype: of all of them.
    """

    def __init__(self, path: Path, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> None:
        self.path, self.shapes, self.dtype = path, shapes, dtype

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def nbytes(self) -> int:
        """Of the file."""
        return sum(map(math.prod, self.shapes)) * self.dtype.itemsize

    def read(self, number: int, device: torch.device) -> Tensor:
        """The hidden states of a batch."""
        start = sum(map(math.prod, self.shapes[:number])) * self.dtype.itemsize
        size = math.prod(self.shapes[number]) * self.dtype.itemsize
        raw = np.fromfile(self.path, np.uint8, size, offset=start)
        return torch.from_numpy(raw).view(self.dtype).view(self.shapes[number]).to(device)

    @contextmanager
    def written(self) -> Iterator["Writer"]:
        """What takes the batches, in order; the file is there when it has all of them."""
        with whole(self.path) as new, new.open("wb") as file:
            writer = Writer(file, self)
            yield writer
            if writer.taken != len(self):
                raise ValueError(f"{self.path}: {writer.taken} of {len(self)} batches were given")


class Writer:
    """Takes the batches of `Activations`, in order."""

    def __init__(self, file: BinaryIO, of: Activations) -> None:
        self.file, self.of, self.taken = file, of, 0

    def take(self, hidden: Tensor) -> None:
        """The next batch."""
        if tuple(hidden.shape) != self.of.shapes[self.taken] or hidden.dtype != self.of.dtype:
            raise ValueError(
                f"batch {self.taken} is {tuple(hidden.shape)} of {hidden.dtype}, not {self.of.shapes[self.taken]}"
            )
        self.file.write(hidden.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        self.taken += 1
