"""How a row of logits is read: one of several classes, independent labels, a number, or a direction.

Each is a likelihood. Losses, distillation, the damage that a search measures and the agreement of an export with its
model all come from it, a unit a row. A logit of -inf says that an outcome is impossible, as a place outside the text is
for the start of an answer.
"""

import abc
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


class Outcome(abc.ABC):
    """A likelihood of what is predicted, given rows of logits (units, outputs)."""

    @abc.abstractmethod
    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The negative log likelihood of each unit's target, (units,), up to a constant."""

    @abc.abstractmethod
    def divergences(self, before: Tensor, after: Tensor, temperature: float = 1.0) -> Tensor:
        """KL(before || after) of each unit, (units,), at a temperature."""

    @abc.abstractmethod
    def centred(self, logits: Tensor) -> Tensor:
        """The logits without what does not affect probabilities; 0 if an outcome is impossible."""

    @abc.abstractmethod
    def apart(self, before: Tensor, after: Tensor) -> Tensor:
        """How far apart the two predictions are, (units,): 0 for the same class or labels, infinity for others."""

    def numbers(self, targets: Tensor) -> Tensor:
        """Those of the targets that are on the scale of the logits, in a row: none, if they are classes."""
        return targets[:0].flatten()

    def distillation(self, teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
        """The loss of a student in the mean over the units: T^2 KL(teacher || student) at temperature T (Hinton et al.
        2015, arXiv 1503.02531, section 2)."""
        return temperature**2 * self.divergences(teacher, student, temperature).mean()

    def distances(self, before: Tensor, after: Tensor) -> Tensor:
        """Half the mean squared change of the centred logits of each unit, (units,). The divergence times the squared
        temperature tends to this at a high temperature (Hinton et al. 2015, arXiv 1503.02531, eq. 4)."""
        possible = before.isfinite()
        change = (self.centred(after) - self.centred(before)).masked_fill(~possible, 0.0)
        return 0.5 * change.square().sum(-1) / possible.sum(-1).clamp(min=1)


@dataclass(frozen=True)
class Classes(Outcome):
    """One of several classes: a softmax over the row; targets are class numbers (units,), int64."""

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, reduction="none")

    def divergences(self, before: Tensor, after: Tensor, temperature: float = 1.0) -> Tensor:
        p, q = (torch.log_softmax(logits / temperature, -1) for logits in (before, after))
        closed = ~before.isfinite()  # no probability: no part of the sum, and no gradient of NaN
        difference = p.masked_fill(closed, 0.0) - q.masked_fill(closed, 0.0)
        return (p.exp() * difference).sum(-1)

    def centred(self, logits: Tensor) -> Tensor:
        possible = logits.isfinite()
        open_logits = logits.masked_fill(~possible, 0.0)
        mean = open_logits.sum(-1, keepdim=True) / possible.sum(-1, keepdim=True).clamp(min=1)
        return (open_logits - mean).masked_fill(~possible, 0.0)

    def apart(self, before: Tensor, after: Tensor) -> Tensor:
        return _infinite(before.argmax(-1) != after.argmax(-1))


@dataclass(frozen=True)
class Labels(Outcome):
    """Independent labels: a sigmoid an output; targets are 0 or 1 (units, outputs), float."""

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none").mean(-1)

    def divergences(self, before: Tensor, after: Tensor, temperature: float = 1.0) -> Tensor:
        total = torch.zeros_like(before)
        for sign in (1.0, -1.0):
            p, q = (F.logsigmoid(sign * logits / temperature) for logits in (before, after))
            total = total + p.exp() * (p - q)
        return total.sum(-1)

    def centred(self, logits: Tensor) -> Tensor:
        return logits

    def apart(self, before: Tensor, after: Tensor) -> Tensor:
        return _infinite(((before > 0) != (after > 0)).any(-1))


@dataclass(frozen=True)
class Number(Outcome):
    """A number: a normal distribution of unit variance around the output; targets are numbers (units,), float."""

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (logits[:, 0] - targets.to(logits.dtype)).square()

    def divergences(self, before: Tensor, after: Tensor, temperature: float = 1.0) -> Tensor:
        """Half the squared change, over the squared temperature."""
        return _half_square(before, after) / temperature**2

    def distillation(self, teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
        """The mean squared error, at any temperature."""
        return F.mse_loss(student, teacher)

    def centred(self, logits: Tensor) -> Tensor:
        return logits

    def apart(self, before: Tensor, after: Tensor) -> Tensor:
        return (before - after).abs().amax(-1)

    def numbers(self, targets: Tensor) -> Tensor:
        return targets.flatten()


@dataclass(frozen=True)
class Direction(Outcome):
    """A direction: a von Mises-Fisher distribution around a vector of length 1 (Mardia and Jupp 2000, Directional
    Statistics, section 9.3.2). There are no targets, (units, 0): what another model says is all that is known."""

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        raise ValueError("embeddings have no labels, and so no loss: take what needs none, such as their divergence")

    def divergences(self, before: Tensor, after: Tensor, temperature: float = 1.0) -> Tensor:
        """1 less the cosine, over the squared temperature: the divergence, up to a factor that is the concentration's.
        From the distance of the two vectors, which keeps the digits of small changes."""
        return _half_square(before, after) / temperature**2

    def centred(self, logits: Tensor) -> Tensor:
        return logits

    def apart(self, before: Tensor, after: Tensor) -> Tensor:
        return _half_square(before, after)


def _half_square(before: Tensor, after: Tensor) -> Tensor:
    return 0.5 * (after - before).square().sum(-1)


def _infinite(different: Tensor) -> Tensor:
    return torch.zeros(different.shape, device=different.device).masked_fill(different, float("inf"))
