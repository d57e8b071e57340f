"""The units of a model's outputs that are compared: rows of logits, with their targets and examples.

A unit is an example of a classification, a token of a tagged text, a masked place, a target token, or one of the two
ends of an answer. Distillation, divergence, search and the agreement of exports see units alone, whatever the task.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nxmiformer.layers.ranges import widened
from nxmiformer.tasks.outcomes import Classes, Number, Outcome

Outputs = Mapping[str, Tensor]  # of a model, by the names that `transformers` gives them, such as `logits`
IGNORED = -100  # the target of what is no unit, as `transformers` has it


@dataclass(frozen=True)
class Units:
    """The units of a batch.

    Attributes:
        logits: (units, outputs).
        targets: as the outcome has them: classes (units,), numbers (units,), or labels (units, outputs).
        owner: (units,), int64: the place in the batch of the example that a unit is of.
        outcome: how a row of logits is read.
    """

    logits: Tensor
    targets: Tensor
    owner: Tensor
    outcome: Outcome

    def __len__(self) -> int:
        return len(self.logits)

    def saying(self, logits: Tensor) -> "Units":
        """The same units with other logits."""
        return replace(self, logits=logits)

    def thinned(self, most: int) -> "Units":
        """At most so many units, evenly apart: the logits of a language model over all tokens fit no memory."""
        if len(self) <= most:
            return self
        kept = torch.linspace(0, len(self) - 1, most, device=self.logits.device).round().long()
        return Units(self.logits[kept], self.targets[kept], self.owner[kept], self.outcome)


def whole_units(outputs: Outputs, batch: Mapping[str, Tensor], outcome: Outcome | None = None) -> Units:
    """One unit an example, of `logits` (batch, outputs); by default one output is a number, more are classes."""
    logits = outputs["logits"]
    outcome = outcome or (Number() if logits.shape[-1] == 1 else Classes())
    return Units(widened(logits), batch["labels"], torch.arange(len(logits), device=logits.device), outcome)


def place_units(logits: Tensor, targets: Tensor) -> Units:
    """A unit for each place whose target is not ignored.

    Args:
        logits: (batch, places, classes).
        targets: (batch, places), int64.
    """
    counted = targets != IGNORED
    owner = torch.arange(len(targets), device=targets.device)[:, None].expand_as(targets)
    return Units(widened(logits[counted]), targets[counted], owner[counted], Classes())
