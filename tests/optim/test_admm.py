import functools
import io
import math

import accelerate
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from naive_admm import NaiveAdamW, NaiveADMM, NaiveSGD, constrained_minimum, nearest_nm
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

from nxmiformer.optim import ADMM, Balanced, Constant, Ramp, SupportChange, Warmup
from nxmiformer.sets import NM, Block, Grid, Then, Transposed, Unstructured

JOINT = Then(NM(2, 4), Grid(4))


def quadratic(seed, rows, columns, condition, dtype=torch.float64):
    """A target and a Hessian with eigenvalues from 1 to `condition`."""
    generator = torch.Generator().manual_seed(seed)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    target, basis = draw(rows, columns), torch.linalg.qr(draw(columns, columns))[0]
    hessian = basis @ torch.diag(torch.linspace(1, condition, columns, dtype=torch.float64)) @ basis.T
    return target.to(dtype), hessian.to(dtype)


def loss(w, target, hessian):
    return ((w - target) @ hessian * (w - target)).sum() / 2


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


def batch(step, size=16):
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(size, 8, generator=generator), torch.randn(size, 4, generator=generator)


def wrap(model, base, **options):
    sets = {"0.weight": JOINT, "2.weight": NM(2, 4)}
    return ADMM(base, model.named_parameters(), **{"sets": sets, "rho": 0.1, "interval": 3, **options})


def train(model, optimizer, steps, start=0, scheduler=None):
    for step in range(start, start + steps):
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def weights(model):
    return {name: w.detach().clone() for name, w in model.named_parameters()}


def assert_bit_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def reloaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# Convergence


def excess(base, keep, shape, condition, seed, schedule, **options):
    """How far the result lies above the enumerated optimum, and whether plain magnitudes find its support."""
    target, hessian = quadratic(seed, *shape, condition)
    best = torch.from_numpy(constrained_minimum(target.numpy(), hessian.numpy(), keep, 4))
    w = nn.Parameter(target.clone())
    constraint = NM(keep, 4)
    optimizer = ADMM(base([w]), [("w", w)], {"w": constraint}, rho=schedule, interval=4, **options)
    scheduler = LambdaLR(optimizer, lambda step: 1 - step / 1201 if base is adam else 1)
    for _ in range(1200):
        optimizer.zero_grad()
        loss(w, target, hessian).backward()
        optimizer.step()
        scheduler.step()
    optimizer.finalize()
    assert constraint.contains(w.detach())
    above = (loss(w.detach(), target, hessian) - loss(best, target, hessian)).item()
    return above, torch.equal(constraint.project(target) != 0, best != 0)


def sgd(parameters):
    return SGD(parameters, lr=0.2)


def adam(parameters):
    return Adam(parameters, lr=0.05)


@pytest.mark.parametrize(("keep", "shape", "condition"), [(1, (2, 4), 1.5), (2, (1, 8), 2.0), (2, (2, 8), 3.0)])
@pytest.mark.parametrize(
    ("pull", "schedule"),
    [("decoupled", Ramp(0.02, 2.0, 900)), ("decoupled", Warmup(0.5, 300)), ("penalty", Ramp(0.02, 2.0, 900))],
)
def test_sgd_finds_the_enumerated_optimum(pull, schedule, keep, shape, condition):
    for seed in (0, 1):
        assert excess(sgd, keep, shape, condition, seed, schedule, pull=pull)[0] < 1e-9


@pytest.mark.parametrize("seed", [1, 5])
def test_admm_finds_the_optimum_where_the_largest_magnitudes_are_the_wrong_support(seed):
    above, magnitudes_would_do = excess(sgd, 1, (2, 4), 1.5, seed, Ramp(0.02, 2.0, 900))
    assert not magnitudes_would_do
    assert above < 1e-9


@pytest.mark.parametrize("schedule", [Constant(0.2), Balanced(0.1), SupportChange(0.05)])
def test_adam_finds_the_enumerated_optimum(schedule):
    for seed in (0, 2):
        assert excess(adam, 2, (1, 8), 2.0, seed, schedule)[0] < 1e-5


# The slow twin


def ramp(rho, step, flips):
    return 0.05 * (1.0 / 0.05) ** min(1.0, step / 30)


