"""Draw figure.png and print the table of results.csv: python experiments/glue_uniform/figure.py"""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

HERE = Path(__file__).parent
METHODS = ["one_shot", "admm_paper", "sr_ste", "fixed_mask", "fixed_mask_distill", "admm"]
COLOURS = dict(zip(METHODS, ["#9aa6b2", "#d2691e", "#86b8dc", "#4d8a4d", "#2f5d2f", "#0f6cab"], strict=True))


def main() -> None:
    results = pd.read_csv(HERE / "results.csv")
    figure = _figure(results)
    figure.savefig(HERE / "figure.png", dpi=150)
    print(_table(results))


def _figure(results: pd.DataFrame) -> Figure:
    """Score kept by each method: one panel a task and plan, a dot a seed, a bar at the mean."""
    panels = list(results.groupby(["task", "plan"], sort=False))
    figure = Figure(figsize=(1 + 4.2 * len(panels), 3.2), layout="constrained")
    for axes, ((task, plan), rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        present = [method for method in METHODS if method in set(rows.method)]
        for place, method in enumerate(present):
            kept = 100 * rows[rows.method == method].retention
            axes.plot(kept, [place] * len(kept), "o", color=COLOURS[method], alpha=0.55, markeredgewidth=0)
            axes.plot([kept.mean()] * 2, [place - 0.3, place + 0.3], color=COLOURS[method], linewidth=2.5)
            axes.annotate(f"{kept.mean():.1f}", (kept.mean(), place + 0.36), ha="center", va="bottom", fontsize=8)
        axes.axvline(100, color="#38424c", linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(present)), present)
        axes.set_ylim(-0.6, len(present) - 0.1)
        axes.set_xlabel("% of the dense score kept")
        size = 100 * rows.compression_all.iloc[0]
        axes.set_title(f"{task}, {plan}: {size:.1f} % smaller with indices and scales", fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _table(results: pd.DataFrame) -> str:
    """Mean and standard deviation over the seeds, in Markdown."""
    lines = ["| task | plan | method | seeds | score | dense | kept |", "|---|---|---|---|---|---|---|"]
    for (task, plan), rows in results.groupby(["task", "plan"], sort=False):
        for method in METHODS:
            runs = rows[rows.method == method]
            if len(runs):
                spread = f" ± {runs.score.std():.4f}" if len(runs) > 1 else ""
                cells = [f"{runs.score.mean():.4f}{spread}", f"{runs.dense_score.mean():.4f}"]
                kept = f"{100 * runs.retention.mean():.2f} %"
                lines.append(f"| {task} | {plan} | `{method}` | {len(runs)} | {' | '.join(cells)} | {kept} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
