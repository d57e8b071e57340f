"""A panel of points, and where their names stand, so that none hides another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.transforms import Transform

from nxmiformer.figures.colours import GREY, PAPER
from nxmiformer.figures.style import SMALL, WIDTH, label

PAGE = (WIDTH - 1.6, 2.2)  # of a panel's axes, inches
_CHARACTER, _LINE = SMALL * 0.58 / 72, SMALL * 1.35 / 72  # inches
RINGS = 12  # of places around a point, each farther out


class Box(NamedTuple):
    """A rectangle by its centre and its whole width and height; any unit of length, the same for all."""

    x: float
    y: float
    width: float
    height: float

    def overlaps(self, other: "Box") -> bool:
        """Whether the two have more than an edge in common."""
        apart_x, apart_y = abs(self.x - other.x), abs(self.y - other.y)
        return 2 * apart_x < self.width + other.width and 2 * apart_y < self.height + other.height

    def inside(self, width: float, height: float) -> bool:
        """Whether it lies between (0, 0) and (width, height)."""
        return self.width / 2 <= self.x <= width - self.width / 2 and (
            self.height / 2 <= self.y <= height - self.height / 2
        )


def placed(
    marks: Sequence[Box],
    widths: Sequence[float],
    height: float,
    page: tuple[float, float],
    others: Sequence[Box] = (),
) -> list[Box]:
    """A box for the label of each mark, near it, on the page, over no mark, none of the `others` and no other label.

    `widths` are the labels', `height` is that of all; where there is no room at all a label hides as little as it can.
    """
    labels: list[Box] = []
    for mark, width in zip(marks, widths, strict=True):
        around = [Box(x, y, width, height) for x, y in _around(mark, width, height)]
        near = [box for box in around if box.inside(*page)] or around
        taken = [*marks, *others, *labels]
        labels.append(min(near, key=lambda box: sum(map(box.overlaps, taken))))  # the first of the least
    return labels


def _around(mark: Box, width: float, height: float) -> Iterator[tuple[float, float]]:
    """Centres of a label: beside the mark, above and below it, and then ever farther up and down."""
    beside, above = (mark.width + width) / 2, (mark.height + height) / 2
    yield from ((mark.x + beside, mark.y), (mark.x - beside, mark.y))
    for ring in range(RINGS):
        for up in (above + ring * height / 2, -above - ring * height / 2):
            yield from ((mark.x + side, mark.y + up) for side in (0.0, beside, -beside, beside / 2, -beside / 2))


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
