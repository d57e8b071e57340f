"""Training mode, evaluation mode, and whether activations are computed twice."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def recomputing() -> bool:
    """Whether a backward pass is running. What is computed in one was computed in the forward pass and not kept, to
    save memory (gradient checkpointing, in both of torch's variants). It must see what it saw then."""
    return not torch.compiler.is_compiling() and bool(torch._C._current_graph_task_id() != -1)


def checkpointing(model: nn.Module) -> bool:
    """Whether a part of a model of `transformers` computes its activations again in the backward pass."""
    return any(vars(module).get("gradient_checkpointing") for module in model.modules())
