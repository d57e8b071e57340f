"""What happened over the steps of a run."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from nxmiformer.figures.colours import BLUE, GREY, MUTED, ORANGE
from nxmiformer.figures.style import SMALL, axes, bands, canvas, fitting, label, percentages, score_axis, spread, title
from nxmiformer.runs import words
from nxmiformer.runs.numbers import Run, Series, Span

MANY = 1200  # points that a curve is thinned to
NARROWEST = 0.15  # of all steps: the width that the panel of a short phase has
STILL = 0.1  # of the gap: what changes more over a quarter of the steps is still moving


def training(run: Run) -> Figure:
    """The training loss above, the holdout score below, of every step: a column a phase.

    A phase has a loss of its own (labels, or the dense model's outputs), and so a scale of its own; the scores of all
    phases share theirs, and every one in the panel is of the holdout.
    """
    metric = run.report.task.metric
    loss, holdout = run.series("loss"), run.series(f"holdout/{metric}")
    spans = [span for span in run.spans if _inside(loss, span).steps or _inside(holdout, span).steps]
    figure = canvas(4.8 if holdout.steps else 3.2)
    down = 2 if holdout.steps else 1
    widths = [max(span.stop - span.start, NARROWEST * (spans[-1].stop - spans[0].start)) for span in spans]
    grid = figure.subplots(down, len(spans), sharex="col", squeeze=False, width_ratios=widths)
    for ax, span, width in zip(grid[0], spans, widths, strict=True):
        axes(ax, fitting(span.phase, width / sum(widths)))
        _loss(ax, _inside(loss, span))
        _step_axis(grid[-1][spans.index(span)], span, width / sum(widths))
    grid[0][0].set_ylabel("training loss", fontsize=SMALL, color=MUTED)
    poor = "" if run.report.above_chance else f"; the dense model is {words.NO_BETTER}"
    title(figure, f"The training loss of {spans[-1].phase} {_course(_smooth(_inside(loss, spans[-1]).values))}{poor}")
    if holdout.steps:
        _scores(run, grid[1], spans, holdout)
        title(figure, _ending(run, holdout))
    note = "optimizer steps over the run;  loss: each step, and its running mean, each phase on a scale of its own"
    figure.supxlabel(note, x=0.012, ha="left", fontsize=SMALL, color=MUTED)
    return figure


def _loss(ax: Axes, loss: Series) -> None:
    """The loss of one phase."""
    if not loss.steps:
        return
    ax.plot(*_thin(*loss), color=BLUE, linewidth=0.6, alpha=0.25)
    ax.plot(*_thin(loss.steps, _smooth(loss.values)), color=BLUE, linewidth=1.6)
    peak = float(np.quantile(loss.values, 0.999))
    ax.set_ylim(min(0.0, min(loss.values)), 1.08 * peak if peak > 0 else None)
    ax.yaxis.set_major_locator(MaxNLocator(5))


def _scores(run: Run, panels: Sequence[Axes], spans: Sequence[Span], holdout: Series) -> None:
    """The holdout scores of every phase on one scale, and that of the dense model."""
    metric, dense = run.report.task.metric, run.dense_on_holdout
    for ax, span in zip(panels, spans, strict=True):
        axes(ax, "")
        ax.plot(*_inside(holdout, span), color=BLUE, linewidth=1.4, marker="o", markersize=3)
    marks = [("last", holdout.values[-1], BLUE)] + ([("dense", dense, MUTED)] if dense is not None else [])
    values = [*holdout.values, *(value for _, value, _ in marks)]
    pad = 0.06 * (max(values) - min(values)) or 0.01
    for ax in panels:
        ax.set_ylim(min(values) - pad, max(values) + pad)
        score_axis(ax.yaxis, metric)
        ax.tick_params(labelleft=ax is panels[0])
        if dense is not None:
            ax.axhline(dense, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    panels[0].set_ylabel(f"holdout {metric}", fontsize=SMALL, color=MUTED)
    low, high = panels[-1].get_ylim()
    places = spread([value for _, value, _ in marks], [(high - low) * 0.1] * len(marks))
    for (name, value, colour), place in zip(marks, places, strict=True):
        text = f"{name} {words.score(metric, value)}"
        label(panels[-1], text, (1.02, place), colour, xycoords=("axes fraction", "data"), va="center")


def _ending(run: Run, holdout: Series) -> str:
    """Where the dots end, beside the dense model on the same split."""
    metric, dense, last = run.report.task.metric, run.dense_on_holdout, holdout.values[-1]
    text = f"On the holdout, {metric} ends at {words.score(metric, last)}"
    if dense is None:
        return text
    level = abs(last - dense) < 5e-4
    way = "level with" if level else f"{words.points(metric, last - dense)} {'below' if last < dense else 'above'}"
    caveat = "" if run.report.above_chance else f", which is {words.NO_BETTER}"
    return f"{text}, {way} the dense model{caveat}"


def _course(values: Sequence[float]) -> str:
    return f"goes from {values[0]:.3g} to {values[-1]:.3g}" if values else "was not logged"


def convergence(run: Run) -> Figure:
    """The distance of the weights from their sets, and the share of mask entries that still flip, over ADMM's steps."""
    gap, flips = run.series("gap"), run.series("flips")
    figure = canvas(4.8 if flips.steps else 3.2)
    panels = list(figure.subplots(2 if flips.steps else 1, 1, sharex=True, squeeze=False)[:, 0])
    title(figure, _closing(run, gap, flips))

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
    panels[-1].set_xlabel("optimizer step over the run", fontsize=SMALL, color=MUTED)
    _steps(panels[-1], 8)
    return figure


def _closing(run: Run, gap: Series, flips: Series) -> str:
    """From where to where the gap goes, whether it is still moving there, and when the last mask entry flips."""
    text = f"The gap between the weights and their sets goes from {gap.values[0]:.2g} to {gap.values[-1]:.2g}"
    span = next(span for span in reversed(run.spans) if _inside(gap, span).steps)
    final, tenth = _inside(gap, span), (span.stop - span.start) / 10  # a gap changes at updates alone
    before, after = (_mean(final, end - tenth, end) for end in (span.stop - 2.5 * tenth, span.stop))
    if before > 0 and abs(after / before - 1) > STILL:
        way = "falls" if after < before else "rises"
        text += f", and still {way}: by {words.percent(abs(after / before - 1), 0)} over the last quarter of the steps"
    moved = [step for step, value in zip(*flips, strict=True) if value > 0]
    return f"{text}; the last mask entry flips at step {moved[-1]:,} of {flips.steps[-1]:,}" if moved else text


def _mean(series: Series, start: float, stop: float) -> float:
    """The mean of the values after the step `start`, up to `stop`; 0 where there is none."""
    found = [value for step, value in zip(*series, strict=True) if start < step <= stop]
    return float(np.mean(found)) if found else 0.0


def _decades(ax: Axes) -> None:
    """Label the powers of ten of a logarithmic axis, and what is between them where it spans few."""
    low, high = ax.get_ylim()
    ax.yaxis.set_minor_locator(NullLocator())
    if high < 50 * low:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _step_axis(ax: Axes, span: Span, share: float) -> None:
    """The steps of one phase, on an axis of this share of the figure's width."""
    ax.set_xlim(span.start, span.stop)
    _steps(ax, max(1, round(8 * share)))


def _steps(ax: Axes, most: int) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(most, integer=True, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _by_phase(run: Run, series: Series) -> list[Series]:
    """The series cut at the phases: a line across two of them would show a change that no step made."""
    return [cut for span in run.spans if (cut := _inside(series, span)).steps]


def _inside(series: Series, span: Span) -> Series:
    """What the series has in a phase."""
    found = [(step, value) for step, value in zip(*series, strict=True) if span.start < step <= span.stop]
    return Series([step for step, _ in found], [value for _, value in found])


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
