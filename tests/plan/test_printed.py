"""A printed plan is short, and its figures are those of its storage."""

import re

import pytest
import transformers

import nxmiformer as nx
from nxmiformer.plan.compression import CompressionPlan


def planned(layers, weight):
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.BertForSequenceClassification(config)
    return CompressionPlan.uniform(model, nx.find_targets(model), weight, nx.Activations(8))


@pytest.mark.parametrize("weight", [nx.Grid(4), nx.Then(nx.NM(2, 4), nx.Grid(4))], ids=str)
def test_the_printed_bits_and_counts_are_those_of_the_plan(weight):
    plan = planned(3, weight)
    *rows, total = [line for line in str(plan).splitlines() if not line.startswith("dense: ")]
    counts = [int(count) for row in rows for count in re.findall(r"(\d+) ×\s+\d*:?\d*\+?int4", row)]
    assert sum(counts) == len(plan.layers)
    found = re.fullmatch(r"(\d+) layers: ([\d,]+) weights in ([\d.]+) bits each; ([\d,]+) other .*", total)
    layers, weights, bits, rest = (float(each.replace(",", "")) for each in found.groups())
    assert (layers, weights, rest) == (len(plan.layers), plan.storage().dense // 32, plan.rest)
    assert bits == pytest.approx(plan.storage().total / weights, abs=0.005)


def test_a_deeper_model_of_equal_blocks_prints_in_as_many_lines():
    assert len(str(planned(2, nx.Grid(4))).splitlines()) == len(str(planned(5, nx.Grid(4))).splitlines()) < 20


def test_a_plan_without_layers_prints_too():
    assert str(CompressionPlan({}, {"classifier": "the head"}, 7)).splitlines() == [
        "0 layers: 0 weights; 7 other parameters stay float32",
        "dense: classifier: the head",
    ]
