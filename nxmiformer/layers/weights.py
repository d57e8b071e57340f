"""The fake quantizer of a weight: what the forward pass sees, and the final point.

It rounds in the forward pass; the backward pass is straight-through.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nxmiformer.layers.kronecker import Factors
from nxmiformer.layers.straight import straight
from nxmiformer.sets import ConstraintSet, Piece, ValueSet
from nxmiformer.sets.base import masked
from nxmiformer.sets.batch import Asked, pieces, points


class _LearnedScale(torch.autograd.Function):
    """The nearest point of a piece of a set, whose scales are trained as in LSQ (Esser et al. 2020, arXiv
    1902.08153): eq. 3, with the gradient scale 1 / sqrt(elements * q) of its section 2.2."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, grid: ValueSet, mask: Tensor | None, scales: Tensor) -> Tensor:
        y = grid.apply(w, Piece(scales=scales.abs()))
        ctx.grid, ctx.mask = grid, mask
        ctx.save_for_backward(w, y, scales)
        return y if mask is None else masked(y, mask)

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
        frozen: whether the support stays the same when the piece is chosen again.
        active: whether the forward pass uses it yet.
        point: what the forward pass sees, if it has been computed ahead: see `round_ahead`.
        factors: of a sum of Kronecker products, which the layer computes with in place of the weight.
    """

    scales: Tensor | None
    _mask: Tensor | None

    def __init__(self, constraint: ConstraintSet) -> None:
        super().__init__()
        self.constraint = constraint
        self.seen: ConstraintSet | None = None
        self.frozen = False
        self.active = True
        self.point: Tensor | None = None
        self.factors: Factors | None = None
        # Not persistent: a layer keeps the state-dict keys of the linear that it was. Methods keep the pieces.
        self.register_buffer("_mask", None, persistent=False)
        self.register_buffer("scales", None, persistent=False)

    @property
    def mask(self) -> Tensor | None:
        """The support that is seen; `hold`, `hold_mask`, `refresh` and `freeze` set it, with what follows from it."""
        return self._mask

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
        self._mask, self.point = piece.mask, None
        if self.learned and piece.scales is not None:
            assert self.scales is not None
            self.scales.data.copy_(piece.scales)
        else:
            self.scales = piece.scales

    def hold_mask(self, mask: Tensor | None) -> None:
        """Take over a support under the scales there are."""
        self.hold(self.piece._replace(mask=mask))

    def reset(self) -> None:
        """Forget the piece: nothing is seen, nothing is frozen, nothing is learned."""
        del self.scales
        self.register_buffer("scales", None, persistent=False)
        self._mask, self.seen, self.frozen, self.point, self.factors = None, None, False, None, None

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
        self._mask, self.point = found.piece(w).mask, None
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
