"""A matrix and its projections."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from nxmiformer.figures.colours import BLUE, INK, MUTED, ORANGE, PAPER
from nxmiformer.figures.style import DASHED, QUIET, SMALL, WIDTH, axes, bare, canvas, title
from nxmiformer.runs import words
from nxmiformer.sets import ConstraintSet

LARGEST = (12, 16)  # a matrix whose numbers can still be read
COLOURS = LinearSegmentedColormap.from_list("weights", [ORANGE, PAPER, BLUE])
SOLID = 0.6  # of the largest magnitude: from here on a number is written in white


def points(w: Tensor, sets: Sequence[ConstraintSet]) -> Figure:
    """A small matrix (out, in), and beside it its nearest point of each set; a zero is a dot.

    Raises:
        ValueError: the matrix has more than 12 rows or 16 columns, or a set rejects it.
    """
    if w.ndim != 2 or w.shape[0] > LARGEST[0] or w.shape[1] > LARGEST[1]:
        most = "{} × {}".format(*LARGEST)
        raise ValueError(f"a matrix of up to {most} can be read, not of {tuple(w.shape)}: take a corner of it")
    nearest = {str(each): each.project(w) for each in sets}
    shown = {"the matrix": w, **nearest}
    down = -(-len(shown) // 2)
    figure = canvas(0.6 + down * (0.4 + 0.26 * w.shape[0]), max(WIDTH, 0.4 + 0.84 * w.shape[1]))
    panels = figure.subplots(down, 2, squeeze=False).flatten()
    for ax, (name, matrix) in zip(panels, shown.items(), strict=False):
        note = name if matrix is w else f"{name}: error {words.percent(_error(w, matrix))}"
        _matrix(ax, matrix, float(w.abs().max()), note)
    for ax in panels[len(shown) :]:
        ax.set_axis_off()
    lost = [f"{name} {words.percent(_error(w, point))}" for name, point in nearest.items()]
    title(figure, f"Share of the squared weights that is lost: {', '.join(lost)}")
    return figure


def response(w: Tensor, sets: Sequence[ConstraintSet]) -> Figure:
    """Every weight of a matrix (out, in) against its value after the projection; a panel a set.

    A matrix of one row is best, as each row of a grid has its own scale.
    """
    figure = canvas(2.9)
    w = w.cpu()
    before = w.flatten().double().numpy()
    for ax, each in zip(figure.subplots(1, len(sets), sharey=True, squeeze=False)[0], sets, strict=True):
        after = each.project(w).flatten().double().numpy()
        axes(ax, f"{each}: {_values(after)}")
        ax.axline((0, 0), slope=1, **DASHED)
        for some, colour in ((after == 0, ORANGE), (after != 0, BLUE)):
            ax.plot(before[some], after[some], "o", color=colour, markersize=3, alpha=0.6, mew=0)
        ax.set_xlabel("weight", **QUIET)
    figure.axes[0].set_ylabel("nearest point", **QUIET)
    last = sets[-1].project(w).flatten().double().numpy()
    share = words.percent(float((last == 0).mean()), 0)
    title(figure, f"{sets[-1]} sets {share} of the weights to zero, and leaves {_values(last)} of {before.size}")
    return figure


def _matrix(ax: Axes, matrix: Tensor, most: float, note: str) -> None:
    """The numbers of a matrix on their colours; `most` is the magnitude of the deepest."""
    values = matrix.cpu().double().numpy()
    ax.pcolormesh(values, cmap=COLOURS, vmin=-most, vmax=most, edgecolors=PAPER, linewidth=1.2)
    bare(ax, note)
    ax.invert_yaxis()
    ax.set_xticks([])
    ax.set_yticks([])
    for (y, x), value in np.ndenumerate(values):
        colour = PAPER if abs(value) > SOLID * most else INK if value else MUTED
        text = f"{value:.2f}".replace("-", "−") if value else "•"
        ax.text(x + 0.5, y + 0.5, text, color=colour, fontsize=SMALL - 1.5, ha="center", va="center")


def _error(w: Tensor, point: Tensor) -> float:
    """||w - point||^2 / ||w||^2."""
    return float((w - point).double().square().sum() / w.double().square().sum())


def _values(after: np.ndarray) -> str:
    count = len(np.unique(after))
    return f"{count} values" if count > 1 else "1 value"
