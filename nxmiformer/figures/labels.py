"""Where the names of points stand, so that none hides another."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

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
