"""Norms whose division and product have quantized inputs: LayerNorm, and norms by the root mean square."""

from functools import cache
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from nxmiformer.layers.ranges import RangeQuantizer, rounded, widened

PARTS = ("numerator", "denominator", "quotient", "output")
FEATURES = ("numerator", "quotient", "output")  # those of which each feature may have ends of its own


class QuantizedNorm(nn.Module):
    """A norm that quantizes its numerator, its denominator, which stays above zero, their quotient, its weight and its
    output: of x - mean(x) and sqrt(var(x) + eps), or of x and sqrt(mean(x^2) + eps).

    It is the module that it was: `adopt` changes its class, and `release` gives it back, as `Compressed` has it. With
    its quantizers off it computes by the plain class. The ends of the weight are those that it has.
    """

    plain: type[nn.Module]
    ranges: nn.ModuleDict

    @classmethod
    def adopt(cls, norm: nn.Module) -> Self:
        """`norm`, which `is_norm` and has `ranges`."""
        ours, plain = cast(Any, cls), cast(Any, type(norm))
        vars(norm)["plain"] = plain
        norm.__class__ = _joined(ours, plain)
        assert isinstance(norm, cls)
        return norm

    def release(self) -> nn.Module:
        """The norm as it was."""
        plain = self.plain
        del self.plain
        self.__class__ = plain  # type: ignore[assignment]
        return self

    def forward(self, x: Tensor) -> Tensor:
        parts: Any = self.ranges
        first: RangeQuantizer = parts["numerator"]
        y: Tensor
        if not first.active:
            y = self.plain.forward(self, x)
            return y
        numerator, denominator = divided(self, x)
        y = parts["quotient"](parts["numerator"](numerator) / parts["denominator"](denominator))
        weight, bias = _affine(self)
        if weight is not None:
            wide = widened(weight)
            low, high = (end(wide.detach().flatten(), 0) for end in (torch.amin, torch.amax))
            y = y * rounded(wide, low, high, first.spec.bits, first.spec.zero)
        if bias is not None:
            y = y + bias
        y = parts["output"](y)
        return y.to(x.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return _blank, (QuantizedNorm, self.plain), vars(self)


@cache
def _joined(ours: Any, plain: Any) -> Any:
    return type(f"QuantizedNormOf{plain.__name__}", (ours, plain), {})


def _blank(ours: Any, plain: Any) -> nn.Module:
    kind = _joined(ours, plain)
    made: nn.Module = kind.__new__(kind)
    return made


def divided(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a norm divides, (..., features), and what by, (..., 1); in float32."""
    wide = widened(x)
    numerator = wide - wide.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else wide
    return numerator, (numerator.square().mean(-1, keepdim=True) + _eps(norm, wide)).sqrt()


def is_norm(norm: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether the module computes what a `QuantizedNorm` does without its quantizers: of x it made y."""
    if "eps" not in vars(norm) and "variance_epsilon" not in vars(norm):
        return False
    weight, bias = _affine(norm)
    numerator, denominator = divided(norm, x)
    found = numerator / denominator * (1 if weight is None else weight) + (0 if bias is None else bias)
    tolerance = 1e-4 if x.dtype.itemsize > 2 else 0.05
    return found.shape == y.shape and torch.allclose(found, y.to(found.dtype), rtol=tolerance, atol=tolerance)


def _affine(norm: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    own = norm._parameters
    return own.get("weight"), own.get("bias")


def _eps(norm: nn.Module, x: Tensor) -> float:
    eps = vars(norm).get("eps", vars(norm).get("variance_epsilon"))
    return torch.finfo(x.dtype).eps if eps is None else float(eps)
