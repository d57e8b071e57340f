"""Linear layers for sparse tensor cores: 2:4 weights in the semi-structured form of PyTorch, for evaluation on a GPU.

Sparse tensor cores (CUDA, compute capability 8.0 and above) multiply by 2:4 sparse matrices in half the cycles of dense
ones, in 16 bits and in INT8 (Mishra et al. 2021, arXiv 2104.08378). The kernels are cuSPARSELt's. In memory a weight
takes nine sixteenths of its bfloat16 or int8 form: codes of fewer bits are widened. Everything that is not compressed
is computed in bfloat16, dense.
"""

import warnings
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nxmiformer.applied.convert import strip
from nxmiformer.errors import unknown
from nxmiformer.layers.found import compressed_layers, foreign
from nxmiformer.layers.inputs import ActivationQuantizer
from nxmiformer.layers.linear import CompressedLinear
from nxmiformer.plan.compression import CompressionPlan, LayerSpec
from nxmiformer.sets import NM, ConstraintSet, Grid

Kernel = Literal["bf16", "int8"]
DEVICE = "cuda"  # that has them
ROWS, COLUMNS, TOKENS = 32, 64, 16  # whose multiples the kernels take: of a weight (out, in), and of its inputs


class SparseInt8Linear(nn.Module):
    """A linear layer that multiplies INT8 codes of a 2:4 weight by INT8 codes of its input, (..., in) -> (..., out).

    Sums of products are exact; they and the result are rounded to bfloat16.

    Args:
        layer: a layer on a CUDA device with quantized inputs, whose weight is on a grid with a scale a row.
        spec: the spec of the layer.
    """

    packed: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, layer: CompressedLinear, spec: LayerSpec) -> None:
        super().__init__()
        assert isinstance(spec.weight.grid, Grid)
        assert layer.inputs is not None
        weight = layer.matrix.detach().contiguous()
        scales = spec.weight.pack(weight)["scales"].to(weight.device)
        codes = torch.where(weight == 0, 0, spec.weight.grid.codes(weight, scales)).to(torch.int8)
        self.register_buffer("packed", torch._cslt_compress(codes))
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().bfloat16())
        self.inputs: ActivationQuantizer = layer.inputs
        self.out_features = layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        codes, scale = self.inputs.codes(x)
        flat = codes.to(torch.int8).flatten(0, -2)
        padded = F.pad(flat, (0, 0, 0, -len(flat) % TOKENS))
        product = torch._cslt_sparse_mm(self.packed, padded.t(), alpha=self.scales, out_dtype=torch.bfloat16)
        y = product.t()[: len(flat)].unflatten(0, codes.shape[:-1]).float() * scale
        return (y if self.bias is None else y + self.bias).to(x.dtype)


def refusals(model: nn.Module, plan: CompressionPlan, kernel: Kernel) -> Iterator[str]:
    """What sparse tensor cores cannot compute of a model, a line each: the layer, its set or activations, and why."""
    if kernel not in get_args(Kernel):
        raise unknown("kernel", kernel, get_args(Kernel))
    yield from foreign(model)
    if plan.everything is not None:
        yield f"the plan quantizes everything ({plan.everything}), and they multiply weights alone"
    for name, _, spec in _linear(model, plan):
        rows, columns = spec.shape
        if not _two_of_four(spec.weight):
            yield f"{name}: {spec.weight} is not a 2:4 set, nor a subset of one"
        if rows % ROWS or columns % COLUMNS:
            yield f"{name}: its weight is {rows} x {columns}, and the kernels take multiples of {ROWS} x {COLUMNS}"
        if kernel == "int8" and not (isinstance(spec.weight.grid, Grid) and spec.weight.grid.group is None):
            yield f"{name}: {spec.weight} has no scale per row, so there are no integers to multiply"
        if kernel == "int8" and spec.activations is None:
            yield f"{name}: its inputs are not quantized"
        elif kernel == "int8" and spec.activations is not None and spec.activations.ranges == "static":
            yield f"{name}: the levels of its inputs are not symmetric (ranges=static), and the kernels take such alone"


@torch.no_grad()
def make_semi_structured(model: nn.Module, plan: CompressionPlan, kernel: Kernel = "bf16") -> nn.Module:
    """Make the linear layers of a plan run on sparse tensor cores, in place; the rest of the model becomes bfloat16.

    Args:
        model: a float32 model on a CUDA device, whose weights are points of the plan, as from `load_packed`.
        plan: a plan of 2:4 sets, or of subsets of them, such as 1:4.
        kernel: "bf16" multiplies the weights, rounded to bfloat16, by inputs that are not quantized; "int8" the codes
            of weights by the codes of inputs.

    Raises:
        ValueError: a layer cannot be computed so (each is named), or the model is not on a CUDA device. The model is
            then unchanged.
    """
    refused = list(refusals(model, plan, kernel))
    if refused:
        raise ValueError(f"sparse tensor cores cannot compute ({kernel}):\n  " + "\n  ".join(refused))
    devices = {parameter.device for parameter in model.parameters()}
    if any(device.type != DEVICE for device in devices):
        raise ValueError(f"the model is on {', '.join(map(str, devices))}: sparse tensor cores are on {DEVICE}")
    made = {
        name: _sparse_bf16(layer) if kernel == "bf16" else SparseInt8Linear(layer, spec)
        for name, layer, spec in _linear(model, plan)
    }
    strip(model).to(torch.bfloat16)
    for name, layer in made.items():  # after the cast, which neither scales nor sparse tensors may see
        model.set_submodule(name, layer)
    return model.eval().requires_grad_(False)


def _sparse_bf16(layer: CompressedLinear) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor")
        sparse = torch.sparse.to_sparse_semi_structured(layer.matrix.bfloat16().contiguous())
    plain.weight = nn.Parameter(sparse, requires_grad=False)
    plain.bias = nn.Parameter(layer.bias.detach().bfloat16(), requires_grad=False) if layer.bias is not None else None
    return plain


def _linear(model: nn.Module, plan: CompressionPlan) -> Iterator[tuple[str, CompressedLinear, LayerSpec]]:
    """The plan's layers that multiply by their weight, aliases included."""
    specs = {module: spec for name, spec in plan.layers.items() for module in (name, *spec.aliases)}
    for name, layer in compressed_layers(model).items():
        if isinstance(layer, CompressedLinear):
            yield name, layer, specs[name]


def _two_of_four(constraint: ConstraintSet) -> bool:
    """Whether every point of the set has at most two non-zero elements in every four of a row."""
    sparsity = constraint.sparsity
    return isinstance(sparsity, NM) and sparsity.keep <= 2 and sparsity.group % 4 == 0
