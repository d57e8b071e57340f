"""The end of a console run, on one screen."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from nxmiformer.report import content
from nxmiformer.runs import speeds, words
from nxmiformer.runs.numbers import Run


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


def _table(source: content.Table) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="dim")
    for column, name in enumerate(source.header):
        words_column = column < source.named
        # Only words may fold: a number that is cut is a wrong number.
        table.add_column(
            Text(name), justify="left" if words_column else "right", no_wrap=not words_column, overflow="fold"
        )
    for row in source.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
