"""Compressed layers that have the factors of their weight in its place, as a packed model is read."""

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nxmiformer.layers.compressed import Compressed, become
from nxmiformer.layers.embedding import CompressedEmbedding, shares, sharing
from nxmiformer.layers.found import distinct_layers
from nxmiformer.layers.kronecker import Factors
from nxmiformer.layers.linear import CompressedLinear
from nxmiformer.layers.wrapped import unwrapped
from nxmiformer.sets import Products
from nxmiformer.sets.products import kron


class FactoredWeight(Factors):
    """The factors of a weight (out, in), to train as they are.

    It is not a tensor: a function of torch that is given it, by code that reads the weight without the layer's forward
    pass, gets the weight that they make. So does a state dict, as from a layer with a dense weight.
    """

    def __init__(self, points: Products, left: Tensor, right: Tensor, transposed: bool = False) -> None:
        super().__init__(left, right)
        self.points, self.transposed = points, transposed
        self._is_hf_initialized = True  # `transformers` draws no values for it

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], _: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch with the weight in the place of the factors."""

        def made(each: Any) -> Any:
            if not isinstance(each, FactoredWeight):
                return each
            weight = kron(each.left, each.right)
            return weight.t() if each.transposed else weight

        return function(*map(made, args), **{name: made(each) for name, each in (kwargs or {}).items()})

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the layer's weight, which some models of `transformers` read when they are built."""
        (_, m1, n1), (_, m2, n2) = self.left.shape, self.right.shape
        return (n1 * n2, m1 * m2) if self.transposed else (m1 * m2, n1 * n2)

    @property
    def device(self) -> torch.device:
        """Of the factors."""
        return self.left.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the factors."""
        return self.left.dtype

    def dense(self) -> Tensor:
        """The weight as the layer stores it, detached."""
        return self.weight().t().contiguous() if self.transposed else self.weight()

    @torch.no_grad()
    def take(self, weight: Tensor) -> None:
        """Be the factors of the point nearest to a weight (out, in)."""
        found = self.points.factors(self.points.project(weight))
        assert found is not None
        self.left.copy_(found[0])
        self.right.copy_(found[1])

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Nothing: the layer saves the weight."""

    def _load_from_state_dict(self, *_: Any) -> None:
        """Nothing: the layer loads the weight."""


class Factored(Compressed):
    """What the two kinds of layers have in common."""

    weight: FactoredWeight  # type: ignore[assignment]
    dense: type[Compressed]

    @property
    def matrix(self) -> Tensor:
        """The weight as (out_features, in_features), detached, multiplied out at each call."""
        return self.weight.weight()

    @property
    def stored(self) -> Sequence[Tensor]:
        return (self.weight.left, self.weight.right)

    def take(self, point: Tensor) -> None:
        self.weight.take(point)

    def release(self) -> nn.Module:
        """A plain layer with the weight."""
        become(self, self.dense, nn.Parameter(self.weight.dense()))
        return self.release()

    def _save_to_state_dict(self, destination: MutableMapping[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight.dense()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        rest = dict(state_dict)
        weight = rest.pop(f"{prefix}weight", None)
        if weight is None:
            missing_keys.append(f"{prefix}weight")
        elif weight.shape != self.weight.shape:
            error_msgs.append(f"{prefix}weight is {tuple(weight.shape)}, and the layer's {self.weight.shape}")
        else:
            self._load(weight.to(self.weight.device, self.weight.dtype), prefix, error_msgs)
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def _load(self, weight: Tensor, prefix: str, error_msgs: list[str]) -> None:
        """Take a weight as the layer stores it; that of its own factors leaves them as they are."""
        if torch.equal(weight, self.weight.dense()):
            return
        matrix = weight.t() if self.weight.transposed else weight
        if not self.weight.points.contains(matrix):
            error_msgs.append(f"{prefix}weight is not a point of {self.weight.points}, whose factors the layer has")
            return
        self.take(matrix)


class FactoredLinear(Factored, CompressedLinear):  # type: ignore[misc]
    """A compressed linear layer that multiplies by the factors of its weight."""

    dense = CompressedLinear

    def compute(self, x: Tensor) -> Tensor:
        return self.weight.multiply(x if self.inputs is None else self.inputs(x), self.bias)


class FactoredEmbedding(Factored, CompressedEmbedding):  # type: ignore[misc]
    """A compressed embedding that multiplies the factors of the rows that are looked up."""

    dense = CompressedEmbedding

    def compute(self, ids: Tensor) -> Tensor:
        return self.weight.look_up(ids)


def put_factors(modules: Iterable[nn.Module], weight: FactoredWeight) -> bool:
    """Make the modules that share a weight compute with its factors, in place, if all of them can; say whether."""
    modules = list(modules)
    if not all(map(shares, modules)):
        return False
    for module in modules:
        layer = sharing(module, weight.points)
        become(layer, FactoredLinear if isinstance(layer, CompressedLinear) else FactoredEmbedding, weight)
    return True


@torch.no_grad()
def factor(model: nn.Module) -> None:
    """Make the layers of a model whose weights are Kronecker products compute as those of a packed model that
    is read, in place.

    Raises:
        ValueError: a weight is not a point of its set, or is that of a module too that cannot have factors; the layer
            is named.
    """
    sharers: dict[int, list[nn.Module]] = {}
    for module in unwrapped(model).modules():
        sharers.setdefault(id(module._parameters.get("weight")), []).append(module)
    for name, layer in distinct_layers(model).items():
        points = layer.quantizer.constraint
        if isinstance(points, Products) and not isinstance(layer, Factored):
            found = points.factors(layer.matrix)
            if found is None:
                raise ValueError(f"{name}: its weight is not a point of {points}: project it first")
            if not put_factors(sharers[id(layer.weight)], FactoredWeight(points, *found, bool(layer.transposed))):
                raise ValueError(
                    f"{name}: its weight is that of another module too, which cannot have factors in its place"
                )


def unfactor(model: nn.Module) -> None:
    """Give every layer of a model that has factors the weight that they make, in place."""
    weights: dict[int, nn.Parameter] = {}
    for module in [each for each in unwrapped(model).modules() if isinstance(each, Factored)]:
        factors = module.weight
        if id(factors) not in weights:
            weights[id(factors)] = nn.Parameter(factors.dense(), factors.left.requires_grad)
        become(module, module.dense, weights[id(factors)])
