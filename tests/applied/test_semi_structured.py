"""Layers on sparse tensor cores: by cuSPARSELt where there is a GPU, and anywhere with dense products in its place."""

import copy
import runpy
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from torch.sparse import _semi_structured_conversions as conversions

from nxmiformer.applied import semi_structured
from nxmiformer.applied.convert import convert, strip
from nxmiformer.applied.semi_structured import SparseInt8Linear, make_semi_structured, refusals
from nxmiformer.layers.found import compressed_layers
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.projection import project
from nxmiformer.layers.targets import find_targets
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.plan.origin import Planning
from nxmiformer.sets import NM, Block, Grid, Then

SIZES = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
EIGHT = Activations(8)
IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 2]])
WITHIN = [Then(NM(2, 4), Grid(4)), Then(NM(2, 4, "dense"), Grid(8)), Then(NM(1, 4), Grid(4)), Then(NM(2, 8), Grid(1))]
STUDY = Path(__file__).parents[2] / "experiments" / "bench" / "tensor_cores.py"


def bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=24, **SIZES))


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=24, n_embd=64, n_layer=1, n_head=2))


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=24, **SIZES, num_key_value_heads=1))


def compressed(make, weight, activations=EIGHT, **whole):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
    plan = Planning("plan", weight, activations, **whole)(model)
    project(convert(model, plan))
    return model.eval().requires_grad_(False), plan


def held(dense):
    """What the semi-structured form of a matrix holds, by PyTorch's own conversions."""
    return conversions.sparse_semi_structured_to_dense_cutlass(
        *conversions.sparse_semi_structured_from_dense_cutlass(dense)
    )


def product(packed, dense, *, alpha, out_dtype):
    """What cuSPARSELt computes, in double precision; the arguments are checked by PyTorch's own rules for them."""
    blanks = [each.to("meta") for each in (packed, dense)]
    blank = torch.ops.aten._cslt_sparse_mm(*blanks, alpha=alpha.to("meta"), out_dtype=out_dtype)
    assert dense.t().is_contiguous()  # as it asks of 8-bit inputs
    assert dense.shape[1] % 16 == 0
    result = (alpha.double()[:, None] * (packed.double() @ dense.double())).to(out_dtype)
    assert (result.shape, result.dtype) == (blank.shape, blank.dtype)
    return result


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request, monkeypatch):
    """Where to run, and for a CPU the kernels that it does not have."""
    if request.param == "cuda":
        return "cuda"
    monkeypatch.setattr(semi_structured, "DEVICE", "cpu")
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", held)
    monkeypatch.setattr(torch, "_cslt_compress", held)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", product)
    return "cpu"


def logits(model, device):
    return model(input_ids=IDS.to(device)).logits.float().cpu()


