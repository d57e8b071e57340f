"""The reweighted group Lasso on blocks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from nxmiformer.errors import unknown
from nxmiformer.layers.compressed import Compressed
from nxmiformer.layers.projection import Moved
from nxmiformer.methods.base import Length, Method
from nxmiformer.methods.ranking import Ranking, by_tile, check_by_tile, check_ranking, ranked
from nxmiformer.optim.group_lasso import norms, shrink, slope, weights
from nxmiformer.sets.base import Shape
from nxmiformer.sets.block import spread

How = Literal["proximal", "gradient"]


@dataclass(kw_only=True)
class GroupLasso(Method):
    """Block pruning by a reweighted group Lasso (Li et al. 2020, arXiv 2009.08065). The sum over layers and groups of
    penalty * gamma_g * ||W_g|| is added to the loss, and draws whole blocks to zero. Then weights are projected onto
    their sets, and a `FixedMask` phase trains the remaining ones.

    The groups are the blocks of the layer's set, of any shape: pieces of rows or of columns, squares, or single
    weights. gamma_g = 1 / (||W_g||**power + epsilon) is recomputed `reweights` times, at equal intervals, so also in a
    short phase. The plain group Lasso is power=0, the choice of blocks by magnitude alone is penalty=0. A grid, if
    there is one, is trained straight-through.

    Attributes:
        penalty: lambda. An optimizer step shortens a block by lr * penalty * gamma, times the root of its size: Adam's
            steps of single weights are of size lr, so the loss can hold a block against about penalty * gamma = 1.
        power: p of gamma: 1 as the authors' code has it, 2 as the paper; 0: gamma = 1.
        epsilon: of gamma.
        reweights: how often gamma is recomputed after the start of the phase.
        how: "proximal": the closed form after each optimizer step, which does reach zero; "gradient": added to the
            gradient before it is clipped, as the authors do.
        sized: whether the penalty is times the square root of a group's size.
        ranking: "layer": each layer keeps the blocks that its set allows; "global": blocks of one size of all layers
            compete by their norms for `density`, and a layer's set is the most that it keeps.
        density: share of the blocks of each size that a global ranking keeps.
    """

    prunes: ClassVar[bool] = True

    penalty: float = 0.02
    power: int = 1
    epsilon: float = 1e-3
    reweights: int = 4
    how: How = "proximal"
    sized: bool = True
    ranking: Ranking = "layer"
    density: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.penalty < float("inf"):
            raise ValueError(f"penalty must be a number that is not negative, not {self.penalty}")
        if self.power not in (0, 1, 2):
            raise ValueError(f"power of the norm in gamma is 0, 1 or 2, not {self.power}")
        if not self.epsilon > 0:
            raise ValueError(f"epsilon must be positive, not {self.epsilon}")
        if self.reweights < 0:
            raise ValueError(f"reweights is how often gamma is recomputed, 0 or more, not {self.reweights}")
        if self.how not in get_args(How):
            raise unknown("way to apply the penalty", self.how, get_args(How))
        check_ranking(self.ranking, self.density)

    @property
    def across_layers(self) -> bool:
        return self.density is not None

    def prepare(self, layer: Compressed) -> None:
        layer.quantizer.frozen = False
        layer.quantizer.seen = layer.quantizer.constraint.grid

    def attach(self, model: nn.Module, length: Length) -> None:
        super().attach(model, length)
        if self.density is not None:
            check_by_tile(self.layers, self.density)
        self._reweight()

    def before_step(self, step: int, ahead: bool = True) -> None:
        super().before_step(step, ahead)
        if step in self._due():
            self._reweight()

    def _due(self) -> set[int]:
        """The optimizer steps before which gamma is recomputed."""
        return {self.length.steps * part // (self.reweights + 1) for part in range(1, self.reweights + 1)}

    @torch.no_grad()
    def _reweight(self) -> None:
        self.gamma = {n: weights(norms(layer.matrix, t), self.power, self.epsilon) for n, layer, t in self._grouped()}

    def _grouped(self) -> Iterator[tuple[str, Compressed, Shape]]:
        """The layers that have a support to find, and the shape of their groups."""
        for name, layer in self.layers.items():
            sparsity = layer.quantizer.constraint.sparsity
            if sparsity is not None:
                yield name, layer, sparsity.tile

    def _thresholds(self, name: str, tile: Shape) -> Tensor:
        """lambda * gamma of each group."""
        size: float = (tile[0] * tile[1]) ** 0.5 if self.sized else 1.0
        return self.penalty * size * self.gamma[name]

    def before_clip(self) -> None:
        if self.how == "gradient":
            with torch.no_grad():
                for name, layer, tile in self._grouped():
                    if layer.weight.grad is not None:
                        added = slope(layer.matrix, self._thresholds(name, tile), tile)
                        layer.weight.grad.add_(added.t() if layer.transposed else added)

    def optimizer(self, base: torch.optim.Optimizer) -> torch.optim.Optimizer:
        if self.how == "proximal" and self.penalty:
            base.register_step_post_hook(lambda optimizer, *_: self._shrink(optimizer))
        return super().optimizer(base)

    @torch.no_grad()
    def _shrink(self, optimizer: torch.optim.Optimizer) -> None:
        """The proximal step, at the learning rate that each weight has."""
        rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
        for name, layer, tile in self._grouped():
            if id(layer.weight) in rates:
                thresholds = rates[id(layer.weight)] * self._thresholds(name, tile)
                layer.matrix.copy_(shrink(layer.matrix, thresholds, tile))

    def hand_over(self) -> Moved:
        """Project onto the sparsity sets: whole blocks are pruned, and the remaining weights are not rounded."""
        self._prune()
        return self.to_supports()

    @contextmanager
    def as_finished(self) -> Iterator[None]:
        moved = self._grouped() if self.density is not None else ()
        before = {name: layer.matrix.detach().clone() for name, layer, _ in moved}
        try:
            self._prune()
            with super().as_finished():
                yield
        finally:
            with torch.no_grad():
                for name, values in before.items():
                    self.layers[name].matrix.copy_(values)

    def finalize(self) -> Moved:
        self._prune()
        return super().finalize()

    @torch.no_grad()
    def _prune(self) -> None:
        """Make zero the blocks that lose to those of other layers."""
        if self.density is None:
            return
        for tile, kind in by_tile(self.layers).items():
            worth = {name: spread(norms(layer.matrix, tile), tile) for name, layer in kind.items()}
            most = {name: layer.quantizer.constraint.sparsity for name, layer in kind.items()}
            for name, target in ranked(worth, most, self.density).items():
                assert target is not None
                kind[name].matrix.mul_(target.mask(worth[name]))

    def metrics(self, layers: bool = False) -> dict[str, float]:
        """The share of the groups that are zero already."""
        if not layers:
            return {}
        zeros = {name: (norms(layer.matrix.detach(), tile) == 0) for name, layer, tile in self._grouped()}
        counts = {name: (int(each.sum()), each.numel()) for name, each in zeros.items()}
        shares = {f"empty/{name}": count / total for name, (count, total) in counts.items()}
        whole = sum(total for _, total in counts.values())
        return {"empty": sum(count for count, _ in counts.values()) / whole, **shares} if whole else {}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "gamma": dict(self.gamma)}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        super().load_state_dict(state, step)
        self.gamma = {n: state["gamma"][n].to(layer.weight.device) for n, layer, _ in self._grouped()}
