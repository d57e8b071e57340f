"""The plan and its error, layer by component."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nxmiformer.figures.cells import COLOURS, framed, scale
from nxmiformer.figures.colours import INK, MUTED, PAPER
from nxmiformer.figures.style import SMALL, WIDTH, axes, canvas, plain, title
from nxmiformer.plan.compression import FLOAT, CompressionPlan
from nxmiformer.runs.address import Address, address, columns, rows, spoken
from nxmiformer.runs.numbers import Run

# On a coloured cell the text keeps its colour, whatever the screen: these are in no other use.
ON_LIGHT, ON_DARK = "#1a2430", "#fdfeff"
BYTE = 8.0  # bits
FOLDED = 12  # characters: a longer set takes two lines
_CHARACTER = SMALL * 0.6 / 72  # inches


def heatmap(run: Run) -> Figure:
    """Layer index by component: the colour is a layer's relative error, the text its set.

    Sets other than the most common one are framed, and in bold. Layers that stay dense have no colour.
    """
    errors = {name: layer.error for name, layer in run.report.layers.items() if math.isfinite(layer.error)}
    low, high = (min(errors.values()), max(errors.values())) if errors else (0.0, 1.0)
    ends = (low, high) if high > low else (low * 0.5, low * 1.5 or 1.0)
    cells = _Cells({name: layer.set for name, layer in run.report.layers.items()}, errors, ends, run.plan)
    figure = _drawn(cells, "error", "error: ‖W_dense − W_final‖² / ‖W_dense‖²", _share)
    title(figure, _finding(cells))
    return figure


def plan_heatmap(plan: CompressionPlan) -> Figure:
    """Layer index by component: the colour is what a weight of the layer costs in bits (values, indices and scales),
    the text the layer's set; otherwise as `heatmap`.

    Raises:
        ValueError: the plan compresses no layer.
    """
    if not plan.layers:
        raise ValueError("the plan compresses no layer, so there is nothing to draw")
    costs = {name: spec.bits for name, spec in plan.layers.items()}
    ends = (0.0, max(BYTE, *costs.values()))  # alike on every plan but those that store floats
    cells = _Cells({name: str(spec) for name, spec in plan.layers.items()}, costs, ends, plan)
    figure = _drawn(cells, "bits", "bits stored for each weight of the layer: values, indices and scales", _bits)
    storage = plan.storage()
    low, high = _bits(min(costs.values())), _bits(max(costs.values()))
    range_ = f", {low} to {high} by layer" if low != high else ""
    title(figure, f"{_sets(cells.sets)}: {_bits(FLOAT * storage.total / storage.dense)} bits a weight{range_}")
    return figure


@dataclass(frozen=True)
class _Cells:
    """What a map shows of the layers: a text in each cell, and the value that colours it if it has one, on a scale
    with these `ends`; by layer name."""

    named: Mapping[str, str]
    values: Mapping[str, float]
    ends: tuple[float, float]
    plan: CompressionPlan

    @cached_property
    def texts(self) -> dict[Address, str]:
        """The layers' own, and "dense" or "shared" for those among them that the plan leaves."""
        texts = {address(name): text for name, text in self.named.items()}
        shared = {alias for spec in self.plan.layers.values() for alias in spec.aliases}
        prefixes = {prefix for prefix, index, _ in texts if index is not None}
        components = {component for _, _, component in texts}
        for name in self.plan.skipped:
            prefix, index, component = address(name)
            if prefix in prefixes and index is not None and component in components:
                texts.setdefault((prefix, index, component), "shared" if name in shared else "dense")
        return texts

    @property
    def sets(self) -> Counter[str]:
        return Counter(self.named.values())


