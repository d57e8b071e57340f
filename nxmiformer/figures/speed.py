"""How fast each way to run a model is."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from nxmiformer.figures.colours import BLUE, GREY, ORANGE, PAPER, SKY, SLATE
from nxmiformer.figures.style import DASHED, QUIET, axes, canvas, label, note, spread, title
from nxmiformer.runs import words
from nxmiformer.runs.speeds import headline, ratios, rivals, timings

TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
COLOURS = {"dense bf16": SKY, "dense onnx": SLATE, "packed": ORANGE, "packed lazy": GREY}
DOT: dict[str, Any] = {"marker": "o", "markersize": 6, "markeredgecolor": PAPER}
LINE = 0.07  # the height of a name, in shares of the axes


def speed(content: Mapping[str, Any]) -> Figure:
    """Throughput over the dense float32 model's, a panel a length, by batch; bars: the quartiles of the rounds.

    Args:
        content: of a `bench.json`.
    """
    figure = canvas(3.9)
    found = timings(content)
    lengths = sorted({length for _, length in found})
    batches = sorted({batch for batch, _ in found})
    panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    reached = [value for name in rivals(content) for value in (*ratios(content, name).values(), 1.0)]
    low, high = min(reached) / 1.3, max(reached) * 1.3
    for ax, length in zip(panels, lengths, strict=True):
        axes(ax, f"length {length}")
        ax.set_yscale("log")
        ax.set_ylim(low, high)
        ax.yaxis.set_major_locator(FixedLocator([tick for tick in TICKS if low <= tick <= high]))
        ax.yaxis.set_major_formatter("{x:g} ×")
        ax.yaxis.set_minor_locator(NullLocator())
        ax.axhline(1, **DASHED)
        shapes = [(batch, length) for batch in batches if (batch, length) in found]
        ax.set_xticks(range(len(batches)), [_tick(content, (batch, length)) for batch in batches])
        ax.set_xlim(-0.35, len(batches) - 0.65)
        for name in rivals(content):
            _draw(ax, content, name, shapes, [batches.index(batch) for batch, _ in shapes])
    _name(panels[-1], content, max(shape for shape in found if shape[1] == lengths[-1]))
    note(figure, f"batch, and below it the latency of {content['baseline']};  {content['device']}")
    figure.supylabel(f"throughput, times that of {content['baseline']}", **QUIET)
    title(figure, headline(content))
    return figure


def _colour(name: str) -> str:
    return COLOURS.get(name, BLUE)


def _tick(content: Mapping[str, Any], shape: tuple[int, int]) -> str:
    """The batch, and the latency of the baseline where it was timed."""
    timing = timings(content).get(shape)
    return f"{shape[0]}\n{words.latency(timing[content['baseline']]['median']) if timing else words.NONE}"


def _draw(
    ax: Axes, content: Mapping[str, Any], name: str, shapes: Sequence[tuple[int, int]], places: Sequence[int]
) -> None:
    """The line of a contender in a panel, from the medians, with the quartiles of its own times."""
    found, gained = timings(content), ratios(content, name)
    middle = [gained[shape] for shape in shapes]
    base = [found[shape][content["baseline"]]["median"] for shape in shapes]
    quartiles = [found[shape][name]["quartiles"] for shape in shapes]
    slow = [m - b / high for m, b, (_, high) in zip(middle, base, quartiles, strict=True)]
    fast = [b / low - m for m, b, (low, _) in zip(middle, base, quartiles, strict=True)]
    ax.errorbar(places, middle, [slow, fast], color=_colour(name), linewidth=1.6, elinewidth=1, zorder=3, **DOT)


def _name(ax: Axes, content: Mapping[str, Any], shape: tuple[int, int]) -> None:
    """Name the lines right of their last points; some of their colours are too pale for letters."""
    names = rivals(content)
    to_share = ax.transScale + ax.transLimits
    places = [float(to_share.transform((0, ratios(content, name)[shape]))[1]) for name in names]
    moved = spread(places, [LINE] * len(names), 0, 1)
    for name, place in zip(names, moved, strict=True):
        ax.plot(1.05, place, "o", color=_colour(name), markersize=6, transform=ax.transAxes, clip_on=False)
        text = f"{name}  {ratios(content, name)[shape]:.2g} ×"
        label(ax, text, (1.1, place), xycoords="axes fraction", va="center")
