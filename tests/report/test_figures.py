"""Every figure draws, for every run that has its data."""

import sys
from dataclasses import replace
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from fabricated import BERT, alike, mixed

from nxmiformer.figures.all import figures_of
from nxmiformer.figures.curves import convergence, training
from nxmiformer.figures.heatmap import heatmap, plan_heatmap
from nxmiformer.figures.style import png, spread, svg
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import Grid, Then, Unstructured

ALL = {"size", "storage", "heatmap", "training", "convergence"}
ONLY_DENSE = {"dense": ("dense", 60)}


@pytest.mark.parametrize("assign", [alike, mixed])
def test_all_figures_draw(make, assign):
    run = make(assign=assign)
    before = dict(mpl.rcParams)
    figures = figures_of(run)
    assert set(figures) == ALL
    for figure in figures.values():
        assert png(figure).startswith(b"\x89PNG")
        assert svg(figure).count("<svg") == 1
        assert figure.get_suptitle()
    assert dict(mpl.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_without_admm_there_is_no_convergence(make):
    run = make(phases=ONLY_DENSE)
    figures = figures_of(run)
    assert set(figures) == ALL - {"convergence"}
    for figure in figures.values():
        png(figure)


def test_a_run_of_one_step_draws(make):
    for figure in figures_of(make(layers=1, phases={"admm": ("admm", 1)})).values():
        png(figure)


def test_a_run_without_metrics_draws_what_it_has(make):
    assert set(figures_of(make(phases={}))) == {"size", "storage", "heatmap"}


def told(figure):
    return " ".join(figure.get_suptitle().replace("\xa0", " ").split())


def test_every_score_of_the_training_figure_is_of_the_holdout_and_its_title_is_of_its_dots(make):
    run = make()
    figure = training(run)
    panels = [ax for ax in figure.axes if ax.lines and ax.get_ylim()[0] > 0.5]
    dots = [y for ax in panels for line in ax.lines if line.get_marker() == "o" for y in line.get_ydata()]
    assert dots == run.series("holdout/accuracy").values
    dense = [row["holdout/accuracy"] for row in run.rows if row["phase"] == "dense" and "holdout/accuracy" in row][-1]
    levels = {y for ax in panels for line in ax.lines if line.get_marker() != "o" for y in line.get_ydata()}
    assert levels == {dense} != {run.score("dense")}
    below = f"{100 * (dense - dots[-1]):.1f} points below the dense model"
    assert told(figure) == f"On the holdout, accuracy ends at {100 * dots[-1]:.2f} %, {below}"


def test_without_a_dense_phase_the_training_figure_has_no_dense_line(make):
    run = make(phases={"admm": ("admm", 100)})
    assert run.dense_on_holdout is None
    assert "dense" not in told(training(run))


def test_every_phase_has_a_scale_of_its_own_loss(make):
    phases = {"dense": ("dense", 100), "admm": ("admm", 100)}
    run = make(phases=phases)
    tops = [ax.get_ylim()[1] for ax in training(run).axes[: len(phases)]]
    losses = {name: [row["loss"] for row in run.rows if row["phase"] == name and "loss" in row] for name in phases}
    assert tops == pytest.approx([1.08 * max(values) for values in losses.values()], rel=0.1)


@pytest.mark.parametrize(("last", "moves"), [(0.1, False), (0.104, False), (0.05, True), (0.2, True)])
def test_a_gap_that_is_still_moving_when_admm_ends_is_said_to_be(make, last, moves):
    run = make(phases={"admm": ("admm", 100)})
    rows = [{**row, "gap": 0.1 if row["step"] <= 80 else last} for row in run.rows]
    assert ("still" in told(convergence(replace(run, rows=tuple(rows))))) == moves


@pytest.mark.parametrize("layers", [2, 48])
@pytest.mark.parametrize("prefix", ["bert.encoder.layer", "transformer.h"])
def test_cell_texts_stay_in_their_cells(make, layers, prefix):
    long = Then(Unstructured(0.125), Grid(4, group=16))
    run = make(
        assign=lambda index, name: long if index % 2 and "query" in name else mixed(index, name),
        layers=layers,
        prefix=prefix,
        components={**BERT, "mlp.c_fc": (64, 64), "mlp.c_proj": (64, 64)},
    )
    figure = heatmap(run)
    figure.draw_without_rendering()
    ax = figure.axes[0]
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == layers * 8
    (x0, y0), (x1, y1) = ax.transData.transform([(0, 0), (1, 1)])
    assert all(box.width < abs(x1 - x0) and box.height < abs(y1 - y0) for box in boxes)
    labels = [label.get_window_extent() for label in ax.get_xticklabels()]
    assert not any(a.overlaps(b) for a, b in combinations(labels, 2))


def test_heatmap_tells_sets_apart_and_keeps_the_order(make):
    figure = heatmap(make(assign=mixed))
    ax = figure.axes[0]
    assert [label.get_text().replace("\n", ".") for label in ax.get_xticklabels()] == list(BERT)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "1"]
    texts = [text.get_text() for text in ax.texts]
    assert {"2:4+int4", "1:4+int4g16", "int8", "0.25dense", "dense"} <= set(texts)
    common = max(set(texts), key=texts.count)
    assert all((text.get_fontweight() == "bold") == (text.get_text() not in (common, "dense")) for text in ax.texts)


