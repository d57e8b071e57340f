"""A sparse model as an ordinary checkpoint with its supports beside it, from which a run can start."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from transformers import PreTrainedModel

from nxmiformer.applied.convert import matrix, strip
from nxmiformer.export.format import Format, Run, checkpoint, no_everything, no_quantized_inputs
from nxmiformer.layers.support import write_supports
from nxmiformer.plan.compression import CompressionPlan


@dataclass(frozen=True)
class Sparse(Format):
    """The directory that `save_pretrained` writes, with explicit zeros, and the supports in `support.safetensors`.

    `transformers` reads it with any head. With `recipe=pattern_lock` a run keeps the supports fixed.
    """

    name: ClassVar[str] = "sparse"
    extra: ClassVar[str] = ""

    def refusals(self, model: PreTrainedModel, plan: CompressionPlan) -> Iterator[str]:
        yield from no_quantized_inputs(plan)
        yield from no_everything(plan)
        if not any(spec.weight.sparsity for spec in plan.layers.values()):
            yield "no layer has a set of sparse weights"

    def write(self, model: PreTrainedModel, plan: CompressionPlan, directory: Path) -> None:
        plain = strip(copy.deepcopy(model))
        plain.save_pretrained(directory)  # type: ignore[operator]
        masks = {
            name: sparsity.mask(matrix(model, name, spec).abs())  # which `pack` stored
            for name, spec in plan.layers.items()
            if (sparsity := spec.weight.sparsity) is not None
        }
        write_supports(masks, directory)

    def read(self, directory: Path, threads: int | None = None) -> Run:
        return checkpoint(directory, threads)