def support_change(rho, step, flips):
    if flips > 0.1:
        return min(1.0, rho * 1.3)
    if flips > 0.005:
        return min(1.0, rho * 1.2)
    return min(1.0, rho * 1.1) if flips > 0 else rho


BASES = {
    "sgd": (lambda p: SGD(p, lr=0.05, momentum=0.9), lambda: NaiveSGD(0.05, 0.9)),
    "adamw": (lambda p: AdamW(p, lr=0.03, weight_decay=0.1), lambda: NaiveAdamW(0.03, 0.1)),
}
SCHEDULES = {
    "ramp": (Ramp(0.05, 1.0, 30), 0.05, ramp),
    "support": (SupportChange(0.05), 0.05, support_change),
    "constant": (0.1, 0.1, lambda rho, step, flips: rho),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("dual", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("pull", ["decoupled", "penalty", "manual"])
def test_every_step_is_that_of_the_slow_twin(pull, dual, base, schedule):
    target, hessian = quadratic(3, 3, 8, 4.0)
    torch_base, naive_base = BASES[base]
    rho, first, next_rho = SCHEDULES[schedule]
    w = nn.Parameter(target.flip(1).clone())
    options = {"interval": 3, "pull": pull, "dual": dual}
    optimizer = ADMM(torch_base([w]), [("w", w)], {"w": NM(2, 4)}, rho=rho, **options)
    project = functools.partial(nearest_nm, keep=2, group=4)
    twin = NaiveADMM(w.detach().numpy(), project, naive_base(), first, next_rho, **options)
    for _ in range(40):
        optimizer.zero_grad()
        loss(w, target, hessian).backward()
        if pull == "manual":
            optimizer.add_penalty()
        optimizer.step()
        twin.step((twin.w - target.numpy()) @ hessian.numpy())
        close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)
        close(w.detach().numpy(), twin.w)
        close(optimizer.z["w"].numpy(), twin.z)
        close(optimizer.u["w"].numpy() if dual else np.zeros_like(twin.u), twin.u)
        assert optimizer.rho["w"] == pytest.approx(twin.rho)
    residuals = optimizer.residuals["w"]
    expected = (twin.gap, twin.dual_residual, twin.flips)
    assert tuple(residuals) == pytest.approx(expected, rel=1e-5)


def test_an_update_right_after_construction_starts_the_dual_at_w_minus_z():
    model = network()
    optimizer = wrap(model, SGD(model.parameters(), lr=0.1))
    optimizer.update()
    w = model[2].weight.detach()
    assert torch.equal(optimizer.u["2.weight"], w - NM(2, 4).project(w))


def test_the_multiplier_rho_u_outlives_a_change_of_rho():
    def multiplier(rho):
        model = network()
        optimizer = wrap(model, SGD(model.parameters(), lr=0.1), rho=rho, interval=1, dual=1.0)
        optimizer.rho = dict.fromkeys(optimizer.rho, 0.1)
        optimizer.update()
        return optimizer.rho["0.weight"] * optimizer.u["0.weight"], optimizer.rho["0.weight"]

    kept, stayed = multiplier(Constant(0.1))
    changed, rose = multiplier(Constant(0.8))
    assert (stayed, rose) == (0.1, 0.8)
    torch.testing.assert_close(changed, kept)


# State


@pytest.mark.parametrize(
    "options", [{}, {"dual": 0.0}, {"importance": "second_moment"}, {"importance": "adam"}, {"dtype": torch.bfloat16}]
)
@pytest.mark.parametrize("schedule", [Ramp(0.01, 1.0, 15), Balanced(0.1), SupportChange(0.1)])
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(schedule, options):
    def fresh():
        model = network()
        optimizer = wrap(model, AdamW(model.parameters(), lr=0.02), rho=schedule, **options)
        return model, optimizer, OneCycleLR(optimizer, max_lr=0.02, total_steps=20)

    whole, optimizer, scheduler = fresh()
    train(whole, optimizer, 20, scheduler=scheduler)
    first, before, scheduler = fresh()
    train(first, before, 10, scheduler=scheduler)
    states = reloaded([first.state_dict(), before.state_dict(), scheduler.state_dict()])
    second, after, scheduler = fresh()
    for part, state in zip((second, after, scheduler), states, strict=True):
        part.load_state_dict(state)
    assert after.metrics(layers=True) == before.metrics(layers=True)
    train(second, after, 10, start=10, scheduler=scheduler)
    assert_bit_equal(weights(second), weights(whole))
    assert_bit_equal(after.z, optimizer.z)
    assert_bit_equal(after.u, optimizer.u)
    assert (after.rho, after.steps) == (optimizer.rho, optimizer.steps)
    assert after.metrics(layers=True) == optimizer.metrics(layers=True)


def test_a_state_holds_only_tensors_numbers_and_strings():
    model = network()
    optimizer = wrap(model, AdamW(model.parameters()))
    train(model, optimizer, 4)

    def leaves(value):
        if isinstance(value, dict):
            return [leaf for pair in value.items() for part in pair for leaf in leaves(part)]
        return [leaf for part in value for leaf in leaves(part)] if isinstance(value, list | tuple) else [value]

    kinds = {type(leaf) for leaf in leaves(optimizer.state_dict())}
    assert kinds <= {torch.Tensor, int, float, str, bool, type(None)}


def test_the_state_of_other_sets_is_refused_and_nothing_changes():
    theirs, ours = network(1), network(2)
    other = wrap(theirs, AdamW(theirs.parameters()), sets={"0.weight": NM(1, 4), "2.weight": NM(2, 4)})
    train(theirs, other, 5)
    optimizer = wrap(ours, AdamW(ours.parameters()), sets={"0.weight": JOINT})
    train(ours, optimizer, 2)
    before = reloaded(optimizer.state_dict())
    with pytest.raises(ValueError, match="over other sets") as error:
        optimizer.load_state_dict(other.state_dict())
    assert f"0.weight: {NM(1, 4)!r} of (16, 8) there, {JOINT!r} of (16, 8) here" in str(error.value)
    assert f"2.weight: {NM(2, 4)!r} of (4, 16) there, free here" in str(error.value)
    after = optimizer.state_dict()
    assert after["admm"].pop("sets") == before["admm"].pop("sets")
    torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)


