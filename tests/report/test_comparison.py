"""Comparisons over many runs show each group's mean and spread, and mix nothing but seeds."""

import re
import statistics
from itertools import combinations

import pandas as pd
import pytest
from fabricated import PLANS, write_sweep
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from nxmiformer.figures.comparison import comparison
from nxmiformer.figures.frontier import frontier, non_dominated
from nxmiformer.figures.placing import Box, Plane, placed
from nxmiformer.figures.style import png
from nxmiformer.runs.many import load_runs


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return load_runs(write_sweep(tmp_path_factory.mktemp("sweep")))


def table(scores, **columns):
    """A row for each (plan, seed, score), of one task."""
    rows = [{"task": "rte", "plan": plan, "seed": seed, "packed": score} for plan, seed, score in scores]
    return pd.DataFrame(rows).assign(metric="accuracy", dense=0.9, packed_model_bytes=100.0).assign(**columns)


@pytest.mark.parametrize("draw", [comparison, frontier])
def test_a_figure_has_a_panel_for_each_task_and_a_finding(sweep, draw):
    figure = draw(sweep)
    assert png(figure).startswith(b"\x89PNG")
    assert [ax.get_title(loc="left").split(":")[0] for ax in figure.axes] == ["stsb", "mrpc"]
    assert figure.get_suptitle()


def test_a_comparison_tells_mean_and_deviation_over_the_seeds_best_first(sweep):
    mine = sweep[sweep.task == "stsb"]
    (ax,) = comparison(mine).axes
    told = dict(
        zip((label.get_text() for label in ax.get_yticklabels()), (t.get_text() for t in ax.texts), strict=False)
    )
    scores = {plan: [100 * value for value in mine[mine.plan == plan].retention] for plan in PLANS}
    assert told == {
        plan: f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} %" for plan, values in scores.items()
    }
    assert list(told) == sorted(PLANS, key=lambda plan: -statistics.mean(scores[plan]))


def test_of_a_loss_the_least_is_best(sweep):
    mine = sweep[sweep.task == "stsb"].assign(metric="loss")
    (ax,) = comparison(mine, "packed").axes
    means = mine.groupby("plan").packed.mean()
    assert [label.get_text() for label in ax.get_yticklabels()] == list(means.sort_values().index)
    assert frontier(mine).get_suptitle()


@pytest.mark.parametrize("draw", [comparison, frontier])
def test_runs_without_a_score_are_left_out_and_counted(sweep, draw):
    failed = sweep.iloc[[0]].assign(status="failed", seed=9, retention=float("nan"), packed=float("nan"))
    figure = draw(pd.concat([sweep, failed], ignore_index=True))
    assert "left out: 1 without a score" in figure.get_supxlabel()
    assert "left out" not in draw(sweep).get_supxlabel()


@pytest.mark.parametrize("draw", [comparison, frontier])
def test_runs_that_differ_in_more_than_their_seed_are_not_one_group(sweep, draw):
    twice = pd.concat([sweep.assign(**{"config.rho": rho}) for rho in (0.1, 1.0)], ignore_index=True)
    with pytest.raises(ValueError, match=r"'int8' that have the same seed, 0.*one of \['config\.rho'\]"):
        draw(twice)
    assert len(draw(twice, by=["plan", "config.rho"]).axes) == 2
    with pytest.raises(ValueError, match="nothing else tells them apart: keep one of each"):
        draw(pd.concat([sweep, sweep], ignore_index=True))


@pytest.mark.parametrize("draw", [comparison, frontier])
def test_scores_of_different_models_or_splits_are_not_averaged(sweep, draw):
    other = sweep.assign(model="large")
    figure = draw(pd.concat([sweep, other], ignore_index=True))
    names = [ax.get_title(loc="left").split(":")[0] for ax in figure.axes]
    assert sorted(names) == ["mrpc, bert-tiny", "mrpc, large", "stsb, bert-tiny", "stsb, large"]
    holdout = draw(pd.concat([sweep, sweep.assign(report_on="holdout")], ignore_index=True))
    assert len(holdout.axes) == 4


@pytest.mark.parametrize("draw", [comparison, frontier])
def test_an_unknown_column_is_told_with_the_nearest(sweep, draw):
    with pytest.raises(ValueError, match="unknown column 'plam': did you mean plan"):
        draw(sweep, by="plam")


def test_a_table_without_scores_is_told(sweep):
    with pytest.raises(ValueError, match="none of the 36 runs has a value in each of the columns retention"):
        comparison(sweep.assign(retention=float("nan")))


