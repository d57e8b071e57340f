"""A cheap sensitivity, scaled to a few measured damages."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nxmiformer.search.evidence import Evidence
from nxmiformer.search.sensitivity import Sensitivity
from nxmiformer.sets import ConstraintSet
from nxmiformer.sets.words import from_words

TINY = 1e-30  # its logarithm exists; no damage that matters is as small


@dataclass(frozen=True)
class Anchored(Sensitivity):
    """The damage that one sensitivity predicts, scaled by what another measures in a few sets of each layer.

    To second order, damage grows with the square of the change, however large. If a layer loses three weights of four,
    the model's damage is different, by a factor that differs between layers. So the ratio of the measured to the
    predicted damage is taken at the anchors. Its logarithm is interpolated in that of the predicted damage.

    Attributes:
        foreseen: the sensitivity that predicts the damage of every set.
        measured: the sensitivity that measures the anchors.
        anchors: sets in words, whether they are candidates or not; those that a layer's shape rejects are left out.
    """

    foreseen: Sensitivity
    measured: Sensitivity
    anchors: Sequence[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "anchors", tuple(self.anchors))
        for words in self.anchors:
            from_words(words)

    @property
    def labelled(self) -> bool:
        return self.foreseen.labelled or self.measured.labelled

    def __call__(self, evidence: Evidence, layer: str, sets: Sequence[ConstraintSet]) -> list[float]:
        rows, columns = evidence.layers[layer].matrix.shape
        fitting = [each for each in map(from_words, self.anchors) if each.rejects((rows, columns)) is None]
        if not fitting:
            return self.foreseen(evidence, layer, sets)
        every = np.asarray(self.foreseen(evidence, layer, [*sets, *fitting]))
        logs = np.log(np.maximum(TINY, every))
        foreseen, at = logs[: len(sets)], logs[len(sets) :]
        missing = np.log(np.maximum(TINY, self.measured(evidence, layer, fitting))) - at
        order = np.argsort(at, kind="stable")
        ratio = np.exp(np.interp(foreseen, at[order], missing[order]))
        return [float(each) for each in every[: len(sets)] * ratio]
