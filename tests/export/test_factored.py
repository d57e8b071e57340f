"""Packed models of Kronecker products: read again, their layers have factors in place of a weight."""

import copy
import pickle

import pytest
import torch
from test_from_pretrained import masked_lm
from tiny import bert, contents, gpt2, llama, logits, same_bits, seeded
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
)

from nxmiformer.applied.convert import convert, strip, verify
from nxmiformer.export import load_packed, save_packed
from nxmiformer.layers.factored import Factored, FactoredEmbedding, FactoredWeight, factor, unfactor
from nxmiformer.layers.found import compressed_layers
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.kronecker import Factors
from nxmiformer.layers.projection import project, projected
from nxmiformer.layers.untouched import untouched
from nxmiformer.plan.origin import Planning
from nxmiformer.sets import Grid, Kronecker, Products

NEAR = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 0.05}


def factored(make, dtype=torch.float32, head=None, activations=None):
    """A model of products, its embeddings too, and its plan."""
    model = seeded(make).to(dtype).requires_grad_(False)
    plan = Planning("factored", Kronecker(2, 4), activations, embeddings="kron1x4r2", head=head)(model)
    convert(model, plan)
    project(model)
    return model.requires_grad_(True).eval(), plan


def read_in_all_ways(model, path):
    config = AutoConfig.from_pretrained(path)
    config.quantization_config["lazy"] = True
    yield load_packed(path)
    yield load_packed(path, lazy=True)
    yield type(model).from_pretrained(path)
    yield type(model).from_pretrained(path, config=config)


@pytest.mark.parametrize(
    ("make", "dtype", "head", "activations"),
    [
        (bert, torch.float32, "int4", Activations(8)),
        (gpt2, torch.float64, None, None),
        (llama, torch.bfloat16, None, None),
        (masked_lm, torch.float32, "kron2x4+int4", None),
    ],
)
def test_a_model_that_is_read_computes_with_factors_and_is_the_same_in_all_ways(
    make, dtype, head, activations, tmp_path
):
    model, plan = factored(make, dtype, head, activations)
    save_packed(model, plan, tmp_path / "packed")
    same = copy.deepcopy(model)
    factor(same)
    torch.testing.assert_close(logits(same), logits(model), rtol=0, atol=NEAR[dtype] * float(logits(model).abs().max()))
    sets = {name: layer.quantizer.constraint for name, layer in compressed_layers(same).items()}
    for i, read in enumerate(read_in_all_ways(model, tmp_path / "packed")):
        assert same_bits(logits(read), logits(same))
        for name, layer in compressed_layers(read).items():
            assert isinstance(layer, Factored) == isinstance(sets[name], Products)
        state, expected = read.state_dict(), model.state_dict()
        if i in (0, 2):
            assert state.keys() == expected.keys()
            assert all(same_bits(state[key], expected[key]) for key in state)
        save_packed(read, plan, tmp_path / "again")
        assert contents(tmp_path / "again") == contents(tmp_path / "packed")
        assert read.training is False
    unfactor(same)
    assert same_bits(logits(same), logits(model))


def test_a_model_that_is_read_has_as_many_parameters_as_its_file(tmp_path):
    model, plan = factored(bert)
    save_packed(model, plan, tmp_path / "packed")
    read = load_packed(tmp_path / "packed")
    storage = plan.storage()
    assert 32 * sum(p.numel() for p in read.parameters()) == storage.total + storage.rest
    held = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in read.parameters()}
    assert 8 * sum(held.values()) <= storage.total + storage.rest + 64 * len(held)
    assert sum(isinstance(layer, FactoredEmbedding) for layer in read.modules()) == 3


