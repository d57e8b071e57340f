"""The figures of a report. Each is a value: none touches pyplot, or any other state that figures share."""

from matplotlib.figure import Figure

from nxmiformer.report.curves import convergence, training
from nxmiformer.report.heatmap import heatmap, plan_heatmap
from nxmiformer.report.numbers import Run
from nxmiformer.report.tradeoff import size, storage

__all__ = ["convergence", "figures_of", "heatmap", "plan_heatmap", "size", "storage", "training"]


def figures_of(run: Run) -> dict[str, Figure]:
    """The figures that the run has the data for, by name, in the order of the report."""
    drawn = {"size": size, "storage": storage}
    if run.report.layers:
        drawn["heatmap"] = heatmap
    if run.series("loss").steps:
        drawn["training"] = training
    if any(value > 0 for value in run.series("gap").values):
        drawn["convergence"] = convergence
    return {name: draw(run) for name, draw in drawn.items()}
