import copy
import functools
import math
import time

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch.optim import SGD, AdamW

from nxmiformer.applied.convert import convert, verify
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.targets import find_targets
from nxmiformer.methods.dense import Dense
from nxmiformer.methods.ste_qat import SteQat
from nxmiformer.models import embedded
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import NM, Grid, Then
from nxmiformer.tasks.batches import Examples
from nxmiformer.tasks.grammar import Grammar
from nxmiformer.train.astray import not_finite
from nxmiformer.train.checkpoint import Checkpoints, Position
from nxmiformer.train.evaluate import evaluate
from nxmiformer.train.loop import Stage, train_phase
from nxmiformer.train.objective import Objective
from nxmiformer.train.recipe import Phase, Recipe
from nxmiformer.train.settings import Settings
from nxmiformer.train.tracker import Tracker

TASK = Grammar(train=12, holdout=12, validation=12)
TOKENIZER = embedded.tokenizer(TASK.vocabulary)


@pytest.fixture(autouse=True)
def _fresh_accelerate_state():
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


class Rows(Tracker):
    def __init__(self):
        self.rows = []

    def log(self, row):
        self.rows.append(dict(row))

    def finish(self, failed):
        self.failed = failed


class Watching(Dense):
    """Dense training that keeps the gradients as they are before clipping."""

    def attach(self, model, length):
        super().attach(model, length)
        self.gradients = []

    def before_clip(self):
        self.gradients.append(torch.cat([p.grad.flatten() for p in self.model.parameters()]))


