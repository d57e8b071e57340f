"""A method of compression for the `Trainer` of `transformers`."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nxmiformer.applied.convert import convert
from nxmiformer.console.quiet import quiet
from nxmiformer.files import replacing
from nxmiformer.layers.moments import Batch
from nxmiformer.layers.projection import Moved
from nxmiformer.layers.wrapped import unwrapped
from nxmiformer.methods.base import Calibration, Length, Method
from nxmiformer.methods.fixed_mask import FixedMask
from nxmiformer.methods.kronecker import Kronecker
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.train.checkpoint import distinct
from nxmiformer.train.objective import Objective
from nxmiformer.train.taught import Taught

DENSE = "dense"  # directory of the teacher, in the Trainer's
OWN = Objective()
STATE = "nxmiformer"  # directory of what a checkpoint of Trainer lacks, in the checkpoint
FILE = "state.pt"


class Compression(TrainerCallback):
    """Trains a model into the sets of a plan, as the phases of a recipe do. When training ends, every weight of the
    plan is a point of its set. Data, optimizer and schedule are the `Trainer`'s. A method changes gradients after they
    are clipped.

    Training that `resume_from_checkpoint` continues gives the weights that it would have given without a stop.

    Attributes:
        moved: distance of the weights from their sets when the last method ended; None before.

    Args:
        plan: the plan of the model.
        method: a method, such as Admm().
        finish: the share of the steps, at the end, that train what is left under the support that the method has found,
            in [0, 1); 0.7 is that of the recipes.
        objective: what is minimised; by default the model's own loss. A weight of `logits` or `hidden` distils the
            model as it is when training begins, which is kept in `dense/` beside the checkpoints.
        dropout: whether dropout is on; None: unless something is distilled.

    Raises:
        ValueError: the method trains what is not among the model's parameters, `finish` is no such share, or the
            objective has a term that `Trainer` cannot have.
    """

    def __init__(
        self,
        plan: CompressionPlan,
        method: Method,
        *,
        finish: float = 0.0,
        objective: Objective = OWN,
        dropout: bool | None = None,
    ) -> None:
        if isinstance(method, Kronecker):
            raise ValueError("Kronecker trains factors, which Trainer's optimizer does not have: use recipe=kronecker")
        if not 0 <= finish < 1:
            raise ValueError(f"finish={finish} is a share of the steps in [0, 1)")
        self.plan, self.finish, self.objective = plan, finish, objective
        self.dropout = not objective.distils if dropout is None else dropout
        self.methods = (method, FixedMask()) if finish else (method,)
        self.moved: Moved | None = None

    @property
    def method(self) -> Method:
        """The method that is at work."""
        return self.methods[self._index]

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
            ValueError: training continues from a checkpoint that was not taken with this callback; the plan does not
                fit; the method trains what the optimizer does not have.
        """
        assert model is not None
        assert train_dataloader is not None
        if not isinstance(optimizer, AcceleratedOptimizer):
            raise ValueError(f"Trainer's optimizer is a {type(optimizer).__name__}, which no method can be put around")
        self._model: PreTrainedModel = unwrapped(model)  # type: ignore[assignment]
        self._optimizer, self._base = optimizer, optimizer.optimizer
        self._batches = train_dataloader
        self._epoch = max(1, len(train_dataloader) // args.gradient_accumulation_steps)
        self._first = state.max_steps - round(self.finish * state.max_steps)
        self._index = int(state.global_step > self._first) if self.finish else 0
        self._plain = {*self._model.state_dict()}
        checkpoint = _checkpoint(args, state)
        if state.global_step and not (checkpoint / STATE / FILE).is_file():
            raise ValueError(
                f"{checkpoint} has no state of {type(self.method).__name__}, as nxmiformer.Compression leaves it "
                "there: train from the beginning"
            )
        self._taught = self._teach(args, state)
        convert(self._model, self.plan)
        if state.global_step:
            self._restore(checkpoint, state)
        else:
            self._begin(state)

    def _teach(self, args: TrainingArguments, state: TrainerState) -> Taught | None:
        """Have the dense model teach, if anything is distilled."""
        if not self.objective.distils:
            return None
        directory = _checkpoint(args, state).with_name(DENSE)
        if state.global_step:
            if not (directory / "config.json").is_file():
                raise ValueError(f"{directory}, the dense model that was distilled, is gone: train from the beginning")
            with quiet():
                teacher = type(self._model).from_pretrained(directory, dtype=self._model.dtype)
        else:
            teacher = copy.deepcopy(self._model)
            if args.should_save:
                with quiet(), replacing(directory, lambda _: True, "a dense model") as written:
                    teacher.save_pretrained(written)
        teacher.eval().requires_grad_(False).to(self._model.device)
        return Taught(self._model, teacher, self.objective, self.dropout)

    def _begin(self, state: TrainerState) -> None:
        """Begin with the method, on weights as the one before it has left them."""
        self._attach(state)
        for _layer in self.method.calibrate(self._calibration()):
            pass
        self._optimizer.optimizer = self.method.optimizer(self._base)

    def _attach(self, state: TrainerState) -> None:
        steps = state.max_steps - self._first if self._index else self._first
        self.method.attach(self._model, Length(steps, self._epoch))
        trained = {id(p) for group in self._base.param_groups for p in group["params"]}
        for name, parameter in self.method.parameters():
            if id(parameter) not in trained:
                raise ValueError(
                    f"{type(self.method).__name__} trains {name}, which Trainer's optimizer does not have: leave "
                    "learned_scales out, or use the command"
                )

    def _restore(self, checkpoint: Path, state: TrainerState) -> None:
        """Go on as a checkpoint has it."""
        kept = torch.load(checkpoint / STATE / FILE, map_location="cpu", weights_only=True)
        if kept["plan"] != self.plan.fingerprint or kept["methods"] != self._described():
            raise ValueError(f"{checkpoint} is of another plan, or other methods: {kept['methods']}")
        self._attach(state)
        self._model.load_state_dict(kept["model"], strict=False)
        self.method.load_state_dict(kept["method"], state.global_step - (self._first if self._index else 0))
        self._optimizer.optimizer = self.method.optimizer(self._base)
        whole = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
        self._optimizer.optimizer.load_state_dict(whole)

    def _described(self) -> str:
        return json.dumps([f"{each!r}" for each in (*self.methods, self.finish)])

    def _calibration(self) -> Calibration:
        model, taught = self._model, self._taught

        @torch.no_grad()
        def forward(batch: Batch) -> None:
            model(**{name: value for name, value in batch.items() if name != "labels"})

        def loss(batch: Batch) -> Tensor:
            found: Tensor = model(**batch).loss
            return found

        own, minimised = (loss, loss) if taught is None else (taught.own_loss, taught.loss)
        return Calibration(_endless(self._batches), forward, own, minimised)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        step = state.global_step
        if self.finish and step == self._first and self._index == 0:
            self.moved = self.method.hand_over()
            self._index = 1
            self._optimizer.optimizer = self._base
            self._begin(state)
        own = step - (self._first if self._index else 0)
        for _layer in self.method.calibrate_again(own, self._calibration()) if own else ():
            pass
        self.method.before_step(own)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """
        Raises:
            ValueError: what is minimised is not the loss that the model gives.
        """
        if self._taught is not None and not self._taught.reached:
            raise ValueError(
                "Trainer does not minimise the loss that the model gives, so nothing is distilled: leave out "
                "label_smoothing_factor, compute_loss_func and a compute_loss of your own"
            )
        self.method.before_clip()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write what a checkpoint of Trainer lacks into it."""
        if not args.should_save:
            return
        checkpoint = _checkpoint(args, state)
        added = {name: each for name, each in distinct(self._model).items() if name not in self._plain}
        of = {"plan": self.plan.fingerprint, "methods": self._described()}
        with replacing(checkpoint / STATE, lambda _: True, "a state") as directory:
            torch.save({**of, "method": self.method.state_dict(), "model": added}, directory / FILE)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.moved = self.method.finalize()
        if self._taught is not None:
            self._taught.end()


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """The directory of the checkpoint after the steps that are done."""
    assert args.output_dir is not None
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _endless(loader: DataLoader) -> Iterator[Batch]:
    while True:
        yield from loader
