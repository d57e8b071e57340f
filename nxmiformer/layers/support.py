"""The supports that a sparse checkpoint stores beside its weights, and that a model read from it keeps.

The zeros do not determine them: a weight that is not pruned may be zero by chance.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from nxmiformer.layers.compressed import PLAIN
from nxmiformer.layers.targets import is_transposed
from nxmiformer.sets.bits import pack_bits, unpack_bits

SUPPORTS = "support.safetensors"  # beside the weights: a bit for each weight of (out, in), by the layer's name


def write_supports(masks: Mapping[str, Tensor], directory: Path) -> None:
    """Write the supports (bool, (out, in)) of layers by name."""
    packed = {name: pack_bits(mask.flatten(), 1).cpu() for name, mask in masks.items()}
    save_file(packed, directory / SUPPORTS, metadata={"format": "pt"})


def take_supports(model: PreTrainedModel, directory: Path) -> None:
    """Give the model's layers the supports that are stored in a directory, if there are any.

    They are found under another head too. Those of layers that the model does not have are ignored.

    Raises:
        ValueError: the file is damaged, or a support is not of its layer's size; each is named with it.
    """
    file = directory / SUPPORTS
    if not file.is_file():
        return
    modules, prefix = dict(model.named_modules()), f"{model.base_model_prefix}."
    try:
        with safe_open(file, framework="pt") as stored:
            for key in stored.keys():  # noqa: SIM118 (it is no mapping)
                bare = key.removeprefix(prefix)
                module = modules.get(key, modules.get(bare, modules.get(prefix + bare)))
                if isinstance(module, PLAIN):
                    module.register_buffer("support", _mask(key, module, stored.get_tensor(key)), persistent=False)
    except Exception as error:
        raise ValueError(f"{file} does not hold the supports of {directory}: {error}") from error


def support_of(layer: nn.Module) -> Tensor | None:
    """The support (bool, (out, in)) that the layer's checkpoint stored, if it did."""
    return dict(layer.named_buffers(recurse=False)).get("support")


def _mask(name: str, module: nn.Module, packed: Tensor) -> Tensor:
    rows, columns = module.get_parameter("weight").shape
    shape = (columns, rows) if is_transposed(module) else (rows, columns)
    try:
        return unpack_bits(packed, 1, rows * columns).to(torch.bool).view(shape)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
