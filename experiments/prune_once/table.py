"""Write the table of results.csv into README.md: python experiments/prune_once/table.py"""

import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from rows import insert_table, spread  # noqa: E402 (beside the studies, not installed)


def main() -> None:
    insert_table(HERE / "README.md", table(pd.read_csv(HERE / "results.csv")))


def table(results: pd.DataFrame) -> str:
    """% of the dense score retained, a row a task, plan, method and length of the pruning on the corpus."""
    lines = [
        "| task | plan | method | steps on the corpus | of the layers | seeds | dense | retained |",
        "|---" * 8 + "|",
    ]
    keys = ["task", "plan", "method", "upstream"]
    for (task, plan, method, upstream), rows in results.groupby(keys, sort=False):
        size = 100 * (1 - rows.compression.iloc[0])
        figures = f"{size:.1f} % | {len(rows)} | {rows.dense.mean():.4f} | {spread(100 * rows.retention, 1)} %"
        lines.append(f"| {task} | {plan} | `{method}` | {f'2 x {upstream}' if upstream else '–'} | {figures} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
