"""A model on another device is written, read, moved and evaluated as one on the CPU."""

import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from devices import foreign
from devices.foreign import here, there
from export.tiny import bert, compressed, contents, gpt2

from nxmiformer import load_packed, save_packed
from nxmiformer.applied.convert import strip, verify
from nxmiformer.applied.lazy import make_eager
from nxmiformer.layers.inputs import Activations
from nxmiformer.sets import NM, Grid, Then
from nxmiformer.tasks.batches import Examples
from nxmiformer.tasks.labelled import LabelledTexts
from nxmiformer.train.checkpoint import Checkpoints, Position
from nxmiformer.train.evaluate import evaluate

IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 2]])
FEATURES = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ([1, 2, 3], [4, 5, 6, 7, 8], [9])]


class Elsewhere(Accelerator):
    device = property(lambda self: foreign.DEVICE)


@pytest.fixture(autouse=True)
def _fresh_accelerate_state():
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(params=[bert, gpt2])
def made(request):
    sets = {0: Then(NM(2, 4), Grid(4)), 1: NM(2, 4, "dense"), 2: Grid(3)}

    def assigned(targets):
        return {target.name: sets[place % 3] for place, target in enumerate(targets)}

    return compressed(request.param, assigned, Activations(8, "ema"))


@torch.no_grad()
def logits(model, ids=IDS):
    return model(input_ids=ids).logits


def eager(model):
    model.set_attn_implementation("eager")  # the CPU has another kernel for sdpa
    return model


def test_a_model_elsewhere_is_packed_into_the_same_files(made, tmp_path):
    model, plan = made
    save_packed(model, plan, tmp_path / "here")
    moved = copy.deepcopy(model).to(foreign.DEVICE)
    verify(moved, plan)
    save_packed(moved, plan, tmp_path / "there")
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert {p.device for p in moved.parameters()} == {foreign.DEVICE}


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
def test_a_packed_model_moves_and_computes_there(made, tmp_path, lazy):
    save_packed(*made, tmp_path / "packed")
    stayed = eager(load_packed(tmp_path / "packed", lazy=lazy))
    moved = eager(load_packed(tmp_path / "packed", lazy=lazy)).to(foreign.DEVICE)
    assert {tensor.device for tensor in moved.state_dict().values()} == {foreign.DEVICE}
    expected = logits(stayed)
    assert torch.equal(here(logits(moved, there(IDS))), expected)
    make_eager(moved)
    assert torch.equal(here(logits(moved, there(IDS))), expected)
    assert torch.equal(logits(moved.to("cpu")), expected)


class Logits(LabelledTexts):
    """A task whose metrics are the logits of each example."""

    name, metric, columns = "logits", "0", ("text",)

    def __init__(self, outputs):
        self.labels = tuple(map(str, range(outputs)))

    def splits(self):
        raise NotImplementedError

    def score(self, answers, truths):
        return {str(truth): answer.tolist() for truth, answer in zip(truths, answers, strict=True)}


def test_an_evaluation_elsewhere_gives_the_logits_of_the_cpu(made):
    model, _ = made
    labels = torch.tensor([0, 1, 2])
    examples = Examples(FEATURES, {"input_ids": 0, "attention_mask": 0}, {"labels": labels}, labels.tolist())
    task = Logits(model.config.num_labels)
    expected = evaluate(eager(model), task, examples, 2, Accelerator(cpu=True))
    found = evaluate(model.to(foreign.DEVICE), task, examples, 2, Elsewhere(cpu=True))
    assert len(expected) == len(labels)
    assert found == expected


def test_a_checkpoint_of_a_model_elsewhere_goes_back_there(made, tmp_path):
    model, _ = made
    moved = copy.deepcopy(model).to(foreign.DEVICE)
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save("latest", moved, Position(step=3), {"seen": there(IDS)})
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.zero_()
    position, state = checkpoints.load("latest", moved)
    assert position.step == 3
    assert torch.equal(state["seen"], IDS)
    assert all(torch.equal(here(p.detach()), q) for p, q in zip(moved.parameters(), model.parameters(), strict=True))


def test_a_stripped_model_stays_where_it_is(made):
    model, _ = made
    moved = strip(copy.deepcopy(model).to(foreign.DEVICE))
    assert {tensor.device for tensor in moved.state_dict().values()} == {foreign.DEVICE}
