"""Optimal BERT Surgeon."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nxmiformer.layers.compressed import Compressed
from nxmiformer.layers.linear import CompressedLinear
from nxmiformer.methods.base import Calibration, Length
from nxmiformer.methods.by_gradient import ByGradient
from nxmiformer.methods.ranking import check_global, ranked, shape_of
from nxmiformer.optim.fisher import Fisher, Surgeon, check_run
from nxmiformer.sets import SparsitySet

log = logging.getLogger(__name__)
GIB = 1 << 30


@dataclass(kw_only=True)
class Obert(ByGradient):
    """Prune where the loss rises least, let the weights that stay make up for it, and train under that support.

    The rise is that of a quadratic whose Hessian is the empirical Fisher information of the task's loss, in blocks of
    each weight (Kurtic et al. 2022, arXiv 2203.07259). Every pruning computes it again. Gradients are those of the
    loss in evaluation mode, one of each batch, and only their Gram matrices are kept; what is pruned already has none.
    A weight that has no sparsity set is left as it is.

    Attributes:
        gradients: batches that a Fisher information is taken from, m; 0: the support is that of magnitude.
        loss: "task" is that of the paper; a model that is its own teacher is pruned by magnitude from "objective".
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
        if self.block < 1:
            raise ValueError(f"block is a number of weights, at least 1, not {self.block}")
        for name in ("damping", "memory"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name):g}")
        if self.density is not None and not self.gradients:
            raise ValueError("ranking=global needs gradients, which say what weights of different layers are worth")

    def attach(self, model: nn.Module, length: Length) -> None:
        super().attach(model, length)
        if self.density is not None:
            check_global(self.sparse(), self.density)
        if self.gradients:
            for name, layer in (each for part in self._passes() for each in part.items()):
                targets = (self.target(layer, number) for number in self.moments.values())
                for target in filter(None, targets):
                    with named(name):
                        check_run(self.block, target.run)

    def calibrate(self, given: Calibration) -> Iterator[str]:
        if not self.gradients:
            return
        self._tell()
        if 0 in self.moments:
            self.hold_all()
            yield from self._prune(0, given)

    def calibrate_again(self, step: int, given: Calibration) -> Iterator[str]:
        if step not in self.moments:
            return
        if self.gradients:
            yield from self._prune(step, given)
            return
        for name, layer in self.sparse().items():
            self._by_magnitude(layer, step)
            yield name

    def _tell(self) -> None:
        passes = list(self._passes())
        sizes = [sum(Fisher.nbytes(shape_of(each), self.block) for each in part.values()) for part in passes]
        log.info(
            "Fisher information in blocks of %d: at most %.3g GiB at a time, %.3g GiB in %d passes over %d batches",
            self.block, max(sizes, default=0) / GIB, sum(sizes) / GIB, len(passes), self.gradients,
        )  # fmt: skip

    def _prune(self, step: int, given: Calibration) -> Iterator[str]:
        """Prune every layer to what the course has come to before this optimizer step."""
        self._activate(False)
        self.clear()
        passes = list(self._passes())
        fishers: dict[str, Fisher] = {}
        targets = {name: self.target(layer, self.moments[step]) for name, layer in self.sparse().items()}
        if self.density is not None:
            prices: dict[str, Tensor] = {}
            for layers in passes:
                fishers = self._fishers(layers, given)
                prices |= {name: self._prices(name, layers[name], each) for name, each in fishers.items()}
            targets |= ranked(prices, targets, self.share(self.density, self.moments[step]))
        for layers in passes:
            if not (fishers and len(passes) == 1):
                fishers = self._fishers(layers, given)
            for name, fisher in fishers.items():
                self._cut(name, layers[name], fisher, targets[name])
                yield name
        for layer in self.sparse().values():
            if not isinstance(layer, CompressedLinear):  # an embedding, whose rows are not multiplied by
                self._by_magnitude(layer, step)
        self._activate(step >= self.delay)

    @torch.no_grad()
    def _by_magnitude(self, layer: Compressed, step: int) -> None:
        """Keep the largest of what is left."""
        target, mask = self.target(layer, self.moments[step]), layer.quantizer.mask
        assert target is not None
        assert mask is not None
        self.hold(layer, target.mask(torch.where(mask, layer.matrix.abs(), -1.0)))

    def _passes(self) -> Iterator[dict[str, Compressed]]:
        """The layers that have a sparsity set, in parts whose Gram matrices fit into `memory`."""
        part: dict[str, Compressed] = {}
        taken = 0
        for name, layer in self.sparse().items():
            if not isinstance(layer, CompressedLinear):
                continue
            size = Fisher.nbytes(shape_of(layer), self.block)
            if part and taken + size > self.memory * GIB:
                yield part
                part, taken = {}, 0
            part[name] = layer
            taken += size
        if part:
            yield part

    def _fishers(self, layers: Mapping[str, Compressed], given: Calibration) -> dict[str, Fisher]:
        fishers = {name: Fisher(shape_of(layer), self.block, layer.weight.device) for name, layer in layers.items()}
        for gradients in self.gradients_of(layers.values(), given):
            for (name, layer), gradient in zip(layers.items(), gradients, strict=True):
                assert layer.quantizer.mask is not None
                with named(name):
                    fishers[name].add(gradient * layer.quantizer.mask)
        return fishers

    def _surgeon(self, layer: Compressed, fisher: Fisher) -> Surgeon:
        return Surgeon(layer.matrix.detach(), fisher.inverse(self.damping))

    def _prices(self, name: str, layer: Compressed, fisher: Fisher) -> Tensor:
        sparsity = layer.quantizer.constraint.sparsity
        assert sparsity is not None
        with named(name):
            return self._surgeon(layer, fisher).prices(sparsity)

    @torch.no_grad()
    def _cut(self, name: str, layer: Compressed, fisher: Fisher, target: SparsitySet | None) -> None:
        assert target is not None
        with named(name):
            surgeon = self._surgeon(layer, fisher)
            mask = surgeon.support(target)
            layer.matrix.copy_(surgeon.prune(mask)[0])
            self.hold(layer, mask)


@contextmanager
def named(layer: str) -> Iterator[None]:
    """Put a layer's name before an error."""
    try:
        yield
    except (ValueError, torch.linalg.LinAlgError) as error:
        raise ValueError(f"{layer}: {error}") from error
