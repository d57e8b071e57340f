"""Straight-through fake quantizers of weights and activations.

Forward they round; backward they pass the gradient as if they had not (Bengio et al. 2013, arXiv 1308.3432), except
where an activation was clamped, where the gradient is zero.
"""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nxmiformer.errors import unknown
from nxmiformer.sets import ConstraintSet, Piece, ValueSet
from nxmiformer.sets.batch import Asked, pieces, points
from nxmiformer.sets.fields import check_fields
from nxmiformer.sets.fused import fused

RANGES = ("token", "tensor", "ema")


@dataclass(frozen=True)
class Activations:
    """How a layer's input is quantized: symmetric, `bits` wide, with codes -q ... q, q = 2**(bits-1) - 1.

    ranges: "token" takes the maximum of each token anew (dynamic), "tensor" that of the whole input, "ema" a moving
    average (of `momentum`) of the latter, which evaluation uses as it stands (static).
    """

    bits: int = 8
    ranges: Literal["token", "tensor", "ema"] = "token"
    momentum: float = 0.99

    def __post_init__(self) -> None:
        check_fields(self)
        if not 2 <= self.bits <= 8:
            raise ValueError(f"activations take 2 to 8 bits, not {self.bits}")
        if self.ranges not in RANGES:
            raise unknown("range of activations", self.ranges, RANGES)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), not {self.momentum}")

    def __str__(self) -> str:
        return f"a{self.bits}" + ("" if self.ranges == "token" else self.ranges)


class _Straight(torch.autograd.Function):
    """Forward the second, `seen`; backward the gradient reaches the first as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seen: Tensor) -> Tensor:
        return seen.view_as(seen)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None


def straight(x: Tensor, seen: Tensor) -> Tensor:
    """The values of `seen`, of x's shape and dtype, with the gradient of x (Bengio et al. 2013)."""
    if torch.compiler.is_compiling() or type(seen) is not Tensor:  # subclasses keep their values elsewhere
        return _Straight.apply(x, seen)
    # A view that is shown other values: what _Straight does, without its detour through Python in both directions,
    # which on a GPU takes as long as ten kernels.
    through = x.view_as(x)
    through.data = seen
    return through


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


class _Latest:
    """The latest input and its points, which query, key and value want of one and the same tensor; let go with it."""

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

    def _forget(self, gone: "weakref.ref[Tensor]") -> None:
        if self._held is not None and self._held[0] is gone:
            self._held = None


_LATEST = _Latest()


