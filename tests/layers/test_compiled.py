"""Compressed layers under torch.compile: one graph, and the results of what is not compiled."""

import pytest
import torch
from torch import nn

from nxmiformer.applied.convert import convert
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.targets import find_targets
from nxmiformer.methods.admm import Admm
from nxmiformer.methods.base import Length
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import NM, Grid, Then

# torch's own: its tracing makes an object of each autograd function that it meets
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def trained(ranges, precision, compiled):
    """The losses and the weights of a few steps, with refreshes among them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    convert(
        model,
        CompressionPlan.uniform(
            model, find_targets(model, ["0", "2"]), Then(NM(2, 4), Grid(4)), Activations(8, ranges)
        ),
    )
    forward = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    method = Admm(calibration=0, refresh=2, rescale=2, interval=2)
    method.attach(model, Length(4, 4))
    optimizer = method.optimizer(torch.optim.SGD([p for _, p in method.parameters()], lr=0.1))
    x, losses = torch.randn(8, 16), []
    for step in range(4):
        method.before_step(step, ahead=not compiled)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = forward(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("ranges", "precision"), [("token", "no"), ("token", "bf16"), ("ema", "no"), ("tensor", "no"), ("static", "no")]
)
def test_compressed_layers_are_one_graph_and_train_as_without_a_compiler(ranges, precision):
    (losses, weights), (expected, theirs) = trained(ranges, precision, True), trained(ranges, precision, False)
    close = 1e-6 if precision == "no" else 1e-2
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=close, atol=close)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, theirs[name], rtol=close, atol=close)
