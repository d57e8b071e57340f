"""Whole plans, measured without training."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from torch import Tensor

from nxmiformer.console.display import SILENT, Display
from nxmiformer.search.evidence import Evidence
from nxmiformer.sets import ConstraintSet

Sets = Mapping[str, ConstraintSet | None]


@dataclass(frozen=True)
class OneShot:
    """What layers, each moved to a point of a set and not trained, do to the model together.

    Attributes:
        evidence: on which that is measured.
        iterations: of each stage of a layer's reconstruction; 0 takes the plain projection.
    """

    evidence: Evidence
    iterations: int = 10

    def logits(self, sets: Sets) -> list[Tensor]:
        """The model's, a batch at a time, with these layers in their sets."""
        given = {name: each for name, each in sets.items() if each is not None}
        points = {name: self.evidence.point(name, each, self.iterations) for name, each in given.items()}
        return self.evidence.changed(points)

    def distance(self, sets: Sets) -> float:
        """How far the logits move; see `Evidence.distance`."""
        return self.evidence.distance(self.logits(sets))

    def interactions(self, sets: Sets, layers: int, display: Display = SILENT) -> list[tuple[str, str, float, float]]:
        """Every pair of the layers that do the most damage alone, at most so many, with the damage of both together and
        the sum of their damages. Pairs are ordered by how much they exceed their sum."""
        given = [name for name, each in sets.items() if each is not None]
        damages = ((name, self.distance({name: sets[name]})) for name in given)
        alone = dict(display.tracked(damages, "layers alone", len(given)))
        worst = sorted(alone, key=lambda name: -alone[name])[:layers]
        pairs = list(combinations(worst, 2))
        found = ((a, b, self.distance({a: sets[a], b: sets[b]}), alone[a] + alone[b]) for a, b in pairs)
        return sorted(display.tracked(found, "pairs", len(pairs)), key=lambda pair: pair[3] - pair[2])
