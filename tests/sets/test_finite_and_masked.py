"""Small functions that all sets share, against what they are twins of."""

import pytest
import torch

from nxmiformer.sets.base import DTYPES, check_finite, is_finite, masked

SPECIAL = [0.0, -0.0, 1.5, -1.5, float("inf"), float("-inf"), float("nan"), 1e-8]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_is_where_bit_for_bit_whatever_the_values(dtype):
    w = torch.tensor(SPECIAL, dtype=dtype, device="cpu").repeat(6, 2)
    mask = torch.arange(w.numel(), device="cpu").view(w.shape) % 3 > 0
    word = {2: torch.int16, 4: torch.int32, 8: torch.int64}[w.itemsize]
    for each, held in ((w, mask), (w.t(), mask.t()), (w[:, ::2], mask[:, ::2])):
        expected = torch.where(held, each, 0)
        found = masked(each, held)
        assert found.dtype == dtype
        assert torch.equal(found.contiguous().view(word), expected.contiguous().view(word))


def test_masked_lets_the_gradient_through_where_the_mask_is():
    w = torch.ones(2, 4, requires_grad=True)
    mask = torch.tensor([[True, False] * 2] * 2)
    masked(w, mask).sum().backward()
    assert torch.equal(w.grad, mask.float())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_matrix_is_finite_if_every_value_is(dtype):
    w = torch.randn(4, 5).to(dtype)
    assert is_finite(w)
    assert is_finite(w[:0])
    for bad in SPECIAL[4:7]:
        for place in ((0, 0), (3, 4), (1, 2)):
            spoiled = w.clone()
            spoiled[place] = bad
            assert not is_finite(spoiled)
            with pytest.raises(ValueError, match=r"weight holds \d NaN and \d infinite values"):
                check_finite(spoiled, "weight")
