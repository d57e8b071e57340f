"""One table of laws for every compression method, and then what each method promises beyond them."""

import copy

import pytest
import torch
import transformers
from every import METHODS
from torch.optim import AdamW

from nxmiformer.applied.convert import convert, verify
from nxmiformer.layers.found import compressed_layers
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.targets import find_targets
from nxmiformer.methods.admm import Admm
from nxmiformer.methods.admm_paper import AdmmPaper
from nxmiformer.methods.base import Calibration, Length
from nxmiformer.methods.dense import Dense
from nxmiformer.methods.fixed_mask import FixedMask
from nxmiformer.methods.one_shot import OneShot
from nxmiformer.methods.sr_ste import SrSte
from nxmiformer.methods.ste_qat import SteQat
from nxmiformer.optim import ADMM, Balanced, Constant, Ramp, SupportChange, Warmup
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import NM, Block, Grid, Then, Transposed

JOINT = Then(NM(2, 4), Grid(4))
SETS = {"2of4": NM(2, 4), "int4": Grid(4), "2of4_int4": JOINT, "1of4_int8": Then(NM(1, 4), Grid(8))}
STEPS, EPOCH = 20, 5
COARSE = Then(Block(1, 2, 0.9), Grid(2))  # many a block that is kept rounds to zero


def bert():
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )
    return transformers.BertForSequenceClassification(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=20,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=8,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        initializer_range=0.2,
        pad_token_id=0,
    )
    return transformers.GPT2ForSequenceClassification(config)


MODELS = {"bert": bert, "gpt2": gpt2}


