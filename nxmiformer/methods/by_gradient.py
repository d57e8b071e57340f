"""Pruning by the gradients of a loss."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

import torch
from torch import Tensor

from nxmiformer.errors import unknown
from nxmiformer.layers.compressed import Compressed
from nxmiformer.layers.mode import evaluating
from nxmiformer.methods.base import Calibration
from nxmiformer.methods.gradual import Gradual
from nxmiformer.methods.ranking import Ranking, check_ranking

Loss = Literal["task", "objective"]


@dataclass(kw_only=True)
class ByGradient(Gradual):
    """Prunings that look at gradients of a loss in evaluation mode; what they make of them, a subclass says.

    Attributes:
        gradients: batches that gradients are taken of; 0: none, and the support is that of magnitude.
        loss: what the gradients are of: "task": the loss of the labels; "objective": what the phase minimises. A model
            that is its own teacher has no gradient of distillation.
        ranking: "layer": each layer keeps its own share of its weights; "global": those of several layers compete for
            `density`, and a layer's set is the most that it may keep.
        density: share of all weights that a global ranking keeps at the end.
    """

    gradients: int
    loss: Loss = "task"
    ranking: Ranking = "layer"
    density: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradients < 0:
            raise ValueError(f"gradients is a number of batches, 0 or more, not {self.gradients}")
        if self.loss not in get_args(Loss):
            raise unknown("loss of the gradients", self.loss, get_args(Loss))
        check_ranking(self.ranking, self.density)

    @property
    def across_layers(self) -> bool:
        return self.density is not None

    @property
    def labelled(self) -> bool:
        return self.gradients > 0 and self.loss == "task"

    def hold_all(self) -> None:
        """Let every weight stay, for nothing is pruned yet."""
        for layer in self.sparse().values():
            self.hold(layer, torch.ones_like(layer.matrix, dtype=torch.bool))

    @torch.no_grad()
    def clear(self) -> None:
        """Make zero what is pruned: the optimizer's momentum may have moved what is behind a mask."""
        for layer in self.sparse().values():
            layer.matrix.copy_(torch.where(layer.quantizer.mask, layer.matrix, 0))  # type: ignore[arg-type]

    def gradients_of(self, layers: Iterable[Compressed], given: Calibration) -> Iterator[list[Tensor]]:
        """Those of each batch, (out, in) for each layer."""
        layers = list(layers)
        loss = given.loss if self.loss == "task" else given.objective
        with evaluating(self.model):
            for batch in islice(given.batches, self.gradients):
                found = torch.autograd.grad(loss(batch), [layer.weight for layer in layers])
                yield [each.t() if layer.transposed else each for layer, each in zip(layers, found, strict=True)]
