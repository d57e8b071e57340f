"""Score a model on a split."""

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from nxmiformer.layers.mode import evaluating
from nxmiformer.tasks.batches import Examples, sorted_batches
from nxmiformer.tasks.task import Task


@torch.no_grad()
def predict(model: nn.Module, examples: Examples, size: int, accelerator: Accelerator) -> np.ndarray:
    """Logits (examples, outputs), float32, in the examples' order."""
    rows: list[torch.Tensor] = []
    order: list[int] = []
    with evaluating(model):
        for indices in sorted_batches(examples, size):
            batch = examples.batch(indices, accelerator.device)
            del batch["labels"]
            with accelerator.autocast():
                rows.append(model(**batch).logits.float().cpu())
            order += indices
    logits = torch.empty_like(torch.cat(rows))
    logits[order] = torch.cat(rows)
    return logits.numpy()


def evaluate(model: nn.Module, task: Task, examples: Examples, size: int, accelerator: Accelerator) -> dict[str, float]:
    """The task's metrics on the examples."""
    return task.score(predict(model, examples, size, accelerator), examples.labels.numpy())
