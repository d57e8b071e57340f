"""Training of the factors of Kronecker products."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nxmiformer.layers.compressed import Compressed
from nxmiformer.layers.kronecker import Factors
from nxmiformer.layers.linear import CompressedLinear
from nxmiformer.layers.projection import Moved
from nxmiformer.methods.base import Length, Method
from nxmiformer.sets import Products


@dataclass(kw_only=True)
class Kronecker(Method):
    """Train the factors of the layers whose sets are of Kronecker products, starting from those of the nearest point
    (Tahaei et al. 2022, arXiv 2109.06243). Such a layer computes with its factors alone, and its weight has no
    gradient.

    Factors that have a grid are rounded in each forward pass, and trained straight-through. A layer of another set is
    trained straight-through, as by `SteQat`.

    Attributes:
        carried: refuse linear layers whose weights are no points of their sets yet: they would lose what an earlier run
            has trained. Embeddings may be none, as that of a masked language model is its head too, and stays dense.
    """

    carried: bool = False

    def prepare(self, layer: Compressed) -> None:
        layer.quantizer.frozen = False
        layer.quantizer.seen = layer.quantizer.constraint

    def attach(self, model: nn.Module, length: Length) -> None:
        super().attach(model, length)
        self._check_shared()
        for layer, points in self._factored():
            weight = layer.matrix.detach()
            points.check(weight)
            if self.carried and isinstance(layer, CompressedLinear) and not points.contains(weight):
                raise ValueError(
                    f"{self._name(layer)}: the checkpoint's weight is not a point of {points}, so it has no factors to "
                    f"start from: give model.path a directory that job=export format=checkpoint left, with the plan of "
                    f"its run, or take recipe=kronecker"
                )
            found = points.factors(points.project(weight))
            assert found is not None
            layer.quantizer.factors = Factors.balanced(*found, points).train(layer.training)
            layer.quantizer.seen = None

    def _factored(self) -> Iterator[tuple[Compressed, Products]]:
        for layer in self.layers.values():
            if isinstance(layer.quantizer.constraint, Products):
                yield layer, layer.quantizer.constraint

    def _name(self, layer: Compressed) -> str:
        return next(name for name, each in self.layers.items() if each is layer)

    def _check_shared(self) -> None:
        """Raise a ValueError for a weight that a module which is not compressed reads too: it would not see factors."""
        weights = {id(layer.weight): layer for layer, _ in self._factored()}
        for name, module in self.model.named_modules():
            layer = weights.get(id(module._parameters.get("weight")))
            if layer is not None and not isinstance(module, Compressed):
                raise ValueError(
                    f"{self._name(layer)}: its weight is that of {name} too, which would not see the factors: leave it "
                    f"dense, with plan.exclude or another plan.head"
                )

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters except the weights that factors replace."""
        replaced = {id(layer.weight) for layer, _ in self._factored()}
        return ((name, p) for name, p in super().parameters() if id(p) not in replaced)

    @contextmanager
    def as_finished(self) -> Iterator[None]:
        factors = [(layer, layer.quantizer.factors) for layer, _ in self._factored()]
        self._settle()
        try:
            with super().as_finished():
                yield
        finally:
            for layer, each in factors:
                layer.quantizer.factors = each

    def finalize(self) -> Moved:
        self._settle()
        return super().finalize()

    @torch.no_grad()
    def _settle(self) -> None:
        """Let the weights be what the factors make, and the layers compute with them."""
        for layer, _ in self._factored():
            factors = layer.quantizer.factors
            if factors is not None:
                layer.matrix.copy_(factors.weight())
                layer.quantizer.factors = None

    def _parts(self) -> dict[str, Tensor]:
        """The factors by layer and side."""
        found = ((name, layer.quantizer.factors) for name, layer in self.layers.items())
        return {f"{name}.{side}": p.data for name, each in found if each for side, p in each.named_parameters()}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "factors": self._parts()}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        super().load_state_dict(state, step)
        for name, part in self._parts().items():
            part.copy_(state["factors"][name])
