"""The report of a run as files: Markdown with images, and one HTML page that needs no other file; a search's images."""

import html
import re
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from nxmiformer.figures.speed import speed
from nxmiformer.figures.style import png, svg
from nxmiformer.files import telling, write_bytes, write_text
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.report import content
from nxmiformer.report.figures import figures_of, figures_of_search
from nxmiformer.report.page import page
from nxmiformer.runs import words
from nxmiformer.runs.numbers import PLAN, Run, read_run
from nxmiformer.runs.searched import read_search
from nxmiformer.runs.speeds import read_bench


def write_report(directory: str | Path) -> dict[str, Path]:
    """Write `report.md`, `report.html` and `figures/*.png` into the directory of a finished run.

    Each file appears whole or not at all; those of an earlier report are replaced.

    Returns:
        The paths, by "markdown", "html" and the names of the figures.

    Raises:
        FileNotFoundError, ValueError: as `read_run`.
        OSError: a file cannot be written.
    """
    run = read_run(directory)
    figures = figures_of(run)
    written = _images(run.directory, figures)
    titles = {name: " ".join(figure.get_suptitle().split()) for name, figure in figures.items()}
    texts = {
        "markdown": (run.directory / "report.md", markdown(run, titles)),
        "html": (
            run.directory / "report.html",
            page(run, {name: (titles[name], svg(figures[name])) for name in figures}),
        ),
    }
    for path, text in texts.values():
        write_text(path, text)
    return {**{name: path for name, (path, _) in texts.items()}, **written}


def write_search(directory: str | Path) -> dict[str, Path]:
    """Write `figures/*.png` into the directory of a search that has ended, each whole or not at all.

    Returns:
        The paths, by the names of the figures.

    Raises:
        FileNotFoundError, ValueError: as `read_search`.
        OSError: a file cannot be written.
    """
    found, plan = read_search(directory), CompressionPlan.load(Path(directory) / PLAN)
    return _images(Path(directory), figures_of_search(found, plan))


def write_bench(directory: str | Path) -> dict[str, Path]:
    """Write `figures/speed.png` into the directory of a bench, whole or not at all.

    Returns:
        The path, by the name of the figure.

    Raises:
        FileNotFoundError, ValueError: as `read_bench`.
        OSError: the file cannot be written.
    """
    return _images(Path(directory), {"speed": speed(read_bench(directory))})


def _images(directory: Path, figures: Mapping[str, Figure]) -> dict[str, Path]:
    """Write the figures below the directory; the paths by name."""
    written = {name: directory / "figures" / f"{name}.png" for name in figures}
    with telling(directory / "figures"):
        (directory / "figures").mkdir(exist_ok=True)
    for name, path in written.items():
        write_bytes(path, png(figures[name]))
    return written


def markdown(run: Run, titles: dict[str, str]) -> str:
    """The report as Markdown; `titles` are those of the figures in `figures/`."""
    parts = [f"# {_text(run.report.name)}", f"**{_text(words.headline(run))}.**", _image("size", titles)]
    for heading, table, figures in (
        ("Scores", content.scores(run), ()),
        ("Storage", content.storage(run), ("storage",)),
        ("Layers", content.layers(run), ("heatmap",)),
        ("Training", content.phases(run), ("training", "convergence")),
        ("Layers left dense", content.skipped(run), ()),
    ):
        if table.rows:
            pictures = [_image(name, titles) for name in figures]
            parts += [f"## {heading}", *pictures, _table(table), content.NOTES.get(heading, "")]
            parts += [f"{_text(advice)}."] if heading == "Storage" and (advice := words.advice(run)) else []
    parts += ["## How to reproduce", _fenced(run.report.command), _table(content.facts(run))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(table: content.Table) -> str:
    rule = ["---" if column < table.named else "---:" for column in range(len(table.header))]
    rows = [[_text(cell) for cell in row] for row in (table.header, *table.rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])


def _image(name: str, titles: dict[str, str]) -> str:
    return f"![{_text(titles[name])}](figures/{name}.png)" if name in titles else ""


def _text(text: str) -> str:
    """One line of plain text: nothing in it is HTML, or Markdown."""
    line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*|\[\]~]|(?<!\w)_|_(?!\w))", r"\\\1", line)


def _fenced(text: str) -> str:
    """A block of code, with a fence longer than any in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}sh\n{text}\n{fence}"
