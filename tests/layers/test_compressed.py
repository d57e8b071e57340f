"""Layers that are more, or other, than a plain Linear, Conv1D or Embedding."""

import copy
import pickle

import accelerate
import pytest
import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrizations, parametrize, prune
from transformers.pytorch_utils import Conv1D

from nxmiformer.applied.convert import convert, strip
from nxmiformer.layers.found import compressed_layers, foreign
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.targets import Targets, find_embeddings, find_targets
from nxmiformer.plan.compression import CompressionPlan, LayerSpec
from nxmiformer.sets import NM, Grid, Then

JOINT = Then(NM(2, 4), Grid(4))


class Tripled(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


class LowRank(nn.Linear):
    """With parameters and a module of its own."""

    def __init__(self, rows, columns):
        super().__init__(rows, columns)
        self.a, self.b = nn.Parameter(torch.randn(2, rows)), nn.Parameter(torch.randn(columns, 2))
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        return super().forward(x) + self.drop(x) @ self.a.t() @ self.b.t()


class Scaled(nn.Embedding):
    """As Gemma's, with a buffer that is not saved."""

    def __init__(self, rows, columns):
        super().__init__(rows, columns, padding_idx=0)
        self.register_buffer("scale", torch.tensor(columns**0.5), persistent=False)

    def forward(self, ids):
        return super().forward(ids) * self.scale.to(self.weight.dtype)


class Positions(nn.Embedding):
    """As BART's: it looks up where the tokens are, not what."""

    def forward(self, ids, past=0):
        return super().forward(torch.arange(ids.shape[-1]).expand(ids.shape) + past)


class Direct(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight.abs(), self.bias)


class DirectConv(Conv1D):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    layer = nn.Linear(8, 8)
    layer.note = "an attribute of the user's"
    layer.register_forward_hook(lambda module, inputs, y: y + 1)
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    return layer


def replaced():
    layer = nn.Linear(8, 8)
    layer.forward = lambda x: x
    return layer


def offloaded():
    return accelerate.cpu_offload(nn.Sequential(nn.Linear(8, 8)))[0]


def in_int8():
    layer = nn.Linear(8, 8)
    layer.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
    return layer


KEPT = {
    "tripled": lambda: Tripled(8, 8),
    "low rank": lambda: LowRank(8, 8),
    "a subclass": lambda: NonDynamicallyQuantizableLinear(8, 8),
    "hooks": hooked,
    "Conv1D": lambda: Conv1D(8, 8),
    "scaled": lambda: Scaled(12, 8),
    "positions": lambda: Positions(12, 8),
}
REFUSED = {
    "own forward": (lambda: Direct(8, 8), "it is a Direct, whose forward computes with the weight itself"),
    "own forward of a Conv1D": (lambda: DirectConv(8, 8), "it is a DirectConv, whose forward"),
    "parametrized": (lambda: parametrizations.weight_norm(nn.Linear(8, 8)), "remove_parametrizations ends that"),
    "spectral norm": (lambda: nn.utils.spectral_norm(nn.Linear(8, 8)), "its weight is no parameter of its own"),
    "pruned": (lambda: prune.l1_unstructured(nn.Linear(8, 8), "weight", 0.5), "its weight is no parameter of its own"),
    "replaced forward": (replaced, "its forward has been replaced"),
    "offloaded": (offloaded, r"accelerate\.hooks\.remove_hook_from_module\(model, recurse=True\)"),
    "int8": (in_int8, r"its weight is \(8, 8\) of torch\.int8"),
}


class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), layer])

    def forward(self, x):
        first, layer = self.layers
        return first(layer(x)) if isinstance(layer, nn.Embedding) else layer(first(x))


def model_of(kind, kinds):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(kinds[kind]()).eval()


def given(model):
    ids = torch.tensor([[1, 2, 3, 0]])
    return {"x": ids if isinstance(model.layers[1], nn.Embedding) else nn.functional.one_hot(ids, 8).float()}