def examples(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = []
    for length in lengths:
        tokens = torch.randint(5, 50, (length,), generator=generator).tolist()
        features.append({"input_ids": tokens, "token_type_ids": [0] * length, "attention_mask": [1] * length})
    labels = torch.randint(2, (len(features),), generator=generator)
    padding = {"input_ids": 0, "token_type_ids": 0, "attention_mask": 0}
    return Examples(features, padding, {"labels": labels}, labels.tolist())


def bert():
    return embedded.model(TOKENIZER, 2, seed=0, hidden=16, layers=1, heads=2, intermediate=32)


def stage(tmp_path, settings, train=None, model=None):
    model = model or bert()
    accelerator = settings.accelerator()
    splits = {"train": train or examples([8] * 8), "holdout": examples([5, 9, 7, 3], seed=1)}
    return Stage(
        model=model,
        wrapped=accelerator.prepare_model(model),
        tokenizer=TOKENIZER,
        task=TASK,
        data=splits,
        settings=settings,
        accelerator=accelerator,
        checkpoints=Checkpoints(tmp_path, {}),
        tracker=Rows(),
        seed=0,
        facts={"phases": {}, "scores": {}},
    )


def settings(**options):
    return Settings(**{"batch_size": 8, "eval_batch_size": 3, "cpu": True, "clip": None, **options})


def phase(method=None, lr=0.1, steps=3, **options):
    return Phase(method or Dense(), lambda groups: SGD(groups, lr=lr), steps=steps, schedule="constant", **options)


def vector(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("accumulation", [2, 4])
def test_k_batches_of_b_make_the_same_steps_as_one_of_k_times_b(tmp_path, clip, accumulation):
    found = []
    for k in (1, accumulation):
        AcceleratorState._reset_state(True)
        method = Watching()
        run = stage(tmp_path / str(k), settings(batch_size=8 // k, accumulation=k, clip=clip))
        position = train_phase(run, "one", phase(method), None, Position())
        assert (position.phase, position.step, position.total_step) == (1, 0, 3)
        assert len(method.gradients) == 3
        found.append((torch.stack(method.gradients), vector(run.model), [row["loss"] for row in run.tracker.rows]))
    for one, other in zip(found[0], found[1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, in tracing
def test_compiled_training_takes_the_steps_of_training_that_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager", fullgraph=True))
    found = []
    for compiled in (False, True):
        AcceleratorState._reset_state(True)
        model = bert()
        convert(model, CompressionPlan.uniform(model, find_targets(model), Then(NM(2, 4), Grid(4)), Activations(8)))
        run = stage(tmp_path / str(compiled), settings(batch_size=4, accumulation=2, compile=compiled), model=model)
        train_phase(run, "one", phase(SteQat(refresh=2, rescale=2), steps=4), None, Position())
        found.append((vector(model), torch.tensor([row["loss"] for row in run.tracker.rows])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_the_gradient_is_clipped_to_the_norm_asked_for_and_only_where_it_is_larger(tmp_path):
    model = bert()
    before = vector(model)
    method = Watching()
    train_phase(stage(tmp_path, settings(clip=0.01), model=model), "one", phase(method, 1.0, 1), None, Position())
    assert method.gradients[0].norm() > 0.01
    torch.testing.assert_close((vector(model) - before).norm(), torch.tensor(0.01), atol=1e-6, rtol=1e-3)
    before = vector(model)
    train_phase(stage(tmp_path, settings(clip=1e6), model=model), "two", phase(method, 1.0, 1), None, Position())
    torch.testing.assert_close(before - vector(model), method.gradients[0], atol=1e-6, rtol=1e-4)


def test_what_the_method_adds_before_clipping_is_clipped_too(tmp_path):
    class Adding(Watching):
        def before_clip(self):
            for p in self.model.parameters():
                p.grad.add_(1e3)

    model = bert()
    before = vector(model)
    train_phase(stage(tmp_path, settings(clip=0.01), model=model), "one", phase(Adding(), 1.0, 1), None, Position())
    assert (vector(model) - before).norm() < 0.0101


class Objecting(Objective):
    def __call__(self, *args):
        return super().__call__(*args) * float("nan")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_phase_and_step(tmp_path, accumulation):
    run = stage(tmp_path, settings(batch_size=4, accumulation=accumulation, checkpoint_every=1))
    with pytest.raises(ValueError, match="the loss of phase 'finish' is nan at step 1: lower its learning rate"):
        train_phase(run, "finish", phase(objective=Objecting()), None, Position())
    assert run.checkpoints.path("latest") is None
    assert run.tracker.rows == []


def test_a_learning_rate_that_is_far_too_high_stops_the_run(tmp_path):
    run = stage(tmp_path, settings())
    with pytest.raises(ValueError, match=r"the loss of phase 'dense' is (nan|inf) at step \d+"):
        train_phase(run, "dense", phase(lr=1e30, steps=6), None, Position())


def test_weights_that_end_not_finite_are_not_finalized(tmp_path):
    model = bert()
    convert(model, CompressionPlan.uniform(model, find_targets(model), NM(2, 4)))
    run = stage(tmp_path, settings(), model=model)
    name = "bert.encoder.layer.0.output.dense"

    class Breaking(SteQat):
        def before_clip(self):
            self.layers[name].weight.grad.fill_(float("inf"))

    with pytest.raises(ValueError, match=f"in phase 'one', {name}.weight is not finite at step 1"):
        train_phase(run, "one", phase(Breaking(), steps=1), None, Position())


SPOILED = {
    "a gradient": lambda run, parameter, optimizer: parameter.grad[0].fill_(float("nan")),
    "an infinite gradient": lambda run, parameter, optimizer: parameter.grad[0].fill_(float("inf")),
    "a weight": lambda run, parameter, optimizer: parameter.data[0].fill_(float("nan")),
    "the optimizer's state": lambda run, parameter, optimizer: optimizer.state[parameter]["exp_avg"].fill_(
        float("inf")
    ),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("at", [3, 4, 6])
def test_training_that_goes_astray_does_not_overwrite_the_last_good_checkpoint(tmp_path, at, accumulation, spoil):
    chosen = settings(checkpoint_every=2, evaluate_every=4, batch_size=4, accumulation=accumulation)
    run, made = stage(tmp_path, chosen), []

    class Spoiling(Dense):
        def before_clip(self):
            self.taken = getattr(self, "taken", 0) + 1
            if self.taken == at:
                spoil(run, run.model.classifier.weight, made[-1])

    def adam(groups):
        made.append(AdamW(groups, lr=1e-3))
        return made[-1]

    with pytest.raises(
        ValueError, match=r"phase 'dense'.* (is nan|is not finite|are not finite) at step \d: lower its .*; or continue"
    ) as error:
        train_phase(run, "dense", Phase(Spoiling(), adam, steps=7, schedule="constant"), None, Position())
    kept = run.checkpoints.path("latest")
    assert str(kept) in str(error.value)
    position, state = run.checkpoints.load("latest", run.model)
    assert position.step == (at - 1) // 2 * 2
    assert not_finite(run.model, state) == []
    assert all(math.isfinite(value) for row in run.tracker.rows for key, value in row.items() if key != "phase")


def test_what_is_not_finite_is_found_wherever_it_is():
    good, bad = torch.ones(3), torch.tensor([1.0, float("nan")])
    model = torch.nn.Linear(2, 2)
    state = {"optimizer": {"state": {0: {"step": torch.tensor(1), "average": bad}}}, "method": [good, {"z": good / 0}]}
    assert not_finite(model, {"best": float("-inf"), "x": [good]}) == []
    with torch.no_grad():
        model.bias[1] = float("inf")
    assert not_finite(model, state) == ["bias", "optimizer.state.0.average", "method.1.z"]


def test_answers_are_in_the_order_of_the_examples_and_training_mode_stays(tmp_path, monkeypatch):
    run = stage(tmp_path, settings())
    data = examples([12, 3, 7, 20, 5, 3, 9])
    run.model.train()
    seen = []

    def keeping(task, answers, truths):
        seen.append((answers, truths))
        return {"accuracy": 0.0}

    with monkeypatch.context() as patch:
        patch.setattr(Grammar, "score", keeping)
        evaluate(run.model, TASK, data, 3, run.accelerator)
    assert run.model.training
    ((answers, truths),) = seen
    assert truths == data.whole["labels"].tolist()
    run.model.eval()
    for i, answer in enumerate(answers):
        assert answer.dtype == np.float32
        with torch.no_grad():
            alone = run.model(**TASK.inputs(data.batch([i], "cpu"))).logits[0].numpy()
        np.testing.assert_allclose(answer, alone, atol=1e-5)
    expected = np.mean([answer.argmax() == label for answer, label in zip(answers, truths, strict=True)])
    assert evaluate(run.model, TASK, data, 2, run.accelerator) == {"accuracy": pytest.approx(expected)}
    assert not run.model.training


def test_bfloat16_trains_float32_weights_to_a_lower_loss_and_into_their_sets(tmp_path):
    model = bert()
    plan = CompressionPlan.uniform(model, find_targets(model), Then(NM(2, 4), Grid(4)))
    convert(model, plan)
    run = stage(tmp_path, settings(precision="bf16", clip=1.0), model=model)
    seen = set()
    model.classifier.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    adam = Phase(SteQat(), lambda groups: AdamW(groups, lr=5e-3), steps=12, schedule="constant")
    train_phase(run, "one", adam, None, Position())
    assert seen == {torch.bfloat16}
    losses = [row["loss"] for row in run.tracker.rows]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    verify(model, plan)


def test_rows_are_logged_as_often_as_asked_and_with_scores_where_there_are_some(tmp_path):
    run = stage(tmp_path, settings(log_every=2, evaluate_every=3))
    before = copy.deepcopy(run.facts)
    position = train_phase(run, "one", phase(steps=7), None, Position(phase=1, total_step=10))
    rows = run.tracker.rows
    assert [row["step"] for row in rows] == [2, 3, 4, 6, 7]
    assert [row["total_step"] for row in rows] == [12, 13, 14, 16, 17]
    assert [row["step"] for row in rows if "holdout/accuracy" in row] == [3, 6, 7]
    assert {row["phase"] for row in rows} == {"one"}
    assert (position.phase, position.step, position.total_step) == (2, 0, 17)
    assert before["phases"] == {}
    assert run.facts["phases"]["one"]["steps"] == 7


class Looking(Dense):
    """Dense training that keeps what calibration shows it, and the modes of the modules at the first step."""

    def calibrate(self, given):
        self.batches = [next(given.batches) for _ in range(2)]
        for batch in self.batches:
            given.forward(batch)
        return iter(())

    def before_clip(self):
        self.modes = {name: module.training for name, module in self.model.named_modules()}


def test_calibration_sees_training_batches_in_the_order_of_training_and_changes_nothing(tmp_path):
    method = Looking()
    made = stage(tmp_path, settings(), train=examples([8, 5, 6, 7] * 4))
    before = vector(made.model)
    train_phase(made, "dense", phase(method, steps=0), None, Position())
    assert [batch["input_ids"].shape[0] for batch in method.batches] == [8, 8]
    rows = [tuple(row[row > 0].tolist()) for batch in method.batches for row in batch["input_ids"]]
    known = {tuple(feature["input_ids"]) for feature in made.data["train"].features}
    assert set(rows) <= known
    assert len(set(rows)) == len(known)
    assert torch.equal(vector(made.model), before)
    assert all(p.grad is None for p in made.model.parameters())


def test_a_phase_that_goes_on_is_not_calibrated_again(tmp_path):
    made = stage(tmp_path, settings(checkpoint_every=2))
    train_phase(made, "dense", phase(Looking(), steps=3), None, Position())
    position, resumed = made.checkpoints.load("latest", made.model)
    again = Looking()
    train_phase(made, "dense", phase(again, steps=3), None, position, resumed)
    assert position.step == 2
    assert again.modes
    assert not hasattr(again, "batches")


@pytest.mark.parametrize("dropout", [True, False])
def test_dropout_is_on_in_a_phase_that_wants_it_alone(tmp_path, dropout):
    model = bert()
    convert(model, CompressionPlan.uniform(model, find_targets(model), NM(2, 4)))
    method = Looking()
    train_phase(stage(tmp_path, settings(), model=model), "dense", phase(method, dropout=dropout), None, Position())
    drops = {name: mode for name, mode in method.modes.items() if "dropout" in name}
    assert drops
    assert set(drops.values()) == {dropout}
    assert all(method.modes[name] for name in method.layers)


def test_gradients_that_a_phase_leaves_on_what_it_does_not_train_do_not_reach_the_next(tmp_path):
    model = bert()
    twin = copy.deepcopy(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for i, each in enumerate((model, twin)):
        train_phase(stage(tmp_path / str(i), settings(), model=each), "one", phase(steps=1), None, Position())
    assert torch.equal(vector(model), vector(twin))


def test_the_best_checkpoint_is_that_of_the_first_best_score(tmp_path, monkeypatch):
    scores = iter([0.5, 0.75, 0.75, 0.25, 0.7])
    run = stage(tmp_path, settings(evaluate_every=1))
    monkeypatch.setattr("nxmiformer.train.loop.evaluate", lambda *_: {"accuracy": next(scores)})
    train_phase(run, "one", phase(steps=5), None, Position())
    assert run.checkpoints.load("best", bert())[0].step == 2
    assert run.checkpoints.path("latest") is None


def test_the_time_of_a_step_is_without_that_of_evaluations(tmp_path, monkeypatch):
    def slow(*arguments):
        time.sleep(0.2)
        return evaluate(*arguments)

    monkeypatch.setattr("nxmiformer.train.loop.evaluate", slow)
    run = stage(tmp_path, settings(evaluate_every=1))
    train_phase(run, "dense", phase(steps=3), None, Position())
    facts = run.facts["phases"]["dense"]
    assert 0 < 3 * facts["step_seconds"] < facts["seconds"] - 3 * 0.2


def test_a_phase_without_steps_applies_its_method_all_the_same(tmp_path):
    model = bert()
    plan = CompressionPlan.uniform(model, find_targets(model), NM(2, 4))
    convert(model, plan)
    position = train_phase(stage(tmp_path, settings(), model=model), "one", phase(SteQat(), steps=0), None, Position())
    verify(model, plan)
    assert (position.phase, position.total_step) == (1, 0)


def test_an_epoch_is_as_many_steps_as_fill_their_batches():
    assert settings(batch_size=4).steps_per_epoch(43) == 10
    assert settings(batch_size=4, accumulation=3).steps_per_epoch(43) == 3
    assert settings(batch_size=4, accumulation=30).steps_per_epoch(43) == 1
    assert phase(steps=None, epochs=1.5).length(10) == (15, 10)
    assert phase(steps=4, epochs=1.5).length(10) == (4, 10)


def test_weight_decay_is_for_matrices_alone(tmp_path):
    groups = []

    def make(given):
        groups.extend(given)
        return SGD(given, lr=0.1)

    model = bert()
    convert(model, CompressionPlan.uniform(model, find_targets(model), Grid(4)))
    one = Phase(SteQat(learned_scales=True), make, steps=1, weight_decay=0.5)
    train_phase(stage(tmp_path, settings(), model=model), "one", one, None, Position())
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, p in model.named_parameters():
        assert decays[id(p)] == (0.5 if p.ndim > 1 and not name.endswith("scales") else 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"train\.batch_size must be at least 1"),
        ({"accumulation": 0}, r"train\.accumulation must be at least 1"),
        ({"log_every": 0}, r"train\.log_every must be at least 1"),
        ({"checkpoint_every": -1}, r"train\.checkpoint_every must not be negative"),
        ({"precision": "bf1"}, "unknown precision 'bf1': did you mean bf16"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        settings(**options)


@pytest.mark.parametrize("clip", [0.0, -1.0])
def test_a_clip_that_would_stop_or_turn_every_step_is_refused(clip):
    with pytest.raises(ValueError, match=r"train\.clip must be positive"):
        settings(clip=clip)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1.0}, "a phase cannot have"),
        ({"steps": -1}, "a phase cannot have"),
        ({"warmup": 1.5}, "warmup is a share"),
    ],
)
def test_a_phase_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Phase(Dense(), SGD, **options)


def test_an_unknown_schedule_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="unknown schedule of the learning rate 'cosin': did you mean cosine"):
        Phase(Dense(), SGD, schedule="cosin")


def test_a_recipe_without_phases_is_refused():
    with pytest.raises(ValueError, match="needs a phase that compresses"):
        Recipe({})
