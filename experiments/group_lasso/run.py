"""How much of the dense score do a reweighted group Lasso and its baselines retain, as blocks are removed?

    python experiments/group_lasso/run.py --models MODELS --glue GLUE

All methods begin with the same dense model, take the same steps, end in the same sets, blocks of 32 x 32, and have the
same finish. Choose --penalties with --report-on holdout, then give each method the one that was best. Every finished
cell is a row of results.csv and is not run again. --tiny tries the script out in seconds; --cpu stays off a GPU.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from cells import parser_of, source, trained  # noqa: E402 (beside the studies, not installed)
from rows import Rows  # noqa: E402

CELL = ("task", "method", "penalty", "density", "seed", "report_on")
VALUES = ("steps", "score", "dense", "retention", "gap", "seconds", "device")
LASSO = "recipe.phases.group_lasso.method"
METHODS = {
    "reweighted": [f"{LASSO}.power=1"],
    "reweighted_squared": [f"{LASSO}.power=2"],
    "plain": [f"{LASSO}.power=0"],
    "magnitude": [],
    "admm": [],
}
SHARE = 0.4  # of the steps before the projection; the others are the finish's


def main() -> None:
    arguments = _arguments()
    rows = Rows(arguments.results, CELL, VALUES)
    for cell in _cells(arguments):
        if rows.of(cell):
            continue
        began = time.perf_counter()
        name = "-".join(str(cell[key]) for key in CELL)
        report = trained(arguments.outputs / name, _overrides(arguments, cell))
        metric, scores = report["task"]["metric"], report["scores"]
        row = {"steps": arguments.steps, "score": scores["packed"][metric], "dense": scores["dense"][metric]}
        compressing = [phase for name, phase in report["phases"].items() if name != "dense"]
        row |= {"retention": report["retention"], "gap": compressing[0]["gap"], "device": report["device"]}
        rows.add({**cell, **row, "seconds": round(time.perf_counter() - began)})
        print(*cell.values(), f"{row['score']:.4f} of {row['dense']:.4f}", flush=True)


def _cells(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for task in arguments.tasks:
        for seed in arguments.seeds:
            for density in arguments.densities:
                for method in arguments.methods:
                    for penalty in arguments.penalties if method not in ("magnitude", "admm") else [0.0]:
                        values = (task, method, penalty, density, seed, arguments.report_on)
                        yield dict(zip(CELL, values, strict=True))


def _overrides(arguments: argparse.Namespace, cell: dict[str, Any]) -> list[str]:
    """Of one run: dense, then the method's phase, then the finish."""
    first = round(SHARE * arguments.steps)
    phase = "admm" if cell["method"] == "admm" else "group_lasso"
    values = [
        f"recipe={phase}",
        "plan=block",
        f"plan.weight.density={cell['density']}",
        f"recipe.phases.{phase}.steps={first}",
        f"recipe.phases.finish.steps={arguments.steps - first}",
        f"seed={cell['seed']}",
        f"report_on={cell['report_on']}",
        f"train.cpu={str(arguments.cpu).lower()}",
        f"dense_cache={arguments.outputs / '.dense'}",
    ]
    if arguments.tiny:
        values.append("recipe.phases.dense.steps=4")
    for each in (phase, "finish"):
        values += [f"recipe.phases.{each}.optimizer.lr={arguments.lr}", f"recipe.phases.{each}.dropout=false"]
        values.append(f"recipe.phases.{each}.objective={{task: 0.0, logits: 1.0, hidden: 10.0}}")
    if phase == "group_lasso":
        values += [f"{LASSO}.penalty={cell['penalty']}", *METHODS[cell["method"]]]
    return [*source(arguments.models, arguments.glue, cell["task"], arguments.tiny), *values]


def _arguments() -> argparse.Namespace:
    parser = parser_of(HERE, __doc__)
    parser.add_argument("--tasks", nargs="+", default=["stsb", "mrpc", "sst2"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--densities", nargs="+", type=float, default=[0.7, 0.5, 0.2])
    parser.add_argument("--penalties", nargs="+", type=float, default=[0.02])
    parser.add_argument("--steps", type=int, default=900, help="of the method's phase and the finish together")
    parser.add_argument("--lr", type=float, default=4e-4)
    arguments = parser.parse_args()
    arguments.outputs = arguments.outputs.resolve()
    return arguments


if __name__ == "__main__":
    main()
