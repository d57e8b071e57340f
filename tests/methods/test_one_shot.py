"""Projection without training: the ranges of inputs that it fixes."""

import pytest
import torch
from test_methods import batch, bert, given_to

from nxmiformer.applied.convert import convert
from nxmiformer.layers.everything import blind_ranges
from nxmiformer.layers.found import compressed_layers
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.targets import find_targets
from nxmiformer.methods.base import Length
from nxmiformer.methods.one_shot import OneShot
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import Grid


@pytest.mark.parametrize("ranges", ["ema", "static"])
def test_ranges_that_are_calibrated_are_the_mean_of_those_of_the_batches_whatever_the_delay(ranges):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = bert()
    convert(model, CompressionPlan.uniform(model, find_targets(model), Grid(8), Activations(8, ranges)))
    method, given = OneShot(calibration=3, delay=2), [batch(), {**batch(), "input_ids": batch()["input_ids"].flip(1)}]
    method.attach(model, Length(0, 1))
    list(method.calibrate(given_to(model, iter([*given, given[0]]))))
    layer = next(iter(compressed_layers(model).values()))
    with torch.no_grad():
        seen = [model.bert.embeddings(each["input_ids"]) for each in (*given, given[0])]
    ends = [(x.abs().amax(),) if ranges == "ema" else (x.amin(), x.amax()) for x in seen]
    found = [each.squeeze() for each in layer.inputs.state_dict().values()]
    torch.testing.assert_close(found, [sum(each) / 3 for each in zip(*ends, strict=True)])
    assert not blind_ranges(model)


def test_a_number_of_batches_below_zero_is_refused():
    with pytest.raises(ValueError, match="calibration is a number of batches, 0 or more, not -1"):
        OneShot(calibration=-1)
