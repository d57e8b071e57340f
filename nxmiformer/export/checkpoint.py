"""A model of Kronecker products as an ordinary checkpoint, from which a run can start."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from transformers import PreTrainedModel

from nxmiformer.applied.convert import strip
from nxmiformer.export.format import Format, Run, checkpoint, no_everything, no_quantized_inputs
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import Products


@dataclass(frozen=True)
class Checkpoint(Format):
    """The directory that `save_pretrained` writes of the dense weights, in which factors are multiplied out.

    `transformers` reads it with any head. The factors are in it: they are read from their product, to the last bit.
    """

    name: ClassVar[str] = "checkpoint"
    extra: ClassVar[str] = ""

    def refusals(self, model: PreTrainedModel, plan: CompressionPlan) -> Iterator[str]:
        yield from no_quantized_inputs(plan)
        yield from no_everything(plan)
        if not any(isinstance(spec.weight, Products) for spec in plan.layers.values()):
            yield "no layer has Kronecker factors to carry over (format=sparse carries supports over)"

    def write(self, model: PreTrainedModel, plan: CompressionPlan, directory: Path) -> None:
        plain = strip(copy.deepcopy(model))
        plain.save_pretrained(directory)  # type: ignore[operator]

    def read(self, directory: Path, threads: int | None = None) -> Run:
        return checkpoint(directory, threads)
