"""What happened over the steps of a run."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from nxmiformer.figures.style import (
    BLUE,
    GREY,
    MUTED,
    ORANGE,
    SMALL,
    axes,
    bands,
    canvas,
    label,
    percentages,
    score_axis,
    spread,
    title,
)
from nxmiformer.runs import words
from nxmiformer.runs.numbers import Run, Series

MANY = 1200  # points that a curve is thinned to


def training(run: Run) -> Figure:
    """The training loss and the holdout score over the steps of all phases."""
    metric = run.report.task.metric
    loss, holdout = run.series("loss"), run.series(f"holdout/{metric}")
    figure = canvas(4.8 if holdout.steps else 3.2)
    panels = list(figure.subplots(2 if holdout.steps else 1, 1, sharex=True, squeeze=False)[:, 0])
    final, dense = run.score("final"), run.report.scores["dense"][metric]
    if final is None:
        title(figure, f"The training loss goes from {loss.values[0]:.3g} to {_smooth(loss.values)[-1]:.3g}")
    else:
        way = "level with" if abs(final - dense) < 5e-4 else "below" if final < dense else "above"
        apart = "" if way == "level with" else f"{words.points(final - dense)} "
        text = f"{metric} ends at {words.percent(final)}, {apart}{way} the dense model"
        title(figure, text[0].upper() + text[1:])

    axes(panels[0], "training loss: each step, and its running mean\n")
    for steps, values in _by_phase(run, loss):
        panels[0].plot(*_thin(steps, values), color=BLUE, linewidth=0.6, alpha=0.25)
        panels[0].plot(*_thin(steps, _smooth(values)), color=BLUE, linewidth=1.6)
    peak = float(np.quantile(loss.values, 0.999))
    panels[0].set_ylim(min(0.0, min(loss.values)), 1.08 * peak if peak > 0 else None)
    panels[0].yaxis.set_major_locator(MaxNLocator(5))
    if holdout.steps:
        axes(panels[1], f"holdout {metric}")
        panels[1].axhline(dense, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        for steps, values in _by_phase(run, holdout):
            panels[1].plot(steps, values, color=BLUE, linewidth=1.4, marker="o", markersize=3)
        score_axis(panels[1].yaxis, metric)
        low, high = panels[1].get_ylim()
        last = holdout.values[-1]
        ends = spread([dense, last], [(high - low) * 0.1] * 2)
        for name, value, place, colour in (("dense", dense, ends[0], MUTED), ("last", last, ends[1], BLUE)):
            text = f"{name} {words.score(metric, value)}"
            label(panels[1], text, (1.01, place), colour, xycoords=("axes fraction", "data"), va="center")
    bands(run, panels, 0, max(span.stop for span in run.spans))
    _step_axis(panels[-1])
    return figure


def convergence(run: Run) -> Figure:
    """The distance of the weights from their sets, and the share of mask entries that still flip, over ADMM's steps."""
    gap, flips = run.series("gap"), run.series("flips")
    figure = canvas(4.8 if flips.steps else 3.2)
    panels = list(figure.subplots(2 if flips.steps else 1, 1, sharex=True, squeeze=False)[:, 0])
    text = f"The gap between the weights and their sets goes from {gap.values[0]:.2g} to {gap.values[-1]:.2g}"
    moved = [step for step, value in zip(*flips, strict=True) if value > 0]
    title(figure, f"{text}; the last mask entry flips at step {moved[-1]:,}" if moved else text)

    axes(panels[0], "gap ‖W − Z‖ / ‖W‖, log scale: all weights, and single layers in grey\n")
    panels[0].set_yscale("log")
    for series in run.layered("gap").values():
        for steps, values in _by_phase(run, series):
            panels[0].plot(*_thin(steps, _positive(values)), color=GREY, linewidth=0.7, alpha=0.6)
    for steps, values in _by_phase(run, gap):
        panels[0].plot(*_thin(steps, _positive(values)), color=BLUE, linewidth=1.8)
    _decades(panels[0])
    if flips.steps:
        axes(panels[1], "mask entries that flip at an update, share of all weights")
        for steps, values in _by_phase(run, flips):
            panels[1].plot(*_thin(steps, values), color=ORANGE, linewidth=1.4)
        percentages(panels[1].yaxis)
        panels[1].set_ylim(bottom=0)
    spans = [span for span in run.spans if any(span.start < step <= span.stop for step in gap.steps)]
    first, last = spans[0].start, spans[-1].stop
    slack = 0.15 * (last - first)  # of the neighbouring phases, no more: they show no gap
    bands(run, panels, max(0, first - slack), min(max(span.stop for span in run.spans), last + slack))
    _step_axis(panels[-1])
    return figure


def _decades(ax: Axes) -> None:
    """Label the powers of ten of a logarithmic axis, and what is between them where it spans few."""
    low, high = ax.get_ylim()
    ax.yaxis.set_minor_locator(NullLocator())
    if high < 50 * low:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _step_axis(ax: Axes) -> None:
    ax.set_xlabel("optimizer step over the run", fontsize=SMALL, color=MUTED)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _by_phase(run: Run, series: Series) -> list[Series]:
    """The series cut at the phases: a line across two of them would show a change that no step made."""
    cut = []
    for span in run.spans:
        inside = [(step, value) for step, value in zip(*series, strict=True) if span.start < step <= span.stop]
        if inside:
            cut.append(Series([step for step, _ in inside], [value for _, value in inside]))
    return cut


def _smooth(values: Sequence[float]) -> list[float]:
    """The mean over a window of 5 % of the values, narrower at both ends."""
    width = max(1, len(values) // 20) | 1
    kernel = np.ones(width)
    total = np.convolve(values, kernel, "full")[width // 2 : width // 2 + len(values)]
    count = np.convolve(np.ones(len(values)), kernel, "full")[width // 2 : width // 2 + len(values)]
    return [float(value) for value in total / count]


def _positive(values: Sequence[float]) -> list[float]:
    return [value if value > 0 else math.nan for value in values]


def _thin(steps: Sequence[int], values: Sequence[float]) -> tuple[Sequence[int], Sequence[float]]:
    every = -(-len(steps) // MANY)
    return steps[::every], values[::every]
