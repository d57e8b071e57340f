"""Likelihoods against torch's distributions, and against slow twins."""

import math

import pytest
import torch
from torch import distributions
from torch.nn import functional as F

from nxmiformer.tasks.outcomes import Classes, Labels, Number

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
