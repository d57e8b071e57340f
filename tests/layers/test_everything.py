"""Models of which everything that is multiplied is quantized: one table of laws for all kinds."""

import json

import pytest
import torch
import transformers
from kinds import KINDS, batch, made
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from nxmiformer.applied.convert import convert, strip
from nxmiformer.layers.everything import Everything, range_quantizers
from nxmiformer.layers.projection import project
from nxmiformer.layers.ranges import Ranges
from nxmiformer.methods.dense import Dense
from nxmiformer.methods.pattern_lock import PatternLock
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.plan.origin import Planning
from nxmiformer.sets import NM, Grid, Then


def converted(kind, everything="int8", weight=None):
    model = made(kind)
    plan = Planning("whole", weight or Grid(8), everything=everything)(model)
    return convert(model, plan), plan


def states(model):
    return {name: each.clone() for name, each in model.state_dict().items() if ".ranges." in name}


class Products(TorchFunctionMode):
    """Remembers the inputs of products, and which module computes."""

    def __init__(self, model):
        super().__init__()
        self.seen, self.inside = [], []
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: self.inside.append(name))
            module.register_forward_hook(lambda *_: self.inside.pop() and None)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.matmul, F.linear):
            self.seen.append((self.inside[-1], func, args))
        return func(*args, **(kwargs or {}))


def levels(x, features=True):
    """The most values that a feature of x (..., features) takes, or that x does."""
    rows = x.detach().reshape(-1, x.shape[-1] if features else 1)
    return max(len(column.unique()) for column in rows.t())


@pytest.mark.parametrize("kind", KINDS)
def test_every_input_of_every_product_takes_no_more_values_than_there_are_levels(kind):
    """In 2 bits, where that is not a matter of how few inputs there are."""
    model, plan = converted(kind, "int2", Grid(2))
    model(**batch(kind))
    project(model.eval())
    products = Products(model)
    with products, torch.no_grad():
        model(**batch(kind, 1))
    layers = {module for name, spec in plan.layers.items() for module in (name, *spec.aliases)}
    for name, func, args in products.seen:
        if func is F.linear:
            assert name in layers
            assert levels(args[0]) <= 4, name
            rows = args[1].detach()
            assert max(len(row.unique()) for row in rows) <= 3, name
            continue
        left, right = args  # (batch, heads, tokens, features) of the one, of the other either way round
        scores = left.shape[-1] != right.shape[-1] or left.shape[-2] != right.shape[-2]
        for x in args:
            each = x.transpose(-1, -2) if scores and x is right else x
            assert levels(each.flatten(0, 1), features=False) <= 4 * each.shape[1] * each.shape[-1], name
    assert len(products.seen) == len(layers - lookups(model)) + 2 * sum(
        "weights" in own for own in plan.everything.parts.values()
    )


def lookups(model):
    return {name for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)}


