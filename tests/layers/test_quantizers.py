import math

import pytest
import torch

from nxmiformer.layers.inputs import RANGES, ActivationQuantizer, Activations, Latest
from nxmiformer.layers.weights import WeightQuantizer, round_ahead
from nxmiformer.sets import NM, Grid, Piece, Then, Unstructured

JOINT = Then(NM(2, 4), Grid(4))


def seeded(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def quantized(x, peak, bits):
    """The nearest of the codes -q ... q for a scale of peak / q, one number at a time."""
    top = 2 ** (bits - 1) - 1
    return max(-top, min(top, round(x * top / peak))) * peak / top if peak else 0.0


# Activations


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_token_ranges_quantize_every_token_by_its_own_maximum(bits):
    x = seeded(2, 3, 5)
    y = ActivationQuantizer(Activations(bits))(x)
    expected = [[[quantized(v, max(map(abs, t)), bits) for v in t] for t in s] for s in x.tolist()]
    torch.testing.assert_close(y, torch.tensor(expected))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("ranges", ["tensor", "ema"])
def test_tensor_ranges_and_the_first_average_quantize_by_the_maximum_of_all(bits, ranges):
    x = seeded(2, 3, 5)
    y = ActivationQuantizer(Activations(bits, ranges))(x)
    peak = x.abs().max().item()
    torch.testing.assert_close(y.flatten(), torch.tensor([quantized(v, peak, bits) for v in x.flatten().tolist()]))


def test_ema_ranges_average_in_training_and_stand_still_in_evaluation():
    quantizer = ActivationQuantizer(Activations(8, "ema", momentum=0.9))
    expected = None
    for step in range(4):
        x = seeded(3, 5, seed=step)
        quantizer(x)
        now = x.abs().max().item()
        expected = now if expected is None else 0.9 * expected + 0.1 * now
        assert quantizer.peak.item() == pytest.approx(expected)
    quantizer.eval()
    y = quantizer(torch.tensor([100.0, -0.01, 0.5]))
    assert quantizer.peak.item() == pytest.approx(expected)
    torch.testing.assert_close(y, torch.tensor([quantized(v, expected, 8) for v in (100.0, -0.01, 0.5)]))


def test_ema_ranges_that_saw_nothing_yet_take_the_input_own():
    x = seeded(3, 5)
    fresh, dynamic = ActivationQuantizer(Activations(8, "ema")).eval(), ActivationQuantizer(Activations(8, "tensor"))
    assert torch.equal(fresh(x), dynamic(x))
    assert fresh.peak == 0


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_static_ranges_have_every_level_from_the_least_to_the_greatest_with_zero_among_them(bits):
    quantizer = ActivationQuantizer(Activations(bits, "static"))
    x = seeded(3, 5) + 0.5
    y = quantizer(x)
    low, high, top = min(0.0, x.min().item()), max(0.0, x.max().item()), 2**bits - 1
    step = (high - low) / top
    least = round(low / step)
    expected = [max(least, min(least + top, round(v / step))) * step for v in x.flatten().tolist()]
    torch.testing.assert_close(y.flatten(), torch.tensor(expected))
    assert quantizer.eval()(torch.zeros(3)).tolist() == [0, 0, 0]


def test_static_ranges_average_both_ends_in_training_and_stand_still_in_evaluation():
    quantizer = ActivationQuantizer(Activations(8, "static", momentum=0.9))
    low = high = None
    for step in range(4):
        x = seeded(3, 5, seed=step)
        quantizer(x)
        least, most = x.min().item(), x.max().item()
        low = least if low is None else 0.9 * low + 0.1 * least
        high = most if high is None else 0.9 * high + 0.1 * most
        assert (quantizer.ends.low.item(), quantizer.ends.high.item()) == pytest.approx((low, high))
    quantizer.eval()(torch.tensor([100.0, -100.0]))
    assert (quantizer.ends.low.item(), quantizer.ends.high.item()) == pytest.approx((low, high))


def test_ema_ranges_are_in_the_state_and_the_others_have_none():
    assert list(ActivationQuantizer(Activations(8, "ema")).state_dict()) == ["peak"]
    assert list(ActivationQuantizer(Activations(8, "static")).state_dict()) == ["ends.low", "ends.high"]
    assert not ActivationQuantizer(Activations(8)).state_dict()


# torch's own: its tracing makes an object of each autograd function that it meets
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("ranges", RANGES)
def test_an_evaluation_is_one_graph_whatever_the_ranges(ranges):
    quantizer = ActivationQuantizer(Activations(8, ranges))
    quantizer(seeded(3, 5))
    x = seeded(3, 5, seed=1)
    compiled = torch.compile(quantizer.eval(), fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), quantizer(x))


