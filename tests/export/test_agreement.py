import pytest
import torch

from nxmiformer.export.agreement import NEAR, Agreement, Comparison, DisagreementError
from nxmiformer.tasks.outcomes import Classes, Labels, Number
from nxmiformer.tasks.units import Units


def compared(ours, theirs, outcome, targets=None, size=3):
    """The agreement of two models' logits, a few units at a time."""
    comparison = Comparison()
    for start in range(0, len(ours), size):
        rows = slice(start, start + size)
        own = Units(ours[rows], ours[rows, 0] if targets is None else targets[rows], torch.zeros(1), outcome)
        comparison.add(own, own.saying(theirs[rows]))
    return comparison.agreement()


OURS = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])


def test_classes_agree_where_the_greatest_logit_is_the_same():
    assert compared(OURS, OURS + torch.tensor([0, 0.5]), Classes()) == Agreement(4, 0.5, 3.0, 1.0)
    assert compared(OURS, OURS + torch.tensor([1.5, 0]), Classes()).equal == 0.75


def test_labels_agree_where_every_sign_is_the_same():
    ours = torch.tensor([[1.0, -1.0], [2.0, 2.0]])
    assert compared(ours, ours * 3, Labels()).equal == 1.0
    assert compared(ours, ours * torch.tensor([1.0, -1.0]), Labels()).equal == 0.0


def test_numbers_agree_within_a_share_of_their_spread():
    ours = torch.tensor([[0.0], [10.0]])
    moved = ours + torch.tensor([[0.9], [1.1]]) * NEAR * 10
    assert compared(ours, moved, Number()).equal == 0.5


def test_numbers_that_hardly_vary_are_judged_by_those_that_they_should_be():
    ours, noise = torch.tensor([[2.5], [2.5 + 1e-6]]), torch.tensor([[1e-5], [0.0]])
    assert compared(ours, ours + noise, Number(), torch.tensor([0.0, 5.0])).equal == 1.0
    assert compared(ours, ours + 0.1, Number(), torch.tensor([0.0, 5.0])).equal == 0.0


def test_what_is_impossible_is_not_compared():
    ours = torch.tensor([[0.0, 1.0, -torch.inf]])
    assert compared(ours, ours + torch.tensor([0.0, 0.25, 0.0]), Classes()) == Agreement(1, 0.25, 1.0, 1.0)


def test_other_shapes_or_nothing_to_compare_are_errors():
    own = Units(OURS, OURS[:, 0], torch.zeros(4), Classes())
    with pytest.raises(DisagreementError, match=r"logits \(3, 2\), and the packed model \(4, 2\)"):
        Comparison().add(own, own.saying(OURS[:3]))
    with pytest.raises(DisagreementError, match="no unit to compare"):
        Comparison().agreement()
