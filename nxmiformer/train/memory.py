"""The memory that a part of a run takes, measured."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Measured:
    """The memory of a block of code, in bytes: of a GPU what torch has allocated of it, of a CPU what the process has
    in memory, under Linux. None where it cannot be told, and as long as the block runs.

    Attributes:
        before: when the block began.
        peak: the most while it ran.
    """

    before: int | None = None
    peak: int | None = None

    @property
    def taken(self) -> int | None:
        """What the block took beside what there was."""
        return None if self.before is None or self.peak is None else max(0, self.peak - self.before)


@contextmanager
def measuring(device: torch.device) -> Iterator[Measured]:
    """Measure what the block takes. Blocks are not put into one another: the inner one would end the outer."""
    found = Measured()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        found.before = torch.cuda.memory_allocated(device)
        yield found
        found.peak = torch.cuda.max_memory_allocated(device)
        return
    with suppress(OSError):
        PEAK.write_text("5")  # forgets the peak so far
        found.before = _resident("VmRSS")
    yield found
    if found.before is not None:
        found.peak = _resident("VmHWM")


def _resident(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024
