"""Layers that compute with Kronecker factors, and the training of these."""

import copy
import warnings

import pytest
import torch
import transformers
from test_methods import Run, bert, gpt2, logits
from torch.nn import functional as F

from nxmiformer.applied.convert import convert, verify
from nxmiformer.export.packed import load_packed, save_packed
from nxmiformer.layers.factored import factor
from nxmiformer.layers.kronecker import Factors, look_up, multiplications, multiply
from nxmiformer.layers.targets import Targets, find_embeddings, find_targets
from nxmiformer.methods.kronecker import Kronecker as KroneckerFactors
from nxmiformer.methods.ste_qat import SteQat
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import Kronecker, QuantizedKronecker
from nxmiformer.sets.products import kron

SHAPES = [(1, 4, 3, 2, 5), (1, 2, 5, 7, 1), (3, 3, 2, 4, 4), (2, 1, 6, 5, 2), (1, 6, 1, 1, 3)]


def factors(terms, m1, n1, m2, n2):
    chance = torch.Generator().manual_seed(0)
    left = torch.randn(terms, m1, n1, generator=chance, dtype=torch.float64, requires_grad=True)
    return left, torch.randn(terms, m2, n2, generator=chance, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_layer_computes_forward_and_backward_what_the_product_of_its_factors_does(shape):
    left, right = factors(*shape)
    x = torch.randn(2, 3, left.shape[2] * right.shape[2], dtype=torch.float64, requires_grad=True)
    bias = torch.randn(left.shape[1] * right.shape[1], dtype=torch.float64)
    y = multiply(x, left, right, bias)
    whole = F.linear(x, sum(torch.kron(a, b) for a, b in zip(left, right, strict=True)), bias)
    torch.testing.assert_close(y, whole, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(y)
    ours, theirs = (torch.autograd.grad(each, (x, left, right), direction) for each in (y, whole))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_embedding_looks_up_the_rows_of_the_product(shape):
    left, right = (each.detach() for each in factors(*shape))
    table = kron(left, right)
    ids = torch.arange(len(table)).flip(0).view(-1, 1)
    torch.testing.assert_close(look_up(ids, left, right), F.embedding(ids, table), rtol=1e-12, atol=1e-12)


def test_the_order_of_the_products_is_the_one_of_fewer_multiplications():
    for m1, n1, m2, n2 in [(384, 384, 2, 2), (384, 48, 2, 16), (16, 2, 192, 384), (2, 16, 384, 192)]:
        left, right = torch.empty(1, m1, n1, device="meta"), torch.empty(1, m2, n2, device="meta")
        orders = m2 * n1 * n2 + m1 * n1 * m2, m1 * n1 * n2 + m1 * m2 * n2
        assert multiplications(left, right) == min(orders)


def test_the_factors_of_a_layer_are_of_one_norm_and_make_the_same_product():
    left, right = (each.detach() for each in factors(2, 4, 3, 2, 5))
    made = Factors.balanced(left * 100, right)
    torch.testing.assert_close(made.left.flatten(1).norm(dim=1), made.right.flatten(1).norm(dim=1))
    torch.testing.assert_close(made.weight(), kron(left * 100, right))


def compressed(make, kind=Kronecker):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
    found = find_targets(model)
    targets = Targets((*found.layers, *find_embeddings(model)), found.skipped)
    plan = CompressionPlan.assigned(model, targets, {t.name: kind(1 + (not t.lookup), 4) for t in targets.layers})
    return convert(model, plan).train(), plan


@pytest.mark.parametrize(("make", "kind"), [(bert, Kronecker), (gpt2, Kronecker), (bert, QuantizedKronecker)])
def test_factors_are_trained_and_the_model_that_is_left_is_packed_and_computes_so_when_it_is_read_again(
    make, kind, tmp_path
):
    model, plan = compressed(make, kind)
    method = KroneckerFactors()
    phase = Run(model, method, steps=12)
    trained = dict(method.parameters())
    assert not any(f"{name}.weight" in trained for name in plan.layers)
    before = {name: p.detach().clone() for name, p in trained.items() if "factors" in name}
    phase.take(12)
    assert phase.losses[-1] < phase.losses[0]
    assert all(not torch.equal(trained[name], old) for name, old in before.items())
    training = logits(model)
    with method.as_finished():
        finished = logits(model)
        verify(model, plan)
    torch.testing.assert_close(logits(model), training, rtol=0, atol=0)
    torch.testing.assert_close(finished, training, rtol=1e-4, atol=1e-5)
    method.finalize()
    assert torch.equal(logits(model), finished)
    assert not any("factors" in name for name, _ in model.named_parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no tokenizer
        size = save_packed(model.eval(), plan, tmp_path / "packed")
    assert size.weights == sum(spec.weight.storage(spec.shape).nbytes for spec in plan.layers.values())
    read = logits(load_packed(tmp_path / "packed"))
    torch.testing.assert_close(read, logits(model), rtol=1e-4, atol=1e-5)
    factor(model)
    assert torch.equal(read, logits(model))


def test_a_model_that_was_read_is_trained_on_by_any_method(tmp_path):
    model, plan = compressed(bert)
    Run(model, KroneckerFactors()).take(2).method.finalize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no tokenizer
        save_packed(model.eval(), plan, tmp_path / "packed")
    for method in (KroneckerFactors(), SteQat()):
        read = load_packed(tmp_path / "packed").train()
        phase = Run(read, method)
        torch.testing.assert_close(logits(read), logits(model), rtol=1e-4, atol=1e-5)
        phase.take(4)
        assert phase.losses[-1] < phase.losses[0]
        phase.method.finalize()
        verify(read, plan)


def test_a_second_phase_goes_on_from_the_factors_of_the_first():
    model, _ = compressed(bert)
    method = KroneckerFactors()
    Run(model, method).take(3)
    method.hand_over()
    before = logits(model)
    Run(model, KroneckerFactors())
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)


def test_a_state_that_is_loaded_has_the_factors():
    model, _ = compressed(bert)
    other = copy.deepcopy(model)
    phase = Run(model, KroneckerFactors()).take(3)
    state = copy.deepcopy(phase.method.state_dict())
    resumed = Run(other, KroneckerFactors())
    resumed.method.load_state_dict(state, 3)
    for name, part in resumed.method.state_dict()["factors"].items():
        assert torch.equal(part, state["factors"][name])


def test_a_phase_that_trains_the_weight_through_the_projection_takes_the_set_too():
    model, plan = compressed(bert)
    phase = Run(model, SteQat(), steps=4).take(4)
    phase.method.finalize()
    verify(model, plan)
    assert phase.losses[-1] < phase.losses[0]


def kinds(attention, feed_forward, embedding):
    """The right factors of BERT-base's layers, by the left factors' columns and rows and the embedding's width."""

    def of(name, shape):
        if "word_embeddings" in name:
            return Kronecker(1, embedding)
        wide = shape[0] != shape[1]
        n1, m1 = feed_forward if wide else attention
        if wide and shape[0] < shape[1]:  # the second matrix, as the transpose of the first
            n1, m1 = m1, n1
        return Kronecker(shape[0] // m1, shape[1] // n1)

    return of


@pytest.mark.parametrize(
    ("kind", "total", "pooler"),
    [
        (kinds((48, 384), (2, 16), 16), 5_228_272, True),
        (kinds((384, 384), (2, 8), 8), 14_654_216, True),
        (kinds((384, 384), (2, 8), 8), 14_654_216 - 768 * 768 - 768, False),
    ],
    ids=["21 times", "8 times", "8 times without the pooler"],
)
def test_bert_base_has_the_parameters_of_the_paper(kind, total, pooler):
    with torch.device("meta"):
        model = transformers.BertModel(transformers.BertConfig(), add_pooling_layer=pooler)
    around = tuple(t for t in find_embeddings(model) if "word" in t.name)
    found = find_targets(model)
    targets = Targets((*found.layers, *around), found.skipped)
    plan = CompressionPlan.assigned(model, targets, {t.name: kind(t.name, t.shape) for t in targets.layers})
    storage = plan.storage()
    assert storage.total + storage.rest == 32 * total
    dense = sum(p.numel() for p in model.parameters())
    assert dense == (109_482_240 if pooler else 109_482_240 - 768 * 769)
