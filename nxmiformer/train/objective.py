"""What training minimises."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from nxmiformer.ranks import ranks
from nxmiformer.sets.fields import check_fields
from nxmiformer.tasks.task import Task
from nxmiformer.tasks.units import Units, whole_units
from nxmiformer.train.attention import keeping_scores, scores_error
from nxmiformer.train.hidden import hidden_error

UnitsOf = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Units]  # of a model's outputs, and their batch


@dataclass(frozen=True)
class Objective:
    """A weighted sum of the task's loss and of distillation from the dense model.

    Attributes:
        task: weight of the model's own loss (cross-entropy, or squared error of a regression).
        logits: weight of the distillation of the task's units; see `Outcome.distillation`.
        temperature: T.
        hidden: weight of the mean squared error between the hidden states of all layers, of encoder and decoder,
            without padding. As TinyBERT (Jiao et al. 2020, arXiv 1909.10351, eq. 8), but without its projection, as the
            widths are equal.
        attention: weight of the mean squared error between the attention scores of all layers before the softmax,
            without padding; see `scores_error`.
        everywhere: whether logits are distilled at every token except padding, also where a task scores only some, as
            that of masked words does.
    """

    task: float = 1.0
    logits: float = 0.0
    temperature: float = 2.0
    hidden: float = 0.0
    attention: float = 0.0
    everywhere: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        weights = {name: getattr(self, name) for name in ("task", "logits", "hidden", "attention")}
        if not all(weight >= 0 for weight in weights.values()) or not any(weights.values()):
            raise ValueError(f"the weights of an objective are >= 0 and not all zero, not {weights}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")

    @property
    def distils(self) -> bool:
        """Whether a teacher is needed."""
        return self.logits > 0 or self.hidden > 0 or self.attention > 0

    def __call__(
        self,
        model: nn.Module,
        teacher: nn.Module | None,
        batch: Mapping[str, Any],
        units: UnitsOf = whole_units,
        targets: Sequence[str] = ("labels",),
        scored: UnitsOf | None = None,
    ) -> Tensor:
        """The loss of one batch: keyword arguments of the model. On a rank's share of a batch it is the part of it in
        the loss of the whole batch, whose terms are means over units, or tokens, of which ranks have different numbers.

        Args:
            units: what of the outputs is distilled.
            targets: names in the batch that the teacher is not to see.
            scored: what the model's own loss is a mean over; None: `units`.
        """
        asked = {"output_hidden_states": self.hidden > 0}
        if not self.distils:
            return self._own(model(**batch, **asked), batch, scored or units)
        assert teacher is not None
        keeping: AbstractContextManager[list[Tensor]] = nullcontext([])
        if self.attention:
            keeping = keeping_scores(model, teacher)
        with keeping as scores:
            outputs = model(**batch, **asked)
            count = len(scores)
            with torch.no_grad():
                target = teacher(**{name: value for name, value in batch.items() if name not in targets}, **asked)
        terms = [self._own(outputs, batch, scored or units)] if self.task else []  # there is none without a head
        terms += self.distilled(outputs, target, batch, units)
        if self.attention:
            terms.append(self.attention * scores_error(scores[:count], scores[count:], batch))
        return reduce(torch.add, terms)

    def _own(self, outputs: Any, batch: Mapping[str, Any], scored: UnitsOf) -> Tensor:
        """The share of the model's own loss."""
        (loss,) = ranks().parts([outputs.loss], lambda: [len(scored(outputs, batch))])
        return self.task * loss

    def distilled(self, outputs: Any, target: Any, batch: Mapping[str, Any], units: UnitsOf) -> list[Tensor]:
        """The shares of the outputs' distillation: of logits, of hidden states, or none.

        Args:
            outputs: of the model.
            target: of the teacher.
            batch: what they were given.
        """
        terms = []
        if self.logits:
            ours, theirs = units(outputs, batch), units(target, batch)
            loss = ours.outcome.distillation(theirs.logits, ours.logits, self.temperature)
            terms.append(self.logits * ranks().parts([loss], lambda: [len(ours)])[0])
        if self.hidden:
            terms.append(self.hidden * hidden_error(outputs, target, batch))
        return terms

    def of(self, task: Task, model: nn.Module, teacher: nn.Module | None, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of one batch of a task, which says what of it the models are given, and what is distilled."""
        units = task.everywhere if self.everywhere else task.units
        return self(
            model,
            teacher,
            task.told(batch),
            lambda outputs, _: units(outputs, batch),
            task.targets,
            lambda outputs, _: task.units(outputs, batch),
        )
