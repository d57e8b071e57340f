"""One study of every kind of task on real data: python experiments/kinds/run.py --models MODELS --data DATA

kinds.yaml says what is run. Each finished cell is a row of results.csv, written as it comes and not run again; a failed
one is named and run the next time. MODELS holds all-MiniLM-L6-v2, DATA qamr, wikipedia-en-part, multi30k and imdb as
the hub lays them out, --prepared what prepare.py made, and smollm2 (SmolLM2-135M-Instruct, float16). README.md says
what was found.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from rows import Rows  # noqa: E402 (beside the studies, not installed)

CELL = ["kind", "plan", "method", "seed"]
FOUND = ["metric", "score", "dense", "scores", "dense_scores", "compression", "steps", "seconds", "device"]
Row = dict[str, Any]


def main() -> None:
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--sweep", type=Path, default=HERE / "kinds.yaml", help="what is run (default: %(default)s)")
    chosen, others = first.parse_known_args()
    sweep = yaml.safe_load(chosen.sweep.read_text())
    arguments = _arguments(sweep, first, others)
    study = Study(sweep, arguments)
    chains = [(kind, seed) for kind in arguments.kinds for seed in arguments.seeds or sweep["kinds"][kind]["seeds"]]
    chains = [each for each in chains if study.left(*each)]
    with ThreadPoolExecutor(arguments.workers) as pool:
        dense = {pool.submit(study.dense, *each): each for each in chains}
        cells = [
            pool.submit(study.cell, *cell)
            for done in as_completed(dense)
            for cell in study.cells(*dense[done])
            if done.result()
        ]
        failed = [cell for cell in (each.result() for each in cells) if cell]
    for cell in failed:
        print(f"failed: {' '.join(map(str, cell))}", file=sys.stderr)
    sys.exit(bool(failed or not all(done.result() for done in dense)))


class Study:
    """The cells, and where their runs and their rows are."""

    def __init__(self, sweep: Row, arguments: argparse.Namespace) -> None:
        self.sweep, self.outputs = sweep, arguments.outputs
        self.plans, self.methods = arguments.plans, arguments.methods
        self.rows = Rows(arguments.results, CELL, FOUND)
        self.places = {key: str(getattr(arguments, key)) for key in ("data", "models", "prepared", "precision")}

    def dense(self, kind: str, seed: int) -> bool:
        """Train the dense model, or find it; whether it is there. What INT8 makes of it, untrained, is a cell."""
        facts, folder = self.sweep["kinds"][kind], self._folder(kind, "dense", seed)
        what = ["model=pretrained", f"model.path={facts['model']}", "recipe=one_shot", "plan=int8", *facts["dense"]]
        done = (folder / "report.json").exists() or self._run(kind, seed, folder, what)
        if done:
            self._write((kind, "int8", "one_shot", seed), folder)
        else:
            print(f"failed: {kind} dense {seed}, see {folder}/log.txt", flush=True)
        return done

    def left(self, kind: str, seed: int) -> bool:
        """Whether a cell of this dense model has no row; its own, at INT8, is one of them."""
        untrained = dict(zip(CELL, (kind, "int8", "one_shot", seed), strict=True))
        return self.rows.of(untrained) is None or bool(self.cells(kind, seed))

    def cells(self, kind: str, seed: int) -> list[tuple[str, str, str, int]]:
        """The chosen cells that begin with this dense model and have no row."""
        facts, there = self.sweep["kinds"][kind], {tuple(row[key] for key in CELL) for row in self.rows.read()}
        plans = [plan for plan in facts["plans"] if plan in self.plans]
        methods = [method for method in reversed(facts["methods"]) if method in self.methods]
        cells = [(kind, plan, method, seed) for plan in plans for method in methods]
        return [cell for cell in cells if tuple(map(str, cell)) not in there]

    def cell(self, kind: str, plan: str, method: str, seed: int) -> tuple[str, str, str, int] | None:
        """Run one cell from its dense model and write its row; the cell, where that failed."""
        folder, start = self._folder(kind, f"{plan}-{method}", seed), self._folder(kind, "dense", seed) / "dense"
        overrides = [*self.sweep["plans"][plan], *self.sweep["methods"][method], "recipe.phases.dense.steps=0"]
        if not self._run(kind, seed, folder, ["model=pretrained", f"model.path={start}", *overrides]):
            return kind, plan, method, seed
        self._write((kind, plan, method, seed), folder)
        if "one_shot" in self.sweep["kinds"][kind]["methods"]:
            self._write((kind, plan, "one_shot", seed), folder, "one_shot")
        for large in ("checkpoints", "dense"):
            shutil.rmtree(folder / large, ignore_errors=True)
        return None

    def _run(self, kind: str, seed: int, folder: Path, overrides: list[str]) -> bool:
        """Run `nxmiformer`, or go on where it was killed; whether it succeeded."""
        facts = self.sweep["kinds"][kind]
        steps = facts["steps"]
        values = {"steps": steps, "admm": round(0.3 * steps), "finish": steps - round(0.3 * steps), "lr": facts["lr"]}
        words = [*self.sweep["common"], *facts["task"], *facts["data"], *overrides, f"seed={seed}"]
        place = [f"name={folder.name}", f"hydra.run.dir={folder}"]
        going_on = ["resume=true"] if (folder / "run.json").exists() else []
        command = ["nxmiformer", *place, *(word.format(**self.places, **values) for word in words), *going_on]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("w") as log:
            print(*command, file=log, flush=True)
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            return subprocess.run(command, stdout=log, stderr=log, env=environment).returncode == 0

    def _folder(self, kind: str, what: str, seed: int) -> Path:
        return Path(self.outputs) / f"{kind}-{what}-{seed}"

    def _write(self, cell: tuple[str, str, str, int], folder: Path, stage: str = "packed") -> None:
        """Add the cell's row, as the report of its run has it, unless it is there. Every run scores the projection of
        its dense model too, the `stage` "one_shot", which is a cell of its own."""
        report = json.loads((folder / "report.json").read_text())
        metric, scores, phases = report["task"]["metric"], report["scores"], report["phases"]
        compressing = [phase for name, phase in phases.items() if name != "dense" and stage == "packed"]
        row = {
            **dict(zip(CELL, cell, strict=True)),
            "metric": metric,
            "score": round(scores[stage][metric], 6),
            "dense": round(scores["dense"][metric], 6),
            "scores": json.dumps(scores[stage]),
            "dense_scores": json.dumps(scores["dense"]),
            "compression": round(report["storage"]["compression"]["all"], 6),
            "steps": sum(phase["steps"] for phase in compressing),
            "seconds": round(sum(phase["seconds"] for phase in compressing), 1),
            "device": report["device"],
        }
        if self.rows.add(row):
            print(*cell, f"{metric} {row['score']:.4f} of {row['dense']:.4f}", flush=True)


def _arguments(sweep: Row, first: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[first]
    )
    add = parser.add_argument
    add("--models", type=Path, required=True, help="directory of all-MiniLM-L6-v2")
    add("--data", type=Path, required=True, help="directory of the data sets")
    add("--prepared", type=Path, default="outputs/kinds/prepared", help="what prepare.py wrote (default: %(default)s)")
    add("--outputs", type=Path, default="outputs/kinds", help="where the runs go (default: %(default)s)")
    add("--results", type=Path, default=HERE / "results.csv", help="the rows (default: %(default)s)")
    add("--precision", default="bf16", help="no: float32, for a CPU (default: %(default)s)")
    add("--workers", type=int, default=1, help="cells that run side by side")
    add("--kinds", nargs="+", default=list(sweep["kinds"]), choices=sweep["kinds"], help="only these")
    add("--plans", nargs="+", default=list(sweep["plans"]), choices=sweep["plans"], help="only these")
    add("--methods", nargs="+", default=list(sweep["methods"]), choices=sweep["methods"], help="only these")
    add("--seeds", nargs="+", type=int, help="only these")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
