"""One look for all figures: a restrained palette that colour-blind readers can tell apart, and little ink."""

import io
import math
import re
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from nxmiformer.figures.colours import BAND, DARK, GREY, INK, MUTED, PAPER, RULE
from nxmiformer.runs import words
from nxmiformer.runs.numbers import Run, Span
from nxmiformer.tasks.scale import scale

TITLE, TEXT, SMALL = 12, 9, 8.5  # points
WIDTH = 7.2  # inches
DPI = 150
_BOLD_WIDTH = 0.62  # of a character of the title, in units of its height


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


def plain(text: str) -> str:
    """`text` with its dollar signs kept from starting mathematics."""
    return text.replace("$", r"\$")


def axes(ax: Axes, note: str) -> None:
    """Strip an axes to what is read; `note` says above it what is drawn, in which unit."""
    ax.set_facecolor("none")
    ax.set_title(plain(note), loc="left", fontsize=SMALL, color=MUTED, pad=6)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(RULE)
    ax.tick_params(which="both", length=0, labelsize=SMALL, labelcolor=MUTED)
    ax.grid(axis="y", color=RULE, linewidth=0.6)
    ax.set_axisbelow(True)


def label(ax: Axes, text: str, xy: tuple[float, float], colour: str = INK, **options: Any) -> None:
    """Write directly into the data of `ax`, at `xy`."""
    ax.annotate(plain(text), xy, **{"fontsize": SMALL, "color": colour, "annotation_clip": False, **options})


def reference(ax: Axes, y: float, text: str) -> None:
    """A dashed line at `y`, with its name right of the axes."""
    ax.axhline(y, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    label(ax, text, (1.01, y), MUTED, xycoords=("axes fraction", "data"), va="center")


def score_axis(axis: Axis, metric: str) -> None:
    """Write the scores of an axis as `words.score` does."""
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if scale(metric) == "share":
        percentages(axis)


def percentages(axis: Axis) -> None:
    """Write the fractions of an axis as percentages."""
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.6g} %"))


def log_axis(axis: Axis) -> None:
    """Place the ticks of a logarithmic axis, whose limits are set: powers of ten, or round numbers within one."""
    low, high = axis.get_view_interval()
    axis.set_minor_locator(NullLocator())
    if high < 10 * low:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def size_axis(ax: Axes) -> None:
    """Write the bytes of a logarithmic x axis, whose limits are set, as `words.size` does: "200 MB", "1 MB"."""
    low, high = ax.get_xlim()
    few = high < 5 * low  # so few that powers of ten, twice and five times them leave one tick or none
    ax.xaxis.set_major_locator(
        MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]) if few else LogLocator(subs=(1, 2, 5), numticks=12)
    )
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _round(value)))


def _round(nbytes: float) -> str:
    number, unit = words.size(nbytes).split()
    return f"{float(number):g} {unit}"


def bands(run: Run, panels: Sequence[Axes], first: float, last: float) -> None:
    """Shade every other phase between the steps `first` and `last`, and name the phases above the topmost panel."""
    for number, span in enumerate(run.spans):
        start, stop = max(first, span.start), min(last, span.stop)
        if start >= stop:
            continue
        for panel in panels:
            if number % 2:
                panel.axvspan(start, stop, color=BAND, linewidth=0, zorder=0)
            panel.axvline(start, color=RULE, linewidth=0.8, zorder=0.5)
        _name(panels[0], span, start, stop, (stop - start) / (last - first))
    panels[-1].set_xlim(first, last)


def _name(ax: Axes, span: Span, start: float, stop: float, share: float) -> None:
    if name := fitting(span.phase, share):
        label(ax, name, ((start + stop) / 2, 1.015), xycoords=("data", "axes fraction"), ha="center", va="bottom")


def fitting(name: str, share: float) -> str:
    """A name cut to this share of the figure's width; nothing where that is less than three characters."""
    characters = int(share * (WIDTH - 1) * 72 / (SMALL * 0.62))
    return "" if characters < 3 else name if len(name) <= characters else name[: characters - 1] + "…"


def spread(
    places: Sequence[float], gaps: Sequence[float], low: float = -math.inf, high: float = math.inf
) -> list[float]:
    """Move `places` as little as keeps neighbours apart by the mean of their `gaps`; their order stays.

    Each gap lies between `low` and `high` where there is room for all.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    groups: list[tuple[float, list[int]]] = []  # (centre, members), each packed tight around its centre
    for i in order:
        centre, members = _within(places[i], gaps[i], low, high), [i]
        while groups and _overlap(groups[-1], (centre, members), gaps):
            members = groups.pop()[1] + members
            offsets = _offsets(members, gaps)
            centre = sum(places[m] - o for m, o in zip(members, offsets, strict=True)) / len(members)
            extent = offsets[-1] - offsets[0] + (gaps[members[0]] + gaps[members[-1]]) / 2
            centre = _within(centre, extent, low, high)
        groups.append((centre, members))
    moved = list(places)
    for centre, members in groups:
        for member, offset in zip(members, _offsets(members, gaps), strict=True):
            moved[member] = centre + offset
    return moved


def _within(centre: float, extent: float, low: float, high: float) -> float:
    return max(low + extent / 2, min(high - extent / 2, centre))


def _offsets(members: Sequence[int], gaps: Sequence[float]) -> list[float]:
    places = [0.0]
    for a, b in pairwise(members):
        places.append(places[-1] + (gaps[a] + gaps[b]) / 2)
    return [place - places[-1] / 2 for place in places]


def _overlap(left: tuple[float, list[int]], right: tuple[float, list[int]], gaps: Sequence[float]) -> bool:
    end = left[0] + _offsets(left[1], gaps)[-1] + gaps[left[1][-1]] / 2
    return end > right[0] + _offsets(right[1], gaps)[0] - gaps[right[1][0]] / 2


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
