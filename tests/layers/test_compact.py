"""What adds nothing goes, and nothing else: the smaller model computes what the larger one did."""

import copy
import functools

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from nxmiformer.applied.convert import convert
from nxmiformer.layers.compact import compact, left_of, resize, sizes_of
from nxmiformer.layers.targets import find_targets
from nxmiformer.layers.units import find_units, silent
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import Grid

WORDS = {"vocab_size": 20, "max_position_embeddings": 16, "num_labels": 3}
NARROW = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 10}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}


def bert(**options):
    return transformers.BertForSequenceClassification(transformers.BertConfig(**WORDS, **NARROW, **options))


def roberta():
    return transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**WORDS, **NARROW))


def electra():
    config = transformers.ElectraConfig(**WORDS, **NARROW, embedding_size=8)
    return transformers.ElectraForSequenceClassification(config)


def distilbert():
    sizes = {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 10}
    return transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(**WORDS, **sizes))


def gpt2():
    sizes = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 16, "n_inner": 10, "vocab_size": 20}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **TOKENS))


def llama(**options):
    heads = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4}
    config = {**NARROW, **heads, "vocab_size": 20, "max_position_embeddings": 16, **TOKENS, **options}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))


def llama_with_biases():
    return llama(attention_bias=True, mlp_bias=True)


MODELS = [bert, roberta, electra, distilbert, gpt2, llama, llama_with_biases]


def made(make, seed=0):
    """A float64 model in evaluation mode, of weights and biases that are not small."""
    return copy.deepcopy(drawn(make, seed))


