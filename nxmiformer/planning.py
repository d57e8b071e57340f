"""How a plan comes about."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from nxmiformer.layers.quantizers import Activations
from nxmiformer.layers.targets import Targets, find_targets
from nxmiformer.plan import CompressionPlan
from nxmiformer.sets import ConstraintSet


@dataclass(frozen=True)
class Planning:
    """How a plan comes about: a set for all layers that match, or a plan file.

    Attributes:
        name: how reports call it.
        weight: the set of every target's weight.
        activations: how inputs are quantized; None leaves them.
        include, exclude: patterns of layer names; see `find_targets`.
        path: a plan.json; it wins over `weight` and `activations`.
    """

    name: str
    weight: ConstraintSet | None = None
    activations: Activations | None = None
    include: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    path: str | None = None

    def __post_init__(self) -> None:
        if self.path is None and self.weight is None:
            raise ValueError("a plan needs plan.weight or plan.path")
        if self.path is not None and not Path(self.path).is_file():
            raise ValueError(f"plan.path={self.path}: there is no such file")

    def __call__(self, model: nn.Module) -> CompressionPlan:
        """The plan for `model`."""
        if self.path is not None:
            plan = CompressionPlan.load(self.path)
            plan.check(model)
            return plan
        assert self.weight is not None
        return CompressionPlan.uniform(model, self.targets(model), self.weight, self.activations)

    def targets(self, model: nn.Module) -> Targets:
        """The layers that are to be compressed."""
        return find_targets(model, self.include, self.exclude)
