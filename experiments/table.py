"""Write the table of a study that study.py ran into its README: python experiments/table.py STUDY

A study of several tasks or plans gets a row for each, and a column a method. One that compares methods alone has a row
a method, and how far it is from `admm` with the same seeds.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from rows import insert_table, spread  # noqa: E402 (beside this script, not installed)
from study import read_sweep  # noqa: E402


def main() -> None:
    studies = sorted(file.parent.name for file in HERE.glob("*/sweep.yaml"))
    if len(sys.argv) != 2 or sys.argv[1] not in studies:
        sys.exit(f"there are the studies {studies}\n{__doc__}")
    write_table(HERE / sys.argv[1])


def write_table(study: Path) -> None:
    """Into the study's README.md, in the order of its sweep."""
    results, sweep = pd.read_csv(study / "results.csv"), read_sweep(study)
    alone = len(sweep["plans"]) == len(sweep["tasks"]) == 1
    table = compared(results) if alone else retained(results, list(sweep["plans"]), list(sweep["methods"]))
    insert_table(study / "README.md", table)


def retained(results: pd.DataFrame, plans: Sequence[str], methods: Sequence[str]) -> str:
    """% of the dense score retained, a row a task and plan, a column a method: mean and deviation over the seeds."""
    present = [method for method in methods if method in set(results.method)]
    lines = [f"| task | plan | of the layers | dense | {' | '.join(f'`{method}`' for method in present)} |"]
    lines.append("|---" * (4 + len(present)) + "|")
    cells = results[results.method != "dense_more"].groupby(["task", "plan"])
    for (task, plan), rows in sorted(cells, key=lambda each: (each[0][0], plans.index(each[0][1]))):
        size = f"{100 * (1 - rows.compression_all.iloc[0]):.1f} %"
        scores = [spread(100 * rows[rows.method == method].retention, 1) for method in present]
        lines.append(f"| {task} | {plan} | {size} | {rows.dense_score.mean():.4f} | {' | '.join(scores)} |")
    return "\n".join(lines)


def compared(results: pd.DataFrame) -> str:
    """The accuracy of each method, mean and deviation over the seeds, and the points between it and `admm`."""
    runs = results[results.method != "dense_more"]
    ours = runs[runs.method == "admm"].set_index("seed").score
    lines = ["| method | seeds | accuracy | against `admm`, points |", "|---|---|---|---|"]
    for method, rows in runs.groupby("method", sort=False):
        difference = 100 * (rows.set_index("seed").score - ours).dropna()
        against = "" if method == "admm" else f"{difference.mean():+.1f} ± {difference.std():.1f}"
        lines.append(f"| `{method}` | {len(rows)} | {_percent(rows.score)} | {against} |")
    dense = results[results.method == "dense_more"].dense_score
    return "\n".join([f"The dense models have {_percent(dense)}.", "", *lines])


def _percent(scores: pd.Series) -> str:
    return f"{100 * scores.mean():.2f} ± {100 * scores.std():.2f} %"


if __name__ == "__main__":
    main()
