"""The damage of each set to each layer, as a search predicted it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from nxmiformer.figures.cells import COLOURS, framed, scale
from nxmiformer.figures.colours import INK, PAPER
from nxmiformer.figures.style import QUIET, SMALL, bare, canvas, log_axis, note, plain, title
from nxmiformer.runs.address import address, columns, rows, spoken

ACROSS = 3  # panels
TALL = 0.18  # of a row, inches


def sensitivity(found: Mapping[str, Any]) -> Figure:
    """The predicted damage of every layer in every set, on a log scale. Panels are components, rows layer indices,
    columns sets, those of the least damage first. The set that the chosen plan gives a layer is framed.

    Args:
        found: the content of a `search.json`.

    Raises:
        ValueError: the search measured no damage.
    """
    chosen, damages = found["best"]["sets"], _damages(found)
    norm = _norm(damages.to_numpy())
    addresses = {address(name): name for name in damages.index}
    components, down = columns(addresses), rows(addresses)
    across, high = min(ACROSS, len(components)), -(-len(components) // ACROSS)
    longest = max(map(len, damages)) * 0.6 * SMALL / 72
    figure = canvas(0.8 + longest + high * (0.36 + TALL * len(down)))
    grid = figure.subplots(high, across, sharex=True, sharey=True, squeeze=False)
    for ax, component in zip(grid.flat, components, strict=False):
        bare(ax, component)
        layers = [addresses.get((*row, component)) for row in down]
        drawn = np.ma.masked_invalid(damages.reindex(layers).clip(norm.vmin, norm.vmax))
        ax.pcolormesh(drawn, cmap=COLOURS, norm=norm, edgecolors=PAPER, linewidth=0.6)
        for y, name in enumerate(layers):
            if name is not None:
                framed(ax, list(damages).index(chosen[name]), y)
    _label(grid, len(components), list(damages), list(down.values()))
    bar = scale(figure, list(grid.flat), ScalarMappable(norm, COLOURS), "damage")
    log_axis(bar.ax.yaxis)
    figure.supylabel("layer", **QUIET)
    note(figure, "framed: the set that the chosen plan gives the layer")
    title(figure, _finding(damages))
    return figure


def _damages(found: Mapping[str, Any]) -> pd.DataFrame:
    """A row a layer, a column a set: first those without a damage, which leave a layer dense, then by the mean
    logarithm of their damage."""
    rows = found["damages"]
    if not any(rows.values()):
        raise ValueError("the search measured no damage, so there is nothing to draw")
    damages = pd.DataFrame(list(rows.values()), index=list(rows), dtype=float)
    damages = damages.reindex(columns=list(dict.fromkeys([*found["best"]["sets"].values(), *damages])))
    order = np.log(damages.where(damages > 0)).mean().sort_values(kind="stable", na_position="first")
    return damages[order.index]


def _norm(damages: np.ndarray) -> LogNorm:
    """The scale from the least damage above 0 to the most."""
    above = damages[(damages > 0) & np.isfinite(damages)]
    low, high = (above.min(), above.max()) if above.size else (1.0, 1.0)
    return LogNorm(low, high) if low < high else LogNorm(low / 10, high * 10)


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


def _finding(damages: pd.DataFrame) -> str:
    """Which layer the harshest set of all damages most."""
    harshest = damages.iloc[:, -1]
    worst, least = harshest.idxmax(), harshest.idxmin()
    most = f"{harshest.name} does the most damage in {spoken(worst)}"
    if not 0 < harshest[least] < harshest[worst]:
        return most
    ratio = harshest[worst] / harshest[least]
    return f"{most}, {ratio:{'.3g' if ratio < 1000 else ',.0f'}} times that in {spoken(least)}"
