"""The storage of the points of a set."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nxmiformer.figures.colours import BLUE, INK, ORANGE, SKY
from nxmiformer.figures.style import SMALL, TEXT, axes, canvas, label, title
from nxmiformer.plan.compression import FLOAT
from nxmiformer.runs import words
from nxmiformer.sets import ConstraintSet
from nxmiformer.sets.base import Shape

PARTS = {"values": BLUE, "indices": SKY, "scales": ORANGE}


def costs(sets: Sequence[ConstraintSet], shape: Shape) -> Figure:
    """The bits that each set stores for a weight of a matrix of this shape (out, in): values, indices, scales.

    Raises:
        ValueError: a set rejects the shape; the message says why.
    """
    for each in sets:
        if reason := each.rejects(shape):
            raise ValueError(f"{each} rejects shape {tuple(shape)}: {reason}")
    count = shape[0] * shape[1]
    stored = [each.storage(shape) for each in sets]
    figure = canvas(1.0 + 0.36 * len(sets))
    ax = figure.subplots()
    axes(ax, f"bits stored for a weight of a {shape[0]} × {shape[1]} matrix, and their share of the 32 when dense\n\n")
    ax.grid(False)
    left = [0.0] * len(sets)
    for part, colour in PARTS.items():
        bits = [getattr(storage, part) / count for storage in stored]
        ax.barh(range(len(sets)), bits, 0.62, left, color=colour, label=part)
        left = [before + more for before, more in zip(left, bits, strict=True)]
    for y, total in enumerate(left):
        text = f"{total:.3g} bits, {words.percent(total / FLOAT)}"
        label(ax, text, (total, y), va="center", textcoords="offset points", xytext=(6, 0))
    ax.set_yticks(range(len(sets)), [str(each) for each in sets])
    ax.tick_params(axis="y", labelcolor=INK, labelsize=TEXT)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.25 * max(left))
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1), "borderpad": 0, "borderaxespad": 0.2}
    ax.legend(**place, ncols=3, frameon=False, fontsize=SMALL, labelcolor=INK, handlelength=1)
    least, smallest = min(left), sets[left.index(min(left))]
    title(figure, f"{smallest} is the smallest: {least:.3g} bits a weight, {FLOAT / least:.3g} times less")
    return figure
