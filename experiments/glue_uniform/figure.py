"""Draw figure.png from results.csv, and write its tables into README.md here and at the top:
python experiments/glue_uniform/figure.py"""

import math
import sys
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from rows import insert_table, spread  # noqa: E402 (beside the studies, not installed)

NAMES = {
    "one_shot": "one-shot projection",
    "admm_paper": "ADMM as the paper's code",
    "modelopt": "ModelOpt: mask, QAT",
    "sr_ste": "SR-STE + QAT",
    "fixed_mask": "magnitude mask + QAT",
    "fixed_mask_distill": "magnitude mask, distilled",
    "admm_no_distill": "ours, not distilled",
    "admm": "ours",
}
METHODS = list(NAMES)
HEADLINE = ["one_shot", "modelopt", "fixed_mask", "fixed_mask_distill", "admm"]
COLOURS = dict(
    zip(
        METHODS,
        ["#9aa6b2", "#d2691e", "#8e44ad", "#c8a415", "#7fb77e", "#2f6d3a", "#86b8dc", "#0f6cab"],
        strict=True,
    )
)
WHOLE = "2of4_int4_whole"  # embeddings and head too: its size is none of the linears' alone
LEAST = 90.0  # % retained; what is below is told by its figure at the edge


def main() -> None:
    results = pd.read_csv(HERE / "results.csv")
    methods = results[results.method != "dense_more"]
    compared = methods[methods.task.isin(methods[methods.method == "admm"].task)]
    _figure(compared[compared.plan != WHOLE]).savefig(HERE / "figure.png", dpi=150)
    tables = _dense(results), _table(methods), _over_tasks(compared), _paired(compared)
    insert_table(HERE / "README.md", "\n\n".join(tables))
    sizes = pd.read_csv(HERE.parent / "size" / "results.csv")
    sizes = sizes[sizes.embeddings.isna()].set_index("linears")
    searched = pd.read_csv(HERE.parent / "glue_search" / "results.csv")
    insert_table(HERE.parents[1] / "README.md", _headline(compared, searched, sizes))


