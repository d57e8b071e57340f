"""Score against measured CPU speed as block movement pruning takes heads and dimensions.

    python experiments/movement/run.py --models MODELS --glue GLUE --data DATA      # scores, on any device
    python experiments/movement/run.py --time --models MODELS                       # speeds, on the CPU

A cell is a method at one strength, on a model with all its layers or, with --keep-layers, some of them. `movement`
prunes at a penalty, is made compact, and is filled: trained on without a mask, by distillation from its dense model.
`movement_top` keeps the highest scores of each layer instead. `admm` reconstructs the layers that read heads and
dimensions without a share of them, is made compact, and is filled. The baselines `magnitude` and `gradient` remove a
share of the heads and dimensions of the dense model at once, the least by the norm or by |gradient x weight|
(`recipe=taylor`), are made compact, and have as many steps of the same distillation. `gradual` removes as `gradient`
does, in ten steps while it trains. The INT8 model is the filled one projected, with 8-bit inputs of fixed ranges
(`plan=int8_static`). Every finished cell is a row of results.csv, every timed one of speeds.csv, and neither is run
again. --tiny tries the script out.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from cells import job, parser_of, source, trained  # noqa: E402 (beside the studies, not installed)
from rows import Rows  # noqa: E402
from speeds import DENSE, speeds  # noqa: E402

from nxmiformer.applied.convert import strip  # noqa: E402
from nxmiformer.bench.clock import Bench  # noqa: E402
from nxmiformer.export.compact import dense_plan  # noqa: E402
from nxmiformer.export.packed import load_packed, packing  # noqa: E402
from nxmiformer.jobs.opening import opened  # noqa: E402
from nxmiformer.layers.compact import compact  # noqa: E402
from nxmiformer.layers.units import find_units  # noqa: E402
from nxmiformer.methods.dense import Dense  # noqa: E402
from nxmiformer.plan.compression import CompressionPlan  # noqa: E402
from nxmiformer.train.checkpoint import Position  # noqa: E402
from nxmiformer.train.loop import Stage, train_phase  # noqa: E402
from nxmiformer.train.objective import Objective  # noqa: E402
from nxmiformer.train.recipe import Phase  # noqa: E402

CELL = ("task", "layers", "method", "strength", "seed", "report_on", "steps", "lr")
VALUES = ("heads", "dimensions", "parameters", "score", "int8", "dense", "retention", "seconds", "device")
TIMED = ("contender", "batch", "length")
# The share of the steps before the model is made compact
PRUNING = {"movement": 0.7, "movement_top": 0.7, "admm": 0.15, "magnitude": 0.0, "gradient": 0.0, "gradual": 0.4}
METHODS = tuple(PRUNING)
GLUE = ["recipe.phases.dense.epochs=5", "recipe.phases.dense.optimizer.lr=1e-4"]
TRAINING = {"qamr": ["recipe.phases.dense.steps=500", "recipe.phases.dense.optimizer.lr=2e-4"]}
DISTIL = Objective(task=0.1, logits=0.9, hidden=10.0)


def main() -> None:
    arguments = _arguments()
    if arguments.time:
        _time(arguments)
        return
    rows = Rows(arguments.results, CELL, VALUES)
    for cell in _cells(arguments):
        if rows.of(cell) is None:
            began = time.perf_counter()
            row = _settled(arguments, cell)
            rows.add({**cell, **row, "seconds": round(time.perf_counter() - began)})
            print(*cell.values(), f"{row['score']:.4f} of {row['dense']:.4f}", flush=True)


def _cells(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    layers = ".".join(map(str, arguments.keep_layers)) if arguments.keep_layers else "all"
    for task in arguments.tasks:
        for seed in arguments.seeds:
            for method in arguments.methods:
                for strength in arguments.penalties if method == "movement" else arguments.shares:
                    named = (task, layers, method, strength, seed, arguments.report_on, arguments.steps, arguments.lr)
                    yield dict(zip(CELL, named, strict=True))


def _directory(arguments: argparse.Namespace, cell: Mapping[str, Any]) -> Path:
    path: Path = arguments.outputs / "-".join(str(cell[key]) for key in CELL)
    return path


def _settled(arguments: argparse.Namespace, cell: dict[str, Any]) -> dict[str, Any]:
    """Prune, make compact, fill, quantize; what came of it."""
    directory = _directory(arguments, cell)
    first = round(arguments.steps * PRUNING[cell["method"]])
    common = [*_source(arguments, cell), f"seed={cell['seed']}"]
    common += [f"report_on={cell['report_on']}", f"train.cpu={str(arguments.cpu).lower()}"]
    common.append(f"dense_cache={arguments.outputs / '.dense'}")
    if arguments.keep_layers:
        common.append(f"model.keep_layers={arguments.keep_layers}")
    report = trained(directory, [*common, *_pruning(arguments, cell, first)])
    metric = report["task"]["metric"]
    with opened(job(directory / "fill", common), _nothing) as (stage, *_):
        model = load_packed(directory / "packed")
        strip(model)
        compact(model)
        left = [[u for u in find_units(model) if u.kind == kind] for kind in ("heads", "dimensions")]
        stage = _with(stage, model)
        score = _filled(arguments, stage, directory, arguments.steps - first, cell["report_on"])[metric]
    with_data = [word for word in common if not word.startswith("model")]
    int8 = trained(
        directory / "int8",
        [*with_data, "model=pretrained", f"model.path={directory / 'filled'}", "model.finetuned=true",
         "plan=int8_static", "recipe=one_shot"],
    )  # fmt: skip
    dense = report["scores"]["dense"][metric]
    return {
        "heads": sum(u.count for u in left[0]) / sum(u.full for u in left[0]),
        "dimensions": sum(u.count for u in left[1]) / sum(u.full for u in left[1]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "score": score,
        "int8": int8["scores"]["packed"][metric],
        "dense": dense,
        "retention": score / dense,
        "device": report["device"],
    }


def _source(arguments: argparse.Namespace, cell: Mapping[str, Any]) -> list[str]:
    """The words of the task, and of the model: one that is dense and trained, or one that is to be."""
    words = source(arguments, cell["task"])
    if arguments.tiny:
        return words
    if arguments.dense:
        trained = arguments.dense.resolve() / f"{cell['task']}-dense-{cell['seed']}" / "dense"
        words = [word for word in words if not word.startswith("model.path")]
        return [*words, f"model.path={trained}", "model.finetuned=true"]
    return words


def _pruning(arguments: argparse.Namespace, cell: Mapping[str, Any], steps: int) -> list[str]:
    """The words of the run that trains the dense model, unless it is given, and prunes it."""
    words = [] if arguments.dense else [*TRAINING.get(cell["task"], GLUE)]
    words += ["recipe.phases.dense.steps=4"] if arguments.tiny else []
    method, left = cell["method"], f"{1 - cell['strength']:g}"
    if method == "movement":
        phase, given = "movement", {"penalty": cell["strength"], "feed_forward": 0.5}
        words += ["plan=hybrid", "plan.dimensions=1.0", "plan.weight.density=1.0"]
    elif method == "movement_top":
        phase, given = "movement", {"threshold": 0.0}
        words += ["plan=hybrid", f"plan.heads={left}", f"plan.dimensions={left}"]
    elif method == "admm":
        phase, given = "admm", dict[str, object]()
        words += ["plan=structured", f"plan.heads={left}", f"plan.dimensions={left}", "recipe.phases.finish.steps=0"]
    else:
        phase, given = "taylor", {"ranking": "global", "density": left}
        given |= {"magnitude": {"gradients": 0}, "gradual": {"prunings": 10}}.get(method, {})
        words += ["plan=structured", "plan.heads=1.0", "plan.dimensions=1.0"]
    words += [f"recipe={phase}", f"recipe.phases.{phase}.steps={steps}"]
    words.append(f"recipe.phases.{phase}.optimizer.lr={arguments.lr}")
    return [*words, *(f"recipe.phases.{phase}.method.{name}={value}" for name, value in given.items())]


def _nothing(model: nn.Module) -> CompressionPlan:
    """The plan of a model that is not to be compressed."""
    return CompressionPlan({}, {}, sum(p.numel() for p in model.parameters()))


def _with(stage: Stage, model: PreTrainedModel) -> Stage:
    model = model.to(stage.accelerator.device)  # type: ignore[arg-type]
    return replace(stage, model=model, wrapped=stage.accelerator.prepare_model(model))


def _filled(arguments: argparse.Namespace, stage: Stage, directory: Path, steps: int, split: str) -> dict[str, float]:
    """Train the smaller model by distillation, leave it in `filled`, and score it."""
    teacher = type(stage.model).from_pretrained(directory / "dense").to(stage.accelerator.device).eval()
    adam = partial(torch.optim.AdamW, lr=arguments.lr)
    phase = Phase(_Filling(), adam, DISTIL, steps=steps, dropout=False)
    train_phase(stage, "fill", phase, teacher.requires_grad_(False), Position())
    model = stage.model.to("cpu").eval()  # type: ignore[arg-type]
    shutil.rmtree(directory / "filled", ignore_errors=True)
    with packing(model, dense_plan(model), directory / "filled", stage.tokenizer):
        pass
    model.to(stage.accelerator.device)
    return stage.score(split)


class _Filling(Dense):
    """Ordinary training."""


def _time(arguments: argparse.Namespace) -> None:
    """The speed of every filled model beside its dense one: PyTorch, ONNX Runtime, and that in INT8."""
    rows = Rows(arguments.results.with_name("speeds.csv"), (*CELL, *TIMED), ("median", "ratio"))
    bench = Bench(arguments.batches, [arguments.length], repeats=arguments.repeats, seconds=300.0)
    for cell in _cells(arguments):
        directory = _directory(arguments, cell)
        names = {"contender": DENSE, "batch": bench.batches[-1], "length": arguments.length}
        if not (directory / "int8" / "report.json").exists() or rows.of({**cell, **names}):
            continue
        filled = load_packed(directory / "filled")
        dense = type(filled).from_pretrained(directory / "dense")
        int8 = load_packed(directory / "int8" / "packed"), CompressionPlan.load(directory / "int8" / "plan.json")
        none = CompressionPlan({})
        onnx = {"dense onnx": (dense, none), "onnx": (load_packed(directory / "filled"), none), "onnx int8": int8}
        found = list(speeds({DENSE: dense, "pytorch": filled}, onnx, directory, bench))
        for each in sorted(found, key=lambda speed: (speed.batch, speed.contender == DENSE)):
            rows.add({**cell, **each._asdict()})  # the dense one is last: its row says that all are there
            print(*cell.values(), *each, flush=True)


def _arguments() -> argparse.Namespace:
    parser = parser_of(HERE, __doc__)
    parser.add_argument("--tasks", nargs="+", default=["stsb", "mrpc", "sst2", "qamr"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--penalties", nargs="+", type=float, default=[2.5, 5.0, 10.0, 20.0, 40.0])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.3, 0.5, 0.7], help="of heads, and of dimensions")
    parser.add_argument("--keep-layers", nargs="+", type=int, help="numbers of layers, from 0 (default: all)")
    parser.add_argument("--dense", type=Path, help="outputs of study.py, whose dense models to begin with")
    parser.add_argument("--steps", type=int, default=2000, help="of pruning and filling together")
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--time", action="store_true", help="time what is there, instead of training")
    arguments = parser.parse_args()
    arguments.outputs = arguments.outputs.resolve()
    return arguments


if __name__ == "__main__":
    main()
