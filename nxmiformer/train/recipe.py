"""The phases of a run."""

import io
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from inspect import Parameter, signature
from itertools import dropwhile, pairwise, takewhile
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from nxmiformer.errors import unknown
from nxmiformer.layers.mode import evaluating
from nxmiformer.methods.base import Length, Method
from nxmiformer.methods.dense import Dense
from nxmiformer.methods.fixed_mask import FixedMask
from nxmiformer.sets.fields import check_fields
from nxmiformer.train.attention import ScoresError, check_scores
from nxmiformer.train.hidden import HiddenStatesError, check_every_layer_runs
from nxmiformer.train.objective import Objective
from nxmiformer.train.rates import held, rewound

MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
FOLLOWING = ("reduce_lr_on_plateau", "greedy")  # schedules that want a score at every step, which no phase has
MAKERS: dict[Any, Any] = TYPE_TO_SCHEDULER_FUNCTION
OWN: dict[str, Callable[..., LambdaLR]] = {"rewound": rewound, "held": held}
SCHEDULES = {**{kind.value: make for kind, make in MAKERS.items() if kind.value not in FOLLOWING}, **OWN}
GIVEN = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")  # to a schedule, by its phase


@dataclass(frozen=True)
class Phase:
    """One stretch of training with one method.

    Attributes:
        method: how the layers are compressed in it.
        optimizer: builds the base optimizer from parameter groups (a partial of any torch optimizer).
        objective: what it minimises.
        epochs: its length in passes over the training data; or
        steps: its length in optimizer steps, which wins where given. A phase of no steps still applies its method.
        schedule: the learning rate's course, a name that `transformers.get_scheduler` knows, or "rewound" or "held", of
            `nxmiformer.train.rates`.
        schedule_options: what it takes besides, such as `num_decay_steps` of "warmup_stable_decay".
        warmup: share of the steps in which the learning rate rises.
        relative: whether the learning rate of a compressed weight is multiplied by its relative distance from its set,
            ||W - P(W)|| / ||W|| of the dense W. All other parameters have the distance of all weights together. The
            error of a layer is of that size, and Adam's step is of the size of the learning rate, however little there
            is to gain.
        weight_decay: of weight matrices; biases, norms and scales have none.
        dropout: whether the model's dropout is on. Distillation needs none: the student cannot match its teacher
            through noise.
    """

    method: Method
    optimizer: MakeOptimizer
    objective: Objective = field(default_factory=Objective)
    epochs: float = 1.0
    steps: int | None = None
    schedule: str = "linear"
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    warmup: float = 0.1
    relative: bool = False
    weight_decay: float = 0.0
    dropout: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.epochs < 0 or (self.steps is not None and self.steps < 0):
            raise ValueError(f"a phase cannot have {self.epochs} epochs or {self.steps} steps")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup is a share of the steps in [0, 1], not {self.warmup}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, not {self.weight_decay}")
        if self.relative and isinstance(self.method, Dense):
            raise ValueError("a dense phase has no sets for its learning rates to be relative to: relative=false")
        self._check_schedule()
        self.try_out(Length(10, 10))

    def _check_schedule(self) -> None:
        if self.schedule in FOLLOWING:
            raise ValueError(f"schedule={self.schedule} follows a score; a phase takes one of {', '.join(SCHEDULES)}")
        if self.schedule not in SCHEDULES:
            raise unknown("schedule of the learning rate", self.schedule, SCHEDULES)
        taken = {k: p for k, p in signature(SCHEDULES[self.schedule]).parameters.items() if k not in GIVEN}
        for name in self.schedule_options:
            if name not in taken:
                raise unknown(f"option of schedule={self.schedule}", name, taken)
        needed = [k for k, p in taken.items() if p.default is Parameter.empty and k not in self.schedule_options]
        if needed:
            options = " ".join(f"schedule_options.{name}=..." for name in needed)
            raise ValueError(f"schedule={self.schedule} needs more than its name: {options}")

    def length(self, epoch: int) -> Length:
        """Its length, where one pass over the data takes `epoch` optimizer steps."""
        return Length(round(self.epochs * epoch) if self.steps is None else self.steps, epoch)

    def scheduler(self, optimizer: torch.optim.Optimizer, length: Length) -> LambdaLR:
        """The learning rates of the optimizer's groups over the phase."""
        warmup = round(self.warmup * length.steps)
        options = dict(self.schedule_options) or None
        if self.schedule in OWN:
            return OWN[self.schedule](optimizer, warmup, length.steps, **(options or {}))
        return get_scheduler(self.schedule, optimizer, warmup, length.steps, options)

    def try_out(self, length: Length) -> None:
        """Take one step with the optimizer and the schedule of a phase of that length, on nothing.

        Raises:
            ValueError: they cannot be made or stepped, whatever it is that they raise.
        """
        parameters = [nn.Parameter(torch.zeros(shape, device="cpu")) for shape in ((1, 1), (1,))]
        for each in parameters:
            each.grad = torch.zeros_like(each)
        pairs = zip(parameters, (self.weight_decay, 0.0), strict=True)
        with _named("optimizer"):
            optimizer = self.optimizer([{"params": [p], "weight_decay": decay, "share": 1.0} for p, decay in pairs])
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise TypeError(f"it gives a {type(optimizer).__name__}, which is not an optimizer of torch")
        with _named(schedule := f"schedule={self.schedule}, schedule_options={dict(self.schedule_options)}"):
            scheduler = self.scheduler(optimizer, length)
            for factor in (scheduler.lr_lambdas[0](step) for step in range(0, length.steps, 1 + length.steps // 100)):
                if not (math.isfinite(factor) and factor >= 0):
                    raise ValueError(f"it multiplies the learning rate by {factor}")
        with _named("optimizer"):
            optimizer.step()
            _check_kept(optimizer.state_dict())
        with _named(schedule):
            scheduler.step()
            _check_kept(scheduler.state_dict())


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Make a ValueError that begins with `what` of whatever is raised: the code may be anybody's."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {error or type(error).__name__}") from error


def _check_kept(state: dict[str, Any]) -> None:
    """Raise an error unless a checkpoint can hold the state: tensors, numbers and text, as a resume reads it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    torch.load(file, weights_only=True)


@dataclass(frozen=True)
class Recipe:
    """Phases by name, in order."""

    phases: Mapping[str, Phase]

    def __post_init__(self) -> None:
        if all(isinstance(phase.method, Dense) for phase in self.phases.values()):
            raise ValueError(
                f"a recipe needs a phase that compresses; this one has {list(self.phases) or 'none at all'}"
            )
        for name, phase in takewhile(lambda pair: isinstance(pair[1].method, Dense), self.phases.items()):
            if phase.objective.distils:
                raise ValueError(f"phase {name!r} makes the dense model, and has no teacher yet: use objective.task")
        for (name, phase), (then, finish) in pairwise(self.phases.items()):
            method = finish.method
            if phase.method.across_layers and isinstance(method, FixedMask) and not method.keep_zeros:
                raise ValueError(
                    f"phase {name!r} lets layers compete, and phase {then!r} would train again what lost, as each set "
                    f"has room for it: use recipe.phases.{then}.method.keep_zeros=true"
                )

    def of_a_trained_model(self) -> Self:
        """The recipe with no step in the phases that make the dense model."""
        first = dict(takewhile(lambda pair: isinstance(pair[1].method, Dense), self.phases.items()))
        return type(self)({**self.phases, **{name: replace(phase, steps=0) for name, phase in first.items()}})

    def without_labels(self, task: str) -> Self:
        """The recipe for a task that has no loss of its own: without the phases that make the dense model.

        Args:
            task: its name.

        Raises:
            ValueError: another phase learns from labels.
        """
        rest = dict(dropwhile(lambda pair: isinstance(pair[1].method, Dense), self.phases.items()))
        for name, phase in rest.items():
            if phase.objective.task and not phase.length(1000).steps:  # which minimises nothing
                rest[name] = replace(phase, objective=Objective(task=0.0, logits=1.0))
            elif phase.objective.task:
                raise ValueError(
                    f"phase {name!r} learns from labels, and task={task} has none: "
                    f"recipe.phases.{name}.objective='{{task: 0.0, logits: 1.0, hidden: 10.0}}' learns from the dense "
                    f"model"
                )
            if phase.method.labelled:
                raise ValueError(
                    f"phase {name!r} looks at the loss of the labels, and task={task} has none: "
                    f"recipe.phases.{name}.method.loss=objective takes what the phase minimises"
                )
        return type(self)(rest)


@torch.no_grad()
def check_distillation(
    phases: Mapping[str, Phase],
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    teacher: PreTrainedModel | None = None,
) -> None:
    """Compare the model, on a batch, with its teacher as each phase's objective will, or with itself where it will be
    its own. It is in evaluation mode meanwhile, so that chance has no say in what is refused.

    Raises:
        ValueError: a phase is to distil hidden states or attention scores which the model does not have, or not always.
    """
    for name, phase in phases.items():
        if phase.objective.attention:
            try:
                check_scores(model, batch)
            except ScoresError as error:
                without = f"recipe.phases.{name}.objective.attention=0 leaves them out"
                raise ValueError(f"phase {name} is to distil attention scores, but {error}; {without}") from error
        if not phase.objective.hidden:
            continue
        try:
            if phase.dropout:
                check_every_layer_runs(model.config, f"recipe.phases.{name}.dropout=false")
            with evaluating(model):
                replace(phase.objective, logits=0.0, attention=0.0)(model, teacher or model, batch)
        except HiddenStatesError as error:
            without = f"recipe.phases.{name}.objective.hidden=0 leaves hidden states out"
            raise ValueError(f"phase {name} is to distil hidden states, but {error}; {without}") from error
