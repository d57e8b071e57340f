"""Activations that are computed anew in the backward pass, to save memory, change nothing but that."""

import pytest
import torch
import transformers

from nxmiformer.applied.convert import convert
from nxmiformer.layers.found import compressed_layers
from nxmiformer.layers.inputs import RANGES, Activations
from nxmiformer.layers.targets import find_targets
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import NM


def trained(ranges, reentrant):
    """The gradients and the averaged peaks after a few batches."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=20, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes)
    model = transformers.BertForSequenceClassification(config).train()
    activations = Activations(4, ranges, momentum=0.5)
    convert(model, CompressionPlan.uniform(model, find_targets(model), NM(2, 4), activations))
    if reentrant is not None:
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
    for seed in range(3):
        ids = torch.randint(1, 20, (2, 6), generator=torch.Generator().manual_seed(seed))
        model(input_ids=ids, labels=torch.tensor([0, 1])).loss.backward()
    inputs = [layer.inputs.state_dict() for layer in compressed_layers(model).values()]
    peaks = [end.item() for each in inputs for end in each.values()]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, peaks


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("ranges", RANGES)
def test_gradients_and_averaged_ranges_are_those_without_checkpointing(ranges, reentrant):
    (grads, peaks), (expected, seen) = trained(ranges, reentrant), trained(ranges, None)
    assert peaks == seen
    assert grads.keys() == expected.keys()
    assert all(torch.equal(grads[name], expected[name]) for name in expected)