@functools.cache
def drawn(make, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


@torch.no_grad()
def outputs(model):
    ids = torch.tensor([[3, 2, 3, 4, 5], [6, 7, 8, 9, 2]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return model(input_ids=ids, attention_mask=mask).logits[mask.bool()] if lm(model) else model(ids, mask).logits


def lm(model):
    return "LM" in type(model).__name__


@torch.no_grad()
def empty(model, units, unit, how):
    """Zeros where one unit is: in the columns that read it, or in the rows that it comes from, with their bias."""
    number = torch.tensor([unit])
    if how == "columns":
        matrix(model, units.out)[:, units.columns(number)] = 0
        return
    sources = units.sources if how == "all rows" else [each for each in units.sources if each.silences][-1:]
    for source in sources:
        rows = source.rows(number)
        matrix(model, source.name)[rows] = 0
        if model.get_submodule(source.name).bias is not None and how != "rows but no bias":
            model.get_submodule(source.name).bias[rows] = 0


def matrix(model, name):
    module = model.get_submodule(name)
    return module.weight.t() if "Conv1D" in type(module).__name__ else module.weight


WAYS = ("columns", "rows", "all rows")


@pytest.mark.parametrize("make", MODELS)
@given(data=st.data())
@settings(max_examples=5, deadline=None)
def test_masked_and_compacted_give_the_same_outputs_whatever_is_masked(make, data):
    model = made(make)
    gone = {}
    for units in find_units(model):
        chosen = data.draw(st.lists(st.sampled_from(range(units.count)), unique=True))
        for unit in chosen:
            empty(model, units, unit, data.draw(st.sampled_from(WAYS)))
        gone[units.layer, units.kind] = len(chosen)
    masked, size = outputs(model), sum(p.numel() for p in model.parameters())
    expected = {
        key: (units.count - gone[key], units.count)
        for units in find_units(model)
        for key in [(units.layer, units.kind)]
    }
    left = compact(model)
    assert {(layer, kind): each for layer, kinds in left.units.items() for kind, each in kinds.items()} == expected
    torch.testing.assert_close(outputs(model), masked, rtol=1e-10, atol=1e-10)
    assert (sum(p.numel() for p in model.parameters()) < size) == any(
        gone[key] and count > 1 for key, (_, count) in expected.items()
    )


@pytest.mark.parametrize("make", MODELS)
def test_one_unit_goes_of_each_way_that_it_is_emptied_and_the_shapes_are_smaller_by_it(make):
    for how in WAYS:
        model = made(make)
        before = {name: tuple(p.shape) for name, p in model.named_parameters()}
        for units in find_units(model):
            empty(model, units, 1, how)
        compact(model)
        for units in find_units(model):
            assert units.count == units.full - 1
            rows, columns = matrix(model, units.out).shape
            assert (rows, columns) == (24, units.count * units.width)
        assert {name for name, p in model.named_parameters() if tuple(p.shape) != before[name]}


@pytest.mark.parametrize("make", [bert, roberta, electra, distilbert, gpt2, llama_with_biases])
def test_rows_of_zeros_with_a_bias_left_are_no_reason_to_go(make):
    model = made(make)
    for units in find_units(model):
        empty(model, units, 0, "rows but no bias")
    assert not any(silent(model, units).any() for units in find_units(model))
    before = copy.deepcopy(model.state_dict())
    compact(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("make", MODELS)
def test_queries_and_keys_of_zeros_are_no_reason_for_a_head_to_go(make):
    model = made(make)
    for units in find_units(model):
        for source in units.sources:
            if not source.silences:
                rows = source.rows(torch.tensor([0]))
                with torch.no_grad():
                    matrix(model, source.name)[rows] = 0
        assert not silent(model, units).any()


def test_a_dimension_stays_where_the_activation_function_of_nothing_is_something():
    model = made(lambda: bert(hidden_act="sigmoid"))
    heads, dimensions = find_units(model)[:2]
    empty(model, dimensions, 0, "rows")
    assert not silent(model, dimensions).any()
    empty(model, dimensions, 0, "columns")
    assert silent(model, dimensions).tolist() == [True] + [False] * 9
    assert heads.kind == "heads"


@pytest.mark.parametrize("make", [gpt2, llama, llama_with_biases])
@pytest.mark.parametrize("which", [0, 1])
def test_a_layer_that_adds_a_constant_goes_whole_and_the_constant_stays(make, which):
    model = made(make)
    heads, dimensions = find_units(model)[2 * which : 2 * which + 2]
    for units in (heads, dimensions):
        for unit in range(units.count):
            empty(model, units, unit, "columns")
    masked = outputs(model)
    gone = compact(model).layers
    homeless = make is llama_with_biases and which == 0  # nothing before its first layer is added for every token
    assert gone == (() if homeless else (heads.layer,))
    torch.testing.assert_close(outputs(model), masked, rtol=1e-10, atol=1e-10)
    assert model.config.num_hidden_layers == 2 - len(gone)
    assert len({units.layer for units in find_units(model)}) == 2 - len(gone)


def test_a_model_without_anything_keeps_one_layer_with_one_head_and_one_dimension():
    model = made(gpt2)
    for units in find_units(model):
        for unit in range(units.count):
            empty(model, units, unit, "rows")
    masked = outputs(model)
    assert len(compact(model).layers) == 1
    assert [units.count for units in find_units(model)] == [1, 1]
    torch.testing.assert_close(outputs(model), masked, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_compacted_model_writes_the_same_text(make):
    model = made(make)
    for units in find_units(model):
        empty(model, units, 1, "columns")
    model.generation_config.pad_token_id = 0
    start = torch.tensor([[3, 4, 5]])
    before = model.generate(start, max_new_tokens=6, do_sample=False)
    compact(model)
    assert torch.equal(model.generate(start, max_new_tokens=6, do_sample=False), before)


@pytest.mark.parametrize("make", MODELS)
def test_a_model_of_the_sizes_of_another_takes_its_weights(make):
    model = made(make)
    for units in find_units(model):
        empty(model, units, 0, "all rows")
    assert sizes_of(model) == {}
    left = left_of(model)
    compact(model)
    sizes = sizes_of(model)
    assert sizes == {layer: {kind: kept for kind, (kept, _) in kinds.items()} for layer, kinds in left.items()}
    other = made(make, seed=1)
    resize(other, sizes)
    other.load_state_dict(model.state_dict())
    assert torch.equal(outputs(other), outputs(model))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"bert.encoder.layer.0": {"heads": 4}}, "is to have 4 heads, and the model has 3 heads there"),
        ({"bert.encoder.layer.0": {"heads": 0}}, "is to have 0 heads"),
        ({"bert.encoder.layer.9": {"heads": 1}}, "layer.9 is to have 1 heads, and the model has no heads there"),
        ({"bert.encoder.layer.1": {"dimensions": True}}, "is to have True dimensions"),
    ],
)
def test_sizes_that_the_model_cannot_have_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        resize(bert(), sizes)


def test_what_cannot_be_made_compact_is_named():
    mpnet = transformers.MPNetConfig(**WORDS, **NARROW)
    with pytest.raises(ValueError, match="MPNetForSequenceClassification has no layers of BERT, RoBERTa"):
        compact(transformers.MPNetForSequenceClassification(mpnet))
    model = bert()
    convert(model, CompressionPlan.uniform(model, find_targets(model), Grid(4)))
    with pytest.raises(ValueError, match=r"query: it is compressed: strip\(model\) first"):
        compact(model)
    model = gpt2()
    first, second = model.transformer.h
    second.mlp.c_fc.weight = first.mlp.c_fc.weight
    with pytest.raises(ValueError, match=r"h.1.mlp.c_fc: it shares its weight with transformer.h.0.mlp.c_fc"):
        compact(model)
