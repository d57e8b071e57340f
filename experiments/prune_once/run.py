"""Is a model that is pruned once as good on a task as one that is pruned for it?

    python experiments/prune_once/run.py --models MODELS --data DATA

A language model is pruned on a corpus, and then serves all tasks under its mask; its rivals are pruned during each
task, in as many steps of it. prune_once.yaml says what is run. Each finished cell is a row of results.csv, written as
it comes and not run again; what failed is printed and left for the next time. MODELS holds all-MiniLM-L6-v2; DATA holds
glue, qamr and wikipedia-en-part as the hub lays them out.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from rows import Rows  # noqa: E402 (beside the studies, not installed)

CELL = ["task", "plan", "method", "upstream", "seed"]
FOUND = ["metric", "score", "dense", "retention", "compression", "steps", "seconds", "device"]
LOCKED = "pattern_lock"  # the method that begins with a sparse language model
Row = dict[str, Any]


def main() -> None:
    sweep = yaml.safe_load((HERE / "prune_once.yaml").read_text())
    arguments = _arguments(sweep)
    study = Study(sweep, arguments)
    with ThreadPoolExecutor(arguments.workers) as pool:
        dense = [(study.prepared, (steps,)) for steps in arguments.upstream]
        dense += [(study.teacher, (task, seed)) for task in arguments.tasks for seed in arguments.seeds]
        done = list(pool.map(lambda work: work[0](*work[1]), dense))
        sparse = [(plan, steps) for plan in arguments.plans for steps in arguments.upstream]
        done += pool.map(lambda each: study.sparse(*each), sparse)
        done += pool.map(study.cell, study.cells(arguments))
    sys.exit(not all(done))


class Study:
    """The runs, and where they and their rows are."""

    def __init__(self, sweep: Row, arguments: argparse.Namespace) -> None:
        self.sweep, self.outputs = sweep, Path(arguments.outputs)
        self.rows = Rows(arguments.results, CELL, FOUND)
        self.places = {key: str(getattr(arguments, key)) for key in ("data", "models", "precision")}

    def prepared(self, steps: int) -> bool:
        """Train a language model on the corpus for so many steps; whether it is there."""
        return self._run(f"corpus-{steps}", self.words_of_corpus(steps, self.sweep["model"], self.sweep["prepared"]))

    def sparse(self, plan: str, steps: int) -> bool:
        """Prune it in as many steps, and export it with its mask."""
        name, there = f"corpus-{plan}-{steps}", self.outputs / f"corpus-{steps}" / "dense"
        overrides = [*self.sweep["plans"][plan]["corpus"], *self.sweep["pruned"]]
        if not self._run(name, self.words_of_corpus(steps, str(there), overrides)):
            return False
        folder = self.outputs / name
        self._write(dict(zip(CELL, ("masked", plan, "prune_once", steps, 0), strict=True)), folder)
        corpus = [word.format(**self.places) for word in self.sweep["corpus"]]
        made = ["job=export", "format=sparse", f"path={folder}", *corpus]
        return (folder / "sparse").exists() or self._command(folder, made, {}, "export.txt")

    def teacher(self, task: str, seed: int) -> bool:
        """Fine-tune the dense model on a task."""
        return self._run(f"{task}-dense-{seed}", self.words_of_task(task, seed, self.sweep["teacher"]))

    def cells(self, arguments: argparse.Namespace) -> Iterable[Row]:
        """What is to be run of the tasks: how long the language model was pruned matters to one method alone."""
        for task in arguments.tasks:
            for seed in arguments.seeds:
                for plan in arguments.plans:
                    for method in arguments.methods:
                        for steps in arguments.upstream if method == LOCKED else [0]:
                            yield dict(zip(CELL, (task, plan, method, steps, seed), strict=True))

    def cell(self, cell: Row) -> bool:
        """Run a cell, unless its row is there; whether it is there then."""
        if self.rows.of(cell):
            return True
        task, plan, method, steps, seed = (cell[key] for key in CELL)
        dense = self.outputs / f"{task}-dense-{seed}" / "dense"
        start = [f"model.path={dense}"]
        if method == LOCKED:
            start = [f"model.path={self.outputs / f'corpus-{plan}-{steps}' / 'sparse'}", f"model.teacher={dense}"]
        name = f"{task}-{plan}-{method}-{steps}-{seed}"
        overrides = [*self.sweep["plans"][plan]["task"], *self.sweep["methods"][method], *start]
        if not self._run(name, self.words_of_task(task, seed, overrides)):
            return False
        return self._write(cell, self.outputs / name)

    def words_of_corpus(self, steps: int, model: str, overrides: list[str]) -> list[str]:
        """Of a run of the command on the corpus."""
        words = [*self.sweep["common"], *self.sweep["corpus"], "model=pretrained", f"model.path={model}", *overrides]
        return [word.format(**self.places, upstream=steps) for word in words]

    def words_of_task(self, task: str, seed: int, overrides: list[str]) -> list[str]:
        """Of a run of the command on a task; the model is that of the study where no other is given."""
        facts = self.sweep["tasks"][task]
        steps = facts["steps"]
        values = {"steps": steps, "admm": round(0.3 * steps), "finish": steps - round(0.3 * steps), **self.places}
        values |= {"epochs": facts["epochs"], "lr": facts["lr"]}
        model = ["model=pretrained", f"model.path={self.sweep['model']}", f"seed={seed}"]
        words = [*self.sweep["common"], *facts["task"], *model, *overrides]
        given = {word.split("=")[0]: word for word in words}  # the last of two values of one key
        return [word.format(**values) for word in given.values()]

    def _run(self, name: str, words: list[str]) -> bool:
        """Run the command, or go on where it was killed; whether its report is there."""
        folder = self.outputs / name
        going_on = {"resume": "true"} if (folder / "run.json").exists() else {}
        done = {"name": name, "hydra.run.dir": str(folder)} | going_on
        return (folder / "report.json").exists() or self._command(folder, words, done, "log.txt")

    def _command(self, folder: Path, words: list[str], more: dict[str, str], log: str) -> bool:
        folder.mkdir(parents=True, exist_ok=True)
        command = ["nxmiformer", *words, *(f"{key}={value}" for key, value in more.items())]
        with (folder / log).open("w") as file:
            print(*command, file=file, flush=True)
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, stdout=file, stderr=file, env=environment).returncode == 0
        if not done:
            print(f"failed: {folder.name}, see {folder / log}", file=sys.stderr, flush=True)
        return done

    def _write(self, cell: Row, folder: Path) -> bool:
        """Add the row of a run, as its report has it."""
        report = json.loads((folder / "report.json").read_text())
        metric, scores = report["task"]["metric"], report["scores"]
        phases = [phase for name, phase in report["phases"].items() if name != "dense"]
        found = {
            "metric": metric,
            "score": round(scores["packed"][metric], 6),
            "dense": round(scores["dense"][metric], 6),
            "retention": round(scores["packed"][metric] / scores["dense"][metric], 6),
            "compression": round(report["storage"]["compression"]["all"], 6),
            "steps": sum(phase["steps"] for phase in phases),
            "seconds": round(sum(phase["seconds"] for phase in phases), 1),
            "device": report["device"],
        }
        if self.rows.add({**cell, **found}):
            print(*cell.values(), f"{metric} {found['score']:.4f} of {found['dense']:.4f}", flush=True)
        return True


def _arguments(sweep: Row) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", type=Path, required=True, help="directory of all-MiniLM-L6-v2")
    add("--data", type=Path, required=True, help="directory of the data sets")
    add("--outputs", type=Path, default="outputs/prune_once", help="where the runs go (default: %(default)s)")
    add("--results", type=Path, default=HERE / "results.csv", help="the rows (default: %(default)s)")
    add("--precision", default="bf16", help="no: float32, for a CPU (default: %(default)s)")
    add("--workers", type=int, default=1, help="runs side by side")
    add("--tasks", nargs="+", default=list(sweep["tasks"]), choices=sweep["tasks"], help="only these")
    add("--plans", nargs="+", default=list(sweep["plans"]), choices=sweep["plans"], help="only these")
    add("--methods", nargs="+", default=list(sweep["methods"]), choices=sweep["methods"], help="only these")
    add("--upstream", nargs="+", type=int, default=sweep["upstream"], help="steps on the corpus, before and in pruning")
    add("--seeds", nargs="+", type=int, default=sweep["seeds"], help="only these")
    return parser.parse_args()


if __name__ == "__main__":
    main()
