"""Trainer's own loop leaves every weight of the plan in its set."""

import copy

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState

import nxmiformer as nx
from nxmiformer.applied.convert import verify
from nxmiformer.layers.found import distinct_layers
from nxmiformer.methods.admm import Admm
from nxmiformer.methods.fixed_mask import FixedMask
from nxmiformer.methods.kronecker import Kronecker
from nxmiformer.methods.sr_ste import SrSte
from nxmiformer.sets import Kronecker as KroneckerSet
from nxmiformer.train.callback import Compression
from nxmiformer.train.objective import Objective

DISTIL = Objective(task=0.0, logits=1.0, hidden=10.0)


@pytest.fixture(autouse=True)
def _fresh_accelerate_state():
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def rows(count=24):
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 30, (count, 6), generator=draw)
    return [{"input_ids": each, "attention_mask": torch.ones_like(each), "labels": int(each.sum()) % 2} for each in ids]


def trainer(model, directory, callback, **options):
    arguments = transformers.TrainingArguments(
        str(directory), use_cpu=True, report_to="none", max_steps=6, learning_rate=1e-3,
        disable_tqdm=True, logging_steps=2, **{"save_strategy": "no", "per_device_train_batch_size": 8, **options},
    )  # fmt: skip
    return transformers.Trainer(model, arguments, train_dataset=rows(), callbacks=[callback])