def test_a_size_that_a_logarithmic_axis_does_not_have_is_told(sweep):
    with pytest.raises(ValueError, match="'packed_bytes' holds 0"):
        frontier(sweep.assign(packed_bytes=0), size="packed_bytes")


def test_two_groups_within_the_deviation_of_one_are_called_level():
    near = table([("a", 0, 0.80), ("a", 1, 0.84), ("b", 0, 0.81), ("b", 1, 0.81)])
    assert "level with b" in " ".join(comparison(near, "packed").get_suptitle().split())
    far = table([("a", 0, 0.80), ("a", 1, 0.84), ("b", 0, 0.61), ("b", 1, 0.61)])
    assert "ahead of b" in " ".join(comparison(far, "packed").get_suptitle().split())


def test_the_frontiers_title_names_the_smallest_group_that_keeps_enough():
    runs = table([("large", 0, 0.90), ("small", 0, 0.895), ("tiny", 0, 0.7)], packed_model_bytes=[300.0, 200.0, 100.0])
    title = " ".join(frontier(runs).get_suptitle().replace("\xa0", " ").split())
    assert "small is the smallest to retain 99 %" in title
    title = " ".join(frontier(runs.assign(dense=1.0)).get_suptitle().replace("\xa0", " ").split())
    assert title.startswith("large scores best, and nothing retains 99 % of the dense accuracy")


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("size", ["packed_model_bytes", "packed_bytes"])
def test_names_on_a_frontier_do_not_overlap(sweep, tasks, size):
    figure = frontier(sweep[sweep.task.isin(["stsb", "mrpc"][:tasks])], size=size)
    figure.draw_without_rendering()
    for ax in figure.axes:
        for a, b in combinations(ax.texts, 2):
            assert not a.get_window_extent().overlaps(b.get_window_extent()), (a.get_text(), b.get_text())


def test_names_of_a_comparison_do_not_overlap(sweep):
    figure = comparison(sweep)
    figure.draw_without_rendering()
    for ax in figure.axes:
        texts = [*ax.texts, *ax.get_yticklabels()]
        assert not any(a.get_window_extent().overlaps(b.get_window_extent()) for a, b in combinations(texts, 2))


def dominates(a, b):
    return a[0] <= b[0] and a[1] >= b[1] and a != b


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=12))
def test_what_is_on_the_frontier_is_beaten_by_nothing_and_beats_or_equals_all_else(points):
    chosen = [points[i] for i in non_dominated(*zip(*points, strict=True))]
    assert not any(dominates(a, b) for a in points for b in chosen)
    assert all(point in chosen or any(dominates(best, point) for best in chosen) for point in points)
    assert [cost for cost, _ in chosen] == sorted(cost for cost, _ in chosen)
    assert [worth for _, worth in chosen] == sorted(worth for _, worth in chosen)


PLACES = st.lists(st.tuples(st.floats(0.3, 5.7), st.floats(0.3, 1.9)), min_size=1, max_size=4)


@given(PLACES, PLACES)
def test_labels_hide_nothing_where_there_is_room(points, unnamed):
    marks, others = ([Box(x, y, 0.1, 0.1) for x, y in each] for each in (points, unnamed))
    labels = placed(marks, [0.6] * len(marks), 0.15, (6.0, 2.2), others)
    assert not any(a.overlaps(b) for a, b in combinations(labels, 2))
    assert not any(label.overlaps(mark) for label in labels for mark in (*marks, *others))
    assert all(label.inside(6.0, 2.2) for label in labels)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_what_stands_at_a_place_of_the_page_is_what_was_put_there(scale):
    ax = Figure().subplots()
    ax.set_xscale("log")
    ax.set_yscale(scale)
    ax.set_xlim(10, 1000)
    ax.set_ylim(1, 100)
    plane = Plane(ax, (4.0, 2.0))
    assert plane.inches(10, 1) == pytest.approx((0, 0))
    assert plane.inches(100, 100) == pytest.approx((2, 2))
    assert plane.data(*plane.inches(70, 30)) == pytest.approx((70, 30))


def test_boxes_overlap_by_their_sides_on_both_axes():
    box = Box(0, 0, 2, 2)
    assert box.overlaps(Box(1.9, 1.9, 2, 2))
    assert not box.overlaps(Box(2, 0, 2, 2))
    assert not box.overlaps(Box(0.5, 2.5, 2, 2))


def test_many_tasks_are_counted_and_not_listed(sweep):
    tasks = [sweep[sweep.task == "stsb"].assign(task=f"task{i}") for i in range(5)]
    title = comparison(pd.concat(tasks, ignore_index=True)).get_suptitle()
    assert re.fullmatch(r"\w+ retains most on 5 of 5 tasks", title)
