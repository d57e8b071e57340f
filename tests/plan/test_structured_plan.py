"""Plans of whole heads and dimensions."""

import pytest
import transformers

from nxmiformer.layers.units import find_units
from nxmiformer.plan.structured import Structured
from nxmiformer.sets import Block

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32, "vocab_size": 20}


def bert():
    return transformers.BertModel(transformers.BertConfig(**SIZES))


def llama():
    return transformers.LlamaModel(transformers.LlamaConfig(**SIZES, num_key_value_heads=2))


def gpt2():
    return transformers.GPT2Model(transformers.GPT2Config(n_embd=16, n_layer=1, n_head=4, vocab_size=20))


@pytest.mark.parametrize("make", [bert, llama, gpt2])
def test_dimensions_and_heads_are_blocks_of_the_layers_that_they_are_in(make):
    model = make()
    plan = Structured("plan", Block(4, 4, 0.5), dimensions=0.25, heads=0.5)(model)
    for units in find_units(model):
        density = 0.5 if units.kind == "heads" else 0.25
        out = plan.layers[units.out]
        assert out.weight == Block(out.shape[0], units.width, density)
        for source in units.sources:
            spec = plan.layers[source.name]
            assert spec.weight == Block(source.width, spec.shape[1], density)


@pytest.mark.parametrize("make", [bert, llama, gpt2])
def test_where_only_reading_layers_have_sets_what_computes_heads_and_dimensions_is_dense(make):
    model = make()
    plan = Structured("plan", Block(4, 4, 0.5), dimensions=0.25, heads=0.5, reading=True)(model)
    both = Structured("plan", Block(4, 4, 0.5), dimensions=0.25, heads=0.5)(model)
    outs = {units.out for units in find_units(model)}
    assert plan.layers == {name: spec for name, spec in both.layers.items() if name in outs}


def test_what_has_no_density_has_the_set_of_all_others():
    plan = Structured("plan", Block(4, 4, 0.5), dimensions=0.25)(bert())
    sets = {name: str(spec.weight) for name, spec in plan.layers.items()}
    assert {each for name, each in sets.items() if "attention" in name} == {"4x4@0.5"}
    assert [each for name, each in sets.items() if "attention" not in name] == ["1x16@0.25", "16x1@0.25"]
    plan = Structured("plan", Block(4, 4, 0.5), dimensions=None, heads=0.5)(bert())
    assert [str(spec.weight) for name, spec in plan.layers.items() if "attention" not in name] == ["4x4@0.5"] * 2


def test_a_model_whose_heads_are_not_known_and_a_density_of_nothing_are_refused():
    mpnet = transformers.MPNetModel(transformers.MPNetConfig(**SIZES))
    with pytest.raises(ValueError, match=r"those of a MPNetModel are not known, but of BERT.*: give plan=block"):
        Structured("hybrid", Block(4, 4, 0.5))(mpnet)
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\], not 0"):
        Structured("hybrid", Block(4, 4, 0.5), dimensions=0.0)