def plan_of(model, weight=JOINT, activations=None):
    targets = find_targets(model)
    found = Targets((*targets.layers, *find_embeddings(model)), {})
    return CompressionPlan.uniform(model, found, weight, activations)


@pytest.mark.parametrize("kind", KEPT)
def test_a_layer_computes_what_its_class_and_its_hooks_make_of_the_weight_that_is_seen(kind):
    model = model_of(kind, KEPT)
    twin, batch = copy.deepcopy(model), given(model)
    plan = plan_of(model)
    assert set(plan.layers) == {"layers.0", "layers.1"}
    assert torch.equal(convert(model, plan, batch)(**batch), twin(**batch))
    for name, layer in compressed_layers(model).items():
        layer.quantizer.seen = JOINT
        layer.quantizer.refresh(layer.matrix)
        weight = twin.get_submodule(name).weight.data
        weight.copy_(JOINT.project(weight.t()).t() if layer.transposed else JOINT.project(weight))
    torch.testing.assert_close(model(**batch), twin(**batch))
    for each in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)) if kind != "hooks" else model):
        assert torch.equal(each(**batch), model(**batch))
        assert list(map(type, each.modules())) == list(map(type, model.modules()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KEPT)
def test_strip_gives_back_the_same_modules_with_all_that_they_had(kind, training):
    model = model_of(kind, KEPT).train(training)

    def seen():
        return {n: (id(m), type(m), {k: str(v) for k, v in vars(m).items()}) for n, m in model.named_modules()}

    parameters, before = [id(p) for p in model.parameters()], seen()
    plan = plan_of(model, activations=Activations(8, "ema"))
    strip(convert(model, plan, given(model)))
    assert seen() == before
    assert [id(p) for p in model.parameters()] == parameters
    assert not compressed_layers(model)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_layer_that_cannot_be_compressed_as_what_it_is_is_skipped_with_a_reason_and_refused_by_convert(kind):
    make, reason = REFUSED[kind]
    model = model_of(kind, {kind: make})
    targets = find_targets(model)
    assert [target.name for target in targets.layers] == ["layers.0"]
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(targets.skipped["layers.1"])
    spec = LayerSpec(JOINT, (8, 8), transposed=isinstance(model.layers[1], Conv1D))
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=r"layers\.1: "):
        convert(model, CompressionPlan({"layers.0": LayerSpec(JOINT, (8, 8)), "layers.1": spec}))
    assert [type(module) for module in model.modules()] == before


def test_what_takes_an_obstacle_away_is_what_the_message_says():
    model = model_of("parametrized", {"parametrized": REFUSED["parametrized"][0]})
    parametrize.remove_parametrizations(model.layers[1], "weight")
    assert len(find_targets(model).layers) == 2
    model = accelerate.cpu_offload(Model(nn.Linear(8, 8)))
    with pytest.raises(ValueError, match=r"all left out\n  its forward has been replaced, as hooks of accelerate"):
        find_targets(model)
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    convert(model, plan_of(model), given(model))


class Sometimes(nn.Linear):
    def forward(self, x):
        return super().forward(x) if x.dtype == torch.float64 else x @ self.weight.t()


def test_a_forward_that_goes_past_the_one_it_overrides_is_found_by_a_pass():
    model = Model(Sometimes(8, 8))
    with pytest.raises(ValueError, match=r"does not call them .*exclude them: layers\.1$"):
        convert(model, plan_of(model), given(model))
    assert not compressed_layers(model)


def test_what_is_computed_besides_the_layer_is_told_to_who_would_replace_it():
    model = model_of("scaled", KEPT)
    convert(model, plan_of(model))
    assert list(foreign(model)) == ["layers.1: it is a Scaled, whose own forward is not carried over"]
    model = model_of("a subclass", KEPT)
    assert list(foreign(convert(model, plan_of(model)))) == []
