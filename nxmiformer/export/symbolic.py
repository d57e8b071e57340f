"""Layers that compute with the codes of their weights, for a graph of standard ONNX operators.

They can be traced by `torch.onnx.export`, not run. A linear layer with one scale a row and quantized inputs multiplies
integers. With static ranges it is a Gemm of what is dequantized (QDQ), of which a runtime makes one operator. Otherwise
it is MatMulInteger, of uint8 codes around 128 (which CPUs multiply fastest with int8 ones) and int8 weights. Any other
grid is decoded to floats, which a runtime does once, while it reads the file. Factors of Kronecker products are floats.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.onnx.ops import symbolic

from nxmiformer.layers.compressed import Compressed
from nxmiformer.layers.factored import FactoredEmbedding, FactoredLinear
from nxmiformer.layers.inputs import ActivationQuantizer
from nxmiformer.layers.kronecker import Multiplier, Tables
from nxmiformer.layers.linear import CompressedLinear
from nxmiformer.layers.ranges import RangeQuantizer
from nxmiformer.sets import Grid

CODES = "codes"  # what the buffer with the codes of a weight is called
MIDDLE = 128  # the code of zero in uint8
WIDE = 2**30  # an integer that a bias in 32 bits may be


def codes_of(layer: Compressed) -> tuple[Tensor, Tensor]:
    """The codes (out, in), int8, and the scales (out, groups), float32, of a layer whose weight is on a grid."""
    constraint, weight = layer.quantizer.constraint, layer.matrix.detach().cpu().contiguous()
    grid = constraint.grid
    assert isinstance(grid, Grid)
    scales = constraint.pack(weight)["scales"]
    codes = torch.where(weight == 0, 0, grid.codes(grid.rows(weight), scales).view(weight.shape))
    return codes.to(torch.int8), scales.view(len(weight), -1)


class SymbolicQuantizer(nn.Module):
    """An activation quantizer, as it is in evaluation mode, in ONNX operators."""

    peak: Tensor | None

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.top, self.ranges = quantizer.top, quantizer.spec.ranges
        seen = float(quantizer.peak) if self.ranges == "ema" else 0.0
        self.register_buffer("peak", torch.tensor(seen, device="cpu") if seen > 0 else None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The uint8 codes of x (tokens, features) around the middle, the scale of each token or of all, the middle."""
        scale = (self._range(x) / self.top).clamp(min=torch.finfo(torch.float32).tiny)
        if self.ranges == "ema":  # the others leave no values outside
            x = torch.minimum(torch.maximum(x, -self.top * scale), self.top * scale)
        zero = torch.tensor(MIDDLE, dtype=torch.uint8, device="cpu")
        inputs = (x, scale, zero.expand(scale.shape))
        return symbolic("QuantizeLinear", inputs, {"axis": 0}, dtype=torch.uint8, shape=x.shape), scale, zero

    def _range(self, x: Tensor) -> Tensor:
        if self.peak is not None:
            return self.peak
        each = torch.maximum(x.amax(-1), -x.amin(-1))  # to read twice is faster than to write |x|
        return each if self.ranges == "token" else each.amax(-1)


class SymbolicRange(nn.Module):
    """The quantizer of an input of a product, as it is in evaluation mode, in ONNX operators: to integers and back."""

    scale: Tensor
    base: Tensor | None
    zero: Tensor

    def __init__(self, quantizer: RangeQuantizer) -> None:
        super().__init__()
        self.spec, self.active, levels = quantizer.spec, quantizer.active, quantizer.levels()
        self.register_buffer("scale", levels.scale)
        self.register_buffer("base", levels.base if isinstance(levels.base, Tensor) else None)
        self.register_buffer("zero", (levels.scale * 0 - levels.least).to(torch.uint8))

    def forward(self, x: Tensor, sees: Tensor | None = None) -> Tensor:
        if not self.active:
            return x
        x, axis = x if self.base is None else x - self.base, x.ndim - 1
        if self.spec.bits < 8:  # the integers have 8 bits
            least = -self.zero.float()
            x = torch.minimum(torch.maximum(x, least * self.scale), (least + self.spec.top) * self.scale)
        codes = symbolic("QuantizeLinear", (x, self.scale, self.zero), {"axis": axis}, dtype=torch.uint8, shape=x.shape)
        y = symbolic(
            "DequantizeLinear", (codes, self.scale, self.zero), {"axis": axis}, dtype=torch.float32, shape=x.shape
        )
        return y if self.base is None else y + self.base


