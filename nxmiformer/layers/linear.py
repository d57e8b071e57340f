"""Linear layers that compute with a point of a set."""

from typing import Self

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from nxmiformer.layers.compressed import Compressed
from nxmiformer.layers.inputs import Activations, Latest
from nxmiformer.layers.weights import WeightQuantizer


class CompressedLinear(Compressed, nn.Linear):
    """A linear layer whose weight and input pass through fake quantizers.

    A `transposed` layer was a `transformers` Conv1D, which stores its weight (in, out). Without activation
    quantization, and until its quantizer has a set to see the weight through, it computes what that layer computed.
    """

    @classmethod
    def adopt(
        cls,
        layer: nn.Module,
        quantizer: WeightQuantizer,
        activations: Activations | None = None,
        latest: Latest | None = None,
    ) -> Self:
        self = super().adopt(layer, quantizer, activations, latest)
        if self.transposed:
            self.in_features, self.out_features = self.weight.shape
        return self

    def release(self) -> nn.Module:
        if self.transposed:
            del self.in_features, self.out_features
        return super().release()

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored (in, out)."""
        return issubclass(self.plain, Conv1D)

    @property
    def matrix(self) -> Tensor:
        return self.weight.t() if self.transposed else self.weight

    def compute(self, x: Tensor) -> Tensor:
        if self.inputs is not None:
            x = self.inputs(x)
        if self.quantizer.factors is not None:
            return self.quantizer.factors.multiply(x, self.bias)
        return F.linear(x, self.quantizer(self.matrix), self.bias)
