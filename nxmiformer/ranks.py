"""The processes of one run, each of which takes its share of every batch.

Every process, a rank, holds the whole model and takes the same steps. What a step is computed from is summed over the
ranks: gradients, the moments of calibration, the ranges of inputs. So weights, supports, Z and dual stay equal to the
bit without being sent. The first rank writes files and speaks; the others do neither.

The sums are explicit calls and not a wrapper of the model, such as `DistributedDataParallel`: a wrapper sums what
`backward` leaves, whereas methods, quantizers and losses that are means over tokens need sums of their own anyway.
"""

import abc
import hashlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

Item = TypeVar("Item")
PATIENCE = timedelta(minutes=30)  # for a rank that lives and does not answer; the end of a process is seen at once
FAILED = "nxmiformer-failed"
GIVEN = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # by a launcher, beside WORLD_SIZE


class LostError(RuntimeError):
    """Other ranks have ended, and this one cannot go on alone."""


class Ranks(abc.ABC):
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: number of this process, from 0.
        count: number of processes.
    """

    rank: int
    count: int

    @property
    def writes(self) -> bool:
        """Whether this rank is the one that writes and speaks."""
        return self.rank == 0

    def mine(self, items: Iterable[Item]) -> Iterator[Item]:
        """This rank's share of items that all ranks have: every `count`-th."""
        return islice(items, self.rank, None, self.count)

    def rows(self, size: int) -> slice:
        """This rank's share of a batch of `size` rows; two shares differ by at most one row."""
        return slice(size * self.rank // self.count, size * (self.rank + 1) // self.count)

    @abc.abstractmethod
    def add(self, tensors: Sequence[Tensor]) -> None:
        """Sum each tensor over the ranks, in place; all ranks have the same shapes."""

    @abc.abstractmethod
    def greatest(self, x: Tensor) -> Tensor:
        """The greatest of each element over the ranks."""

    @abc.abstractmethod
    def parts(self, means: Sequence[Tensor], sizes: Callable[[], Sequence[int]]) -> list[Tensor]:
        """What each mean, of so many elements here, adds to the mean over the elements of all ranks.

        The parts of all ranks add up to that mean, and their gradients to its gradient. `sizes` is called only where
        there are others.
        """

    @abc.abstractmethod
    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum the gradients over the ranks. A parameter that has none on any rank keeps none."""

    @abc.abstractmethod
    def all(self, value: Item) -> list[Item]:
        """The values of all ranks, in their order."""

    @abc.abstractmethod
    def first(self, value: Item) -> Item:
        """The value of the first rank."""

    @abc.abstractmethod
    def wait(self) -> None:
        """Return when all ranks have come here."""

    @abc.abstractmethod
    def drawing(self, place: tuple[int, ...], device: torch.device) -> AbstractContextManager[None]:
        """Let the global generators of torch draw other numbers on each rank while the block runs, determined by
        `place`, such as seed and step, and the rank. Afterwards they are as they were, equal on all ranks."""

    @abc.abstractmethod
    def tell(self, message: str) -> None:
        """Leave word of why this rank fails, for the one that speaks."""


class Alone(Ranks):
    """One process: it has all of every batch, and draws from the global generators as they are."""

    rank, count = 0, 1

    def add(self, tensors: Sequence[Tensor]) -> None:
        pass

    def greatest(self, x: Tensor) -> Tensor:
        return x

    def parts(self, means: Sequence[Tensor], sizes: Callable[[], Sequence[int]]) -> list[Tensor]:
        return list(means)

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        pass

    def all(self, value: Item) -> list[Item]:
        return [value]

    def first(self, value: Item) -> Item:
        return value

    def wait(self) -> None:
        pass

    def drawing(self, place: tuple[int, ...], device: torch.device) -> AbstractContextManager[None]:
        return nullcontext()

    def tell(self, message: str) -> None:
        pass


class Several(Ranks):
    """One of several processes, by `torch.distributed`, whose default group is theirs.

    A RuntimeError of a sum becomes a LostError, which says what the rank that failed had to say.
    """

    def __init__(self, store: "dist.Store", rank: int, count: int) -> None:
        self.store, self.rank, self.count = store, rank, count

    def lost(self, error: RuntimeError | None = None) -> LostError:
        """The error of this rank where others have ended, or where torch's `error` says that it cannot reach them."""
        told = "none of them said why: one may have been killed, or have run out of memory"
        told += f" ({error})" if error is not None else ""
        with suppress(RuntimeError):
            if self.writes and self.store.check([FAILED]):  # the store of others may have ended with the first
                told = self.store.get(FAILED).decode()
        return LostError(f"the other processes of this run have ended; {told}")

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self.lost(error) from error

    def add(self, tensors: Sequence[Tensor]) -> None:
        with self._reaching():
            for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()

    def greatest(self, x: Tensor) -> Tensor:
        found = x.clone()
        with self._reaching():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return found

    def parts(self, means: Sequence[Tensor], sizes: Callable[[], Sequence[int]]) -> list[Tensor]:
        ours = sizes()
        totals = torch.tensor(ours, dtype=torch.int64, device="cpu")
        self.add([totals])
        return [_part(mean, *pair) for mean, *pair in zip(means, ours, totals.tolist(), strict=True)]

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        have = torch.tensor([each.grad is not None for each in parameters], dtype=torch.int32, device="cpu")
        theirs = [each for each, any_has in zip(parameters, self.greatest(have).tolist(), strict=True) if any_has]
        for each in theirs:
            if each.grad is None:
                each.grad = torch.zeros_like(each)
        self.add([each.grad for each in theirs if each.grad is not None])

    def all(self, value: Item) -> list[Item]:
        found: list[Any] = [None] * self.count
        with self._reaching():
            dist.all_gather_object(found, value)
        return found

    def first(self, value: Item) -> Item:
        found = [value]
        with self._reaching():
            dist.broadcast_object_list(found, src=0)
        return found[0]

    def wait(self) -> None:
        self.add([torch.zeros(1, device="cpu")])

    @contextmanager
    def drawing(self, place: tuple[int, ...], device: torch.device) -> Iterator[None]:
        digest = hashlib.sha256(repr((*place, self.rank)).encode()).digest()
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int.from_bytes(digest[:7]))
            yield

    def tell(self, message: str) -> None:
        if not self.writes:
            with suppress(RuntimeError):
                self.store.set(FAILED, f"rank {self.rank} of {self.count}: {message}")


