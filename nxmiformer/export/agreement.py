"""How near the outputs of an exported model are to those of the packed model."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nxmiformer.tasks.units import Units

NEAR = 0.01  # of the spread of the outputs: how far two equal predictions of a number may be apart


class DisagreementError(ValueError):
    """An artefact that does not compute what the packed model does."""


@dataclass(frozen=True)
class Agreement:
    """How the logits of an artefact, (units, outputs), differ from those of the packed model.

    Attributes:
        units: number of compared units: examples of a classification, tokens of a tagged or written text.
        difference: the largest, absolute.
        range: the largest less the smallest of the packed model's logits.
        equal: the share of units with the same prediction; see `Outcome.apart`.
    """

    units: int
    difference: float
    range: float
    equal: float


@dataclass
class Comparison:
    """The units of two models, added batch by batch."""

    _apart: list[Tensor] = field(default_factory=list)
    _difference: float = 0.0
    _logits: tuple[float, float] = (float("inf"), float("-inf"))
    _spread: tuple[float, float] = (float("inf"), float("-inf"))

    def add(self, ours: Units, theirs: Units) -> None:
        """Compare a batch: the packed model's units and the artefact's.

        Raises:
            DisagreementError: they have other shapes.
        """
        if theirs.logits.shape != ours.logits.shape:
            shapes = tuple(theirs.logits.shape), tuple(ours.logits.shape)
            raise DisagreementError(f"the artefact gives logits {shapes[0]}, and the packed model {shapes[1]}")
        if not len(ours):
            return
        possible = ours.logits.isfinite()
        change = (ours.logits - theirs.logits).masked_fill(~possible, 0.0)
        self._difference = max(self._difference, change.abs().max().item())
        self._apart.append(ours.outcome.apart(ours.logits, theirs.logits).cpu())
        self._logits = _widened(self._logits, ours.logits[possible])
        self._spread = _widened(self._spread, ours.outcome.numbers(ours.targets))

    def agreement(self) -> Agreement:
        """Of all that was taken in.

        Raises:
            DisagreementError: nothing was.
        """
        if not self._apart:
            raise DisagreementError("there is no unit to compare: the split has no example with a target")
        apart, extent = torch.cat(self._apart), self._logits[1] - self._logits[0]
        # A model that says nearly the same number always is judged by the numbers that it should say.
        spread = max(extent, self._spread[1] - self._spread[0])
        return Agreement(len(apart), self._difference, extent, (apart <= NEAR * spread).float().mean().item())


def _widened(extent: tuple[float, float], values: Tensor) -> tuple[float, float]:
    return (min(extent[0], values.min().item()), max(extent[1], values.max().item())) if len(values) else extent
