"""Draw the figures of docs/concepts.md: python docs/figures.py"""

from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nxmiformer import NM, ConstraintSet, Grid, Then

FOLDER = Path(__file__).parent / "figures"
INK, BLUE, GREY, ORANGE, GREEN = "#38424c", "#0f6cab", "#9aa6b2", "#d2691e", "#2f6d3a"
PHASES = (
    ("dense", "fine-tune", GREY),
    ("calibration", "reconstruct\neach layer", ORANGE),
    ("admm", "train, pulled\ntowards the sets", BLUE),
    ("finish", "train under the\nsparsity found", GREEN),
    ("pack", "verify, pack,\nread back, score", INK),
)
PLANS = {"INT8": Grid(8), "2:4 + INT8": Then(NM(2, 4), Grid(8)), "INT4": Grid(4), "2:4 + INT4": Then(NM(2, 4), Grid(4))}
PLANS |= {"1:4 + INT4": Then(NM(1, 4), Grid(4))}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    mpl.rcParams.update({"svg.hashsalt": "nxmiformer", "svg.fonttype": "none", "font.family": "sans-serif"})
    for name, figure in (("projection", projection()), ("phases", phases()), ("bits", bits())):
        figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None}, facecolor="white")


def projection() -> Figure:
    """A weight matrix of 4 rows and 8 columns, and its nearest points in three sets."""
    w = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))
    sets: dict[str, ConstraintSet | None] = {
        "W": None,
        "2:4": NM(2, 4),
        "INT4": Grid(4),
        "2:4 + INT4": PLANS["2:4 + INT4"],
    }
    figure = Figure(figsize=(10.0, 2.2), layout="constrained")
    for axes, (name, constraint) in zip(figure.subplots(1, len(sets)), sets.items(), strict=True):
        _matrix(axes, w if constraint is None else constraint.project(w))
        axes.set_title(name, fontsize=10, color=INK)
    return figure


def _matrix(axes: Axes, w: torch.Tensor) -> None:
    axes.imshow(w.abs().where(w != 0, torch.nan).numpy(), cmap="Blues", vmin=0, vmax=3.2)
    for row in range(w.shape[0]):
        for column in range(w.shape[1]):
            value = w[row, column].item()
            colour = "white" if abs(value) > 1.8 else INK
            axes.text(column, row, f"{value:.1f}" if value else "0", ha="center", va="center", fontsize=7, color=colour)
    axes.axvline(3.5, color=INK, linewidth=1)
    axes.set_xticks([])
    axes.set_yticks([])


def phases() -> Figure:
    """What follows what in the recipe admm."""
    figure = Figure(figsize=(10.0, 1.7))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, len(PHASES))
    axes.set_ylim(0, 1)
    axes.axis("off")
    for place, (name, what, colour) in enumerate(PHASES):
        box = {"boxstyle": "round,pad=0.5", "facecolor": colour, "edgecolor": "none"}
        axes.text(place + 0.5, 0.75, name, ha="center", va="center", fontsize=12, color="white", bbox=box)
        axes.text(place + 0.5, 0.28, what, ha="center", va="center", fontsize=10, color=INK)
        if place:
            arrow = {"arrowstyle": "->", "color": INK}
            axes.annotate("", (place + 0.14, 0.75), (place - 0.14, 0.75), arrowprops=arrow)
    return figure


def bits() -> Figure:
    """Bits a weight of a layer of 768 x 768, by what they are spent on."""
    figure = Figure(figsize=(8.0, 2.6), layout="constrained")
    axes = figure.subplots()
    for place, constraint in enumerate(PLANS.values()):
        stored, left = constraint.storage((768, 768)), 0.0
        for name, colour in (("values", BLUE), ("indices", ORANGE), ("scales", GREEN)):
            width = getattr(stored, name) / 768**2
            axes.barh(place, width, left=left, color=colour, label=name if not place else None)
            left += width
        axes.text(left + 0.1, place, f"{left:.2f} bits, {left / 32:.1%} of float32", va="center", fontsize=9, color=INK)
    axes.set_yticks(range(len(PLANS)), list(PLANS))
    axes.invert_yaxis()
    axes.set_xlim(0, 11)
    axes.set_xlabel("bits a weight, of a layer of 768 × 768")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return figure


if __name__ == "__main__":
    main()
