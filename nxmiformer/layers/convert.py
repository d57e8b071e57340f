"""Put compressed layers into a model, and take them out again."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nxmiformer.layers.compressed import PLAIN, Compressed, obstacle, own_forwards
from nxmiformer.layers.embedding import CompressedEmbedding
from nxmiformer.layers.linear import CompressedLinear
from nxmiformer.layers.mode import evaluating
from nxmiformer.layers.precision import too_narrow
from nxmiformer.layers.quantizers import WeightQuantizer
from nxmiformer.layers.wrapped import unwrapped
from nxmiformer.plan.compression import CompressionPlan, LayerSpec


def convert(model: nn.Module, plan: CompressionPlan, example: Mapping[str, Any] | None = None) -> nn.Module:
    """Compress, in place, every layer of the plan: it stays the same module with the same parameters, in another class.

    Args:
        model: the dense model.
        plan: as `CompressionPlan.check` accepts it for this model.
        example: keyword arguments of one forward pass. Given, it is run, and a converted layer that the pass does not
            call is an error: some modules read a child's weight directly, past anything that its forward would do.

    Raises:
        ValueError: the plan does not fit, or names a layer that cannot be compressed as what it is, or, with
            `example`, a forward pass does not call layers (each is named); the model is as it was then.

    Warns:
        UserWarning: weights of 16 bits want gradients.
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
    for name, spec in plan.layers.items():
        quantizer = WeightQuantizer(spec.weight)  # one for all modules that share the weight
        for module in {id(modules[each]): modules[each] for each in (name, *spec.aliases)}.values():
            kind = CompressedEmbedding if isinstance(module, nn.Embedding) else CompressedLinear
            kind.adopt(module, quantizer, spec.activations)
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
        return f"it is an embedding, whose inputs are no activations to quantize ({spec.activations})"
    if isinstance(module, nn.Embedding) and (reason := CompressedEmbedding.refuses(module, spec.weight)):
        return reason
    return obstacle(module)


def strip(model: nn.Module) -> nn.Module:
    """Make, in place, every compressed layer what it was before `convert`, with its parameters as they stand."""
    for layer in {id(layer): layer for layer in compressed_layers(model).values()}.values():
        layer.release()
    return model


def compressed_layers(model: nn.Module) -> dict[str, Compressed]:
    """The compressed layers by module name, aliases included, in the model's order."""
    named = unwrapped(model).named_modules(remove_duplicate=False)
    return {name: module for name, module in named if isinstance(module, Compressed)}


def distinct_layers(model: nn.Module) -> dict[str, Compressed]:
    """The compressed layers by module name, one for each weight."""
    first: dict[int, str] = {}
    layers = compressed_layers(model)
    for name, layer in layers.items():
        first.setdefault(id(layer.weight), name)
    return {name: layers[name] for name in first.values()}


def linear_layers(model: nn.Module) -> dict[str, CompressedLinear]:
    """Those of `distinct_layers` that multiply by their weight."""
    return {name: layer for name, layer in distinct_layers(model).items() if isinstance(layer, CompressedLinear)}


def foreign(model: nn.Module) -> Iterator[str]:
    """The compressed layers that compute more than a linear layer or an embedding does, a line each."""
    for name, layer in compressed_layers(model).items():
        if own_forwards(layer.plain):
            yield f"{name}: it is a {layer.plain.__name__}, whose own forward is not carried over"


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


@contextmanager
def projected(model: nn.Module) -> Iterator[None]:
    """The model as if training ended now: every compressed weight is projected, and put back afterwards."""
    layers = list(distinct_layers(model).values())
    kept = [(layer.weight.detach().clone(), layer.quantizer.seen) for layer in layers]
    try:
        project(model)
        yield
    finally:
        with torch.no_grad():
            for layer, (weight, seen) in zip(layers, kept, strict=True):
                layer.weight.copy_(weight)
                layer.quantizer.seen = seen


class Moved(NamedTuple):
    """How far a projection moved weights: ||W - P(W)|| / ||W||, of each layer and of all of them together."""

    layers: dict[str, float]
    overall: float


@torch.no_grad()
def project(model: nn.Module, nearest: Callable[[WeightQuantizer, Tensor], Tensor] = WeightQuantizer.project) -> Moved:
    """Move every compressed weight, in place, to the nearest point of its set; a frozen support stays.

    `nearest` gives that point, or another that the weight is to move to, for a layer's quantizer and its weight.

    The forward pass then sees the weights themselves, which is the same and costs nothing.

    Raises:
        ValueError: a weight is not finite; the layer is named.
    """
    squares = {}
    for name, layer in distinct_layers(model).items():
        weight = layer.matrix
        try:
            point = nearest(layer.quantizer, weight)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        pair = torch.stack([(weight - point).float().square().sum(), weight.float().square().sum()])
        squares[name] = pair.double().cpu()  # where those of other layers are, which may be on other devices
        weight.copy_(point)
        layer.quantizer.seen = None
    total = sum(squares.values(), torch.zeros(2, dtype=torch.float64, device="cpu"))
    return Moved({name: _ratio(pair) for name, pair in squares.items()}, _ratio(total))


def _ratio(pair: Tensor) -> float:
    moved, norm = pair.tolist()
    return float((moved / norm) ** 0.5) if norm else 0.0


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
    weight = unwrapped(model).get_parameter(f"{name}.weight").detach()
    return weight.t() if spec.transposed else weight