def _drawn(cells: _Cells, name: str, note: str, written: Callable[[float], str]) -> Figure:
    """The map without its title; `name` heads the scale of colours, whose ticks are `written`."""
    down, across = rows(cells.texts), columns(cells.texts)
    texts = _folded(cells.texts)
    longest = max(len(line) for text in texts.values() for line in text.split("\n"))
    wide = max(0.86, longest * _CHARACTER + 0.22)
    tall = 0.42 if texts != cells.texts else 0.27 if len(down) > 24 else 0.34
    heads = [column.replace(".", "\n") for column in across]
    above = 0.8 + 0.15 * max(head.count("\n") + 1 for head in heads)
    height = above + len(down) * tall + (0.5 if len(cells.sets) > 1 else 0.3)
    figure = canvas(height, max(WIDTH, 1.3 + len(across) * wide))
    ax = figure.subplots()
    places = {(p, i, c): (list(down).index((p, i)), across.index(c)) for p, i, c in texts}
    mesh = _painted(ax, cells, places, (len(down), len(across)))
    _write(ax, cells, texts, places)
    ax.set_xticks(np.arange(len(across)) + 0.5, [plain(head) for head in heads])
    ax.set_yticks(np.arange(len(down)) + 0.5, [plain(row) for row in down.values()])
    ax.xaxis.tick_top()
    ax.tick_params(labelsize=SMALL, labelcolor=INK)
    ax.set_ylabel("layer", fontsize=SMALL, color=MUTED)
    common = cells.sets.most_common(1)[0][0]
    note += f";  framed: another set than {common}" if len(cells.sets) > 1 else ""
    ax.set_xlabel(plain(note), fontsize=SMALL, color=MUTED, loc="left", labelpad=6)
    ticks = scale(figure, [ax], mesh, name).ax.yaxis
    ticks.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: written(value)))
    return figure


def _folded(texts: Mapping[Address, str]) -> dict[Address, str]:
    """The texts, at their plus sign on two lines if any is long."""
    if max(map(len, texts.values())) <= FOLDED:
        return dict(texts)
    return {place: text.replace("+", "\n+") for place, text in texts.items()}


def _painted(ax: Axes, cells: _Cells, places: Mapping[Address, tuple[int, int]], shape: tuple[int, int]) -> QuadMesh:
    """The coloured cells."""
    grid = np.full(shape, math.nan)
    for name, value in cells.values.items():
        grid[places[address(name)]] = value
    low, high = cells.ends
    drawn = np.ma.masked_invalid(grid)
    mesh = ax.pcolormesh(drawn, cmap=COLOURS, vmin=low, vmax=high, edgecolors=PAPER, linewidth=1.2)
    axes(ax, "")
    ax.grid(False)
    ax.spines["bottom"].set_visible(False)
    ax.invert_yaxis()
    return mesh


def _write(ax: Axes, cells: _Cells, texts: Mapping[Address, str], places: Mapping[Address, tuple[int, int]]) -> None:
    """The text of each cell; what has another set than most is framed, and in bold."""
    common = cells.sets.most_common(1)[0][0]
    own = {address(name): text for name, text in cells.named.items()}
    values = {address(name): value for name, value in cells.values.items()}
    low, high = cells.ends
    for place, text in texts.items():
        y, x = places[place]
        odd = own.get(place, common) != common
        colour = _legible(COLOURS((values[place] - low) / (high - low))) if place in values else MUTED
        style: dict[str, Any] = {"fontsize": SMALL - 0.5, "ha": "center", "va": "center"}
        weight = "bold" if odd else "normal"
        ax.text(x + 0.5, y + 0.5, plain(text), color=colour, fontweight=weight, **style)
        if odd:
            framed(ax, x, y)


def _finding(cells: _Cells) -> str:
    sets, errors = _sets(cells.sets), cells.values
    if not errors:
        return sets
    worst = max(errors, key=lambda name: errors[name])
    low, high = _share(min(errors.values())), _share(errors[worst])
    if low == high:
        return f"{sets}; every weight's error is {low}"
    return f"{sets}; errors run from {low} to {high}, the most in {spoken(worst)}"


def _sets(sets: Counter[str]) -> str:
    return f"All layers are {next(iter(sets))}" if len(sets) == 1 else f"{len(sets)} sets share the layers"


def _share(error: float) -> str:
    return f"{100 * error:.2g} %"


def _bits(bits: float) -> str:
    return f"{bits:.3g}"


def _legible(colour: tuple[float, ...]) -> str:
    """The text colour that has the greater contrast on `colour` (WCAG 2, relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return ON_LIGHT if (luminance + 0.05) ** 2 > 0.05 * 1.05 else ON_DARK
