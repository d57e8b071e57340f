"""The training loop: one phase, from its first step to its last."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nxmiformer.console.display import SILENT, Display
from nxmiformer.layers.everything import range_quantizers
from nxmiformer.layers.found import distinct_layers
from nxmiformer.layers.moments import Batch
from nxmiformer.methods.base import Calibration, Length, Method
from nxmiformer.ranks import ranks
from nxmiformer.tasks.batches import Examples, shuffled
from nxmiformer.tasks.task import Chance, Task
from nxmiformer.train.astray import check_finite
from nxmiformer.train.checkpoint import Checkpoints, Position, restore_rng
from nxmiformer.train.evaluate import evaluate
from nxmiformer.train.groups import groups, scaled, shares
from nxmiformer.train.objective import Objective
from nxmiformer.train.progress import Progress
from nxmiformer.train.recipe import Phase
from nxmiformer.train.settings import Settings
from nxmiformer.train.tracker import Tracker


@dataclass(frozen=True)
class Stage:
    """What the phases of a run share.

    Attributes:
        model: what is trained; `wrapped` is the same, as `accelerate` prepared it.
        data: the splits by name.
        facts: what has been found out so far, as JSON values; every checkpoint holds it.
        display: shows how far it is.
    """

    model: PreTrainedModel
    wrapped: nn.Module
    tokenizer: PreTrainedTokenizerBase
    task: Task
    data: dict[str, Examples]
    settings: Settings
    accelerator: Accelerator
    checkpoints: Checkpoints
    tracker: Tracker
    seed: int
    facts: dict[str, Any]
    display: Display = SILENT

    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the training data."""
        return self.settings.steps_per_epoch(len(self.data["train"]))

    def score(self, split: str) -> dict[str, float]:
        """The task's metrics on a split, as the model stands."""
        size, examples = self.settings.eval_batch_size, self.data[split]
        return evaluate(self.model, self.task, examples, size, self.accelerator, self.display, split)

    def chance(self, split: str) -> Chance:
        """What answers that do not look at the text score on a split."""
        return self.task.chance(self.data[split].truths)

    def save(self, name: str, position: Position, state: Mapping[str, Any]) -> None:
        """Write checkpoint `name`, once for all processes.

        Raises:
            ValueError: the weights of the processes differ, where nothing but equal ones is right.
        """
        if ranks().count > 1:
            sums = [each.detach().double().sum().item() for each in self.model.parameters()]
            if any(theirs != sums for theirs in ranks().all(sums)):
                raise ValueError("the weights of the processes differ: their machines or versions do not compute alike")
        if ranks().writes:
            self.checkpoints.save(name, self.model, position, {**state, "facts": json.dumps(self.facts)})


