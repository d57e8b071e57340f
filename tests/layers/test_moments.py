import pytest
import torch
from torch import nn

from nxmiformer.applied.convert import convert
from nxmiformer.layers.mode import evaluating
from nxmiformer.layers.moments import input_moments
from nxmiformer.layers.targets import find_targets
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import NM


class Twice(nn.Module):
    """Two layers that see the same input, and a third that shares the weight of the first."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 8), nn.Linear(4, 4)])
        self.blocks[2].weight = self.blocks[0].weight
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        first = self.blocks[0](x)
        return self.blocks[1](x), self.blocks[2](self.dropout(first))


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = Twice()
    return convert(made, CompressionPlan.uniform(made, find_targets(made), NM(2, 4))).train()


def batch(seed, tokens=5):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(tokens) < torch.tensor([[tokens], [2]])
    return {"x": torch.randn(2, tokens, 4, generator=generator), "attention_mask": mask.long()}


def moments(model, batches):
    return input_moments(model, batches, lambda batch: model(batch["x"]))


def test_the_moment_is_that_of_the_inputs_that_are_attended_to(model):
    batches = [batch(0), batch(1, tokens=3)]
    found = moments(model, batches)
    real = torch.cat([b["x"][b["attention_mask"].bool()] for b in batches])
    assert len(real) == 5 + 2 + 3 + 2
    torch.testing.assert_close(found["blocks.1"], real.T @ real / len(real))


def test_a_shared_weight_has_the_inputs_of_all_its_layers(model):
    data = batch(0)
    found = moments(model, [data])
    x = data["x"][data["attention_mask"].bool()]
    with torch.no_grad(), evaluating(model):
        assert not any(module.training for module in model.modules())
        both = torch.cat([x, model.blocks[0](x)])
    assert set(found) == {"blocks.0", "blocks.1"}
    torch.testing.assert_close(found["blocks.0"], both.T @ both / len(both))


def test_without_an_attention_mask_every_row_counts(model):
    x = torch.randn(6, 4)
    torch.testing.assert_close(moments(model, [{"x": x}])["blocks.1"], x.T @ x / 6)


def test_autocast_does_not_coarsen_the_moment(model):
    x = torch.randn(64, 4).bfloat16().float()
    with torch.autocast("cpu", torch.bfloat16):
        found = moments(model, [{"x": x}])["blocks.1"]
    torch.testing.assert_close(found, x.T @ x / 64)


def test_the_model_is_left_as_it_was(model):
    model.dropout.eval()
    before = {name: module.training for name, module in model.named_modules()}
    moments(model, [batch(0)])
    assert {name: module.training for name, module in model.named_modules()} == before
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_layer_that_nothing_reaches_is_named(model):
    with pytest.raises(ValueError, match=r"no calibration input reached these layers: blocks\.0, blocks\.1"):
        moments(model, [])


def test_evaluating_gives_every_module_its_own_mode_back_after_an_error(model):
    model.dropout.eval()

    def fail():
        with evaluating(model):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert model.training
    assert not model.dropout.training
