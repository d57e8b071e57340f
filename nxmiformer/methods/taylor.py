"""Pruning by gradient times weight."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nxmiformer.methods.base import Calibration, Length
from nxmiformer.methods.by_gradient import ByGradient
from nxmiformer.methods.ranking import by_tile, check_by_tile, ranked
from nxmiformer.ranks import ranks
from nxmiformer.sets import SparsitySet
from nxmiformer.sets.base import Shape
from nxmiformer.sets.block import spread, tile_sums


@dataclass(kw_only=True)
class Taylor(ByGradient):
    """Prune what changes the task's loss least to first order, and train under that support.

    A block is worth |sum of dL/dW * W| over its weights, with dL/dW summed over batches in evaluation mode: how much
    the loss would change without it, to first order (Molchanov et al. 2019, arXiv 1906.10771, who square it). For the
    columns that read an attention head it is the gradient of the head's mask (Michel et al. 2019, arXiv 1905.10650).
    Blocks of whole heads and dimensions make a model smaller by compaction: `plan=structured`. Sets of single weights
    compare these. Every pruning computes it again, and what is pruned does not come back.

    Attributes:
        gradients: batches that the gradients are summed over; 0: blocks are worth their norm (magnitude).
        ranking: "layer": each layer keeps its own share; "global": blocks of one size of all layers compete for
            `density`, so heads with heads and dimensions with dimensions, and a layer's set is the most that it keeps.
        density: share of the weights of each kind that a global ranking keeps at the end.
    """

    gradients: int = 16

    def attach(self, model: nn.Module, length: Length) -> None:
        super().attach(model, length)
        if self.density is not None:
            check_by_tile(self.layers, self.density)

    def calibrate(self, given: Calibration) -> Iterator[str]:
        if 0 in self.moments:
            self.hold_all()
            yield from self._prune(0, given)

    def calibrate_again(self, step: int, given: Calibration) -> Iterator[str]:
        if step in self.moments:
            yield from self._prune(step, given)

    def _prune(self, step: int, given: Calibration) -> Iterator[str]:
        """Prune every layer to what the course has come to before this optimizer step."""
        self._activate(False)
        layers, number = self.sparse(), self.moments[step]
        self.clear()
        worth = self._worth(given)
        targets = {name: self.target(layer, number) for name, layer in layers.items()}
        if self.density is not None:
            share = self.share(self.density, number)
            for kind in by_tile(layers).values():
                targets |= ranked({name: worth[name] for name in kind}, {name: targets[name] for name in kind}, share)
        for name, layer in layers.items():
            target = targets[name]
            assert target is not None
            mask = target.mask(worth[name])
            with torch.no_grad():
                layer.matrix.mul_(mask)
            self.hold(layer, mask)
            yield name
        self._activate(step >= self.delay)

    def _worth(self, given: Calibration) -> dict[str, Tensor]:
        """What each weight's block is worth, (out, in), by the layer's name; below zero where it is pruned already."""
        layers = self.sparse()
        sums = [torch.zeros_like(layer.matrix, memory_format=torch.contiguous_format) for layer in layers.values()]
        for gradients in self.gradients_of(layers.values(), given):
            for total, gradient in zip(sums, gradients, strict=True):
                total.add_(gradient)
        ranks().add(sums)  # a loss is the rank's part of it
        found = {}
        for (name, layer), total in zip(layers.items(), sums, strict=True):
            weight, mask = layer.matrix.detach(), layer.quantizer.mask
            assert mask is not None
            product = total * weight if self.gradients else weight.square()
            tile = _tile(layer.quantizer.constraint.sparsity)
            found[name] = torch.where(mask, spread(tile_sums(product, tile).abs(), tile), -1.0)
        return found


def _tile(sparsity: SparsitySet | None) -> Shape:
    assert sparsity is not None
    return sparsity.tile
