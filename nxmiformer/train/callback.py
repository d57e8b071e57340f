"""A method of compression for the `Trainer` of `transformers`."""

import copy
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from nxmiformer.applied.convert import convert
from nxmiformer.files import whole
from nxmiformer.layers.moments import Batch
from nxmiformer.layers.projection import Moved
from nxmiformer.layers.wrapped import unwrapped
from nxmiformer.methods.base import Calibration, Length, Method
from nxmiformer.methods.fixed_mask import FixedMask
from nxmiformer.methods.kronecker import Kronecker
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.train.checkpoint import distinct
from nxmiformer.train.objective import Objective
from nxmiformer.train.taught import Taught, untaught

DENSE = "nxmiformer-{run}-dense.safetensors"  # beside the checkpoints: the weights of the teacher
STATE = "nxmiformer.pt"  # in a checkpoint: what Trainer does not save
OPTIMIZER = "optimizer.pt"  # what it does
OWN = Objective()


class Compression(TrainerCallback, ExportableState):
    """Trains a model into the sets of a plan, as the phases of a recipe do. When training ends, every weight of the
    plan is a point of its set. Data, optimizer and schedule are the `Trainer`'s. A method changes gradients after they
    are clipped.

    Training that `resume_from_checkpoint` continues, from the dense model in a new process, gives the weights that it
    would have given without a stop.

    Attributes:
        moved: distance of the weights from their sets when the last method ended; None before.

    Args:
        plan: the plan of the model.
        method: a method, such as Admm().
        finish: the share of the steps, at the end, that train what is left under the support that the method has found,
            in [0, 1); 0.7 is that of the recipes.
        objective: what is minimised; by default the model's own loss. A weight of `logits` or `hidden` distils the
            model as it is when training begins. Its weights are kept beside the checkpoints, for a resume.
        dropout: whether dropout is on; None: unless something is distilled.

    Raises:
        ValueError: the method trains what is not among the model's parameters, `finish` is no such share, or dropout is
            to be off where nothing is distilled.
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
        if dropout is False and not objective.distils:
            raise ValueError(
                "dropout=False is for an objective that distils: else set the probabilities of the model's dropout to 0"
            )
        self.plan, self.finish, self.objective = plan, finish, objective
        self.dropout = not objective.distils if dropout is None else dropout
        self.methods = (method, FixedMask()) if finish else (method,)
        self.moved: Moved | None = None
        self._index, self._run = 0, ""
        self._taught: Taught | None = None

    @property
    def method(self) -> Method:
        """The method that is at work."""
        return self.methods[self._index]

    def state(self) -> dict[str, Any]:
        """What a checkpoint of Trainer says of it: the name of the run."""
        return {"args": {}, "attributes": {"run": self._run}}

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
            ValueError: training continues from a checkpoint of another run, or of other settings; the plan does not
                fit; the method trains what the optimizer does not have; `Trainer` is to do what cannot be done.
        """
        assert model is not None
        assert train_dataloader is not None
        self._refuse(args, state, optimizer)
        self._model: PreTrainedModel = unwrapped(model)  # type: ignore[assignment]
        self._optimizer, self._base, self._batches = optimizer, optimizer.optimizer, train_dataloader
        self._epoch = _steps_per_epoch(train_dataloader, args, state)
        self._first = state.max_steps - round(self.finish * state.max_steps)
        self._index = int(bool(self.finish) and state.global_step > self._first)
        untaught(self._model)
        kept = self._kept(args, state) if state.global_step else None
        teacher = copy.deepcopy(self._model) if self.objective.distils else None
        self._plain = {*self._model.state_dict()}
        convert(self._model, self.plan)
        self._run = secrets.token_hex(4) if kept is None else kept["run"]
        if teacher is not None:
            self._taught = self._teach(teacher, args, resumed=kept is not None)
        if kept is None:
            self._begin(state)
        else:
            self._restore(kept, _checkpoint(args, state), state)

    def _refuse(self, args: TrainingArguments, state: TrainerState, optimizer: Any) -> None:
        if not isinstance(optimizer, AcceleratedOptimizer):
            raise ValueError(f"Trainer's optimizer is a {type(optimizer).__name__}, which no method can be put around")
        if args.world_size > 1:
            raise ValueError(
                f"Trainer runs on {args.world_size} processes, each of which would calibrate on data of its own: take "
                "one, or the command, which torchrun starts on several"
            )
        if args.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end=True puts weights back without what a method knows of them: leave it out"
            )
        if state.is_hyper_param_search:
            raise ValueError("Trainer.hyperparameter_search trains one model after another: use a sweep of the command")

    def _teach(self, teacher: PreTrainedModel, args: TrainingArguments, resumed: bool) -> Taught:
        """Have the dense model teach; keep its weights, or take them from where they were kept."""
        assert args.output_dir is not None
        path = Path(args.output_dir) / DENSE.format(run=self._run)
        if resumed:
            teacher.load_state_dict(load_file(path), strict=False)
        elif args.should_save:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as new:
                save_file(distinct(teacher), new)
        teacher.eval().requires_grad_(False)
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

    def _kept(self, args: TrainingArguments, state: TrainerState) -> dict[str, Any]:
        """What the checkpoint has that training continues from.

        Raises:
            ValueError: there is none, it lies elsewhere, or something of it differs.
        """
        checkpoint = _checkpoint(args, state)
        callbacks: Any = state.stateful_callbacks
        own = callbacks.get(type(self).__name__)
        if own is None:
            raise ValueError(
                f"the checkpoint at step {state.global_step} was not taken with nxmiformer.Compression, and has no "
                f"state of {type(self.method).__name__}: train from the beginning"
            )
        run = own["attributes"]["run"]
        files = [checkpoint / STATE, checkpoint / OPTIMIZER]
        files += [checkpoint.with_name(DENSE.format(run=run))] if self.objective.distils else []
        for file in files:
            if not file.is_file():
                raise ValueError(
                    f"there is no {file}: training continues with the output_dir that it began with, from a checkpoint "
                    "that is whole"
                )
        kept: dict[str, Any] = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
        if kept["run"] != run:
            raise ValueError(f"{checkpoint} is of another run than the checkpoint that training continues from")
        ours = self._described(state)
        if changed := [name for name, value in ours.items() if kept["described"].get(name) != value]:
            raise ValueError(
                f"{checkpoint} was taken with another {', '.join(changed)}: "
                + "; ".join(f"{name} {kept['described'].get(name)} there, {ours[name]} here" for name in changed)
            )
        return kept

    def _restore(self, kept: dict[str, Any], checkpoint: Path, state: TrainerState) -> None:
        """Go on as a checkpoint has it."""
        self._attach(state)
        self._model.load_state_dict(kept["model"], strict=False)
        self.method.load_state_dict(kept["method"], state.global_step - (self._first if self._index else 0))
        self._optimizer.optimizer = self.method.optimizer(self._base)
        whole_state = torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True)
        self._optimizer.optimizer.load_state_dict(whole_state)

    def _described(self, state: TrainerState) -> dict[str, str]:
        """What must be the same for training to continue."""
        told = {"plan": self.plan.fingerprint, "method": self.methods[0], "finish": self.finish}
        told |= {"objective": self.objective, "dropout": self.dropout, "max_steps": state.max_steps}
        return {name: str(value) for name, value in told.items()}

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
        self._batches.set_epoch(int(state.epoch or 0))  # type: ignore[attr-defined]  # as accelerate's can
        if self.finish and step == self._first and self._index == 0:
            self.moved = self.method.hand_over()
            self._index = 1
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
        added = {name: each for name, each in distinct(self._model).items() if name not in self._plain}
        of = {"run": self._run, "described": self._described(state)}
        with whole(_checkpoint(args, state) / STATE) as new:
            torch.save({**of, "method": self.method.state_dict(), "model": added}, new)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        untaught(self._model)
        self.moved = self.method.finalize()


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """The directory of the checkpoint after the steps that are done."""
    assert args.output_dir is not None
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _steps_per_epoch(loader: DataLoader, args: TrainingArguments, state: TrainerState) -> int:
    """Optimizer steps of one pass over the data; of data without a length, all steps."""
    try:
        return max(1, len(loader) // args.gradient_accumulation_steps)
    except TypeError:
        return state.max_steps


def _endless(loader: DataLoader) -> Iterator[Batch]:
    while True:
        yield from loader