@dataclass
class Training:
    """What trains in one phase; its state is what a checkpoint needs besides the model's."""

    method: Method
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"method": self.method, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return {**{name: part.state_dict() for name, part in parts.items()}, "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        self.method.load_state_dict(state["method"], step)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.best = state["best"]


def train_phase(
    stage: Stage,
    name: str,
    phase: Phase,
    teacher: nn.Module | None,
    position: Position,
    resumed: Mapping[str, Any] | None = None,
    final: bool = True,
) -> Position:
    """Train the stage's model through one phase, and give the position after it.

    The `final` phase of a recipe leaves every compressed weight in its set; another leaves them to the next one.

    `position` is where the phase starts or goes on; `resumed` is the state of the checkpoint that was taken there.
    The model that leaves the phase is the last, not the one that scored best on the holdout: a checkpoint keeps that.

    Raises:
        ValueError: the loss, a weight or a state is not finite; the data do not fill a batch.
    """
    settings, accelerator, task = stage.settings, stage.accelerator, stage.task
    length = phase.length(stage.steps_per_epoch())
    clock = _Clock(position)
    given = partial(_calibration, stage, phase.objective, teacher)
    training = training_of(stage, name, phase, length, given if position.step == 0 else None)
    if resumed is not None:
        if position.step:
            training.load_state_dict(resumed, position.step)
        restore_rng(resumed["rng"])
    method, optimizer = training.method, accelerator.prepare_optimizer(training.optimizer)
    trained = [p for group in training.optimizer.param_groups for p in group["params"]]
    batches = _batches(stage, position)
    model: Any = torch.compile(stage.wrapped) if settings.compile else stage.wrapped
    training_mode(stage.model, phase.dropout)
    took: list[float] = []
    stage.model.zero_grad()  # the phase before may have trained only a part, and left gradients on the rest
    with stage.display.work(name, length.steps, position.step) as work:
        progress = Progress(stage.display, work)
        for step in range(position.step, length.steps):
            began = time.perf_counter()
            for _ in method.calibrate_again(step, given(step)) if step else ():
                pass
            method.before_step(step, ahead=not settings.compile)
            loss = 0.0
            for micro in range(settings.accumulation):
                place = stage.seed, position.phase, step, micro
                with accelerator.accumulate(stage.wrapped):
                    with ranks().drawing(place, accelerator.device), accelerator.autocast():
                        part = phase.objective.of(task, model, teacher, next(batches))
                    accelerator.backward(part)
                    loss += part.item() / settings.accumulation
                    if accelerator.sync_gradients:
                        ranks().add_gradients(trained)
                        method.before_clip()
                        if settings.clip is not None:
                            accelerator.clip_grad_norm_(trained, settings.clip)
                    optimizer.step()
                    optimizer.zero_grad()
            loss = sum(ranks().all(loss))
            due, last = partial(_due, step + 1), step + 1 == length.steps
            row: dict[str, float] = {
                "loss": loss,
                "lr": float(max(training.scheduler.get_last_lr())),
                **method.metrics(),
            }
            looked_at = last or due(settings.evaluate_every, settings.checkpoint_every)
            check_finite(name, step + 1, row, stage.model, training.state_dict, looked_at, stage.checkpoints)
            training.scheduler.step()
            took.append(time.perf_counter() - began)
            position = clock.tick(step + 1)
            if due(settings.evaluate_every) or last:
                with method.as_finished():
                    scores = stage.score("holdout")
                    score = scores[task.metric]
                    progress.score(task.metric, score)
                    if task.improves(score, training.best) and due(settings.evaluate_every):
                        training.best = score
                        stage.save("best", position, {})
                row |= {f"holdout/{key}": value for key, value in scores.items()} | method.metrics(layers=True)
            if due(settings.log_every) or due(settings.evaluate_every) or last:
                at = {"phase": name, "step": position.step, "total_step": position.total_step}
                stage.tracker.log({**at, "seconds": position.seconds, **row})
            progress.step(row)
            if due(settings.checkpoint_every) and not last:
                stage.save("latest", position, training.state_dict())
    moved = method.finalize() if final else method.hand_over()
    stage.facts["phases"][name] = {
        "method": type(method).__name__,
        "steps": length.steps,
        "seconds": clock.tick(position.step).phase_seconds,
        "step_seconds": sum(took) / len(took) if took else 0.0,  # of those that this process took, without evaluations
        "gap": moved.overall,
        "gaps": moved.layers,
    }
    return clock.tick(position.step).after_phase()


def training_of(
    stage: Stage, name: str, phase: Phase, length: Length, given: Callable[[int], Calibration] | None
) -> Training:
    """Attach the phase's method to the model, calibrate where something is given for it, and build what trains it."""
    method = phase.method
    method.attach(stage.model, length)
    if given is not None:
        work = method.calibrate(given(0))
        for _ in stage.display.tracked(work, f"{name}: layers", len(method.layers)):
            pass
    parts = shares(method, stage.facts["projection_error"]) if phase.relative else {}
    optimizer = method.optimizer(scaled(phase.optimizer(groups(method.parameters(), phase.weight_decay, parts))))
    return Training(method, optimizer, phase.scheduler(optimizer, length))


def _calibration(stage: Stage, objective: Objective, teacher: nn.Module | None, step: int) -> Calibration:
    """What a method may look at before optimizer step `step`.

    Every process is given the same batches; a method that sums over them shares them out.
    """

    @torch.no_grad()
    def forward(batch: Batch) -> None:
        with stage.accelerator.autocast():
            stage.model(**stage.task.inputs(batch))

    size, device = stage.settings.batch_size, stage.accelerator.device
    return Calibration(
        shuffled(stage.data["train"], size, stage.seed, step, device),
        forward,
        loss=partial(Objective().of, stage.task, stage.model, None),
        objective=partial(objective.of, stage.task, stage.model, teacher),
    )


def training_mode(model: nn.Module, dropout: bool) -> None:
    """Training mode; without dropout, for the compressed layers alone, and the quantizers of everything else, whose
    ranges are to follow the activations."""
    model.train(dropout)
    for module in (*distinct_layers(model).values(), *range_quantizers(model).values()):
        module.train()


def _batches(stage: Stage, position: Position) -> Iterator[dict[str, torch.Tensor]]:
    """Training batches of the phase from the position on; every phase shuffles in its own order."""
    settings, accelerator = stage.settings, stage.accelerator
    return shuffled(
        stage.data["train"],
        settings.batch_size,
        seed=stage.seed * 1009 + position.phase,
        start=position.step * settings.accumulation,
        device=accelerator.device,
        grouped=settings.group_by_length,
        share=ranks().rows(settings.batch_size),
    )


class _Clock:
    """Counts steps and seconds on from a position."""

    def __init__(self, position: Position) -> None:
        self.position, self.began = position, time.perf_counter()

    def tick(self, step: int) -> Position:
        """The position after optimizer step `step` of the phase."""
        first, elapsed = self.position, time.perf_counter() - self.began
        return replace(
            first,
            step=step,
            total_step=first.total_step + step - first.step,
            seconds=first.seconds + elapsed,
            phase_seconds=first.phase_seconds + elapsed,
        )


def _due(step: int, *every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return any(each > 0 and step % each == 0 for each in every)
