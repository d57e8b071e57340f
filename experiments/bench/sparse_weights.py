r"""Does OpenVINO gain from the zeros of 2:4? python experiments/bench/sparse_weights.py RUN/packed

Needs openvino and the extra onnx. The dense model beside the packed one, and the packed one with its zeros, are written
as ONNX; both are quantized to 8 bits by ONNX Runtime's own tool (QDQ, a scale a row of a weight, a scale an input), and
timed in OpenVINO on one thread of the CPU, by turns: in float32, in 8 bits, and in 8 bits with its sparse weights asked
for (CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE).
"""

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from nxmiformer.applied.convert import strip
from nxmiformer.bench.clock import Bench, interleaved
from nxmiformer.console.quiet import quiet
from nxmiformer.export import load_packed
from nxmiformer.export.onnx import FILE, Onnx
from nxmiformer.layers.examples import made_up
from nxmiformer.plan.compression import CompressionPlan

SPARSE = {"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": 0.4}  # of zeros, from which on a weight is taken as sparse
Inputs = dict[str, np.ndarray]


class Batches(CalibrationDataReader):
    """One batch to calibrate on: no range is too small for the clock."""

    def __init__(self, inputs: Inputs) -> None:
        self.left: Iterator[Inputs] = iter([inputs])

    def get_next(self) -> Inputs | None:
        return next(self.left, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="of a packed model, with the dense one in dense/ beside it")
    for name, default in (("batch", 8), ("length", 128), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with quiet():
        dense = AutoModelForSequenceClassification.from_pretrained(arguments.path.with_name("dense"))
    packed = load_packed(arguments.path)
    strip(packed)
    inputs = {key: each.numpy() for key, each in made_up(packed, arguments.batch, arguments.length).items()}
    with tempfile.TemporaryDirectory() as scratch:
        models = {"dense": dense.eval(), "2:4": packed}
        files = {name: _files(model, inputs, Path(scratch) / name) for name, model in models.items()}
        runs = {f"{name}, {bits}": _run(file, {}) for name, pair in files.items() for bits, file in pair.items()}
        runs["2:4, int8, sparse weights asked for"] = _run(files["2:4"]["int8"], SPARSE)
        bench = Bench(repeats=arguments.rounds, seconds=math.inf, warmup=1)
        taken = interleaved({name: partial(run, inputs) for name, run in runs.items()}, bench)
    walls = {name: [time.wall for time in times] for name, times in taken.items()}
    first = statistics.median(walls["dense, float32"])
    print(openvino.Core().get_property("CPU", "FULL_DEVICE_NAME"), openvino.__version__)
    for name, wall in walls.items():
        middle, spread = statistics.median(wall), statistics.stdev(wall)
        print(f"{name:40s} {middle * 1e3:8.1f} ms ± {spread * 1e3:5.1f}   {first / middle:5.2f} times the first")


def _files(model: PreTrainedModel, inputs: Inputs, directory: Path) -> dict[str, Path]:
    """The model as ONNX, in float32 and in 8 bits."""
    directory.mkdir()
    Onnx().write(model, CompressionPlan({}), directory)
    ready, small = directory / "ready.onnx", directory / "int8.onnx"
    quant_pre_process(directory / FILE, ready, skip_symbolic_shape=True)
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(ready, small, Batches(inputs), per_channel=True, op_types_to_quantize=["MatMul", "Gemm"], **kinds)
    return {"float32": directory / FILE, "int8": small}


def _run(file: Path, options: dict[str, Any]) -> Callable[[Inputs], object]:
    one = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(file, "CPU", {**one, **options}).create_infer_request()
    return request.infer


if __name__ == "__main__":
    main()
