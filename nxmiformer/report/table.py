"""The end of a console run, on one screen."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from nxmiformer.report import content
from nxmiformer.runs import speeds, words
from nxmiformer.runs.numbers import Run

GAP = 3  # columns of the console between two columns of a table
FOLDED = 20  # columns of the console that the longest word is folded to where there is no more room


def summary(run: Run) -> Group:
    """The scores, the storage and the time of a run, 80 columns wide or less where names are of ordinary length."""
    advice = words.advice(run)
    return Group(
        Text(words.headline(run), style="bold"),
        Text(""),
        _table(content.scores(run)),
        _table(content.storage(run)),
        *([Text(f"{advice}.")] if advice else []),
        _table(content.phases(run)),
    )


def search_summary(found: Mapping[str, Any]) -> Group:
    """The plans of a search, the best first, from the content of its `search.json`."""
    return Group(Text(words.search_headline(found), style="bold"), Text(""), _table(content.plans(found)))


def export_summary(found: Mapping[str, Any]) -> Group:
    """The artefact beside the packed model, from the content of its `export.json`."""
    return Group(Text(words.export_headline(found), style="bold"), Text(""), _table(content.export(found)))


def bench_summary(found: Mapping[str, Any]) -> Group:
    """The contenders and every shape, and what gains and what does not, from the content of a `bench.json`."""
    return Group(
        Text(speeds.headline(found), style="bold"),
        Text(f"{found['device']}, {found['capability']}; {speeds.shape_words(speeds.middle(found))}:"),
        _table(content.contenders(found)),
        Text(f"throughput, times that of {found['baseline']}:"),
        _table(content.throughputs(found)),
        *(Text(f"- {sentence}") for sentence in speeds.findings(found)),
    )


def blockwise_summary(found: Mapping[str, Any]) -> Group:
    """The scores, the time by block and the memory, from the content of a `blocks.json`."""
    return Group(
        Text(words.blockwise_headline(found), style="bold"),
        Text(words.blockwise_memory(found)),
        _table(content.blocks(found)),
    )


def sweep_summary(jobs: Sequence[Mapping[str, Any]]) -> Group:
    """A line for each job of a sweep: what it was given that not all were, how it ended, and its figures."""
    states = Counter(job["state"] for job in jobs)
    headline = f"{len(jobs)} jobs: " + ", ".join(f"{count} {state}" for state, count in states.items())
    return Group(Text(""), Text(headline, style="bold"), Text(""), _table(content.sweep(jobs)))


def _table(source: content.Table) -> "_Fitting":
    return _Fitting(source)


class _Fitting:
    """A table that fits its console: headers and words are folded first, and then the last numbers are left out.

    Only words may fold: a number that is cut is a wrong number.
    """

    def __init__(self, source: content.Table) -> None:
        self.source = source

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        header, named = self.source.header, self.source.named
        columns = list(zip(header, *self.source.rows, strict=True))
        widest = [max(cell_len(line) for cell in column for line in cell.splitlines() or [""]) for column in columns]
        least = [_least(column, number=index >= named) for index, column in enumerate(columns)]
        room, shown = options.max_width, len(columns)
        while shown > named + 1 and sum(least[:shown]) + GAP * shown > room:
            shown -= 1
        roomy = sum(widest[:shown]) + GAP * shown <= room
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="dim")
        for index, name in enumerate(header[:shown]):
            width = None if roomy or index < named else least[index]
            side: Literal["left", "right"] = "left" if index < named else "right"
            table.add_column(Text(name), justify=side, width=width, no_wrap=roomy, overflow="fold")
        for row in self.source.rows:
            table.add_row(*(Text(cell) for cell in row[:shown]))
        yield table
        if shown < len(header):
            yield Text(f"no room for: {', '.join(' '.join(name.split()) for name in header[shown:])}", style="dim")


def _least(column: Sequence[str], number: bool) -> int:
    """The least width of a column, header first: that of its longest word, or of a number as a whole."""
    name, *cells = column
    parts = cells if number else [word for cell in cells for word in cell.split()]
    longest = max(map(cell_len, [*name.split(), *parts]), default=1)
    return longest if number else min(longest, FOLDED)
