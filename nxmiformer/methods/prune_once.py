"""Prune Once for All: gradual pruning by magnitude."""

from dataclasses import dataclass

import torch
from torch import nn

from nxmiformer.methods.base import Length
from nxmiformer.methods.gradual import Gradual


@dataclass(kw_only=True)
class PruneOnce(Gradual):
    """Gradual pruning by magnitude (Zhu and Gupta 2017, arXiv 1710.01878) of a language model that is to be fine-tuned
    for many tasks (Zafrir et al. 2021, arXiv 2111.05754).

    Pruned weights keep their values behind the mask. So masks still move after the schedule has ended, at the same
    intervals: a weight returns if another has become smaller. In the last part of the phase they are frozen. Every
    layer has its own ranking.

    Attributes:
        frozen: share of the phase, at its end, in which masks are fixed; within `after`.
    """

    prunings: int = 51
    after: float = 0.5
    frozen: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.frozen <= self.after:
            raise ValueError(f"frozen is a share of the phase within after={self.after:g}, not {self.frozen:g}")

    def attach(self, model: nn.Module, length: Length) -> None:
        super().attach(model, length)
        last, still = max(self.moments), round((1 - self.frozen) * length.steps)
        gap = max(1, round((1 - self.before - self.after) * length.steps / max(1, self.prunings - 1)))
        self.moments |= dict.fromkeys(range(last + gap, still + 1, gap), self.prunings - 1)

    @torch.no_grad()
    def before_step(self, step: int, ahead: bool = True) -> None:
        number = self.moments.get(step)
        if step and number is not None:
            for layer in self.sparse().values():
                target = self.target(layer, number)
                assert target is not None
                self.hold(layer, target.mask(layer.matrix.abs()))
        super().before_step(step, ahead)
