"""Compressed layers whose weights stay packed, and are unpacked when they are used: for evaluation only."""

from collections.abc import Callable, Mapping
from typing import NoReturn, Self

import torch
from torch import Tensor, nn

from nxmiformer.layers.compressed import Compressed, become
from nxmiformer.layers.embedding import CompressedEmbedding, shares, sharing
from nxmiformer.layers.linear import CompressedLinear
from nxmiformer.layers.memory import Memory
from nxmiformer.plan.compression import LayerSpec

PACKED = "the weights are packed: nxmiformer.applied.lazy.make_eager(model) unpacks them for good"


class PackedWeight(nn.Module):
    """The parts of a point of a set, as buffers. Calling it gives the weight of the layer in `dtype`.

    It is not a tensor, so code that reads a layer's weight directly, without its forward pass, fails.
    """

    def __init__(self, parts: Mapping[str, Tensor], spec: LayerSpec, stored: torch.dtype) -> None:
        super().__init__()
        for name, part in parts.items():
            self.register_buffer(name, part)
        self.spec, self.stored, self.dtype = spec, stored, stored

    @property
    def parts(self) -> dict[str, Tensor]:
        """The parts that `pack` made of the weight."""
        return dict(self.named_buffers())

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the layer's weight, which some models of `transformers` read when they are built."""
        rows, columns = self.spec.shape
        return (columns, rows) if self.spec.transposed else (rows, columns)

    @property
    def device(self) -> torch.device:
        """Of the parts, and of the weight: Marian's positions look, in every forward pass."""
        return next(self.buffers()).device

    def forward(self, memory: Memory | None = None) -> Tensor:
        """The weight, in `memory` where that is given: there, if it is to stay."""
        parts, dtype, device = self.parts, self.dtype, self.parts["values"].device
        out = memory.empty(self.shape, dtype) if memory else torch.empty(self.shape, dtype=dtype, device=device)
        if dtype == self.stored and not self.spec.transposed:
            return self.spec.weight.unpack_into(out, parts)
        weight = self.spec.weight.unpack(parts, self.spec.shape, self.stored)
        return out.copy_(weight.t() if self.spec.transposed else weight)

    def rows(self, numbers: Tensor) -> Tensor:
        """The rows (n, in_features) of the weight with these numbers (n,)."""
        return self.spec.weight.unpack_rows(self.parts, self.spec.shape, numbers, self.stored).to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move with the model to a device. A dtype is that of the unpacked weight; the parts keep theirs."""
        parts = self.parts
        like = fn(torch.empty(0, dtype=self.dtype, device=next(iter(parts.values())).device))
        for name, part in parts.items():
            setattr(self, name, part.to(like.device))
        self.dtype = like.dtype
        return self

    def extra_repr(self) -> str:
        return f"{self.spec}"


class Lazy(Compressed):
    """A compressed layer whose weight stays packed."""

    weight: PackedWeight  # type: ignore[assignment]
    transposed: bool

    @property
    def matrix(self) -> Tensor:
        """The weight as (out_features, in_features), unpacked again at each call."""
        weight: Tensor = self.weight()
        return weight.t() if self.transposed else weight

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """None: what is packed does not change."""
        return ()

    def train(self, mode: bool = True) -> Self:
        if mode:
            raise ValueError(
                "a model that unpacks its weights lazily is for evaluation: read it without lazy to train it"
            )
        return super().train(mode)

    def release(self) -> NoReturn:
        """Raise a ValueError: a plain layer has no weight to unpack."""
        raise ValueError(PACKED)


class LazyLinear(Lazy, CompressedLinear):  # type: ignore[misc]  # whose weight is a tensor
    """One that unpacks its weight in every forward pass."""


class LazyEmbedding(Lazy, CompressedEmbedding):  # type: ignore[misc]
    """One that unpacks the rows that are looked up."""

    def compute(self, ids: Tensor) -> Tensor:
        return self.weight.rows(ids.flatten()).view(*ids.shape, self.embedding_dim)


def lazy_layers(model: nn.Module) -> dict[str, Lazy]:
    """The layers whose weights are packed, by module name, aliases included."""
    named = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in named if isinstance(module, Lazy)}


def make_lazy(model: nn.Module, name: str, weight: PackedWeight) -> None:
    """Make the layer `name` unpack this weight when it is used, in place."""
    layer = model.get_submodule(name)
    if not shares(layer):
        raise ValueError(f"{name} is a {type(layer).__name__} with a packed weight, and cannot unpack it lazily")
    layer = sharing(layer, weight.spec.weight)
    become(layer, LazyLinear if isinstance(layer, CompressedLinear) else LazyEmbedding, weight)
    layer.eval()


def make_eager(model: nn.Module) -> None:
    """Unpack every weight permanently, in place."""
    weights: dict[int, nn.Parameter] = {}
    for layer in lazy_layers(model).values():
        packed = layer.weight
        if isinstance(packed, PackedWeight):  # the layer has one name, or this is the first of them
            if id(packed) not in weights:
                weights[id(packed)] = nn.Parameter(packed())
            kind = CompressedLinear if isinstance(layer, LazyLinear) else CompressedEmbedding
            become(layer, kind, weights[id(packed)])
            layer.eval()
