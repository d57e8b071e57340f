"""A method of compression for the `Trainer` of `transformers`."""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nxmiformer.applied.convert import convert
from nxmiformer.layers.moments import Batch
from nxmiformer.layers.projection import Moved
from nxmiformer.layers.wrapped import unwrapped
from nxmiformer.methods.base import Calibration, Length, Method
from nxmiformer.methods.kronecker import Kronecker
from nxmiformer.plan.compression import CompressionPlan


class Compression(TrainerCallback):
    """Trains a model into the sets of a plan. Loss, data, optimizer and schedule are the `Trainer`'s; the projections
    are the method's, as in a phase of a recipe. When training ends, every weight of the plan is a point of its set.

    It does not distil, and a method changes gradients after they are clipped.

    Attributes:
        moved: distance of the weights from their sets when training ended; None before.

    Args:
        plan: the plan of the model.
        method: a method, such as Admm().

    Raises:
        ValueError: the method trains what is not among the model's parameters.
    """

    def __init__(self, plan: CompressionPlan, method: Method) -> None:
        if isinstance(method, Kronecker):
            raise ValueError("Kronecker trains factors, which Trainer's optimizer does not have: use recipe=kronecker")
        self.plan, self.method = plan, method
        self.moved: Moved | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        optimizer: Any = None,
        train_dataloader: DataLoader | None = None,
        **_: Any,
    ) -> None:
        """Convert the model, calibrate on training batches, and put the method around the optimizer.

        Raises:
            ValueError: training continues from a checkpoint, which has no state of the method; or the plan does not
                fit.
        """
        assert model is not None
        assert train_dataloader is not None
        if state.global_step:
            raise ValueError(
                f"a checkpoint of Trainer has no state of {type(self.method).__name__}: train from the beginning"
            )
        if not isinstance(optimizer, AcceleratedOptimizer):
            raise ValueError(f"Trainer's optimizer is a {type(optimizer).__name__}, which no method can be put around")
        inner = unwrapped(model)
        convert(inner, self.plan)
        epoch = max(1, len(train_dataloader) // args.gradient_accumulation_steps)
        self.method.attach(inner, Length(state.max_steps, epoch))

        @torch.no_grad()
        def forward(batch: Batch) -> None:
            inner(**{name: value for name, value in batch.items() if name != "labels"})

        def loss(batch: Batch) -> Tensor:
            found: Tensor = inner(**batch).loss
            return found

        for _layer in self.method.calibrate(Calibration(_endless(train_dataloader), forward, loss, loss)):
            pass
        optimizer.optimizer = self.method.optimizer(optimizer.optimizer)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.method.before_step(state.global_step)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.method.before_clip()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.moved = self.method.finalize()


def _endless(loader: DataLoader) -> Iterator[Batch]:
    while True:
        yield from loader
