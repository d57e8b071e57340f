"""Quantizers of what is multiplied, against a few lines of float64."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nxmiformer.layers.padding import Padding
from nxmiformer.layers.ranges import Levels, RangeQuantizer, Ranges, rounded

numbers = st.floats(-100, 100, width=32)
ends = st.tuples(numbers, numbers).map(sorted).filter(lambda pair: pair[1] - pair[0] > 1e-3)
spread = st.builds(lambda pair, bits, zero: (*pair, bits, zero), ends, st.integers(2, 8), st.booleans())


def oracle(x, low, high, bits, zero):
    """One number, in Python's float64: the paper's formula, or with the code of zero rounded and 0 between the ends."""
    low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
    step = (high - low) / (2**bits - 1)
    if not zero:
        return round((min(max(x, low), high) - low) / step) * step + low
    point = round(-low / step)
    return (min(max(round(x / step) + point, 0), 2**bits - 1) - point) * step


def quantized(x, low, high, bits, zero):
    x, low, high = (torch.as_tensor(each, dtype=torch.float64) for each in (x, low, high))
    return rounded(x, low, high, bits, zero)


@given(spread, st.lists(numbers, min_size=1, max_size=20))
def test_a_number_goes_where_the_formula_says(between, xs):
    expected = [oracle(x, *between) for x in xs]
    torch.testing.assert_close(quantized(xs, *between), torch.tensor(expected, dtype=torch.float64))


@given(spread)
def test_there_are_so_many_levels_and_rounding_is_monotone_idempotent_and_off_by_half_a_step_at_most(between):
    low, high, bits, zero = between
    x = torch.linspace(low - 1, high + 1, 5001, dtype=torch.float64)
    y = quantized(x, *between)
    levels = Levels.between(torch.tensor(low).double(), torch.tensor(high).double(), bits, zero)
    step = levels.scale.item()
    first, last = (levels.points(torch.tensor(end, dtype=torch.float64)).item() for end in (-math.inf, math.inf))
    assert (y.diff() >= 0).all()
    assert len(y.div(step).round().unique()) <= 2**bits
    assert last - first == pytest.approx((2**bits - 1) * step)
    assert torch.equal(quantized(y, *between), y)
    inside = (x >= first) & (x <= last)
    assert ((x - y).abs()[inside] <= step / 2 * (1 + 1e-9)).all()


@given(spread)
def test_zero_is_a_level_unless_the_ends_are(between):
    low, high, _, zero = between
    if zero:
        assert quantized(0.0, *between).item() == 0
    else:
        torch.testing.assert_close(quantized([low, high], *between), torch.tensor([low, high], dtype=torch.float64))


@pytest.mark.parametrize("zero", [True, False])
def test_the_gradient_passes_inside_and_not_where_a_number_was_clamped(zero):
    x = torch.tensor([-9.0, -3.6, -3.0, 0.2, 4.0, 4.4, 9.0], requires_grad=True)
    rounded(x, torch.tensor(-3.0), torch.tensor(4.0), 3, zero).backward(torch.arange(1.0, 8.0))
    assert x.grad.tolist() == [0, 0, 3, 4, 5, 6, 0]


def test_a_product_of_integers_with_their_zero_points_is_the_product_of_what_is_seen():
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 7, generator=draw).double(), torch.randn(7, 3, generator=draw).double() + 0.5
    for zero in (True, False):
        one, two = (Levels.between(x.min(), x.max(), 8, zero) for x in (a, b))
        codes = [
            each.codes(x).round().clamp(float(each.least), float(each.least) + 255) for each, x in ((one, a), (two, b))
        ]
        p, q = (code.long() for code in codes)
        sums = one.scale * two.scale * (p @ q) + one.scale * two.base * p.sum(1, keepdim=True)
        sums = sums + one.base * (two.scale * q.sum(0) + 7 * torch.as_tensor(two.base))
        seen = quantized(a, a.min(), a.max(), 8, zero) @ quantized(b, b.min(), b.max(), 8, zero)
        torch.testing.assert_close(sums, seen, rtol=1e-12, atol=1e-12)


def test_the_ends_are_running_averages_that_begin_with_the_first_input_and_stand_still_in_evaluation():
    quantizer = RangeQuantizer(Ranges(), 2)
    for x in ([[[-1.0, 2.0], [3.0, 4.0]]], [[[0.0, 12.0], [-11.0, 4.0]]], [[[9.0, 4.0], [9.0, 4.0]]]):
        quantizer(torch.tensor(x))
    torch.testing.assert_close(quantizer.low, torch.tensor([0.9 * (0.9 * -1 + 0.1 * -11) + 0.9, 0.9 * 2.2 + 0.4]))
    torch.testing.assert_close(quantizer.high, torch.tensor([0.9 * (0.9 * 3 + 0.0) + 0.9, 0.9 * (0.9 * 4 + 1.2) + 0.4]))
    kept = quantizer.low.clone(), quantizer.high.clone()
    quantizer.eval()(torch.full((1, 2, 2), 99.0))
    assert torch.equal(quantizer.low, kept[0])
    assert torch.equal(quantizer.high, kept[1])


def test_each_feature_has_ends_of_its_own_or_all_share_two():
    x = torch.tensor([[[1.0, -5.0], [2.0, 7.0]]])
    apart, shared = RangeQuantizer(Ranges(), 2), RangeQuantizer(Ranges(), 1)
    apart(x)
    shared(x)
    assert (apart.low.tolist(), apart.high.tolist()) == ([1, -5], [2, 7])
    assert (shared.low.tolist(), shared.high.tolist()) == ([-5], [7])


def test_padding_moves_no_end():
    x = torch.tensor([[[1.0], [2.0], [90.0]], [[3.0], [-90.0], [-90.0]]])
    padding = Padding()
    quantizer = RangeQuantizer(Ranges(), 1, padding=padding)
    padding.enter({"attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}, decoder=False)
    quantizer(x)
    padding.leave()
    assert (quantizer.low.item(), quantizer.high.item()) == (1, 3)
    assert padding.real is None


def test_a_decoder_that_is_given_no_mask_has_its_padding_from_the_targets_and_the_encoder_has_not():
    padding, labels = Padding(), torch.tensor([[5, -100]])
    padding.enter({"labels": labels}, decoder=False)
    padding.enter({}, decoder=False)
    assert padding.real is None
    padding.leave()
    padding.enter({}, decoder=True)
    assert padding.real.tolist() == [[True, False]]
    padding.enter({"attention_mask": torch.tensor([[0, 1]])}, decoder=True)
    assert padding.real.tolist() == [[False, True]]


def test_what_is_divided_by_stays_above_zero():
    for low in (1e-6, 1e-30, 1.0):
        quantizer = RangeQuantizer(Ranges(), 1, positive=True)
        quantizer(torch.tensor([[[low], [1000.0]]]))
        assert (quantizer.eval()(torch.tensor([[[0.0], [low], [1e9]]])) > 0).all()


def test_a_quantizer_that_is_off_sees_nothing_and_one_that_saw_nothing_takes_the_ends_of_its_input():
    x = torch.tensor([[[-1.0, 0.3], [2.0, 0.1]]])
    off, fresh, seen = (RangeQuantizer(Ranges(4), 1) for _ in range(3))
    off.active = False
    assert off(x) is x
    assert off.low > off.high
    assert torch.equal(fresh.eval()(x), seen(x))
    assert fresh.low > fresh.high


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_output_has_the_dtype_of_the_input(dtype):
    x = torch.randn(2, 3, 4).to(dtype).requires_grad_()
    y = RangeQuantizer(Ranges(), 4)(x)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype) == (dtype, dtype)


def test_copies_share_one_padding_and_carry_no_batch():
    quantizers = torch.nn.ModuleList(RangeQuantizer(Ranges(), padding=each) for each in [Padding()] * 2)
    quantizers[0].padding.enter({"attention_mask": torch.ones(2, 3)}, decoder=False)
    for again in (copy.deepcopy(quantizers), pickle.loads(pickle.dumps(quantizers))):
        assert again[0].padding is again[1].padding
        assert again[0].padding.real is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 1}, "2 to 8 bits, not 1"),
        ({"bits": 4.0}, "bits to be an integer"),
        ({"momentum": 1.0}, "momentum must be in"),
        ({"zero": 1}, "zero to be true or false"),
    ],
)
def test_ranges_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Ranges(**options)


def test_words_say_how_many_bits():
    assert Ranges.from_words("int6") == Ranges(6)
    for words in ("int9", "8", "float8"):
        with pytest.raises(ValueError, match=r"int2 to int8|2 to 8 bits"):
            Ranges.from_words(words)