@pytest.mark.parametrize("method", [Admm(interval=1), SrSte(), FixedMask()], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_method_ends_in_the_sets_and_packs(method, accumulation, tmp_path):
    model = bert()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    plan = nx.CompressionPlan.uniform(model, nx.find_targets(model), nx.Then(nx.NM(2, 4), nx.Grid(4)))
    callback = Compression(plan, method)
    run = trainer(model, tmp_path / "out", callback, gradient_accumulation_steps=accumulation)
    run.train()
    verify(model, plan)
    assert callback.moved is not None
    assert all(not torch.equal(weight, before[name]) for name, weight in model.named_parameters() if "dense" in name)
    nx.save_packed(model, plan, tmp_path / "packed")
    packed = nx.load_packed(tmp_path / "packed").state_dict()
    assert all(torch.equal(packed[name], weight) for name, weight in model.state_dict().items())


def test_a_method_that_trains_what_the_optimizer_does_not_have_is_refused():
    model = bert()
    plan = nx.CompressionPlan.uniform(model, nx.find_targets(model), KroneckerSet(2, 2))
    with pytest.raises(ValueError, match=r"Trainer's optimizer does not have: use recipe=kronecker"):
        Compression(plan, Kronecker())


def test_without_sets_the_trainer_trains_as_it_does_alone(tmp_path):
    alone, model = bert(), bert()
    trainer(alone, tmp_path / "alone", transformers.TrainerCallback()).train()
    trainer(model, tmp_path / "with", Compression(nx.CompressionPlan({}), Admm())).train()
    theirs = alone.state_dict()
    assert all(torch.equal(theirs[name], weight) for name, weight in model.state_dict().items())


class Stop(transformers.TrainerCallback):
    """As a kill does, after so many steps."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step == self.step


def whole_plan(model):
    return nx.CompressionPlan.uniform(
        model, nx.find_targets(model), nx.Then(nx.NM(2, 4), nx.Grid(4)), nx.Activations(8, "ema")
    )


@pytest.mark.parametrize("stop", [2, 3, 5], ids=lambda step: f"after_{step}_of_6")
@pytest.mark.parametrize("objective", [Objective(), DISTIL], ids=["own", "distilled"])
def test_training_that_is_continued_gives_the_weights_of_training_without_a_stop(stop, objective, tmp_path):
    def run(name, model, *callbacks):
        callback = Compression(whole_plan(model), Admm(interval=1, calibration=2), finish=0.5, objective=objective)
        made = trainer(model, tmp_path / name, callback, save_strategy="steps", save_steps=1, seed=3)
        for each in callbacks:
            made.add_callback(each)
        return made

    whole, stopped, continued = bert(), bert(), bert()
    run("whole", whole).train()
    run("stopped", stopped, Stop(stop)).train()
    run("stopped", continued).train(resume_from_checkpoint=str(tmp_path / "stopped" / f"checkpoint-{stop}"))
    verify(continued, whole_plan(bert()))
    theirs = whole.state_dict()
    assert not all(torch.equal(theirs[name], each) for name, each in stopped.state_dict().items())
    for name, each in continued.state_dict().items():
        torch.testing.assert_close(each, theirs[name], rtol=0, atol=0, msg=name)


def test_the_finish_trains_under_the_support_that_was_found(tmp_path):
    model, masks = bert(), {}

    class Look(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            masks[state.global_step] = {
                name: layer.quantizer.mask.clone() for name, layer in distinct_layers(model).items()
            }

    callback = Compression(whole_plan(model), Admm(interval=1), finish=0.5)
    run = trainer(model, tmp_path, callback)
    run.add_callback(Look())
    run.train()
    assert isinstance(callback.method, FixedMask)
    for name, layer in distinct_layers(model).items():
        assert torch.equal(masks[4][name], masks[6][name])
        assert not layer.matrix[~masks[4][name]].any()


def test_the_loss_that_is_minimised_is_the_objectives(tmp_path):
    found, model = [], bert()
    callback = Compression(nx.CompressionPlan({}), SrSte(), objective=DISTIL)

    class Look(transformers.Trainer):
        def compute_loss(self, model, inputs, **kwargs):
            loss = super().compute_loss(model, inputs, **kwargs)
            model.eval()
            found.append((loss.item(), DISTIL(model, dense, inputs).item()))
            model.train()
            return loss

    dense = bert().eval()
    arguments = trainer(model, tmp_path, callback).args
    Look(model, arguments, train_dataset=rows(), callbacks=[callback]).train()
    given, expected = zip(*found, strict=True)
    assert given == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert given[-1] > 0  # the first is of two equal models
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_dropout_is_off_while_the_dense_model_is_distilled(tmp_path):
    """A student that does not move is at its teacher: with dropout it would not be."""
    model = bert()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    run = trainer(model, tmp_path, Compression(nx.CompressionPlan({}), SrSte(), objective=DISTIL))
    run.args.learning_rate = 0.0
    run.train()
    assert run.state.log_history[-1]["train_loss"] == 0.0


def test_tokens_count_as_units_where_each_has_a_row_of_logits(tmp_path):
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=8, vocab_size=30, bos_token_id=0,
                                     eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    data = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows()]
    plan = nx.CompressionPlan.uniform(model, nx.find_targets(model), nx.NM(2, 4))
    callback = Compression(plan, SrSte(), objective=Objective(task=1.0, logits=1.0))
    losses = []
    for accumulation in (1, 2):
        run = trainer(
            copy.deepcopy(model),
            tmp_path / str(accumulation),
            callback,
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
        )
        run.train_dataset, run.args.logging_steps = data, 1
        run.train()
        losses.append([row["loss"] for row in run.state.log_history if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(losses[0]) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"finish": 1.0}, r"finish=1.0 is a share of the steps in \[0, 1\)"),
        ({"finish": -0.1}, r"finish=-0.1 is a share"),
    ],
)
def test_a_share_that_is_none_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Compression(nx.CompressionPlan({}), Admm(), **options)


def test_a_loss_that_the_trainer_does_not_minimise_is_refused(tmp_path):
    run = trainer(
        bert(), tmp_path, Compression(nx.CompressionPlan({}), Admm(), objective=DISTIL), label_smoothing_factor=0.1
    )
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        run.train()


def test_scales_that_the_optimizer_does_not_have_are_refused(tmp_path):
    model = bert()
    run = trainer(model, tmp_path, Compression(whole_plan(model), FixedMask(learned_scales=True)))
    with pytest.raises(ValueError, match=r"FixedMask trains .*scales, which Trainer's optimizer does not have"):
        run.train()


def test_attention_scores_are_left_to_the_command(tmp_path):
    run = trainer(bert(), tmp_path, Compression(nx.CompressionPlan({}), Admm(), objective=Objective(attention=1.0)))
    with pytest.raises(ValueError, match="attention=0 leaves them out"):
        run.train()


def test_a_checkpoint_without_the_methods_state_is_refused(tmp_path):
    trainer(bert(), tmp_path, transformers.TrainerCallback(), save_strategy="steps", save_steps=3).train()
    run = trainer(bert(), tmp_path, Compression(nx.CompressionPlan({}), Admm()))
    with pytest.raises(ValueError, match="has no state of Admm"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_checkpoint_of_other_methods_is_refused(tmp_path):
    model = bert()
    trainer(model, tmp_path, Compression(whole_plan(model), Admm()), save_strategy="steps", save_steps=3).train()
    model = bert()
    run = trainer(model, tmp_path, Compression(whole_plan(model), SrSte()))
    with pytest.raises(ValueError, match="of another plan, or other methods"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
