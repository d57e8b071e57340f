"""Write the tables of results.csv and speeds.csv into README.md: python experiments/movement/table.py"""

import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from rows import insert_table, spread  # noqa: E402 (beside the studies, not installed)

KEYS = ["task", "method", "strength"]
CELL = ["task", "layers", "method", "strength", "seed", "report_on", "steps", "lr"]
CONTENDERS = {"pytorch": "PyTorch", "onnx": "ONNX Runtime", "onnx int8": "ONNX Runtime INT8"}


def main() -> None:
    results, speeds = (pd.read_csv(HERE / name) for name in ("results.csv", "speeds.csv"))
    insert_table(HERE / "README.md", f"{scores(results)}\n\n{times(speeds.merge(results[CELL], on=CELL))}")


def scores(results: pd.DataFrame) -> str:
    """% of the dense score retained, a row a task, method and share or penalty."""
    lines = ["| task | method | removed | heads left | dimensions left | seeds | dense | retained | in INT8 |"]
    lines.append("|---" * 9 + "|")
    for (task, method, strength), rows in results.groupby(KEYS, sort=False):
        removed = f"penalty {strength:g}" if method == "movement" else f"{100 * strength:g} %"
        left = f"{100 * rows.heads.mean():.0f} % | {100 * rows.dimensions.mean():.0f} %"
        retained = (spread(100 * each / rows.dense, 1) for each in (rows.score, rows.int8))
        figures = f"{len(rows)} | {rows.dense.mean():.4f} | {' % | '.join(retained)} %"
        lines.append(f"| {task} | `{method}` | {removed} | {left} | {figures} |")
    return "\n".join(lines)


def times(speeds: pd.DataFrame) -> str:
    """How many times as fast as the dense model in float32 PyTorch, batch of 1 / of 8, a row a timed model."""
    lines = [f"| task | method | removed | {' | '.join(CONTENDERS.values())} |", "|---" * (3 + len(CONTENDERS)) + "|"]
    for (task, method, strength), rows in speeds.groupby(KEYS, sort=False):
        ratios = rows.groupby(["contender", "batch"]).ratio.mean()
        cells = (" / ".join(f"{each:.2f}" for each in ratios[name]) for name in CONTENDERS)
        lines.append(f"| {task} | `{method}` | {100 * strength:g} % | {' | '.join(cells)} |")
    dense = speeds[speeds.contender == "dense onnx"].groupby("batch").ratio.mean()
    lines.append(f"| | dense | | 1 / 1 | {' / '.join(f'{each:.2f}' for each in dense)} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
