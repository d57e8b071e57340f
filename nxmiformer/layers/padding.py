"""Which tokens of the batch that a model is computing are real, for layers that are not told."""

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

IGNORED = -100  # as `transformers` has it: no target


class Padding:
    """The real tokens (batch, tokens) of what the model, or the part of it that computes, is given; None: all are.

    An encoder and a decoder have different ones, and each is told by the mask that it is called with. A decoder that is
    called without one, to learn a text of its own, is told by the targets of the whole model. A copy has none.
    """

    def __init__(self) -> None:
        self.real: Tensor | None = None
        self.written: Tensor | None = None
        self._before: list[tuple[Tensor | None, Tensor | None]] = []

    def enter(self, given: Mapping[str, Any], decoder: bool) -> None:
        """A model begins, which was given these arguments; `decoder`: it is that of an encoder and a decoder."""
        self._before.append((self.real, self.written))
        mask, labels = given.get("attention_mask"), given.get("labels")
        if isinstance(labels, Tensor) and labels.ndim == 2:
            self.written = labels != IGNORED
        if isinstance(mask, Tensor) and mask.ndim == 2:
            self.real = mask.bool()
        else:
            self.real = self.written if decoder else None

    def keys(self, sees: Tensor) -> Tensor:
        """Which keys (batch, keys) a real query sees: `sees` (batch, queries, keys) says which any does."""
        if self.real is not None and self.real.shape == sees.shape[:2]:
            sees = sees & self.real[..., None]
        return sees.any(1)

    def leave(self) -> None:
        """The model that began last is done."""
        self.real, self.written = self._before.pop()

    def __reduce__(self) -> tuple[Any, ...]:
        return Padding, ()


def watch(model: nn.Module, padding: Padding) -> None:
    """Tell `padding` of each mask that the model, or a model inside of it, is called with, until `unwatch`."""
    decoders = [each.get_decoder() for each in _models(model) if each.config.is_encoder_decoder]
    for module in _models(model):
        vars(module)["padding"] = padding
        begin = _begin_decoder if any(module is each for each in decoders) else _begin
        if any(each is not module for each in module.modules() if each in decoders):
            begin = _begin_both  # what is behind the decoder sees the decoder's text
        module.register_forward_pre_hook(begin, with_kwargs=True)
        module.register_forward_hook(_end, always_call=True)


def unwatch(model: nn.Module) -> None:
    """Take back what `watch` did."""
    for module in _models(model):
        if vars(module).pop("padding", None) is not None:
            drop(module, _begin, _begin_decoder, _begin_both, _end)


def drop(module: nn.Module, *hooks: Any) -> None:
    """Take hooks off a module, those of a copied one too: a handle knows but the one that it is of."""
    for kept in (module._forward_pre_hooks, module._forward_hooks):
        flags = (
            module._forward_pre_hooks_with_kwargs,
            module._forward_hooks_with_kwargs,
            module._forward_hooks_always_called,
        )
        for key in [key for key, hook in kept.items() if hook in hooks]:
            del kept[key]
            for each in flags:
                each.pop(key, None)


def _models(model: nn.Module) -> list[PreTrainedModel]:
    return [module for module in model.modules() if isinstance(module, PreTrainedModel)]


def _begin(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    module.padding.enter(_given(module, args, kwargs), decoder=False)


def _begin_decoder(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    module.padding.enter(_given(module, args, kwargs), decoder=True)


def _begin_both(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = _given(module, args, kwargs)
    written = {"attention_mask": given.get("decoder_attention_mask"), "labels": given.get("labels")}
    module.padding.enter(written, decoder=True)


def _end(module: Any, *_: Any) -> None:
    module.padding.leave()


def _given(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    kind: Any = type(module)
    return dict(zip(_names(kind), args, strict=False)) | kwargs


@cache
def _names(kind: Any) -> tuple[str, ...]:
    """What the arguments of a model's forward pass are called, in order."""
    return tuple(inspect.signature(kind.forward).parameters)[1:]
