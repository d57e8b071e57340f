"""Score a model on a split."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from nxmiformer.console.display import SILENT, Display
from nxmiformer.layers.mode import evaluating
from nxmiformer.ranks import ranks
from nxmiformer.tasks.batches import Examples, sorted_batches
from nxmiformer.tasks.task import Task
from nxmiformer.tasks.units import Outputs, Units

Forward = Callable[[Mapping[str, Tensor]], Outputs]  # a batch's inputs by name -> the model's outputs by name
Look = tuple[list[int], dict[str, Tensor], Units]  # numbers of examples, their batch, and the units of its outputs


def looks(
    forward: Forward,
    task: Task,
    examples: Examples,
    size: int,
    device: torch.device | str,
    share: Callable[[list[list[int]]], Iterable[list[int]]] = list,
) -> Iterator[Look]:
    """Every example once, in batches of like length, without gradients; of the batches those that `share` takes."""
    for indices in share(sorted_batches(examples, size)):
        batch = examples.batch(indices, device)
        with torch.no_grad():
            units = task.units(forward(task.inputs(batch)), batch)
        yield indices, batch, units


def forward_of(model: PreTrainedModel, accelerator: Accelerator) -> Forward:
    """The model as it runs on the accelerator."""

    def forward(inputs: Mapping[str, Tensor]) -> Outputs:
        with accelerator.autocast():
            outputs: Outputs = model(**inputs)
            return outputs

    return forward


class Answers:
    """The answers of all examples, added batch by batch.

    Args:
        model: the model that gives them; None if there are only its outputs. See `Task.answers`.
    """

    def __init__(self, task: Task, examples: Examples, model: PreTrainedModel | None = None) -> None:
        self.task, self.examples, self.model = task, examples, model
        self._found: dict[int, Any] = {}

    @torch.no_grad()
    def add(self, look: Look) -> None:
        """Take in the answers to a batch."""
        indices, batch, units = look
        self._found.update(zip(indices, self.task.answers(units, batch, self.model), strict=True))

    def share(self) -> None:
        """Take in the answers of all ranks, each of which has looked at other batches."""
        for found in ranks().all(self._found):
            self._found.update(found)

    @property
    def all(self) -> list[Any]:
        """Of all examples, in their order."""
        return [self._found[index] for index in range(len(self.examples))]

    def score(self) -> dict[str, float]:
        """The task's metrics, of all examples."""
        return self.task.score(self.all, self.examples.truths)


def side_by_side(
    forwards: Sequence[Forward],
    answers: Sequence[Answers],
    size: int,
    device: torch.device | str,
    display: Display = SILENT,
    name: str = "evaluation",
) -> Iterator[tuple[Look, ...]]:
    """What each of several models computes of a batch, and then the next one; the answers of each are taken in."""
    task, examples = answers[0].task, answers[0].examples
    seen = zip(*(looks(each, task, examples, size, device) for each in forwards), strict=True)
    for together in display.tracked(seen, name, -(-len(examples) // size), brief=True):
        yield together
        for each, look in zip(answers, together, strict=True):
            each.add(look)


def evaluate(
    model: PreTrainedModel,
    task: Task,
    examples: Examples,
    size: int,
    accelerator: Accelerator,
    display: Display = SILENT,
    name: str = "evaluation",
) -> dict[str, float]:
    """The task's metrics on the examples; several processes share them out."""
    answers = Answers(task, examples, model)
    with evaluating(model), accelerator.autocast():  # what a model writes, too
        seen = looks(forward_of(model, accelerator), task, examples, size, accelerator.device, ranks().mine)
        for look in display.tracked(seen, name, len(range(0, len(examples), size * ranks().count)), brief=True):
            answers.add(look)
    answers.share()
    return answers.score()
