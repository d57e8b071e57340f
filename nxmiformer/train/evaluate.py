"""Score a model on a split."""

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from nxmiformer.console.display import SILENT, Display
from nxmiformer.layers.mode import evaluating
from nxmiformer.tasks.batches import Examples, sorted_batches
from nxmiformer.tasks.task import Task


@torch.no_grad()
def predict(
    model: nn.Module,
    examples: Examples,
    size: int,
    accelerator: Accelerator,
    display: Display = SILENT,
    name: str = "evaluation",
) -> np.ndarray:
    """Logits (examples, outputs), float32, in the examples' order."""

    def forward(indices: list[int]) -> torch.Tensor:
        batch = examples.batch(indices, accelerator.device)
        del batch["labels"]
        with accelerator.autocast():
            logits: torch.Tensor = model(**batch).logits
        return logits.float().cpu()

    order = sorted_batches(examples, size)
    with evaluating(model):
        rows = torch.cat(list(display.tracked(map(forward, order), name, len(order), brief=True)))
    logits = torch.empty_like(rows)
    logits[[index for indices in order for index in indices]] = rows
    return logits.numpy()


def evaluate(
    model: nn.Module,
    task: Task,
    examples: Examples,
    size: int,
    accelerator: Accelerator,
    display: Display = SILENT,
    name: str = "evaluation",
) -> dict[str, float]:
    """The task's metrics on the examples."""
    return task.score(predict(model, examples, size, accelerator, display, name), examples.labels.numpy())
