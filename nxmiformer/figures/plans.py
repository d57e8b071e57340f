"""The plans that a search measured: their size, and how well their damage was predicted."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from nxmiformer.figures.colours import BLUE, GREY, MUTED, ORANGE, PAPER, SLATE
from nxmiformer.figures.placing import Box, Plane
from nxmiformer.figures.style import (
    DASHED,
    QUIET,
    axes,
    canvas,
    label,
    log_axis,
    note,
    reference,
    score_axis,
    size_axis,
    title,
)
from nxmiformer.runs import words

Plan = Mapping[str, Any]  # of a search.json
FEWEST = 4  # plans whose ranks tell anything
# The colour of each kind of plan, its size in points, and which lies above which.
KINDS = {"measured": (GREY, 5, 3), "searched": (BLUE, 6.5, 4), "uniform": (SLATE, 6.5, 5), "chosen": (ORANGE, 9, 6)}
_MARK = 0.14  # inches


def search_frontier(found: Mapping[str, Any]) -> Figure:
    """The score without training, and the divergence from the dense model, of the plans of a search, against bytes or
    latency.

    Those searched for several budgets are joined, the uniform ones named; without a frontier, these are the plans that
    fit the budget alone.

    Args:
        found: the content of a `search.json`.
    """
    figure = canvas(6.2)
    upper, lower = figure.subplots(2, 1, sharex=True)
    metric = found["task"]["metric"]
    axes(upper, f"one-shot {metric} on the holdout\n")  # above the word at the top of the budget's line
    axes(lower, "divergence of the logits from the dense model's, one-shot, log scale")
    lower.set_yscale("log")
    _limit(upper, found, "score", [found["dense"]])
    _limit(lower, found, "divergence", [])
    for ax, key in ((upper, "score"), (lower, "divergence")):
        _draw(ax, found, key)
    reference(upper, found["dense"], f"dense\n{words.score(metric, found['dense'])}")
    place = (words.amount(found, found["budget"]), 1.0)
    label(
        upper,
        f"budget {words.limit(found)}",
        place,
        ORANGE,
        xycoords=("data", "axes fraction"),
        ha="center",
        va="bottom",
    )
    score_axis(upper.yaxis, metric)
    log_axis(lower.yaxis)
    size_axis(lower, words.said(found))
    note(figure, _note(found))
    title(figure, _finding(found) + words.search_caveat(found))
    return figure


def trust(found: Mapping[str, Any]) -> Figure:
    """The predicted damage of each plan of a search, added up over its layers, against its divergence. Either has a
    unit of its own: what a search needs is the order.

    Raises:
        ValueError: fewer than `FEWEST` plans differ, and have both above 0.
    """
    drawn = foreseen(found)
    if len(drawn) < FEWEST:
        raise ValueError(
            f"{len(drawn)} different plans have a damage and a divergence above 0, which is fewer than {FEWEST}: "
            "search.frontier=6 measures more"
        )
    figure = canvas(4.2)
    ax = figure.subplots()
    axes(ax, "divergence of the logits, all layers at once, against the sum of the layers' damages, log scales")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(*_room([plan["predicted"] for plan in drawn], log=True))
    ax.set_ylim(*_room([plan["divergence"] for plan in drawn], log=True))
    for axis in (ax.xaxis, ax.yaxis):
        log_axis(axis)
    _points(ax, drawn, "predicted", "divergence")
    ax.set_xlabel("predicted: the sum", **QUIET)
    ax.set_ylabel("measured", **QUIET)
    note(figure, "orange: the chosen plan;  blue: searched;  named: uniform")
    rank = float(spearmanr(*([plan[key] for plan in drawn] for key in ("predicted", "divergence"))).statistic)
    how = "well" if rank >= 0.9 else "roughly" if rank >= 0.6 else "badly"
    title(figure, f"The sum of damages ranks {len(drawn)} plans {how}: Spearman's rank correlation is {rank:.2f}")
    return figure


def foreseen(found: Mapping[str, Any]) -> list[Plan]:
    """The distinct plans of a search with a damage and a divergence above 0, which `trust` draws."""
    return [plan for plan in _distinct(found) if all(0 < plan[key] < math.inf for key in ("predicted", "divergence"))]


def _distinct(found: Mapping[str, Any]) -> list[Plan]:
    """The plans of a search, each once, with their `amount` and their `kind`: a key of `KINDS`."""
    kinds: dict[frozenset[tuple[str, str]], Plan] = {}
    uniform = [plan for plan in (*found["plans"], *found["frontier"]) if _is_uniform(plan)]
    groups = {"chosen": [found["best"]], "uniform": uniform, "searched": found["frontier"], "measured": found["plans"]}
    for kind, plans in groups.items():
        for plan in plans:
            known = {**plan, "amount": words.spent(found, plan), "kind": kind}
            kinds.setdefault(frozenset(plan["sets"].items()), known)
    return list(kinds.values())


def _is_uniform(plan: Plan) -> bool:
    return bool(plan["name"].startswith("uniform"))


def _name(plan: Plan) -> str:
    """The set of a uniform plan; nothing of the others, but the chosen one."""
    if not _is_uniform(plan):
        return "chosen" if plan["kind"] == "chosen" else ""
    name = plan["name"].removeprefix("uniform ")
    if name.isdecimal():  # the strategy `uniform` numbers its plans
        name = Counter(plan["sets"].values()).most_common(1)[0][0]
    return f"chosen: {name}" if plan["kind"] == "chosen" else name


def _limit(ax: Axes, found: Mapping[str, Any], key: str, more: Sequence[float]) -> None:
    """Room for the plans, the budget, and names around the outermost."""
    plans, log = _distinct(found), ax.get_yscale() == "log"
    ax.set_xscale("log")
    ax.set_xlim(*_room([*(plan["amount"] for plan in plans), words.amount(found, found["budget"])], log=True))
    ax.set_ylim(*_room([*(plan[key] for plan in plans), *more], log))


def _room(values: Sequence[float], log: bool) -> tuple[float, float]:
    """The ends of an axis around these values, those that it has a place for."""
    places = [math.log(v) if log else v for v in values if math.isfinite(v) and (v > 0 or not log)] or [0.0]
    pad = 0.18 * (max(places) - min(places)) or (0.7 if log else 0.01)
    low, high = min(places) - pad, max(places) + pad
    return (math.exp(low), math.exp(high)) if log else (low, high)


def _draw(ax: Axes, found: Mapping[str, Any], key: str) -> None:
    """The plans, those searched for several budgets joined, and the budget."""
    ax.axvline(words.amount(found, found["budget"]), **{**DASHED, "color": ORANGE})
    searched = [plan for plan in (found["best"], *found["frontier"]) if not _is_uniform(plan)]
    line = sorted((words.spent(found, plan), plan[key]) for plan in searched if _drawable(ax, plan[key]))
    if found["frontier"] and line:
        ax.plot(*zip(*line, strict=True), color=BLUE, linewidth=1.2, alpha=0.5, zorder=2)
    _points(ax, _distinct(found), "amount", key)


def _drawable(ax: Axes, value: float) -> bool:
    return math.isfinite(value) and (value > 0 or ax.get_yscale() != "log")


def _points(ax: Axes, plans: Sequence[Plan], x: str, y: str) -> None:
    """The plans' marks, and the names of those that have one."""
    drawn = [plan for plan in plans if _drawable(ax, plan[y])]
    for plan in drawn:
        colour, size, above = KINDS[plan["kind"]]
        ax.plot(plan[x], plan[y], "o", color=colour, markersize=size, markeredgecolor=PAPER, zorder=above)
    plane = Plane(ax)
    marks = [Box(*plane.inches(plan[x], plan[y]), _MARK, _MARK) for plan in drawn]
    others = [mark for mark, plan in zip(marks, drawn, strict=True) if not _name(plan)]
    named = [(mark, plan) for mark, plan in zip(marks, drawn, strict=True) if _name(plan)]
    colours = [ORANGE if plan["kind"] == "chosen" else MUTED for _, plan in named]
    plane.name([mark for mark, _ in named], [_name(plan) for _, plan in named], colours, others)


