"""Trainer's own loop leaves every weight of the plan in its set."""

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState

import nxmiformer as nx
from nxmiformer.applied.convert import verify
from nxmiformer.methods.admm import Admm
from nxmiformer.methods.fixed_mask import FixedMask
from nxmiformer.methods.kronecker import Kronecker
from nxmiformer.methods.sr_ste import SrSte
from nxmiformer.sets import Kronecker as KroneckerSet
from nxmiformer.train.callback import Compression


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
        str(directory), use_cpu=True, report_to="none", max_steps=6, per_device_train_batch_size=8, learning_rate=1e-3,
        disable_tqdm=True, save_strategy="no", logging_steps=2, **options,
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


def test_a_trainer_that_resumes_is_refused(tmp_path):
    callback = Compression(nx.CompressionPlan({}), Admm())
    run = trainer(bert(), tmp_path, callback)
    state = transformers.TrainerState(global_step=3)
    with pytest.raises(ValueError, match="a checkpoint of Trainer has no state of Admm"):
        callback.on_train_begin(
            run.args, state, run.control, model=bert(), optimizer=None, train_dataloader=run.get_train_dataloader()
        )
