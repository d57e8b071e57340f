r"""What plans does a sensitivity lead to? The plan of the least sum for a share of the bytes, measured as a whole.

python experiments/sensitivity/plans.py stsb --model DENSE --glue GLUE --examples 128 \
    --without "measured logits, reconstructed" "measured divergence, reconstructed" "measured logits of the projection"
"""

import csv
from dataclasses import replace
from functools import cache

import run

from nxmiformer.jobs.opening import opened
from nxmiformer.jobs.search import evidence_of, nominal
from nxmiformer.methods.base import Length
from nxmiformer.methods.dense import Dense
from nxmiformer.search.budget import Budget
from nxmiformer.search.candidates import Candidates
from nxmiformer.search.knapsack import Knapsack
from nxmiformer.search.table import Assignment, Table, measure
from nxmiformer.search.whole import OneShot

SETS = ["int8", "int4", "int3", "int2", "2:4+int8", "2:4+int4", "2:4+int3", "1:4+int4", "1:8+int4"]  # a search's
RATIOS = (0.158, 0.0964, 0.066, 0.0492)  # of the float32 bytes
COLUMNS = ["ratio", "plan", "predicted", "divergence", "score"]


def main() -> None:
    arguments = run.arguments_of(__doc__ or "")
    job = run.job_of(arguments)
    with opened(replace(job, report_on="holdout"), lambda model: nominal(job, model)) as (stage, _, _, _):
        Dense().attach(stage.model, Length(0, 1))
        evidence, targets = evidence_of(stage, arguments.examples), job.planning.targets(stage.model)
        choices, whole = Candidates(SETS).choices(targets), OneShot(evidence, 3)
        weights = sum(target.shape[0] * target.shape[1] for target in targets.layers)
        tables = {
            name: Table.of(choices, dict(measure(evidence, choices, each, job.directory / "cache")), Budget().of)
            for name, each in run.SENSITIVITIES.items()
            if name not in arguments.without
        }
        shared = next(iter(tables.values()))  # all have the same choices

        @cache
        def measured(assignment: Assignment) -> tuple[str, str]:
            logits = whole.logits(shared.sets(assignment))
            return f"{evidence.divergence(logits):.4g}", f"{evidence.score(logits):.4g}"

        with (run.HERE / f"{arguments.task}-plans.csv").open("w", newline="") as stream:
            rows = csv.writer(stream, lineterminator="\n")
            rows.writerow(COLUMNS)
            for ratio in RATIOS:
                limit = int(32 * weights * ratio)
                fitting = {words: each for words, each in shared.uniform().items() if shared.cost(each) <= limit}
                plans = {f"uniform {words}": (shared, each) for words, each in fitting.items()}
                plans |= {name: (table, Knapsack()(table, limit, 1)[0]) for name, table in tables.items()}
                for name, (table, assignment) in plans.items():
                    predicted = "" if name.startswith("uniform") else f"{table.predicted(assignment):.4g}"
                    rows.writerow([ratio, name, predicted, *measured(assignment)])
                    stream.flush()


if __name__ == "__main__":
    main()
