"""How a layer's input is quantized, and the fake quantizer that does it.

It rounds in the forward pass. The backward pass is straight-through: the gradient passes unchanged, and is zero where
an input was clamped.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nxmiformer.errors import unknown
from nxmiformer.layers.mode import recomputing
from nxmiformer.layers.ranges import RangeQuantizer, Ranges
from nxmiformer.layers.straight import straight
from nxmiformer.ranks import ranks
from nxmiformer.sets.fields import check_fields
from nxmiformer.sets.fused import fused

RANGES = ("token", "tensor", "ema", "static")


@dataclass(frozen=True)
class Activations:
    """How a layer's input is quantized, to `bits` bits.

    ranges: "token" takes the maximum of each token (dynamic), "tensor" that of the whole input, "ema" a moving average
        of the latter with `momentum`, which evaluation leaves as it is. These are symmetric, with codes -q ... q and
        q = 2**(bits-1) - 1. "static" takes moving averages of the least and of the greatest value, which evaluation
        leaves as they are, and has 2**bits levels between them, 0 among them: what runtimes multiply fastest.
    """

    bits: int = 8
    ranges: Literal["token", "tensor", "ema", "static"] = "token"
    momentum: float = 0.99

    def __post_init__(self) -> None:
        check_fields(self)
        if not 2 <= self.bits <= 8:
            raise ValueError(f"activations take 2 to 8 bits, not {self.bits}")
        if self.ranges not in RANGES:
            raise unknown("range of activations", self.ranges, RANGES)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), not {self.momentum}")

    @property
    def fixed(self) -> bool:
        """Whether evaluation leaves the ranges as they are."""
        return self.ranges in ("ema", "static")

    def __str__(self) -> str:
        return f"a{self.bits}" + ("" if self.ranges == "token" else self.ranges)


class _Clamped(torch.autograd.Function):
    """Rounds to the grid of `scale`; the gradient passes where nothing was clamped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, top: int) -> Tensor:
        codes = x.float() / scale
        ctx.save_for_backward(codes.abs() <= top + 0.5)
        return _points(codes.clamp_(-top, top), scale, x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), saved = grads, ctx.saved_tensors  # read once: under gradient checkpointing each reading computes anew
        return grad * saved[0], None, None


def _points(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The codes, float, rounded and put on the grid of `scale`; they are overwritten."""
    return codes.round_().mul_(scale).to(dtype)


def _peaks(x: Tensor) -> Tensor:
    return x.abs().amax(-1, keepdim=True).float()


def _scale(peak: Tensor, top: int) -> Tensor:
    return (peak / top).clamp(min=torch.finfo(torch.float32).tiny)


@fused
def _points_by_token(x: Tensor, top: int) -> Tensor:
    """The points of the rows of x (tokens, features), each on the grid of its own maximum."""
    scale = _scale(_peaks(x), top)
    return _points(x.float() / scale, scale, x.dtype)


class Latest:
    """The latest input and its points, which query, key and value all need of the same tensor; freed with it.

    Layers share it that `convert` converts together. A copy has nothing in it.
    """

    def __init__(self) -> None:
        self._held: tuple[weakref.ref[Tensor], object, Tensor] | None = None

    def of(self, x: Tensor, spec: Activations, make: Callable[[Tensor], Tensor]) -> Tensor:
        """What `make` gives for x, if that is not known yet; it depends on `spec` alone."""
        if torch.compiler.is_compiling() or x.is_inference():
            return make(x)
        kind, held = (spec, x._version), self._held  # read once: a thread of DataParallel may write to it
        if held is not None and held[0]() is x and held[1] == kind:
            return held[2]
        found = make(x)
        self._held = weakref.ref(x, self._forget), kind, found
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return Latest, ()

    def _forget(self, gone: "weakref.ref[Tensor]") -> None:
        if self._held is not None and self._held[0] is gone:
            self._held = None


class ActivationQuantizer(nn.Module):
    """Fake quantizer of a layer's input, (..., features) -> the same shape; it does nothing while `active` is unset.

    `latest` is shared by all layers that may have the same input; without it, the layer has its own.
    """

    peak: Tensor

    def __init__(self, spec: Activations, device: torch.device | str = "cpu", latest: Latest | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.latest = latest or Latest()
        self.active = True
        self.top = 2 ** (spec.bits - 1) - 1
        self.ends: RangeQuantizer | None = None
        if spec.ranges == "ema":
            # Persistent: static quantization needs it after a reload.
            self.register_buffer("peak", torch.zeros((), dtype=torch.float32, device=device))
        if spec.ranges == "static":
            self.ends = RangeQuantizer(Ranges(spec.bits, spec.momentum, features=False), device=device)

    @property
    def seen(self) -> bool:
        """Whether it can do without the input: it has no fixed range, or knows it, which `ends` are asked for."""
        return self.spec.ranges != "ema" or bool(self.peak > 0)

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return x
        if self.ends is not None:
            return self.ends(x)
        if self.spec.ranges == "ema":
            return _Clamped.apply(x, self._scale(x), self.top)
        return straight(x, self.latest.of(x, self.spec, self._points))

    @torch.no_grad()
    def _points(self, x: Tensor) -> Tensor:
        if self.spec.ranges == "token":
            return _points_by_token(x.flatten(0, -2), self.top).view(x.shape)
        scale = self._scale(x)
        return _points(x.float() / scale, scale, x.dtype)

    @torch.no_grad()
    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The integer codes of an input, float32 (..., features), and their scales, (..., 1) or one for all.

        Those of "static" ranges are not symmetric, and not given.
        """
        assert self.ends is None
        scale = self._scale(x)
        return (x.float() / scale).round_().clamp_(-self.top, self.top), scale

    @torch.no_grad()
    def _scale(self, x: Tensor) -> Tensor:
        return _scale(self._range(x), self.top)

    def _range(self, x: Tensor) -> Tensor:
        if self.spec.ranges == "token":
            return _peaks(x)
        now = x.abs().amax().float()
        if self.training:
            now = ranks().greatest(now)  # of the whole batch
        if self.spec.ranges == "tensor":
            return now
        if self.training and not recomputing():
            old = torch.where(self.peak > 0, self.peak, now)
            self.peak.copy_(old + (1 - self.spec.momentum) * (now - old))
        return torch.where(self.peak > 0, self.peak, now)  # a range that was never seen would round all to zero

    def extra_repr(self) -> str:
        return str(self.spec)
