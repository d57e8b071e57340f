"""Metrics against counts by hand, and what answers score by them that do not look."""

import numpy as np
import pytest

from nxmiformer.tasks.chance import blind
from nxmiformer.tasks.metrics import chosen, metrics_of, predictions, usual
from nxmiformer.tasks.outcomes import Classes, Labels, Number

SHARES = {"even": [0.25] * 4, "uneven": [0.6, 0.25, 0.1, 0.05]}
each_share = pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)


def f1(true, said):
    both = (true & said).sum()
    return 2 * both / max(1, true.sum() + said.sum())


def drawn(shares, rows=300, seed=0):
    return np.random.default_rng(seed).choice(len(shares), p=shares, size=rows)


@each_share
def test_the_metrics_of_classes_are_those_that_are_counted_by_hand(shares):
    true, said = drawn(shares), drawn(shares, seed=1)
    each = np.array([f1(true == number, said == number) for number in range(4)])
    counts = np.bincount(true, minlength=4)
    expected = {
        "accuracy": (true == said).mean(),
        "macro_f1": each.mean(),
        "micro_f1": (true == said).mean(),
        "weighted_f1": (each * counts).sum() / counts.sum(),
        "balanced_accuracy": np.mean([(said[true == number] == number).mean() for number in range(4)]),
    }
    found = {name: metric(true, said) for name, metric in metrics_of(Classes(), 4).items() if name != "matthews"}
    assert found == pytest.approx(expected)


def test_the_metrics_of_labels_are_those_that_are_counted_by_hand():
    draw = np.random.default_rng(0)
    true, said = (draw.random((2, 200, 3)) < [0.5, 0.3, 0.05]).astype(int)
    expected = {
        "micro_f1": f1(true.ravel(), said.ravel()),
        "macro_f1": np.mean([f1(true[:, label], said[:, label]) for label in range(3)]),
        "samples_f1": np.mean([f1(*pair) for pair in zip(true, said, strict=True)]),
        "accuracy": (true == said).all(-1).mean(),
    }
    assert {name: metric(true, said) for name, metric in metrics_of(Labels(), 3).items()} == pytest.approx(expected)


def test_a_row_of_logits_says_a_class_a_set_of_labels_or_a_number():
    logits = np.array([[1.0, -2.0], [-3.0, 4.0], [0.5, 0.25]])
    assert predictions(logits, Classes()).tolist() == [0, 1, 0]
    assert predictions(logits, Labels()).tolist() == [[1, 0], [0, 1], [1, 1]]
    assert predictions(logits[:, :1], Number()).tolist() == [1.0, -3.0, 0.5]


@pytest.mark.parametrize(("outcome", "classes"), [(Classes(), 2), (Classes(), 5), (Labels(), 3), (Number(), 1)])
def test_what_a_score_tells_is_a_metric_of_the_outcome(outcome, classes):
    assert {*usual(outcome, classes)} <= metrics_of(outcome, classes).keys()


def blind_classes(truths, draw):
    """Answers that do not look: each class always, at the rates of the classes, and evenly."""
    for number in range(4):
        yield np.full(len(truths), number)
    for _ in range(4):
        yield draw.permutation(truths)
        yield draw.integers(4, size=len(truths))


@each_share
@pytest.mark.parametrize("metric", metrics_of(Classes(), 4))
def test_no_blind_answer_of_classes_beats_chance_more_often_than_the_margin_lets_it(metric, shares):
    draw, score = np.random.default_rng(0), chosen(metric, Classes(), 4)
    beaten = []
    for seed in range(6):
        truths = drawn(shares, seed=seed)
        chance = blind(metric, Classes(), truths)
        beaten += [chance.beaten(score(truths, answer)) for answer in blind_classes(truths, draw)]
    assert np.mean(beaten) < 0.04


@each_share
@pytest.mark.parametrize("metric", ["accuracy", "micro_f1", "macro_f1", "weighted_f1", "balanced_accuracy"])
def test_chance_is_what_a_blind_answer_of_classes_does_score(metric, shares):
    draw, score, truths = np.random.default_rng(0), chosen(metric, Classes(), 4), drawn(shares, rows=2000)
    best = max(score(truths, answer) for answer in blind_classes(truths, draw))
    assert best == pytest.approx(blind(metric, Classes(), truths).score, abs=0.03)


@pytest.mark.parametrize("metric", metrics_of(Labels(), 3))
def test_chance_of_labels_is_the_best_constant_answer_and_its_error_that_of_drawing_rows(metric):
    draw, score = np.random.default_rng(0), chosen(metric, Labels(), 3)
    truths = (draw.random((400, 3)) < [0.75, 0.3, 0.05]).astype(int)
    constant = [np.array([number >> bit & 1 for bit in range(3)]) for number in range(8)]
    best = max(score(truths, np.tile(answer, (400, 1))) for answer in constant)
    chance = blind(metric, Labels(), truths)
    assert chance.score == pytest.approx(best)
    again = [blind(metric, Labels(), truths[draw.integers(400, size=400)]).score for _ in range(150)]
    assert chance.error == pytest.approx(np.std(again), rel=0.2)


@pytest.mark.parametrize(("metric", "best"), [("mean_absolute_error", np.median), ("mean_squared_error", np.mean)])
def test_an_error_is_better_the_lower_it_is_and_chance_is_that_of_the_best_constant(metric, best):
    truths = np.random.default_rng(0).exponential(size=300)
    score, chance = chosen(metric, Number(), 1), blind(metric, Number(), truths)
    assert chance.score == pytest.approx(score(truths, np.full(300, best(truths))))
    assert chance.beaten(score(truths, truths))
    assert not chance.beaten(score(truths, np.full(300, best(truths) + 0.5)))