@pytest.mark.parametrize("weight", [NM(2, 4), *WITHIN], ids=str)
@pytest.mark.parametrize("make", [bert, gpt2, llama])
def test_bf16_kernels_compute_what_the_dense_model_does_in_bf16(make, weight, device):
    model, plan = compressed(make, weight)
    model.to(device)
    dense = strip(copy.deepcopy(model)).bfloat16()
    sparse = make_semi_structured(model, plan)
    assert not compressed_layers(sparse)
    assert all(p.dtype == torch.bfloat16 for p in sparse.parameters())
    # Sums in another order differ by roundings to bfloat16, of 2**-9.
    torch.testing.assert_close(logits(sparse, device), logits(dense, device), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("weight", WITHIN, ids=str)
@pytest.mark.parametrize("make", [bert, gpt2, llama])
def test_int8_kernels_give_the_logits_of_the_packed_model(make, weight, device):
    model, plan = compressed(make, weight)
    model.to(device)
    before = logits(model, device)
    sparse = make_semi_structured(model, plan, "int8")
    kinds = [type(sparse.get_submodule(name)) for name in plan.layers]
    assert set(kinds) == {SparseInt8Linear}
    torch.testing.assert_close(logits(sparse, device), before, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kernel", ["bf16", "int8"])
def test_compressed_embeddings_are_looked_up_in_bf16(kernel, device):
    model, plan = compressed(bert, WITHIN[0], embeddings="int8")
    model.to(device)
    before, words = logits(model, device), model.get_input_embeddings().weight.clone()
    sparse = make_semi_structured(model, plan, kernel)
    assert torch.equal(sparse.get_input_embeddings().weight, words.bfloat16())
    torch.testing.assert_close(logits(sparse, device), before, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("weight", WITHIN, ids=str)
@pytest.mark.parametrize("ranges", ["token", "tensor", "ema"])
@pytest.mark.parametrize("shape", [(3, 64), (2, 5, 64), (16, 64), (1, 1, 1, 64)])
def test_an_int8_layer_is_the_compressed_one_but_for_roundings_of_its_results(shape, ranges, weight, device):
    model = nn.Sequential(nn.Linear(64, 32))
    targets = find_targets(model, include=["0"])
    plan = CompressionPlan.uniform(model, targets, weight, Activations(8, ranges))
    project(convert(model, plan))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.train()(x)  # which sets a moving average
        model.eval()
        bias = model[0].bias.clone()
        expected = model(2 * x)  # so that some of it is clamped
        made = make_semi_structured(model.to(device), plan, "int8")(2 * x.to(device)).cpu()
    assert made.dtype == torch.float32
    rounded = model[0].bias.float().cpu()
    torch.testing.assert_close(made - rounded, expected - bias, rtol=2**-8, atol=1e-5)


def test_the_study_of_tensor_cores_times_every_layer_each_way_and_gives_its_share_of_the_peak(device):
    study = runpy.run_path(str(STUDY))
    blocks = study["blocks_of"](64, 128, torch.device(device))
    rows = [dict(zip(study["COLUMNS"][1:], row, strict=True)) for row in study["measured"](blocks, [3, 16], 1e-3, 3, 2)]
    assert [(row["layer"], int(row["tokens"]), row["how"]) for row in rows] == [
        (layer, tokens, how) for layer in study["LAYERS"] for tokens in (3, 16) for how in study["GAINS"]
    ]
    for row in rows:
        operations = 2 * int(row["out"]) * int(row["in"]) * int(row["tokens"])
        teraops = operations / float(row["microseconds"]) / 1e6
        assert float(row["teraops"]) == pytest.approx(teraops, rel=0.02)
        assert float(row["peak"]) == pytest.approx(teraops / (1e-3 * study["GAINS"][row["how"]]), rel=0.02, abs=1e-3)


@pytest.mark.parametrize(
    ("weight", "activations", "kernel", "reason"),
    [
        (Grid(4), Activations(8), "bf16", "int4 is not a 2:4 set"),
        (Then(NM(3, 4), Grid(4)), Activations(8), "bf16", "3:4+int4 is not a 2:4 set"),
        (NM(2, 2), None, "bf16", "2:2 is not a 2:4 set"),
        (Block(4, 4, 0.5), None, "bf16", "is not a 2:4 set"),
        (NM(2, 4), Activations(8), "int8", "2:4 has no scale per row"),
        (Then(NM(2, 4), Grid(4, group=32)), Activations(8), "int8", "has no scale per row"),
        (Then(NM(2, 4), Grid(4)), None, "int8", "its inputs are not quantized"),
        (Then(NM(2, 4), Grid(4)), Activations(8, "static"), "int8", "the levels of its inputs are not symmetric"),
    ],
)
def test_every_layer_that_the_kernels_cannot_carry_is_named_and_the_model_stays(weight, activations, kernel, reason):
    model, plan = compressed(bert, weight, activations)
    lines = list(refusals(model, plan, kernel))
    assert [line.split(":")[0] for line in lines] == list(plan.layers)
    assert all(reason in line for line in lines)
    before = logits(model, "cpu")
    with pytest.raises(ValueError, match=r"sparse tensor cores cannot compute"):
        make_semi_structured(model, plan, kernel)
    assert torch.equal(logits(model, "cpu"), before)


def test_a_shape_that_the_kernels_do_not_take_is_refused():
    model = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 32), nn.Linear(64, 32))
    plan = CompressionPlan.uniform(model, find_targets(model, include=["0", "1", "2"]), NM(2, 4))
    convert(model, plan)
    first, second = refusals(model, plan, "bf16")
    assert "48 x 64" in first
    assert "32 x 48" in second


def test_a_model_that_is_not_on_a_gpu_is_refused_and_stays():
    model, plan = compressed(bert, WITHIN[0])
    before = logits(model, "cpu")
    with pytest.raises(ValueError, match="the model is on cpu: sparse tensor cores are on cuda"):
        make_semi_structured(model, plan, "int8")
    assert torch.equal(logits(model, "cpu"), before)


def test_an_unknown_kernel_is_an_error_that_names_those_that_there_are():
    model, plan = compressed(bert, NM(2, 4))
    with pytest.raises(ValueError, match="bf16"):
        make_semi_structured(model, plan, "fp8")
