"""Compressed layers whose weights stay packed, and are unpacked when they are used: for evaluation only."""

from collections.abc import Callable, Mapping
from typing import NoReturn, Self, TypeVar

import torch
from torch import Tensor, nn

from nxmiformer.layers.embedding import CompressedEmbedding
from nxmiformer.layers.linear import CompressedLinear
from nxmiformer.layers.memory import Memory
from nxmiformer.layers.quantizers import WeightQuantizer
from nxmiformer.plan.compression import LayerSpec

LINEAR = ("transposed", "in_features", "out_features", "bias", "quantizer", "inputs")
EMBEDDING = ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
PACKED = "the weights are packed: nxmiformer.layers.lazy.make_eager(model) unpacks them for good"
Layer = TypeVar("Layer", bound=nn.Module)


class PackedWeight(nn.Module):
    """The parts of a point of a set, as buffers; called, the weight, as its layer has it, in `dtype`.

    It is no tensor, so that code which reads a layer's weight past its forward pass fails, and does not compute with
    what it finds.
    """

    def __init__(self, parts: Mapping[str, Tensor], spec: LayerSpec, stored: torch.dtype) -> None:
        super().__init__()
        for name, part in parts.items():
            self.register_buffer(name, part)
        self.spec, self.stored, self.dtype = spec, stored, stored

    @property
    def parts(self) -> dict[str, Tensor]:
        """What `pack` made of the weight."""
        return dict(self.named_buffers())

    def forward(self, memory: Memory | None = None) -> Tensor:
        """The weight, in `memory` where that is given: there, if it is to stay."""
        parts, shape = self.parts, self.spec.shape
        like, dtype = shape[::-1] if self.spec.transposed else shape, self.dtype
        out = memory.empty(like, dtype) if memory else torch.empty(like, dtype=dtype, device=parts["values"].device)
        if dtype == self.stored and not self.spec.transposed:
            return self.spec.weight.unpack_into(out, parts)
        weight = self.spec.weight.unpack(parts, shape, self.stored)
        return out.copy_(weight.t() if self.spec.transposed else weight)

    def rows(self, numbers: Tensor) -> Tensor:
        """The rows (n, in_features) of the weight with these numbers (n,)."""
        return self.spec.weight.unpack_rows(self.parts, self.spec.shape, numbers, self.stored).to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow the model to a device; a dtype is that of the unpacked weight, the parts keep theirs."""
        parts = self.parts
        like = fn(torch.empty(0, dtype=self.dtype, device=next(iter(parts.values())).device))
        for name, part in parts.items():
            setattr(self, name, part.to(like.device))
        self.dtype = like.dtype
        return self

    def extra_repr(self) -> str:
        return f"{self.spec}"


class LazyLinear(CompressedLinear):
    """A compressed linear layer that unpacks its weight in every forward pass."""

    weight: PackedWeight  # type: ignore[assignment]

    @classmethod
    def of(cls, layer: CompressedLinear, weight: PackedWeight) -> Self:
        """The stand-in of `layer` with this weight."""
        self = _bare(cls, layer, LINEAR)
        self.weight = weight
        return self.eval()

    @property
    def matrix(self) -> Tensor:
        """The weight as (out_features, in_features), unpacked anew."""
        weight = self.weight()
        return weight.t() if self.transposed else weight

    def train(self, mode: bool = True) -> Self:
        return super().train(_evaluation(mode))

    def release(self) -> NoReturn:
        """Raise a ValueError: a plain layer has no weight to unpack."""
        raise ValueError(PACKED)

    def eager(self, weight: nn.Parameter) -> CompressedLinear:
        """The layer as it was, with this weight."""
        layer = _bare(CompressedLinear, self, LINEAR)
        layer.weight = weight
        return layer.eval()


class LazyEmbedding(CompressedEmbedding):
    """A compressed embedding that unpacks the rows that are looked up."""

    weight: PackedWeight  # type: ignore[assignment]

    @classmethod
    def of(cls, layer: nn.Embedding, weight: PackedWeight) -> Self:
        """The stand-in of `layer`, compressed or tied to a layer that is, with this weight."""
        self = _bare(cls, layer, EMBEDDING)
        self.weight, self.quantizer = weight, WeightQuantizer(weight.spec.weight)
        return self.eval()

    @property
    def matrix(self) -> Tensor:
        """The weight, (num_embeddings, embedding_dim), unpacked anew."""
        weight: Tensor = self.weight()
        return weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight.rows(ids.flatten()).view(*ids.shape, self.embedding_dim)

    def train(self, mode: bool = True) -> Self:
        return super().train(_evaluation(mode))

    def release(self) -> NoReturn:
        """Raise a ValueError: a plain embedding has no weight to unpack."""
        raise ValueError(PACKED)

    def eager(self, weight: nn.Parameter) -> CompressedEmbedding:
        """The layer as it was, with this weight."""
        layer = _bare(CompressedEmbedding, self, (*EMBEDDING, "quantizer"))
        layer.weight = weight
        return layer.eval()


Lazy = LazyLinear | LazyEmbedding


def _bare(kind: type[Layer], layer: nn.Module, names: tuple[str, ...]) -> Layer:
    """A layer of this kind with these attributes of another, and no weight yet."""
    bare = kind.__new__(kind)
    nn.Module.__init__(bare)
    for name in names:
        setattr(bare, name, getattr(layer, name))
    return bare


def _evaluation(mode: bool) -> bool:
    if mode:
        raise ValueError("a model that unpacks its weights lazily is for evaluation: read it without lazy to train it")
    return mode


def lazy_layers(model: nn.Module) -> dict[str, Lazy]:
    """The layers whose weights are packed, by module name, aliases included."""
    named = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in named if isinstance(module, Lazy)}


def make_lazy(model: nn.Module, name: str, weight: PackedWeight) -> None:
    """Replace the layer `name` by one that unpacks this weight when it is used."""
    layer = model.get_submodule(name)
    if isinstance(layer, CompressedLinear):
        model.set_submodule(name, LazyLinear.of(layer, weight))
    elif isinstance(layer, nn.Embedding) and layer.max_norm is None:
        model.set_submodule(name, LazyEmbedding.of(layer, weight))
    else:
        raise ValueError(f"{name} is a {type(layer).__name__} with a packed weight, and cannot unpack it lazily")


def make_eager(model: nn.Module) -> None:
    """Unpack every weight, in place, once and for all."""
    weights: dict[int, nn.Parameter] = {}
    for name, layer in lazy_layers(model).items():
        packed = layer.weight
        if id(packed) not in weights:
            weights[id(packed)] = nn.Parameter(packed())
        model.set_submodule(name, layer.eager(weights[id(packed)]))
