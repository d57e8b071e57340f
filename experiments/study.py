"""Run a study: python experiments/study.py glue_uniform --models MODELS --glue GLUE

A study is a directory with a sweep.yaml. Every finished cell is a row of its results.csv and is not run again; a failed
one is named and left for the next time. Without --models and --glue, both come from the hub. ModelOpt's cells need an
environment of their own (make peers), and are left out without --peers.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from data import words  # noqa: E402 (beside this script, not installed)
from rows import Rows  # noqa: E402

RIVAL = HERE / "peers" / "modelopt_qat.py"
FOUND = ["steps", "score", "dense_score", "retention"]
FOUND += ["compression_values", "compression_indices", "compression_all", "gap", "seconds", "device", "revision"]
CELL = ("model", "task", "plan", "method", "seed")
HUB = "sentence-transformers"
EMBEDDED = "grammar"  # the task that brings a model of its own
Row = dict[str, Any]


def main() -> None:
    directory = HERE / (sys.argv[1] if len(sys.argv) > 1 else "")
    if not (directory / "sweep.yaml").is_file():
        sys.exit(f"there are the studies {sorted(file.parent.name for file in HERE.glob('*/sweep.yaml'))}\n{__doc__}")
    sweep = read_sweep(directory)
    arguments = _arguments(sweep)
    study = Study(sweep, arguments, directory / "results.csv")
    chains = [(plan, task, seed) for plan in arguments.plans for task in arguments.tasks for seed in arguments.seeds]
    with ThreadPoolExecutor(arguments.workers) as pool:
        for future in [pool.submit(study.chain, *each) for each in chains]:
            future.result()
    for cell in study.failed:
        print(f"failed: {cell}", file=sys.stderr)
    sys.exit(bool(study.failed))


def read_sweep(directory: Path) -> dict[str, Any]:
    """What a study runs: its sweep.yaml, and what that does not say from the one that it names as its base. Its tasks
    are added to those of the base; one that is null is not run."""
    sweep: dict[str, Any] = yaml.safe_load((directory / "sweep.yaml").read_text())
    name = sweep.pop("base", None)
    base = {"tasks": {}} if name is None else read_sweep(HERE / name)
    tasks = {**base["tasks"], **sweep.get("tasks", {})}
    return {**base, **sweep, "tasks": {task: facts for task, facts in tasks.items() if facts is not None}}


def flat(overrides: Any) -> list[str]:
    """Overrides as a list; a sweep.yaml may put lists that it shares into lists."""
    return [overrides] if isinstance(overrides, str) else [word for each in overrides for word in flat(each)]


def takes(sweep: dict[str, Any], method: str, plan: str) -> bool:
    """Whether the method is run under the plan: all are, but for those of which the sweep says `only`."""
    return plan in sweep.get("only", {}).get(method, [plan])


def last(words: Iterable[str]) -> list[str]:
    """Overrides without those of a key that comes again."""
    return list({word.split("=")[0]: word for word in words}.values())


class Study:
    """The cells of the sweep, and what has become of them."""

    def __init__(self, sweep: dict[str, Any], arguments: argparse.Namespace, results: Path) -> None:
        self.sweep, self.arguments, self.failed = sweep, arguments, list[Row]()
        self.rows = Rows(results, CELL, FOUND)
        self.writing, self.training = Lock(), defaultdict[tuple[str, int], Lock](Lock)

    def chain(self, plan: str, task: str, seed: int) -> None:
        """All methods from one dense model."""
        with self.training[task, seed]:  # the dense model serves every plan
            if not self._dense(task, seed):
                return
        for method in self.arguments.methods:
            cell = self._cell(task, plan, method, seed)
            if not takes(self.sweep, method, plan):
                continue
            if method == "modelopt":
                if self.arguments.peers:
                    self._settle(cell, self._rival)
            else:
                self._settle(cell, self._ours)

    def _cell(self, task: str, plan: str, method: str, seed: int) -> Row:
        return {"model": self.sweep["model"], "task": task, "plan": plan, "method": method, "seed": seed}

    def _settle(self, cell: Row, run: Any) -> bool:
        """Run the cell, unless its row is there; whether it is there then."""
        if self.rows.of(cell):
            return True
        row = run(cell)
        with self.writing:
            if row is None:
                self.failed.append(cell)
            else:
                self.rows.add({key: round(each, 6) if isinstance(each, float) else each for key, each in row.items()})
                print(" ".join(str(cell[key]) for key in CELL[1:]), f"{row['score']:.4f}", flush=True)
        return row is not None

    def _common(self, task: str, seed: int) -> list[str]:
        glue = None if task == EMBEDDED else self.arguments.glue
        precision = [f"train.precision={self.arguments.precision or self.sweep['precision']}"]
        given = words(task, glue, self.arguments.data)
        return [f"seed={seed}", *self.sweep["common"], *precision, *given]

    def _folder(self, task: str, seed: int) -> Path:
        return Path(self.arguments.outputs) / f"{task}-dense-{seed}"

    def _dense(self, task: str, seed: int) -> bool:
        """Train the dense model, and the same for as many steps more as the methods take: its row comes first, for
        retention is against the better of the two."""
        folder, facts = self._folder(task, seed), self.sweep["tasks"][task]
        if not (folder / "report.json").exists():
            source = ["model=pretrained", f"model.path={self.arguments.models or HUB}/{self.sweep['model']}"]
            overrides = [*(source if task != EMBEDDED else []), *self._common(task, seed), "recipe=one_shot"]
            overrides += facts["dense"]
            if not _job(folder, overrides):
                self.failed.append(self._cell(task, "dense", "dense", seed))
                return False
            _drop(folder, "checkpoints")
        return self._settle(self._cell(task, "dense", "dense_more", seed), self._more)

    def _more(self, cell: Row) -> Row | None:
        report = self._train(cell, self.sweep["dense_more"])
        if report is None:
            return None
        before = json.loads((self._folder(cell["task"], cell["seed"]) / "report.json").read_text())
        metric, phase = report["task"]["metric"], report["phases"]["dense"]
        scores = {"score": report["scores"]["dense"][metric], "dense_score": before["scores"]["dense"][metric]}
        ratios = dict.fromkeys(("compression_values", "compression_indices", "compression_all"), 0.0)
        return self._row(cell, {**scores, **ratios, "gap": 0.0}, phase["steps"], phase["seconds"], report["device"])

    def _ours(self, cell: Row) -> Row | None:
        start = ["recipe.phases.dense.steps=0", *self.sweep["plans"][cell["plan"]]]
        report = self._train(cell, [*flat(self.sweep["methods"][cell["method"]]), *start])
        if report is None:
            return None
        metric, scores, ratio = report["task"]["metric"], report["scores"], report["storage"]["compression"]
        phases = [phase for name, phase in report["phases"].items() if name != "dense"]
        found = {
            "score": scores["packed"][metric],
            "dense_score": scores["dense"][metric],
            "compression_values": ratio["values"],
            "compression_indices": ratio["indices"],
            "compression_all": ratio["all"],
            "gap": phases[0]["gap"],
        }
        steps, seconds = (sum(phase[key] for phase in phases) for key in ("steps", "seconds"))
        return self._row(cell, found, steps, seconds, report["device"])

    def _train(self, cell: Row, overrides: list[str]) -> Row | None:
        """The report of a run of ours from the dense model, or None where it failed."""
        task, seed, steps = cell["task"], cell["seed"], self.sweep["tasks"][cell["task"]]["steps"]
        values = {"steps": steps, "admm": round(0.3 * steps), "finish": steps - round(0.3 * steps)}
        dense = self._folder(task, seed) / "dense"
        values |= {"lr": self._rate(task, cell["method"]), "plan": cell["plan"], "dense": dense}
        values["outputs"] = self.arguments.outputs
        folder = self._folder(task, seed).with_name(f"{task}-{cell['plan']}-{cell['method']}-{seed}")
        words = ["model=pretrained", f"model.path={dense}", *(e.format(**values) for e in flat(overrides))]
        if not _job(folder, [*self._common(task, seed), *last(words)]):
            return None
        report: Row = json.loads((folder / "report.json").read_text())
        _drop(folder, "checkpoints", "dense")
        return report

    def _rival(self, cell: Row) -> Row | None:
        """ModelOpt's; what its set stores is what ours does, as the row of `one_shot` has it."""
        task, plan, seed = cell["task"], cell["plan"], cell["seed"]
        ours = self.rows.of({**cell, "method": "one_shot"})
        if ours is None:
            return None
        steps = self.sweep["tasks"][task]["steps"]
        folder = self._folder(task, seed).with_name(f"{task}-{plan}-modelopt-{seed}")
        what = ["--model", str(self._folder(task, seed) / "dense"), "--task", task, "--plan", plan, "--seed", str(seed)]
        glue = ["--glue", self.arguments.glue] if self.arguments.glue else []
        how = ["--steps", str(steps), "--lr", self._rate(task, "modelopt"), "--out", str(folder / "report.json")]
        if not _command(folder, [self.arguments.peers, str(RIVAL), *what, *glue, *how]):
            return None
        report = json.loads((folder / "report.json").read_text())
        same = ("dense_score", "compression_values", "compression_indices", "compression_all")
        found = {"score": report["score"], "gap": report["gap"], **{key: float(ours[key]) for key in same}}
        return self._row(cell, found, steps, report["seconds"], report["device"])

    def _rate(self, task: str, method: str) -> str:
        """The learning rate that the holdout of the task chose for the method, where it was asked."""
        return str(self.sweep["tasks"][task].get("lr", {}).get(method, self.sweep["lr"]))

    def _row(self, cell: Row, found: Row, steps: int, seconds: float, device: str) -> Row:
        more = self.rows.of(self._cell(cell["task"], "dense", "dense_more", cell["seed"]))
        best = max([found["dense_score"], *([float(more["score"])] if more else [])])
        best = max(best, found["score"]) if cell["method"] == "dense_more" else best
        kept = {"retention": found["score"] / best, "steps": steps, "seconds": seconds}
        return {**cell, **found, **kept, "device": device, "revision": _revision()}


