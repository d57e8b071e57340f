"""Training on another device: the same bits as on the CPU, and a state that goes on there, whatever device it is on."""

import copy
import io
from functools import partial

import pytest
import torch
import transformers
from devices import foreign
from devices.foreign import there
from every import METHODS
from torch import nn
from torch.optim import AdamW
from torch.utils import _pytree as pytree

from nxmiformer.applied.convert import convert, verify
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.targets import find_targets
from nxmiformer.methods import admm
from nxmiformer.methods.base import Calibration, Length
from nxmiformer.methods.dense import Dense
from nxmiformer.methods.ste_qat import SteQat
from nxmiformer.optim import ADMM, Balanced, Constant, Ramp, SupportChange, Warmup
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import NM, Grid, Then
from nxmiformer.train.objective import Objective

JOINT = Then(NM(2, 4), Grid(4, scale="absmax"))  # whose scales take few operations; that they agree, the sets' laws say
SCHEDULES = [Constant(0.1), Warmup(0.1, 4), Ramp(0.01, 0.5, 4), Balanced(0.1), SupportChange(0.1)]
BATCH = {
    "input_ids": torch.tensor([[3, 4, 5, 6], [7, 8, 9, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    "labels": torch.tensor([0, 1]),
}
DISTIL = Objective(task=1.0, logits=1.0, hidden=1.0)


def written_and_read(state):
    """The state as a checkpoint gives it back: on the CPU."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def assert_same(found, expected):
    """The same structure, numbers and bits, wherever the tensors are."""
    ours, theirs = (pytree.tree_flatten(each) for each in (found, expected))
    assert ours[1] == theirs[1]
    for one, other in zip(ours[0], theirs[0], strict=True):
        assert torch.equal(one.detach().cpu(), other.detach().cpu()) if isinstance(one, torch.Tensor) else one == other


class Weight:
    """A weight that ADMM trains, on a device."""

    def __init__(self, device, schedule, **options):
        w = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
        self.w, self.target = nn.Parameter(w.to(device)), w.flip(0).to(device)
        base = AdamW([self.w], lr=0.05)
        self.admm = ADMM(base, [("w", self.w)], {"w": JOINT}, rho=schedule, interval=2, **options)

    def loss(self, batch):
        return self.model(**batch).loss

    def steps(self, count):
        for _ in range(count):
            self.admm.zero_grad()
            (self.w - self.target).square().sum().backward()
            if self.admm.pull == "manual":
                self.admm.add_penalty()
            self.admm.step()
        return self


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_admm_trains_and_goes_on_elsewhere_as_on_the_cpu(schedule):
    stayed, moved, again = (Weight(device, schedule) for device in ("cpu", foreign.DEVICE, foreign.DEVICE))
    stayed.steps(3), moved.steps(3)
    again.w.data.copy_(moved.w.data)
    again.admm.load_state_dict(written_and_read(moved.admm.state_dict()))
    for each in (stayed, moved, again):
        each.steps(3).admm.finalize()
        assert_same(each.w, stayed.w)
        assert_same(each.admm.state_dict(), stayed.admm.state_dict())
        assert each.admm.metrics(layers=True) == stayed.admm.metrics(layers=True)


@pytest.mark.parametrize("options", [{"pull": "penalty"}, {"pull": "manual"}, {"importance": "second_moment"}], ids=str)
def test_admm_pulls_and_projects_elsewhere_as_on_the_cpu(options):
    stayed, moved = (Weight(device, Constant(0.1), **options).steps(4) for device in ("cpu", foreign.DEVICE))
    assert_same(moved.w, stayed.w)


def dense():
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8, "vocab_size": 12, "pad_token_id": 0}
    off = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 1}
    config = transformers.GPT2Config(**sizes, **off, attn_implementation="eager")  # the CPU has another kernel for sdpa
    return transformers.GPT2ForSequenceClassification(config).train()


def planned(model):
    targets = find_targets(model, ["*.attn.c_proj", "*.mlp.c_proj"])
    return CompressionPlan.uniform(model, targets, JOINT, Activations(8, "ema"))


@pytest.fixture(autouse=True)
def _few_iterations(monkeypatch):
    monkeypatch.setattr(admm, "reconstruct", partial(admm.reconstruct, iterations=2))


class Phase:
    """A converted model that a method trains, on a device, and its teacher."""

    def __init__(self, device, method, calibrate=True):
        self.teacher = dense().to(device).eval()
        self.model = dense()
        self.plan = planned(self.model)
        convert(self.model, self.plan).to(device)
        self.batch, self.step = {name: each.to(device) for name, each in BATCH.items()}, 0
        self.method = method
        method.attach(self.model, Length(6, 3))
        if calibrate:
            given = Calibration(iter([self.batch]), self.forward, self.loss, self.loss)
            self.calibrated = list(method.calibrate(given))
        self.optimizer = method.optimizer(AdamW([p for _, p in method.parameters()], lr=0.01))

    @torch.no_grad()
    def forward(self, batch):
        return self.model(**{name: each for name, each in batch.items() if name != "labels"}).logits

    def loss(self, batch):
        return self.model(**batch).loss

    def steps(self, count):
        for _ in range(count):
            self.method.before_step(self.step)
            self.optimizer.zero_grad()
            DISTIL(self.model, self.teacher, self.batch).backward()
            self.method.before_clip()
            self.optimizer.step()
            self.step += 1
        return self

    def finished(self):
        """The logits of an evaluation, the next phase's weights, and the last: all that a phase leaves."""
        with self.method.as_finished():
            seen = self.forward(self.batch)
        handed, between = self.method.hand_over(), copy.deepcopy(dict(self.model.named_parameters()))
        return seen, handed, between, self.method.finalize(), dict(self.model.named_parameters()), self.method.metrics()


@pytest.mark.parametrize(
    ("kind", "options"), [*((kind, {}) for kind in [*METHODS.values(), Dense]), (SteQat, {"learned_scales": True})]
)
def test_every_method_trains_and_goes_on_elsewhere_as_on_the_cpu(kind, options):
    def begun(device, calibrate=True):
        return Phase(device, kind(refresh=2, rescale=2, **options), calibrate)

    stayed, moved = begun("cpu").steps(3), begun(foreign.DEVICE).steps(3)
    parts = (moved.model, moved.method, moved.optimizer)
    weights, method, optimizer = written_and_read([part.state_dict() for part in parts])
    again = begun(foreign.DEVICE, calibrate=False)
    again.model.load_state_dict(weights)
    again.method.load_state_dict(method, 3)
    again.optimizer.load_state_dict(optimizer)
    again.step = 3
    expected = stayed.steps(1).finished()
    assert_same(moved.steps(1).finished(), expected)
    assert_same(again.steps(1).finished(), expected)
    if kind is not Dense:
        verify(moved.model, moved.plan)


def test_a_model_converted_where_it_is_has_all_of_its_tensors_there():
    plan = planned(dense())
    model = convert(dense().to(foreign.DEVICE), plan)
    assert {tensor.device for tensor in model.state_dict().values()} == {foreign.DEVICE}
    assert_same(model(**there(BATCH)).loss, convert(dense(), plan)(**BATCH).loss)
