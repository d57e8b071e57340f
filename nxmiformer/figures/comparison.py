"""Which of several plans, methods or settings scores best."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nxmiformer.figures.colours import BLUE, INK, MUTED, RULE, SLATE
from nxmiformer.figures.style import TEXT, axes, canvas, label, note, score_axis, title
from nxmiformer.runs import words
from nxmiformer.runs.groups import Group, Panel, panels, tally, winners
from nxmiformer.tasks.scale import scale

RETENTION = "retention"


def comparison(frame: pd.DataFrame, value: str = RETENTION, by: str | Sequence[str] = "plan") -> Figure:
    """The score of each group of runs, mean and standard deviation over the seeds, best first; one panel a task.

    Args:
        frame: a row a run, as `load_runs` gives them; a task is cut further where models or splits differ. Runs that
            have no `value` are left out, and counted below.
        value: "retention", or a column of scores such as "packed".
        by: the column, or columns, whose values name the groups.

    Raises:
        ValueError: a column is missing, no run has a value, or runs of a group differ in more than their seed.
    """
    drawn = panels(frame, by, [value])
    ordered = [_ordered(panel, value) for panel in drawn]
    figure = canvas(0.75 + sum(0.7 + 0.27 * len(panel.groups) for panel in drawn))
    heights = [len(panel.groups) + 1.5 for panel in drawn]
    axes_of = figure.subplots(len(drawn), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, panel, groups in zip(axes_of, drawn, ordered, strict=True):
        _draw(ax, panel, groups, value)
    note(figure, tally(frame, drawn))
    title(figure, _finding(drawn, ordered, value))
    return figure


def _ordered(panel: Panel, value: str) -> list[Group]:
    """The groups, best first."""
    return sorted(panel.groups, key=lambda group: group.mean(value), reverse=not words.lower_is_better(panel.metric))


def _draw(ax: Axes, panel: Panel, groups: list[Group], value: str) -> None:
    what = f"{_of_the_dense(panel)} {panel.metric}" if value == RETENTION else panel.called(value)
    axes(ax, f"{panel.name}: {what}\n")  # above the word at the top of the dense line
    ax.grid(False)
    ax.grid(axis="x", color=RULE, linewidth=0.6)
    for y, group in enumerate(groups):
        colour = BLUE if y == 0 else SLATE
        mean, deviation = group.mean(value), group.deviation(value)
        ax.plot(group.values(value), [y] * len(group.rows), "o", color=colour, markersize=3.5, alpha=0.35, mew=0)
        ax.plot([mean - deviation, mean + deviation], [y, y], color=colour, linewidth=1.6)
        ax.plot(mean, y, "o", color=colour, markersize=6.5)
        text = _text(group, value, panel.metric)
        label(ax, text, (1.015, y), colour, xycoords=("axes fraction", "data"), va="center", fontsize=TEXT)
    if value == RETENTION or "dense" in groups[0].rows:
        dense = 1.0 if value == RETENTION else panel.dense
        ax.axvline(dense, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        label(ax, "dense", (dense, 1.0), MUTED, xycoords=("data", "axes fraction"), ha="center", va="bottom")
    ax.set_yticks(range(len(groups)), [group.name for group in groups])
    ax.tick_params(axis="y", labelcolor=INK, labelsize=TEXT)
    ax.set_ylim(len(groups) - 0.4, -0.6)
    if value != RETENTION or not words.lower_is_better(panel.metric):
        score_axis(ax.xaxis, "" if value == RETENTION else panel.metric)


def _of_the_dense(panel: Panel) -> str:
    return "times the dense" if words.lower_is_better(panel.metric) else "share of the dense"


def _text(group: Group, value: str, metric: str) -> str:
    """The mean, and the deviation where there is one."""
    if scale(metric) != "share" and (value != RETENTION or words.lower_is_better(metric)):
        mean, deviation = (
            f"{each:.3f} ×" if value == RETENTION else words.score(metric, each)
            for each in (group.mean(value), group.deviation(value))
        )
        return f"{mean} ± {deviation}" if len(group.rows) > 1 else mean
    digits = 1 if value == RETENTION else 2
    mean, deviation = f"{100 * group.mean(value):.{digits}f}", f"{100 * group.deviation(value):.{digits}f}"
    return (f"{mean} ± {deviation}" if len(group.rows) > 1 else mean) + " %"


def _finding(drawn: list[Panel], ordered: list[list[Group]], value: str) -> str:
    if len(drawn) > 1:
        best = [(groups[0].name, panel.name) for panel, groups in zip(drawn, ordered, strict=True)]
        said = ("retains most", "Retains most") if value == RETENTION else ("scores best", "Best score")
        return winners(best, *said)
    (panel,), (groups,) = drawn, ordered
    first, score = groups[0], _text(groups[0], value, panel.metric)
    finds = f"has {score} {panel.called(value)}"
    if value == RETENTION:
        finds = f"retains {score} of the dense {panel.metric}"
    if value == RETENTION and words.lower_is_better(panel.metric):
        finds = f"has {score} the dense {panel.metric}"
    if len(groups) == 1:
        return f"{first.name} {finds}"
    apart = abs(first.mean(value) - groups[1].mean(value))
    level = apart <= max(first.deviation(value), groups[1].deviation(value))
    return f"{first.name} {finds}, {'level with' if level else 'ahead of'} {groups[1].name}"