def _arguments(sweep: dict[str, Any]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, methods = parser.add_argument, [*sweep["methods"], *(["modelopt"] if sweep.get("modelopt") else [])]
    add("study", help="the directory's name")
    add("--models", help="directory that holds the model's (default: the hub)")
    add("--glue", help="directory of GLUE in the hub's layout (default: the hub)")
    add("--data", help="directory that holds qamr/")
    add("--precision", choices=["no", "bf16"], help=f"no: float32, for a CPU (default: {sweep['precision']})")
    add("--peers", help="Python of ModelOpt's environment, such as .venv-peers/bin/python")
    add("--outputs", default="outputs/glue", help="where the runs go (default: %(default)s)")
    add("--workers", type=int, default=1, help="cells that run side by side")
    add("--tasks", nargs="+", default=list(sweep["tasks"]), choices=sweep["tasks"], help="only these")
    add("--plans", nargs="+", default=list(sweep["plans"]), choices=sweep["plans"], help="only these")
    add("--methods", nargs="+", default=methods, choices=methods, help="only these")
    add("--seeds", nargs="+", type=int, default=sweep["seeds"], help="only these")
    arguments = parser.parse_args()
    if arguments.peers and (precision := arguments.precision or sweep["precision"]) != "bf16":
        parser.error(f"ModelOpt's cells are trained in bf16, and these would be in {precision!r}: leave out --peers")
    return arguments


def _job(folder: Path, overrides: list[str]) -> bool:
    """Run `nxmiformer`, or go on where it was killed; whether it succeeded."""
    going_on = ["resume=true"] if (folder / "run.json").exists() else []
    return _command(folder, ["nxmiformer", f"name={folder.name}", f"hydra.run.dir={folder}", *overrides, *going_on])


def _drop(folder: Path, *names: str) -> None:
    """Delete what nobody asks a finished cell for: five times the bytes of all that is left."""
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)


def _command(folder: Path, command: list[str]) -> bool:
    """Run a command with its output beside the run's files; whether it succeeded."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("w") as log:
        log.write(" ".join(command) + "\n")
        log.flush()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, stdout=log, stderr=log, env=environment).returncode == 0


def _revision() -> str:
    words = ["git", "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
