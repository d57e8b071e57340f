"""The report of a run as files: Markdown with images, and one HTML page that needs no other file; a search's images."""

import base64
import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from nxmiformer.errors import telling
from nxmiformer.figures.all import figures_of, figures_of_search
from nxmiformer.figures.speed import speed
from nxmiformer.figures.style import png, svg
from nxmiformer.files import write_bytes, write_text
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.report import content
from nxmiformer.runs import words
from nxmiformer.runs.numbers import PLAN, Run, read_run
from nxmiformer.runs.search_results import read_search
from nxmiformer.runs.speeds import read_bench


def write_report(directory: str | Path) -> dict[str, Path]:
    """Write `report.md`, `report.html` and `figures/*.png` into the directory of a finished run.

    Each file appears whole or not at all; those of an earlier report are replaced.

    Returns:
        The paths, by "markdown", "html" and the names of the figures.

    Raises:
        FileNotFoundError, ValueError: as `read_run`, `read_search` and `read_bench`.
        OSError: a file cannot be written.
    """
    run = read_run(directory)
    figures = figures_of(run)
    titles = {name: " ".join(figure.get_suptitle().split()) for name, figure in figures.items()}
    drawn = {name: (titles[name], svg(figure)) for name, figure in figures.items()}
    texts = {"markdown": ("report.md", markdown(run, titles)), "html": ("report.html", page(run, drawn))}
    written = _images(run.directory, figures)
    for name, text in texts.values():
        write_text(run.directory / name, text)
    return {kind: run.directory / name for kind, (name, _) in texts.items()} | written


def write_search(directory: str | Path) -> dict[str, Path]:
    """Write `figures/*.png` into the directory of a search that has ended; else as `write_report`."""
    found, plan = read_search(directory), CompressionPlan.load(Path(directory) / PLAN)
    return _images(Path(directory), figures_of_search(found, plan))


def write_bench(directory: str | Path) -> dict[str, Path]:
    """Write `figures/speed.png` into the directory of a bench; else as `write_report`."""
    return _images(Path(directory), {"speed": speed(read_bench(directory))})


def _images(directory: Path, figures: Mapping[str, Figure]) -> dict[str, Path]:
    """Write the figures below the directory; the paths by name."""
    written = {name: directory / "figures" / f"{name}.png" for name in figures}
    with telling(directory / "figures"):
        (directory / "figures").mkdir(exist_ok=True)
    for name, path in written.items():
        write_bytes(path, png(figures[name]))
    return written


def markdown(run: Run, titles: Mapping[str, str]) -> str:
    """The report as Markdown; `titles` are those of the figures in `figures/`."""
    return _rendered("report.md", run, titles)


def page(run: Run, figures: Mapping[str, tuple[str, str]]) -> str:
    """The report as one HTML page, with its style and its figures in it; `figures` are (title, SVG) by name."""
    return _rendered("report.html", run, figures)


def _rendered(template: str, run: Run, figures: Mapping[str, Any]) -> str:
    return TEMPLATES.get_template(template).render(
        run=run,
        figures=figures,
        headline=words.headline(run),
        shares=content.shares(run),
        sections=content.sections(run),
        facts=content.facts(run),
    )


def _line(text: str) -> str:
    """One line of plain text: nothing in it is HTML, or Markdown."""
    line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*|\[\]~]|(?<!\w)_|_(?!\w))", r"\\\1", line)


def _fenced(text: str) -> str:
    """A block of code, with a fence longer than any in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}sh\n{text}\n{fence}"


def _base64(text: str) -> str:
    return base64.b64encode(text.encode("utf-8")).decode("ascii")


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters |= {"line": _line, "fenced": _fenced, "base64": _base64}
