"""Models whose weights stay packed in memory."""

import copy

import pytest
import torch
import transformers
from test_from_pretrained import PLANS, check_same, masked_lm, whole
from tiny import CONFIG, MODELS, bert, compressed, contents, gpt2, llama, logits, same_bits
from transformers import AutoConfig

from nxmiformer.applied.convert import strip
from nxmiformer.applied.lazy import PackedWeight, lazy_layers, make_eager
from nxmiformer.export import PackedError, load_packed, save_packed
from nxmiformer.layers.found import compressed_layers
from nxmiformer.layers.inputs import Activations


def check_lazy(model, plan, tmp_path):
    """Save, read lazily in both ways; every law of a model that is the one that was saved, but packed."""
    save_packed(model, plan, tmp_path / "packed")
    config = AutoConfig.from_pretrained(tmp_path / "packed")
    config.quantization_config["lazy"] = True
    for i, lazy in enumerate(
        (load_packed(tmp_path / "packed", lazy=True), type(model).from_pretrained(tmp_path / "packed", config=config))
    ):
        assert same_bits(logits(lazy), logits(model))
        shared = {id(layer.weight) for layer in lazy_layers(lazy).values()}
        assert len(shared) == len(plan.layers)
        lazy.save_pretrained(tmp_path / f"again{i}")
        assert contents(tmp_path / f"again{i}") == contents(tmp_path / "packed")
    make_eager(lazy)
    lazy.requires_grad_(True)
    assert same_bits(logits(lazy), logits(model))
    return lazy


@pytest.mark.parametrize("weight", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("make", [bert, gpt2, llama])
def test_a_lazy_model_gives_the_same_logits_and_is_saved_as_the_same_files(make, weight, tmp_path):
    model, plan = compressed(make, weight, Activations(8))
    check_same(check_lazy(model, plan, tmp_path), model)


@pytest.mark.parametrize("make", [*MODELS, masked_lm])
def test_embeddings_heads_and_ties_are_lazy_too(make, tmp_path):
    check_lazy(*whole(make), tmp_path)


@pytest.mark.parametrize("words", ["int3", "2:4+int4", "int4g8", "2:4c"])
def test_an_embedding_looks_rows_up_in_parts_of_any_set(words, tmp_path):
    check_lazy(*whole(bert, embeddings=words), tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_lazy_model_of_any_dtype_is_the_eager_one(dtype, tmp_path):
    check_lazy(*compressed(gpt2, activations=Activations(8), dtype=dtype), tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_lazy_model_is_cast_as_the_eager_one_and_its_parts_are_not(dtype, tmp_path):
    save_packed(*whole(bert), tmp_path / "packed")
    lazy, eager = (load_packed(tmp_path / "packed", lazy=lazy).to(dtype) for lazy in (True, False))
    assert same_bits(logits(lazy), logits(eager))
    parts = {name: part.dtype for name, part in lazy.named_buffers() if "weight." in name}
    assert set(parts.values()) == {torch.uint8, torch.float32}
    assert same_bits(logits(copy.deepcopy(lazy)), logits(lazy))


@pytest.fixture
def packed(tmp_path):
    """A directory with a model packed whole."""
    save_packed(*whole(bert), tmp_path / "packed")
    return tmp_path / "packed"


def test_a_lazy_model_takes_the_bytes_that_its_plan_says(packed):
    lazy = load_packed(packed, lazy=True)
    weights = [module for module in lazy.modules() if isinstance(module, PackedWeight)]
    taken = {id(w): sum(part.numel() * part.element_size() for part in w.parts.values()) for w in weights}
    assert taken == {id(w): w.spec.weight.storage(w.spec.shape).nbytes for w in weights}
    assert not any(parameter.ndim == 2 for parameter in lazy.parameters() if parameter.shape[0] > 2)


def test_training_a_lazy_model_is_refused(packed):
    lazy = load_packed(packed, lazy=True)
    with pytest.raises(ValueError, match="is for evaluation: read it without lazy to train it"):
        lazy.train()
    lazy.eval()
    assert not any(parameter.requires_grad for parameter in lazy.parameters())


def test_a_lazy_weight_that_is_read_past_its_layer_is_an_error(packed):
    layer = load_packed(packed, lazy=True).classifier
    with pytest.raises(TypeError):
        torch.nn.functional.linear(torch.ones(1, 16), layer.weight)


def test_the_state_of_a_lazy_model_is_what_it_can_be_given_again(packed):
    lazy = load_packed(packed, lazy=True)
    before, state = logits(lazy), {key: tensor.clone() for key, tensor in lazy.state_dict().items()}
    with torch.no_grad():
        for tensor in lazy.state_dict().values():
            tensor.zero_()
    lazy.load_state_dict(state)
    assert same_bits(logits(lazy), before)


def test_a_lazy_model_is_read_from_whole_files_only(packed):
    (packed / CONFIG).write_bytes((packed / CONFIG).read_bytes() + b" ")
    with pytest.raises(PackedError, match=r"config\.json is damaged"):
        load_packed(packed, lazy=True)


def test_a_lazy_model_has_the_compressed_layers_of_the_eager_one(packed):
    lazy, eager = load_packed(packed, lazy=True), load_packed(packed)
    assert compressed_layers(lazy).keys() == compressed_layers(eager).keys() == lazy_layers(lazy).keys()
    assert lazy_layers(eager) == {}
    with pytest.raises(ValueError, match="make_eager"):
        strip(lazy)


def test_a_model_that_looks_at_the_shapes_of_its_weights_while_it_is_read_can_be_read_lazily(tmp_path):
    def funnel():
        sizes = {"block_sizes": [1, 1], "d_model": 8, "n_head": 2, "d_head": 4, "d_inner": 16}
        tokens = {"vocab_size": 24, "num_labels": 3, "pad_token_id": 0}
        return transformers.FunnelForSequenceClassification(transformers.FunnelConfig(**sizes, **tokens))

    check_lazy(*compressed(funnel), tmp_path)