def _part(mean: Tensor, size: int, total: int) -> Tensor:
    """A mean of `size` of `total` elements, as a part of theirs. A mean of nothing is NaN, and a part of nothing is 0;
    where nobody has anything, it is NaN as for one process."""
    if not total:
        return mean
    return mean * (size / total) if size else mean.nan_to_num() * 0.0


_ranks: Ranks = Alone()


def ranks() -> Ranks:
    """The processes of the run that this process is in."""
    return _ranks


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other processes that `torchrun` or `accelerate launch` has started, while the block runs.

    All but the first are silent. SIGTERM, by which a launcher ends those that are left where one has ended, becomes a
    LostError. Without a launcher this process is alone.

    Raises:
        ValueError: WORLD_SIZE is set, and what goes with it is not.
    """
    global _ranks  # as torch's default group is
    several = _several()
    if several is None:
        yield _ranks
        return

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise several.lost()

    before, _ranks = signal.signal(signal.SIGTERM, stop), several
    try:
        with _silent() if not several.writes else nullcontext():
            yield several
        dist.destroy_process_group()  # after an error, to end the process is enough
    finally:
        signal.signal(signal.SIGTERM, before)
        _ranks = Alone()


def _several() -> Several | None:
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        return None
    missing = [name for name in GIVEN if name not in os.environ]
    if missing or not world.isdecimal() or not int(world):
        raise ValueError(
            f"WORLD_SIZE={world}, and {', '.join(missing) or 'a number of processes'} is not set: start "
            f"several processes by torchrun or accelerate launch, or unset WORLD_SIZE"
        )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, rank, count = next(dist.rendezvous("env://", timeout=PATIENCE))
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        place = f"MASTER_ADDR={os.environ['MASTER_ADDR']}, MASTER_PORT={os.environ['MASTER_PORT']}"
        raise ValueError(
            f"the {world} processes of this run cannot meet at {place}: {str(error).splitlines()[0]}"
        ) from error
    return Several(store, rank, count)


@contextmanager
def _silent() -> Iterator[None]:
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