def test_factors_that_were_read_are_trained_and_once_projected_saved_again(tmp_path):
    model, plan = factored(bert)
    save_packed(model, plan, tmp_path / "packed")
    read = load_packed(tmp_path / "packed").train()
    optimizer = torch.optim.Adam(read.parameters(), lr=1e-2)
    before = copy.deepcopy(read)
    batch = {"input_ids": torch.arange(12).view(4, 3), "labels": torch.tensor([0, 1, 2, 1])}
    losses = []
    for _ in range(10):
        loss = read(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trained = dict(read.named_parameters())
    assert all(not torch.equal(trained[name], p) for name, p in before.named_parameters() if name.endswith(".left"))
    with pytest.raises(ValueError, match=r"encoder\.layer\.0\.attention\.self\.query: not in kron2x4"):
        save_packed(read, plan, tmp_path / "again")
    moved = logits(read.eval())
    project(read)
    torch.testing.assert_close(logits(read), moved, rtol=1e-4, atol=1e-5)
    save_packed(read, plan, tmp_path / "again")
    assert same_bits(logits(load_packed(tmp_path / "again")), logits(read))


@pytest.mark.parametrize("trying", [projected, untouched])
def test_what_is_tried_on_factors_leaves_their_bits(trying, tmp_path):
    model, plan = factored(bert)
    save_packed(model, plan, tmp_path / "packed")
    read = load_packed(tmp_path / "packed")
    layers = [layer for layer in read.modules() if isinstance(layer, Factored)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.left.mul_(1.1)
    before, said = copy.deepcopy(dict(read.named_parameters())), logits(read)
    with trying(read), torch.no_grad():
        for layer in layers:
            layer.take(torch.ones(layer.weight.weight().shape))
        assert not torch.equal(logits(read), said)
    assert all(same_bits(parameter, before[name]) for name, parameter in read.named_parameters())
    assert same_bits(logits(read), said)


def test_the_state_of_a_model_with_factors_is_that_of_a_dense_one_and_can_be_given_to_both(tmp_path):
    model, plan = factored(gpt2)
    save_packed(model, plan, tmp_path / "packed")
    read, other = load_packed(tmp_path / "packed"), load_packed(tmp_path / "packed")
    for factors in (each for each in other.modules() if isinstance(each, Factors)):
        factors.left.data.zero_()
    other.load_state_dict(model.state_dict())
    assert same_bits(logits(other), logits(read))
    model.load_state_dict(read.state_dict())
    state = read.state_dict()
    name = next(name for name, layer in compressed_layers(read).items() if isinstance(layer, Factored))
    with pytest.raises(RuntimeError, match=rf"{name}\.weight is \(2, 2\), and the layer's"):
        other.load_state_dict({**state, f"{name}.weight": torch.zeros(2, 2)})
    del state[f"{name}.weight"]
    with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: "{name}\.weight"'):
        other.load_state_dict(state)


def test_a_model_with_factors_is_copied_pickled_and_stripped(tmp_path):
    model, plan = factored(gpt2)
    save_packed(model, plan, tmp_path / "packed")
    read = load_packed(tmp_path / "packed")
    for same in (copy.deepcopy(read), pickle.loads(pickle.dumps(read))):
        assert same_bits(logits(same), logits(read))
    verify(read, plan)
    plain = strip(read)
    assert not any(isinstance(module, (Factors, Factored)) for module in plain.modules())
    assert same_bits(logits(plain), logits(strip(model)))


def test_what_is_read_is_saved_as_a_dense_model(tmp_path):
    model, plan = factored(bert)
    save_packed(model, plan, tmp_path / "packed")
    load_packed(tmp_path / "packed").save_pretrained(tmp_path / "dense")
    dense = AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense")
    assert compressed_layers(dense) == {}
    assert same_bits(logits(dense), logits(strip(model)))


def test_a_weight_that_is_no_product_is_not_factored():
    model, _ = factored(bert)
    layer = model.bert.encoder.layer[0].output.dense
    with torch.no_grad():
        layer.weight.add_(torch.arange(32.0))
    with pytest.raises(ValueError, match=r"layer\.0\.output\.dense: its weight is not a point of kron2x4"):
        factor(model)


def test_a_plan_without_products_has_no_factors(tmp_path):
    model = seeded(bert)
    plan = Planning("grid", Grid(4), None)(model)
    convert(model, plan)
    project(model)
    save_packed(model.eval(), plan, tmp_path / "packed")
    read = load_packed(tmp_path / "packed")
    factor(read)
    assert not any(isinstance(module, Factors) for module in read.modules())


def deberta():
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = DebertaV2Config(**sizes, intermediate_size=32, relative_attention=True, pos_att_type=["p2c", "c2p"])
    return DebertaV2ForSequenceClassification(config)


def test_code_that_reads_a_weight_beside_its_layer_gets_the_product_and_its_gradient_reaches_the_factors(tmp_path):
    model, plan = factored(deberta)
    save_packed(model, plan, tmp_path / "packed")
    read, ids = load_packed(tmp_path / "packed"), torch.arange(5, 13)[None]
    ours, theirs = read(ids).logits, model(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    layer = read.get_submodule("deberta.embeddings.word_embeddings")
    assert isinstance(layer, FactoredEmbedding)
    torch.nn.functional.linear(torch.ones(1, 16), layer.weight).sum().backward()
    assert layer.weight.left.grad.any()
    assert layer.weight.right.grad.any()


def test_to_read_a_model_multiplies_no_factors_out(tmp_path, monkeypatch):
    model, plan = factored(bert)
    save_packed(model, plan, tmp_path / "packed")
    monkeypatch.setattr(FactoredWeight, "dense", lambda _: pytest.fail("the dense weight was built"))
    for read in read_in_all_ways(model, tmp_path / "packed"):
        assert logits(read).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_given_its_own_state_keeps_its_factors_to_the_bit_and_refuses_a_weight_that_is_no_product(dtype):
    model, _ = factored(bert, dtype)
    factor(model)
    with torch.no_grad():
        for layer in compressed_layers(model).values():
            if isinstance(layer, Factored):
                layer.weight.left.mul_(3.0)
    before = {name: each.clone() for name, each in model.named_parameters()}
    state = model.state_dict()
    model.load_state_dict(state)
    assert all(same_bits(each, before[name]) for name, each in model.named_parameters())
    name = next(f"{name}.weight" for name, layer in compressed_layers(model).items() if isinstance(layer, Factored))
    state[name] = torch.randn(state[name].shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    with pytest.raises(RuntimeError, match=rf"{name} is not a point of kron"):
        model.load_state_dict(state)


def test_a_plan_fits_the_model_that_was_read_by_it(tmp_path):
    model, plan = factored(bert)
    save_packed(model, plan, tmp_path / "packed")
    plan.check(load_packed(tmp_path / "packed"))
