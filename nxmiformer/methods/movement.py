"""Block movement pruning."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nxmiformer.layers.compressed import Compressed
from nxmiformer.layers.projection import Moved
from nxmiformer.layers.units import Units, bias_of, find_units
from nxmiformer.methods.base import Length, Method
from nxmiformer.optim.cubic import Cubic
from nxmiformer.sets import Block, Piece, SparsitySet
from nxmiformer.sets.block import spread, tile_sums
from nxmiformer.sets.unstructured import count, top

Part = Literal["attention", "feed_forward", "other"]


@dataclass
class Scored:
    """Blocks that stay or go by the same scores: those of one layer, or of all layers that a head or a dimension is in.

    Attributes:
        scores: one for each block or unit.
        blocks: which score each block of a layer has, (out / rows, in / cols), by the layer's name.
        part: which penalty it has.
    """

    scores: nn.Parameter
    blocks: dict[str, Tensor]
    part: Part


@dataclass(kw_only=True)
class Movement(Method):
    """Movement pruning (Sanh et al. 2020, arXiv 2005.07683) of blocks (Lagunas et al. 2021, arXiv 2109.04838): every
    block of a layer's set has a score S, which is trained, and the forward pass sees the blocks with
    sigmoid(S) > threshold. A score's gradient is straight-through: the sum of dL/dW' * W over its block, which falls
    for weights that move away from zero.

    The set says what a block is, and its density the most that stays: where more is above the threshold, the highest
    scores do. So threshold=0 with penalty=0 is the choice of the top k, and density 1 leaves it to the threshold. What
    may stay shrinks to the density as the threshold rises, by one cubic course. Where the blocks of the layers that a
    head or a dimension of the feed-forward part is in are just its rows and columns, they share one score (the hybrid
    masks). A row of queries, keys, values or the first matrix of the feed-forward part that goes whole takes its bias
    along, which compaction asks for. A set that keeps weights one by one has a score for each; a grid is trained
    straight-through.

    Attributes:
        threshold: tau at the end, of sigmoid(S); scores begin at 0, which is 0.5.
        penalty: lambda at the end, of the mean of sigmoid(S): it rises as the threshold does.
        attention, feed_forward: weights of the penalty in either part.
        score_rate: the scores' learning rate, without weight decay.
        before, after: shares of the phase in which the threshold has not begun to rise, and has ended to.
    """

    prunes: ClassVar[bool] = True

    threshold: float = 0.1
    penalty: float = 0.0
    attention: float = 1.0
    feed_forward: float = 1.0
    score_rate: float = 1e-2
    before: float = 0.05
    after: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold is one of a sigmoid, in [0, 1), not {self.threshold}")
        for name in ("penalty", "attention", "feed_forward"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number that is not negative, not {getattr(self, name)}")
        if not self.score_rate > 0:
            raise ValueError(f"score_rate must be positive, not {self.score_rate}")
        Cubic(0.0, 1.0, 1, self.before, self.after)  # checks them

    def prepare(self, layer: Compressed) -> None:
        sparse = layer.quantizer.constraint.sparsity is not None
        layer.quantizer.hold(Piece(torch.ones_like(layer.matrix, dtype=torch.bool) if sparse else None))
        layer.quantizer.frozen = sparse
        layer.quantizer.seen = layer.quantizer.constraint

    def attach(self, model: nn.Module, length: Length) -> None:
        super().attach(model, length)
        self.course = Cubic(0.0, 1.0, length.steps, self.before, self.after)
        self.step = 0
        units = find_units(model)
        first = dict.fromkeys(source.name for each in units for source in each.sources)
        self.first = [name for name in first if name in self.layers]
        self.scored = self._scored(units)

    def _sparse(self) -> dict[str, tuple[Compressed, SparsitySet]]:
        found = {name: (layer, layer.quantizer.constraint.sparsity) for name, layer in self.layers.items()}
        return {name: (layer, sparsity) for name, (layer, sparsity) in found.items() if sparsity is not None}

    def _scored(self, units: tuple[Units, ...]) -> dict[str, Scored]:
        """The scores by the name of a layer, or of a unit's."""
        sparse, scored = self._sparse(), dict[str, Scored]()
        part = {name: _part(each) for each in units for name in each.names}
        taken: set[str] = set()
        for each in units:
            shared = {name: found for name in sparse if (found := _whole(each, name, *sparse[name])) is not None}
            if len(shared) == len(each.names):
                scored[f"{each.layer}.{each.kind}"] = Scored(_zeros(each.count, shared[each.out]), shared, _part(each))
                taken |= shared.keys()
        for name, (layer, sparsity) in sparse.items():
            if name not in taken:
                rows, cols = sparsity.tile
                shape = (layer.matrix.shape[0] // rows, layer.matrix.shape[1] // cols)
                blocks = torch.arange(shape[0] * shape[1], device=layer.weight.device).view(shape)
                scored[name] = Scored(_zeros(blocks.numel(), blocks), {name: blocks}, part.get(name, "other"))
        return scored

    def optimizer(self, base: torch.optim.Optimizer) -> torch.optim.Optimizer:
        scores = [each.scores for each in self.scored.values()]
        if scores:
            base.add_param_group({"params": scores, "lr": self.score_rate, "weight_decay": 0.0, "share": 1.0})
        return super().optimizer(base)

    def before_step(self, step: int, ahead: bool = True) -> None:
        self.step = step
        if step >= self.delay:
            self._hold(self.course.at(step))
            self._silence()
        super().before_step(step, ahead)

    @torch.no_grad()
    def _hold(self, course: float) -> None:
        """Show the forward pass the blocks that stay where the course has come so far."""
        for each in self.scored.values():
            stays = self._stays(each, course)
            for name, blocks in each.blocks.items():
                sparsity = self.layers[name].quantizer.constraint.sparsity
                assert sparsity is not None
                self.layers[name].quantizer.hold_mask(spread(stays[blocks], sparsity.tile))

    def _stays(self, each: Scored, course: float) -> Tensor:
        """Which scores' blocks stay: of those that the set allows, and of others while it is not the end, the highest,
        as far as they are above the threshold."""
        scores = each.scores.detach()
        allowed = self._allowed(each)
        spare = round((1 - course) * int((~allowed).sum()))
        if spare:
            allowed = allowed | top(scores.masked_fill(allowed, -torch.inf), spare)
        return allowed & (scores.sigmoid() > self.threshold * self.course.at(self.step))

    def _allowed(self, each: Scored) -> Tensor:
        """The support that the sets allow with the largest scores."""
        scores, most = each.scores.detach(), []
        for name, blocks in each.blocks.items():
            sparsity = self.layers[name].quantizer.constraint.sparsity
            assert sparsity is not None
            if not isinstance(sparsity, Block):
                return sparsity.mask(scores[blocks]).flatten()
            most.append(count(sparsity.density, blocks.numel()) * len(scores) // blocks.numel())
        return top(scores, min(most))

    @torch.no_grad()
    def _silence(self) -> None:
        """Take the bias of rows that are masked whole, where rows begin a head or a dimension."""
        for bias, rows in self._rows():
            bias.mul_(rows)

    def _rows(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """The biases of the layers that begin heads and dimensions, and which rows have anything that stays."""
        for name in self.first:
            mask, bias = self.layers[name].quantizer.mask, bias_of(self.layers[name])
            if mask is not None and bias is not None:
                yield bias, mask.any(1)

    @torch.no_grad()
    def before_clip(self) -> None:
        for each in self.scored.values():
            gradient = self._pressure(each)
            for name, blocks in each.blocks.items():
                layer = self.layers[name]
                if layer.weight.grad is not None:
                    gradient.index_add_(0, blocks.flatten(), self._moved(name, layer).flatten())
            each.scores.grad = gradient
        self.keep_support()
        for bias, rows in self._rows():
            if bias.grad is not None:
                bias.grad.mul_(rows)

    def _moved(self, name: str, layer: Compressed) -> Tensor:
        """The gradient of the scores of a layer's blocks: of their weights, and of the biases that go with them."""
        sparsity, grad = layer.quantizer.constraint.sparsity, layer.weight.grad
        assert sparsity is not None
        assert grad is not None
        product = (grad.t() if layer.transposed else grad) * layer.matrix
        moved = tile_sums(product, sparsity.tile)
        bias = bias_of(layer) if name in self.first else None
        if bias is not None and bias.grad is not None and sparsity.tile[1] == product.shape[1]:
            moved = moved + tile_sums((bias.grad * bias)[:, None], (sparsity.tile[0], 1))
        return moved

    def _pressure(self, each: Scored) -> Tensor:
        """The gradient of the penalty: of the mean over parts, in a part over modules, of the mean of sigmoid(S)."""
        parts = [other.part for other in self.scored.values()]
        strength = {"attention": self.attention, "feed_forward": self.feed_forward, "other": 1.0}[each.part]
        strength *= self.penalty * self.course.at(self.step) / (len(set(parts)) * parts.count(each.part))
        sigmoid = each.scores.detach().sigmoid()
        return strength / len(sigmoid) * sigmoid * (1 - sigmoid)

    @contextmanager
    def as_finished(self) -> Iterator[None]:
        biases = [
            (bias, bias.detach().clone()) for name in self.first if (bias := bias_of(self.layers[name])) is not None
        ]
        with self.masks_kept():
            try:
                self._settle()
                with super().as_finished():
                    yield
            finally:
                with torch.no_grad():
                    for bias, value in biases:
                        bias.copy_(value)

    def finalize(self) -> Moved:
        self._settle()
        return super().finalize()

    def _settle(self) -> None:
        """The supports as they are if the phase ends now."""
        self._hold(1.0)
        self._silence()

    def metrics(self, layers: bool = False) -> dict[str, float]:
        """The threshold, and the share of weights in blocks that stay."""
        if not layers:
            return {"threshold": self.threshold * self.course.at(self.step)}
        masks = {name: layer.quantizer.mask for name, (layer, _) in self._sparse().items()}
        counts = {name: (int(mask.sum()), mask.numel()) for name, mask in masks.items() if mask is not None}
        whole = sum(total for _, total in counts.values())
        shares = {f"stays/{name}": kept / total for name, (kept, total) in counts.items()}
        return {**self.metrics(), "stays": sum(kept for kept, _ in counts.values()) / whole, **shares} if whole else {}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "scores": {name: each.scores.detach() for name, each in self.scored.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        super().load_state_dict(state, step)
        self.step = max(0, step - 1)
        for name, each in self.scored.items():
            each.scores.copy_(state["scores"][name])


def _part(units: Units) -> Part:
    return "attention" if units.kind == "heads" else "feed_forward"


def _zeros(size: int, like: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.zeros(size, dtype=torch.float32, device=like.device))


def _whole(units: Units, name: str, layer: Compressed, sparsity: SparsitySet) -> Tensor | None:
    """Which unit each block of a layer is, (out / rows, in / cols), where its blocks are just those of the units."""
    rows, columns = layer.matrix.shape
    numbers = torch.arange(units.count, device=layer.weight.device)
    if name == units.out:
        return numbers[None] if sparsity.tile == (rows, units.width) else None
    sources = [source for source in units.sources if source.name == name]
    if not sources or any(sparsity.tile != (source.width, columns) for source in sources):
        return None
    return numbers.repeat(len(sources))[:, None]  # parts of one matrix follow each other in the order of their sources
