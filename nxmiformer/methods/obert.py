"""Optimal BERT Surgeon."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from nxmiformer.layers.compressed import Compressed
from nxmiformer.layers.found import linear_layers
from nxmiformer.layers.mode import evaluating
from nxmiformer.layers.moments import Batch
from nxmiformer.methods.base import Method
from nxmiformer.optim.fisher import Fisher, Surgeon

GIB = 1 << 30


@dataclass(kw_only=True)
class Obert(Method):
    """Prune where the loss rises least, let the weights that stay make up for it, and train under that support.

    The rise is that of a quadratic whose Hessian is the empirical Fisher information of the task's loss, in blocks of
    each weight (Kurtic et al. 2022, arXiv 2203.07259). Gradients are taken in evaluation mode, one of each batch, and
    only their Gram matrices are kept. A weight that has no sparsity set is left as it is.

    Attributes:
        gradients: batches that a Fisher information is taken from, m; 0: the support is that of magnitude.
        block: consecutive weights of a row-major weight that share a block of it, B.
        damping: what is added to its diagonal; too much is pruning by magnitude, too little is unstable.
        memory: GiB for the Gram matrices of the layers that are looked at in one pass over the batches, 4 * block bytes
            a weight; a layer that needs more takes a pass of its own.
    """

    gradients: int = 256
    block: int = 32
    damping: float = 1e-7
    memory: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradients < 0:
            raise ValueError(f"gradients is a number of batches, 0 or more, not {self.gradients}")
        if self.block < 1:
            raise ValueError(f"block is a number of weights, at least 1, not {self.block}")
        for name in ("damping", "memory"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name):g}")

    def prepare(self, layer: Compressed) -> None:
        layer.quantizer.freeze(layer.matrix)
        layer.quantizer.seen = layer.quantizer.constraint

    def calibrate(
        self, batches: Iterator[Batch], forward: Callable[[Batch], object], loss: Callable[[Batch], Tensor]
    ) -> Iterator[str]:
        self._activate(False)
        for layers in self._passes() if self.gradients else ():
            for name, fisher in self._fishers(layers, islice(batches, self.gradients), loss).items():
                self._prune(name, layers[name], fisher)
                yield name
        self._activate(self.delay == 0)

    def before_clip(self) -> None:
        self.keep_support()

    def _passes(self) -> Iterator[dict[str, Compressed]]:
        """The layers that have a sparsity set, in parts whose Gram matrices fit into `memory`."""
        part: dict[str, Compressed] = {}
        taken = 0
        for name, layer in linear_layers(self.model).items():
            if layer.quantizer.constraint.sparsity is None:
                continue
            size = Fisher.nbytes(_shape(layer), self.block)
            if part and taken + size > self.memory * GIB:
                yield part
                part, taken = {}, 0
            part[name] = layer
            taken += size
        if part:
            yield part

    def _fishers(
        self, layers: Mapping[str, Compressed], batches: Iterator[Batch], loss: Callable[[Batch], Tensor]
    ) -> dict[str, Fisher]:
        fishers = {name: Fisher(_shape(layer), self.block, layer.weight.device) for name, layer in layers.items()}
        weights = [layer.weight for layer in layers.values()]
        with evaluating(self.model):
            for batch in batches:
                gradients = torch.autograd.grad(loss(batch), weights)
                for (name, layer), gradient in zip(layers.items(), gradients, strict=True):
                    try:
                        fishers[name].add(gradient.t() if layer.transposed else gradient)
                    except ValueError as error:
                        raise ValueError(f"{name}: {error}") from error
        return fishers

    @torch.no_grad()
    def _prune(self, name: str, layer: Compressed, fisher: Fisher) -> None:
        sparsity = layer.quantizer.constraint.sparsity
        assert sparsity is not None
        try:
            surgeon = Surgeon(layer.matrix.detach(), fisher.inverse(self.damping))
            pruned, _ = surgeon.prune(surgeon.support(sparsity))
        except (ValueError, torch.linalg.LinAlgError) as error:
            raise ValueError(f"{name}: {error}") from error
        layer.matrix.copy_(pruned)
        layer.quantizer.freeze(layer.matrix)


def _shape(layer: Compressed) -> tuple[int, int]:
    return layer.matrix.shape[0], layer.matrix.shape[1]
