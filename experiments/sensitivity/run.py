r"""How well does a sensitivity predict the damage of a whole plan?

python experiments/sensitivity/run.py grammar                           # the embedded task: one-shot, and trained
python experiments/sensitivity/run.py stsb --model DENSE --glue GLUE --steps 0 --examples 64 \
    --without "measured logits, reconstructed" "measured divergence, reconstructed"    # a dense model of glue_uniform
"""

import argparse
import csv
import json
import time
from dataclasses import replace
from pathlib import Path

import hydra
import numpy as np
from scipy.stats import spearmanr

from nxmiformer.cli import build
from nxmiformer.jobs.compress import run
from nxmiformer.jobs.job import Job
from nxmiformer.jobs.opening import opened
from nxmiformer.jobs.search import evidence_of, nominal
from nxmiformer.methods.base import Length
from nxmiformer.methods.dense import Dense
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.search.anchored import Anchored
from nxmiformer.search.budget import Budget
from nxmiformer.search.candidates import Candidates
from nxmiformer.search.sensitivity import LossChange, Measured, OutputError, Sensitivity, WeightError
from nxmiformer.search.table import Table, measure
from nxmiformer.search.whole import OneShot

HERE = Path(__file__).parent
SETS = ["int8", "int4", "2:4+int8", "2:4+int4", "4:8+int4", "1:4+int8", "1:4+int4", "1:8+int4"]
SENSITIVITIES: dict[str, Sensitivity] = {
    "weight error": WeightError(),
    "loss change, order 1": LossChange(1),
    "loss change, order 2": LossChange(2),
    "output error, relative": OutputError(weighted=False),
    "output error, weighted, of the projection": OutputError(iterations=0),
    "output error, weighted, reconstructed": OutputError(),
    "the same, held to two measured sets, 32 examples": Anchored(
        OutputError(), Measured(iterations=3, examples=32), ("2:4+int4", "1:8+int4")
    ),
    "the same, held to two measured sets, 16 examples": Anchored(
        OutputError(), Measured(iterations=3, examples=16), ("2:4+int4", "1:8+int4")
    ),
    "the same, measured by the divergence": Anchored(
        OutputError(), Measured("divergence", iterations=3, examples=32), ("2:4+int4", "1:8+int4")
    ),
    "measured logits of the projection": Measured(),
    "measured logits, reconstructed": Measured(iterations=3),
    "measured divergence, reconstructed": Measured("divergence", iterations=3),
}


def main() -> None:
    arguments = arguments_of(__doc__ or "")
    job = job_of(arguments)
    with opened(replace(job, report_on="holdout"), lambda model: nominal(job, model)) as (stage, _, _, _):
        Dense().attach(stage.model, Length(0, 1))
        evidence = evidence_of(stage, arguments.examples)
        targets = job.planning.targets(stage.model)
        choices = Candidates(SETS).choices(targets)
        wanted = {name: each for name, each in SENSITIVITIES.items() if name not in arguments.without}
        tables, seconds = {}, {}
        for name, sensitivity in wanted.items():
            began = time.perf_counter()
            damages = dict(measure(evidence, choices, sensitivity, job.directory / "cache"))
            tables[name], seconds[name] = Table.of(choices, damages, Budget().of), time.perf_counter() - began
        whole = OneShot(evidence, 3)
        rows = []
        for number in range(arguments.plans):
            assignment = _random(number, len(choices))
            sets = next(iter(tables.values())).sets(assignment)
            logits = whole.logits(sets)
            row = {"plan": number, "divergence": evidence.divergence(logits), "one_shot": evidence.score(logits)}
            plan = CompressionPlan.assigned(stage.model, targets, sets, job.planning.activations)
            row["trained"] = _trained(job, plan, number, arguments.steps) if arguments.steps else ""
            rows.append({**row, **{name: table.predicted(assignment) for name, table in tables.items()}})
            _write(HERE / f"{arguments.task}.csv", rows)
    _print(rows, seconds)


