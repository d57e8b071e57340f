"""A dense model that is no better than chance is said to be so beside every figure, and nothing is kept of it."""

import io
from dataclasses import replace

import pandas as pd
import pytest
from fabricated import write_run, write_sweep
from rich.console import Console

from nxmiformer.figures.comparison import comparison
from nxmiformer.figures.curves import training
from nxmiformer.figures.frontier import frontier
from nxmiformer.report import content
from nxmiformer.report.document import write_report
from nxmiformer.report.table import summary
from nxmiformer.runs import words
from nxmiformer.runs.many import load_runs
from nxmiformer.tasks.causal import Causal
from nxmiformer.tasks.task import Chance

NEVER = "no better than chance"


def scores(dense, final):
    return {stage: {"accuracy": value} for stage, value in {"dense": dense, "final": final, "packed": final}.items()}


def plain(figure):
    return " ".join(figure.get_suptitle().replace("\xa0", " ").split())


@pytest.mark.parametrize(("dense", "chance"), [(-0.05, None), (0.0, None), (0.58, (0.5, 0.05)), (-0.05, (0.0, 0.03))])
def test_nothing_is_kept_of_a_dense_model_that_is_no_better_than_chance(dense, chance, make):
    told = {"chance": {"score": chance[0], "error": chance[1]}} if chance else {}
    run = make(scores=scores(dense, -0.06), retention=1.2, **told)
    assert run.report.kept("final") is None
    rows = content.scores(run).rows
    assert {row[-1] for row in rows} == {words.NONE}
    limits = [row[1] for row in rows if row[0] == "chance, up to"]
    assert limits == ([words.percent(chance[0] + 2 * chance[1], 2)] if chance else [])
    said = f"2:4+int4 retains – of accuracy in {words.file_share(run.shrinkage)}: the dense model is {NEVER}"
    assert words.headline(run) == said
    (row,) = load_runs(run.directory).itertuples()
    assert (row.above_chance, pd.isna(row.retention)) == (False, True)


def test_figures_documents_and_the_console_say_so(make):
    run = make(
        scores=scores(0.58, 0.57), retention=1.2, chance={"score": 0.5, "error": 0.05}, phases={"dense": ("d", 3)}
    )
    assert NEVER in plain(training(run))
    written = write_report(run.directory)
    for name in ("markdown", "html"):
        text = written[name].read_text(encoding="utf-8")
        assert text.count(NEVER) >= 2  # the headline, and the title of a figure
        assert "120.0 %" not in text
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary(run))
    assert f"the dense model is {NEVER}" in " ".join(console.export_text().split())


def test_of_one_above_chance_the_plain_ratio_is_kept_and_nothing_is_said(make):
    run = make(scores=scores(0.8, 0.6), retention=0.75, chance={"score": 0.5, "error": 0.1})
    assert run.report.kept("final") == pytest.approx(0.75)
    assert words.headline(run).startswith("2:4+int4 retains 75.0 % of accuracy")
    assert NEVER not in plain(training(run))
    assert load_runs(run.directory).retention[0] == 0.75


@pytest.mark.parametrize("draw", [comparison, frontier])
def test_figures_of_many_runs_count_those_whose_dense_model_is_no_better(draw, tmp_path):
    write_sweep(tmp_path, tasks={"rte": "accuracy"}, seeds=1)
    write_run(tmp_path / "99", scores=scores(0.5, 0.5), chance={"score": 0.5, "error": 0.1}, seed=99)
    runs = load_runs(tmp_path)
    assert f"1 with a dense model {NEVER}" in draw(runs).get_supxlabel()
    assert NEVER not in draw(runs[runs.above_chance.astype(bool)]).get_supxlabel()


def test_no_plan_is_the_smallest_to_keep_enough_of_nothing(tmp_path):
    write_run(tmp_path, scores=scores(-0.02, -0.01), chance={"score": 0.0, "error": 0.03})
    assert plain(frontier(load_runs(tmp_path))).startswith(f"joint scores best, and a dense model is {NEVER}")


def test_a_search_says_so_of_its_dense_model():
    found = {"dense": 0.55, "chance": {"score": 0.5, "error": 0.03}}
    assert words.search_caveat(found) == f"; the dense model is {NEVER}"
    assert words.search_caveat({**found, "dense": 0.57}) == words.search_caveat({"dense": 0.55}) == ""
    text = words.no_better("pearson", -0.0123, Chance(0.0, 0.0258))
    assert text == f"the dense model, with −1.23 % pearson, is {NEVER} (0.00 % ± 2.58 %)"


def test_texts_that_were_cut_off_are_counted_in_the_report(make):
    run = make(cut={"train": 12, "holdout": 0, "validation": 3})
    assert ("texts cut off", "12 of 67,349 in train, 0 of 872 in holdout, 3 of 1,000 in validation") in content.facts(
        run
    ).rows


def test_the_windows_of_a_perplexity_are_in_the_report(make):
    run, said = make(), Causal(path="nowhere", stride=128).measured(512)
    assert said == "by token, in windows of 512 tokens, 128 apart"
    report = replace(run.report, task=replace(run.report.task, metric="perplexity", measured=said))
    assert ("perplexity", said) in content.facts(replace(run, report=report)).rows
    assert said not in str(content.facts(run).rows)