@pytest.mark.parametrize("kind", KINDS)
def test_with_its_quantizers_off_a_model_is_the_dense_one_and_stripped_it_is_the_one_that_it_was(kind):
    model = made(kind).eval()
    keys, classes = list(model.state_dict()), [type(each) for each in model.modules()]
    attention, expected = model.config._attn_implementation, model(**batch(kind)).logits
    convert(model, Planning("whole", Grid(8), everything="int8")(model))
    Dense().attach(model, None)
    torch.testing.assert_close(model(**batch(kind)).logits, expected, rtol=1e-5, atol=1e-6)
    strip(model)
    assert torch.equal(model(**batch(kind)).logits, expected)
    assert list(model.state_dict()) == keys
    assert [type(each) for each in model.modules()] == classes
    assert model.config._attn_implementation == attention
    assert not any(each._forward_pre_hooks or each._forward_hooks for each in model.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_the_padding_moves_no_end(kind):
    ends = []
    for junk in (2, 5):
        model, _ = converted(kind)
        model(**batch(kind, junk=junk))
        ends.append(states(model))
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert all(
        (ends[0][name] <= ends[0][name.replace(".low", ".high")]).all() for name in ends[0] if name.endswith(".low")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_wider_grid_is_nearer_to_the_dense_model(kind):
    real = batch(kind)["labels"] != -100 if kind == "marian" else batch(kind)["attention_mask"].bool()
    expected, apart = made(kind).eval()(**batch(kind)).logits, []
    for bits in (3, 8):
        model, _ = converted(kind, f"int{bits}", Grid(bits))
        model(**batch(kind))
        project(model.eval())
        error = model(**batch(kind)).logits - expected
        apart.append((error if kind == "bert" else error[real]).norm().item())
    assert apart[0] > 8 * apart[1]


def test_zeros_of_a_sparse_weight_stay_zeros_and_so_do_those_of_what_is_seen():
    model, _ = converted("bert", "int4", Then(NM(2, 4), Grid(4)))
    model(**batch("bert"))
    project(model.eval())
    name = "bert.encoder.layer.0.output.dense"
    assert (model.get_parameter(f"{name}.weight") == 0).float().mean() >= 0.5
    assert all(quantizer(torch.zeros(1, 1, quantizer.count)).eq(0).all() for quantizer in zeroed(model))


def zeroed(model):
    return [each for each in range_quantizers(model).values() if not each.positive]


def test_a_support_that_is_kept_for_a_later_grid_is_trained_without_quantizers():
    model, _ = converted("bert")
    method = PatternLock(grid=False)
    method.layers, method.model = {}, model
    method._activate(True)
    assert not any(each.active for each in range_quantizers(model).values())


def test_a_plan_with_everything_is_a_value_that_survives_json_and_one_without_is_written_as_ever():
    model = made("bert")
    plain, whole = (Planning("x", Grid(8), everything=each)(model) for each in (None, "int6"))
    assert "everything" not in json.loads(plain.to_json())
    again = CompressionPlan.from_json(whole.to_json())
    assert again == whole
    assert again.fingerprint == whole.fingerprint
    assert len({plan.fingerprint for plan in (whole, plain, Planning("x", Grid(8), everything="int5")(model))}) == 3
    assert f"everything: int6 for {whole.everything.count} inputs of products" in str(whole)


def test_with_everything_embeddings_and_head_have_as_many_bits_and_inputs_of_layers_are_not_quantized_twice():
    plan = Planning("x", Then(NM(2, 4), Grid(4)), everything="int6", embeddings="int3")(made("bert"))
    assert plan.layers["classifier"].weight == Grid(6)
    assert plan.layers["bert.embeddings.word_embeddings"].weight == Grid(3)
    assert all(spec.activations is None for spec in plan.layers.values())


def test_a_plan_names_the_modules_that_a_model_lacks():
    plan = Planning("x", Grid(8), everything="int8")(made("bert"))
    odd = CompressionPlan({}, everything=Everything(Ranges(), {"nowhere": {"input": 3}, **plan.everything.parts}))
    with pytest.raises(ValueError, match="nowhere: the model has no such module"):
        odd.check(made("bert"))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"inputs": 3}, "unknown part of layer 'inputs': did you mean input"),
        ({"input": 0}, "layer: input needs ends for at least 1 feature, not for 0"),
        ({"input": True}, "parts to be a mapping"),
        ({"query": 3, "input": 3}, "layer: query are not the parts of an attention or of a norm"),
    ],
)
def test_parts_that_cannot_be_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        Everything(Ranges(), {"layer": parts})


def test_a_model_that_cannot_be_reached_is_refused_with_the_key_to_leave_out():
    config = transformers.MPNetConfig(
        vocab_size=24, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.MPNetForSequenceClassification(config)
    with pytest.raises(ValueError, match=r"plan\.everything=int8: not everything(.|\n)*leave plan\.everything out"):
        Planning("x", Grid(8), everything="int8")(model)
