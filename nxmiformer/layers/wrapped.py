"""Models inside a wrapper, or with adapters."""

import sys
from collections.abc import Iterable, Mapping
from typing import TypeVar

from accelerate.utils import extract_model_from_parallel
from torch import nn

T = TypeVar("T")
PREFIXES = ("module.", "_orig_mod.", "base_model.model.")  # of names in a wrapper


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of `torch.compile`, (Distributed)DataParallel, DeepSpeed or peft, whose names a plan has."""
    inner: nn.Module = extract_model_from_parallel(model, keep_torch_compile=False)
    peft = sys.modules.get("peft")  # without it, nothing can be of it
    if peft is not None and isinstance(inner, peft.PeftModel):
        inner = inner.get_base_model()
    return inner if inner is model else unwrapped(inner)


def unwrapped_names(named: Mapping[str, T], wanted: Iterable[str]) -> Mapping[str, T]:
    """`named` by the names inside of a wrapper, as far as it takes for the `wanted` ones to be among them."""
    if set(wanted) <= named.keys():
        return named
    for prefix in PREFIXES:
        if named and all(name.startswith(prefix) for name in named):
            return unwrapped_names({name.removeprefix(prefix): each for name, each in named.items()}, wanted)
    return named


def adapted(model: nn.Module) -> list[str]:
    """The names of the layers that have adapters around them, as peft lays them: over a `base_layer`."""
    return [name for name, module in model.named_modules() if "base_layer" in dict(module.named_children())]


def refuse_adapters(model: nn.Module) -> None:
    """Raise a ValueError that names layers with adapters around them, if there are any: a packed model has none."""
    if around := adapted(model):
        raise ValueError(
            f"the model has adapters around {len(around)} layers, such as {around[0]}: compress it without them, and "
            f"attach them to the compressed model (merge_and_unload() and unload() of a peft model take them away)"
        )