def test_the_state_of_a_weight_of_another_shape_is_refused():
    optimizers = []
    for rows in (1, 4):  # one row would spread over four
        w = nn.Parameter(torch.ones(rows, 8))
        optimizers.append(ADMM(SGD([w]), [("w", w)], {"w": NM(2, 4)}, rho=0.1))
    with pytest.raises(ValueError, match=r"of \(1, 8\) there, .* of \(4, 8\) here"):
        optimizers[1].load_state_dict(optimizers[0].state_dict())


def test_the_state_of_a_plain_optimizer_is_refused():
    model = network()
    optimizer = wrap(model, AdamW(model.parameters()))
    with pytest.raises(ValueError, match="not the state of an ADMM"):
        optimizer.load_state_dict(AdamW(model.parameters()).state_dict())


def test_a_state_without_a_dual_is_refused_by_an_optimizer_with_one():
    model = network()
    optimizer = wrap(model, AdamW(model.parameters()))
    with pytest.raises(ValueError, match="whether they keep a dual"):
        optimizer.load_state_dict(wrap(model, AdamW(model.parameters()), dual=0).state_dict())


@pytest.mark.filterwarnings("ignore:.* weights that want gradients are of 16 bits")
@pytest.mark.parametrize(
    ("own", "of_weights"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (None, torch.bfloat16)]
)
def test_z_and_u_keep_their_own_dtype(own, of_weights):
    model = network().to(of_weights)
    expected = {own or of_weights}

    def dtypes(optimizer):
        return {tensor.dtype for tensor in (*optimizer.z.values(), *optimizer.u.values())}

    def steps(optimizer, count):
        for step in range(count):
            x, y = batch(step)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x.to(of_weights)), y.to(of_weights)).backward()
            optimizer.step()

    optimizer = wrap(model, AdamW(model.parameters()), dtype=own)
    assert dtypes(optimizer) == expected
    steps(optimizer, 4)
    assert dtypes(optimizer) == expected
    again = wrap(model, AdamW(model.parameters()), dtype=own)
    again.load_state_dict(reloaded(optimizer.state_dict()))
    assert dtypes(again) == expected
    steps(again, 4)
    assert dtypes(again) == expected
    assert {w.dtype for w in model.parameters()} == {of_weights}
    if own is not None:
        assert again.u["2.weight"].abs().max() > 0


