"""The size and the score of the compressed model."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch

from nxmiformer.figures.colours import BLUE, GREY, INK, MUTED, ORANGE, PAPER, RULE, SKY, SLATE
from nxmiformer.figures.style import (
    DASHED,
    SMALL,
    TEXT,
    WIDTH,
    axes,
    bare,
    canvas,
    label,
    score_axis,
    size_axis,
    spread,
    title,
)
from nxmiformer.runs import words
from nxmiformer.runs.numbers import STAGES, Run

BYTE = 8  # bits
BACKED = {"facecolor": PAPER, "edgecolor": "none", "pad": 1}  # text that a line passes behind


def size(run: Run) -> Figure:
    """Score against bytes of the file: the dense model, the one-shot projection of it, and the final model."""
    metric, measured = run.report.task.metric, run.report.storage.bytes
    figure = canvas(3.6)
    ax = figure.subplots()
    axes(ax, f"{run.report.report_on} {metric} against the bytes of the file, log scale")
    title(figure, words.headline(run))

    outside = 1 if measured.dense_model >= measured.packed_model else -1  # where the dense model's label goes
    named = {"dense": SLATE, "one_shot": ORANGE, "final": BLUE}
    scores = {stage: value for stage in named if (value := run.score(stage)) is not None}
    nbytes = {stage: measured.dense_model if stage == "dense" else measured.packed_model for stage in scores}
    low, high = min(scores.values()), max(scores.values())
    pad = 0.25 * max(high - low, 0.04)
    ax.set_ylim(low - pad, high + pad)
    reach = 0.75 * max(abs(math.log(run.shrinkage)), math.log(1.5))
    edges = sorted(nbytes.values())
    ax.set_xscale("log")
    ax.set_xlim(max(edges[0], 1) * math.exp(-reach), max(edges[-1], 1) * math.exp(reach))

    packed = [stage for stage in scores if stage != "dense"]
    line = (high - low + 2 * pad) * 0.15  # the height of a label of two lines
    places = {**scores, **dict(zip(packed, spread([scores[s] for s in packed], [line] * len(packed)), strict=True))}
    ax.axhline(scores["dense"], **DASHED)
    for stage, value in scores.items():
        ax.plot(nbytes[stage], value, "o", color=named[stage], markersize=9, markeredgecolor=PAPER, zorder=3)
        text = f"{STAGES[stage]}\n{words.score(metric, value)}, {words.sized(nbytes[stage], 'file')}"
        side, place = (outside if stage == "dense" else -outside), (nbytes[stage], places[stage])
        label(ax, text, place, named[stage], fontsize=TEXT, **_beside(side))
    if "one_shot" in scores and "final" in scores:
        _gain(ax, metric, measured.packed_model, scores["one_shot"], scores["final"], outside)
    score_axis(ax.yaxis, metric)
    size_axis(ax)
    return figure


def _gain(ax: Axes, metric: str, nbytes: float, before: float, after: float, side: int) -> None:
    """An arrow from the one-shot model to the final one, where there is room for it."""
    low, high = ax.get_ylim()
    if abs(after - before) < 0.15 * (high - low):
        return
    arrow = {"arrowstyle": "-|>", "color": MUTED, "linewidth": 1, "shrinkA": 7, "shrinkB": 7}
    ax.annotate("", (nbytes, after), (nbytes, before), arrowprops=arrow)
    regains = (after < before) == words.lower_is_better(metric)
    text = f"training {'regains' if regains else 'loses'}\n{words.points(metric, after - before)}"
    label(ax, text, (nbytes, (before + after) / 2), MUTED, **_beside(side))


def _beside(side: int) -> dict[str, Any]:
    """Where a label stands: right of its point (1) or left of it (-1)."""
    anchor = "left" if side > 0 else "right"
    return {"textcoords": "offset points", "xytext": (10 * side, 0), "ha": anchor, "va": "center", "bbox": BACKED}


def storage(run: Run) -> Figure:
    """The bytes of the weights in the dense and in the packed file, by what they store."""
    s = run.report.storage
    figure = canvas(4.1)
    upper, lower = figure.subplots(2, 1, height_ratios=(2, 1.05))
    rest = "rest of the model"
    dense = {"compressed layers, float32": (s.dense_bits, SLATE), rest: (s.rest_bits, GREY)}
    parts = {"values": (s.value_bits, BLUE), "indices": (s.index_bits, SKY), "scales": (s.scale_bits, ORANGE)}
    packed = {**parts, rest: (s.rest_bits, GREY)}
    before, after = s.dense_bits + s.rest_bits, s.packed_bits + s.rest_bits
    largest = max(parts, key=lambda name: parts[name][0])
    rest_rules = s.rest_bits > parts[largest][0]
    most, bits = (f"the {rest}, left dense", s.rest_bits) if rest_rules else (largest, parts[largest][0])
    verb = "are" if most.endswith("s") else "is"
    shrinks = f"The file's {words.size(before / BYTE)} become {words.size(after / BYTE)}"
    title(figure, f"{shrinks}: {words.percent(bits / max(1, after), 0)} of what is left {verb} {most}")

    bare(upper, "bytes of the weights in the file, both at the same scale")
    _stack(upper, dense, 1, before, names=1)
    _stack(upper, packed, 0, before, names=0)
    if after < 0.7 * before:
        text, place = f"{words.percent(after / before)} of the dense file", (after / before, 0)
        label(upper, text, place, textcoords="offset points", xytext=(6, 0), va="center")
    upper.set_yticks([1, 0], [f"dense file\n{words.size(before / BYTE)}", f"packed file\n{words.size(after / BYTE)}"])
    upper.set_ylim(-0.45, 1.85)
    bare(lower)
    _stack(lower, packed, 0, after, names=-1)
    lower.set_yticks([0], ["packed file,\nenlarged"])
    lower.set_ylim(-1.05, 0.4)
    for ax in (upper, lower):
        ax.set_xlim(0, 1)
        ax.set_xticks([])
        ax.tick_params(axis="y", labelcolor=INK, labelsize=TEXT)
    for end in (0, 1):
        above, below = (end * after / before, -0.32), (end, 0.32)
        edge = ConnectionPatch(above, below, upper.transData, lower.transData, color=RULE, linewidth=0.8, zorder=-1)
        edge.set_in_layout(False)
        figure.add_artist(edge)
    return figure


def _stack(ax: Axes, parts: dict[str, tuple[int, str]], y: float, whole: int, names: int) -> None:
    """A bar of `parts` (bits, colour) in units of `whole`; `names` says whether each is named above it, with its bytes
    and a leader (1), below it (-1) or not at all (0)."""
    shown = {name: part for name, part in parts.items() if part[0]}
    left, centres = 0.0, []
    for bits, colour in shown.values():
        width = bits / max(1, whole)
        ax.barh(y, width, 0.64, left, color=colour, edgecolor=PAPER, linewidth=0.8)
        centres.append(left + width / 2)
        left += width
    if not names:
        return
    texts = [f"{name}\n{words.size(bits / BYTE)}" for name, (bits, _) in shown.items()]
    widths = [(max(map(len, text.split("\n"))) + 2) * SMALL * 0.6 / 72 / (WIDTH - 1) for text in texts]
    for text, centre, place in zip(texts, centres, spread(centres, widths, 0, 1), strict=True):
        ax.plot([centre, place], [y + 0.33 * names, y + 0.46 * names], color=GREY, linewidth=0.7, clip_on=False)
        label(ax, text, (place, y + 0.49 * names), ha="center", va="bottom" if names > 0 else "top", linespacing=1.15)
