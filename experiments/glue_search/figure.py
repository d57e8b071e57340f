"""Draw figure.png from results.csv and the uniform study's, and write the table into README.md:
python experiments/glue_search/figure.py"""

import sys
from pathlib import Path

import pandas as pd

from nxmiformer.figures.frontier import frontier

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from rows import insert_table, spread  # noqa: E402 (beside the studies, not installed)

WEIGHTS = 10_616_832  # of MiniLM's encoder
SAME = 0.01  # two plans are of one size that differ by less


def main() -> None:
    uniform = pd.read_csv(HERE.parent / "glue_uniform" / "results.csv").query("method == 'admm'")
    searched = pd.read_csv(HERE / "results.csv").query("method != 'dense_more'")
    uniform = uniform[uniform.task.isin(searched.task) & ~uniform.plan.str.endswith("_whole")]  # of the linears alone
    uniform = uniform[uniform.groupby("plan").task.transform("nunique") == searched.task.nunique()]  # run on every task
    runs = pd.concat([searched, uniform])
    runs["bytes"] = (1 - runs.compression_all) * WEIGHTS * 4
    frame = runs.query("method == 'admm'").rename(columns={"score": "packed", "dense_score": "dense"})
    frontier(frame, size="bytes").savefig(HERE / "figure.png", dpi=150)
    insert_table(HERE / "README.md", f"{_table(runs)}\n\n{_paired(runs)}")


def _table(runs: pd.DataFrame) -> str:
    """Mean and standard deviation over the seeds, by task and size."""
    lines = ["| task | plan | recipe | size, with indices and scales | seeds | score | retained |"]
    lines += ["|---|---|---|---|---|---|---|"]
    found = runs.groupby(["task", "plan", "method"], sort=False)
    for (task, plan, method), rows in sorted(found, key=lambda group: (group[0][0], -group[1].bytes.mean())):
        size = f"{rows.bytes.mean() / 1e6:.2f} MB ({100 * (1 - rows.compression_all.mean()):.2f} %)"
        figures = f"{len(rows)} | {spread(rows.score, 4)} | {spread(100 * rows.retention, 1)} %"
        lines.append(f"| {task} | {plan} | {method} | {size} | {figures} |")
    return "\n".join(lines)


def _paired(runs: pd.DataFrame) -> str:
    """How far the searched plans are ahead of uniform ones of as many bytes, and of the best uniform one of no more by
    the search's own measure, in points of what is retained: mean and standard error over pairs of runs from the same
    dense model."""
    lines = [
        "| recipe | plan | against | tasks | pairs | ahead by, points | ahead in |",
        "|---|---|---|---|---|---|---|",
    ]
    size = runs.groupby("plan").bytes.mean()
    for method, of_method in runs.groupby("method", sort=False):
        kept = 100 * of_method.pivot(index=["task", "seed"], columns="plan", values="retention")
        for plan in sorted((each for each in kept if each.startswith("searched")), key=lambda each: -size[each]):
            same = (abs(size / size[plan] - 1) < SAME) & ~size.index.str.startswith("searched")
            others = size.index[same | (size.index == plan.replace("searched", "best_uniform"))]
            for other in others.intersection(kept.columns):
                ahead = (kept[plan] - kept[other]).dropna()
                by = f"{ahead.mean():+.2f}" + (f" ± {ahead.sem():.2f}" if len(ahead) > 1 else "")
                tasks = ", ".join(ahead.index.unique("task"))
                lines.append(f"| {method} | {plan} | {other} | {tasks} | {len(ahead)} | {by} | {(ahead > 0).sum()} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