@pytest.mark.filterwarnings("ignore:.* weights that want gradients are of 16 bits")
def test_a_float32_dual_adds_up_what_a_bfloat16_weight_would_round_away():
    w = nn.Parameter(torch.tensor([[256.0, 1.0, 0.0, 0.0]], dtype=torch.bfloat16))
    optimizer = ADMM(SGD([w], lr=0.0), [("w", w)], {"w": NM(1, 4)}, rho=1e-6, dtype=torch.float32)
    optimizer.u["w"][0, 0] = 0.25  # an eighth of the unit in the last place of 256
    optimizer.update()
    assert optimizer.z["w"][0, 0] == 256.25


def test_weights_of_16_bits_are_refused_or_warned_of_with_the_remedy():
    model = network().half()
    with pytest.raises(ValueError, match=r"2 weights .*0\.weight is torch\.float16.* model\.float\(\) first"):
        wrap(model, AdamW(model.parameters()))
    model.bfloat16()
    with pytest.warns(UserWarning, match=r"0\.weight is torch\.bfloat16.* dtype=torch\.float32"):
        wrap(model, AdamW(model.parameters()))


def test_finalize_makes_every_weight_a_member():
    model = network()
    sets = {"0.weight": JOINT, "2.weight": Unstructured(0.3)}
    optimizer = wrap(model, AdamW(model.parameters(), lr=0.05), sets=sets)
    train(model, optimizer, 7)
    parameters = dict(model.named_parameters())
    assert not any(constraint.contains(parameters[name].detach()) for name, constraint in sets.items())
    nearest = {name: constraint.project(parameters[name].detach()) for name, constraint in sets.items()}
    optimizer.finalize()
    assert all(constraint.contains(parameters[name].detach()) for name, constraint in sets.items())
    assert_bit_equal({name: parameters[name].detach() for name in sets}, nearest)


# As a plain optimizer


def bases():
    return {
        "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        "adamw": lambda p: AdamW(p, lr=0.02),
        "lbfgs": lambda p: LBFGS(p, lr=0.5, max_iter=4),
    }


@pytest.mark.parametrize("base", bases())
def test_without_sets_it_is_the_base_optimizer(base):
    plain, wrapped = network(), network()
    theirs = bases()[base](plain.parameters())
    ours = wrap(wrapped, bases()[base](wrapped.parameters()), sets={})
    for model, optimizer in ((plain, theirs), (wrapped, ours)):
        for step in range(8):
            x, y = batch(step)

            def closure(model=model, optimizer=optimizer, x=x, y=y):
                optimizer.zero_grad()
                value = nn.functional.mse_loss(model(x), y)
                value.backward()
                return value

            assert optimizer.step(closure) > 0
    assert_bit_equal(weights(wrapped), weights(plain))
    metrics = ours.metrics()
    assert math.isnan(metrics.pop("gap"))
    assert metrics.pop("rho") == 0
    assert all(map(math.isnan, metrics.values()))


def test_weights_without_a_set_are_the_base_optimizers_alone():
    plain, wrapped = network(), network()
    theirs, ours = SGD(plain.parameters(), lr=0.1), SGD(wrapped.parameters(), lr=0.1)
    ours = wrap(wrapped, ours, sets={"2.weight": NM(2, 4)})
    train(plain, theirs, 1)
    train(wrapped, ours, 1)
    differing = [name for name, w in weights(wrapped).items() if not torch.equal(w, weights(plain)[name])]
    assert differing == ["2.weight"]


