"""The figures of a search say what its search.json holds."""

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from fabricated import BERT, CANDIDATES, write_found
from matplotlib.patches import Rectangle

from nxmiformer.figures.all import figures_of_search
from nxmiformer.figures.plans import foreseen, search_frontier, trust
from nxmiformer.figures.sensitivity import sensitivity
from nxmiformer.figures.style import png
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.report.content import plans
from nxmiformer.report.document import write_search
from nxmiformer.runs.search_results import chosen, interactions, read_search
from nxmiformer.runs.words import search_headline

ONE = {"frontier", "plan", "sensitivity"}  # a single plan has these
ALL = ONE | {"trust"}


@pytest.fixture
def make(tmp_path):
    """A function that writes a search (see `fabricated.write_found`) and reads it."""
    return lambda **options: read_search(write_found(tmp_path, **options))


def told(figure):
    """The figure's title on one line."""
    return " ".join(figure.get_suptitle().replace("\xa0", " ").split())


def uniform_only(found):
    """The search, had it found nothing but uniform plans."""
    plans = [plan for plan in found["frontier"] if plan["name"].startswith("uniform")]
    return {**found, "best": plans[-1], "plans": plans[-1:], "frontier": plans}


def test_a_search_is_read_as_it_was_written(tmp_path):
    path = write_found(tmp_path) / "search.json"
    assert read_search(tmp_path) == json.loads(path.read_text())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budget": "much"}, "the key 'budget' should be a valid integer, but is 'much'"),
        ({"task": {"name": "rte"}}, "the key 'task.metric' is missing"),
        ({"plans": {}}, "the key 'plans' should be a valid array"),
        ({"plans": [{"name": "a"}]}, "the key 'plans.0.sets' is missing"),
        ({"frontier": ["a"]}, "the key 'frontier.0' should be an object"),
        ({"interactions": [{"layers": [], "together": 1.0}]}, "the key 'interactions.0.sum' is missing"),
        ({"damages": {"layer": {"int8": None}}}, "the key 'damages.layer.int8' should be a valid number"),
        ({"damages": {"layer": {"int8": 0.5}}}, "the key 'best.sets.layer' is missing"),
        ({"format": 9}, "the key 'format' should be 1, but is 9"),
    ],
)
def test_what_is_wrong_with_a_search_is_told_with_its_file_and_key(tmp_path, change, said):
    write_found(tmp_path, **change)
    with pytest.raises(ValueError, match=r"search\.json") as error:
        read_search(tmp_path)
    assert said in str(error.value)


def test_a_search_of_latency_is_told_in_milliseconds(tmp_path):
    timed = {"runtime": "ONNX Runtime", "batch": 1, "length": 128, "rest": 3_000_000, "dense": 9_000_000}
    found = read_search(write_found(tmp_path, latency=timed))
    best, budget = found["best"]["cost"] / 1e6, found["budget"] / 1e6
    predicted, most = (f"{each + 3:.2f} ms" for each in (best, budget))
    assert search_headline(found).startswith(f"predicted {predicted} of {most}: ")
    assert told(search_frontier(found)).startswith(f"The plan for {most} has ")
    table = plans(found)
    assert table.header[2] == "latency"
    assert table.rows[0][2] == predicted


def test_a_directory_without_a_search_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"search\.json"):
        read_search(tmp_path)


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ({}, ALL),
        ({"sets": ("int8", "int4", "1:4+int4", "2:4"), "layers": 12}, ALL),
        ({"budgets": 0}, ALL),
        ({"budgets": 0, "plans": []}, ONE),
        (
            {"layers": 1, "components": dict.fromkeys("qkv", (64, 64)), "sets": ("int8",), "ratio": 0.5, "budgets": 0},
            ONE,
        ),
        ({"damages": {}}, ALL - {"sensitivity"}),
    ],
)
def test_a_search_draws_the_figures_that_it_has_the_data_for(tmp_path, options, drawn):
    found = read_search(write_found(tmp_path, **options))
    figures = figures_of_search(found, CompressionPlan.load(tmp_path / "plan.json"))
    assert set(figures) == drawn
    for figure in figures.values():
        assert png(figure).startswith(b"\x89PNG")
        assert figure.get_suptitle()


def test_the_figures_are_written_beside_the_search_and_nothing_else_is(tmp_path):
    before = {path.name for path in write_found(tmp_path).iterdir()}
    written = write_search(tmp_path)
    assert set(written) == ALL
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {f"{name}.png" for name in written}
    assert {path.name for path in tmp_path.iterdir()} == before | {"figures"}


def test_each_plan_is_one_mark_at_its_bytes_and_its_value(make):
    found = make()
    plans = [found["best"], *found["plans"], *found["frontier"]]
    for ax, key in zip(search_frontier(found).axes, ("score", "divergence"), strict=True):
        marks = [line.get_xydata()[0] for line in ax.lines if line.get_marker() == "o"]
        expected = {(plan["bits"] / 8, plan[key]) for plan in plans}
        assert len(marks) == len(expected)
        np.testing.assert_allclose(sorted(map(tuple, marks)), sorted(expected))


def test_the_frontier_names_every_uniform_plan_and_the_chosen_one(make):
    for ax in search_frontier(make()).axes:
        texts = [text.get_text() for text in ax.texts]
        assert {*CANDIDATES, "chosen"} <= set(texts)
        assert not any("searched" in text or "knapsack" in text for text in texts)