def test_the_gradient_of_static_ranges_is_zero_where_they_clamp():
    quantizer = ActivationQuantizer(Activations(4, "static")).eval()
    quantizer.ends.low.fill_(-5.0)  # a step of 1
    quantizer.ends.high.fill_(10.0)
    x = torch.tensor([-9.0, -5.6, -5.4, 0.2, 10.4, 10.6], requires_grad=True)
    y = quantizer(x)
    y.backward(torch.arange(1.0, 7.0))
    assert y.tolist() == [-5, -5, -5, 0, 10, 10]
    assert x.grad.tolist() == [0, 0, 3, 4, 5, 0]


@pytest.mark.parametrize("ranges", ["token", "tensor"])
def test_the_gradient_of_dynamic_ranges_is_straight_through(ranges):
    x = seeded(3, 5).requires_grad_()
    grad = seeded(3, 5, seed=1)
    ActivationQuantizer(Activations(4, ranges))(x).backward(grad)
    assert torch.equal(x.grad, grad)


def test_the_gradient_of_ema_ranges_is_zero_where_they_clamp():
    quantizer = ActivationQuantizer(Activations(4, "ema"))
    quantizer.peak.fill_(7.0)  # a scale of 1
    x = torch.tensor([-9.0, -7.6, -7.4, -7.0, 0.2, 7.0, 7.4, 7.6, 9.0], requires_grad=True)
    y = quantizer.eval()(x)
    y.backward(torch.arange(1.0, 10.0))
    assert y.tolist() == [-7, -7, -7, -7, 0, 7, 7, 7, 7]
    assert x.grad.tolist() == [0, 0, 3, 4, 5, 6, 7, 0, 0]


@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("training", [True, False])
def test_inputs_all_zero_stay_zero_with_a_finite_gradient(ranges, training):
    x = torch.zeros(2, 4, requires_grad=True)
    y = ActivationQuantizer(Activations(8, ranges)).train(training)(x)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 4))
    assert torch.equal(x.grad, torch.ones(2, 4))


@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_output_has_the_input_dtype(ranges, dtype):
    x = seeded(3, 5, dtype=dtype).requires_grad_()
    quantizer = ActivationQuantizer(Activations(8, ranges))
    y = quantizer(x)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype) == (dtype, dtype)
    torch.testing.assert_close(y.float(), quantizer(x.float()), rtol=2**-7, atol=1e-2)


def test_an_inactive_quantizer_returns_its_input_and_watches_nothing():
    for ranges in ("ema", "static"):
        quantizer = ActivationQuantizer(Activations(2, ranges))
        before = {name: each.clone() for name, each in quantizer.state_dict().items()}
        quantizer.active = False
        x = seeded(3, 5)
        assert quantizer(x) is x
        assert quantizer.state_dict() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 1}, "2 to 8 bits, not 1"),
        ({"bits": 9}, "2 to 8 bits, not 9"),
        ({"ranges": "tokens"}, "unknown range of activations 'tokens': did you mean token"),
        ({"bits": 8.0}, "Activations needs bits to be an integer, not 8.0"),
        ({"ranges": None}, "needs ranges to be 'token' or 'tensor' or 'ema' or 'static', not None"),
        ({"momentum": float("nan")}, "Activations needs momentum to be a finite number, not nan"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), not 1.0"),
    ],
)
def test_activations_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Activations(**options)


def test_activations_print_short():
    assert [str(Activations(4, ranges)) for ranges in RANGES] == ["a4", "a4tensor", "a4ema", "a4static"]


# Weights


def test_a_weight_is_seen_as_it_is_until_a_set_is():
    w = seeded(4, 8)
    quantizer = WeightQuantizer(JOINT)
    assert quantizer(w) is w
    quantizer.refresh(w)
    assert quantizer.piece == Piece()
    assert not quantizer.state_dict()


@pytest.mark.parametrize("seen", [NM(2, 4), Grid(4, group=4), JOINT, Unstructured(0.5)])
def test_a_refreshed_quantizer_shows_the_projection_and_passes_the_gradient_to_every_weight(seen):
    w = seeded(4, 8).requires_grad_()
    quantizer = WeightQuantizer(JOINT)
    quantizer.seen = seen
    quantizer.refresh(w)
    y, grad = quantizer(w), seeded(4, 8, seed=1)
    y.backward(grad)
    assert torch.equal(y, seen.project(w.detach()))
    assert torch.equal(w.grad, grad)


