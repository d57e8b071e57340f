"""The sets against what other libraries make of the same weight.

Compared with nvidia-modelopt 0.47.0, torchao 0.18.0 and torch 2.13.0 (see requirements.txt), and skipped where they
are missing.
"""

import importlib
from types import ModuleType

import pytest
import torch
from torch import Tensor

from nxmiformer.sets import NM, Grid

# What the peers say on import is not ours to mend.
pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning"),
    pytest.mark.filterwarnings("default::FutureWarning"),
    pytest.mark.filterwarnings("default::UserWarning"),
]


def gaussian(seed: int, shape: tuple[int, int] = (32, 128)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def peer(name: str) -> ModuleType:
    """A module of a library that may be missing; one that is there and cannot be imported is an error."""
    pytest.importorskip(name.split(".")[0])
    return importlib.import_module(name)


def assert_same_grid(ours: Tensor, theirs: Tensor, steps: Tensor) -> None:
    """Equal up to the rounding of the scale, which a peer may keep as its inverse: far less than a step."""
    assert ((ours - theirs).abs() <= steps * 1e-3).all()
    assert torch.equal((ours / steps).round(), (theirs / steps).round())


@pytest.mark.parametrize("seed", range(3))
def test_the_2_4_mask_is_modelopts_magnitude_mask(seed: int) -> None:
    magnitude = peer("modelopt.torch.sparsity.weight_sparsity.magnitude")
    w = gaussian(seed)
    assert torch.equal(NM(2, 4).mask(w.abs()), magnitude.create_asp_mask(w, "2:4 sparsity"))


def test_the_2_4_projection_is_modelopts_sparsified_layer() -> None:
    sparsity = peer("modelopt.torch.sparsity")
    layer = torch.nn.Sequential(torch.nn.Linear(128, 32, bias=False))
    w = layer[0].weight.detach().clone()
    sparse = sparsity.sparsify(layer, "sparse_magnitude")
    assert torch.equal(sparse[0].weight, NM(2, 4).project(w))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", [None, 16])
def test_the_absmax_grid_is_modelopts_narrow_range(bits: int, group: int | None) -> None:
    quant = peer("modelopt.torch.quantization.nn")
    config = peer("modelopt.torch.quantization.config")
    w, grid = gaussian(bits), Grid(bits, group, "absmax")
    rows = grid.rows(w)
    quantizer = quant.TensorQuantizer(config.QuantizerAttributeConfig(num_bits=bits, axis=0, narrow_range=True))
    quantizer.amax = rows.abs().amax(1, keepdim=True)
    assert_same_grid(grid.rows(grid.project(w)), quantizer(rows), rows.abs().amax(1, keepdim=True) / grid.top)


@pytest.mark.parametrize(("bits", "preset"), [(8, "INT8_DEFAULT_CFG"), (4, "INT4_BLOCKWISE_WEIGHT_ONLY_CFG")])
def test_the_absmax_grid_is_that_of_a_layer_calibrated_by_modelopt(bits: int, preset: str) -> None:
    quantization = peer("modelopt.torch.quantization")
    layer = torch.nn.Sequential(torch.nn.Linear(256, 32, bias=False))
    w = layer[0].weight.detach().clone()
    quantized = quantization.quantize(layer, getattr(quantization, preset), lambda model: model(torch.ones(1, 256)))
    group = None if bits == 8 else 128
    grid = Grid(bits, group, "absmax")
    steps = (grid.rows(w).abs().amax(1, keepdim=True) / grid.top).expand(grid.rows(w).shape).reshape(w.shape)
    assert_same_grid(grid.project(w), quantized[0].weight_quantizer(w).detach(), steps)


@pytest.mark.parametrize(("keep", "group"), [(1, 4), (2, 4), (3, 4), (8, 16), (5, 64)])
def test_the_mask_is_torchaos(keep: int, group: int) -> None:
    utils = peer("torchao.sparsity.utils")
    w = gaussian(keep)
    assert torch.equal(NM(keep, group).mask(w.abs()), utils.mask_creator(w, keep, group).bool())


@pytest.mark.parametrize(("keep", "group"), [(1, 4), (2, 4), (3, 4), (8, 16), (5, 64)])
def test_the_projection_is_torchaos_proximal_map(keep: int, group: int) -> None:
    pat = peer("torchao.prototype.pat.optim.min_sparsity")
    w, prox = gaussian(keep), pat.NMSparseConstraint(0.0, keep)
    groups = w.clone().view(-1, group)
    for cells in groups:
        prox.apply_(cells, 1.0)
    assert torch.equal(NM(keep, group).project(w), groups.view(w.shape))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", [None, 16])
def test_the_absmax_grid_is_torchaos_affine_fake_quantization(bits: int, group: int | None) -> None:
    primitives = peer("torchao.quantization.quant_primitives")
    w, grid = gaussian(bits), Grid(bits, group, "absmax")
    scales = grid.piece(w).scales
    block = (1, group or w.shape[1])
    theirs = primitives._fake_quantize_affine(
        w, block, scales, torch.zeros_like(scales, dtype=torch.int32), torch.int32, -grid.top, grid.top
    )
    steps = scales.repeat_interleave(block[1], 1)
    assert_same_grid(grid.project(w), theirs, steps)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("scale", ["mse", "absmax"])
def test_a_grid_is_torchs_own_fake_quantization_for_its_scales(bits: int, scale: str) -> None:
    w, grid = gaussian(bits), Grid(bits, scale=scale)
    scales = grid.piece(w).scales
    zero = torch.zeros(len(w), dtype=torch.int32)
    theirs = torch.fake_quantize_per_channel_affine(w, scales[:, 0], zero, 0, -grid.top, grid.top)
    assert_same_grid(grid.project(w), theirs, scales)
