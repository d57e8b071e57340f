"""Linear layers that compute with a point of a set."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from nxmiformer.layers.quantizers import ActivationQuantizer, Activations, WeightQuantizer


class CompressedLinear(nn.Linear):
    """A linear layer whose weight and input pass through fake quantizers.

    It adopts the parameters of the layer it replaces, the same objects under the same names: state-dict keys, ties
    and optimizers that hold them stay as they are. A `transposed` one adopts a `transformers` Conv1D, which stores
    its weight (in, out). Without activations to quantize, and until its quantizer is told what to see the weight
    through, it computes what that layer computed.
    """

    transposed: bool
    quantizer: WeightQuantizer
    inputs: ActivationQuantizer | None

    @classmethod
    def adopt(
        cls, layer: nn.Linear | Conv1D, quantizer: WeightQuantizer, activations: Activations | None = None
    ) -> Self:
        """The compressed stand-in of `layer`; layers that share their weight share its quantizer."""
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self.transposed = isinstance(layer, Conv1D)
        rows, columns = layer.weight.shape
        self.in_features, self.out_features = (rows, columns) if self.transposed else (columns, rows)
        self.weight, self.bias = layer.weight, layer.bias
        self.quantizer = quantizer
        self.inputs = None if activations is None else ActivationQuantizer(activations, layer.weight.device)
        return self.train(layer.training)

    @property
    def matrix(self) -> Tensor:
        """The weight as (out_features, in_features), a view."""
        return self.weight.t() if self.transposed else self.weight

    def forward(self, x: Tensor) -> Tensor:
        if self.inputs is not None:
            x = self.inputs(x)
        return F.linear(x, self.quantizer(self.matrix), self.bias)

    def release(self) -> nn.Linear | Conv1D:
        """A plain layer with the same parameters; what `adopt` was given, in effect."""
        if self.transposed:
            with torch.device("meta"):  # Conv1D takes no device
                plain: nn.Linear | Conv1D = Conv1D(self.out_features, self.in_features)
        else:
            plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain.train(self.training)
