"""All figures of a run, and of a search. None uses pyplot, or other state that figures share."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from nxmiformer.figures.curves import convergence, training
from nxmiformer.figures.heatmap import heatmap, plan_heatmap
from nxmiformer.figures.plans import FEWEST, foreseen, search_frontier, trust
from nxmiformer.figures.sensitivity import sensitivity
from nxmiformer.figures.tradeoff import size, storage
from nxmiformer.figures.units import units
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.runs.numbers import Run


def figures_of(run: Run) -> dict[str, Figure]:
    """The figures that the run has the data for, by name, in the order of the report."""
    drawn = {"size": size, "storage": storage}
    if run.report.layers:
        drawn["heatmap"] = heatmap
    if run.report.units:
        drawn["units"] = units
    if run.series("loss").steps:
        drawn["training"] = training
    if any(value > 0 for value in run.series("gap").values):
        drawn["convergence"] = convergence
    return {name: draw(run) for name, draw in drawn.items()}


def figures_of_search(found: Mapping[str, Any], plan: CompressionPlan) -> dict[str, Figure]:
    """The figures that a search has the data for, by name: of the content of its `search.json`, and of its plan."""
    figures = {"frontier": search_frontier(found)}
    if plan.layers:
        figures["plan"] = plan_heatmap(plan)
    if any(found["damages"].values()):
        figures["sensitivity"] = sensitivity(found)
    if len(foreseen(found)) >= FEWEST:
        figures["trust"] = trust(found)
    return figures
