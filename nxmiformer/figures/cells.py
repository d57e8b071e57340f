"""Cells whose colour is a value, and a frame around those that are meant."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nxmiformer.figures.colours import MUTED, ORANGE
from nxmiformer.figures.style import SMALL, label

COLOURS = LinearSegmentedColormap.from_list("cells", ["#eef5fb", "#9cc5e3", "#3f8cc2", "#0b4a78"])


def framed(ax: Axes, x: int, y: int) -> None:
    """Frame the cell in column `x` and row `y`."""
    ax.add_patch(Rectangle((x + 0.04, y + 0.07), 0.92, 0.86, fill=False, edgecolor=ORANGE, linewidth=1.6))


def scale(figure: Figure, panels: Sequence[Axes], colours: ScalarMappable, name: str) -> Colorbar:
    """What the colours mean, right of the panels; its ticks are still to be placed."""
    bar = figure.colorbar(colours, ax=panels, aspect=26, pad=0.015, fraction=0.04)
    bar.outline.set_visible(False)
    label(bar.ax, name, (0, 1), MUTED, xycoords="axes fraction", textcoords="offset points", xytext=(0, 6))
    bar.ax.tick_params(which="both", length=0, labelsize=SMALL, labelcolor=MUTED)
    return bar
