"""What training minimises."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nxmiformer.sets.fields import check_fields
from nxmiformer.train.hidden import hidden_error


@dataclass(frozen=True)
class Objective:
    """A weighted sum of the task's loss and of distillation from the dense model.

    Attributes:
        task: weight of the model's own loss (cross-entropy, or squared error of a regression).
        logits: weight of the distillation of logits: T^2 KL(teacher || student) at temperature T, mean over the batch
            (Hinton et al. 2015, arXiv 1503.02531, section 2); the squared error for a regression.
        temperature: T.
        hidden: weight of the mean squared error between the hidden states of all layers, of an encoder and a decoder
            alike, padding left out (as TinyBERT, Jiao et al. 2020, arXiv 1909.10351, eq. 8, without the projection: the
            widths are equal here).
    """

    task: float = 1.0
    logits: float = 0.0
    temperature: float = 2.0
    hidden: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        weights = {"task": self.task, "logits": self.logits, "hidden": self.hidden}
        if not all(weight >= 0 for weight in weights.values()) or not any(weights.values()):
            raise ValueError(f"the weights of an objective are >= 0 and not all zero, not {weights}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")

    @property
    def distils(self) -> bool:
        """Whether a teacher is needed."""
        return self.logits > 0 or self.hidden > 0

    def __call__(self, model: nn.Module, teacher: nn.Module | None, batch: Mapping[str, Any]) -> Tensor:
        """The loss of one batch: keyword arguments of the model, `labels` among them."""
        outputs = model(**batch, output_hidden_states=self.hidden > 0)
        loss: Tensor = self.task * outputs.loss
        if not self.distils:
            return loss
        assert teacher is not None
        with torch.no_grad():
            inputs = {key: value for key, value in batch.items() if key != "labels"}
            target = teacher(**inputs, output_hidden_states=self.hidden > 0)
        if self.logits:
            loss = loss + self.logits * self._logits(outputs.logits, target.logits)
        if self.hidden:
            loss = loss + self.hidden * hidden_error(outputs, target, batch.get("attention_mask"))
        return loss

    def _logits(self, student: Tensor, teacher: Tensor) -> Tensor:
        if student.shape[-1] == 1:
            return F.mse_loss(student.float(), teacher.float())
        soft = [F.log_softmax(logits.float() / self.temperature, dim=-1) for logits in (student, teacher)]
        return self.temperature**2 * F.kl_div(soft[0], soft[1], reduction="batchmean", log_target=True)
