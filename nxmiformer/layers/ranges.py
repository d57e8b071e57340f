"""Numbers between two ends, in steps of one size: how FullyQT quantizes what is multiplied.

Prato et al. 2020, arXiv 1910.10485: Q(x) = round((clamp(x, low, high) - low) / s), s = (high - low) / (2^b - 1). The
ends are running averages of the least and of the greatest value in training. The gradient passes as if nothing had been
rounded. It is zero where a value was clamped.
"""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from nxmiformer.layers.mode import recomputing
from nxmiformer.layers.padding import Padding
from nxmiformer.ranks import ranks
from nxmiformer.sets.fields import check_fields

_WORDS = re.compile(r"int(\d+)")


@dataclass(frozen=True)
class Ranges:
    """How whatever is multiplied is quantized.

    Attributes:
        bits: 2 to 8; there are 2^bits levels.
        momentum: of the running averages of the ends: what stays of the average when a batch comes in.
        zero: whether 0 is a level, as it has to be where zeros are to stay zeros: the ends are widened to have it
            between them, and moved by less than a step. Otherwise the ends are levels, as in the paper.
        features: whether each feature has ends of its own; otherwise all share two.
    """

    bits: int = 8
    momentum: float = 0.9
    zero: bool = True
    features: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if not 2 <= self.bits <= 8:
            raise ValueError(f"ranges take 2 to 8 bits, not {self.bits}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), not {self.momentum}")

    @classmethod
    def from_words(cls, words: str) -> Self:
        """Those that are called `words`: "int8" has 8 bits and is otherwise as by default."""
        found = _WORDS.fullmatch(words)
        if found is None:
            raise ValueError(f"plan.everything={words}: there are int2 to int8")
        return cls(int(found[1]))

    @property
    def top(self) -> int:
        """The greatest code; the least is 0."""
        return int(2**self.bits - 1)

    def __str__(self) -> str:
        return f"int{self.bits}" + ("" if self.zero else " ends as levels") + ("" if self.features else " shared ends")


class Levels(NamedTuple):
    """base + scale * code, code = least ... least + top: of each feature, or of all."""

    scale: Tensor
    base: Tensor | float
    least: Tensor | float
    top: int

    @classmethod
    def between(cls, low: Tensor, high: Tensor, bits: int, zero: bool) -> Self:
        """2^bits levels between two ends; with `zero`, the code 0 is the number 0."""
        top = 2**bits - 1
        if not zero:
            return cls(_step(low, high, top), low, 0.0, top)
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = _step(low, high, top)
        return cls(scale, 0.0, (low / scale).round(), top)

    def codes(self, x: Tensor) -> Tensor:
        """Where x lies, in steps from the base, neither rounded nor clamped."""
        return (x - self.base) / self.scale

    def points(self, codes: Tensor) -> Tensor:
        """The levels that are nearest."""
        least = torch.as_tensor(self.least, dtype=codes.dtype, device=codes.device)
        return codes.round().clamp(least, least + self.top) * self.scale + self.base


def _step(low: Tensor, high: Tensor, top: int) -> Tensor:
    return ((high - low) / top).clamp(min=torch.finfo(low.dtype).tiny)


class _Rounded(torch.autograd.Function):
    """The nearest levels; the gradient passes where nothing was clamped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: Levels) -> Tensor:
        codes = levels.codes(x)
        ctx.save_for_backward((codes >= levels.least - 0.5) & (codes <= levels.least + levels.top + 0.5))
        return levels.points(codes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), saved = grads, ctx.saved_tensors
        return grad * saved[0], None


def widened(x: Tensor) -> Tensor:
    """x in float32, unless it is in float64: what is quantized is computed so."""
    return x if x.dtype == torch.float64 else x.float()


def rounded(x: Tensor, low: Tensor, high: Tensor, bits: int, zero: bool) -> Tensor:
    """x at the nearest of 2^bits levels between two ends, which are of its last dimension, or of all."""
    wide = widened(x)
    levels = Levels.between(low.to(wide.dtype), high.to(wide.dtype), bits, zero)
    if wide.requires_grad and torch.is_grad_enabled():
        y: Tensor = _Rounded.apply(wide, levels)
    else:
        y = levels.points(levels.codes(wide))
    return y.to(x.dtype)


class RangeQuantizer(nn.Module):
    """Fake quantizer of what is multiplied, (batch, tokens, ...) -> the same; with `active` unset it does nothing.

    In training it follows the ends of what it sees, where `padding` is told without padding; in evaluation they stay
    as they are.

    Args:
        spec: how.
        count: how many features have ends of their own, the last dimension; 1: all share two.
        positive: what it sees is above zero and is divided by: its least level is the lower end, which is above zero,
            and 0 is none.
        padding: which tokens are real, of all quantizers of one model.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        spec: Ranges,
        count: int = 1,
        positive: bool = False,
        padding: Padding | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.spec, self.count, self.positive = spec, count, positive
        self.padding = padding or Padding()
        self.active = True
        # Persistent: a model that is read again has them. The lower end is above the upper one until there is an input.
        self.register_buffer("low", torch.zeros(count, dtype=torch.float32, device=device))
        self.register_buffer("high", -torch.ones(count, dtype=torch.float32, device=device))

    @property
    def zero(self) -> bool:
        """Whether 0 is a level."""
        return self.spec.zero and not self.positive

    @property
    def seen(self) -> bool:
        """Whether it has seen an input."""
        return bool((self.low <= self.high).all())

    def levels(self) -> Levels:
        """The levels between the ends that it has seen, on the CPU: of each feature (count,), or of all ()."""
        shape = (self.count,) if self.count > 1 else ()
        return Levels.between(self.low.cpu().view(shape), self.high.cpu().view(shape), self.spec.bits, self.zero)

    def forward(self, x: Tensor, sees: Tensor | None = None) -> Tensor:
        """x at its nearest levels; where it is of keys, `sees` (batch, queries, keys) says which query sees which."""
        if not self.active:
            return x
        low, high = self.ends(x, self.padding.real if sees is None else self.padding.keys(sees))
        return rounded(x, low, high, self.spec.bits, self.zero)

    @torch.no_grad()
    def ends(self, x: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """The ends, (count,) each, after x has been seen; of a feature that never was, those of x."""
        seen, follows = self.low <= self.high, self.training and not recomputing()
        if self.count > 1 and not follows and bool(seen.all()):  # of one pair, to ask takes longer than to look
            return self.low, self.high
        now = self._now(x, real)
        ends = [torch.where(seen, old, new) for old, new in zip((self.low, self.high), now, strict=True)]
        if not follows:
            return ends[0], ends[1]
        for kept, old, new in zip((self.low, self.high), ends, now, strict=True):
            kept.copy_(old + (1 - self.spec.momentum) * (new - old))
        return self.low, self.high

    def _now(self, x: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """The least and the greatest value, (count,) each, where the input is real."""
        told = real is not None and x.ndim > 2 and x.shape[:2] == real.shape and bool(real.any())
        rows = x[real] if told else x
        rows = rows.reshape(-1, self.count) if self.count > 1 else rows.reshape(-1, 1)
        low, high = rows.amin(0).float(), rows.amax(0).float()
        if self.training and not recomputing():  # of the whole batch
            low, high = -ranks().greatest(-low), ranks().greatest(high)
        return low, high

    def extra_repr(self) -> str:
        return f"{self.spec}, {self.count}{', positive' if self.positive else ''}"
