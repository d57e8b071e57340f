"""Training, packing and reading of models of which everything that is multiplied is quantized."""

import warnings

import pytest
import torch
from kinds import KINDS, batch, made
from test_methods import Run, bert

from nxmiformer.applied.convert import convert
from nxmiformer.export import load_packed, save_packed
from nxmiformer.export.format import no_everything
from nxmiformer.layers.everything import range_quantizers
from nxmiformer.layers.projection import project
from nxmiformer.layers.ranges import Ranges
from nxmiformer.methods.ste_qat import SteQat
from nxmiformer.plan.origin import Planning
from nxmiformer.sets import Grid


def states(model):
    return {name: each.clone() for name, each in model.state_dict().items() if ".ranges." in name}


def compressed_bert(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = bert()
    plan = Planning("whole", Grid(8), everything=Ranges(**options))(model)
    return convert(model, plan).train()


def test_quantizers_wait_for_the_delay_and_training_then_moves_their_ends():
    model = compressed_bert()
    phase = Run(model, SteQat(delay=2), steps=6)
    began = states(model)
    phase.take(2)
    assert all(torch.equal(each, began[name]) for name, each in states(model).items())
    phase.take(1)
    first = states(model)
    assert all((first[name] <= first[name.replace(".low", ".high")]).all() for name in first if name.endswith(".low"))
    phase.take(3)
    assert any(not torch.equal(each, first[name]) for name, each in states(model).items())


@pytest.mark.parametrize("options", [{}, {"bits": 6, "zero": False, "features": False}])
def test_a_model_is_trained_whatever_its_ranges(options):
    phase = Run(compressed_bert(**options), SteQat(), steps=8).take(8)
    assert phase.losses[-1] < phase.losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_are_part_of_the_packed_model_which_is_read_with_equal_bits(kind, tmp_path):
    model = made(kind)
    plan = Planning("whole", Grid(8), everything="int8")(model)
    convert(model, plan)
    for seed in range(2):
        model(**batch(kind, seed))
    project(model.eval())
    given = {name: each for name, each in batch(kind, 2).items() if name != "labels"}
    expected = model(**given).logits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no tokenizer
        save_packed(model, plan, tmp_path / "packed")
    read = [load_packed(tmp_path / "packed", lazy=lazy) for lazy in (False, True)]
    read.append(type(model).from_pretrained(tmp_path / "packed"))
    for each in read:
        assert torch.equal(each(**given).logits, expected)
    ends = states(model)
    assert ends.keys() == {f"{name}.{end}" for name in range_quantizers(model) for end in ("low", "high")}
    assert all(torch.equal(ends[name], each) for name, each in states(read[0]).items())


def test_formats_of_others_refuse_what_they_do_not_carry():
    model = bert()
    (line,) = no_everything(Planning("whole", Grid(8), everything="int8")(model))
    assert "the plan quantizes everything (int8 for " in line
    assert not [*no_everything(Planning("whole", Grid(8))(model))]
