"""What a projection, a step and an encoder on sparse tensor cores cost on a GPU, over dense ones:
python experiments/cost/gpu.py --out outputs/cost [--device cpu --tiny]

Prints rows as they are measured, and keeps them in OUT/cost.json. A row that fails holds its error; rows that `--limit`
seconds leave no time for are named there. Each step is waited for, as the training loop does it to read the loss.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from nxmiformer.applied.convert import convert
from nxmiformer.applied.semi_structured import make_semi_structured
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.projection import project
from nxmiformer.layers.targets import find_targets
from nxmiformer.methods.admm import Admm
from nxmiformer.methods.base import Length, Method
from nxmiformer.methods.dense import Dense
from nxmiformer.methods.fixed_mask import FixedMask
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import NM, ConstraintSet, Grid, Then
from nxmiformer.sets.fused import compiling

Row = dict[str, Any]
JOINT = Then(NM(2, 4), Grid(4))
SETS: tuple[ConstraintSet, ...] = (NM(2, 4), Grid(4), JOINT)
SHAPES = ((768, 768), (3072, 768), (4096, 4096), (16384, 4096))
BASE: Row = {"shape": (32, 128), "model": {}}
LARGE: Row = {
    "shape": (32, 384),
    "model": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
TINY: Row = {
    "shape": (4, 16),
    "model": {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="to see that it runs")
    parser.add_argument("--rounds", type=int, default=48, help="steps of each method (default: %(default)s)")
    parser.add_argument(
        "--layers", type=int, default=12, help="of BERT-base, whose steps are timed (default: %(default)s)"
    )
    parser.add_argument("--only", nargs="*", default=[], help="kinds of rows, such as projection (default: all)")
    parser.add_argument("--limit", type=float, default=150, help="seconds (default: %(default)s)")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    kinds: dict[str, Callable[[], Iterator[Row]]] = {
        "projection": bench.projections,
        "step": lambda: bench.steps(compiled=False),
        "compiled-projection": bench.projections,
        "sparse": bench.encoders,
        "compiled-step": lambda: bench.steps(compiled=True),
    }
    for kind, rows in kinds.items():
        if not arguments.only or kind in arguments.only:
            with compiling(kind.startswith("compiled")):
                bench.keep(kind, rows)


class Bench:
    """The rows that were measured, and how."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device, self.tiny, self.rounds = torch.device(arguments.device), arguments.tiny, arguments.rounds
        self.base = {**BASE, "model": {"num_hidden_layers": arguments.layers}}
        self.path, self.limit, self.began = arguments.out / "cost.json", arguments.limit, time.perf_counter()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        gpu = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"
        self.rows: list[Row] = [{"device": gpu, "torch": torch.__version__, "threads": torch.get_num_threads()}]

    def keep(self, kind: str, rows: Callable[[], Iterator[Row]]) -> None:
        """Measure, print and write the rows of one kind."""
        try:
            for row in rows():
                self._add({"kind": kind, **row})
                if time.perf_counter() - self.began > self.limit:
                    raise TimeoutError(f"stopped after {self.limit:.0f} s")
        except Exception as error:  # one kind that fails leaves the others
            self._add({"kind": kind, "error": f"{type(error).__name__}: {error}"})

    def _add(self, row: Row) -> None:
        self.rows.append({**row, "at": round(time.perf_counter() - self.began, 1)})
        print(self.rows[-1], flush=True)
        self.path.write_text(json.dumps(self.rows, indent=1) + "\n")

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def time(self, work: Callable[[], object], repeats: int = 10, least: float = 0.1) -> float:
        """Milliseconds that `work` takes: the least of means over a few runs, whose launches may overlap."""
        work()
        work()
        self.wait()
        means, began = [], time.perf_counter()
        while len(means) < 3 or time.perf_counter() - began < least:
            start = time.perf_counter()
            for _ in range(repeats):
                work()
            self.wait()
            means.append((time.perf_counter() - start) / repeats)
        return min(means) * 1e3

    def projections(self) -> Iterator[Row]:
        """Of one matrix: as a user has it, as a refresh has it, which does not wait, and rounding alone."""
        repeats = 10 if self.device.type == "cuda" else 1
        for shape in SHAPES[:2] if self.tiny else SHAPES:
            w = torch.randn(shape, device=self.device) * 0.02
            copy = self.time(lambda w=w: w.clone(), 20)
            for constraint in SETS:
                piece = constraint.piece(w)
                row: Row = {"shape": shape, "set": str(constraint), "copy_ms": copy}
                work: dict[str, Callable[[], object]] = {
                    "project": lambda c=constraint, w=w: c.project(w),
                    "refresh": lambda c=constraint, w=w: c.apply(w, c.piece(w, recover=False)),
                    "apply": lambda c=constraint, w=w, p=piece: c.apply(w, p),
                }
                for name, each in work.items():
                    try:
                        taken = self.time(each, repeats)
                        row |= {f"{name}_ms": taken, f"{name}_copies": taken / copy}
                    except Exception as error:
                        row[f"{name}_error"] = f"{type(error).__name__}: {error}"
                yield row

    def steps(self, compiled: bool) -> Iterator[Row]:
        """A step of each method on models of their own, in turns."""
        methods: dict[str, Method] = {"dense": Dense(), "admm": Admm(calibration=0)}
        if not compiled:
            methods |= {"fixed_mask": FixedMask()}
        runs = {name: self._stepper(method, compiled) for name, method in methods.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        yield {"built": list(runs)}
        for number in range(18 + self.rounds):  # two refreshes first, in which things are compiled
            for name, step in runs.items():
                start = time.perf_counter()
                step(number)
                self.wait()
                times[name].append((time.perf_counter() - start) * 1e3)
            if number == 0:
                yield {"first_ms": {name: taken[0] for name, taken in times.items()}}
        dense = statistics.mean(times["dense"][18:])
        middle = statistics.median(times["dense"][18:])
        for name, taken in times.items():
            mean, median = statistics.mean(taken[18:]), statistics.median(taken[18:])
            row: Row = {"method": name, "mean_ms": mean, "median_ms": median, "mean_over_dense": mean / dense}
            row |= {"median_over_dense": median / middle, "most_ms": max(taken[18:])}
            yield row
        for name, step in runs.items():
            yield {"method": name, **self._profile(step)}

    def _stepper(self, method: Method, compiled: bool) -> Callable[[int], None]:
        size = TINY if self.tiny else self.base
        model = self._model(size).train()
        convert(model, CompressionPlan.uniform(model, find_targets(model), JOINT, Activations(8)))
        method.attach(model, Length(1000, 100))
        parameters = [p for _, p in method.parameters()]
        optimizer = method.optimizer(torch.optim.AdamW(parameters, lr=1e-5, fused=self.device.type == "cuda"))
        forward = torch.compile(model) if compiled else model
        tokens = torch.randint(1000, 20000, size["shape"], device=self.device)
        labels = torch.zeros(len(tokens), dtype=torch.long, device=self.device)

        def step(number: int) -> None:
            method.before_step(number, ahead=not compiled)
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = forward(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=labels).loss
            loss.backward()
            method.before_clip()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def _profile(self, step: Callable[[int], None], steps: int = 4) -> Row:
        """The time in kernels, and how many there are, of a step that refreshes nothing."""
        if self.device.type != "cuda":
            return {}
        activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as profile:
            for number in range(1, 1 + steps):
                step(number)
            self.wait()
        kernels = [each for each in profile.events() if each.device_type == torch.autograd.DeviceType.CUDA]
        return {
            "gpu_ms": sum(each.self_device_time_total for each in kernels) / 1e3 / steps,
            "kernels": len(kernels) / steps,
        }

    def encoders(self) -> Iterator[Row]:
        """BERT-large on sparse tensor cores: as it is called, and as a CUDA graph."""
        if self.device.type != "cuda":
            yield {"error": "sparse tensor cores are on cuda"}
            return
        size = TINY if self.tiny else LARGE
        tokens = torch.randint(1000, 20000, size["shape"], device=self.device)
        dense = 0.0
        for kernel, graph in itertools.product(("dense", "bf16", "int8"), (False, True)):
            row: Row = {"kernel": kernel, "graph": graph}
            try:
                call = self._encoder(size, kernel, tokens)
                row["ms"] = self.time(self._captured(call) if graph else call, 3)
                dense = dense or row["ms"]
                row["speedup"] = dense / row["ms"]
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"
            yield row

    def _encoder(self, size: dict[str, Any], kernel: str, tokens: Tensor) -> Callable[[], object]:
        model = self._model(size).eval()
        if kernel == "dense":
            model = model.bfloat16()
        else:
            plan = CompressionPlan.uniform(model, find_targets(model), Then(NM(2, 4), Grid(8)), Activations(8))
            project(convert(model, plan))
            model = make_semi_structured(model, plan, "bf16" if kernel == "bf16" else "int8")
        mask = torch.ones_like(tokens)

        @torch.inference_mode()
        def call() -> object:
            return model.bert(input_ids=tokens, attention_mask=mask).last_hidden_state

        return call

    def _captured(self, call: Callable[[], object]) -> Callable[[], object]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def _model(self, size: Row) -> Any:
        torch.manual_seed(0)
        with self.device:
            return BertForSequenceClassification(BertConfig(**size["model"]))


if __name__ == "__main__":
    main()
