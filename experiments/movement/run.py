"""Score against measured CPU speed as block movement pruning takes heads and dimensions.

    python experiments/movement/run.py --models MODELS --glue GLUE      # scores, on any device
    python experiments/movement/run.py --time --models MODELS                                       # speeds, on the CPU

A cell is a method at one strength, on a model with all its layers or, with --keep-layers, some of them. `movement`
prunes at a penalty, is made compact, and is filled: trained on without a mask, by distillation from its dense model.
`admm` reconstructs the layers that read heads and dimensions without a share of them, is made compact, and is filled.
The baselines `magnitude` and `gradient` remove a share of the heads and dimensions of the dense model at once, the
least by the norm or by |gradient x weight|, are made compact, and have as many steps of the same distillation. The
INT8 model is the filled one projected, with 8-bit inputs. Every finished cell is a row of results.csv, every timed
one of speeds.csv, and neither is run again. --tiny tries the script out.
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
from torch import Tensor, nn
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
from nxmiformer.layers.targets import is_transposed  # noqa: E402
from nxmiformer.layers.units import Units, find_units  # noqa: E402
from nxmiformer.methods.dense import Dense  # noqa: E402
from nxmiformer.plan.compression import CompressionPlan  # noqa: E402
from nxmiformer.tasks.batches import shuffled  # noqa: E402
from nxmiformer.train.checkpoint import Position  # noqa: E402
from nxmiformer.train.loop import Stage, train_phase  # noqa: E402
from nxmiformer.train.objective import Objective  # noqa: E402
from nxmiformer.train.recipe import Phase  # noqa: E402

CELL = ("task", "layers", "method", "strength", "seed", "report_on")
VALUES = ("heads", "dimensions", "parameters", "score", "int8", "dense", "retention", "steps", "seconds", "device")
TIMED = ("contender", "batch", "length")
METHODS = ("movement", "admm", "magnitude", "gradient")
PRUNING = {"movement": 0.7, "admm": 0.15}  # the share of the steps before the model is made compact
DISTIL = Objective(task=0.1, logits=0.9)


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
            rows.add({**cell, **row, "steps": arguments.steps, "seconds": round(time.perf_counter() - began)})
            print(*cell.values(), f"{row['score']:.4f} of {row['dense']:.4f}", flush=True)


def _cells(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    layers = ".".join(map(str, arguments.keep_layers)) if arguments.keep_layers else "all"
    for task in arguments.tasks:
        for seed in arguments.seeds:
            for method in arguments.methods:
                for strength in arguments.penalties if method == "movement" else arguments.shares:
                    yield dict(zip(CELL, (task, layers, method, strength, seed, arguments.report_on), strict=True))


def _directory(arguments: argparse.Namespace, cell: Mapping[str, Any]) -> Path:
    path: Path = arguments.outputs / "-".join(str(cell[key]) for key in CELL)
    return path


def _settled(arguments: argparse.Namespace, cell: dict[str, Any]) -> dict[str, Any]:
    """Prune, make compact, fill, quantize; what came of it."""
    directory = _directory(arguments, cell)
    first = round(arguments.steps * PRUNING.get(cell["method"], 0))
    common = [*source(arguments.models, arguments.glue, cell["task"], arguments.tiny), f"seed={cell['seed']}"]
    common += [f"report_on={cell['report_on']}", f"train.cpu={str(arguments.cpu).lower()}"]
    common.append(f"dense_cache={arguments.outputs / '.dense'}")
    if arguments.keep_layers:
        common.append(f"model.keep_layers={arguments.keep_layers}")
    report = trained(directory, [*common, *_pruning(arguments, cell, first)])
    metric = report["task"]["metric"]
    with opened(job(directory / "fill", common), _nothing) as (stage, *_):
        model = _smaller(arguments, cell, stage, directory)
        left = [[u for u in find_units(model) if u.kind == kind] for kind in ("heads", "dimensions")]
        stage = _with(stage, model)
        score = _filled(arguments, stage, directory, arguments.steps - first, cell["report_on"])[metric]
    with_data = [word for word in common if not word.startswith("model")]
    int8 = trained(
        directory / "int8",
        [*with_data, "model=pretrained", f"model.path={directory / 'filled'}", "model.finetuned=true", "plan=int8",
         "recipe=one_shot"],
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


def _pruning(arguments: argparse.Namespace, cell: Mapping[str, Any], steps: int) -> list[str]:
    """The words of the run that trains the dense model, and prunes it where that takes training."""
    words = ["recipe.phases.dense.steps=4"] if arguments.tiny else []
    if cell["method"] == "admm":
        words += ["plan=structured", *(f"plan.{kind}={1 - cell['strength']:g}" for kind in ("heads", "dimensions"))]
        words += ["recipe=admm", "recipe.phases.finish.steps=0"]
        return [*words, f"recipe.phases.admm.steps={steps}", f"recipe.phases.admm.optimizer.lr={arguments.lr}"]
    words += ["plan=hybrid", "plan.dimensions=1.0", "plan.weight.density=1.0", "recipe=movement"]
    words += [f"recipe.phases.movement.steps={steps}", f"recipe.phases.movement.optimizer.lr={arguments.lr}"]
    words.append("recipe.phases.movement.method.feed_forward=0.5")
    penalty = [f"recipe.phases.movement.method.penalty={cell['strength']}"] if cell["method"] == "movement" else []
    return [*words, *penalty]


def _nothing(model: nn.Module) -> CompressionPlan:
    """The plan of a model that is not to be compressed."""
    return CompressionPlan({}, {}, sum(p.numel() for p in model.parameters()))


def _with(stage: Stage, model: PreTrainedModel) -> Stage:
    model = model.to(stage.accelerator.device)  # type: ignore[arg-type]
    return replace(stage, model=model, wrapped=stage.accelerator.prepare_model(model))


def _smaller(arguments: argparse.Namespace, cell: dict[str, Any], stage: Stage, directory: Path) -> PreTrainedModel:
    """The cell's model without what is pruned, on the CPU."""
    if cell["method"] in PRUNING:
        model = load_packed(directory / "packed")
        strip(model)
    else:
        model = type(stage.model).from_pretrained(directory / "dense")
        worth = _gradients(model, stage) if cell["method"] == "gradient" else None
        for kind in ("heads", "dimensions"):
            _remove(model, [u for u in find_units(model) if u.kind == kind], cell["strength"], worth)
    compact(model)
    return model