def _input_quantizer(quantizer: ActivationQuantizer | None) -> SymbolicQuantizer | SymbolicRange | None:
    if quantizer is None:
        return None
    return SymbolicQuantizer(quantizer) if quantizer.ends is None else SymbolicRange(quantizer.ends)


class Sums(nn.Module):
    """The product of inputs on static levels and codes of weights with a scale a row, and the bias: a Gemm of what is
    dequantized, which a runtime computes with the integers. So the bias has to be integers, in steps of the sums: where
    these do not hold it, it is added to the product.

    Args:
        scales: of the weight's rows, (out,).
        inputs: the step of the inputs' levels, ().
        bias: (out,).
    """

    scales: Tensor
    steps: Tensor
    bias: Tensor | None

    def __init__(self, scales: Tensor, inputs: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        if bias is not None:
            whole = bias.abs() / (inputs * (WIDE // 2))  # the step that holds the bias, of a row that has zeros only
            scales = torch.where(scales > 0, scales, torch.where(whole > 0, whole, 1.0))
        steps = scales * inputs
        self.fits = bias is not None and bool((bias.abs() <= steps * WIDE).all())
        self.register_buffer("scales", scales)
        self.register_buffer("steps", steps)
        self.register_buffer("bias", (bias / steps).round().to(torch.int32) if self.fits and bias is not None else bias)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        """(tokens, in), dequantized, and int8 codes (in, out) -> (tokens, out)."""
        shape, points = (x.shape[0], codes.shape[1]), (codes, self.scales)
        weight = symbolic("DequantizeLinear", points, {"axis": 1}, dtype=torch.float32, shape=codes.shape)
        if self.bias is None or not self.fits:
            y = symbolic("MatMul", (x, weight), dtype=torch.float32, shape=shape)
            return y if self.bias is None else y + self.bias
        whole = (self.bias, self.steps)
        bias = symbolic("DequantizeLinear", whole, {"axis": 0}, dtype=torch.float32, shape=self.steps.shape)
        return symbolic("Gemm", (x, weight, bias), dtype=torch.float32, shape=shape)


class SymbolicLinear(nn.Module):
    """A compressed linear layer in ONNX operators."""

    codes: Tensor
    scales: Tensor

    def __init__(self, layer: CompressedLinear) -> None:
        super().__init__()
        codes, scales = codes_of(layer)
        self.inputs = _input_quantizer(layer.inputs)
        self.bias = layer.bias
        self.integer = isinstance(self.inputs, SymbolicQuantizer) and scales.shape[1] == 1
        self.register_buffer(CODES, codes.t().contiguous())
        self.register_buffer("scales", scales.t().contiguous())
        self.sums: Sums | None = None
        if isinstance(self.inputs, SymbolicRange) and scales.shape[1] == 1:
            self.sums = Sums(self.scales[0], self.inputs.scale, None if layer.bias is None else layer.bias.cpu())

    @property
    def weight(self) -> Tensor:
        """Without values: T5 and others ask their layers for the type of it."""
        return torch.empty(self.codes.shape[::-1], dtype=torch.float32, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        if self.sums is not None:
            return self.sums(_rounded(flat, self.inputs), self.codes).view(*x.shape[:-1], self.codes.shape[1])
        y = (self._integers(flat) if self.integer else self._floats(flat)).view(*x.shape[:-1], self.codes.shape[1])
        return y if self.bias is None else y + self.bias

    def _integers(self, x: Tensor) -> Tensor:
        assert isinstance(self.inputs, SymbolicQuantizer)
        codes, scale, zero = self.inputs(x)
        shape = (x.shape[0], self.codes.shape[1])
        sums = symbolic("MatMulInteger", (codes, self.codes, zero), dtype=torch.int32, shape=shape)
        return _dequantized(sums, scale, None) * self.scales[0]

    def _floats(self, x: Tensor) -> Tensor:
        x = _rounded(x, self.inputs)
        (columns, rows), groups = self.codes.shape, self.scales.shape[0]
        points = self.codes.float().view(groups, columns // groups, rows) * self.scales[:, None]
        return x @ points.view(columns, rows)


class SymbolicEmbedding(nn.Module):
    """A compressed embedding in ONNX operators: codes are looked up, and only those rows are decoded."""

    codes: Tensor
    scales: Tensor

    def __init__(self, embedding: Compressed) -> None:
        super().__init__()
        codes, scales = codes_of(embedding)
        self.register_buffer(CODES, codes)
        self.register_buffer("scales", scales)

    def forward(self, ids: Tensor) -> Tensor:
        codes, scales = F.embedding(ids, self.codes).float(), F.embedding(ids, self.scales)
        groups = self.scales.shape[1]
        return (codes.unflatten(-1, (groups, -1)) * scales[..., None]).flatten(-2)


class SymbolicFactors(nn.Module):
    """A linear layer that multiplies by the factors of its weight, in ONNX operators: two products of matrices."""

    first: Tensor
    second: Tensor

    def __init__(self, layer: FactoredLinear) -> None:
        super().__init__()
        self.inputs = _input_quantizer(layer.inputs)
        self.bias, self.rows = layer.bias, layer.out_features
        first, second, self.terms, self.right = Multiplier.of(layer.weight.left.detach(), layer.weight.right.detach())
        self.register_buffer("first", first.contiguous())
        self.register_buffer("second", second.contiguous())

    @property
    def weight(self) -> Tensor:
        """Without values, as that of `SymbolicLinear`."""
        return torch.empty(self.rows, 0, dtype=torch.float32, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        x = _rounded(x.flatten(0, -2), self.inputs).view(x.shape)
        y = Multiplier(self.first, self.second, self.terms, self.right)(x)
        return y if self.bias is None else y + self.bias


class SymbolicTables(nn.Module):
    """An embedding that multiplies the factors of the rows that are looked up, in ONNX operators."""

    above: Tensor
    below: Tensor

    def __init__(self, layer: FactoredEmbedding) -> None:
        super().__init__()
        above, below, self.terms, self.rows = Tables.of(layer.weight.left.detach(), layer.weight.right.detach())
        self.register_buffer("above", above.contiguous())
        self.register_buffer("below", below.contiguous())

    def forward(self, ids: Tensor) -> Tensor:
        return Tables(self.above, self.below, self.terms, self.rows)(ids)


def stand_in_for(layer: Compressed) -> nn.Module:
    """What computes in ONNX operators what the layer does."""
    if isinstance(layer, FactoredLinear):
        return SymbolicFactors(layer)
    if isinstance(layer, FactoredEmbedding):
        return SymbolicTables(layer)
    return SymbolicLinear(layer) if isinstance(layer, CompressedLinear) else SymbolicEmbedding(layer)


def _rounded(x: Tensor, inputs: SymbolicQuantizer | SymbolicRange | None) -> Tensor:
    """Inputs (tokens, features) as their quantizer leaves them, floats."""
    if isinstance(inputs, SymbolicQuantizer):
        return _dequantized(*inputs(x))
    return x if inputs is None else inputs(x)


def _dequantized(codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Codes, or sums of them, (tokens, features), times the scale of each token."""
    inputs = (codes, scale) if zero is None else (codes, scale, zero.expand(scale.shape))
    return symbolic("DequantizeLinear", inputs, {"axis": 0}, dtype=torch.float32, shape=codes.shape)