def test_gradients_may_be_accumulated():
    whole, parts = network(), network()
    train(whole, optimizer := wrap(whole, SGD(whole.parameters(), lr=0.1)), 6)
    accumulating = wrap(parts, SGD(parts.parameters(), lr=0.1))
    for step in range(6):
        accumulating.zero_grad()
        for x, y in zip(*(t.chunk(4) for t in batch(step)), strict=True):
            (nn.functional.mse_loss(parts(x), y) / 4).backward()
        accumulating.step()
    assert accumulating.steps == optimizer.steps == 6
    torch.testing.assert_close(weights(parts), weights(whole))


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: LambdaLR(o, lambda step: 0.9**step),
        lambda o: OneCycleLR(o, max_lr=0.1, total_steps=12),
        lambda o: ReduceLROnPlateau(o, patience=0, factor=0.5),
    ],
)
def test_learning_rate_schedulers_reach_the_base_optimizer(schedule):
    plain, wrapped = network(), network()
    theirs, inner = (SGD(model.parameters(), lr=0.1, momentum=0.9) for model in (plain, wrapped))
    ours = wrap(wrapped, inner, sets={})
    rates = []
    for model, optimizer in ((plain, theirs), (wrapped, ours)):
        scheduler = schedule(optimizer)
        for step in range(10):
            train(model, optimizer, 1, start=step)
            scheduler.step(*[1.0] * isinstance(scheduler, ReduceLROnPlateau))
        rates.append([(group["lr"], group["momentum"]) for group in optimizer.param_groups])
    assert rates[0] == rates[1] == [(group["lr"], group["momentum"]) for group in inner.param_groups]
    assert rates[0] != [(0.1, 0.9)]
    assert_bit_equal(weights(wrapped), weights(plain))


def test_learning_rates_still_reach_the_base_after_a_state_is_loaded():
    model = network()
    base = SGD(model.parameters(), lr=0.1)
    optimizer = wrap(model, base)
    scheduler = LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.load_state_dict(reloaded(optimizer.state_dict()))
    train(model, optimizer, 2, scheduler=scheduler)
    assert base.param_groups[0]["lr"] == 0.025
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state


def test_a_further_group_is_trained_but_not_constrained():
    model, extra = network(), nn.Parameter(torch.ones(3))
    optimizer = wrap(model, SGD(model.parameters(), lr=0.1))
    optimizer.add_param_group({"params": [extra], "lr": 0.5})
    extra.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(extra.detach(), torch.full((3,), 0.5))
    assert len(optimizer.param_groups) == len(optimizer.base.param_groups) == 2


def test_a_closure_sees_the_penalty_and_its_loss_is_returned():
    with_closure, without = network(), network()
    ours = wrap(with_closure, SGD(with_closure.parameters(), lr=0.1), pull="penalty")
    theirs = wrap(without, SGD(without.parameters(), lr=0.1), pull="penalty")
    x, y = batch(0)

    def closure():
        ours.zero_grad()
        value = nn.functional.mse_loss(with_closure(x), y)
        value.backward()
        return value

    assert ours.step(closure) == nn.functional.mse_loss(without(x), y)
    train(without, theirs, 1)
    assert_bit_equal(weights(with_closure), weights(without))


def test_manual_pull_before_clipping_clips_the_penalty_too():
    model = network()
    optimizer = wrap(model, SGD(model.parameters(), lr=1.0), pull="manual", rho=100.0)
    before = weights(model)
    x, y = batch(0)
    nn.functional.mse_loss(model(x), y).backward()
    optimizer.add_penalty()
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    optimizer.step()
    moved = sum((w - before[name]).square().sum() for name, w in weights(model).items())
    assert moved.sqrt().item() == pytest.approx(0.01, rel=1e-3)


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(True)
    yield accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4)
    AcceleratorState._reset_state(True)


def test_under_accelerate_a_step_is_an_optimizer_step_and_not_a_micro_step(accelerator):
    plain, model = network(), network()
    expected = wrap(plain, SGD(plain.parameters(), lr=0.1))
    train(plain, expected, 6)
    inner = wrap(model, SGD(model.parameters(), lr=0.1))
    model, optimizer = accelerator.prepare(model, inner)
    for step in range(6):
        for x, y in zip(*(t.chunk(4) for t in batch(step)), strict=True):
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.mse_loss(model(x), y))
                optimizer.step()
                optimizer.zero_grad()
    assert inner.steps == 6
    torch.testing.assert_close(weights(model), weights(plain))
    torch.testing.assert_close(inner.u, expected.u)