@pytest.mark.parametrize("draw", [search_frontier, trust])
@pytest.mark.parametrize("layers", [2, 12])
def test_names_of_plans_do_not_overlap(make, draw, layers):
    figure = draw(make(layers=layers))
    figure.draw_without_rendering()
    for ax in figure.axes:
        for a, b in combinations(ax.texts, 2):
            assert not a.get_window_extent().overlaps(b.get_window_extent()), (a.get_text(), b.get_text())


def test_the_frontiers_title_sets_the_chosen_plan_against_the_best_uniform_one_that_fits(make):
    found = make()
    best = {**found["best"], "score": 0.81}
    fitting = [{**found["best"], "name": f"uniform {n}", "score": score} for n, score in enumerate((0.7, 0.75), 1)]
    assert told(search_frontier({**found, "best": best, "plans": [best, *fitting]})).endswith(
        "has 81.00 % accuracy without training, the best uniform one that fits 75.00 %"
    )
    assert told(search_frontier({**found, "best": best, "plans": [best]})).endswith("and no uniform one fits")
    none_better = "No plan for 31.5 kB of the layers is better than a uniform one"
    assert told(search_frontier(uniform_only(found))).startswith(none_better)


def test_a_plan_without_divergence_is_on_the_linear_axis_alone(make):
    found = make()
    best = {**found["best"], "divergence": 0.0, "score": found["dense"]}
    upper, lower = search_frontier({**found, "best": best}).axes
    assert "chosen" in [text.get_text() for text in upper.texts]
    assert "chosen" not in [text.get_text() for text in lower.texts]


def test_the_set_that_the_plan_gives_a_layer_is_framed_on_its_damage(make):
    found = make(layers=3)
    figure = sensitivity(found)
    figure.draw_without_rendering()
    panels = figure.axes[: len(BERT)]
    assert [ax.get_title(loc="left") for ax in panels] == list(BERT)
    sets = [text.get_text() for text in panels[-1].get_xticklabels()]
    assert sorted(sets) == sorted(CANDIDATES)
    for ax, component in zip(panels, BERT, strict=True):
        cells = np.asarray(ax.collections[0].get_array()).reshape(3, len(sets))
        frames = {round(patch.get_y()): round(patch.get_x()) for patch in ax.patches if isinstance(patch, Rectangle)}
        for index in range(3):
            name = f"bert.encoder.layer.{index}.{component}"
            np.testing.assert_allclose(cells[index], [found["damages"][name][each] for each in sets])
            assert sets[frames[index]] == found["best"]["sets"][name]


def test_sets_stand_in_the_order_of_their_mean_damage_and_dense_before_them(make):
    found = make()
    left, *_ = found["best"]["sets"]
    found["best"]["sets"][left] = "dense"
    lowest = sensitivity(found).axes[len(BERT) - 1]
    sets = [text.get_text() for text in lowest.get_xticklabels()]
    means = pd.DataFrame(found["damages"]).T.map(np.log).mean().sort_values()
    assert sets == ["dense", *means.index]


@pytest.mark.parametrize(("power", "times"), [(1, "12"), (4, "20,736")])
def test_the_sensitivitys_title_names_the_layer_that_the_harshest_set_damages_most(make, power, times):
    found = make()
    damages = {name: {"int8": 1e-6, "1:4+int4": 1e-3 * n**power} for n, name in enumerate(found["damages"], 1)}
    sets = dict.fromkeys(damages, "int8")
    title = told(sensitivity({**found, "damages": damages, "best": {**found["best"], "sets": sets}}))
    worst, least = "output.dense of layer 1", "attention.self.query of layer 0"
    assert title == f"1:4+int4 does the most damage in {worst}, {times} times that in {least}"


def with_divergences(found, divergence):
    """The search with another divergence for each plan, by its predicted damage."""
    plans = {
        key: [{**plan, "divergence": divergence(plan["predicted"])} for plan in found[key]]
        for key in ("plans", "frontier")
    }
    return {**found, **plans, "best": plans["plans"][0]}


def test_the_rank_correlation_is_one_of_what_rises_with_the_prediction_and_minus_one_of_what_falls(make):
    found = make()
    assert told(trust(with_divergences(found, lambda predicted: predicted**3))).endswith(
        "well: Spearman's rank correlation is 1.00"
    )
    assert told(trust(with_divergences(found, lambda predicted: 1 / predicted))).endswith(
        "badly: Spearman's rank correlation is -1.00"
    )


def test_a_plan_that_was_found_twice_is_one_of_those_that_are_ranked(make):
    found = make()
    twice = {**found, "frontier": [*found["frontier"], *found["frontier"]]}
    assert len(foreseen(twice)) == len(foreseen(found))


def test_too_few_plans_to_be_ranked_are_told(make):
    found = make(budgets=0)
    with pytest.raises(ValueError, match=r"3 different plans .* fewer than 4: search\.frontier=6 measures more"):
        trust({**found, "plans": found["plans"][:3]})


def test_damages_are_needed_to_draw_them(make):
    with pytest.raises(ValueError, match="the search measured no damage"):
        sensitivity(make(damages={}))


def test_the_table_of_what_was_chosen_has_each_layer_with_its_set_and_damage(make):
    found = make()
    table = chosen(found)
    assert dict(zip(table["layer"], table["set"], strict=True)) == found["best"]["sets"]
    assert table.damage.sum() == pytest.approx(found["best"]["predicted"])
    assert pd.crosstab(table.component, table["set"]).to_numpy().sum() == len(found["damages"])


def test_the_table_of_pairs_tells_what_they_do_beyond_their_sum(make):
    pairs = interactions(make())
    assert list(pairs.excess) == pytest.approx([0.03, 0.01])
    assert interactions(make(interactions=[])).empty
