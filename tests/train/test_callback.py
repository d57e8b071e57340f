"""Trainer's own loop leaves every weight of the plan in its set."""

import copy

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from torch.nn import functional as F

import nxmiformer as nx
from nxmiformer.applied.convert import verify
from nxmiformer.layers.found import distinct_layers
from nxmiformer.methods.admm import Admm
from nxmiformer.methods.fixed_mask import FixedMask
from nxmiformer.methods.kronecker import Kronecker
from nxmiformer.methods.obert import Obert
from nxmiformer.methods.sr_ste import SrSte
from nxmiformer.sets import Kronecker as KroneckerSet
from nxmiformer.train.callback import Compression
from nxmiformer.train.objective import Objective
from nxmiformer.train.taught import Taught

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


DEFAULTS = {"save_strategy": "no", "per_device_train_batch_size": 8, "max_steps": 6, "learning_rate": 1e-3}


def trainer(model, directory, callback, eval_dataset=None, **options):
    arguments = transformers.TrainingArguments(
        str(directory), use_cpu=True, report_to="none", disable_tqdm=True, logging_steps=2, **{**DEFAULTS, **options},
    )  # fmt: skip
    return transformers.Trainer(model, arguments, train_dataset=rows(), eval_dataset=eval_dataset, callbacks=[callback])


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


def test_what_is_pruned_between_steps_is_pruned_alike_after_a_stop(tmp_path):
    """The method looks at training batches again, which depend on the epoch."""

    def run(name, model):
        plan = nx.CompressionPlan.uniform(model, nx.find_targets(model), nx.Unstructured(0.5))
        callback = Compression(plan, Obert(gradients=4, prunings=3, block=4))
        return trainer(model, tmp_path / name, callback, save_strategy="steps", save_steps=1, max_steps=9)

    whole, stopped, continued = bert(), bert(), bert()
    run("whole", whole).train()
    made = run("stopped", stopped)
    made.add_callback(Stop(4))
    made.train()
    run("stopped", continued).train(resume_from_checkpoint=True)
    for name, each in continued.state_dict().items():
        torch.testing.assert_close(each, whole.state_dict()[name], rtol=0, atol=0, msg=name)


def test_the_finish_trains_under_the_support_that_was_found(tmp_path, monkeypatch):
    model, masks, found = bert(), {}, {}
    hand_over = Admm.hand_over

    def noted(method):
        moved = hand_over(method)
        found.update({name: layer.matrix != 0 for name, layer in distinct_layers(model).items()})
        return moved

    class Look(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            masks[state.global_step] = {
                name: layer.quantizer.mask.clone() for name, layer in distinct_layers(model).items()
            }

    monkeypatch.setattr(Admm, "hand_over", noted)
    callback = Compression(whole_plan(model), Admm(interval=1), finish=0.5)
    run = trainer(model, tmp_path, callback)
    run.add_callback(Look())
    run.train()
    assert isinstance(callback.method, FixedMask)
    for name, layer in distinct_layers(model).items():
        assert not (found[name] & ~masks[6][name]).any()
        assert not layer.matrix[~masks[6][name]].any()
    assert any(not torch.equal(masks[1][name], masks[6][name]) for name in found)


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


def marian():
    torch.manual_seed(0)
    sides = {
        f"{side}_{part}": n for side in ("encoder", "decoder") for part, n in (("layers", 1), ("attention_heads", 2))
    }
    config = transformers.MarianConfig(**sides, encoder_ffn_dim=32, decoder_ffn_dim=32, d_model=16, vocab_size=30,
                                       max_position_embeddings=16, pad_token_id=0, eos_token_id=1,
                                       decoder_start_token_id=0, dropout=0.0)  # fmt: skip
    return transformers.MarianMTModel(config)


@pytest.mark.parametrize("length", [6, 4])
def test_a_student_that_is_its_teacher_has_nothing_to_learn_also_where_a_decoder_reads_the_labels(length, tmp_path):
    model = marian()
    run = trainer(model, tmp_path, Compression(nx.CompressionPlan({}), SrSte(), objective=DISTIL), learning_rate=0.0)
    run.train_dataset = [{**row, "labels": row["input_ids"][:length]} for row in rows()]
    run.train()
    assert run.state.log_history[-1]["train_loss"] == pytest.approx(0.0, abs=1e-10)


def test_several_numbers_are_distilled_by_their_squared_error(tmp_path):
    config = copy.deepcopy(bert().config)
    config.num_labels, config.problem_type = 3, "regression"
    student, teacher = (transformers.BertForSequenceClassification(config).eval() for _ in range(2))
    taught = Taught(student, teacher, Objective(task=0.0, logits=1.0), dropout=True)
    batch = {"input_ids": torch.stack([row["input_ids"] for row in rows(4)]), "labels": torch.zeros(4, 3)}
    with torch.no_grad():
        expected = F.mse_loss(student(**batch).logits, teacher(**batch).logits)
        assert taught.loss(batch).item() == pytest.approx(expected.item())


def test_two_passes_a_step_are_both_of_the_objective():
    student, teacher = bert().train(), bert().eval()
    with torch.no_grad():
        student.classifier.weight.add_(0.1)
    taught = Taught(student, teacher, DISTIL, dropout=False)
    batch = {"input_ids": torch.stack([row["input_ids"] for row in rows(4)]), "labels": torch.zeros(4).long()}
    first, second = (student(**batch).loss.item() for _ in range(2))
    assert first == second == pytest.approx(taught.loss(batch).item())
    assert student.training
    taught.end()
    assert student(**batch).loss.item() != first


def test_a_refused_plan_leaves_the_model_and_its_directory_as_they_were(tmp_path):
    model = bert()
    plan = nx.CompressionPlan.uniform(model, nx.find_targets(model), nx.Grid(4))
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "mine.txt").write_text("kept")
    other = transformers.BertForSequenceClassification(
        transformers.BertConfig(**{**bert().config.to_diff_dict(), "hidden_size": 32})
    )
    with pytest.raises(ValueError, match="the plan does not fit"):
        trainer(other, tmp_path, Compression(plan, Admm(), objective=DISTIL)).train()
    assert not other._forward_hooks
    assert not list(tmp_path.glob("*.safetensors"))
    trainer(model, tmp_path, Compression(plan, Admm(), objective=DISTIL)).train()
    assert (tmp_path / "dense" / "mine.txt").read_text() == "kept"


