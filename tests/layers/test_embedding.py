import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

from nxmiformer.applied.convert import convert, strip, verify
from nxmiformer.export import load_packed, save_packed
from nxmiformer.layers.embedding import CompressedEmbedding
from nxmiformer.layers.found import compressed_layers
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.projection import project
from nxmiformer.layers.targets import find_embeddings, find_head
from nxmiformer.layers.weights import WeightQuantizer
from nxmiformer.plan.compression import CompressionPlan, LayerSpec
from nxmiformer.plan.origin import Planning
from nxmiformer.sets import NM, Block, Grid, Then, Unstructured

SETS = [Grid(8), Grid(4, group=8), Grid(1), NM(2, 4), Then(NM(1, 4), Grid(4))]


def bert(seed=0):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=32, max_position_embeddings=24, num_labels=3)
    return BertForSequenceClassification(config).eval()


def seeing(constraint, seed=0, learned=False):
    """An embedding of 12 rows, and its compressed stand-in, which sees points of the set."""
    torch.manual_seed(seed)
    plain = nn.Embedding(12, 16, padding_idx=0)
    layer = CompressedEmbedding.adopt(plain, WeightQuantizer(constraint))
    layer.quantizer.seen = constraint
    layer.quantizer.refresh(layer.matrix)
    if learned:
        layer.quantizer.learn()
    return plain, layer


@pytest.mark.parametrize("constraint", SETS, ids=str)
@given(ids=st.lists(st.lists(st.integers(0, 11), min_size=3, max_size=3), min_size=1, max_size=4))
def test_what_is_looked_up_is_the_projected_weights_row(constraint, ids):
    _, layer = seeing(constraint)
    ids = torch.tensor(ids)
    assert torch.equal(layer(ids), F.embedding(ids, constraint.project(layer.weight.detach())))


@pytest.mark.parametrize("learned", [False, True])
def test_rows_get_the_gradients_that_they_would_get_if_the_whole_weight_were_quantized(learned):
    ids, weights = torch.tensor([[1, 2, 2], [5, 1, 7]]), torch.randn(2, 3, 16)
    _, rows = seeing(Grid(4), learned=learned)
    (rows(ids) * weights).sum().backward()
    _, whole = seeing(Grid(4), learned=learned)
    (F.embedding(ids, whole.quantizer(whole.matrix), padding_idx=0) * weights).sum().backward()
    torch.testing.assert_close(rows.weight.grad, whole.weight.grad)
    if learned:
        # LSQ's gradient scale counts the elements of a group, which are the same in both.
        torch.testing.assert_close(rows.quantizer.scales.grad, whole.quantizer.scales.grad)


def test_an_embedding_is_adopted_and_released_with_the_same_parameter():
    plain, layer = seeing(Grid(8))
    assert layer.weight is plain.weight
    assert list(layer.state_dict()) == list(plain.state_dict())
    back = layer.release()
    assert type(back) is nn.Embedding
    assert back.weight is plain.weight
    assert (back.padding_idx, back.num_embeddings, back.embedding_dim) == (0, 12, 16)


@pytest.mark.parametrize(
    ("change", "spec", "reason"),
    [
        ({}, LayerSpec(Block(1, 4, 0.5), (12, 16)), "is no matter of single rows"),
        ({}, LayerSpec(Then(Unstructured(0.5), Grid(4)), (12, 16)), "is no matter of single rows"),
        ({"max_norm": 1.0}, LayerSpec(Grid(4), (12, 16)), "its max_norm changes the weight"),
        ({}, LayerSpec(Grid(4), (12, 16), Activations(8)), "its inputs are token ids, which cannot be quantized"),
    ],
)
def test_an_embedding_that_cannot_be_converted_says_why_and_nothing_is_changed(change, spec, reason):
    model = nn.ModuleDict({"linear": nn.Linear(16, 12), "words": nn.Embedding(12, 16, **change)})
    plan = CompressionPlan({"linear": LayerSpec(Grid(4), (12, 16)), "words": spec})
    with pytest.raises(ValueError, match=f"words: .*{reason}"):
        convert(model, plan)
    assert not compressed_layers(model)


def test_embeddings_and_head_are_all_that_is_not_in_the_blocks():
    model = bert()
    assert [t.name.rpartition(".")[2] for t in find_embeddings(model)] == [
        "word_embeddings",
        "position_embeddings",
        "token_type_embeddings",
    ]
    assert [t.name for t in find_head(model)] == ["bert.pooler.dense", "classifier"]
    assert [t.name for t in find_head(model, ["*pooler*"])] == ["classifier"]


def test_an_embedding_that_a_linear_layer_shares_is_left_out_and_shared_ones_are_counted_once():
    model = nn.ModuleDict({"a": nn.Embedding(12, 16), "b": nn.Embedding(12, 16), "c": nn.Embedding(9, 16)})
    model["b"].weight = model["a"].weight
    model["out"] = nn.Linear(16, 9)
    model["out"].weight = model["c"].weight
    (found,) = find_embeddings(model)
    assert (found.name, found.aliases, found.shape) == ("a", ("b",), (12, 16))


def test_a_whole_model_is_planned_projected_packed_and_read_back_bit_for_bit(tmp_path):
    model = bert()
    planning = Planning("all", Then(NM(2, 4), Grid(4)), embeddings="int8", head="int4")
    plan = planning(model)
    vectors = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 1)
    assert plan.rest == vectors  # every matrix has a set
    assert not plan.skipped
    assert {str(spec.weight) for spec in plan.layers.values()} == {"2:4+int4", "int8", "int4"}
    ids = torch.randint(0, 50, (4, 9))
    convert(model, plan, {"input_ids": ids})
    project(model)
    verify(model, plan)
    with torch.no_grad():
        before = model(ids).logits
        size = save_packed(model, plan, tmp_path / "packed")
        assert size.weights == sum(spec.weight.storage(spec.shape).nbytes for spec in plan.layers.values())
        assert torch.equal(load_packed(tmp_path / "packed")(ids).logits, before)
    assert not compressed_layers(strip(model))


def test_a_plan_without_them_leaves_embeddings_and_head_dense():
    plan = Planning("layers", Grid(4))(bert())
    assert all(".layer." in name for name in plan.layers)
    assert {name for name in plan.skipped if "embeddings" not in name} == {"bert.pooler.dense", "classifier"}
    embeddings = [reason for name, reason in plan.skipped.items() if "embeddings" in name]
    assert embeddings == ["it is an embedding"] * 3
