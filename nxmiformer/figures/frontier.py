"""Score against size, over many runs."""

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nxmiformer.figures.colours import BLUE, MUTED, PAPER, SLATE
from nxmiformer.figures.placing import PAGE, Box, Plane
from nxmiformer.figures.style import axes, canvas, note, reference, score_axis, size_axis, title
from nxmiformer.runs import words
from nxmiformer.runs.groups import Group, Panel, panels, tally, winners

ENOUGH = 0.99  # of the dense score
_MARK = 0.14  # inches


def frontier(
    frame: pd.DataFrame, score: str = "packed", size: str = "packed_model_bytes", by: str | Sequence[str] = "plan"
) -> Figure:
    """Score against bytes, mean and standard deviation over the seeds. The groups that no other beats in both are
    joined. Groups of the same size stand side by side.

    Args:
        frame: a row a run, as `load_runs` gives them. One panel a task, cut further where models or splits differ.
        score: a column of scores.
        size: a column of bytes.
        by: the column, or columns, whose values name the groups.

    Raises:
        ValueError: a column is missing, no run has both values, a size is not positive, or runs of a group differ in
            more than their seed.
    """
    drawn = panels(frame, by, [score, size, "dense"])
    if (least := frame[size].min()) <= 0:
        raise ValueError(f"the column {size!r} holds {least:g}: a logarithmic axis has only positive sizes")
    figure = canvas(0.7 + (PAGE[1] + 0.75) * len(drawn))
    for ax, panel in zip(figure.subplots(len(drawn), 1, squeeze=False)[:, 0], drawn, strict=True):
        _draw(ax, panel, score, size)
    note(figure, f"{tally(frame, drawn)};  joined: what no other beats in both")
    title(figure, _finding(drawn, score, size))
    return figure


def non_dominated(costs: Sequence[float], worths: Sequence[float]) -> list[int]:
    """The places, cheapest first, of what nothing else matches in both cost (less is better) and worth and beats in
    one of them."""
    pairs = list(zip(costs, worths, strict=True))
    best = [
        i
        for i, (cost, worth) in enumerate(pairs)
        if not any(c <= cost and w >= worth and (c, w) != (cost, worth) for c, w in pairs)
    ]
    return sorted(best, key=lambda i: pairs[i])


def _draw(ax: Axes, panel: Panel, score: str, size: str) -> None:
    axes(ax, f"{panel.name}: {panel.called(score)} against bytes{_of(size)}, log scale")
    _limit(ax, panel, score, size)
    best, plane = _best(panel, score, size), Plane(ax)
    reference(ax, panel.dense, f"dense\n{words.score(panel.metric, panel.dense)}")
    marks = _marks(panel, plane, score, size)
    places = {group.name: plane.data(mark.x, mark.y) for group, mark in zip(panel.groups, marks, strict=True)}
    ax.plot(*zip(*(places[group.name] for group in best), strict=True), color=BLUE, linewidth=1.2, alpha=0.5, zorder=2)
    for group in panel.groups:
        (x, y), deviation = places[group.name], group.deviation(score)
        colour = BLUE if group in best else SLATE
        ax.plot([x, x], [y - deviation, y + deviation], color=colour, linewidth=1.4, zorder=3)
        ax.plot(x, y, "o", color=colour, markersize=6.5, markeredgecolor=PAPER, zorder=4)
    colours = [BLUE if group in best else MUTED for group in panel.groups]
    plane.name(marks, [group.name for group in panel.groups], colours)
    score_axis(ax.yaxis, panel.metric)
    size_axis(ax)


def _best(panel: Panel, score: str, size: str) -> list[Group]:
    """The groups that no other beats in both, the smallest first."""
    sign = -1 if words.lower_is_better(panel.metric) else 1
    groups = panel.groups
    chosen = non_dominated([group.mean(size) for group in groups], [sign * group.mean(score) for group in groups])
    return [groups[i] for i in chosen]


def _limit(ax: Axes, panel: Panel, score: str, size: str) -> None:
    """Room for the points, the dense score, and names around the outermost."""
    sizes = [group.mean(size) for group in panel.groups]
    ends = [group.mean(score) + side * group.deviation(score) for group in panel.groups for side in (-1, 1)]
    low, high = min(*ends, panel.dense), max(*ends, panel.dense)
    pad = 0.18 * (high - low) or 0.01
    margin = math.exp(0.2 * max(math.log(max(sizes) / min(sizes)), math.log(1.05)))
    ax.set_xscale("log")
    ax.set_xlim(min(sizes) / margin, max(sizes) * margin)
    ax.set_ylim(low - pad, high + pad)


def _marks(panel: Panel, plane: Plane, score: str, size: str) -> list[Box]:
    """The points on the page, with their deviations; those of one size stand side by side."""
    sizes = [group.mean(size) for group in panel.groups]
    marks = []
    for number, group in enumerate(panel.groups):
        before, alike = sizes[:number].count(sizes[number]), sizes.count(sizes[number])
        x, y = plane.inches(sizes[number], group.mean(score))
        deviation = plane.inches(sizes[number], group.mean(score) + group.deviation(score))[1] - y
        marks.append(Box(x + _MARK * (before - (alike - 1) / 2), y, _MARK, _MARK + 2 * deviation))
    return marks


def _keeping(panel: Panel, score: str, size: str) -> list[Group]:
    """The groups that retain `ENOUGH` of the dense score (or lose as much, of a loss), the smallest first. None if the
    dense model is no better than chance."""
    if not panel.above_chance:
        return []
    loss, dense = words.lower_is_better(panel.metric), panel.dense
    least, most = (-math.inf, (2 - ENOUGH) * dense) if loss else (ENOUGH * dense, math.inf)
    kept = [group for group in panel.groups if least <= group.mean(score) <= most]
    return sorted(kept, key=lambda group: (group.mean(size), group.name))


def _finding(drawn: list[Panel], score: str, size: str) -> str:
    enough = words.percent(ENOUGH, 0)
    smallest = [groups[0].name if (groups := _keeping(panel, score, size)) else None for panel in drawn]
    if len(drawn) > 1:
        pairs = [(name or "none", panel.name) for name, panel in zip(smallest, drawn, strict=True)]
        what = f"smallest to retain {enough} of the dense score"
        return winners(pairs, f"is the {what}", f"The {what}")
    (panel,) = drawn
    if kept := _keeping(panel, score, size):
        group, text = kept[0], f"is the smallest to retain {enough} of the dense {panel.metric}"
    else:
        group = _best(panel, score, size)[-1]
        nothing = f"nothing retains {enough} of the dense {panel.metric}"
        text = f"scores best, and {nothing if panel.above_chance else f'a dense model is {words.NO_BETTER}'}"
    value = words.score(panel.metric, group.mean(score))
    return f"{group.name} {text}: {value} in {words.size(group.mean(size))}{_of(size)}"


def _of(size: str) -> str:
    """What the sizes of a column of `load_runs` are the sizes of."""
    return {"packed_model_bytes": " of the file", "packed_bytes": " of the layers"}.get(size, "")
