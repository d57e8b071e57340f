"""How near do sparse tensor cores come to their peak? python experiments/bench/tensor_cores.py --out figures.csv

Times the linear layers of BERT-base and BERT-large on an NVIDIA GPU of compute capability 8.0 or above: dense bf16, 2:4
bf16, and 2:4 INT8, whose inputs are quantized in the time that is given. Operations are those of the dense product, two
for each of tokens x in x out; the peak is that of the device's data sheet for what computes. --peak gives the dense
bf16 one of a device that is not listed: sparsity doubles it, and INT8 doubles it again.
"""

import argparse
import csv
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from nxmiformer.applied.convert import convert, strip
from nxmiformer.applied.semi_structured import Kernel, make_semi_structured
from nxmiformer.bench.clock import Bench, interleaved
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.projection import project
from nxmiformer.plan.origin import Planning
from nxmiformer.sets.words import from_words

# Dense bf16, 10^12 operations a second, by how the device's name begins (NVIDIA's data sheets; H200 as H100 SXM).
PEAKS = {"NVIDIA A100": 312, "NVIDIA H100 PCIe": 756, "NVIDIA H100": 989.5, "NVIDIA H200": 989.5, "NVIDIA L40": 181}
GAINS = {"dense bf16": 1, "2:4 bf16": 2, "2:4 int8": 4}  # of the peak
WIDTHS = {"BERT-base": (768, 3072), "BERT-large": (1024, 4096)}
LAYERS = ("attention.self.query", "intermediate.dense", "output.dense")
TOKENS = (1024, 4096, 12288)  # 8 x 128, 32 x 128, 32 x 384
COLUMNS = ["model", "layer", "out", "in", "tokens", "how", "microseconds", "quartiles", "teraops", "peak", "ratio"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file of comma-separated values (default: printed)")
    parser.add_argument("--peak", type=float, help="dense bf16 of this device, 10^12 operations a second")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--calls", type=int, default=100, help="of a layer, one after another, that are timed at once")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device here, and sparse tensor cores are on one")
    name = torch.cuda.get_device_name()
    known = [peak for begin, peak in PEAKS.items() if name.startswith(begin)]
    peak = arguments.peak or (known[0] if known else math.nan)
    print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, {peak:g} Tops of dense bf16", file=sys.stderr)
    with arguments.out.open("w", newline="") if arguments.out else sys.stdout as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(COLUMNS)
        for model, widths in WIDTHS.items():
            blocks = blocks_of(*widths, torch.device("cuda"))
            for row in measured(blocks, TOKENS, peak, arguments.rounds, arguments.calls):
                rows.writerow([model, *row])
                stream.flush()


@torch.inference_mode()
def measured(
    blocks: Mapping[str, nn.Module], tokens: Sequence[int], peak: float, rounds: int, calls: int
) -> Iterator[list[str]]:
    """A row for each layer of a block, number of tokens, and way to compute it, without the model's name.

    Args:
        blocks: as `blocks_of` gives them.
        peak: of dense bf16, in 10^12 operations a second.
    """
    for layer in LAYERS:
        layers = {how: block.get_submodule(layer) for how, block in blocks.items()}
        weight: Tensor = layers["dense bf16"].weight  # type: ignore[assignment]
        for count in tokens:
            x = torch.randn(count, weight.shape[1], device=weight.device, dtype=torch.bfloat16)
            runs = {how: _run(each, x, calls) for how, each in layers.items()}
            taken = interleaved(runs, Bench(repeats=rounds, seconds=math.inf, warmup=3))
            seconds = {how: [time.wall / calls for time in times] for how, times in taken.items()}
            first = statistics.median(seconds["dense bf16"])
            for how, each in seconds.items():
                low, middle, high = statistics.quantiles(each, n=4)
                teraops = 2 * count * weight.numel() / middle / 1e12
                cells = [f"{middle * 1e6:.1f}", f"{low * 1e6:.1f} {high * 1e6:.1f}", f"{teraops:.4g}"]
                cells += [f"{teraops / (peak * GAINS[how]):.3f}", f"{first / middle:.2f}"]
                yield [layer, *map(str, weight.shape), str(count), how, *cells]


def blocks_of(hidden: int, wide: int, device: torch.device) -> dict[str, nn.Module]:
    """An encoder block of these widths, with random 2:4 + INT8 weights and INT8 inputs, by how it is computed."""
    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "intermediate_size": wide, "num_attention_heads": hidden // 64}
    config = BertConfig.from_dict({**sizes, "vocab_size": 8, "num_hidden_layers": 1})
    network = BertModel(config, add_pooling_layer=False)
    plan = Planning("", from_words("2:4+int8"), Activations(8))(network)
    project(convert(network, plan))
    network.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
    computed = {f"2:4 {kernel}": make_semi_structured(deepcopy(network), plan, kernel) for kernel in get_args(Kernel)}
    computed = {"dense bf16": strip(network).to(torch.bfloat16), **computed}
    return {how: each.get_submodule("encoder.layer.0") for how, each in computed.items()}


def _run(layer: nn.Module, x: Tensor, calls: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(calls):
            layer(x)
        if x.is_cuda:
            torch.cuda.synchronize()

    return run


if __name__ == "__main__":
    main()