def test_heatmap_takes_names_without_an_index(make):
    run = make(layers=1, prefix="encoder.blocks", components={"q": (8, 8)})
    (layer,) = run.report.layers.values()
    layers = run.report.layers
    layers["decoder.blocks.0.q"] = layer
    layers["head"] = layer
    ax = heatmap(run).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["decoder 0", "encoder 0", "other"]


def stored(plan):
    """The bits stored for each weight of each layer, of what `pack` makes of a matrix of ones and its support."""
    cost = {}
    for name, spec in plan.layers.items():
        parts = spec.weight.pack(spec.weight.project(torch.ones(spec.shape)))
        cost[name] = 8 * sum(part.nbytes for part in parts.values()) / (spec.shape[0] * spec.shape[1])
    return cost


def test_a_plan_alone_is_coloured_by_the_bits_that_packing_stores(make):
    plan = make(assign=mixed).plan
    figure = plan_heatmap(plan)
    png(figure)
    ax = figure.axes[0]
    columns = [label.get_text().replace("\n", ".") for label in ax.get_xticklabels()]
    (mesh,) = ax.collections
    drawn = dict(zip(((row, column) for row in "01" for column in columns), mesh.get_array().flatten(), strict=True))
    cost = stored(plan)
    for (row, column), value in drawn.items():
        name = f"bert.encoder.layer.{row}.{column}"
        assert (value is np.ma.masked) == (name not in cost)
        assert value is np.ma.masked or value == pytest.approx(cost[name])
    storage = plan.storage()
    mean = 32 * storage.total / storage.dense
    low, high = min(cost.values()), max(cost.values())
    finding = f"4 sets share the layers: {mean:.3g} bits a weight, {low:.3g} to {high:.3g} by layer"
    assert " ".join(figure.get_suptitle().split()) == finding


def test_a_plan_alone_and_its_run_show_the_same_sets_in_the_same_places(make):
    run = make(assign=mixed)
    alone, ran = (figure.axes[0] for figure in (plan_heatmap(run.plan), heatmap(run)))
    drawn = ("get_text", "get_position", "get_fontweight")
    texts = [[[getattr(text, get)() for get in drawn] for text in ax.texts] for ax in (alone, ran)]
    assert texts[0] == texts[1]
    assert len(alone.patches) == len(ran.patches) > 0


def test_a_plan_of_one_set_and_shape_says_what_every_weight_costs(make):
    plan = make(components={"query": (64, 64)}).plan
    assert " ".join(plan_heatmap(plan).get_suptitle().split()) == "All layers are 2:4+int4: 3.5 bits a weight"


def test_a_plan_without_layers_is_not_drawn():
    with pytest.raises(ValueError, match="compresses no layer"):
        plan_heatmap(CompressionPlan({}))


@pytest.mark.parametrize("assign", [alike, mixed])
@pytest.mark.parametrize("rest", [0, 40_000, 4_000_000])
def test_labels_do_not_overlap(make, assign, rest):
    for name, figure in figures_of(make(assign=assign, rest=rest)).items():
        figure.draw_without_rendering()
        for ax in figure.axes:
            texts = [text for text in ax.texts if text.get_text()]
            for a, b in combinations(texts, 2):
                boxes = [text.get_window_extent() for text in (a, b)]
                assert not boxes[0].overlaps(boxes[1]), (name, a.get_text(), b.get_text())


def test_spread_moves_no_more_than_it_must():
    assert spread([0.1, 0.5, 0.9], [0.2] * 3) == [0.1, 0.5, 0.9]
    assert spread([0.5, 0.5], [0.2, 0.2]) == pytest.approx([0.4, 0.6])
    assert spread([0.0, 1.0], [0.2, 0.2], 0, 1) == pytest.approx([0.1, 0.9])
    places = spread([0.98, 0.97, 0.99, 0.1], [0.2] * 4, 0, 1)
    assert places == pytest.approx([0.7, 0.5, 0.9, 0.1])


UNITS = {f"layer.{i}": {"heads": (i % 3, 4), "dimensions": (16 * i, 64)} for i in range(3)}


def test_heads_and_dimensions_that_are_left_are_drawn_layer_by_layer_before_those_that_there_were(make):
    run = make()
    run = replace(run, report=replace(run.report, units=UNITS))
    figure = figures_of(run)["units"]
    for ax, kind in zip(figure.axes, ("heads", "dimensions"), strict=True):
        whole, left = ([bar.get_height() for bar in group] for group in ax.containers)
        assert left == [UNITS[layer][kind][0] for layer in UNITS]
        assert whole == [UNITS[layer][kind][1] for layer in UNITS]
    assert told(figure) == "Compaction leaves 25.0 % of the heads and 25.0 % of the dimensions"
    assert png(figure).startswith(b"\x89PNG")
