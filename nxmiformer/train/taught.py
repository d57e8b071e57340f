"""Distillation in a training loop that is not ours: the model itself gives the loss of an objective."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from nxmiformer.layers.mode import checkpointing
from nxmiformer.layers.ranges import widened
from nxmiformer.tasks.outcomes import Classes, Labels, Number, Outcome
from nxmiformer.tasks.units import IGNORED, Units, place_units, whole_units
from nxmiformer.train.loop import training_mode
from nxmiformer.train.objective import Objective

COUNT = "num_items_in_batch"  # by which Trainer has a model divide the sum of its losses
KEY = "nxmiformer_taught"  # of the model's attribute that holds what teaches it
PROBLEMS: Mapping[str, Outcome] = {"multi_label_classification": Labels(), "regression": Number()}


def untaught(model: PreTrainedModel) -> None:
    """Give a model that something teaches its own loss back; an exception may have left it so."""
    earlier: Taught | None = vars(model).get(KEY)
    if earlier is not None:
        earlier.end()


class Taught:
    """While a model trains, its `loss` is that of an objective. In evaluation it is its own.

    What is distilled of the logits is a row an example, or a row for each token that is no padding; for a text that a
    decoder writes, for each that has a label.

    Args:
        model: gives its loss where it is given labels.
        teacher: the dense model, in evaluation mode.
        dropout: whether the model's dropout stays on.

    Attributes:
        reached: whether gradients have come through the loss since it was last given.

    Raises:
        ValueError: the objective distils attention scores; dropout is to be off beside gradient checkpointing; or, in a
            forward pass, the model gives no outputs by name, or logits of another kind.
    """

    def __init__(self, model: PreTrainedModel, teacher: PreTrainedModel, objective: Objective, dropout: bool) -> None:
        if objective.attention:
            raise ValueError("attention scores are distilled by the command alone: attention=0 leaves them out")
        if not dropout and checkpointing(model):
            raise ValueError(
                "gradient checkpointing needs layers in training mode, where dropout is on: set the probabilities of "
                "the model's dropout to 0, and give dropout=True"
            )
        untaught(model)
        self.model, self.teacher, self.objective, self.dropout = model, teacher, objective, dropout
        self.reached = True
        self._training = self._paused = False
        self._hooks = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True),
        ]
        vars(model)[KEY] = self

    def end(self) -> None:
        """Give the model its own loss back."""
        for hook in self._hooks:
            hook.remove()
        vars(self.model).pop(KEY, None)

    def own_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The model's own loss of a batch, in the mode that it is in."""
        with self._pause():
            found: Tensor = self.model(**batch).loss
            return found

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The objective of a batch, in the mode that the model is in."""
        with self._pause():
            return self.objective(self.model, self.teacher, batch, self._units, targets=self._targets)

    @property
    def _targets(self) -> tuple[str, ...]:
        """What the teacher is not given. A decoder may read its text from the labels."""
        return () if self.model.config.is_encoder_decoder else ("labels",)

    @contextmanager
    def _pause(self) -> Iterator[None]:
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _before(self, _: Any, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._training = self.model.training and torch.is_grad_enabled() and not self._paused
        if not self._training:
            return args, given
        if args:
            raise ValueError(f"the model is given {len(args)} inputs without their names, which are needed to distil")
        if not self.dropout:
            training_mode(self.model, dropout=False)
        return args, {**given, "output_hidden_states": True} if self.objective.hidden else given

    def _after(self, _: Any, args: tuple[Any, ...], given: dict[str, Any], outputs: Any) -> Any:
        if not self._training:
            return outputs
        self.model.train()  # as it was
        if not isinstance(outputs, ModelOutput) or outputs.get("loss") is None:
            raise ValueError(
                "the model gives no loss: it needs labels, which label_smoothing_factor keeps from it, and "
                "return_dict=True"
            )
        batch = {name: value for name, value in given.items() if name != COUNT}
        with torch.no_grad():
            target = self.teacher(**{name: value for name, value in batch.items() if name not in self._targets})
        terms = self.objective.distilled(outputs, target, batch, self._units)
        if given.get(COUNT) is not None:  # of several batches: the share of this one
            share = (given["labels"] != IGNORED).sum() / given[COUNT]
            terms = [share * term for term in terms]
        if self.objective.task:
            terms.append(self.objective.task * outputs["loss"])
        loss = reduce(torch.add, terms)
        self.reached = False
        loss.register_hook(self._reach)
        outputs["loss"] = loss
        return outputs

    def _reach(self, _: Tensor) -> None:
        self.reached = True

    def _units(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Units:
        logits, labels = outputs.get("logits"), batch.get("labels")
        if logits is not None and labels is not None and logits.ndim == 2:
            return whole_units(outputs, batch, PROBLEMS.get(str(self.model.config.problem_type)))
        if logits is not None and labels is not None and logits.ndim == 3:
            if self.model.config.is_encoder_decoder:
                return place_units(logits, labels)
            mask = batch.get("attention_mask")
            real = torch.ones(logits.shape[:2], device=logits.device).bool() if mask is None else mask.bool()
            owner = torch.arange(len(logits), device=logits.device)[:, None].expand_as(real)[real]
            return Units(widened(logits[real]), owner.new_zeros(len(owner)), owner, Classes())
        raise ValueError(
            f"of the outputs {list(outputs)} and the inputs {list(batch)}, logits of one row an example or a token are "
            "distilled where there are labels: objective.logits=0 leaves them out"
        )
