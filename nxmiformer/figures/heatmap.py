"""The plan and its error, layer by component."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nxmiformer.figures.cells import COLOURS, framed, scale
from nxmiformer.figures.colours import INK, MUTED, PAPER
from nxmiformer.figures.style import QUIET, SMALL, WIDTH, bare, canvas, plain, title
from nxmiformer.plan.compression import FLOAT, CompressionPlan
from nxmiformer.runs.address import Address, address, columns, rows, spoken
from nxmiformer.runs.numbers import Run

# On a coloured cell the text keeps its colour, whatever the screen: these are in no other use.
ON_LIGHT, ON_DARK = "#1a2430", "#fdfeff"
BYTE = 8.0  # bits
FOLDED = 12  # characters: a longer set takes two lines
CENTRED: dict[str, Any] = {"fontsize": SMALL - 0.5, "ha": "center", "va": "center"}
_CHARACTER = SMALL * 0.6 / 72  # inches


def heatmap(run: Run) -> Figure:
    """Layer index by component: the colour is a layer's relative error, the text its set.

    Sets other than the most common one are framed, and in bold. Layers that stay dense have no colour.
    """
    layers = run.report.layers.items()
    errors = {n: layer.error for n, layer in layers if layer.error is not None and math.isfinite(layer.error)}
    low, high = (min(errors.values()), max(errors.values())) if errors else (0.0, 1.0)
    ends = (low, high) if high > low else (low * 0.5, low * 1.5 or 1.0)
    sets = {name: layer.set for name, layer in run.report.layers.items()}
    figure = _drawn(sets, errors, ends, run.plan, _share, "error: ‖W_dense − W_final‖² / ‖W_dense‖²")
    title(figure, _finding(sets, errors))
    return figure


def plan_heatmap(plan: CompressionPlan) -> Figure:
    """Layer index by component. The colour is the bits of a weight of the layer (values, indices and scales), the text
    is the layer's set. Otherwise as `heatmap`.

    Raises:
        ValueError: the plan compresses no layer.
    """
    if not plan.layers:
        raise ValueError("the plan compresses no layer, so there is nothing to draw")
    costs = {name: spec.bits for name, spec in plan.layers.items()}
    ends = (0.0, max(BYTE, *costs.values()))  # alike on every plan but those that store floats
    sets = {name: str(spec) for name, spec in plan.layers.items()}
    note = "bits stored for each weight of the layer: values, indices and scales"
    figure = _drawn(sets, costs, ends, plan, _bits, note)
    storage = plan.storage()
    low, high = _bits(min(costs.values())), _bits(max(costs.values()))
    range_ = f", {low} to {high} by layer" if low != high else ""
    title(figure, f"{_shared(sets)}: {_bits(FLOAT * storage.total / storage.dense)} bits a weight{range_}")
    return figure


def _drawn(
    sets: Mapping[str, str],
    values: Mapping[str, float],
    ends: tuple[float, float],
    plan: CompressionPlan,
    written: Callable[[float], str],
    note: str,
) -> Figure:
    """The map without its title, of the sets and values by layer. The first word of the `note` heads the scale of
    colours, whose `ends` these are and whose ticks are `written`."""
    common, *others = (text for text, _ in Counter(sets.values()).most_common())
    texts = _folded(_texts(sets, plan))
    down, across = rows(texts), columns(texts)
    heads = [column.replace(".", "\n") for column in across]
    figure = _sized(list(texts.values()), heads, len(down), bool(others))
    ax = figure.subplots()
    bare(ax)
    ax.invert_yaxis()
    coloured = {address(name): value for name, value in values.items()}
    grid = [[coloured.get((*row, column), math.nan) for column in across] for row in down]
    mesh = ax.pcolormesh(
        np.ma.masked_invalid(grid), cmap=COLOURS, vmin=ends[0], vmax=ends[1], edgecolors=PAPER, linewidth=1.2
    )
    odd = {address(name) for name, text in sets.items() if text != common}
    for place, text in texts.items():
        x, y = across.index(place[2]), list(down).index(place[:2])
        colour = _legible(mesh.to_rgba(np.asarray(coloured[place]))) if place in coloured else MUTED
        weight = "bold" if place in odd else "normal"
        ax.text(x + 0.5, y + 0.5, plain(text), color=colour, fontweight=weight, **CENTRED)
        if place in odd:
            framed(ax, x, y)
    ax.set_xticks(np.arange(len(across)) + 0.5, [plain(head) for head in heads])
    ax.set_yticks(np.arange(len(down)) + 0.5, [plain(name) for name in down.values()])
    ax.xaxis.tick_top()
    ax.tick_params(labelsize=SMALL, labelcolor=INK)
    ax.set_ylabel("layer", **QUIET)
    note += f";  framed: another set than {common}" if others else ""
    ax.set_xlabel(plain(note), loc="left", labelpad=6, **QUIET)
    ticks = scale(figure, [ax], mesh, note.split()[0].rstrip(":")).ax.yaxis
    ticks.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ticks.set_major_formatter(lambda value, _: written(value))
    return figure


def _texts(sets: Mapping[str, str], plan: CompressionPlan) -> dict[Address, str]:
    """The layers' sets, and "dense" or "shared" for those among them that the plan leaves."""
    texts = {address(name): text for name, text in sets.items()}
    shared = {alias for spec in plan.layers.values() for alias in spec.aliases}
    prefixes = {prefix for prefix, index, _ in texts if index is not None}
    components = {component for _, _, component in texts}
    for name in plan.skipped:
        prefix, index, component = address(name)
        if prefix in prefixes and index is not None and component in components:
            texts.setdefault((prefix, index, component), "shared" if name in shared else "dense")
    return texts


def _folded(texts: Mapping[Address, str]) -> dict[Address, str]:
    """The texts, at their plus sign on two lines if any is long."""
    if max(map(len, texts.values())) <= FOLDED:
        return dict(texts)
    return {place: text.replace("+", "\n+") for place, text in texts.items()}


def _sized(texts: Sequence[str], heads: Sequence[str], down: int, noted: bool) -> Figure:
    """A canvas whose cells are as large as the longest text."""
    lines = [text.split("\n") for text in texts]
    wide = max(0.86, max(len(line) for text in lines for line in text) * _CHARACTER + 0.22)
    tall = 0.42 if max(map(len, lines)) > 1 else 0.27 if down > 24 else 0.34
    above = 0.8 + 0.15 * max(head.count("\n") + 1 for head in heads)
    return canvas(above + down * tall + (0.5 if noted else 0.3), max(WIDTH, 1.3 + len(heads) * wide))


def _finding(sets: Mapping[str, str], errors: Mapping[str, float]) -> str:
    if not errors:
        return _shared(sets)
    worst = max(errors, key=lambda name: errors[name])
    low, high = _share(min(errors.values())), _share(errors[worst])
    if low == high:
        return f"{_shared(sets)}; every weight's error is {low}"
    return f"{_shared(sets)}; errors run from {low} to {high}, the most in {spoken(worst)}"


def _shared(sets: Mapping[str, str]) -> str:
    each = set(sets.values())
    return f"All layers are {each.pop()}" if len(each) == 1 else f"{len(each)} sets share the layers"


def _share(error: float) -> str:
    return f"{100 * error:.2g} %"


def _bits(bits: float) -> str:
    return f"{bits:.3g}"


def _legible(colour: np.ndarray) -> str:
    """The text colour that has the greater contrast on `colour` (WCAG 2, relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return ON_LIGHT if (luminance + 0.05) ** 2 > 0.05 * 1.05 else ON_DARK
