"""Likelihoods against torch's distributions, and against slow twins."""

import math

import pytest
import torch
from scipy import stats
from torch import distributions
from torch.nn import functional as F

from nxmiformer.tasks.outcomes import Classes, Direction, Labels, Number

OUTCOMES = {"classes": (Classes(), 4), "labels": (Labels(), 3), "number": (Number(), 1)}
each = pytest.mark.parametrize(("outcome", "width"), OUTCOMES.values(), ids=OUTCOMES)


def rows(width, count=5, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def likelihood(outcome, logits):
    if isinstance(outcome, Classes):
        return distributions.Categorical(logits=logits)
    if isinstance(outcome, Labels):
        return distributions.Independent(distributions.Bernoulli(logits=logits), 1)
    return distributions.Independent(distributions.Normal(logits, 1.0), 1)


@each
def test_the_divergence_is_that_of_the_likelihoods(outcome, width):
    before, after = rows(width), rows(width, seed=1)
    expected = distributions.kl_divergence(likelihood(outcome, before), likelihood(outcome, after))
    torch.testing.assert_close(outcome.divergences(before, after), expected)
    assert (outcome.divergences(before, before) == 0).all()


@each
def test_the_loss_is_the_negative_log_likelihood_up_to_what_the_target_does_not_change(outcome, width):
    logits = rows(width)
    targets = likelihood(outcome, logits).sample()
    targets = targets[:, 0] if isinstance(outcome, Number) else targets
    at = targets[:, None] if isinstance(outcome, Number) else targets
    likely = -likelihood(outcome, logits).log_prob(at)
    scale = width if isinstance(outcome, Labels) else 1
    rest = 0.5 * math.log(2 * math.pi) if isinstance(outcome, Number) else 0.0
    torch.testing.assert_close(outcome.losses(logits, targets) * scale, likely - rest)


@each
def test_the_distance_is_the_divergence_at_a_high_temperature(outcome, width):
    before, after = rows(width), rows(width, seed=1)
    limit = outcome.divergences(before, after, 1e4) * 1e8
    per_output = limit if not isinstance(outcome, Labels) else 4 * limit / width
    torch.testing.assert_close(outcome.distances(before, after), per_output, rtol=1e-3, atol=1e-8)


def test_distillation_of_classes_is_what_torch_makes_of_it():
    teacher, student = rows(4), rows(4, seed=1)
    soft = [F.log_softmax(logits / 2.0, -1) for logits in (student, teacher)]
    expected = 4 * F.kl_div(*soft, reduction="batchmean", log_target=True)
    torch.testing.assert_close(Classes().distillation(teacher, student, 2.0), expected)


def test_what_is_impossible_counts_for_nothing_and_has_a_gradient_of_zero():
    before, after = rows(4), rows(4, seed=1).requires_grad_()
    closed = torch.tensor([False, True, False, True])
    given = [logits.masked_fill(closed, -math.inf) for logits in (before, after)]
    expected = Classes().divergences(before[:, ~closed], after[:, ~closed])
    torch.testing.assert_close(Classes().divergences(*given), expected)
    torch.testing.assert_close(Classes().distances(*given), Classes().distances(before[:, ~closed], after[:, ~closed]))
    Classes().divergences(*given).sum().backward()
    assert after.grad[:, closed].eq(0).all()
    assert after.grad.isfinite().all()
    assert after.grad[:, ~closed].ne(0).any()


def test_a_divergence_of_directions_is_one_less_the_cosine_and_that_of_the_likelihoods_up_to_a_factor():
    before, after = (F.normalize(rows(3, seed=seed), dim=-1) for seed in (0, 1))
    found = Direction().divergences(before, after)
    torch.testing.assert_close(found, 1 - F.cosine_similarity(before, after))
    torch.testing.assert_close(Direction().divergences(before, after, 3.0), found / 9)
    for p, q, divergence in zip(before, after, found, strict=True):
        draws = stats.vonmises_fisher(p.numpy(), 1).rvs(200_000, random_state=0)
        apart = stats.vonmises_fisher(p.numpy(), 1).logpdf(draws) - stats.vonmises_fisher(q.numpy(), 1).logpdf(draws)
        factor = 1 / math.tanh(1) - 1
        assert apart.mean() == pytest.approx(factor * divergence.item(), abs=6 * apart.std() / math.sqrt(len(draws)))


def test_a_direction_is_as_far_from_another_as_their_divergence_and_has_no_loss():
    before, after = (F.normalize(rows(3, seed=seed), dim=-1) for seed in (0, 1))
    torch.testing.assert_close(Direction().apart(before, after), Direction().divergences(before, after))
    torch.testing.assert_close(Direction().distances(before, after), Direction().divergences(before, after) / 3)
    with pytest.raises(ValueError, match="no labels"):
        Direction().losses(before, torch.zeros(5, 0))


@pytest.mark.parametrize(("outcome", "targets", "expected"), [
    (Classes(), [1, 2], []), (Labels(), [[0.0, 1.0]], []), (Direction(), [[], []], []),
    (Number(), [0.5, 2.0], [0.5, 2.0]),
])  # fmt: skip
def test_only_the_targets_of_numbers_are_on_the_scale_of_the_logits(outcome, targets, expected):
    assert outcome.numbers(torch.tensor(targets)).tolist() == expected