def test_what_an_interrupted_training_left_on_a_model_is_taken_off_by_the_next(tmp_path):
    class Interrupt(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            raise KeyboardInterrupt

    model = bert()
    run = trainer(model, tmp_path / "a", Compression(nx.CompressionPlan({}), SrSte(), objective=DISTIL))
    run.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert model._forward_hooks
    trainer(model, tmp_path / "b", Compression(nx.CompressionPlan({}), SrSte())).train()
    assert not model._forward_hooks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"finish": 1.0}, r"finish=1.0 is a share of the steps in \[0, 1\)"),
        ({"finish": -0.1}, r"finish=-0.1 is a share"),
        ({"dropout": False}, "dropout=False is for an objective that distils"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Compression(nx.CompressionPlan({}), Admm(), **options)


@pytest.mark.parametrize(
    ("options", "objective", "message"),
    [
        ({"label_smoothing_factor": 0.1}, DISTIL, "label_smoothing_factor"),
        ({}, Objective(attention=1.0), "attention=0 leaves them out"),
        (
            {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps"},
            Objective(),
            "load_best_model_at_end=True puts weights back",
        ),
    ],
)
def test_what_cannot_be_done_with_it_is_refused(options, objective, message, tmp_path):
    callback = Compression(nx.CompressionPlan({}), Admm(), objective=objective)
    run = trainer(bert(), tmp_path, callback, eval_dataset=rows(), **options)
    with pytest.raises(ValueError, match=message):
        run.train()


def test_gradient_checkpointing_which_needs_training_mode_is_refused_where_dropout_is_off(tmp_path):
    model = bert()
    model.bert.encoder.layer[0].gradient_checkpointing = True
    run = trainer(model, tmp_path, Compression(nx.CompressionPlan({}), Admm(), objective=DISTIL))
    with pytest.raises(ValueError, match="gradient checkpointing needs layers in training mode"):
        run.train()


def test_a_loss_that_the_trainer_does_not_minimise_is_refused(tmp_path):
    class Own(transformers.Trainer):
        def compute_loss(self, model, inputs, **_):
            return model(**inputs).logits.square().mean()

    callback = Compression(nx.CompressionPlan({}), Admm(), objective=DISTIL)
    arguments = trainer(bert(), tmp_path, callback).args
    with pytest.raises(ValueError, match="does not minimise the loss that the model gives"):
        Own(bert(), arguments, train_dataset=rows(), callbacks=[callback]).train()


def test_scales_that_the_optimizer_does_not_have_are_refused(tmp_path):
    model = bert()
    run = trainer(model, tmp_path, Compression(whole_plan(model), FixedMask(learned_scales=True)))
    with pytest.raises(ValueError, match=r"FixedMask trains .*scales, which Trainer's optimizer does not have"):
        run.train()


def test_a_checkpoint_without_the_methods_state_is_refused(tmp_path):
    trainer(bert(), tmp_path, transformers.TrainerCallback(), save_strategy="steps", save_steps=3).train()
    run = trainer(bert(), tmp_path, Compression(nx.CompressionPlan({}), Admm()))
    with pytest.raises(ValueError, match="has no state of Admm"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


@pytest.mark.parametrize(
    ("method", "options", "steps", "message"),
    [
        (SrSte(), {}, 6, "taken with another method"),
        (Admm(), {"finish": 0.5}, 6, "taken with another finish: finish 0.0 there, 0.5 here"),
        (Admm(), {"objective": DISTIL}, 6, "there is no .*dense.safetensors"),
        (Admm(), {}, 9, "taken with another max_steps: max_steps 6 there, 9 here"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(method, options, steps, message, tmp_path):
    model = bert()
    trainer(model, tmp_path, Compression(whole_plan(model), Admm()), save_strategy="steps", save_steps=3).train()
    model = bert()
    run = trainer(model, tmp_path, Compression(whole_plan(model), method, **options), max_steps=steps)
    with pytest.raises(ValueError, match=message):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_checkpoint_of_another_directory_is_refused(tmp_path):
    for name in "ab":
        model = bert()
        callback = Compression(whole_plan(model), Admm())
        trainer(model, tmp_path / name, callback, save_strategy="steps", save_steps=3).train()
    for name, message in (("b", "is of another run than the checkpoint"), ("c", "with the output_dir that it began")):
        model = bert()
        run = trainer(model, tmp_path / name, Compression(whole_plan(model), Admm()))
        with pytest.raises(ValueError, match=message):
            run.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