def _note(found: Mapping[str, Any]) -> str:
    counted = "" if found["accounting"] == "all" else f", by {found['accounting']}"
    joined = ";  joined: searched for several budgets" if found["frontier"] else ""
    grey = any(plan["kind"] == "measured" for plan in _distinct(found))
    marks = f"named: uniform{joined}{';  grey: others for the budget' if grey else ''}"
    what = f"bytes of the searched layers{counted}"
    if (timed := found.get("latency")) is not None:
        what = f"predicted latency in {timed['runtime']}, {timed['batch']} x {timed['length']} tokens"
    return f"{what}, log scale\n{marks}"


def _finding(found: Mapping[str, Any]) -> str:
    best, metric, budget = found["best"], found["task"]["metric"], words.limit(found)
    value = words.score(metric, best["score"])
    if _is_uniform(best):
        return f"No plan for {budget} is better than a uniform one: {value} {metric} without training"
    rivals = [plan["score"] for plan in found["plans"] if _is_uniform(plan) and math.isfinite(plan["score"])]
    scores = f"The plan for {budget} has {value} {metric} without training"
    if not rivals:
        return f"{scores}, and no uniform one fits"
    rival = min(rivals) if words.lower_is_better(metric) else max(rivals)
    return f"{scores}, the best uniform one that fits {words.score(metric, rival)}"
