"""What is drawn of a projection is what the projection gives."""

import pytest
import torch

from nxmiformer.figures.costs import costs
from nxmiformer.figures.points import points, response
from nxmiformer.sets import NM, Grid, Then

SETS = [NM(2, 4), Grid(4), Then(NM(2, 4), Grid(4)), Grid(1)]
WEIGHT = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


def written(value):
    return f"{value:.2f}".replace("-", "−") if value else "•"


def test_the_matrix_and_its_nearest_points_are_written_number_by_number():
    figure = points(WEIGHT, SETS)
    figure.draw_without_rendering()
    for ax, matrix in zip(figure.axes, [WEIGHT, *(each.project(WEIGHT) for each in SETS)], strict=False):
        assert [text.get_text() for text in ax.texts] == [written(value) for value in matrix.flatten().tolist()]


@pytest.mark.parametrize("shape", [(1, 4), (6, 8), (12, 16)])
def test_every_number_stays_in_its_cell(shape):
    figure = points(-10 * torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 1, SETS[:1])
    figure.draw_without_rendering()
    for ax in figure.axes:
        (x0, y0), (x1, y1) = ax.transData.transform([(0, 0), (1, 1)])
        boxes = [text.get_window_extent() for text in ax.texts]
        assert all(box.width < abs(x1 - x0) and box.height < abs(y1 - y0) for box in boxes)


def test_a_matrix_too_large_to_be_read_is_refused():
    with pytest.raises(ValueError, match=r"up to 12 × 16 can be read, not of \(13, 4\)"):
        points(torch.ones(13, 4), SETS)
    with pytest.raises(ValueError, match="rejects a weight of shape"):
        points(torch.ones(4, 6), [NM(2, 4)])


def test_a_response_has_each_weight_and_what_is_in_its_place():
    row = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    for ax, each in zip(response(row, SETS).axes, SETS, strict=True):
        drawn = {place for line in ax.lines[1:] for place in zip(*line.get_data(), strict=True)}
        assert drawn == set(zip(row[0].tolist(), each.project(row)[0].tolist(), strict=True))


@pytest.mark.parametrize("shape", [(64, 64), (16, 256)])
def test_the_bars_are_as_long_as_what_packing_stores(shape):
    (ax,) = costs(SETS, shape).axes
    ends = {}
    for bar in ax.patches:
        y = round(bar.get_y() + bar.get_height() / 2)
        ends[y] = max(ends.get(y, 0), bar.get_x() + bar.get_width())
    for y, each in enumerate(SETS):
        packed = each.pack(each.project(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
        assert ends[y] == pytest.approx(8 * sum(part.nbytes for part in packed.values()) / (shape[0] * shape[1]))


def test_costs_of_a_rejected_shape_are_not_drawn():
    with pytest.raises(ValueError, match=r"2:4 rejects shape \(4, 6\)"):
        costs([NM(2, 4)], (4, 6))