def make(model="bert", constraint=JOINT, activations=None, method=None):
    """A converted model in training mode, and its plan, whose first layer has zeros for a method that only prunes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = MODELS[model]()
    targets = find_targets(made)
    weights = {target.name: constraint for target in targets.layers}
    if method is not None and method.prunes and constraint.sparsity is None:
        weights[targets.layers[0].name] = Then(NM(2, 4), constraint)
    plan = CompressionPlan.assigned(made, targets, weights, activations)
    return convert(made, plan).train(), plan


def batch():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 20, (8, 6), generator=generator)
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": torch.randint(2, (8,), generator=generator),
    }


class Run:
    """A phase, step by step, in the order that `Method` names."""

    def __init__(self, model, method, steps=STEPS, lr=0.01):
        self.model, self.method, self.step, self.losses = model, method, 0, []
        method.attach(model, Length(steps, EPOCH))
        self.optimizer = method.optimizer(AdamW([p for _, p in method.parameters()], lr=lr))

    def backward(self):
        self.method.before_step(self.step)
        self.optimizer.zero_grad()
        loss = self.model(**batch()).loss
        loss.backward()
        self.losses.append(loss.item())

    def take(self, steps):
        for _ in range(steps):
            self.backward()
            self.method.before_clip()
            self.optimizer.step()
            self.step += 1
        return self


def run(model, method, steps=STEPS, lr=0.01):
    return Run(model, method, steps, lr).take(steps)


@torch.no_grad()
def logits(model):
    return model(**batch()).logits


def copies(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changed(model, before):
    """Names of the parameters that are not what they were, bit for bit."""
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


@pytest.fixture(params=[("bert", "2of4"), ("bert", "int4"), ("bert", "2of4_int4"), ("gpt2", "2of4_int4")], ids="-".join)
def made(request, method):
    model, constraint = request.param
    return make(model, SETS[constraint], Activations(), method)


# What every method does.


def test_a_method_that_only_prunes_refuses_a_model_without_zeros_to_choose_and_the_others_take_it(method):
    model = make(constraint=Grid(4))[0]
    if method.prunes:
        with pytest.raises(ValueError, match="prunes, and int4 leaves nothing to prune: take a plan with sparsity"):
            method().attach(model, Length(STEPS, EPOCH))
    else:
        run(model, method(), steps=1)


def test_the_loss_falls_and_every_compressed_weight_ends_in_its_set(method, made):
    model, plan = made
    trained = run(model, method(), lr=0.02 if method is AdmmPaper else 0.01)
    assert sum(trained.losses[-3:]) < 0.9 * sum(trained.losses[:3])
    before = copies(model)
    moved = trained.method.finalize()
    verify(model, plan)
    assert set(moved.layers) == set(plan.layers)
    there = method is FixedMask and next(iter(plan.layers.values())).weight.grid is None  # it prunes as it starts
    assert (0 if there else 1e-4) <= moved.overall < 1
    assert changed(model, before) == (set() if there else {f"{name}.weight" for name in plan.layers})


def test_as_finished_shows_what_finalize_leaves_and_puts_every_weight_back(method, made):
    model, plan = made
    phase = run(model, method(), steps=6)
    before, seen = copies(model), logits(model)
    with phase.method.as_finished():
        verify(model, plan)
        shown = logits(model)
    assert changed(model, before) == set()
    assert torch.equal(logits(model), seen)
    phase.method.finalize()
    assert torch.equal(logits(model), shown)


def test_training_twice_gives_the_same_bits(method):
    model, _ = make(activations=Activations())
    twin = copy.deepcopy(model)
    one, other = run(model, method(), steps=7), run(twin, method(), steps=7)
    assert one.losses == other.losses
    assert changed(model, copies(twin)) == set()


@pytest.mark.parametrize(
    ("kind", "constraint", "learned"),
    [
        ("bert", COARSE, False),
        ("bert", Grid(4), True),
        ("gpt2", JOINT, True),
    ],
    ids=str,
)
def test_a_run_goes_on_from_its_state_as_if_it_had_not_stopped(method, kind, constraint, learned):
    model, _ = make(kind, constraint, Activations(), method)
    options = {"refresh": 3, "rescale": 4, "learned_scales": learned}
    phase = Run(model, method(**options)).take(7)
    twin, _ = make(kind, constraint, Activations(), method)
    plain = {key: value for key, value in model.state_dict().items() if not key.endswith(".quantizer.scales")}
    twin.load_state_dict(plain)
    again = Run(twin, method(**options))
    state = copy.deepcopy((phase.method.state_dict(), phase.optimizer.state_dict()))
    again.method.load_state_dict(state[0], 7)
    again.optimizer.load_state_dict(state[1])
    again.step = 7
    assert torch.equal(logits(twin), logits(model))
    phase.take(6), again.take(6)
    assert again.losses == phase.losses[7:]
    assert changed(twin, copies(model)) == set()


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_quantizers_stay_off_for_exactly_so_many_steps_as_delay_says(method, delay):
    model, _ = make(activations=Activations(4))
    plain = copy.deepcopy(model)
    for layer in compressed_layers(plain).values():
        layer.inputs.active = False
    phase = Run(model, method(delay=delay))
    for step in range(5):
        phase.method.before_step(step)
        layers = compressed_layers(model).values()
        assert {layer.quantizer.active for layer in layers} == {step >= delay}
        assert {layer.inputs.active for layer in layers} == {step >= delay}
        plain.load_state_dict(model.state_dict())
        assert torch.equal(logits(model), logits(plain)) == (step < delay)
        phase.take(1)


@pytest.mark.parametrize("step", range(5))
def test_a_run_that_goes_on_within_the_delay_has_its_quantizers_off_and_after_it_on(method, step):
    model, _ = make(activations=Activations())
    phase = Run(model, method(delay=2))
    phase.method.load_state_dict(copy.deepcopy(phase.method.state_dict()), step)
    phase.step = step
    phase.method.before_step(step)
    assert {layer.quantizer.active for layer in compressed_layers(model).values()} == {step >= 2}


def test_a_method_trains_biases_and_norms_too_and_the_papers_the_compressed_layers_alone(method, made):
    model, plan = made
    before = copies(model)
    run(model, method(), steps=3)
    moved = changed(model, before)
    layers = {f"{name}.{part}" for name in plan.layers for part in ("weight", "bias")}
    if method is AdmmPaper:
        assert moved == layers
    else:
        unused = {name for name in before if "token_type_embeddings" in name}  # one type only: half of it is never seen
        assert moved | unused == set(before)


def test_a_method_forgets_what_a_method_before_it_left_behind(method):
    model, plan = make(activations=Activations())
    run(model, FixedMask(learned_scales=True), steps=3).method.finalize()
    fresh, _ = make(activations=Activations())
    assert {layer.quantizer.learned for layer in compressed_layers(model).values()} == {True}
    fresh.load_state_dict({k: v for k, v in model.state_dict().items() if not k.endswith("quantizer.scales")})
    after, alone = run(model, method(), steps=6), run(fresh, method(), steps=6)
    assert after.losses == alone.losses
    assert list(dict(model.named_parameters())) == list(dict(fresh.named_parameters()))
    after.method.finalize(), alone.method.finalize()
    assert changed(model, copies(fresh)) == set()
    verify(model, plan)


@pytest.mark.parametrize("option", ["refresh", "rescale", "delay"])
def test_steps_out_of_range_are_refused(method, option):
    with pytest.raises(ValueError, match=f"{option} must be at least"):
        method(**{option: -1})


@pytest.mark.parametrize("name", ["ste_qat", "fixed_mask", "sr_ste", "admm", "admm_paper"])
def test_learned_scales_are_parameters_that_train_and_the_weights_end_on_their_grid(name):
    model, plan = make()
    phase = Run(model, METHODS[name](learned_scales=True))
    scales = {n: p for n, p in phase.method.parameters() if n.endswith(".quantizer.scales")}
    assert {n.removesuffix(".quantizer.scales") for n in scales} == set(plan.layers)
    before = {n: p.detach().clone() for n, p in scales.items()}
    phase.take(10)
    assert all(not torch.equal(p, before[n]) for n, p in scales.items())
    kept = {n: layer.quantizer.piece.scales.clone() for n, layer in phase.method.layers.items()}
    phase.method.finalize()
    verify(model, plan)
    for n, layer in phase.method.layers.items():
        codes = layer.matrix.detach() / kept[n]
        torch.testing.assert_close(codes, codes.round(), atol=1e-4, rtol=0)


def test_scales_cannot_be_learned_where_there_are_none():
    model, _ = make(constraint=NM(2, 4))
    with pytest.raises(ValueError, match="2:4 has no scales to learn"):
        SteQat(learned_scales=True).attach(model, Length(1, 1))


# Dense, and what each method does by itself.


def test_dense_training_is_that_of_the_plain_model_and_compresses_nothing():
    model, _ = make(activations=Activations())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = bert().train()
    phase = run(model, Dense(), steps=5)
    optimizer = AdamW(plain.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        plain(**batch()).loss.backward()
        optimizer.step()
    before = copies(model)
    assert all(torch.equal(p, before[name]) for name, p in plain.named_parameters())
    with phase.method.as_finished():
        assert torch.equal(logits(model), logits(plain))
    assert phase.method.finalize() == ({}, 0.0)
    assert changed(model, before) == set()


def test_one_shot_is_the_projection_of_the_dense_weights():
    model, plan = make()
    before = copies(model)
    method = OneShot()
    method.attach(model, Length(0, 1))
    method.finalize()
    assert changed(model, before) == {f"{name}.weight" for name in plan.layers}
    for name in plan.layers:
        assert torch.equal(model.get_parameter(f"{name}.weight"), JOINT.project(before[f"{name}.weight"]))


@pytest.mark.parametrize("name", ["2of4", "2of4_int4"])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_sr_ste_adds_decay_times_the_weights_outside_the_support(kind, name):
    model, plan = make(kind, SETS[name])
    phase = Run(model, SrSte(decay=0.3)).take(3)
    phase.backward()
    before = {n: layer.weight.grad.clone() for n, layer in phase.method.layers.items()}
    phase.method.before_clip()
    for n, layer in phase.method.layers.items():
        mask = NM(2, 4).mask(layer.matrix.detach().abs()).float()
        w = layer.weight.detach()
        outside = 1 - (mask.t() if plan.layers[n].transposed else mask)
        torch.testing.assert_close(layer.weight.grad, before[n] + 0.3 * outside * w)
        assert not torch.equal(layer.weight.grad, before[n])


def test_sr_ste_of_a_grid_alone_is_straight_through_training():
    one, _ = make(constraint=Grid(4))
    other, _ = make(constraint=Grid(4))
    assert run(one, SrSte(refresh=16), steps=5).losses == run(other, SteQat(), steps=5).losses


def test_sr_ste_with_much_decay_empties_what_is_pruned():
    model, _ = make(constraint=NM(2, 4))
    weak, strong = (run(copy.deepcopy(model), SrSte(decay=d), steps=30).method.finalize().overall for d in (1e-6, 10.0))
    assert strong < 0.7 * weak


@pytest.mark.parametrize(
    ("kind", "name", "learned"),
    [
        ("bert", "2of4", False),
        ("bert", "2of4_int4", False),
        ("bert", "1of4_int8", True),
        ("gpt2", "2of4", False),
        ("gpt2", "2of4_int4", True),
    ],
)
def test_a_fixed_mask_is_that_of_the_dense_weights_and_prunes_exactly_to_the_end(kind, name, learned):
    model, plan = make(kind, SETS[name])
    masks = {n: SETS[name].piece(layer.matrix.detach()).mask for n, layer in compressed_layers(model).items()}
    phase = Run(model, FixedMask(refresh=2, rescale=3, learned_scales=learned), lr=0.05)
    for _ in range(8):
        for n, layer in phase.method.layers.items():
            assert torch.equal(layer.quantizer.mask, masks[n])
            assert not layer.matrix[~masks[n]].any()
        phase.take(1)
    phase.method.finalize()
    verify(model, plan)
    assert not any(layer.matrix[~masks[n]].any() for n, layer in phase.method.layers.items())


def test_admm_hands_the_support_over_and_leaves_kept_weights_between_the_levels_of_their_grid():
    model, _ = make()
    run = Run(model, Admm(rho=1.0, interval=2))
    run.take(STEPS)
    before = {name: layer.matrix.detach().clone() for name, layer in run.method.layers.items()}
    moved = run.method.hand_over()
    for name, layer in run.method.layers.items():
        now = layer.matrix.detach()
        assert JOINT.first.contains(now)
        assert not JOINT.contains(now)
        assert torch.equal(now[now != 0], before[name][now != 0])
    assert 0 < moved.overall < 0.02


def test_a_fixed_mask_after_admm_keeps_the_support_that_admm_found():
    model, plan = make()
    run(model, Admm(rho=0.5)).method.finalize()
    supports = {n: model.get_parameter(f"{n}.weight").detach() != 0 for n in plan.layers}
    phase = Run(model, FixedMask()).take(5)
    for n, layer in phase.method.layers.items():
        assert (layer.quantizer.mask | ~supports[n]).all()
    phase.method.finalize()
    assert all(
        not model.get_parameter(f"{n}.weight")[~phase.method.layers[n].quantizer.mask].any() for n in plan.layers
    )


COURSES = {"constant": Constant, "warmup": Warmup, "ramp": Ramp, "balanced": Balanced, "support_change": SupportChange}


def given_to(model, batches):
    """What a method that calibrates is given."""

    def loss(found):
        return model(**found).loss

    return Calibration(batches, lambda found: model(**found), loss, loss)


@torch.no_grad()
def layer_inputs(model):
    """What each compressed layer sees of the batch: (tokens, in_features)."""
    inputs = {}

    def seeing(name):
        return lambda _, given: inputs.update({name: given[0].flatten(0, -2)})

    hooks = [layer.register_forward_pre_hook(seeing(name)) for name, layer in compressed_layers(model).items()]
    model.eval()(**batch())
    for hook in hooks:
        hook.remove()
    return inputs


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("target", ["sparsity", "joint"])
@pytest.mark.parametrize("constraint", [JOINT, Grid(2)], ids=str)
def test_calibration_leaves_every_layer_nearer_in_output_than_its_projection_is(kind, target, constraint):
    dense, plan = make(kind, constraint)
    ours, nearest = copy.deepcopy(dense), copy.deepcopy(dense)
    method = Admm(target=target, calibration=2)
    method.attach(ours, Length(STEPS, EPOCH))
    list(method.calibrate(given_to(ours, iter([batch()] * 3))))
    one_shot = OneShot()
    one_shot.attach(nearest, Length(0, EPOCH))
    inputs = layer_inputs(dense)
    with method.as_finished(), one_shot.as_finished():
        for name, x in inputs.items():
            before, *after = (m.get_submodule(name).matrix.detach() for m in (dense, ours, nearest))
            off = [(x @ (each - before).t()).norm() for each in after]
            assert off[0] < 0.95 * off[1], name
    for name, layer in method.layers.items():
        aim = constraint if target == "joint" else constraint.sparsity or constraint  # a grid alone is always joint
        assert aim.contains(layer.matrix.detach()), name
    method.optimizer(AdamW(ours.parameters(), lr=0.01))
    method.finalize()
    verify(ours, plan)


def test_calibration_takes_as_many_batches_as_asked_and_leaves_the_quantizers_as_they_were():
    model, _ = make("bert", JOINT, Activations())
    method = Admm(calibration=2, delay=3)
    method.attach(model, Length(STEPS, EPOCH))
    seen = []

    def watch(found):
        seen.append(all(not layer.quantizer.active and not layer.inputs.active for layer in method.layers.values()))
        return model(**found)

    list(method.calibrate(given_to(model, iter([batch()] * 5))._replace(forward=watch)))
    assert seen == [True, True]
    assert not any(layer.quantizer.active for layer in method.layers.values())  # the delay goes on


def test_without_calibration_admm_starts_from_the_weights():
    model, _ = make()
    before = copies(model)
    method = Admm(calibration=0)
    method.attach(model, Length(STEPS, EPOCH))
    list(method.calibrate(given_to(model, iter([batch()]))))
    assert not changed(model, before)


def test_a_layer_that_calibration_cannot_reconstruct_is_named():
    model, _ = make()
    method = Admm()
    method.attach(model, Length(STEPS, EPOCH))
    name, layer = next(iter(method.layers.items()))
    layer.weight.data[0, 0] = float("nan")

    def feed(_):  # the model itself would carry the NaN to every later layer
        return [each(torch.ones(2, each.in_features)) for each in method.layers.values()]

    with pytest.raises(ValueError, match=rf"{name}: (weight holds 1 NaN|the moment)"):
        list(method.calibrate(given_to(model, iter([batch()]))._replace(forward=feed)))


@pytest.mark.parametrize("course", COURSES)
def test_every_course_of_rho_trains_and_ends_in_the_sets(course):
    model, plan = make()
    phase = run(model, Admm(course=course, interval=2))
    assert type(phase.method.schedule()) is COURSES[course]
    assert phase.losses[-1] < phase.losses[0]
    phase.method.finalize()
    verify(model, plan)


def test_ramp_and_warmup_reach_rho_after_four_fifths_of_the_phase_and_stay():
    for course, first in (("ramp", 0.5 / 50), ("warmup", 0.5 / 16)):
        model, _ = make()
        phase = Run(model, Admm(rho=0.5, course=course, interval=1))
        rhos = []
        for _ in range(STEPS):
            phase.take(1)
            rhos.append(phase.method.metrics()["rho"])
        assert phase.method.schedule().first() == pytest.approx(first)
        assert rhos == sorted(rhos)
        assert rhos[14] < 0.5 * (1 - 1e-9)
        assert rhos[15:] == pytest.approx([0.5] * 5)


@pytest.mark.parametrize("target", ["joint", "sparsity"])
@pytest.mark.parametrize("dual", [0.0, 1.0])
@pytest.mark.parametrize("see", ["projection", "dense"])
@pytest.mark.parametrize("pull", ["decoupled", "penalty"])
def test_every_form_of_admm_trains_and_ends_in_the_sets(target, dual, see, pull):
    model, plan = make("gpt2" if see == "dense" else "bert")
    options = {"target": target, "dual": dual, "see": see, "pull": pull, "importance": "second_moment"}
    phase = run(model, Admm(rho=0.02, interval=4, **options))
    assert phase.losses[-1] < phase.losses[0]
    weights = {"joint": JOINT, "sparsity": JOINT.first}[target]
    sets = {f"{n}.weight": Transposed(weights) if spec.transposed else weights for n, spec in plan.layers.items()}
    assert phase.optimizer.sets == sets
    assert all(sets[n].contains(z) for n, z in phase.optimizer.z.items())
    assert bool(phase.optimizer.u) == (dual > 0)
    seen = {layer.quantizer.seen for layer in phase.method.layers.values()}
    assert seen == ({JOINT} if see == "projection" else {None})
    phase.method.finalize()
    verify(model, plan)


def test_a_layer_without_a_sparsity_set_is_pulled_to_its_whole_set():
    model, plan = make(constraint=Grid(4))
    phase = Run(model, Admm(target="sparsity"))
    assert phase.optimizer.sets == {f"{n}.weight": Grid(4) for n in plan.layers}


@pytest.mark.parametrize(("constraint", "target"), [(NM(2, 4), "sparsity"), (JOINT, "joint"), (Grid(4), "joint")])
def test_with_a_huge_rho_the_hard_projection_moves_almost_nothing(constraint, target):
    model, _ = make(constraint=constraint)
    phase = run(model, Admm(rho=1e4, target=target, interval=2))
    metrics = phase.method.metrics(layers=True)
    assert metrics["gap"] < 0.02
    moved = phase.method.finalize()
    assert moved.overall < 0.02
    assert max(moved.layers.values()) < 0.02


@pytest.mark.parametrize("kind", [Admm, AdmmPaper])
def test_metrics_tell_gap_dual_flips_and_rho_overall_and_of_each_layer(kind):
    model, plan = make()
    phase = Run(model, kind(interval=2) if kind is Admm else kind())
    if kind is Admm:
        assert phase.method.metrics() == {}
    phase.take(6)
    overall, metrics = phase.method.metrics(), phase.method.metrics(layers=True)
    assert set(overall) == {"gap", "dual", "flips", "rho"}
    assert set(metrics) == {*overall, *(f"{key}/{name}.weight" for key in overall for name in plan.layers)}
    assert all(value == value for value in metrics.values())


def test_the_papers_method_updates_z_and_u_once_before_training_and_then_once_an_epoch():
    model, _ = make()
    phase = Run(model, AdmmPaper())
    before = [(w - phase.optimizer.z[n], phase.optimizer.u[n]) for n, w in phase.optimizer.weights.items()]
    assert all(torch.equal(difference, u) and u.any() for difference, u in before)
    for step in range(1, 3 * EPOCH + 1):
        z, u = copy.deepcopy((phase.optimizer.z, phase.optimizer.u))
        phase.take(1)
        assert all(torch.equal(phase.optimizer.u[n], u[n]) for n in u) == (step % EPOCH != 0)
        assert all(torch.equal(phase.optimizer.z[n], z[n]) for n in z) or step % EPOCH == 0
    assert {*phase.optimizer.rho.values()} == {4e-3}


def test_the_papers_penalty_is_in_the_gradient_before_it_is_clipped():
    model, _ = make()
    phase = Run(model, AdmmPaper(rho=0.5)).take(2)
    phase.backward()
    before = {n: w.grad.clone() for n, w in phase.optimizer.weights.items()}
    phase.method.before_clip()
    for n, w in phase.optimizer.weights.items():
        pull = w.detach() - phase.optimizer.z[n] + phase.optimizer.u[n]
        torch.testing.assert_close(w.grad, before[n] + 0.5 * pull)
    with torch.no_grad():
        after = {n: w.grad.clone() for n, w in phase.optimizer.weights.items()}
        phase.optimizer.step()
    assert all(torch.equal(w.grad, after[n]) for n, w in phase.optimizer.weights.items())


def test_the_papers_forward_pass_sees_the_grid_alone_and_its_z_the_support_alone():
    model, plan = make("gpt2")
    phase = Run(model, AdmmPaper())
    assert {layer.quantizer.seen for layer in phase.method.layers.values()} == {Grid(4)}
    assert phase.optimizer.sets == {f"{n}.weight": Transposed(NM(2, 4)) for n in plan.layers}
    model, _ = make(constraint=Grid(4))
    assert isinstance(Run(model, AdmmPaper()).optimizer, ADMM)
    assert Run(model, AdmmPaper()).optimizer.sets == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"course": "rampp"}, r"unknown course of rho 'rampp': did you mean ramp"),
        ({"course": "balance"}, r"did you mean balanced"),
        ({"target": "sparse"}, r"unknown target of Z 'sparse': did you mean sparsity"),
        ({"see": "project"}, r"unknown view of the forward pass 'project': did you mean projection"),
        ({"rho": 0.0}, "rho must be a positive number"),
        ({"rho": float("nan")}, "Admm needs rho to be a finite number, not nan"),
        ({"interval": 0}, "interval must be at least one"),
        ({"pull": "decouple"}, r"unknown pull 'decouple': did you mean decoupled"),
        ({"dual": 1.5}, r"dual must be in \[0, 1\]"),
        ({"importance": "second"}, r"unknown importance 'second': did you mean second_moment"),
    ],
)
def test_an_option_of_admm_that_is_not_there_is_answered_with_the_nearest(options, message):
    with pytest.raises(ValueError, match=message):
        Admm(**options)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_rho_that_is_not_positive_is_refused_by_the_papers_method(value):
    with pytest.raises(ValueError, match="rho must be a positive number"):
        AdmmPaper(rho=value)


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_a_decay_that_is_negative_is_refused_by_sr_ste(value):
    with pytest.raises(ValueError, match="decay"):
        SrSte(decay=value)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_rounded_ahead_of_a_step_is_what_its_forward_pass_would_round_and_is_let_go_with_it(name):
    phase = Run(make(method=METHODS[name])[0], METHODS[name](refresh=2, rescale=3))
    layers, ahead = phase.method.layers.values(), 0
    for _ in range(STEPS):
        phase.backward()
        for layer in layers:
            quantizer = layer.quantizer
            if quantizer.point is not None:
                assert quantizer.point.equal(quantizer.seen.apply(layer.matrix.detach(), quantizer.piece))
                ahead += 1
        phase.method.before_clip()
        phase.optimizer.step()
        phase.step += 1
        assert all(layer.quantizer.point is None for layer in layers)
    assert ahead == STEPS * sum(layer.quantizer.seen is not None for layer in layers)
