"""How small a packed model is, and how fast to load: python experiments/size/run.py --model all-MiniLM-L6-v2

Projects the model onto each plan, without training, packs it, and writes a row of results.csv: the bytes of the file of
weights over those of the dense float32 one, the bytes of the compressed layers, which must be those that the plan says,
and, over the dense model, the time to load it, the time until every tensor of it has been read too, and the most memory
that it takes. Without --model, a BERT of MiniLM's shape with random weights.
"""

import argparse
import csv
import gc
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from nxmiformer.applied.convert import convert
from nxmiformer.console.quiet import quiet
from nxmiformer.export import load_packed, save_packed
from nxmiformer.layers.projection import project
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.plan.origin import Planning
from nxmiformer.sets.words import from_words

SHAPE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
PLANS: list[tuple[str, str | None, str | None]] = [  # sets of the encoder's linears, the embeddings and the head
    ("2:4+int8", None, None),
    ("2:4+int4", None, None),
    ("2:4c+int4", None, None),
    ("1:4+int4", None, None),
    ("4:8+int4", None, None),
    ("4:8c+int4", None, None),
    ("2:4+int4", "int8", None),
    ("2:4+int4", "int8", "int8"),
    ("2:4+int4", "int4", "int8"),
    ("2:4+int4", "int4", "int4"),
    ("2:4c+int4", "int4", "int4"),
]
LOADERS: dict[str, Callable[[Path], torch.nn.Module]] = {
    "load_packed": load_packed,
    "from_pretrained": AutoModelForSequenceClassification.from_pretrained,
    "lazy": lambda path: load_packed(path, lazy=True),
}
SERVER = multiprocessing.get_context("forkserver")  # its processes have imported all, and loaded nothing
SERVER.set_forkserver_preload(["nxmiformer.export", "transformers.models.bert.modeling_bert"])
DENSE = AutoModelForSequenceClassification.from_pretrained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory, quiet(), arguments.results.open("w", newline="") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        names = [f"{kind}_{name}" for name in LOADERS for kind in ("load", "read", "memory")]
        rows.writerow(["linears", "embeddings", "head", "layers", "planned", "file", "dense", "ratio", *names])
        for number, plan in enumerate(PLANS):
            rows.writerow(_row(arguments.model, plan, Path(directory), number, arguments.rounds))
            stream.flush()


def _row(
    model: str | None, sets: tuple[str, str | None, str | None], directory: Path, number: int, rounds: int
) -> list[str]:
    """Pack the model and measure it."""
    dense, packed = directory / "dense", directory / str(number)
    network = _network(model)
    network.save_pretrained(dense)
    linears, embeddings, head = sets
    plan = Planning("", from_words(linears), embeddings=embeddings, head=head)(network)
    convert(network, plan)
    project(network)
    save_packed(network, plan, packed)
    planned = sum(spec.weight.storage(spec.shape).nbytes for spec in plan.layers.values())
    if planned != (stored := _stored(packed / "model.safetensors", plan)):
        raise RuntimeError(f"{sets}: the plan says {planned} bytes, the file has {stored}")
    files = [(path / "model.safetensors").stat().st_size for path in (packed, dense)]
    cells = [linears, embeddings or "", head or "", stored, planned, *files, f"{files[1] / files[0]:.3f}"]
    times, base = _times(dense, packed, rounds), _memory("dense", dense)
    for name in LOADERS:
        cells += [f"{ratio:.2f}" for ratio in (*times[name], _memory(name, packed) / base)]
    return [str(cell) for cell in cells]


def _network(model: str | None) -> transformers.PreTrainedModel:
    if model is not None:
        return DENSE(model, num_labels=1, dtype=torch.float32)
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SHAPE, num_labels=1))


def _stored(file: Path, plan: CompressionPlan) -> int:
    """Bytes of the compressed layers in a file of weights."""
    with safe_open(file, framework="pt") as stored:
        ours = [key for key in stored.keys() if key.rpartition(".")[0] in plan.layers and not key.endswith("bias")]  # noqa: SIM118
        tensors = [stored.get_tensor(key) for key in ours]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _times(dense: Path, packed: Path, rounds: int) -> dict[str, tuple[float, float]]:
    """Median times to load, and to load and then read every tensor, over those of the dense model: in turns, after one
    turn to warm up. A dense file is mapped, and not read before somebody looks at a weight."""
    work: dict[str, Callable[[], torch.nn.Module]] = {name: partial(load, packed) for name, load in LOADERS.items()}
    work["dense"] = partial(DENSE, dense)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, load in work.items():
            began = time.perf_counter()
            model = load()
            loaded = time.perf_counter() - began
            _read(model)
            taken[name].append((loaded, time.perf_counter() - began))
            del model
            gc.collect()  # a method of its own may hold it in a circle
    medians = {name: [statistics.median(each) for each in zip(*t[1:], strict=True)] for name, t in taken.items()}
    return {name: (medians[name][0] / medians["dense"][0], medians[name][1] / medians["dense"][1]) for name in LOADERS}


def _read(model: torch.nn.Module) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.max()


def _memory(loader: str, path: Path) -> int:
    """Most memory that loading the model, and reading all its tensors, adds to a process of its own, in KiB (Linux)."""
    with SERVER.Pool(1) as pool:
        grown: int = pool.apply(_grown, (loader, path))
        return grown


def _grown(loader: str, path: Path) -> int:
    torch.set_num_threads(1)
    with quiet():
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        before = _status("VmRSS")
        model = {**LOADERS, "dense": DENSE}[loader](path)
        _read(model)
        return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


if __name__ == "__main__":
    main()
