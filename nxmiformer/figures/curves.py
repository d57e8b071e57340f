"""The course of a run over its steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from nxmiformer.figures.colours import BAND, BLUE, GREY, MUTED, ORANGE, RULE
from nxmiformer.figures.style import QUIET, axes, canvas, fitting, label, note, percentages, score_axis, spread, title
from nxmiformer.runs import words
from nxmiformer.runs.numbers import Run, Series, Span

MANY = 1200  # points that a curve is thinned to
NARROWEST = 0.15  # of all steps: the width that the panel of a short phase has
STILL = 0.1  # of the gap: what changes more over a quarter of the steps is still moving


def training(run: Run) -> Figure:
    """The training loss above, the holdout score below, of every step: a column a phase.

    Each phase has its own loss (labels, or the dense model's outputs), and so its own scale. The scores of all phases
    share one scale, and all scores in the panel are of the holdout.
    """
    metric = run.report.task.metric
    loss, holdout = run.series("loss"), run.series(f"holdout/{metric}")
    spans = [span for span in run.spans if loss.inside(span).steps or holdout.inside(span).steps]
    figure = canvas(4.8 if holdout.steps else 3.2)
    widths = [max(span.stop - span.start, NARROWEST * (spans[-1].stop - spans[0].start)) for span in spans]
    down = 2 if holdout.steps else 1
    grid = figure.subplots(down, len(spans), sharex="col", squeeze=False, width_ratios=widths)
    for upper, lowest, span, width in zip(grid[0], grid[-1], spans, widths, strict=True):
        share = width / sum(widths)
        axes(upper, fitting(span.phase, share))
        _loss(upper, loss.inside(span))
        lowest.set_xlim(span.start, span.stop)
        _steps(lowest, max(1, round(8 * share)))
    grid[0][0].set_ylabel("training loss", **QUIET)
    if holdout.steps:
        _scores(run, grid[1], spans, holdout)
    title(figure, _ending(run, holdout) if holdout.steps else _course(run, loss.inside(spans[-1]), spans[-1]))
    note(
        figure, "optimizer steps over the run;  loss: each step, and its running mean, each phase on a scale of its own"
    )
    return figure


def _loss(ax: Axes, loss: Series) -> None:
    """The loss of one phase."""
    if not loss.steps:
        return
    _plot(ax, loss, BLUE, linewidth=0.6, alpha=0.25)
    _plot(ax, Series(loss.steps, _smooth(loss.values)), BLUE, linewidth=1.6)
    peak = float(np.quantile(loss.values, 0.999))
    ax.set_ylim(min(0.0, min(loss.values)), 1.08 * peak if peak > 0 else None)
    ax.yaxis.set_major_locator(MaxNLocator(5))


def _scores(run: Run, panels: Sequence[Axes], spans: Sequence[Span], holdout: Series) -> None:
    """The holdout scores of every phase on one scale, and that of the dense model."""
    metric, dense = run.report.task.metric, run.dense_on_holdout
    marks = [("last", holdout.values[-1], BLUE)] + ([("dense", dense, MUTED)] if dense is not None else [])
    values = [*holdout.values, *(value for _, value, _ in marks)]
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.01
    for ax, span in zip(panels, spans, strict=True):
        axes(ax, "")
        ax.plot(*holdout.inside(span), color=BLUE, linewidth=1.4, marker="o", markersize=3)
        ax.set_ylim(low - pad, high + pad)
        score_axis(ax.yaxis, metric)
        ax.tick_params(labelleft=ax is panels[0])
        if dense is not None:
            ax.axhline(dense, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    panels[0].set_ylabel(f"holdout {metric}", **QUIET)
    places = spread([value for _, value, _ in marks], [(high - low + 2 * pad) * 0.1] * len(marks))
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


def _course(run: Run, loss: Series, span: Span) -> str:
    """From where to where the loss of the last phase goes."""
    values = _smooth(loss.values)
    course = f"goes from {values[0]:.3g} to {values[-1]:.3g}" if values else "was not logged"
    poor = "" if run.report.above_chance else f"; the dense model is {words.NO_BETTER}"
    return f"The training loss of {span.phase} {course}{poor}"


def convergence(run: Run) -> Figure:
    """The distance of the weights from their sets, and the share of mask entries that still flip, over ADMM's steps."""
    gap, flips = run.series("gap"), run.series("flips")
    figure = canvas(4.8 if flips.steps else 3.2)
    panels = list(figure.subplots(2 if flips.steps else 1, 1, sharex=True, squeeze=False)[:, 0])
    title(figure, _closing(run, gap, flips))

    axes(panels[0], "gap ‖W − Z‖ / ‖W‖, log scale: all weights, and single layers in grey\n")
    panels[0].set_yscale("log", nonpositive="mask")
    for series in run.layered("gap").values():
        _by_phase(panels[0], run, series, GREY, linewidth=0.7, alpha=0.6)
    _by_phase(panels[0], run, gap, BLUE, linewidth=1.8)
    _decades(panels[0])
    if flips.steps:
        axes(panels[1], "mask entries that flip at an update, share of all weights")
        _by_phase(panels[1], run, flips, ORANGE, linewidth=1.4)
        percentages(panels[1].yaxis)
        panels[1].set_ylim(bottom=0)
    spans = [span for span in run.spans if gap.inside(span).steps]
    first, last = spans[0].start, spans[-1].stop
    slack = 0.15 * (last - first)  # of the neighbouring phases, no more: they show no gap
    _bands(run, panels, max(0, first - slack), min(max(span.stop for span in run.spans), last + slack))
    panels[-1].set_xlabel("optimizer step over the run", **QUIET)
    _steps(panels[-1], 8)
    return figure


def _closing(run: Run, gap: Series, flips: Series) -> str:
    """The first and the last gap, whether it still moves, and when the last mask entry flips."""
    text = f"The gap between the weights and their sets goes from {gap.values[0]:.2g} to {gap.values[-1]:.2g}"
    span = next(span for span in reversed(run.spans) if gap.inside(span).steps)
    tenth = (span.stop - span.start) / 10  # a gap changes at updates alone
    windows = [Span(span.phase, end - tenth, end) for end in (span.stop - 2.5 * tenth, span.stop)]
    before, after = (float(np.mean(gap.inside(window).values or [0.0])) for window in windows)
    if before > 0 and abs(after / before - 1) > STILL:
        way = "falls" if after < before else "rises"
        text += f", and still {way}: by {words.percent(abs(after / before - 1), 0)} over the last quarter of the steps"
    moved = [step for step, value in zip(*flips, strict=True) if value > 0]
    return f"{text}; the last mask entry flips at step {moved[-1]:,} of {flips.steps[-1]:,}" if moved else text


def _bands(run: Run, panels: Sequence[Axes], first: float, last: float) -> None:
    """Shade every other phase between the steps `first` and `last`, and name the phases above the topmost panel."""
    for number, span in enumerate(run.spans):
        start, stop = max(first, span.start), min(last, span.stop)
        if start >= stop:
            continue
        for panel in panels:
            if number % 2:
                panel.axvspan(start, stop, color=BAND, linewidth=0, zorder=0)
            panel.axvline(start, color=RULE, linewidth=0.8, zorder=0.5)
        name, place = fitting(span.phase, (stop - start) / (last - first)), ((start + stop) / 2, 1.015)
        label(panels[0], name, place, xycoords=("data", "axes fraction"), ha="center", va="bottom")
    panels[-1].set_xlim(first, last)


def _decades(ax: Axes) -> None:
    """Label the powers of ten of a logarithmic axis, and what is between them where it spans few."""
    low, high = ax.get_ylim()
    ax.yaxis.set_minor_locator(NullLocator())
    if high < 50 * low:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")


def _steps(ax: Axes, most: int) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(most, integer=True, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter("{x:,.0f}")


def _by_phase(ax: Axes, run: Run, series: Series, colour: str, **style: Any) -> None:
    """A series cut at the phases: a line across two of them would show a change that no step made."""
    for span in run.spans:
        _plot(ax, series.inside(span), colour, **style)


def _plot(ax: Axes, series: Series, colour: str, **style: Any) -> None:
    every = max(1, -(-len(series.steps) // MANY))
    if series.steps:
        ax.plot(series.steps[::every], series.values[::every], color=colour, **style)


def _smooth(values: Sequence[float]) -> list[float]:
    """The mean over a window of 5 % of the values, narrower at both ends."""
    width = max(1, len(values) // 20) | 1
    return pd.Series(values, dtype=float).rolling(width, center=True, min_periods=1).mean().tolist()
