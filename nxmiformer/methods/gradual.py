"""Pruning in several steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nxmiformer.layers.compressed import Compressed
from nxmiformer.layers.projection import Moved
from nxmiformer.methods.base import Length, Method
from nxmiformer.methods.ranking import shape_of
from nxmiformer.optim.cubic import Cubic, occasions
from nxmiformer.sets import SparsitySet


@dataclass(kw_only=True)
class Gradual(Method):
    """Sets that shrink on a cubic course until they are those of the plan; how weights are chosen, a subclass says.

    At each pruning a layer keeps what the course has come to: a share of single weights or blocks, or so many of each
    N:M group, which rounds up. Between two prunings the masks are fixed, and no gradient reaches what they leave out.

    Attributes:
        prunings: how often, evenly between the plateaus; 1: all at once, at the end of the first plateau.
        initial: sparsity of the first pruning; a layer whose set asks for less has its own from the first one on.
        before, after: shares of the phase in front of the first pruning, and after the last one.
    """

    prunes: ClassVar[bool] = True

    prunings: int = 1
    initial: float = 0.0
    before: float = 0.0
    after: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prunings < 1:
            raise ValueError(f"prunings is a number of times, at least 1, not {self.prunings}")
        if not 0 <= self.initial < 1:
            raise ValueError(f"initial is the sparsity of the first pruning, in [0, 1), not {self.initial:g}")
        Cubic(0.0, 1.0, 1, self.before, self.after)  # checks them

    def attach(self, model: nn.Module, length: Length) -> None:
        steps = occasions(self.prunings, length.steps, self.before, self.after)
        self.moments = {step: number for number, step in enumerate(steps)}  # of several at one step, the last
        super().attach(model, length)

    def prepare(self, layer: Compressed) -> None:
        quantizer, target = layer.quantizer, self.target(layer, self.moments.get(0))
        if target == quantizer.constraint.sparsity:
            quantizer.freeze(layer.matrix)
        else:
            mask = None if target is None else target.mask(layer.matrix.detach().abs())
            quantizer.hold_mask(mask)
            quantizer.frozen = True
        quantizer.seen = quantizer.constraint

    def target(self, layer: Compressed, number: int | None) -> SparsitySet | None:
        """What the layer's support is in after pruning `number`, or, where that is None, before the first."""
        sparsity = layer.quantizer.constraint.sparsity
        if sparsity is None or number is None:
            return None if sparsity is None else sparsity.keeping(1.0)
        final = 1 - sparsity.kept(shape_of(layer)) / max(1, layer.matrix.numel())
        if number == self.prunings - 1:
            return sparsity
        return sparsity.keeping(1 - Cubic(min(self.initial, final), final, self.prunings - 1).at(number))

    def share(self, density: float, number: int) -> float:
        """The share of all weights that a ranking over all layers keeps at pruning `number`; `density` is the last."""
        last, final = self.prunings - 1, 1 - density
        return density if number == last else 1 - Cubic(min(self.initial, final), final, last).at(number)

    def sparse(self) -> dict[str, Compressed]:
        """The layers that have a support to find."""
        return {name: layer for name, layer in self.layers.items() if layer.quantizer.constraint.sparsity is not None}

    @torch.no_grad()
    def hold(self, layer: Compressed, mask: Tensor) -> None:
        """Show the forward pass this support."""
        layer.quantizer.hold_mask(mask)
        layer.quantizer.refresh(layer.matrix)

    def before_clip(self) -> None:
        self.keep_support()

    @contextmanager
    def as_finished(self) -> Iterator[None]:
        with self.masks_kept():
            self._settle()
            with super().as_finished():
                yield

    def finalize(self) -> Moved:
        self._settle()
        return super().finalize()

    @torch.no_grad()
    def _settle(self) -> None:
        """Where the phase ends before its course, keep the largest of what is left."""
        for layer in self.sparse().values():
            quantizer = layer.quantizer
            assert quantizer.constraint.sparsity is not None
            assert quantizer.mask is not None
            if not quantizer.constraint.sparsity.contains(quantizer.mask.float()):
                quantizer.freeze(torch.where(quantizer.mask, layer.matrix, 0))

    def metrics(self, layers: bool = False) -> dict[str, float]:
        """The share of the weights that is left out."""
        if not layers:
            return {}
        masks = {name: layer.quantizer.mask for name, layer in self.sparse().items()}
        counts = {name: (int((~mask).sum()), mask.numel()) for name, mask in masks.items() if mask is not None}
        whole = sum(total for _, total in counts.values())
        shares: dict[str, Any] = {f"sparsity/{name}": cut / total for name, (cut, total) in counts.items()}
        return {"sparsity": sum(cut for cut, _ in counts.values()) / whole, **shares} if whole else {}