def _random(number: int, layers: int) -> tuple[int, ...]:
    """A plan of its own mixture of sets: between plans, not only within them, compression differs."""
    generator = np.random.default_rng(number)
    mixture = generator.dirichlet(np.full(len(SETS), 0.6))
    return tuple(int(index) for index in generator.choice(len(SETS), layers, p=mixture))


def _trained(job: Job, plan: CompressionPlan, number: int, steps: int) -> float:
    """The score on the holdout after training; a plan that was trained is not trained again."""
    directory = job.directory / f"{number}-{steps}"
    report = directory / "report.json"
    if not report.exists():
        directory.mkdir(parents=True, exist_ok=True)
        plan.save(directory / "given.json")
        phases = {name: phase for name, phase in job.recipe.phases.items() if name != "dense"}
        lengths = {"admm": round(0.3 * steps), "finish": steps - round(0.3 * steps)}
        recipe = replace(job.recipe, phases={n: replace(phase, steps=lengths[n]) for n, phase in phases.items()})
        planning = replace(job.planning, path=str(directory / "given.json"))
        run(replace(job, directory=directory, recipe=recipe, planning=planning, report_on="holdout"))
    content = json.loads(report.read_text())
    score: float = content["scores"]["packed"][content["task"]["metric"]]
    return score


def job_of(arguments: argparse.Namespace) -> Job:
    """The job whose dense model and data are looked at."""
    directory = Path(arguments.outputs) / arguments.task
    overrides = [f"task={arguments.task}", "train.threads=1", "train.evaluate_every=0"]
    overrides += [f"task.path={arguments.glue}"] if arguments.glue else []
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        if arguments.model is None:
            dense = hydra.compose("config", [*overrides, "name=dense", "recipe=one_shot", "seed=0"])
            if not (directory / "dense" / "report.json").exists():
                run(build(dense, directory / "dense"))
            overrides += ["train.batch_size=128", "train.group_by_length=false"]
        model = arguments.model or directory / "dense" / "dense"
        words = [*overrides, "model=pretrained", f"model.path={model}", "name=sensitivity", "seed=0"]
        return build(hydra.compose("config", words), directory)


def _write(file: Path, rows: list[dict]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def _print(rows: list[dict], seconds: dict[str, float]) -> None:
    """Spearman's rank correlation of each sensitivity's sum with what was measured."""
    measured = [key for key in ("divergence", "one_shot", "trained") if rows[0][key] != ""]
    print("| sensitivity | seconds | " + " | ".join(measured) + " |\n|---|---|" + "---|" * len(measured))
    for name in seconds:
        found = [spearmanr([row[name] for row in rows], [row[key] for row in rows])[0] for key in measured]
        print(f"| {name} | {seconds[name]:.0f} | " + " | ".join(f"{abs(value):.2f}" for value in found) + " |")
    if "trained" in measured:
        both = spearmanr([row["divergence"] for row in rows], [row["trained"] for row in rows])[0]
        print(f"\nmeasured one-shot divergence of the whole against the trained score: {abs(both):.2f}")


def arguments_of(text: str) -> argparse.Namespace:
    """The command line, described by this text."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("--model", help="directory of a dense model; none: train the embedded one")
    parser.add_argument("--glue", help="directory of GLUE in the hub's layout (default: the hub)")
    parser.add_argument("--plans", type=int, default=36, help="random plans (default: %(default)s)")
    parser.add_argument("--examples", type=int, default=256, help="of the holdout (default: %(default)s)")
    parser.add_argument("--without", nargs="*", default=[], choices=SENSITIVITIES, help="sensitivities to leave out")
    parser.add_argument("--steps", type=int, default=20, help="of training, for each plan (default: %(default)s)")
    parser.add_argument("--outputs", default="outputs/sensitivity", help="where the runs go (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