def test_importance_reaches_the_choice_of_the_piece():
    w, importance = seeded(4, 8), seeded(4, 8, seed=1).square()
    quantizer = WeightQuantizer(NM(2, 4))
    quantizer.seen = NM(2, 4)
    quantizer.refresh(w, importance)
    assert torch.equal(quantizer(w), NM(2, 4).project(w, importance))


def test_an_inactive_quantizer_shows_the_weight_itself():
    w = seeded(4, 8)
    quantizer = WeightQuantizer(JOINT)
    quantizer.seen = JOINT
    quantizer.refresh(w)
    quantizer.active = False
    assert quantizer(w) is w


def test_a_refresh_without_rescale_chooses_the_support_under_the_scales_there_are():
    w, later = seeded(4, 8), seeded(4, 8, seed=1)
    quantizer = WeightQuantizer(JOINT)
    quantizer.seen = JOINT
    quantizer.refresh(w)
    quantizer.refresh(later, rescale=False)
    assert torch.equal(quantizer.mask, NM(2, 4).piece(later).mask)
    assert torch.equal(quantizer.scales, JOINT.piece(w).scales)


def test_query_key_and_value_round_one_input_once(monkeypatch):
    x, rounded = seeded(3, 5), []
    points = ActivationQuantizer._points
    monkeypatch.setattr(ActivationQuantizer, "_points", lambda self, x: rounded.append(x) or points(self, x))
    expected, latest = points(ActivationQuantizer(Activations(4)), x), Latest()
    for spec in (Activations(4), Activations(4), Activations(8)):
        y = ActivationQuantizer(spec, latest=latest)(x)
        assert torch.equal(y, expected) == (spec.bits == 4)
    assert len(rounded) == 2
    x.mul_(-1)  # it is another input, in the same place
    assert torch.equal(ActivationQuantizer(Activations(4), latest=latest)(x), -expected)


def test_weights_that_are_rounded_ahead_are_seen_as_without_it():
    weights = [seeded(4, 8, seed=seed).requires_grad_() for seed in range(3)]
    quantizers = [WeightQuantizer(JOINT) for _ in weights]
    for quantizer, w in zip(quantizers, weights, strict=True):
        quantizer.seen = JOINT
        quantizer.refresh(w)
    expected, grad = [quantizer(w) for quantizer, w in zip(quantizers, weights, strict=True)], seeded(4, 8, seed=9)
    round_ahead(zip(quantizers, weights, strict=True))
    for quantizer, w, other in zip(quantizers, weights, expected, strict=True):
        for y in (quantizer(w), quantizer(w)):  # as two forward passes of one step see it
            assert torch.equal(y, other)
            assert y.data_ptr() == quantizer.point.data_ptr()
        y.backward(grad)
        assert torch.equal(w.grad, grad)


def test_a_reset_forgets_the_piece():
    w = seeded(4, 8)
    quantizer = learned(JOINT, w)
    quantizer.freeze(w)
    quantizer.reset()
    assert quantizer(w) is w
    assert quantizer.piece == Piece()
    assert not quantizer.frozen
    assert not quantizer.learned
    assert not quantizer.state_dict()


def test_a_mask_is_set_only_with_what_was_rounded_under_the_one_before_let_go():
    w = seeded(4, 8)
    quantizer = WeightQuantizer(JOINT)
    quantizer.seen = NM(2, 4)
    quantizer.refresh(w)
    round_ahead([(quantizer, w)])
    every = torch.ones(4, 8, dtype=torch.bool)
    with pytest.raises(AttributeError):
        quantizer.mask = every
    quantizer.hold(Piece(every))
    assert torch.equal(quantizer(w), w)


def test_a_frozen_support_stays_while_the_scales_follow():
    w, later = seeded(4, 8), seeded(4, 8, seed=1)
    quantizer = WeightQuantizer(JOINT)
    quantizer.seen = JOINT
    quantizer.freeze(w)
    quantizer.refresh(later)
    mask = NM(2, 4).project(w) != 0
    assert torch.equal(quantizer.mask, mask)
    assert torch.equal(quantizer(later), JOINT.apply(later, JOINT.piece(later, None, mask)))
    point = quantizer.project(later)
    assert JOINT.contains(point)
    assert not point[~mask].any()


def learned(constraint, w):
    quantizer = WeightQuantizer(constraint)
    quantizer.seen = constraint
    quantizer.refresh(w)
    quantizer.learn()
    return quantizer


