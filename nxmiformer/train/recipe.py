"""The phases of a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, SchedulerType

from nxmiformer.errors import unknown
from nxmiformer.layers.mode import evaluating
from nxmiformer.methods.base import Length, Method
from nxmiformer.methods.dense import Dense
from nxmiformer.train.hidden import HiddenStatesError, check_every_layer_runs
from nxmiformer.train.objective import Objective

MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Phase:
    """One stretch of training with one method.

    Attributes:
        method: how the layers are compressed in it.
        optimizer: builds the base optimizer from parameter groups (a partial of any torch optimizer).
        objective: what it minimises.
        epochs: its length in passes over the training data; or
        steps: its length in optimizer steps, which wins where given. A phase of no steps still applies its method.
        schedule: the learning rate's course, a name that `transformers.get_scheduler` knows.
        warmup: share of the steps in which the learning rate rises.
        relative: whether a compressed weight trains at the learning rate times its relative distance from its set,
            ||W - P(W)|| / ||W|| of the dense W, and all else at that times the distance of all weights together. What
            a layer has to make up for is of that size, and Adam's step is of the learning rate's, however little there
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
    warmup: float = 0.1
    relative: bool = False
    weight_decay: float = 0.0
    dropout: bool = True

    def __post_init__(self) -> None:
        if self.epochs < 0 or (self.steps is not None and self.steps < 0):
            raise ValueError(f"a phase cannot have {self.epochs} epochs or {self.steps} steps")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup is a share of the steps in [0, 1], not {self.warmup}")
        if self.relative and isinstance(self.method, Dense):
            raise ValueError("a dense phase has no sets for its learning rates to be relative to: relative=false")
        names = [kind.value for kind in SchedulerType]
        if self.schedule not in names:
            raise unknown("schedule of the learning rate", self.schedule, names)

    def length(self, epoch: int) -> Length:
        """Its length, where one pass over the data takes `epoch` optimizer steps."""
        return Length(round(self.epochs * epoch) if self.steps is None else self.steps, epoch)


@dataclass(frozen=True)
class Recipe:
    """Phases by name, in order."""

    phases: Mapping[str, Phase]

    def __post_init__(self) -> None:
        if all(isinstance(phase.method, Dense) for phase in self.phases.values()):
            raise ValueError(
                f"a recipe needs a phase that compresses; this one has {list(self.phases) or 'none at all'}"
            )


@torch.no_grad()
def check_distillation(phases: Mapping[str, Phase], model: PreTrainedModel, batch: Mapping[str, Tensor]) -> None:
    """Compare the model with itself, on a batch, as each phase's objective will compare it with its teacher. It is in
    evaluation mode meanwhile, so that chance has no say in what is refused.

    Raises:
        ValueError: a phase is to distil hidden states which the model does not have, or not always.
    """
    for name, phase in phases.items():
        if not phase.objective.hidden:
            continue
        try:
            if phase.dropout:
                check_every_layer_runs(model.config, f"recipe.phases.{name}.dropout=false")
            with evaluating(model):
                phase.objective(model, model, batch)
        except HiddenStatesError as error:
            without = f"recipe.phases.{name}.objective.hidden=0 leaves hidden states out"
            raise ValueError(f"phase {name} is to distil hidden states, but {error}; {without}") from error
