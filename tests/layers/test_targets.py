import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrizations

from nxmiformer.layers.targets import Target, find_targets

TINY = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(**TINY))


def roberta():
    return transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**TINY))


def distilbert():
    config = transformers.DistilBertConfig(vocab_size=20, dim=8, n_layers=2, n_heads=2, hidden_dim=16)
    return transformers.DistilBertForSequenceClassification(config)


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2))


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY, num_key_value_heads=1))


def block(*names, layers=2, prefix):
    return [f"{prefix}.{index}.{name}" for index in range(layers) for name in names]


def encoder(prefix):
    attention = [f"attention.self.{name}" for name in ("query", "key", "value")]
    return block(*attention, "attention.output.dense", "intermediate.dense", "output.dense", prefix=prefix)


NAMES = {
    bert: (encoder("bert.encoder.layer"), ["bert.pooler.dense", "classifier"]),
    roberta: (encoder("roberta.encoder.layer"), ["classifier.dense", "classifier.out_proj"]),
    distilbert: (
        block(
            *(f"attention.{name}" for name in ("q_lin", "k_lin", "v_lin", "out_lin")),
            *("ffn.lin1", "ffn.lin2"),
            prefix="distilbert.transformer.layer",
        ),
        ["pre_classifier", "classifier"],
    ),
    gpt2: (block("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", prefix="transformer.h"), ["lm_head"]),
    llama: (
        block(
            *(f"self_attn.{name}_proj" for name in "qkvo"),
            *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
            prefix="model.layers",
        ),
        ["lm_head"],
    ),
}


@pytest.mark.parametrize("make", NAMES)
def test_the_linear_layers_of_the_blocks_are_found_in_order_and_the_others_skipped_with_a_reason(make):
    inside, outside = NAMES[make]
    targets = find_targets(make())
    assert [target.name for target in targets.layers] == inside
    skipped = {name: reason for name, reason in targets.skipped.items() if "embedding" not in reason}
    assert skipped == dict.fromkeys(outside, "it is outside the model's repeated blocks")


@pytest.mark.parametrize("make", NAMES)
def test_shapes_are_out_in_whichever_way_they_are_stored(make):
    model = make()
    parameters = dict(model.named_parameters())
    for target in find_targets(model).layers:
        stored = tuple(parameters[target.parameter].shape)
        assert target.shape == (stored[::-1] if target.transposed else stored)
        assert target.transposed == (make is gpt2)
    if make is gpt2:
        assert find_targets(model).layers[0].shape == (24, 8)


def test_include_chooses_by_pattern_also_outside_the_blocks():
    targets = find_targets(bert(), include=["*.layer.1.*.dense", "classifier"])
    dense = ("attention.output.dense", "intermediate.dense", "output.dense")
    expected = [f"bert.encoder.layer.1.{name}" for name in dense]
    assert [target.name for target in targets.layers] == [*expected, "classifier"]
    assert targets.skipped["bert.pooler.dense"] == "no include pattern names it"


def test_exclude_takes_out_and_says_by_which_pattern():
    targets = find_targets(bert(), exclude=["*.query", "*.key"])
    assert len(targets.layers) == 8
    assert targets.skipped["bert.encoder.layer.0.attention.self.key"] == "the pattern '*.key' excludes it"
    assert find_targets(bert(), ["*.query", "*.key"], ["*.key"]).layers[0].name.endswith("query")


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_no_layer_is_an_error_with_the_nearest_name(option):
    with pytest.raises(ValueError, match="unknown pattern of layer names 'clasifier': did you mean classifier"):
        find_targets(bert(), **{option: ["clasifier"]})


def test_a_pattern_of_something_that_is_not_linear_is_an_error():
    with pytest.raises(ValueError, match="unknown pattern of layer names"):
        find_targets(bert(), include=["*.LayerNorm"])


def mixtral():
    sizes = {**TINY, "num_key_value_heads": 1, "num_local_experts": 3}
    return transformers.MixtralForSequenceClassification(transformers.MixtralConfig(**sizes))


def tied():
    sizes = {"vocab_size": 20, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 9}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes, **heads))


@pytest.mark.parametrize("make", [*NAMES, mixtral, tied, lambda: parametrizations.orthogonal(Shared().layers[0])])
def test_every_matrix_of_a_model_is_in_the_targets_or_is_skipped_with_a_reason(make):
    model = nn.ModuleDict({"inner": make(), "blocks": nn.ModuleList([nn.Linear(4, 4)])})
    targets = find_targets(model)
    named = {name for target in targets.layers for name in (target.name, *target.aliases)} | targets.skipped.keys()
    matrices = [name for name, p in model.named_parameters(remove_duplicate=False) if p.ndim > 1]
    parts = ".parametrizations.weight.original"  # of a layer that is named itself
    assert {name.removesuffix(".weight").removesuffix(parts) for name in matrices} <= named
    assert all(targets.skipped.values())


def test_matrices_that_are_no_linear_layers_say_what_they_are():
    skipped = find_targets(mixtral()).skipped
    expert, router = (skipped[f"model.layers.1.mlp.{name}"] for name in ("experts.gate_up_proj", "gate"))
    assert expert == "it is a parameter (3, 32, 8) of a MixtralExperts, no linear layer's"
    assert router == "it is a parameter (3, 8) of a MixtralTopKRouter, no linear layer's"
    skipped = find_targets(tied()).skipped
    assert skipped["model.shared"] == "it is an embedding that shares its weight with lm_head"
    assert skipped["model.encoder.embed_positions"] == "it is an embedding"


def test_leaving_nothing_is_an_error():
    with pytest.raises(ValueError, match="no layer is left to compress: 14 linear layers were found"):
        find_targets(bert(), exclude=["*"])
    with pytest.raises(ValueError, match="no layer is left to compress: 0 linear"):
        find_targets(nn.Embedding(2, 2))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.layers[2].weight = self.layers[0].weight

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def test_a_shared_weight_is_one_target_with_its_other_modules_as_aliases():
    targets = find_targets(Shared())
    assert targets.layers == (Target("layers.0", (8, 8), aliases=("layers.2",)), Target("layers.1", (8, 8)))
    assert targets.skipped == {"layers.2": "it shares its weight with layers.0, and is compressed with it"}


def test_a_module_under_two_names_is_one_target():
    model = Shared()
    model.layers[1] = model.layers[0]
    assert find_targets(model).layers == (Target("layers.0", (8, 8), aliases=("layers.1", "layers.2")),)


def test_the_first_name_that_is_not_excluded_stands_for_a_shared_weight():
    targets = find_targets(Shared(), exclude=["layers.0"])
    assert [(target.name, target.aliases) for target in targets.layers] == [("layers.1", ()), ("layers.2", ())]
