"""Put a plan's compressed layers into a model, and take them out again."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nxmiformer.layers.compressed import PLAIN, Compressed, obstacle
from nxmiformer.layers.embedding import CompressedEmbedding
from nxmiformer.layers.everything import install, remove
from nxmiformer.layers.factored import Factored, unfactor
from nxmiformer.layers.found import compressed_layers
from nxmiformer.layers.inputs import Latest
from nxmiformer.layers.linear import CompressedLinear
from nxmiformer.layers.mode import evaluating
from nxmiformer.layers.precision import too_narrow
from nxmiformer.layers.weights import WeightQuantizer
from nxmiformer.layers.wrapped import unwrapped
from nxmiformer.plan.compression import CompressionPlan, LayerSpec


def convert(model: nn.Module, plan: CompressionPlan, example: Mapping[str, Any] | None = None) -> nn.Module:
    """Compress every layer of the plan in place. It stays the same module with the same parameters, in another class.
    If the plan says so, everything else that the model multiplies is quantized too.

    Args:
        model: the dense model.
        plan: a plan that `CompressionPlan.check` accepts for this model.
        example: keyword arguments of one forward pass. If given, the pass is run, and a converted layer that it does
            not call is an error. Some modules read a child's weight directly, and so skip what its forward does.

    Raises:
        ValueError: the plan does not fit, a layer is of a kind that cannot be compressed, or a forward pass with
            `example` does not call some layers (each is named). The model is then unchanged.

    Warns:
        UserWarning: 16-bit weights require gradients.
    """
    plan.check(model)
    specs = {module: spec for name, spec in plan.layers.items() for module in (name, *spec.aliases)}
    modules = {name: unwrapped(model).get_submodule(name) for name in specs}
    odd = [f"{name}: {reason}" for name, module in modules.items() if (reason := _obstacle(module, specs[name]))]
    if odd:
        raise ValueError("only plain linear layers and embeddings can be converted:\n  " + "\n  ".join(odd))
    narrow = too_narrow({name: modules[name].get_parameter("weight") for name in plan.layers})
    if narrow is not None:
        warnings.warn(narrow, stacklevel=2)
    latest = Latest()
    for name, spec in plan.layers.items():
        quantizer = WeightQuantizer(spec.weight)  # one for all modules that share the weight
        for module in {id(modules[each]): modules[each] for each in (name, *spec.aliases)}.values():
            kind = CompressedEmbedding if isinstance(module, nn.Embedding) else CompressedLinear
            kind.adopt(module, quantizer, spec.activations, latest)
    if plan.everything is not None:
        install(model, plan.everything)
    if example is not None:
        try:
            check_called(model, example)
        except Exception:
            strip(model)
            raise
    return model


def _obstacle(module: nn.Module, spec: LayerSpec) -> str | None:
    """Why the module cannot be converted as `spec` has it, or None."""
    if isinstance(module, Compressed) or not isinstance(module, PLAIN):
        return f"it is a {type(module).__name__}"
    if isinstance(module, nn.Embedding) and spec.activations is not None:
        return f"it is an embedding: its inputs are token ids, which cannot be quantized ({spec.activations})"
    if isinstance(module, nn.Embedding) and (reason := CompressedEmbedding.refuses(module, spec.weight)):
        return reason
    return obstacle(module)


def strip(model: nn.Module) -> nn.Module:
    """Turn every compressed layer back, in place, into what it was before `convert`. Its parameters stay as they
    are."""
    remove(model)
    unfactor(model)
    for layer in {id(layer): layer for layer in compressed_layers(model).values()}.values():
        layer.release()
    return model


@torch.no_grad()
def check_called(model: nn.Module, example: Mapping[str, Any]) -> None:
    """Run one forward pass, and raise a ValueError that names the compressed layers which it did not call."""
    layers = compressed_layers(model)
    called: set[str] = set()

    def recording(name: str, compute: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def record(x: Tensor) -> Tensor:
            called.add(name)
            return compute(x)

        return record

    # Not by hooks: with hooks in place, torch's own TransformerEncoderLayer leaves the path that goes past the layers.
    for name, layer in layers.items():
        layer.compute = recording(name, layer.compute)  # type: ignore[method-assign, assignment]
    try:
        with evaluating(model):
            model(**example)
    finally:
        for layer in layers.values():
            vars(layer).pop("compute", None)  # a layer may have two names
    missed = [name for name in layers if name not in called]
    if missed:
        raise ValueError(
            "these layers would be compressed but a forward pass does not call them (their weights are read "
            "directly); exclude them: " + ", ".join(missed)
        )


def verify(model: nn.Module, plan: CompressionPlan) -> None:
    """Raise a ValueError that names every layer whose weight is not a point of the plan's set."""
    outside = [
        f"{name}: not in {spec.weight}"
        for name, spec in plan.layers.items()
        if not spec.weight.contains(matrix(model, name, spec))
    ]
    if outside:
        raise ValueError("these weights are not points of their sets:\n  " + "\n  ".join(outside))


def matrix(model: nn.Module, name: str, spec: LayerSpec) -> Tensor:
    """The weight of layer `name` as (out_features, in_features), detached, whether the model is converted or not."""
    layer = unwrapped(model).get_submodule(name)
    if isinstance(layer, Factored):
        return layer.matrix
    weight = layer.get_parameter("weight").detach()
    return weight.t() if spec.transposed else weight
