"""Run the study: python experiments/glue_uniform/run.py --models ../shared/models --glue ../shared/data/glue

Every finished cell is a row of results.csv and is not run again; a failed one is told and left for the next time.
Without --models and --glue, both come from the hub.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
RESULTS = HERE / "results.csv"
COLUMNS = ["model", "task", "plan", "method", "seed", "steps", "score", "dense_score", "retention"]
COLUMNS += ["compression_values", "compression_indices", "compression_all", "gap", "seconds", "device", "revision"]
CELL = ("model", "task", "plan", "method", "seed")
HUB = "sentence-transformers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="directory that holds the model's (default: the hub)")
    parser.add_argument("--glue", help="directory of GLUE in the hub's layout (default: the hub)")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/glue_uniform"), help="where the runs go")
    parser.add_argument("--workers", type=int, default=1, help="cells that run side by side")
    parser.add_argument("--tasks", nargs="*", help="only these")
    arguments = parser.parse_args()
    sweep = yaml.safe_load((HERE / "sweep.yaml").read_text())
    lock = threading.Lock()
    failed = []

    def chain(task: str, plan: str, seed: int) -> None:
        """All methods from one dense model."""
        for method in sweep["methods"]:
            cell = {"model": sweep["model"], "task": task, "plan": plan, "method": method, "seed": seed}
            if _done(cell):
                continue
            row = _run(sweep, arguments, cell)
            with lock:
                if row is None:
                    failed.append(cell)
                else:
                    _append(row)
                    print(f"{task} {plan} {method} seed {seed}: {row['score']:.4f}", flush=True)

    tasks = [task for task in sweep["tasks"] if not arguments.tasks or task in arguments.tasks]
    with ThreadPoolExecutor(arguments.workers) as pool:
        chains = [(task, plan, seed) for task in tasks for plan in sweep["plans"] for seed in sweep["seeds"]]
        for future in [pool.submit(chain, *each) for each in chains]:
            future.result()
    for cell in failed:
        print(f"failed: {cell}", file=sys.stderr)
    sys.exit(bool(failed))


def _run(sweep: dict[str, Any], arguments: argparse.Namespace, cell: dict[str, Any]) -> dict[str, Any] | None:
    """Run one cell, after its dense model where that is not there yet; its row, or None where it failed."""
    task, seed, steps = cell["task"], cell["seed"], sweep["tasks"][cell["task"]]
    data = [f"task={task}", f"seed={seed}", *([f"task.path={arguments.glue}"] if arguments.glue else [])]
    common = ["model=pretrained", *data, *sweep["common"]]
    dense = arguments.outputs / f"{task}-dense-{seed}"
    model = f"{arguments.models or HUB}/{sweep['model']}"
    if not (dense / "report.json").exists():
        _job(dense, [*common, f"model.path={model}", "recipe=one_shot", *sweep["dense"]])
    name = arguments.outputs / f"{task}-{cell['plan']}-{cell['method']}-{seed}"
    counts = {"steps": steps, "thirty": round(0.3 * steps), "seventy": steps - round(0.3 * steps)}
    overrides = [override.format(**counts) for override in sweep["methods"][cell["method"]]]
    start = [f"model.path={dense / 'dense'}", f"plan={cell['plan']}", "recipe.phases.dense.steps=0"]
    if not _job(name, [*common, *overrides, *start]):
        return None
    report = json.loads((name / "report.json").read_text())
    metric, scores, storage = report["task"]["metric"], report["scores"], report["storage"]
    compressed = [phase for key, phase in report["phases"].items() if key != "dense"]
    ratio = storage["compression"]
    return {
        **cell,
        "steps": sum(phase["steps"] for phase in compressed),
        "score": scores["packed"][metric],
        "dense_score": scores["dense"][metric],
        "retention": report["retention"],
        "compression_values": ratio["values"],
        "compression_indices": ratio["indices"],
        "compression_all": ratio["all"],
        "gap": compressed[0]["gap"],
        "seconds": sum(phase["seconds"] for phase in compressed),
        "device": report["device"],
        "revision": _revision(),
    }


def _job(directory: Path, overrides: list[str]) -> bool:
    """Run `nxmiformer` with its output beside the run's files; whether it succeeded."""
    directory.mkdir(parents=True, exist_ok=True)
    command = ["nxmiformer", f"name={directory.name}", f"hydra.run.dir={directory}", *overrides]
    with (directory / "log.txt").open("w") as log:
        log.write(" ".join(command) + "\n")
        log.flush()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, stdout=log, stderr=log, env=environment).returncode == 0


def _revision() -> str:
    words = ["git", "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()


def _done(cell: dict[str, Any]) -> bool:
    if not RESULTS.exists():
        return False
    with RESULTS.open(newline="") as file:
        return any(all(row[key] == str(cell[key]) for key in CELL) for row in csv.DictReader(file))


def _append(row: dict[str, Any]) -> None:
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()})


if __name__ == "__main__":
    main()
