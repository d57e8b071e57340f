"""ADMM on a layer's own reconstruction problem, where the step of W is exact."""

import copy
from collections.abc import Callable
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from nxmiformer.sets import ConstraintSet

RESCALE = 10  # iterations between two searches of the scales under a given support
RHO = 0.4  # in units of the moment's diagonal, for as few iterations as
FEW = 5


class Reconstruction(NamedTuple):
    """Replacements of a weight W (out, in) with similar outputs on the inputs of the layer.

    Attributes:
        kept: has a support of the set; its values are free: the least squares with that support.
        point: a point of the set.
        error: tr((V - W) H (V - W)^T) / tr(W H W^T) of `kept` and of `point`.
    """

    kept: Tensor
    point: Tensor
    error: tuple[float, float]


@torch.no_grad()
def reconstruct(
    w: Tensor, moment: Tensor, constraint: ConstraintSet, iterations: int = 50, damping: float = 0.01
) -> Reconstruction:
    """The replacements of one weight in one set; see `Problem`, which serves several sets at the cost of one."""
    return Problem(w, moment, damping).reconstruct(constraint, iterations)


def course(iterations: int) -> tuple[float, float]:
    """The first and the last rho, in units of the moment's diagonal.

    In few iterations it is the rho that converges furthest. In n times as many it goes from RHO / n to RHO * sqrt(n): Z
    first follows a weak pull, and then a strong one. Found by trial: experiments/cost.
    """
    more = max(1.0, iterations / FEW)
    return RHO / more, RHO * more**0.5