def _gradients(model: PreTrainedModel, stage: Stage, batches: int = 16) -> dict[str, Tensor]:
    """|gradient x weight| is of the sum over so many batches of dL/dW * W, by the parameter's name."""
    size, device = stage.settings.batch_size, torch.device("cpu")
    model.zero_grad()
    given = shuffled(stage.data["train"], size, 0, 0, device)
    for _ in range(batches):
        Objective().of(stage.task, model, None, next(given)).backward()
    return {n: p.grad * p.detach() for n, p in model.named_parameters() if p.grad is not None}


@torch.no_grad()
def _remove(model: nn.Module, all_units: list[Units], share: float, worth: dict[str, Tensor] | None) -> None:
    """Zero the columns of a share of all heads, or dimensions, of the model: those that are worth the least."""
    values = torch.cat([_worth(model, units, worth) for units in all_units])
    gone = torch.zeros_like(values, dtype=torch.bool)
    gone[values.argsort()[: round(share * len(values))]] = True
    for units, lost in zip(all_units, gone.split([units.count for units in all_units]), strict=True):
        _matrix(model, units.out, None)[:, units.columns(lost.nonzero().flatten())] = 0


def _worth(model: nn.Module, units: Units, worth: dict[str, Tensor] | None) -> Tensor:
    """Of each unit: the norm of the columns that read it, or what |gradient x weight| sums to over them."""
    columns = _matrix(model, units.out, worth)
    each = columns.view(len(columns), units.count, units.width)
    return each.square().sum((0, 2)).sqrt() if worth is None else each.sum((0, 2)).abs()


def _matrix(model: nn.Module, name: str, of: dict[str, Tensor] | None) -> Tensor:
    module = model.get_submodule(name)
    tensor = module.get_parameter("weight") if of is None else of[f"{name}.weight"]
    return tensor.t() if is_transposed(module) else tensor


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
    parser.add_argument("--tasks", nargs="+", default=["stsb", "sst2"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--penalties", nargs="+", type=float, default=[2.5, 5.0, 10.0, 20.0, 40.0])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.3, 0.5, 0.7], help="of heads, and of dimensions")
    parser.add_argument("--keep-layers", nargs="+", type=int, help="numbers of layers, from 0 (default: all)")
    parser.add_argument("--steps", type=int, default=2000, help="of pruning and filling together")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--time", action="store_true", help="time what is there, instead of training")
    arguments = parser.parse_args()
    arguments.outputs = arguments.outputs.resolve()
    return arguments


if __name__ == "__main__":
    main()
