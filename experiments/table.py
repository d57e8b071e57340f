"""Write the table of a study that study.py ran into its README: python experiments/table.py STUDY"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from rows import insert_table  # noqa: E402 (beside this script, not installed)


def main() -> None:
    studies = sorted(file.parent.name for file in HERE.glob("*/sweep.yaml"))
    if len(sys.argv) != 2 or sys.argv[1] not in studies:
        sys.exit(f"there are the studies {studies}\n{__doc__}")
    write_table(HERE / sys.argv[1])


def write_table(study: Path, methods: Sequence[str] = ()) -> None:
    """Into the study's README.md; columns are in the order of the given methods, or of its sweep."""
    results, sweep = pd.read_csv(study / "results.csv"), yaml.safe_load((study / "sweep.yaml").read_text())
    insert_table(study / "README.md", retained(results, list(sweep["plans"]), methods or list(sweep["methods"])))


def retained(results: pd.DataFrame, plans: Sequence[str], methods: Sequence[str]) -> str:
    """% of the dense score retained, a row a task and plan, a column a method: mean and deviation over the seeds."""
    present = [method for method in methods if method in set(results.method)]
    lines = [f"| task | plan | of the layers | dense | {' | '.join(f'`{method}`' for method in present)} |"]
    lines.append("|---" * (4 + len(present)) + "|")
    cells = results[results.method != "dense_more"].groupby(["task", "plan"])
    for (task, plan), rows in sorted(cells, key=lambda each: (each[0][0], plans.index(each[0][1]))):
        size = f"{100 * (1 - rows.compression_all.iloc[0]):.1f} %"
        scores = [_spread(100 * rows[rows.method == method].retention) for method in present]
        lines.append(f"| {task} | {plan} | {size} | {rows.dense_score.mean():.4f} | {' | '.join(scores)} |")
    return "\n".join(lines)


def _spread(values: pd.Series) -> str:
    if not len(values):
        return "–"
    return f"{values.mean():.1f}" + (f" ± {values.std():.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