def test_the_learned_scale_gradient_is_lsq_by_hand():
    w = torch.tensor([[0.26, -0.9, 4.1, 0.4]], requires_grad=True)
    quantizer = learned(Grid(3), w.detach())  # codes -3 ... 3
    with torch.no_grad():
        quantizer.scales.fill_(0.5)
    y = quantizer(w)
    y.backward(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))
    assert y.tolist() == [[0.5, -1.0, 1.5, 0.5]]
    # round(v) - v where v = w / s is within the codes, else the clamped code; times 1 / sqrt(elements * q)
    slopes = [1 - 0.52, -2 + 1.8, 3.0, 1 - 0.8]
    expected = sum(g * s for g, s in zip((1, 10, 100, 1000), slopes, strict=True)) / math.sqrt(4 * 3)
    assert quantizer.scales.grad.item() == pytest.approx(expected, rel=1e-5)
    assert w.grad.tolist() == [[1, 10, 0, 1000]]  # the third is clamped


def test_the_learned_scale_gradient_is_that_of_a_straight_through_round():
    grid, w = Grid(4, group=4), seeded(3, 8)
    quantizer = learned(grid, w)
    with torch.no_grad():
        quantizer.scales.mul_(0.7)
    grad = seeded(3, 8, seed=1)
    quantizer(w).backward(grad)
    scales = quantizer.scales.detach().clone().requires_grad_()
    ratio = (w.view(3, 2, 4) / scales[..., None]).clamp(-7, 7)
    codes = ratio + (ratio.round() - ratio).detach()
    (codes * scales[..., None]).flatten().backward(grad.flatten())
    torch.testing.assert_close(quantizer.scales.grad, scales.grad / math.sqrt(4 * 7))


def test_the_learned_scale_gradient_is_the_slope_of_the_forward_pass_where_every_weight_is_clamped():
    w, grad = torch.tensor([[5.0, -6.0, 7.0, 8.0]]), torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    quantizer = learned(Grid(3), w)

    def forward(scale):
        quantizer.scales.data.fill_(scale)
        return (quantizer(w) * grad).sum()

    slope = (forward(0.51) - forward(0.49)).item() / 0.02
    forward(0.5).backward()
    assert quantizer.scales.grad.item() == pytest.approx(slope / math.sqrt(4 * 3), rel=1e-3)


def test_masked_weights_do_not_move_the_learned_scale_and_keep_their_gradient():
    w = seeded(3, 8).requires_grad_()
    quantizer = learned(JOINT, w.detach())
    mask = quantizer.mask
    assert torch.equal(quantizer(w), JOINT.project(w.detach()))
    quantizer.scales.data.mul_(0.01)  # masked weights beyond the last code keep it too
    quantizer(w).backward(torch.where(mask, 0.0, 5.0))
    assert torch.equal(quantizer.scales.grad, torch.zeros(3, 1))
    assert torch.equal(w.grad, torch.where(mask, 0.0, 5.0))


def test_learned_scales_outlive_a_refresh_as_the_same_parameter():
    w = seeded(3, 8)
    quantizer = learned(JOINT, w)
    parameter = quantizer.scales
    quantizer.scales.data.mul_(0.5)
    quantizer.refresh(seeded(3, 8, seed=1))
    assert quantizer.scales is parameter
    assert torch.equal(parameter.detach(), JOINT.piece(w).scales * 0.5)
    quantizer.hold(Piece(quantizer.mask, torch.ones(3, 1)))
    assert quantizer.scales is parameter
    assert torch.equal(parameter.detach(), torch.ones(3, 1))
    assert quantizer.learned


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("constraint", [JOINT, Grid(4)])
def test_a_projection_keeps_the_learned_scales(constraint, frozen):
    w = seeded(3, 8)
    quantizer = learned(constraint, w)
    if frozen:
        quantizer.freeze(w)
    quantizer.scales.data.mul_(0.9)
    point = quantizer.project(w)
    assert constraint.contains(point)
    expected = constraint.apply(w, Piece(constraint.piece(w).mask, quantizer.scales.detach()))
    assert torch.equal(point, expected)
    assert not torch.equal(point, constraint.project(w))


def test_a_set_without_scales_has_none_to_learn():
    quantizer = WeightQuantizer(NM(2, 4))
    with pytest.raises(ValueError, match="2:4 has no scales to learn"):
        quantizer.learn()


def test_a_weight_that_is_not_finite_is_not_projected():
    w = seeded(3, 8)
    w[0, 0] = float("inf")
    with pytest.raises(ValueError, match="0 NaN and 1 infinite"):
        WeightQuantizer(JOINT).project(w)
