"""A panel of points, and their names."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.transforms import Transform

from nxmiformer.figures.labels import Box, placed
from nxmiformer.figures.style import GREY, PAPER, SMALL, WIDTH, label

PAGE = (WIDTH - 1.6, 2.2)  # of a panel's axes, inches
_CHARACTER, _LINE = SMALL * 0.58 / 72, SMALL * 1.35 / 72  # inches


@dataclass(frozen=True)
class Plane:
    """The axes of a panel, whose scales and limits are set, as a page of this width and height in inches."""

    ax: Axes
    page: tuple[float, float] = PAGE

    @property
    def _relative(self) -> Transform:
        """From data to shares of the page."""
        return self.ax.transScale + self.ax.transLimits

    def inches(self, x: float, y: float) -> tuple[float, float]:
        """Where the data (x, y) stand on the page."""
        across, up = self._relative.transform((x, y))
        return float(across) * self.page[0], float(up) * self.page[1]

    def data(self, x: float, y: float) -> tuple[float, float]:
        """What stands at a place of the page."""
        across, up = self._relative.inverted().transform((x / self.page[0], y / self.page[1]))
        return float(across), float(up)

    def name(
        self, marks: Sequence[Box], names: Sequence[str], colours: Sequence[str], others: Sequence[Box] = ()
    ) -> None:
        """Write the names near their marks, which lie on the page, and over no other mark; with a thin line to those
        that found no place beside them."""
        widths = [len(name) * _CHARACTER + 0.04 for name in names]
        backed = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6}
        boxes = placed(marks, widths, _LINE, self.page, others)
        for mark, name, colour, box in zip(marks, names, colours, boxes, strict=True):
            place = self.data(box.x, box.y)
            if abs(box.y - mark.y) > _LINE / 2:
                self.ax.plot(*zip(self.data(mark.x, mark.y), place, strict=True), color=GREY, linewidth=0.7, zorder=2)
            label(self.ax, name, place, colour, ha="center", va="center", bbox=backed, zorder=3.5)
