"""The file of weights: the parts of each compressed weight, and all other tensors unchanged."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from nxmiformer.applied.convert import matrix
from nxmiformer.applied.lazy import PackedWeight, make_lazy
from nxmiformer.layers.factored import FactoredWeight, put_factors
from nxmiformer.layers.memory import Memory
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import Products

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


def fill(model: PreTrainedModel, plan: CompressionPlan, file: Path, lazy: bool = False) -> None:
    """Give a blank model the tensors of the file, which fit it, on the device that torch takes for new ones.

    Raises:
        ValueError: the parts of a layer are not those of a point of its set; the layer is named.
    """
    rest, shared = rest_of(model, plan)
    device = torch.get_default_device()
    with safe_open(file, framework="pt") as stored:
        for key, blank in rest.items():
            tensor = stored.get_tensor(key).to(device, blank.dtype)
            put(model, key, nn.Parameter(tensor) if isinstance(blank, nn.Parameter) else tensor)
        fill_layers(model, plan, shared, stored, model.dtype, device, lazy)
    # The rest is in no file: buffers that the model computes, as it does when `from_pretrained` makes it.
    computed = dict(model.named_non_persistent_buffers())
    tensors: list[tuple[str, Any]] = [*model.named_parameters(), *model.named_buffers()]
    for name, known in tensors:
        if name not in computed:
            known._is_hf_initialized = True
    for name, buffer in computed.items():
        put(model, name, torch.empty_like(buffer, device=device))
    model.initialize_weights()


def fill_layers(
    model: PreTrainedModel,
    plan: CompressionPlan,
    shared: Mapping[str, str],
    stored: Any,
    dtype: torch.dtype,
    device: torch.device,
    lazy: bool = False,
) -> None:
    """Give the compressed layers of a model their weights from an open file, and `shared` names the tensors they share.

    Args:
        dtype: of the model that was saved; the weights are cast to the model's own.
        lazy: whether the weights stay packed, and nothing of the model is to be trained.

    Raises:
        ValueError: as `fill`.
    """
    keys, memory = set(stored.keys()), Memory(device)
    tied: dict[str, list[str]] = {f"{name}.weight": [] for name in plan.layers}
    for name, key in shared.items():
        tied.setdefault(key, []).append(name)
    for name, spec in plan.layers.items():
        parts = {part: stored.get_tensor(key) for part, key in part_keys(name, keys).items()}
        packed = PackedWeight(parts, spec, dtype).to(device, model.dtype)
        names = [f"{name}.weight", *tied.pop(f"{name}.weight")]
        if isinstance(spec.weight, Products) and _factored(model, names, packed):
            continue
        if lazy:
            for each in names:
                make_lazy(model, each.removesuffix(".weight"), packed)
            continue
        try:
            weight = nn.Parameter(packed(memory))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        for each in names:
            put(model, each, weight)
    for key, others in tied.items():
        for each in others:
            put(model, each, model.get_parameter(key))
    if lazy:
        model.requires_grad_(False)


def _factored(model: PreTrainedModel, names: Sequence[str], packed: PackedWeight) -> bool:
    """Give the layers that share a weight, by the weight's `names`, its factors, lazy or not: these are what is
    packed. Say whether the layers can compute with them."""
    points, spec = packed.spec.weight, packed.spec
    assert isinstance(points, Products)
    try:
        factors = points.unpack_factors(packed.parts, spec.shape, packed.stored)
    except ValueError as error:
        raise ValueError(f"{names[0].removesuffix('.weight')}: {error}") from error
    left, right = (factor.to(packed.dtype, copy=True) for factor in factors)  # of their own memory, not of one part's
    modules = (model.get_submodule(name.removesuffix(".weight")) for name in names)
    return put_factors(modules, FactoredWeight(points, left, right, spec.transposed))


class Below:
    """Of an open file of weights those below a name, under what follows it."""

    def __init__(self, stored: Any, name: str) -> None:
        self._stored, self._start = stored, f"{name}."

    def keys(self) -> list[str]:
        return [key.removeprefix(self._start) for key in self._stored.keys() if key.startswith(self._start)]  # noqa: SIM118

    def get_tensor(self, key: str) -> Tensor:
        tensor: Tensor = self._stored.get_tensor(self._start + key)
        return tensor


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Make `tensor` the parameter or the buffer that `model` has under this name."""
    module, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(module), attribute, tensor)


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
