"""Chance is what answers that do not look at the text score; a model is better only by more than the margin."""

import numpy as np
import pytest
from glue_tasks import glue

from nxmiformer.tasks.task import MARGIN, Chance


@pytest.mark.parametrize(("name", "share"), [("sst2", 0.5), ("wnli", 0.3), ("mrpc", 0.7), ("qqp", 0.4), ("cola", 0.7)])
def test_no_blind_answer_beats_chance_more_often_than_the_margin_lets_it(name, share):
    task, draw = glue(name), np.random.default_rng(0)
    beaten = []
    for _ in range(60):
        labels = (draw.random(200) < share).astype(int)
        most = int(share >= 0.5 or task.metric == "f1")
        blind = (np.full(200, most), draw.integers(2, size=200))
        chance = task.chance(labels)
        beaten += [task.score(np.eye(2)[answer], labels)[task.metric] > chance.limit for answer in blind]
    assert np.mean(beaten) < 0.04


@pytest.mark.parametrize(("name", "share"), [("sst2", 0.6), ("mrpc", 0.7)])
def test_chance_is_the_best_constant_answer_and_its_error_is_that_of_sampling_rows(name, share):
    task, draw = glue(name), np.random.default_rng(0)
    labels = (draw.random(400) < share).astype(int)
    constant = [task.score(np.eye(2)[np.full(400, each)], labels)[task.metric] for each in (0, 1)]
    assert task.chance(labels).score == pytest.approx(max(constant))
    again = [labels[draw.integers(400, size=400)] for _ in range(500)]
    assert task.chance(labels).error == pytest.approx(np.std([task.chance(each).score for each in again]), rel=0.1)


def test_the_error_of_a_blind_correlation_is_its_deviation():
    task, draw = glue("stsb"), np.random.default_rng(0)
    labels = draw.random(100) * 5
    blind = [task.score(draw.normal(size=(100, 1)), labels)["pearson"] for _ in range(500)]
    assert task.chance(labels).score == 0
    assert task.chance(labels).error == pytest.approx(np.std(blind), rel=0.1)


def test_a_split_of_one_class_can_show_nothing():
    assert glue("rte").chance(np.ones(10, dtype=int)) == Chance(1.0, 0.0)
    assert Chance(0.5, 0.1).limit == 0.5 + MARGIN * 0.1


@pytest.mark.parametrize(
    ("chance", "beaten", "short"), [(Chance(0.5, 0.1), 0.71, 0.7), (Chance(9.0, 1.0, "lower"), 6.9, 7.0)]
)
def test_chance_is_beaten_on_the_side_that_is_better(chance, beaten, short):
    assert chance.beaten(beaten)
    assert not chance.beaten(short)
