"""How long something takes compared with others, and how much memory."""

import importlib
import multiprocessing
import random
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from nxmiformer.console.display import SILENT, Display

LEAST = 3  # rounds: a median of fewer is none
UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, of what getrusage gives


class Time(NamedTuple):
    """Seconds of the wall clock, and of this process on processors, all its threads together."""

    wall: float
    processor: float


Clock = Callable[[], Time]


def now() -> Time:
    """The time of both clocks."""
    return Time(time.perf_counter(), time.process_time())


@dataclass(frozen=True)
class Bench:
    """What is timed, and how often.

    Attributes:
        batches, lengths: the shapes, each batch with each length (examples, tokens).
        repeats: rounds of a shape at most; in a round everything that is timed runs once.
        seconds: after so many seconds a shape starts no further round, if it has LEAST.
        warmup: rounds at the start that are not timed.
        memory: measure the peak memory too, each in a process of its own.
    """

    batches: Sequence[int] = (1, 8, 32)
    lengths: Sequence[int] = (32, 128, 384)
    repeats: int = 21
    seconds: float = 60.0
    warmup: int = 2
    memory: bool = True

    def __post_init__(self) -> None:
        for name in ("batches", "lengths"):
            given = list(getattr(self, name))
            if not given or any(type(each) is not int or each < 1 for each in given):
                raise ValueError(f"bench.{name}={given}: whole numbers of at least 1, such as [1,8]")
            object.__setattr__(self, name, tuple(sorted(set(given))))
        if self.repeats < LEAST:
            raise ValueError(f"bench.repeats={self.repeats}: a median takes at least {LEAST} rounds")
        if self.warmup < 0 or not self.seconds >= 0:
            name = "warmup" if self.warmup < 0 else "seconds"
            raise ValueError(f"bench.{name}={getattr(self, name)}: it must not be negative")


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    bench: Bench,
    clock: Clock = now,
    display: Display = SILENT,
    name: str = "rounds",
) -> dict[str, list[Time]]:
    """The time that each run took in each round, by name.

    In a round each runs once, in a new random order. So other work of the machine affects all alike, and none always
    finds the caches as the same other left them. Progress is shown only between two rounds.
    """
    for run in [run for _ in range(bench.warmup) for run in runs.values()]:
        run()
    taken: dict[str, list[Time]] = {name: [] for name in runs}
    began = clock().wall
    with display.work(name, bench.repeats) as rounds:
        for number in range(bench.repeats):
            if number >= LEAST and clock().wall - began >= bench.seconds:
                break
            for each in random.Random(number).sample(list(runs), len(runs)):
                start = clock()
                runs[each]()
                end = clock()
                taken[each].append(Time(end.wall - start.wall, end.processor - start.processor))
            display.step(rounds)
    return taken


def summarised(taken: Mapping[str, Sequence[Time]], batch: int, baseline: str) -> dict[str, dict[str, Any]]:
    """For each, in seconds: the median, the quartiles, and the median of processor time; and the examples a second,
    also relative to `baseline`."""
    medians = {name: float(np.median([each.wall for each in times])) for name, times in taken.items()}
    return {
        name: {
            "median": medians[name],
            "quartiles": np.quantile([each.wall for each in times], (0.25, 0.75)).tolist(),
            "processor": float(np.median([each.processor for each in times])),
            "throughput": batch / medians[name],
            "ratio": medians[baseline] / medians[name],
            "seconds": [each.wall for each in times],
            "processor_seconds": [each.processor for each in times],
        }
        for name, times in taken.items()
    }


def peak_memory(work: Callable[[], object], imports: Sequence[str]) -> dict[str, int | None]:
    """Bytes that `work`, which can be pickled, adds at its peak to a fresh process that has imported these modules.

    "host" is resident memory, pages of mapped files that were touched among it; "device" is what torch took of a GPU,
    None where it took nothing.
    """
    server = multiprocessing.get_context("forkserver")  # its children have the peak of nobody else
    server.set_forkserver_preload(list(imports))
    with ProcessPoolExecutor(1, server) as pool:
        return pool.submit(_grown, work, tuple(imports)).result()


def _grown(work: Callable[[], object], imports: Sequence[str]) -> dict[str, int | None]:
    for name in imports:
        importlib.import_module(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    host = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * UNIT
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"host": host, "device": device or None}
