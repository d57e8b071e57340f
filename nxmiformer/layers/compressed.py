"""Which layers can be compressed, and how they become that: the same modules, in another class."""

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from types import MethodType
from typing import Any, Self

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from transformers.pytorch_utils import Conv1D

from nxmiformer.layers.inputs import ActivationQuantizer, Activations, Latest
from nxmiformer.layers.weights import WeightQuantizer
from nxmiformer.sets.base import DTYPES

PLAIN = (nn.Linear, Conv1D, nn.Embedding)


class Compressed(nn.Module):
    """A layer whose weight, and input, pass through fake quantizers.

    It is the module that it was: `adopt` changes its class and adds the quantizers, and `release` takes both back.
    So parameters, state-dict keys, ties, hooks, attributes, and whoever holds the module or its parameters stay as
    they are. Where the class has a forward of its own, as that of an embedding which scales, what this one inherits is
    `Compressed.forward`: see `joined`.
    """

    plain: type[nn.Module]
    weight: Tensor
    quantizer: WeightQuantizer
    inputs: ActivationQuantizer | None

    @classmethod
    def adopt(
        cls,
        layer: nn.Module,
        quantizer: WeightQuantizer,
        activations: Activations | None = None,
        latest: Latest | None = None,
    ) -> Self:
        """`layer`, which has no `obstacle`, compressed; layers that share their weight share its quantizer, and those
        of one model the `latest` input."""
        plain = type(layer)
        vars(layer).pop("forward", None)  # that of its class, which accelerate's hooks leave behind on the module
        layer.__class__ = joined(cls, plain)
        assert isinstance(layer, cls)
        layer.plain, layer.quantizer = plain, quantizer
        layer.inputs = None if activations is None else ActivationQuantizer(activations, layer.weight.device, latest)
        return layer.train(layer.training)

    def release(self) -> nn.Module:
        """The layer, as it was before `adopt` but for the values of its parameters."""
        plain = self.plain
        del self.plain, self.quantizer, self.inputs
        self.__class__ = plain  # type: ignore[assignment]
        return self

    @property
    def matrix(self) -> Tensor:
        """The weight as (out_features, in_features), a view."""
        return self.weight

    @property
    def stored(self) -> Sequence[Tensor]:
        """The tensors that the weight is made of, which training changes."""
        return (self.weight,)

    def take(self, point: Tensor) -> None:
        """Let the weight be this point (out_features, in_features) of the layer's set."""
        self.matrix.copy_(point)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        """What the plain class's forward computes, with the weight and the input as they are seen."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[Any, ...]:
        """As any module is copied and pickled, but that a joined class is found by the two that it is of."""
        return _blank, (getattr(type(self), "stands_in", type(self)), self.plain), vars(self)


def joined(ours: Any, plain: Any) -> Any:
    """The class `ours` for a layer of class `plain`: a subclass of both where `plain` is a subclass itself.

    There `plain` comes first, and what its methods call by `super()` is ours.
    """
    return ours if plain in PLAIN or issubclass(plain, Conv1D) else _both(ours, plain)


@cache
def _both(ours: Any, plain: Any) -> Any:
    return type(f"{ours.__name__}Of{plain.__name__}", (plain, ours), {"stands_in": ours})


def _blank(ours: Any, plain: Any) -> nn.Module:
    kind = joined(ours, plain)
    made: nn.Module = kind.__new__(kind)
    return made


def become(layer: Compressed, kind: type[Compressed], weight: nn.Module | nn.Parameter) -> None:
    """Make a compressed layer one of another kind, with this weight, in place."""
    del layer.weight
    layer.__class__ = joined(kind, layer.plain)
    layer.weight = weight  # type: ignore[assignment]


def obstacle(module: nn.Module) -> str | None:
    """Why a linear layer or an embedding cannot be compressed as what it is, or None."""
    weight = vars(module)["_parameters"].get("weight")
    if is_parametrized(module):
        return "its parameters are computed from others: torch.nn.utils.parametrize.remove_parametrizations ends that"
    if weight is None:
        return "its weight is no parameter of its own, but computed (as by weight_norm or pruning) or packed"
    if weight.ndim != 2 or weight.dtype not in DTYPES:
        return f"its weight is {tuple(weight.shape)} of {weight.dtype}"
    if vars(module).get("forward", module.forward) != MethodType(type(module).forward, module):
        return (
            "its forward has been replaced, as hooks of accelerate do that keep weights elsewhere: "
            "accelerate.hooks.remove_hook_from_module(model, recurse=True) ends that"
        )
    return foreign_forward(module)


def foreign_forward(module: nn.Module) -> str | None:
    """Why a layer's own forward method, if it has one, does not compute by that of Linear, Conv1D or Embedding."""
    own = own_forwards(type(module))
    if isinstance(module, Compressed) or (all(map(_inherits, own)) and not (own and isinstance(module, Conv1D))):
        return None
    return f"it is a {type(module).__name__}, whose forward computes with the weight itself"


def own_forwards(kind: type[nn.Module]) -> list[Callable[..., Any]]:
    """The forward methods that a subclass of Linear, Conv1D or Embedding has in place of theirs."""
    base = next(each for each in PLAIN if issubclass(kind, each))
    classes = kind.__mro__[: kind.__mro__.index(base)]
    return [vars(each)["forward"] for each in classes if "forward" in vars(each)]


def _inherits(forward: Callable[..., Any]) -> bool:
    """Whether a forward method computes by the one that it overrides, as far as its code tells: by `super()`."""
    code = getattr(inspect.unwrap(forward), "__code__", None)
    return code is not None and "super" in code.co_names
