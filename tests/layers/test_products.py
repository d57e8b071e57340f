"""What of a model has to be quantized, found by watching it."""

import pytest
import torch
import transformers
from kinds import FEED, KINDS, NARROW, SIDES, TOKENS, made
from transformers import AttentionInterface, AttentionMaskInterface

from nxmiformer.layers.attention import NAME, attend
from nxmiformer.layers.everything import INPUT
from nxmiformer.layers.products import counted, find_products

ATTENTION = {"query", "key", "value", "numerator", "denominator", "weights", "output"}
NORM = {"numerator", "denominator", "quotient", "output"}
PARTS = {
    "bert": {
        "bert.embeddings.LayerNorm": {"input", *NORM},
        "bert.encoder.layer.0.attention.self": ATTENTION,
        "bert.encoder.layer.0.attention.output.LayerNorm": NORM,
        "bert.encoder.layer.0.output.dense": {"input", "output"},
        "bert.encoder.layer.0.output.LayerNorm": NORM,
        "classifier": {"input"},
    },
    "gpt2": {
        "transformer.drop": {"input"},
        "transformer.h.0.ln_1": NORM,
        "transformer.h.0.attn": ATTENTION,
        "transformer.h.0.ln_2": NORM,
        "transformer.h.0.mlp.c_proj": {"input", "output"},
        "transformer.ln_f": NORM,
    },
    "llama": {
        "model.layers.0": {"input"},
        "model.layers.0.input_layernorm": NORM,
        "model.layers.0.self_attn": ATTENTION,
        "model.layers.0.post_attention_layernorm": NORM,
        "model.layers.0.mlp.down_proj": {"input", "output"},
        "model.norm": NORM,
    },
    "marian": {
        "model.encoder.layers.0": {"input"},
        "model.encoder.layers.0.self_attn": ATTENTION,
        "model.encoder.layers.0.self_attn_layer_norm": NORM,
        "model.encoder.layers.0.fc2": {"input", "output"},
        "model.encoder.layers.0.final_layer_norm": NORM,
        "model.decoder.layers.0": {"input"},
        "model.decoder.layers.0.self_attn": ATTENTION,
        "model.decoder.layers.0.self_attn_layer_norm": NORM,
        "model.decoder.layers.0.encoder_attn": ATTENTION,
        "model.decoder.layers.0.encoder_attn_layer_norm": NORM,
        "model.decoder.layers.0.fc2": {"input", "output"},
        "model.decoder.layers.0.final_layer_norm": NORM,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_found_that_is_multiplied_and_nothing_twice_and_the_model_is_left_as_it_was(kind):
    model = made(kind)
    modules, attention = [(each, {**vars(each)}) for each in model.modules()], model.config._attn_implementation
    found = find_products(model)
    assert {name: set(parts) for name, parts in found.items()} == PARTS[kind]
    assert model.config._attn_implementation == attention
    assert all(vars(each) == kept for each, kept in modules)


def test_features_are_counted_where_they_may_have_ends_of_their_own():
    found = find_products(made("llama"))
    attention, second = found["model.layers.0.self_attn"], found["model.layers.0.mlp.down_proj"]
    assert [attention[part] for part in ("query", "key", "value", "output")] == [16, 8, 8, 16]
    assert [attention[part] for part in ("numerator", "denominator", "weights")] == [1, 1, 1]
    assert second == {"input": 32, "output": 16}
    assert {count for parts in counted(found, False).values() for count in parts.values()} == {1}


def mpnet():
    return transformers.MPNetForSequenceClassification(transformers.MPNetConfig(**NARROW))


def gemma2():
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**NARROW, num_key_value_heads=1, head_dim=8))


def t5():
    sizes = {"d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "d_model": 16, "vocab_size": 24}
    config = transformers.T5Config(**sizes, **TOKENS, decoder_start_token_id=0)
    return transformers.T5ForConditionalGeneration(config)


def bart():
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**SIDES, **FEED, **TOKENS))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (mpnet, r"mpnet\.encoder\.layer\.0\.attention\.attn: MPNetSelfAttention \(matmul\)"),
        (gemma2, r"model\.layers\.0\.input_layernorm: a Gemma2RMSNorm, which is neither"),
    ],
)
def test_a_model_that_computes_products_by_code_of_its_own_is_refused_and_the_place_named(make, what):
    with pytest.raises(ValueError, match=rf"not everything that a \w+ multiplies can be reached(.|\n)*{what}"):
        find_products(make())


@pytest.mark.parametrize("make", [t5, bart])
def test_a_model_that_nobody_looked_at_is_found_too(make):
    assert any(set(parts) >= ATTENTION for parts in find_products(make()).values())


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_mask_that_vanishes_is_told(kind, monkeypatch):
    """What `transformers` does for an attention whose name has no mask: it gives none, without a word."""
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, NAME, lambda **_: None)
    with pytest.raises(ValueError, match="its attention, which is given no mask"):
        find_products(made(kind))


def test_a_model_that_computes_something_else_by_our_attention_is_refused(monkeypatch):
    monkeypatch.setitem(
        AttentionInterface._global_mapping, NAME, lambda *args, **more: attend(*args, **more | {"scaling": 9})
    )
    with pytest.raises(ValueError, match="computes something else where its attention is replaced"):
        find_products(made("gpt2"))


def test_a_model_of_somebody_else_is_refused():
    with pytest.raises(ValueError, match="in models of transformers, not in a Linear"):
        find_products(torch.nn.Linear(2, 2))


def test_the_sum_of_embeddings_is_quantized_before_each_stack_and_no_block_after_the_first_is():
    sizes = {"vocab_size": 24, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 2}
    for _ in range(4):
        model = transformers.T5ForConditionalGeneration(
            transformers.T5Config(**sizes, **TOKENS, decoder_start_token_id=0)
        )
        inputs = {name for name, parts in find_products(model).items() if INPUT in parts}
        assert {name for name in inputs if "block" not in name} >= {"encoder.dropout", "decoder.dropout"}
        assert not [name for name in inputs if name.endswith(("layer.0", "layer.1", "layer.2"))]
