"""The damage to a model when one layer becomes a point of a set, predicted before any training."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from nxmiformer.errors import unknown
from nxmiformer.optim import Problem
from nxmiformer.search.evidence import Evidence
from nxmiformer.sets import ConstraintSet

Kind = Literal["logits", "divergence", "loss"]  # of damage that can be measured


class Sensitivity(abc.ABC):
    """Foresees the damage of one layer in one set; a dense layer has none. Damages of several layers are added."""

    @property
    def labelled(self) -> bool:
        """Whether it needs the task's loss, and so labels."""
        return False

    @abc.abstractmethod
    def __call__(self, evidence: Evidence, layer: str, sets: Sequence[ConstraintSet]) -> list[float]:
        """The damage of `layer` in each of the sets, 0 or more."""


@dataclass(frozen=True)
class WeightError(Sensitivity):
    """||W - P(W)||^2 / ||W||^2: no data, no gradient."""

    def __call__(self, evidence: Evidence, layer: str, sets: Sequence[ConstraintSet]) -> list[float]:
        w = evidence.layers[layer].matrix.detach().float()
        norm = w.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
        return [((w - each.project(w)).square().sum() / norm).item() for each in sets]


@dataclass(frozen=True)
class OutputError(Sensitivity):
    """The relative mean squared change of the layer's output on the evidence, after it was reconstructed in the set.

    The rows of a weight are independent problems in most sets, so that some of them represent all. In others, such as
    blocks and Kronecker products, all rows are looked at.

    Attributes:
        weighted: weight each output by the squared gradient of the logits, and take half the absolute change. This is
            the `distance` of the logits to second order (K-FAC, Martens and Grosse 2015, arXiv 1503.05671, with the
            diagonal of the outputs' factor), which can be compared between layers.
        rows: looked at, at most.
        iterations: of each stage of the reconstruction; 0 takes the plain projection.
    """

    weighted: bool = True
    rows: int = 16
    iterations: int = 3

    def __post_init__(self) -> None:
        if self.rows < 1 or self.iterations < 0:
            raise ValueError(f"rows={self.rows} must be at least 1, iterations={self.iterations} at least 0")

    def __call__(self, evidence: Evidence, layer: str, sets: Sequence[ConstraintSet]) -> list[float]:
        weight = evidence.layers[layer].matrix.detach()
        order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(0), device="cpu")
        rows = order[: self.rows].sort().values.to(weight.device)
        whole = evidence.problem(layer)
        some = whole.of(rows)
        if not self.weighted:
            pairs = [(some if each.rowwise else whole, each) for each in sets]
            return [problem.error(self._point(problem, each)) for problem, each in pairs]
        slopes = evidence.output_gradients[layer].to(weight.device)
        of_some = slopes[rows] * (len(weight) / len(rows))
        found = []
        for each in sets:
            problem, weights = (some, of_some) if each.rowwise else (whole, slopes)
            found.append(0.5 * (problem.row_errors(self._point(problem, each)) * weights).sum().item())
        return found

    def _point(self, problem: Problem, constraint: ConstraintSet) -> Tensor:
        if not self.iterations:
            return constraint.project(problem.weight)
        return problem.point(constraint, self.iterations)


@dataclass(frozen=True)
class LossChange(Sensitivity):
    """The change of the loss for W -> P(W), predicted by its Taylor expansion.

    Attributes:
        order: 1: |<g, P(W) - W>| with the gradient g of the mean loss; 2: 1/2 sum F (P(W) - W)^2 with the diagonal of
            the empirical Fisher information, F = mean of g^2 over batches times their size (as oBERT, Kurtic et al.
            2022, arXiv 2203.07259, eq. 2, has it, without its blocks).
    """

    order: int = 2

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"a change of loss is predicted to order 1 or 2, not {self.order}")

    @property
    def labelled(self) -> bool:
        return True

    def __call__(self, evidence: Evidence, layer: str, sets: Sequence[ConstraintSet]) -> list[float]:
        w = evidence.layers[layer].matrix.detach().float()
        slopes, curvature = evidence.expansion[layer]
        moves = (each.project(w) - w for each in sets)
        if self.order == 1:
            return [(slopes * move).sum().abs().item() for move in moves]
        return [0.5 * (curvature * move.square()).sum().item() for move in moves]


@dataclass(frozen=True)
class Measured(Sensitivity):
    """The change itself, with this layer alone in the set and all others dense: one evaluation for each set.

    Attributes:
        what: the distance of the "logits" from the dense model's, their "divergence", or the change of the "loss". A
            model that is sure of its examples hides damage from the last two until there is much of it: they do not
            add up as well.
        iterations: of each stage of the layer's reconstruction; 0 takes the plain projection.
        examples: to measure it on, about; None: all of the evidence.
    """

    what: Kind = "logits"
    iterations: int = 0
    examples: int | None = None

    def __post_init__(self) -> None:
        if self.what not in get_args(Kind):
            raise unknown("measured damage", self.what, get_args(Kind))
        if self.iterations < 0:
            raise ValueError(f"iterations={self.iterations} must be at least 0")
        if self.examples is not None and self.examples < 1:
            raise ValueError(f"examples={self.examples} must be at least 1")

    @property
    def labelled(self) -> bool:
        return self.what == "loss"

    def __call__(self, evidence: Evidence, layer: str, sets: Sequence[ConstraintSet]) -> list[float]:
        seen = evidence if self.examples is None else evidence.part(self.examples)
        points = (evidence.point(layer, each, self.iterations) for each in sets)
        changed = (seen.changed({layer: point}) for point in points)
        if self.what == "logits":
            return [seen.distance(logits) for logits in changed]
        if self.what == "divergence":
            return [seen.divergence(logits) for logits in changed]
        before = seen.loss(seen.logits)
        return [max(0.0, seen.loss(logits) - before) for logits in changed]
