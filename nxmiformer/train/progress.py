"""A progress bar for one phase."""

from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

Item = TypeVar("Item")


def tracked(work: Iterable[Item], name: str, total: int, shown: bool) -> Iterator[Item]:
    """`work`, item by item, with a line on standard error that counts them; none where there is nothing to do."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = None
        for item in work:
            task = bar.add_task(name, total=total) if task is None else task
            bar.update(task, advance=1)
            yield item


class Progress:
    """Steps, loss, holdout score, gap and time left, on one line of standard error."""

    def __init__(self, name: str, steps: int, first: int, shown: bool) -> None:
        columns = (
            TextColumn("{task.description:<8}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Bar(*columns, console=Console(stderr=True), disable=not shown)
        self.task = self.bar.add_task(name, total=steps, completed=first, figures="")
        self.scores = ""

    def score(self, metric: str, value: float) -> None:
        """The latest score on the holdout."""
        self.scores = f"{metric} {value:.4f} "

    def step(self, row: Mapping[str, float]) -> None:
        """One step more, with the figures of it."""
        gap = f"gap {row['gap']:.3f}" if "gap" in row else ""
        self.bar.update(self.task, advance=1, figures=f"loss {row['loss']:.4f} {self.scores}{gap}")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
