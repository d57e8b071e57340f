"""A model with only some of its layers."""

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from nxmiformer.layers.support import support_of


def shallow(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A model of the same kind whose layers are those of `model` with the numbers `kept`, in this order, and whose
    other weights are the model's: "direct" layer dropping (Kurtic et al. 2022, arXiv 2203.07259, section 4.3).

    Raises:
        ValueError: a number is not one of a layer, or does not rise; the model is not one stack of layers; or a layer
            would be of another kind in its new place.
    """
    depth = _depth(model.config)
    if not kept or sorted(set(kept)) != list(kept) or not 0 <= kept[0] <= kept[-1] < depth:
        raise ValueError(f"layers are numbers from 0 to {depth - 1} that rise, not {list(kept)}")
    stack = _stack(model, depth)
    if any(support_of(module) is not None for module in model.modules()):
        raise ValueError("the checkpoint stores supports of all layers, which are for the whole model")
    config = copy.deepcopy(model.config)
    kinds = getattr(config, "layer_types", None)  # which decoders with several kinds of attention have
    if kinds is not None:
        config.layer_types = [kinds[number] for number in kept]
    config.num_hidden_layers = len(kept)
    smaller = type(model)(config).to(model.dtype)  # type: ignore[arg-type]
    for new, old in enumerate(kept):
        pair = (each.get_submodule(f"{stack}.{number}") for each, number in ((smaller, new), (model, old)))
        if len({str(_kinds(layer)) for layer in pair}) > 1:
            raise ValueError(f"layer {old} of a {type(model).__name__} is of another kind than layer {new} would be")
    smaller.load_state_dict(
        {f"{stack}.{new}{rest}": value for new, old in enumerate(kept) for rest, value in _of(model, f"{stack}.{old}")}
        | {name: value for name, value in model.state_dict().items() if not name.startswith(f"{stack}.")}
    )
    return smaller.train(model.training)


def _kinds(layer: nn.Module) -> list[Any]:
    """What the modules of a layer are and how they compute, but for the layer's number and its mode."""
    own = ("training", "layer_idx", "layer_id")
    return [
        (name, type(each), [*each._parameters], {k: v for k, v in vars(each).items() if _plain(v) and k not in own})
        for name, each in layer.named_modules()
    ]


def _plain(value: object) -> bool:
    return isinstance(value, int | float | str | bool)


def _of(model: nn.Module, layer: str) -> list[tuple[str, object]]:
    """The tensors of a layer, by what comes after its name."""
    weights = model.state_dict()
    return [(name.removeprefix(layer), each) for name, each in weights.items() if name.startswith(f"{layer}.")]


def _depth(config: PretrainedConfig) -> int:
    if config.is_encoder_decoder:
        raise ValueError("the layers of an encoder and a decoder are two stacks: which one is meant cannot be told")
    return int(config.num_hidden_layers)


def _stack(model: PreTrainedModel, depth: int) -> str:
    """The name of the list of all layers."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    found = [name for name in lists if len(model.get_submodule(name)) == depth]  # type: ignore[arg-type]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(found)} lists of {depth} modules, so which are its layers cannot be told"
        )
    return found[0]