def _figure(results: pd.DataFrame) -> Figure:
    """Score retained against the size of the compressed layers: a panel a task, a mark a method (mean and spread)."""
    tasks = list(results.groupby("task", sort=False))
    groups = 100 * results.groupby(["task", "plan", "method"]).retention.agg(["mean", "std"]).fillna(0)
    top = max(101, (groups["mean"] + groups["std"]).max() + 0.3)
    plans = [rows.plan.nunique() for _, rows in tasks]
    figure = Figure(figsize=(4.0 + 0.9 * sum(plans), 4.6), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False, width_ratios=plans)[0]
    for axes, (task, rows) in zip(panels, tasks, strict=True):
        sizes = (1 - rows.groupby("plan").compression_all.first()).sort_values()
        for place, plan in enumerate(sizes.index):
            _marks(axes, place, rows[rows.plan == plan])
        words = [plan.replace("of", ":").replace("_", " +\n").upper() for plan in sizes.index]
        labels = [f"{word}\n{100 * size:.1f} %" for word, size in zip(words, sizes, strict=True)]
        axes.axhline(100, color="#38424c", linewidth=0.8, linestyle=":")
        axes.set_xticks(range(len(sizes)), labels)
        axes.set_xlim(-0.6, len(sizes) - 0.4)
        axes.set_ylim(LEAST - 1.2, top)
        axes.set_title(task.upper(), loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("% of the dense score retained")
    figure.supxlabel("what is left of the layers, indices and scales included", fontsize=9)
    present = [method for method in reversed(METHODS) if method in set(results.method)]
    handles = [figure.axes[0].plot([], [], "o", color=COLOURS[method])[0] for method in present]
    figure.legend(handles, [NAMES[method] for method in present], loc="outside right center", frameon=False, fontsize=8)
    return figure


def _marks(axes: Axes, place: int, rows: pd.DataFrame) -> None:
    below = 0
    for number, method in enumerate(METHODS):
        kept = 100 * rows[rows.method == method].retention
        if not len(kept):
            continue
        x, colour = place + (number - (len(METHODS) - 1) / 2) * 0.1, COLOURS[method]
        if kept.mean() < LEAST:
            axes.plot(x, LEAST - 0.3, "v", color=colour, markersize=5)
            axes.annotate(f"{kept.mean():.0f}", (x, LEAST - 0.55), ha="center", va="top", fontsize=7, color=colour)
            below += 1
            continue
        spread = kept.std() if len(kept) > 1 else 0.0
        axes.errorbar(
            x, kept.mean(), spread, fmt="o", color=colour, markersize=7 if method == "admm" else 5, linewidth=1.5
        )


def _dense(results: pd.DataFrame) -> str:
    """The dense models' scores, and those after as many steps more."""
    more = results[results.method == "dense_more"]
    lines = ["| task | dense | trained on (`dense_more`) | seeds |", "|---|---|---|---|"]
    for task, rows in more.groupby("task", sort=False):
        lines.append(f"| {task} | {spread(rows.dense_score, 4)} | {spread(rows.score, 4)} | {len(rows)} |")
    return "\n".join(lines)


def _table(results: pd.DataFrame) -> str:
    """Mean and standard deviation over the seeds."""
    lines = ["| task | plan | method | seeds | score | retained |", "|---|---|---|---|---|---|"]
    for (task, plan), rows in results.groupby(["task", "plan"], sort=False):
        for method in METHODS:
            runs = rows[rows.method == method]
            if len(runs):
                lines.append(
                    f"| {task} | {plan} | `{method}` | {len(runs)} | {spread(runs.score, 4)} | {_kept(runs)} |"
                )
    return "\n".join(lines)


def _over_tasks(results: pd.DataFrame) -> str:
    """Mean over the tasks of what is retained, by the methods that were run on all tasks of ours; and of what the
    dense models retain as they are, where those that were trained on may be the better ones."""
    lines = [
        "| plan | mean over | the dense model as it is | " + " | ".join(f"`{method}`" for method in HEADLINE) + " |"
    ]
    lines.append("|---" * (3 + len(HEADLINE)) + "|")
    for plan, rows in results.groupby("plan", sort=False):
        kept = 100 * rows.groupby(["method", "task"], sort=False).retention.mean()
        ours = rows[rows.method == "admm"]
        dense = 100 * (ours.retention * ours.dense_score / ours.score).groupby(ours.task).mean()
        tasks = list(kept["admm"].index)
        cells = [f"{kept[m].mean():.1f}" if m in kept and set(kept[m].index) == set(tasks) else "–" for m in HEADLINE]
        cells.insert(0, f"{dense.mean():.1f}")
        lines.append(f"| {plan} | {', '.join(tasks)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _paired(results: pd.DataFrame) -> str:
    """How far ours is ahead of each method, in points of what is retained: mean and standard error over pairs of runs
    from the same dense model."""
    lines = ["| plan | `admm` against | pairs | ahead by, points | ahead in |", "|---|---|---|---|---|"]
    for plan, rows in results.groupby("plan", sort=False):
        kept = 100 * rows.pivot(index=["task", "seed"], columns="method", values="retention")
        for method in reversed([m for m in METHODS if m in kept and m != "admm"]):
            ahead = (kept.admm - kept[method]).dropna()
            if len(ahead) > 2:
                by = f"{ahead.mean():+.2f} ± {ahead.sem():.2f}"
                lines.append(f"| {plan} | `{method}` | {len(ahead)} | {by} | {(ahead > 0).sum()} |")
    return "\n".join(lines)


def _headline(results: pd.DataFrame, searched: pd.DataFrame, sizes: pd.DataFrame) -> str:
    """% of the dense score that the main methods retain, and ours with a searched plan in the same bytes: the mean
    over the tasks, with the size of the layers and of the file of weights, over their float32 sizes."""
    named = [NAMES[m] if m != "admm" else "**ours**" for m in HEADLINE]
    lines = ["| | " + " | ".join(["of the layers", "of the file", *named, "**ours, searched plan**"]) + " |"]
    lines.append("|---" * (4 + len(HEADLINE)) + "|")
    for plan, rows in results.groupby("plan", sort=False):
        if rows.task.nunique() < results.task.nunique():
            continue
        retained = 100 * rows.pivot_table(index="method", columns="task", values="retention").mean(axis=1, skipna=False)
        cells = ["–" if math.isnan(each) else f"{each:.1f} %" for each in retained.reindex(HEADLINE)]
        share = 1 - rows.compression_all.iloc[0]
        found = searched[searched.plan == f"searched@{share:.3f}"]
        best = 100 * found.groupby(["method", "task"]).retention.mean().groupby("method").mean()
        cells = [*cells[:-1], f"**{cells[-1]}**", f"**{best['admm']:.1f} %**"]
        words = str(plan).replace("of", ":").replace("_int", " + INT")
        file = sizes.loc[words.lower().replace(" ", ""), "file"] / sizes.dense.iloc[0]
        lines.append(f"| {words} | {100 * share:.1f} % | {100 * file:.0f} % | {' | '.join(cells)} |")
    return "\n".join(lines)


def _kept(runs: pd.DataFrame) -> str:
    return spread(100 * runs.retention, 1) + (" %" if len(runs) else "")


if __name__ == "__main__":
    main()
