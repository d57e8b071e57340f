"""The clock of studies: models in PyTorch and in ONNX Runtime, one pass of each in turn, on one CPU thread."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nxmiformer.bench.clock import Bench, interleaved, summarised
from nxmiformer.export.onnx import Onnx
from nxmiformer.layers.examples import made_up
from nxmiformer.plan.compression import CompressionPlan

DENSE = "dense"  # in float32 PyTorch: what all are compared with


class Speed(NamedTuple):
    """Of a contender: the median time in seconds, and how many times as fast as the dense model it is."""

    contender: str
    batch: int
    length: int
    median: float
    ratio: float


def speeds(
    pytorch: Mapping[str, PreTrainedModel],
    onnx: Mapping[str, tuple[PreTrainedModel, CompressionPlan]],
    place: Path,
    bench: Bench,
) -> Iterator[Speed]:
    """Time models at every batch size and at the first length of `bench`.

    Args:
        pytorch: models that are run as they are; the one called `DENSE` is among them.
        onnx: models that are exported, with their plans.
        place: directory for the files.
    """
    torch.set_num_threads(1)
    runs: dict[str, Callable[..., Any]] = {name: _pytorch(model) for name, model in pytorch.items()}
    for name, (model, plan) in onnx.items():
        directory = place / name.replace(" ", "-")
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        Onnx().write(model.eval(), plan, directory)
        runs[name] = Onnx().read(directory, 1)
    length = bench.lengths[0]
    for batch in bench.batches:
        given = made_up(pytorch[DENSE], batch, length)
        found = summarised(interleaved({n: partial(run, given) for n, run in runs.items()}, bench), batch, DENSE)
        for name, each in found.items():
            yield Speed(name, batch, length, each["median"], each["ratio"])


def _pytorch(model: PreTrainedModel) -> Callable[..., Any]:
    model.eval()

    @torch.inference_mode()
    def run(inputs: Mapping[str, Tensor]) -> Any:
        return model(**inputs)

    return run
