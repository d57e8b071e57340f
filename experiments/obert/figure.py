"""Draw figure.png from results.csv, and write its tables into README.md: python experiments/obert/figure.py"""

import sys
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from table import write_table  # noqa: E402 (beside the studies, not installed)

NAMES = {
    "one_shot": "magnitude, not trained",
    "obert_0_steps": "oBERT, not trained",
    "reconstructed_0_steps": "reconstructed, not trained",
    "obert": "oBERT, distilled",
    "obert_gradual": "oBERT, gradual, distilled",
    "admm": "ours",
}
COLOURS = dict(zip(NAMES, ["#9aa6b2", "#e0a96d", "#86b8dc", "#d2691e", "#8b3a0e", "#0f6cab"], strict=True))
PRUNED = {"sparse_50": 50, "sparse_60": 60, "sparse_70": 70, "sparse_80": 80, "sparse_90": 90}  # % of the weights


def main() -> None:
    results = pd.read_csv(HERE / "results.csv")
    methods = results[results.method != "dense_more"]
    _figure(methods).savefig(HERE / "figure.png", dpi=150)
    write_table(HERE)


def _figure(results: pd.DataFrame) -> Figure:
    """What is retained against the share of the weights that is pruned: a panel a task, a line a method. 2:4 and
    half of the blocks prune half, and stand apart on the left."""
    tasks = list(results.groupby("task", sort=False))
    figure = Figure(figsize=(1.4 + 3.6 * len(tasks), 4.4), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    places = {"1x4_half": 30, "2of4": 40, **PRUNED}
    for axes, (task, rows) in zip(panels, tasks, strict=True):
        for method in NAMES:
            runs = rows[rows.method == method]
            kept = 100 * runs.groupby("plan").retention.mean()
            line = [plan for plan in PRUNED if plan in kept]
            axes.plot([places[plan] for plan in line], kept[line], "o-", color=COLOURS[method], markersize=4)
            alone = [plan for plan in kept.index if plan not in PRUNED]
            axes.plot([places[plan] for plan in alone], kept[alone], "o", color=COLOURS[method], markersize=5)
        axes.axhline(100, color="#38424c", linewidth=0.8, linestyle=":")
        axes.set_xticks(list(places.values()), ["half of\n1 x 4", "2:4", *(f"{share} %" for share in PRUNED.values())])
        axes.set_xlabel("weights pruned")
        axes.set_title(task.upper(), loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("% of the dense score retained")
    present = [method for method in NAMES if method in set(results.method)]
    handles = [panels[0].plot([], [], "o-", color=COLOURS[method])[0] for method in present]
    names, columns = [NAMES[method] for method in present], min(3, len(tasks))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
    return figure


if __name__ == "__main__":
    main()
