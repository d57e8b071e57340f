"""Try something on a model, and restore it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from nxmiformer.layers.found import distinct_layers


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Whatever the block does with the model, each module gets back its class, attributes and mode, and each tensor its
    values and gradient.

    Buffers and compressed weights are kept as copies, for the block may write to these; other parameters are not, and
    it must not.
    """
    modules = [(module, type(module), dict(vars(module))) for module in model.modules()]
    containers = [each for *_, kept in modules for each in kept.values() if isinstance(each, dict | set)]
    contents = [(each, each.copy()) for each in containers]  # parameters, buffers, children, hooks
    weights = [tensor for layer in distinct_layers(model).values() for tensor in layer.stored]
    copied = [*model.buffers(), *weights]
    values = [(tensor, tensor.detach().clone()) for tensor in copied]
    gradients = [(parameter, parameter.grad, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module, kind, kept in modules:
            module.__class__ = kind  # a compressed layer that was released is a plain one
            vars(module).clear()
            vars(module).update(kept)
        for container, content in contents:  # the same objects: the handle of a hook knows the one that it is in
            container.clear()
            container.update(content)
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        for parameter, gradient, trained in gradients:
            parameter.requires_grad_(trained).grad = gradient
