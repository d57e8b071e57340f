"""Progress of work: bars on a terminal, elsewhere a line every few seconds."""

import abc
import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

EVERY = 5.0  # seconds between two lines
BRIEF = 2.0  # seconds from which on brief work is worth a row
REFRESH = 0.1  # seconds between two drawings of the bars
WIDE = 72  # columns from which on there is room for a bar

Item = TypeVar("Item")


class Work:
    """A piece of work in `total` steps, of which `done` are done.

    Attributes:
        brief: show it only if it takes long.
        figures: values to show beside its steps and the time left.
    """

    def __init__(self, name: str, total: int, done: int, brief: bool) -> None:
        self.name, self.total, self.done, self.brief = name, total, done, brief
        self.figures, self.first, self.began = "", done, time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has been at work."""
        return time.monotonic() - self.began

    def __str__(self) -> str:
        taken = self.done - self.first
        parts = [f"{self.name} {self.done}/{self.total}"]
        if self.done >= self.total:
            parts.append(f"took {_clock(self.seconds)}")
        elif taken:
            parts.append(f"{_clock(self.seconds / taken * (self.total - self.done))} left")
        return ", ".join([*parts, *([self.figures] if self.figures else [])])


class Surface(abc.ABC):
    """Where work is shown. A piece of work may start while another is shown, and then ends first."""

    @abc.abstractmethod
    def say(self, text: str) -> None:
        """One line, as it is."""

    @abc.abstractmethod
    def show(self, work: Work) -> None:
        """As far as the work is."""

    @abc.abstractmethod
    def close(self, work: Work) -> None:
        """The work has ended, at its last step or before."""


class Nowhere(Surface):
    """Nothing is shown."""

    def say(self, text: str) -> None:
        pass

    def show(self, work: Work) -> None:
        pass

    def close(self, work: Work) -> None:
        pass


class Lines(Surface):
    """Lines on standard error: when a piece of work begins and ends, and every few seconds between."""

    def __init__(self, label: str) -> None:
        self.start, self.last = f"{label}: " if label else "", -EVERY

    def say(self, text: str) -> None:
        self.last = time.monotonic()
        sys.stderr.write(f"{self.start}{text}\n")  # in one piece: other processes write there too
        sys.stderr.flush()

    def show(self, work: Work) -> None:
        begins, ends = (not work.brief and work.done == step for step in (work.first, work.total))
        if begins or (time.monotonic() - self.last >= EVERY and not ends):
            self.say(str(work))

    def close(self, work: Work) -> None:
        if work.done >= work.total and not work.brief:
            self.say(str(work))


class Bars(Surface):
    """Rows at the foot of the terminal, the last state of which stays there; that of brief work vanishes."""

    def __init__(self, label: str) -> None:
        self.start, self.console = f"{label}: " if label else "", Console(stderr=True)
        self.live: Progress | None = None
        self.rows: dict[Work, TaskID] = {}
        self.drawn = 0.0

    def say(self, text: str) -> None:
        self.console.print(f"{self.start}{text}", markup=False, highlight=False, soft_wrap=True)

    def show(self, work: Work) -> None:
        if work.brief and work.seconds < BRIEF:
            return
        if self.live is None:
            text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1))
            bar = [BarColumn(bar_width=8)] if self.console.width >= WIDE else []
            # Drawn as work goes on: a thread of its own would be timed by a bench.
            self.live = Progress(*bar, text, console=self.console, expand=True, auto_refresh=False)
            self.live.start()
        if work not in self.rows:
            self.rows[work] = self.live.add_task("", total=work.total)
        self._draw(self.live, work)
        if time.monotonic() - self.drawn >= REFRESH:
            self.drawn = time.monotonic()
            self.live.refresh()

    def _draw(self, live: Progress, work: Work) -> None:
        live.update(self.rows[work], completed=work.done, description=f"{self.start}{work}")

    def close(self, work: Work) -> None:
        if self.live is None or work not in self.rows:
            return
        self._draw(self.live, work)
        row = self.rows.pop(work)
        if work.brief:
            self.live.remove_task(row)
        if not self.rows:
            self.live.stop()
            self.live = None


class Display:
    """The progress display of a job.

    Args:
        label: prefix of each line, such as the name of a sweep's job.
        shown: whether to show anything: of several processes, one does.
    """

    def __init__(self, label: str = "", shown: bool = True) -> None:
        self.surface: Surface = Nowhere() if not shown else Bars(label) if _on_terminal() else Lines(label)

    def say(self, text: str) -> None:
        """One line, as it is."""
        self.surface.say(text)

    @contextmanager
    def work(self, name: str, total: int, done: int = 0) -> Iterator[Work]:
        """Work in `total` steps; whoever does it calls `step`. Nothing is shown where there are none left."""
        work, surface = Work(name, total, done, brief=False), self.surface if done < total else Nowhere()
        surface.show(work)
        try:
            yield work
        finally:
            surface.close(work)

    def step(self, work: Work, figures: str = "") -> None:
        """One step more, with the figures of it."""
        work.done, work.figures = work.done + 1, figures
        self.surface.show(work)

    def tracked(self, items: Iterable[Item], name: str, total: int, brief: bool = False) -> Iterator[Item]:
        """The items one by one, and how many there were; nothing is shown where there are none."""
        work = Work(name, total, 0, brief)
        try:
            for item in items:
                self.step(work)
                yield item
        finally:
            self.surface.close(work)


def _on_terminal() -> bool:
    """Whether bars can be drawn: not in one of several processes, whose rows would be drawn over each other."""
    alone = multiprocessing.current_process().name == "MainProcess"
    return alone and sys.stderr.isatty() and Console(stderr=True).is_interactive


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


SILENT = Display(shown=False)
