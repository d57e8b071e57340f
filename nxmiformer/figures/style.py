"""One look for all figures: a restrained palette that colour-blind readers can tell apart, and little ink."""

import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from scipy.optimize import isotonic_regression

from nxmiformer.figures.colours import DARK, GREY, INK, MUTED, PAPER, RULE
from nxmiformer.runs import words
from nxmiformer.tasks.scale import scale

TITLE, TEXT, SMALL = 12, 9, 8.5  # points
WIDTH = 7.2  # inches
DPI = 150
_BOLD_WIDTH = 0.62  # of a character of the title, in units of its height
QUIET: dict[str, Any] = {"fontsize": SMALL, "color": MUTED}  # the name of an axis
DASHED: dict[str, Any] = {"color": GREY, "linewidth": 0.9, "linestyle": (0, (4, 3)), "zorder": 1}  # what is compared


def canvas(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, inches, laid out by itself."""
    return Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)


def title(figure: Figure, finding: str) -> None:
    """Set the sentence that a figure shows, wrapped to its width."""
    finding = re.sub(r"(?<=\d) (?=%|[kMG]?B\b)", "\N{NO-BREAK SPACE}", finding)
    characters = int(figure.get_figwidth() * 72 / (TITLE * _BOLD_WIDTH))
    lines = len(textwrap.wrap(finding, characters))
    while lines > 1 and len(textwrap.wrap(finding, characters - 1)) == lines:
        characters -= 1  # lines of one length, rather than a last one of a single word
    text = plain(textwrap.fill(finding, characters))
    figure.suptitle(text, x=0.012, ha="left", fontsize=TITLE, fontweight="bold", color=INK, linespacing=1.3)


def note(figure: Figure, text: str) -> None:
    """Write below a figure how it is to be read."""
    figure.supxlabel(text, x=0.012, ha="left", **QUIET)


def plain(text: str) -> str:
    """`text` with its dollar signs kept from starting mathematics."""
    return text.replace("$", r"\$")


def axes(ax: Axes, note: str) -> None:
    """Strip an axes to what is read; `note` says above it what is drawn, in which unit."""
    ax.set_facecolor("none")
    ax.set_title(plain(note), loc="left", pad=6, **QUIET)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(RULE)
    ax.tick_params(which="both", length=0, labelsize=SMALL, labelcolor=MUTED)
    ax.grid(axis="y", color=RULE, linewidth=0.6)
    ax.set_axisbelow(True)


def bare(ax: Axes, note: str = "") -> None:
    """Strip an axes as `axes` does, and of its grid and its line too: what is drawn is a scale of its own."""
    axes(ax, note)
    ax.grid(False)
    ax.spines["bottom"].set_visible(False)


def label(ax: Axes, text: str, xy: tuple[float, float], colour: str = INK, **options: Any) -> None:
    """Write directly into the data of `ax`, at `xy`."""
    ax.annotate(plain(text), xy, **{"fontsize": SMALL, "color": colour, "annotation_clip": False, **options})


def reference(ax: Axes, y: float, text: str) -> None:
    """A dashed line at `y`, with its name right of the axes."""
    ax.axhline(y, **DASHED)
    label(ax, text, (1.01, y), MUTED, xycoords=("axes fraction", "data"), va="center")


def score_axis(axis: Axis, metric: str) -> None:
    """Write the scores of an axis as `words.score` does."""
    axis.set_major_locator(_round_numbers())
    if scale(metric) == "share":
        percentages(axis)


def percentages(axis: Axis) -> None:
    """Write the fractions of an axis as percentages."""
    axis.set_major_locator(_round_numbers())
    axis.set_major_formatter(lambda value, _: f"{100 * value:.6g} %")


def log_axis(axis: Axis) -> None:
    """Place the ticks of a logarithmic axis, whose limits are set: powers of ten, or round numbers within one."""
    low, high = axis.get_view_interval()
    axis.set_minor_locator(NullLocator())
    if high < 10 * low:
        axis.set_major_locator(_round_numbers())
        axis.set_major_formatter("{x:g}")


def size_axis(ax: Axes, said: Callable[[float], str] = words.size) -> None:
    """Write the amounts of a logarithmic x axis, whose limits are set, as `said` does, but round: "200 MB", "1 MB"."""
    low, high = ax.get_xlim()
    few = high < 5 * low  # so few that powers of ten, twice and five times them leave one tick or none
    ax.xaxis.set_major_locator(_round_numbers() if few else LogLocator(subs=(1, 2, 5), numticks=12))
    ax.xaxis.set_minor_locator(NullLocator())

    def written(value: float, _: float) -> str:
        number, unit = said(value).split()
        return f"{float(number):g} {unit}"

    ax.xaxis.set_major_formatter(written)


def _round_numbers() -> MaxNLocator:
    return MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])


def fitting(name: str, share: float) -> str:
    """A name cut to this share of the figure's width; nothing where that is less than three characters."""
    characters = int(share * (WIDTH - 1) * 72 / (SMALL * 0.62))
    return "" if characters < 3 else name if len(name) <= characters else name[: characters - 1] + "…"


def spread(
    places: Sequence[float], gaps: Sequence[float], low: float = -math.inf, high: float = math.inf
) -> list[float]:
    """Move `places` as little as keeps neighbours apart by the mean of their `gaps`; their order stays.

    Each gap lies between `low` and `high` where there is room for all. What is left of the places without their gaps
    is an isotonic regression.
    """
    if not places:
        return []
    order = np.argsort(places, kind="stable")
    each = np.asarray(gaps)[order]
    offsets = np.cumsum([0.0, *(each[1:] + each[:-1]) / 2])
    level = isotonic_regression(np.asarray(places)[order] - offsets).x
    level = np.maximum(low + each[0] / 2, np.minimum(high - each[-1] / 2 - offsets[-1], level))
    return [float(place) for place in (level + offsets)[np.argsort(order)]]


def png(figure: Figure) -> bytes:
    """The figure as a PNG image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def svg(figure: Figure) -> str:
    """The figure as an SVG image that turns dark where the reader's screen is."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    rules = "".join(
        f'[style*="{paint}: {light}"]{{{paint}:{dark}!important}}'
        for light, dark in DARK.items()
        for paint in ("fill", "stroke")
    )
    dark = f"@media (prefers-color-scheme: dark){{{rules}}}</style>"
    return buffer.getvalue().decode("utf-8").replace("</style>", dark, 1)
