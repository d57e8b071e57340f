"""Training mode, evaluation mode, and whether activations are computed twice."""

from collections.abc import Iterator
from contextlib import contextmanager

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


def checkpointing(model: nn.Module) -> bool:
    """Whether a part of a model of `transformers` computes its activations again in the backward pass."""
    return any(vars(module).get("gradient_checkpointing") for module in model.modules())
