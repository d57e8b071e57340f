"""Draw speed.png, and write the tables into README.md: python experiments/movement/figure.py

The tables are of results.csv and speeds.csv. speed.png is what the INT8 models retain against their speed, by task.
"""

import sys
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from rows import insert_table, spread  # noqa: E402 (beside the studies, not installed)

KEYS = ["task", "method", "strength"]
CELL = ["task", "layers", "method", "strength", "seed", "report_on", "steps", "lr"]
CONTENDERS = {"pytorch": "PyTorch", "onnx": "ONNX Runtime", "onnx int8": "ONNX Runtime INT8"}
COLOURS = {"gradient": "#2e8b57", "movement_top": "#c94f7c", "movement": "#e39ab5", "magnitude": "#7f8c99"}
COLOURS |= {"admm": "#0f6cab"}


def main() -> None:
    results, speeds = (pd.read_csv(HERE / name) for name in ("results.csv", "speeds.csv"))
    timed = speeds.merge(results, on=CELL)
    _drawn(results, timed[timed.contender == "onnx int8"]).savefig(HERE / "speed.png", dpi=150)
    insert_table(HERE / "README.md", f"{scores(results)}\n\n{times(timed)}")


def removed(method: str, strength: float) -> str:
    """How much a method was asked to remove."""
    return f"penalty {strength:g}" if method == "movement" else f"{100 * strength:g} %"


def scores(results: pd.DataFrame) -> str:
    """% of the dense score retained, a row a task, method and share or penalty."""
    lines = ["| task | method | removed | heads left | dimensions left | seeds | dense | retained | in INT8 |"]
    lines.append("|---" * 9 + "|")
    for (task, method, strength), rows in results.groupby(KEYS, sort=False):
        left = f"{100 * rows.heads.mean():.0f} % | {100 * rows.dimensions.mean():.0f} %"
        retained = (spread(100 * each / rows.dense, 1) for each in (rows.score, rows.int8))
        figures = f"{len(rows)} | {rows.dense.mean():.4f} | {' % | '.join(retained)} %"
        lines.append(f"| {task} | `{method}` | {removed(method, strength)} | {left} | {figures} |")
    return "\n".join(lines)


def times(timed: pd.DataFrame) -> str:
    """How many times as fast as the dense model in float32 PyTorch, batch of 1 / of 8, a row a timed model."""
    lines = [f"| task | method | removed | {' | '.join(CONTENDERS.values())} |", "|---" * (3 + len(CONTENDERS)) + "|"]
    for (task, method, strength), rows in timed.groupby(KEYS, sort=False):
        ratios = rows.groupby(["contender", "batch"]).ratio.mean()
        cells = (" / ".join(f"{each:.2f}" for each in ratios[name]) for name in CONTENDERS)
        lines.append(f"| {task} | `{method}` | {removed(method, strength)} | {' | '.join(cells)} |")
    dense = timed[timed.contender == "dense onnx"].groupby("batch").ratio.mean()
    lines.append(f"| | dense | | 1 / 1 | {' / '.join(f'{each:.2f}' for each in dense)} | |")
    return "\n".join(lines)


def _drawn(results: pd.DataFrame, timed: pd.DataFrame) -> Figure:
    """A panel a task, a line a method, at the smallest batch; scores are means of all seeds."""
    ratios = timed[timed.batch == timed.batch.min()].groupby(KEYS, sort=False, as_index=False).ratio.mean()
    retained = results.assign(retained=100 * results.int8 / results.dense).groupby(KEYS, as_index=False).retained.mean()
    one = ratios.merge(retained, on=KEYS)
    tasks = list(one.groupby("task", sort=False))
    figure = Figure(figsize=(1.2 + 4.2 * len(tasks), 4.4), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    for axes, (task, rows) in zip(panels, tasks, strict=True):
        for method, colour in COLOURS.items():
            _line(axes, rows[rows.method == method], method, colour)
        axes.axhline(100, color="#38424c", linewidth=0.8, linestyle=":")
        axes.set_title(str(task).upper(), loc="left", fontsize=10)
        axes.set_xlabel("times as fast as dense float32 PyTorch")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(1, one.ratio.max() + 1)
        axes.set_ylim(one.retained.min() - 2, one.retained.max() + 2)
    panels[0].set_ylabel("% of the dense score retained, INT8")
    present = [method for method in COLOURS if method in set(one.method)]
    handles = [panels[0].plot([], [], "o-", color=COLOURS[method])[0] for method in present]
    figure.legend(handles, [method.replace("_", ", ") for method in present], loc="outside right center", frameon=False)
    return figure


def _line(axes: Axes, rows: pd.DataFrame, method: str, colour: str) -> None:
    """The models of one method, each with how much was removed."""
    rows = rows.sort_values("ratio")
    axes.plot(rows.ratio, rows.retained, "o-", color=colour, markersize=5)
    for row in rows.itertuples():
        place = (4, 6) if method in ("gradient", "movement") else (4, -12)
        words, point = removed(method, row.strength), (row.ratio, row.retained)
        axes.annotate(words, point, place, textcoords="offset points", fontsize=7, color=colour)


if __name__ == "__main__":
    main()