class ActivationQuantizer(nn.Module):
    """Fake quantizer of a layer's input, (..., features) -> the same; with `active` unset it does nothing."""

    peak: Tensor

    def __init__(self, spec: Activations, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.spec = spec
        self.active = True
        self.top = 2 ** (spec.bits - 1) - 1
        if spec.ranges == "ema":
            # Persistent: static quantization needs it after a reload.
            self.register_buffer("peak", torch.zeros((), dtype=torch.float32, device=device))

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return x
        if self.spec.ranges == "ema":
            return _Clamped.apply(x, self._scale(x), self.top)
        return straight(x, _LATEST.of(x, self.spec, self._points))

    @torch.no_grad()
    def _points(self, x: Tensor) -> Tensor:
        if self.spec.ranges == "token":
            return _points_by_token(x.flatten(0, -2), self.top).view(x.shape)
        scale = self._scale(x)
        return _points(x.float() / scale, scale, x.dtype)

    @torch.no_grad()
    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The integer codes of an input, float32 (..., features), and their scales, (..., 1) or one for all."""
        scale = self._scale(x)
        return (x.float() / scale).round_().clamp_(-self.top, self.top), scale

    @torch.no_grad()
    def _scale(self, x: Tensor) -> Tensor:
        return _scale(self._range(x), self.top)

    def _range(self, x: Tensor) -> Tensor:
        if self.spec.ranges == "token":
            return _peaks(x)
        now = x.abs().amax().float()
        if self.spec.ranges == "tensor":
            return now
        if self.training and not _recomputing():
            old = torch.where(self.peak > 0, self.peak, now)
            self.peak.copy_(old + (1 - self.spec.momentum) * (now - old))
        return torch.where(self.peak > 0, self.peak, now)  # a range that was never seen would round all to zero

    def extra_repr(self) -> str:
        return str(self.spec)


def _recomputing() -> bool:
    """Whether a backward pass is under way: what is computed in one was computed in the forward pass, and not kept, to
    save memory (gradient checkpointing, in both of torch's variants). It is to see what it saw then."""
    return not torch.compiler.is_compiling() and bool(torch._C._current_graph_task_id() != -1)


class _LearnedScale(torch.autograd.Function):
    """The nearest point of a piece of a set, whose scales are trained as in LSQ (Esser et al. 2020, arXiv
    1902.08153): eq. 3, with the gradient scale 1 / sqrt(elements * q) of its section 2.2."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, grid: ValueSet, mask: Tensor | None, scales: Tensor) -> Tensor:
        y = grid.apply(w, Piece(scales=scales.abs()))
        ctx.grid, ctx.mask = grid, mask
        ctx.save_for_backward(w, y, scales)
        return y if mask is None else torch.where(mask, y, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        w, y, scales = ctx.saved_tensors
        (grad,) = grads
        s = scales.abs().reshape(-1, 1).clamp(min=torch.finfo(torch.float32).tiny)
        ratio, code = ctx.grid.rows(w) / s, ctx.grid.rows(y) / s
        inside = ratio.abs() <= ctx.grid.top
        kept = torch.ones_like(inside) if ctx.mask is None else ctx.grid.rows(ctx.mask)
        rows = ctx.grid.rows(grad)
        slope = torch.where(kept, code - torch.where(inside, ratio, 0), 0)
        per_scale = (rows * slope).sum(1) / (ctx.grid.top * rows.shape[1]) ** 0.5
        return (
            torch.where(inside | ~kept, rows, 0).view(w.shape),
            None,
            None,
            per_scale.view_as(scales) * torch.where(scales < 0, -1, 1),
        )


class WeightQuantizer(nn.Module):
    """Fake quantizer of a weight (out, in): the forward pass sees its nearest point in a piece of a set.

    Attributes:
        constraint: the set that the weight ends in.
        seen: the set that the forward pass sees the weight through; None shows it the weight itself.
        frozen: whether the support stays as it is when the piece is chosen anew.
        active: whether the forward pass sees it already.
        point: what the forward pass sees, where that has been computed ahead: see `round_ahead`.
    """

    mask: Tensor | None
    scales: Tensor | None

    def __init__(self, constraint: ConstraintSet) -> None:
        super().__init__()
        self.constraint = constraint
        self.seen: ConstraintSet | None = None
        self.frozen = False
        self.active = True
        self.point: Tensor | None = None
        # Not persistent: a layer keeps the state-dict keys of the linear that it was. Methods keep the pieces.
        self.register_buffer("mask", None, persistent=False)
        self.register_buffer("scales", None, persistent=False)

    @property
    def learned(self) -> bool:
        """Whether the scales are trained."""
        return isinstance(self.scales, nn.Parameter)

    @property
    def piece(self) -> Piece:
        """The piece that the forward pass projects onto, detached. A learned scale counts by its magnitude."""
        return Piece(self.mask, None if self.scales is None else self.scales.detach().abs())

    def hold(self, piece: Piece) -> None:
        """Take over a piece as it stands. Learned scales stay parameters, the same objects."""
        self.mask, self.point = piece.mask, None
        if self.learned and piece.scales is not None:
            assert self.scales is not None
            self.scales.data.copy_(piece.scales)
        else:
            self.scales = piece.scales

    def reset(self) -> None:
        """Forget the piece: nothing is seen, nothing is frozen, nothing is learned."""
        del self.scales
        self.register_buffer("scales", None, persistent=False)
        self.mask, self.seen, self.frozen, self.point = None, None, False, None

    def refresh(self, w: Tensor, importance: Tensor | None = None, rescale: bool = True) -> None:
        """Choose the piece of `seen` nearest to `w`; without `rescale` its support only, under the scales there are.

        A frozen support and learned scales stay.
        """
        refresh([(self, w)], rescale, importance)

    def _to_choose(self, rescale: bool) -> ConstraintSet | None:
        """The set that a refresh chooses a piece of, if there is one to choose."""
        chosen = self.seen if rescale and not self.learned else self.seen and self.seen.sparsity
        return None if chosen is None or (self.frozen and chosen.grid is None) else chosen

    @torch.no_grad()
    def freeze(self, w: Tensor) -> None:
        """Keep the support that the nearest point to `w` has in the final set; that of `w` itself, if it has one."""
        sparsity = self.constraint.sparsity
        found = sparsity if sparsity is not None and sparsity.contains(w) else self.constraint
        self.mask, self.point = found.piece(w).mask, None
        self.frozen = True

    def learn(self) -> None:
        """Make the scales parameters, from where they stand."""
        if self.scales is None or self.constraint.grid is None:
            raise ValueError(f"{self.constraint} has no scales to learn")
        scales = self.scales.detach().clone()
        del self.scales
        self.scales = nn.Parameter(scales)

    @torch.no_grad()
    def project(self, w: Tensor) -> Tensor:
        """The point of the final set nearest to `w`, with the frozen support and the learned scales, if any."""
        self.constraint.check(w)
        mask = self.mask if self.frozen else None
        if self.learned:
            support = self.constraint.piece(w).mask if mask is None else mask
            point = self.constraint.apply(w, Piece(support, self.piece.scales))
            if self.constraint.contains(point):  # in 16 bits a free scale need not be one that can be told from them
                return point
        return self.constraint.apply(w, self.constraint.piece(w, None, mask))

    def forward(self, w: Tensor, rows: Tensor | None = None) -> Tensor:
        """What is seen of the weight, or where `rows` (n,) are given, of `w` (n, in), which are those rows of it."""
        if self.seen is None or not self.active:
            return w
        mask, scales = (part if part is None or rows is None else part[rows] for part in (self.mask, self.scales))
        if self.learned:
            return _LearnedScale.apply(w, self.seen.grid, mask, scales)
        if self.point is not None and rows is None and not torch.compiler.is_compiling():
            return straight(w, self.point)
        with torch.no_grad():
            point = self.seen.apply(w, Piece(mask, scales))
        return straight(w, point)

    def extra_repr(self) -> str:
        return f"{self.constraint}{', frozen' if self.frozen else ''}{', learned' if self.learned else ''}"


@torch.no_grad()
def refresh(
    weights: Iterable[tuple[WeightQuantizer, Tensor]],
    rescale: bool = True,
    importance: Tensor | None = None,
    recover: bool = True,
) -> None:
    """`WeightQuantizer.refresh` of many weights together; on `recover` see `ConstraintSet.piece`."""
    wanted = [(quantizer, chosen, w) for quantizer, w in weights if (chosen := quantizer._to_choose(rescale))]
    asked = [Asked(chosen, w, importance, Piece(q.mask if q.frozen else None)) for q, chosen, w in wanted]
    for (quantizer, *_), (mask, scales) in zip(wanted, pieces(asked, recover), strict=True):
        kept = quantizer.mask if quantizer.frozen else mask
        quantizer.hold(Piece(kept, quantizer.piece.scales if scales is None else scales))


@torch.no_grad()
def round_ahead(weights: Iterable[tuple[WeightQuantizer, Tensor]]) -> None:
    """Compute together what forward passes see of the weights, until `let_go`; meanwhile they must not change."""
    seen = [(q, w) for q, w in weights if q.seen is not None and q.active and not q.learned]
    asked = [Asked(q.seen, w, None, q.piece) for q, w in seen if q.seen is not None]
    for (quantizer, _), point in zip(seen, points(asked), strict=True):
        quantizer.point = point
