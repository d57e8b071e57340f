"""Time a dense model, and its layers in each candidate set, in ONNX Runtime: what a budget of latency is counted by."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nxmiformer.applied.convert import convert
from nxmiformer.bench.clock import Bench, interleaved
from nxmiformer.console.display import Display
from nxmiformer.console.quiet import quiet
from nxmiformer.export.onnx import Onnx
from nxmiformer.files import write_text
from nxmiformer.jobs.job import Job
from nxmiformer.jobs.provenance import device_name
from nxmiformer.layers.examples import made_up
from nxmiformer.layers.linear import CompressedLinear
from nxmiformer.layers.mode import evaluating
from nxmiformer.layers.projection import project
from nxmiformer.layers.targets import Target, Targets
from nxmiformer.layers.wrapped import unwrapped
from nxmiformer.models.fit import positions
from nxmiformer.plan.compression import CompressionPlan, LayerSpec
from nxmiformer.runs.parse import parse
from nxmiformer.search.candidates import DENSE
from nxmiformer.search.latency import Call, Latency, form
from nxmiformer.sets.base import Shape
from nxmiformer.sets.words import from_words

ROUNDS = Bench(repeats=31, seconds=60.0, warmup=3)


@dataclass(frozen=True)
class Timing:
    """What was timed, and the file that keeps it for a search that goes on."""

    latency: Latency
    file: Path

    def keep(self) -> None:
        """Write the file, unless it is there."""
        if not self.file.exists():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            rows = [[*call, words, each] for (call, words), each in self.latency.layers.items()]
            write_text(self.file, json.dumps({"dense": self.latency.dense, "layers": rows}) + "\n")


def timed(job: Job, model: PreTrainedModel, targets: Targets) -> Timing:
    """The times that a search under the job's budget counts: measured, or those that the job's `cache/` keeps.

    Every layer is timed by itself, for each shape once, on made-up inputs of the shape that the whole model gives it.

    Raises:
        ValueError: the model, a candidate or the plan has no form in ONNX Runtime.
    """
    assert job.search is not None
    batch, length = job.budget.shape
    _check(job, model, length)
    inputs = made_up(model, batch, length)
    head = [(target, each) for target, each in job.planning.around(model) if not target.lookup]
    calls = _calls(model, [*targets.layers, *(target for target, _ in head)], inputs)
    sets = [each for choice in job.search.candidates.choices(targets) for each in choice.sets]
    forms = {DENSE, *map(form, [*sets, *(each for _, each in head)])}
    threads = job.settings.threads or torch.get_num_threads()
    facts: dict[str, Any] = {"runtime": "ONNX Runtime", "batch": batch, "length": length, "threads": threads}
    facts["device"] = device_name(torch.device("cpu"))
    distinct = sorted({call for each in calls.values() for call in each})
    asked = [model.config.to_json_string(), facts, distinct, sorted(forms), str(job.planning.activations)]
    mark = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    file = job.directory / "cache" / f"latency-{mark}.json"
    if file.exists():
        kept = parse(file.read_bytes(), str(file))
        rows = [(((tuple(given), tuple(shape)), words), each) for given, shape, words, each in kept["layers"]]
        dense, layers = kept["dense"], dict(rows)
    else:
        with torch.random.fork_rng(devices=[]):  # training draws what it would without
            dense, layers = _measured(job, model, inputs, list(product(distinct, sorted(forms))), threads)
    found = Latency(dense, 0, calls, layers, facts)
    around = sum(found.of(each, target) - found.of(None, target) for target, each in head)
    return Timing(replace(found, around=around), file)


def _check(job: Job, model: PreTrainedModel, length: int) -> None:
    """Refuse what cannot be timed, in words."""
    if job.planning.everything is not None:
        raise ValueError("a budget of latency times layers alone: leave out plan.everything, or give a budget of bytes")
    onnx, limit = Onnx(), positions(model)
    onnx.check_packages()
    if limit is not None and length > limit:
        raise ValueError(f"budget.length={length}: the model has positions for {limit} tokens")
    if refused := list(onnx.refusals(model, CompressionPlan({}))):
        raise ValueError(f"a budget of latency is measured in ONNX Runtime, and {'; '.join(refused)}")


def _calls(model: PreTrainedModel, layers: Sequence[Target], given: dict[str, Tensor]) -> dict[str, list[Call]]:
    """The shapes that each layer, or one that shares its weight, is called with in a forward pass."""
    found: dict[str, list[Call]] = {target.name: [] for target in layers}
    handles = []
    for target in layers:
        modules = [unwrapped(model).get_submodule(name) for name in (target.name, *target.aliases)]
        for module in {id(module): module for module in modules}.values():  # one module may have two names
            handles.append(module.register_forward_pre_hook(partial(_seen, found[target.name], target.shape)))
    try:
        with torch.no_grad(), evaluating(model):
            model(**{name: each.to(model.device) for name, each in given.items()})
    finally:
        for handle in handles:
            handle.remove()
    return found


def _seen(calls: list[Call], shape: Shape, _: nn.Module, args: tuple[Tensor, ...]) -> None:
    calls.append((tuple(args[0].shape), shape))


def _measured(
    job: Job, model: PreTrainedModel, given: dict[str, Tensor], pairs: Sequence[tuple[Call, str]], threads: int
) -> tuple[int, dict[tuple[Call, str], int]]:
    """The least nanoseconds of the dense model, and of each call in each form that its shape can have."""
    onnx, display = Onnx(), Display(job.label)
    with tempfile.TemporaryDirectory() as scratch:

        def written(name: str, write: Callable[[Path], None], inputs: dict[str, Tensor]) -> Callable[[], object]:
            directory = Path(scratch) / name
            directory.mkdir()
            write(directory)
            return partial(onnx.read(directory, threads), inputs)

        def runs() -> Iterable[tuple[str, Callable[[], object]]]:
            yield DENSE, written(DENSE, lambda place: onnx.write(model, CompressionPlan({}), place), given)
            for number, (call, words) in enumerate(pairs):
                layer = _layer(job, call, words)
                if layer is not None:
                    x = torch.randn(call[0], generator=torch.Generator().manual_seed(0), device="cpu")
                    yield str(number), written(str(number), partial(onnx.write_layer, layer, x), {"x": x})

        with quiet():
            loaded = dict(display.tracked(runs(), "layers", len(pairs) + 1))
        taken = interleaved(loaded, ROUNDS, display=display, name="latency")
    # The least, for other work of the machine only ever adds: to a whole model more often than to a layer.
    least = {name: round(min(each.wall for each in times) * 1e9) for name, times in taken.items()}
    return least[DENSE], {pair: least[name] for n, pair in enumerate(pairs) if (name := str(n)) in least}


def _layer(job: Job, call: Call, words: str) -> nn.Module | None:
    """A layer of random weights that is called so, in a form; None where its shape is rejected."""
    out, given = call[1]
    holder = nn.Sequential(nn.Linear(given, out, device="cpu").requires_grad_(False)).eval()
    if words != DENSE:
        constraint = from_words(words)
        if constraint.rejects(call[1]):
            return None
        convert(holder, CompressionPlan({"0": LayerSpec(constraint, call[1], job.planning.activations)}))
        project(holder)
        layer = holder[0]
        assert isinstance(layer, CompressedLinear)
        if layer.inputs is not None and layer.inputs.spec.fixed:
            layer.inputs.train()(torch.linspace(-1.0, 1.0, 2, device="cpu"))  # what was seen is a constant of the graph
            layer.inputs.eval()
    return holder[0]
