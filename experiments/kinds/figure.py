"""Draw figure.png from results.csv, and write its table into README.md: python experiments/kinds/figure.py"""

import sys
from pathlib import Path

import pandas as pd
import yaml
from matplotlib.figure import Figure

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from rows import insert_table, spread  # noqa: E402 (beside the studies, not installed)

NAMES = {
    "one_shot": "projected, not trained",
    "reconstructed": "reconstructed, not trained",
    "fixed_mask_distill": "magnitude mask, distilled",
    "admm": "ours",
}
COLOURS = dict(zip(NAMES, ["#9aa6b2", "#86b8dc", "#c8a415", "#0f6cab"], strict=True))
LEAST = 60.0  # % retained; what is below stands at the edge with its figure


def main() -> None:
    results = pd.read_csv(HERE / "results.csv")
    sweep = yaml.safe_load((HERE / "kinds.yaml").read_text())
    order = {kind: number for number, kind in enumerate(sweep["kinds"])}
    results = results.assign(
        rising=results.metric != "perplexity",
        kept=(results.score / results.dense).where(results.metric != "perplexity", results.dense / results.score),
    ).sort_values(["kind", "compression"], key=lambda each: each.map(order) if each.name == "kind" else each)
    _figure(results).savefig(HERE / "figure.png", dpi=150)
    insert_table(HERE / "README.md", _table(results))


def _table(results: pd.DataFrame) -> str:
    """Mean and standard deviation over the seeds."""
    lines = ["| kind | metric | plan | of the layers | method | seeds | score | dense | retained |", "|---" * 9 + "|"]
    for (kind, plan), rows in results.groupby(["kind", "plan"], sort=False):
        for method in NAMES:
            runs = rows[rows.method == method]
            if len(runs):
                first, place = runs.iloc[0], 4 if runs.score.mean() < 1 else 2
                kept = spread(100 * runs.kept, 1) + " %" if first.rising else spread(runs.score / runs.dense, 2) + " x"
                cells = [kind, first.metric, plan, f"{100 * (1 - first.compression):.1f} %", f"`{method}`", len(runs)]
                cells += [spread(runs.score, place), spread(runs.dense, place), kept]
                lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _figure(results: pd.DataFrame) -> Figure:
    """What is retained of the dense score: a panel a kind, a place a plan, a mark a method."""
    kinds = list(results.groupby("kind", sort=False))
    plans = [rows.plan.nunique() for _, rows in kinds]
    figure = Figure(figsize=(2.2 + 1.1 * sum(plans), 4.2), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False, width_ratios=plans, sharey=True)[0]
    for axes, (kind, rows) in zip(panels, kinds, strict=True):
        names = list(dict.fromkeys(rows.plan))
        for (plan, method), runs in rows.groupby(["plan", "method"], sort=False):
            x, kept = names.index(plan) + 0.2 * (list(NAMES).index(method) - 1.5), 100 * runs.kept
            if kept.mean() < LEAST:
                axes.plot(x, LEAST, "v", color=COLOURS[method])
                axes.annotate(
                    f"{kept.mean():.0f}",
                    (x, LEAST),
                    (0, -5),
                    textcoords="offset points",
                    ha="center",
                    va="top",
                    fontsize=8,
                )
            else:
                spread = kept.std() if len(kept) > 1 else 0.0
                axes.errorbar(x, kept.mean(), spread, fmt="o", color=COLOURS[method], linewidth=1.5)
        axes.axhline(100, color="#38424c", linewidth=0.8, linestyle=":")
        axes.set_xticks(range(len(names)), [name.replace("of", ":").replace("_", " +\n").upper() for name in names])
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.set_title(f"{kind}\n{rows.metric.iloc[0]}", loc="left", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(LEAST - 4, 103)
    panels[0].set_ylabel("% of the dense score retained")
    present = [method for method in NAMES if method in set(results.method)]
    handles = [panels[0].plot([], [], "o", color=COLOURS[method])[0] for method in present]
    figure.legend(handles, [NAMES[method] for method in present], loc="outside lower center", ncols=4, frameon=False)
    return figure


if __name__ == "__main__":
    main()