def test_it_trains_under_bfloat16_autocast():
    model = network()
    optimizer = wrap(model, AdamW(model.parameters(), lr=0.02), rho=0.5)
    for step in range(6):
        x, y = batch(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            value = nn.functional.mse_loss(model(x), y)
        value.backward()
        optimizer.step()
    assert {tensor.dtype for tensor in (*model.parameters(), *optimizer.z.values())} == {torch.float32}
    assert all(w.isfinite().all() for w in model.parameters())
    assert optimizer.metrics()["gap"] < 1


def test_a_weight_without_a_gradient_has_no_penalty_but_the_proximal_step():
    for pull in ("penalty", "decoupled"):
        model = network()
        optimizer = wrap(model, SGD(model.parameters(), lr=0.1), pull=pull, sets={"2.weight": NM(2, 4)})
        before = weights(model)["2.weight"]
        model[0](batch(0)[0]).sum().backward()  # the second layer has no gradient
        optimizer.step()
        z = NM(2, 4).project(before)
        expected = before if pull == "penalty" else (before + 0.1 * z) / 1.1
        torch.testing.assert_close(model[2].weight.detach(), expected)


def test_frozen_parameters_without_a_set_stay():
    model = network()
    model[0].requires_grad_(False)
    before = weights(model)
    optimizer = wrap(model, AdamW(model.parameters(), lr=0.1), sets={"2.weight": NM(2, 4)})
    train(model, optimizer, 4)
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[2].weight, before["2.weight"])


# Errors


def test_an_unknown_name_is_answered_with_the_nearest():
    model = network()
    with pytest.raises(ValueError, match=r"unknown parameter in sets '0.wieght': did you mean 0\.weight"):
        wrap(model, SGD(model.parameters()), sets={"0.wieght": NM(2, 4)})


def test_every_parameter_that_cannot_be_constrained_is_named():
    model = network()
    with torch.no_grad():
        model[2].weight[1, 2] = float("nan")
    sets = {"0.weight": NM(2, 5), "0.bias": NM(2, 4), "2.weight": NM(2, 4)}
    with pytest.raises(ValueError, match="these parameters cannot be constrained") as error:
        wrap(model, SGD(model[0].parameters()), sets=sets)
    lines = str(error.value).splitlines()
    assert "0.weight: 2:5 rejects a weight of shape (16, 8): in_features 8 is not a multiple of the group 5" in lines[1]
    assert "0.bias: 2:4 rejects a weight of shape (16,): it has 1 dimensions, not 2" in lines[2]
    assert "2.weight: the base optimizer does not train it" in lines[3]
    assert "2.weight: weight holds 1 NaN and 0 infinite values" in lines[4]


