"""Projection without training."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch

from nxmiformer.layers.compressed import Compressed
from nxmiformer.layers.everything import blind_ranges
from nxmiformer.layers.mode import evaluating
from nxmiformer.methods.base import Calibration, Method


@dataclass(kw_only=True)
class OneShot(Method):
    """Project the dense weights without training; a phase with this method takes no steps.

    Attributes:
        calibration: training batches that fix the ranges of inputs, where a plan has such and no phase before has seen
            inputs (post-training static quantization): the mean of those of each batch. 0: none, and a plan with such
            ranges is refused.
    """

    calibration: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration < 0:
            raise ValueError(f"calibration is a number of batches, 0 or more, not {self.calibration}")

    def sees_inputs(self, steps: int) -> bool:
        return self.calibration > 0

    def prepare(self, layer: Compressed) -> None:
        layer.quantizer.seen = layer.quantizer.constraint

    def calibrate(self, given: Calibration) -> Iterator[str]:
        self._activate(True)
        blind = blind_ranges(self.model)
        if blind:
            watching = [self.model.get_submodule(name) for name in blind]
            ends = [end for each in watching for end in each.buffers(recurse=False)]
            blank, means = [end.clone() for end in ends], [torch.zeros_like(end) for end in ends]
            with evaluating(self.model):
                for each in watching:
                    each.train()
                for number, batch in enumerate(islice(given.batches, self.calibration), 1):
                    for end, nothing in zip(ends, blank, strict=True):
                        end.copy_(nothing)
                    given.forward(batch)
                    for mean, end in zip(means, ends, strict=True):
                        mean.add_((end - mean) / number)
            for end, mean in zip(ends, means, strict=True):
                end.copy_(mean)
        yield from self.layers
