"""Our ADMM."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nxmiformer.errors import unknown
from nxmiformer.layers.compressed import Compressed
from nxmiformer.layers.found import linear_layers
from nxmiformer.layers.moments import input_moments
from nxmiformer.layers.projection import Moved
from nxmiformer.methods.base import Calibration, Method
from nxmiformer.optim import ADMM, Balanced, Constant, Ramp, Schedule, SupportChange, Warmup, reconstruct
from nxmiformer.optim.admm import Importance
from nxmiformer.ranks import ranks
from nxmiformer.sets import ConstraintSet, Transposed

Course = Literal["constant", "warmup", "ramp", "balanced", "support_change"]
Target = Literal["joint", "sparsity"]


@dataclass(kw_only=True)
class Admm(Method):
    """ADMM twice: on each layer's own reconstruction problem, and then on the loss.

    Before the first step every layer is reconstructed by ADMM, so that its output on calibration inputs changes as
    little as possible. The step of W is exact there: see `nxmiformer.optim.reconstruct`. The support mostly comes from
    this. Then it trains. The forward pass sees P(W) straight-through, so that the loss is that of the final network.
    The auxiliary variables pull W towards its set until the hard projection moves almost nothing. Afterwards a
    `FixedMask` phase trains the values under the support that was found.

    Embeddings have no inputs to reconstruct, and no sparsity to look for: they are trained straight-through alone.

    Attributes:
        calibration: training batches for the reconstruction; 0: no reconstruction.
        rho: strength of the pull; the final one if it changes.
        course: the schedule of rho. "ramp" rises geometrically from rho / 50, "warmup" linearly from nothing, both in
            the first 80 % of the phase; "balanced" and "support_change" follow the residuals from rho on.
        interval: optimizer steps between updates of Z and U.
        pull: "decoupled" or "penalty"; see `nxmiformer.optim.ADMM`.
        dual: factor on the dual; see there.
        target: the set of Z: the layer's whole set ("joint"), or its sparsity set alone ("sparsity"), which lets the
            remaining weights cross the cells of a low-bit grid. A layer that has no sparsity set is always joint.
        importance: None, "second_moment" or "adam"; see there.
        see: the weights that the loss is computed with: "projection" as above, or "dense" for W itself.
    """

    calibration: int = 32
    rho: float = 0.05
    course: Course = "ramp"
    interval: int = 16
    pull: Literal["decoupled", "penalty"] = "decoupled"
    dual: float = 0.0
    target: Target = "sparsity"
    importance: Importance | None = None
    see: Literal["projection", "dense"] = "projection"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration < 0:
            raise ValueError(f"calibration is a number of batches, 0 or more, not {self.calibration}")
        for what, value, valid in (
            ("course of rho", self.course, get_args(Course)),
            ("target of Z", self.target, get_args(Target)),
            ("view of the forward pass", self.see, ("projection", "dense")),
        ):
            if value not in valid:
                raise unknown(what, value, valid)
        self._around(
            torch.optim.SGD([torch.zeros(1, device="cpu")]), (), {}, Constant(self.rho)
        )  # checks the other options

    def prepare(self, layer: Compressed) -> None:
        layer.quantizer.frozen = False
        layer.quantizer.seen = layer.quantizer.constraint if self.see == "projection" else None

    def calibrate(self, given: Calibration) -> Iterator[str]:
        if not self.calibration:
            return
        self._activate(False)
        moments = input_moments(self.model, ranks().mine(islice(given.batches, self.calibration)), given.forward)
        for name, layer in self.layers.items():
            if name in moments:
                self._reconstruct(name, layer, moments.pop(name))
            yield name
        self._activate(self.delay == 0)

    def _reconstruct(self, name: str, layer: Compressed, moment: Tensor) -> None:
        try:
            found = reconstruct(layer.matrix.detach(), moment, layer.quantizer.constraint)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        constraint = layer.quantizer.constraint
        with torch.no_grad():
            layer.matrix.copy_(found.point if self._aim(constraint) == constraint else found.kept)
        layer.quantizer.refresh(layer.matrix)

    def schedule(self) -> Schedule:
        """The schedule of rho over the phase."""
        rise = max(1, int(0.8 * self.length.steps))
        return {
            "constant": lambda: Constant(self.rho),
            "warmup": lambda: Warmup(self.rho, rise),
            "ramp": lambda: Ramp(self.rho / 50, self.rho, rise),
            "balanced": lambda: Balanced(self.rho),
            "support_change": lambda: SupportChange(self.rho),
        }[self.course]()

    def sets(self) -> dict[str, ConstraintSet]:
        """The sets that Z is projected onto, by parameter name."""
        chosen = {}
        for name, layer in linear_layers(self.model).items():
            aim = self._aim(layer.quantizer.constraint)
            chosen[f"{name}.weight"] = Transposed(aim) if layer.transposed else aim
        return chosen

    def _aim(self, constraint: ConstraintSet) -> ConstraintSet:
        """The set that Z is in, of a layer whose weight is to be a point of `constraint`."""
        return (constraint.sparsity or constraint) if self.target == "sparsity" else constraint

    def optimizer(self, base: torch.optim.Optimizer) -> torch.optim.Optimizer:
        self.admm = self._around(super().optimizer(base), self.model.named_parameters(), self.sets(), self.schedule())
        return self.admm

    def _around(
        self,
        base: torch.optim.Optimizer,
        named: Iterable[tuple[str, nn.Parameter]],
        sets: Mapping[str, ConstraintSet],
        rho: Schedule,
    ) -> ADMM:
        return ADMM(
            base,
            named,
            sets,
            rho=rho,
            interval=self.interval,
            pull=self.pull,
            dual=self.dual,
            importance=self.importance,
        )

    def hand_over(self) -> Moved:
        """Project onto the set that Z is in."""
        return self.finalize() if self.target == "joint" else self.to_supports()

    def metrics(self, layers: bool = False) -> dict[str, float]:
        return self.admm.metrics(layers) if self.admm.residuals else {}
