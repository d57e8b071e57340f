"""What each set does to each layer, as a search foresaw it."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from nxmiformer.figures.cells import COLOURS, framed, scale
from nxmiformer.figures.colours import INK, MUTED, PAPER
from nxmiformer.figures.style import SMALL, axes, canvas, log_axis, plain, title
from nxmiformer.runs.address import address, columns, rows, spoken

ACROSS = 3  # panels
TALL = 0.18  # of a row, inches
Damages = Mapping[str, Mapping[str, float]]  # by layer and set


def sensitivity(found: Mapping[str, Any]) -> Figure:
    """The damage that was foreseen for every layer in every set, on a log scale: a panel a component, a row a layer
    index, a column a set, those of the least damage first. The set that the chosen plan gives a layer is framed.

    Args:
        found: the content of a `search.json`.

    Raises:
        ValueError: the search measured no damage.
    """
    damages, chosen = found["damages"], found["best"]["sets"]
    if not any(damages.values()):
        raise ValueError("the search measured no damage, so there is nothing to draw")
    sets, norm = _sets(damages, chosen), _norm(damages)
    addresses = [address(name) for name in damages]
    components, down = columns(addresses), rows(addresses)
    across, high = min(ACROSS, len(components)), -(-len(components) // ACROSS)
    longest = max(map(len, sets)) * 0.6 * SMALL / 72
    figure = canvas(0.8 + longest + high * (0.36 + TALL * len(down)))
    grid = figure.subplots(high, across, sharex=True, sharey=True, squeeze=False)
    for ax, component in zip(grid.flat, components, strict=False):
        layers = {address(name)[:2]: name for name in damages if address(name)[2] == component}
        axes(ax, component)
        _draw(ax, [layers.get(row) for row in down], sets, damages, chosen, norm)
    _label(grid, len(components), sets, list(down.values()))
    bar = scale(figure, list(grid.flat), ScalarMappable(norm, COLOURS), "damage")
    log_axis(bar.ax.yaxis)
    figure.supylabel("layer", fontsize=SMALL, color=MUTED)
    figure.supxlabel(
        "framed: the set that the chosen plan gives the layer", x=0.012, ha="left", fontsize=SMALL, color=MUTED
    )
    title(figure, _finding(damages, sets))
    return figure


def _sets(damages: Damages, chosen: Mapping[str, str]) -> list[str]:
    """In words: those without a damage, which leave a layer dense, then by the mean logarithm of their damage."""
    logs: dict[str, list[float]] = {words: [] for words in chosen.values()}
    for row in damages.values():
        for words, damage in row.items():
            logs.setdefault(words, []).extend([math.log(damage)] if damage > 0 else [])
    return sorted(logs, key=lambda words: fmean(logs[words]) if logs[words] else -math.inf)


def _norm(damages: Damages) -> LogNorm:
    """The scale from the least damage above 0 to the most."""
    above = [damage for row in damages.values() for damage in row.values() if 0 < damage < math.inf] or [1.0]
    low, high = min(above), max(above)
    return LogNorm(low, high) if low < high else LogNorm(low / 10, high * 10)


def _draw(
    ax: Axes,
    names: Sequence[str | None],
    sets: Sequence[str],
    damages: Damages,
    chosen: Mapping[str, str],
    norm: LogNorm,
) -> None:
    """The layers of a component, from the top down; None where it has none there."""
    values = [[damages[name].get(each, math.nan) if name else math.nan for each in sets] for name in names]
    drawn = np.ma.masked_invalid(np.clip(np.array(values), norm.vmin, norm.vmax))
    ax.pcolormesh(drawn, cmap=COLOURS, norm=norm, edgecolors=PAPER, linewidth=0.6)
    ax.grid(False)
    ax.spines["bottom"].set_visible(False)
    for y, name in enumerate(names):
        if name:
            framed(ax, sets.index(chosen[name]), y)


def _label(grid: np.ndarray, panels: int, sets: Sequence[str], layers: Sequence[str]) -> None:
    """Name the columns below the lowest panel of each column of panels, and the rows left of all."""
    for number, ax in enumerate(grid.flat):
        if number >= panels:
            ax.set_axis_off()
        ax.tick_params(labelbottom=panels - grid.shape[1] <= number < panels, labelcolor=INK)
    first = grid[0, 0]
    first.set_xticks(np.arange(len(sets)) + 0.5, [plain(each) for each in sets], rotation=90)
    first.set_yticks(np.arange(len(layers)) + 0.5, [plain(each) for each in layers])
    first.set_ylim(len(layers), 0)
    for ax in grid.flat:
        ax.tick_params(axis="x", labelrotation=90)


def _finding(damages: Damages, sets: Sequence[str]) -> str:
    """Which layer the harshest set of all damages most."""
    harshest = {name: row[sets[-1]] for name, row in damages.items() if sets[-1] in row}
    worst, least = max(harshest, key=lambda name: harshest[name]), min(harshest, key=lambda name: harshest[name])
    most = f"{sets[-1]} does the most damage in {spoken(worst)}"
    if not 0 < harshest[least] < harshest[worst]:
        return most
    ratio = harshest[worst] / harshest[least]
    return f"{most}, {ratio:{'.3g' if ratio < 1000 else ',.0f'}} times that in {spoken(least)}"