def test_a_weight_that_turns_nan_in_training_is_named():
    model = network()
    optimizer = wrap(model, SGD(model.parameters(), lr=float("inf")), interval=1)
    with pytest.raises(ValueError, match=r"0\.weight: weight holds \d+ NaN"):
        train(model, optimizer, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval must be at least one"),
        ({"pull": "decopled"}, "did you mean decoupled"),
        ({"dual": 1.5}, r"dual must be in \[0, 1\], not 1.5"),
        ({"dual": -0.1}, r"dual must be in \[0, 1\]"),
        ({"dual": float("nan")}, r"dual must be in \[0, 1\]"),
        ({"rho": 0.0}, "rho must be a positive number, not 0"),
        ({"rho": float("inf")}, "rho must be a positive number"),
        ({"importance": "second_momnet"}, "did you mean second_moment"),
    ],
)
def test_an_option_out_of_range_is_refused(options, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        wrap(model, SGD(model.parameters()), **options)


# Metrics, importance, orientation


def test_metrics_are_the_relative_residuals_by_hand():
    a, b = (nn.Parameter(torch.tensor([values])) for values in ([3.0, 1.0, 2.0, 0.5], [1.0, 4.0, 0.0, 0.0]))
    optimizer = ADMM(SGD([a, b], lr=1.0), [("a", a), ("b", b)], {"a": NM(1, 4), "b": NM(1, 4)}, rho=0.25)
    assert all(map(math.isnan, (optimizer.metrics()["gap"], optimizer.metrics()["flips"])))
    with torch.no_grad():
        a.copy_(torch.tensor([[0.0, 1.0, 2.0, 0.0]]))  # Z moves from (3 0 0 0) to (0 0 2 0)
    optimizer.update()
    expected = {"gap/a": 1 / 5**0.5, "dual/a": (13 / 5) ** 0.5, "flips/a": 2 / 4, "rho/a": 0.25}
    expected |= {"gap/b": 1 / 17**0.5, "dual/b": 0.0, "flips/b": 0.0, "rho/b": 0.25}
    overall = {"gap": (2 / 22) ** 0.5, "dual": (13 / 22) ** 0.5, "flips": 2 / 8, "rho": 0.25}
    assert optimizer.metrics(layers=True) == pytest.approx({**overall, **expected})
    assert optimizer.metrics() == pytest.approx(overall)


def test_second_moments_weigh_the_projection():
    w = nn.Parameter(torch.tensor([[1.0, 1.1, 1.2, 1.3]]))
    optimizer = ADMM(
        Adam([w], lr=0.0), [("w", w)], {"w": NM(1, 4)}, rho=1e-9, interval=1, dual=0, importance="second_moment"
    )
    assert optimizer.z["w"].nonzero()[:, 1].tolist() == [3]  # no moments yet: magnitudes
    w.grad = torch.tensor([[3.0, 0.1, 0.1, 0.1]])
    optimizer.step()
    assert optimizer.z["w"].nonzero()[:, 1].tolist() == [0]


def test_the_metric_of_adam_weighs_the_projection_by_the_roots_of_the_second_moments():
    w = nn.Parameter(torch.tensor([[1.0, 1.5, 1.2, 1.3]]))
    optimizer = ADMM(Adam([w], lr=0.0), [("w", w)], {"w": NM(1, 4)}, rho=1e-9, interval=1, dual=0, importance="adam")
    w.grad = torch.tensor([[2.0, 1.0, 0.1, 0.1]])
    optimizer.step()
    assert optimizer.z["w"].nonzero()[:, 1].tolist() == [1]  # 2 * 1 < 1 * 1.5**2, though 4 * 1 is not
    w.grad = torch.tensor([[3.0, 0.9, 0.1, 0.1]])
    optimizer.step()
    assert optimizer.z["w"].nonzero()[:, 1].tolist() == [0]


def test_the_decoupled_pull_is_the_penalty_in_the_metric_of_adam_solved_exactly():
    lr, strength, betas, eps = 0.01, 7.0, (0.9, 0.999), 1e-8
    w = nn.Parameter(torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    optimizer = ADMM(Adam([w], lr, betas, eps), [("w", w)], {"w": NM(2, 4)}, rho=strength * lr, interval=1)
    mean, square = torch.zeros_like(w), torch.zeros_like(w)
    for step in range(1, 5):
        w.grad = torch.randn(4, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        mean, square = betas[0] * mean + 0.1 * w.grad, betas[1] * square + 0.001 * w.grad**2
        metric = (square / (1 - betas[1] ** step)).sqrt() + eps
        descent, target = mean / (1 - betas[0] ** step), optimizer.z["w"] - optimizer.u["w"]
        exact = (metric / lr * w.detach() - descent + strength * metric * target) / (metric / lr + strength * metric)
        optimizer.step()
        torch.testing.assert_close(w.detach(), exact)


@pytest.mark.parametrize("importance", ["second_moment", "adam"])
def test_second_moments_need_an_adam(importance):
    model = network()
    optimizer = wrap(model, SGD(model.parameters(), lr=0.1, momentum=0.9), importance=importance, interval=1)
    with pytest.raises(ValueError, match=r"0\.weight under SGD has \['momentum_buffer'\]"):
        train(model, optimizer, 1)


@pytest.mark.parametrize("inner", [JOINT, NM(1, 4), Grid(3, group=4), Block(2, 4, 0.5)])
@pytest.mark.parametrize("options", [{}, {"importance": "second_moment"}])
def test_a_transposed_set_constrains_a_weight_stored_in_out_as_its_transpose(inner, options):
    target, hessian = quadratic(0, 6, 8, 3.0, torch.float32)
    stored = nn.Parameter(target.t().clone())
    plain = nn.Parameter(target.clone())
    optimizers = [
        ADMM(Adam([p], lr=0.05), [("w", p)], {"w": constraint}, rho=0.3, interval=2, **options)
        for p, constraint in ((stored, Transposed(inner)), (plain, inner))
    ]
    for _ in range(9):
        stored.grad = ((stored.t() - 2 * target) @ hessian).detach().t().clone()
        plain.grad = ((plain - 2 * target) @ hessian).detach().clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(stored.detach().t(), plain.detach())
    for optimizer in optimizers:
        optimizer.finalize()
    assert Transposed(inner).contains(stored.detach())
    assert inner.contains(stored.detach().t())
    torch.testing.assert_close(stored.detach().t(), plain.detach())
