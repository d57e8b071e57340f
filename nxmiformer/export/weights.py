"""The file of weights: the parts of each compressed one, and every other tensor as it is."""

from collections.abc import Container
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from nxmiformer.layers.convert import matrix
from nxmiformer.plan import CompressionPlan, LayerSpec

# What `pack` gives, and how it is called after the layer. The values, which are flat, have the name of the weight:
# whoever reads them as a dense one finds another shape, and an error, where he would have drawn what is not there.
PARTS = {"values": ".weight", "indices": ".weight_indices", "scales": ".weight_scales"}


def part_keys(name: str, stored: Container[str]) -> dict[str, str]:
    """The keys of layer `name` among those that are stored, by part."""
    return {part: name + end for part, end in PARTS.items() if name + end in stored}


def packed_parts(model: PreTrainedModel, plan: CompressionPlan) -> dict[str, Tensor]:
    """The parts of every compressed weight, by their keys."""
    parts: dict[str, Tensor] = {}
    for name, spec in plan.layers.items():
        weight = matrix(model, name, spec).cpu()
        parts |= {name + PARTS[part]: tensor for part, tensor in spec.weight.pack(weight).items()}
    return parts


def fill(model: PreTrainedModel, plan: CompressionPlan, file: Path) -> None:
    """Give a blank model the tensors of the file, which fit it, on the device that torch takes for new ones.

    Raises:
        ValueError: the parts of a layer are not those of a point of its set; the layer is named.
    """
    rest, shared = rest_of(model, plan)
    dtypes = {key: tensor.dtype for key, tensor in rest.items()}
    device = torch.get_default_device()
    with safe_open(file, framework="pt") as stored:
        keys = set(stored.keys())
        for name, spec in plan.layers.items():
            weight = unpacked(stored, keys, name, spec, model.dtype)
            put(model, f"{name}.weight", nn.Parameter(weight.to(device)))
        for key, dtype in dtypes.items():
            tensor = stored.get_tensor(key).to(device, dtype)
            put(model, key, nn.Parameter(tensor) if isinstance(rest[key], nn.Parameter) else tensor)
    for name, key in shared.items():
        put(model, name, model.get_parameter(key))
    # The rest is in no file: buffers that the model computes, as it does when `from_pretrained` makes it.
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    for name, buffer in list(model.named_non_persistent_buffers()):
        put(model, name, torch.empty_like(buffer, device=device))
    model.initialize_weights()


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Make `tensor` the parameter or the buffer that `model` has under this name."""
    module, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(module), attribute, tensor)


def unpacked(stored: Any, keys: Container[str], name: str, spec: LayerSpec, dtype: torch.dtype) -> Tensor:
    """The weight of layer `name` as its module has it, from an open file, which has these keys.

    Raises:
        ValueError: its parts are not those of a point of its set; the layer is named.
    """
    parts = {part: stored.get_tensor(key) for part, key in part_keys(name, keys).items()}
    try:
        weight = spec.weight.unpack(parts, spec.shape, dtype)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return weight.t().contiguous() if spec.transposed else weight


def rest_of(model: PreTrainedModel, plan: CompressionPlan) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor of the model that is not packed; and, of a parameter with several names, which others have which."""
    state = {k: v for k, v in model.state_dict(keep_vars=True).items() if not k.endswith(".quantizer.scales")}
    packed = {f"{name}.weight" for name in plan.layers}
    first = {id(state[key]): key for key in packed}
    shared: dict[str, str] = {}
    for key, tensor in state.items():
        if isinstance(tensor, nn.Parameter) and first.setdefault(id(tensor), key) != key:
            shared[key] = first[id(tensor)]
    return {key: tensor for key, tensor in state.items() if key not in packed and key not in shared}, shared