class Problem:
    """min tr((V - W) H (V - W)^T) subject to V in S, the mean squared change of a layer's output, by ADMM:

        V <- (W H + rho (Z - U) D) (H + rho D)^-1,  Z <- P_D(V + U),  U <- U + V - Z

    with H the damped moment and D its diagonal, which is both the metric of the penalty and the importance in the
    projection (Boza 2024, arXiv 2401.02938, whose column normalisation this is; ALPS, Meng et al. 2024, arXiv
    2406.07831, whose rising rho and one eigendecomposition for all of them these are). In the coordinates V D^1/2 the
    metric of the penalty is the identity. With the eigenvectors of the moment, a step of V and the error of a Z are one
    matrix product each.

    Args:
        w: the weight, (out, in).
        moment: X^T X / n of the layer's inputs, (in, in), as `nxmiformer.layers.moments.input_moments` gives it.
        damping: added to the diagonal of the moment, in units of its mean.
        course: of rho, which rises geometrically: the first and the last, by the number of iterations.

    Raises:
        ValueError: the moment is not a finite (in, in) matrix.
    """

    @torch.no_grad()
    def __init__(
        self,
        w: Tensor,
        moment: Tensor,
        damping: float = 0.01,
        course: Callable[[int], tuple[float, float]] = course,
    ) -> None:
        if moment.shape != (w.shape[-1], w.shape[-1]) or not moment.isfinite().all():
            raise ValueError(f"the moment of inputs must be finite and {(w.shape[-1],) * 2}, not {tuple(moment.shape)}")
        self.course = course
        h = moment.double()
        mean = h.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)  # a layer may have seen only zeros
        h = h + damping * mean * torch.eye(len(h), dtype=h.dtype, device=h.device)
        root = h.diagonal().sqrt()
        eigenvalues, vectors = torch.linalg.eigh(h / root[:, None] / root)
        eigenvalues = eigenvalues.clamp(min=0)  # but for the rounding of the moment there is none below
        compute = torch.float64 if w.dtype == torch.float64 else torch.float32
        self.root, self.eigenvalues, self.vectors = (x.to(compute) for x in (root, eigenvalues, vectors))
        self.diagonal = h.diagonal().to(compute)
        self._take(w)

    @torch.no_grad()
    def like(self, w: Tensor) -> "Problem":
        """The problem of another weight (out, in) with the same inputs, whose eigenvectors are these; of this dtype."""
        other = copy.copy(self)
        other._take(w)
        return other

    def _take(self, w: Tensor) -> None:
        self.dtype, self.weight, self.importance = w.dtype, w, self.diagonal.expand_as(w).contiguous()
        self.w = self._turn(w)
        self.norm = self._square(self.w).clamp(min=torch.finfo(self.root.dtype).tiny)

    def of(self, rows: Tensor) -> "Problem":
        """The problem of these rows (n,) of the weight alone: each row is one of its own."""
        part = copy.copy(self)
        part.weight, part.importance, part.w = self.weight[rows], self.importance[rows], self.w[rows]
        part.norm = part._square(part.w).clamp(min=torch.finfo(part.w.dtype).tiny)
        return part

    @torch.no_grad()
    def reconstruct(self, constraint: ConstraintSet, iterations: int = 50) -> Reconstruction:
        """It finds the support first, then the values, and then, if the set has a grid, the levels, with so many
        `iterations` each. Each stage keeps the best point that it met. The plain projection P(W) is a candidate: the
        point is never worse.

        Raises:
            ValueError: the set rejects the weight.
        """
        constraint.check(self.weight)
        kept, mask, free = self.weight, None, 0.0
        if constraint.sparsity is not None:
            mask = constraint.sparsity.piece(self._solve(constraint.sparsity, kept, None, iterations)[0]).mask
            kept, free = self._solve(constraint.sparsity, kept, mask, iterations)
        found = (kept, free) if constraint is constraint.sparsity else self._solve(constraint, kept, mask, iterations)
        point, error = self._no_worse(found, constraint)
        return Reconstruction(kept, point, (free, error))

    @torch.no_grad()
    def point(self, constraint: ConstraintSet, iterations: int = 50) -> Tensor:
        """The point alone, as near in a third less time: the values under the support are found on their levels only.

        Raises:
            ValueError: the set rejects the weight.
        """
        constraint.check(self.weight)
        start, mask = self.weight, None
        if constraint.sparsity is not None:
            start, _ = self._solve(constraint.sparsity, start, None, iterations)
            mask = constraint.sparsity.piece(start).mask
        return self._no_worse(self._solve(constraint, start, mask, iterations), constraint)[0]

    def _no_worse(self, found: tuple[Tensor, float], constraint: ConstraintSet) -> tuple[Tensor, float]:
        """A point and its error, or the plain projection and its, if that is less."""
        plain = constraint.project(self.weight)
        return min((plain, self.error(plain)), found, key=itemgetter(1))

    def error(self, v: Tensor) -> float:
        """How much the layer's output changes, relatively, for a weight `v`."""
        return self._error(self._turn(v))

    def row_errors(self, v: Tensor) -> Tensor:
        """The mean squared change of each output, (out,), for a weight `v`."""
        return ((self._turn(v) - self.w).square() * self.eigenvalues).sum(1)

    def _turn(self, v: Tensor) -> Tensor:
        """A weight in the coordinates of the eigenvectors."""
        return (v.to(self.root.dtype) * self.root) @ self.vectors

    def _square(self, turned: Tensor) -> Tensor:
        return (turned.square() * self.eigenvalues).sum()

    def _error(self, turned: Tensor) -> float:
        return (self._square(turned - self.w) / self.norm).item()

    def _solve(
        self, constraint: ConstraintSet, start: Tensor, mask: Tensor | None, iterations: int
    ) -> tuple[Tensor, float]:
        """The best point that ADMM meets from `start` on, with support `mask` if one is given, and its error."""
        rho, last = self.course(iterations)
        ratio = (last / rho) ** (1 / max(1, iterations - 1))
        piece = constraint.piece(start, self.importance, mask)
        best = constraint.apply(start, piece)
        z = self._turn(best)
        u, least = torch.zeros_like(z), self._error(z)
        for step in range(iterations):
            v = (self.eigenvalues * self.w + rho * (z - u)) / (self.eigenvalues + rho)
            free = (((v + u) @ self.vectors.t()) / self.root).to(self.dtype)
            if mask is None or (step and step % RESCALE == 0):
                piece = constraint.piece(free, self.importance, mask)
            point = constraint.apply(free, piece)
            z = self._turn(point)
            u = (u + v - z) / ratio  # rho * U, the multiplier, stays as rho rises
            rho *= ratio
            if (error := self._error(z)) < least:
                best, least = point, error
        return best, least
