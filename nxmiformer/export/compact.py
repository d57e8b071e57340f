"""A smaller dense model, without the heads, dimensions and layers that contribute nothing.

It is a packed directory whose plan has no layer: `load_packed` and `from_pretrained` read it with this package, and For
training, compression, export and bench it is an ordinary dense checkpoint. Its weights are floats, also those on a
grid. Zeros that are not a whole head or dimension can be trained again.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nxmiformer.applied.convert import strip
from nxmiformer.export.format import Format, Outputs, Run, no_everything
from nxmiformer.export.packed import load_packed, write_packed
from nxmiformer.layers.compact import compact, refusals
from nxmiformer.plan.compression import CompressionPlan


@dataclass(frozen=True)
class Compact(Format):
    """A packed directory of a smaller dense model; see `nxmiformer.layers.compact` for what goes.

    Attributes:
        tolerance: the share of predictions that may differ. The rules are exact, so it is for rounding alone.
    """

    name: ClassVar[str] = "compact"
    extra: ClassVar[str] = ""

    def refusals(self, model: PreTrainedModel, plan: CompressionPlan) -> Iterator[str]:
        yield from refusals(model)
        yield from no_everything(plan)

    def write(self, model: PreTrainedModel, plan: CompressionPlan, directory: Path) -> None:
        smaller = copy.deepcopy(model)
        strip(smaller)
        compact(smaller)
        write_packed(smaller, dense_plan(smaller), directory)

    def read(self, directory: Path, threads: int | None = None) -> Run:
        if threads is not None:
            torch.set_num_threads(threads)
        model = load_packed(directory)
        taken = inspect.signature(model.forward).parameters

        @torch.inference_mode()
        def run(batch: Mapping[str, Tensor]) -> Outputs:
            outputs: Outputs = model(**{name: tensor for name, tensor in batch.items() if name in taken})
            return outputs

        return run


def dense_plan(model: PreTrainedModel) -> CompressionPlan:
    """The plan of a model without compressed layers."""
    return CompressionPlan({}, {}, sum(parameter.numel() for parameter in model.parameters()))
