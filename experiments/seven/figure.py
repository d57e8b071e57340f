"""Draw bytes.png and speed.png, and write their tables into README.md: python experiments/seven/figure.py

bytes.png is what each system retains at equal bytes of the layers, from results.csv. speed.png is what is retained
against the measured speed in ONNX Runtime, from speeds.csv and from the study of heads and dimensions.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from rows import insert_table, spread  # noqa: E402 (beside the studies, not installed)

# Family of plans and method, the name in the figure, and the colour: ours, compositions of several, and the others.
SYSTEMS = {
    ("searched", "admm"): ("NxMiFormer, searched N:M + bits", "#0f6cab"),
    ("sparse_int4", "admm"): ("ADMM, single weights + INT4", "#56a3d9"),
    ("nm_everything", "admm"): ("ADMM + FullyQT", "#7a5ea8"),
    ("searched", "obert_admm"): ("oBERT, then ADMM, searched N:M + bits", "#2f2a78"),
    ("sparse_int4", "obert_admm"): ("oBERT, then ADMM, single weights + INT4", "#b39ddb"),
    ("sparse_int8", "obert"): ("oBERT + INT8", "#d2691e"),
    ("blocks_int8", "movement"): ("block movement + INT8", "#2e8b57"),
    ("pieces_int8", "group_lasso"): ("group Lasso + INT8", "#a3b18a"),
    ("everything", "fullyqt"): ("FullyQT, low-bit", "#c94f7c"),
    ("sparse_int8", "pattern_lock"): ("Prune Once for All + INT8", "#8c6d46"),
    ("kronecker_int8", "kronecker"): ("KroneckerBERT + INT8", "#7f8c99"),
}
SHARES = {"0.1": "a tenth", "0.05": "a twentieth", "0.025": "a fortieth"}
# Of the study of heads and dimensions
STRUCTURED = {"gradient": "#2e8b57", "movement_top": "#c94f7c", "magnitude": "#7f8c99", "admm": "#0f6cab"}
INT8 = "onnx int8"
LEAST = 84.0  # % retained: what is below lies on the lower edge, with its number


def main() -> None:
    runs = pd.read_csv(HERE / "results.csv").query("method != 'dense_more'")
    runs[["family", "share"]] = runs.plan.str.extract(r"(\w+)[@_](0\.\d+)")
    _bytes(runs).savefig(HERE / "bytes.png", dpi=150)
    fast = _fast(runs).query("task == 'stsb'")
    _speed(fast).savefig(HERE / "speed.png", dpi=150)
    insert_table(HERE / "README.md", f"{_table(runs)}\n\n{_speeds(fast)}")


def _present(runs: pd.DataFrame) -> dict[tuple[str, str], tuple[str, str]]:
    """The systems that have a row, those first that retain the most."""
    mean = runs.groupby(["family", "method"]).retention.mean()
    return {key: SYSTEMS[key] for key in sorted(mean.index, key=lambda key: -mean[key])}


def _bytes(runs: pd.DataFrame) -> Figure:
    """A panel a task, a line a system."""
    tasks = list(runs.groupby("task", sort=False))
    figure = Figure(figsize=(3.2 + 4.2 * len(tasks), 4.6), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    present = _present(runs)
    for axes, (task, rows) in zip(panels, tasks, strict=True):
        for (family, method), (_, colour) in present.items():
            mean = 100 * rows[(rows.family == family) & (rows.method == method)].groupby("share").retention.mean()
            line = [share for share in SHARES if share in mean]
            _line(axes, [list(SHARES).index(s) for s in line], mean[line].to_list(), colour)
        _tidied(axes, task.upper())
        axes.set_xlim(-0.3, len(SHARES) - 0.7)
        axes.set_xticks(range(len(SHARES)), [f"{name}\nof the bytes" for name in SHARES.values()])
    panels[0].set_ylabel("% of the dense score retained")
    handles = [panels[0].plot([], [], "o-", color=colour)[0] for _, colour in present.values()]
    figure.legend(handles, [name for name, _ in present.values()], loc="outside right center", frameon=False)
    return figure


def _line(axes: Axes, xs: Sequence[float], ys: Sequence[float], colour: str, label: str | None = None) -> None:
    """Points, joined where they are in the picture; those below it on its edge."""
    inside = [(x, y) for x, y in zip(xs, ys, strict=True) if y >= LEAST]
    axes.plot([x for x, _ in inside], [y for _, y in inside], "o-", color=colour, markersize=5, label=label)
    for x, y in ((x, y) for x, y in zip(xs, ys, strict=True) if y < LEAST):
        axes.plot([x], [LEAST], "v", color=colour, markersize=7, clip_on=False)
        _note(axes, f"{y:.0f} %", (x, LEAST), (8, 4 + 9 * len(axes.texts)), colour)


def _note(axes: Axes, words: str, at: tuple[float, float], place: tuple[float, float], colour: str) -> None:
    """Words beside a point."""
    axes.annotate(words, at, place, textcoords="offset points", fontsize=8, color=colour)


def _tidied(axes: Axes, title: str) -> None:
    axes.axhline(100, color="#38424c", linewidth=0.8, linestyle=":")
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(LEAST, 102)


def _table(runs: pd.DataFrame) -> str:
    """% of the dense score retained, a row a task and system."""
    lines = [f"| task | system | {' | '.join(SHARES.values())} |", "|---" * (2 + len(SHARES)) + "|"]
    for task, rows in runs.groupby("task", sort=False):
        for (family, method), (name, _) in _present(rows).items():
            cells = rows[(rows.family == family) & (rows.method == method)]
            scores = [spread(100 * cells[cells.share == share].retention, 1) for share in SHARES]
            lines.append(f"| {task} | {name} | {' | '.join(scores)} |")
    return "\n".join(lines)


def _fast(runs: pd.DataFrame) -> pd.DataFrame:
    """What was timed as INT8 in ONNX Runtime: its name, speed by batch, and score over that of the dense model."""
    found = []
    dense = runs.groupby(["task", "seed"]).dense_score.max()
    if (HERE / "speeds.csv").exists():
        timed = pd.read_csv(HERE / "speeds.csv").merge(runs, on=["task", "plan", "method", "seed"])
        names = timed.family.combine(timed.method, lambda *key: SYSTEMS[key][0]) + ", " + timed.share.map(SHARES)
        found.append(timed.assign(name=names, kind="bytes", retained=100 * timed.retention))
    study = HERE.parent / "movement"
    columns = ["task", "layers", "method", "strength", "seed", "report_on", "steps", "lr"]
    wanted = "contender == @INT8 and layers == 'all' and method != 'movement'"  # which has a penalty, and no share
    smaller = pd.read_csv(study / "speeds.csv").query(wanted)
    smaller = smaller.merge(pd.read_csv(study / "results.csv"), on=columns)
    best = [dense.get((task, seed)) for task, seed in zip(smaller.task, smaller.seed, strict=True)]
    gone = smaller.strength.map(lambda share: f"{100 * share:.0f} % of heads and dimensions gone, by ")
    ways = smaller.method.str.replace("_", ", ")
    retained = 100 * smaller.int8 / pd.Series(best, smaller.index, dtype=float)
    found.append(smaller.assign(name=gone + ways, kind=smaller.method, retained=retained).dropna(subset="retained"))
    return pd.concat(found)[["task", "name", "kind", "strength", "batch", "ratio", "retained"]]


def _speed(fast: pd.DataFrame) -> Figure:
    """What is retained against the speed at the smallest batch."""
    one = (
        fast[fast.batch == fast.batch.min()]
        .groupby(["kind", "name"], as_index=False)[["ratio", "retained", "strength"]]
        .mean()
    )
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    axes = figure.subplots()
    for kind, rows in one.groupby("kind"):
        rows = rows.sort_values("ratio")
        way = str(kind).replace("_", ", ")
        label = "equal bytes, no structure" if kind == "bytes" else f"fewer heads and dimensions, by {way}"
        colour = STRUCTURED.get(str(kind), "#c9d1d9")
        if kind == "bytes":
            axes.plot(rows.ratio, rows.retained, "o", color=colour, markersize=5, label=label)
            continue
        _line(axes, rows.ratio.to_list(), rows.retained.to_list(), colour, label)
        for row in rows.itertuples():
            place = (6, 5 if kind == "gradient" else -12)
            _note(axes, f"{100 * row.strength:.0f} %", (row.ratio, row.retained), place, colour)
    axes.set_xlim(left=1)
    _tidied(axes, f"{fast.task.iloc[0].upper()}, INT8 in ONNX Runtime, batch {fast.batch.min()}, one CPU thread")
    axes.set_xlabel("times as fast as dense float32 PyTorch")
    axes.set_ylabel("% of the dense score retained")
    axes.legend(frameon=False, loc="lower left")
    return figure


def _speeds(fast: pd.DataFrame) -> str:
    """A row a model, the fastest first."""
    batches = sorted(fast.batch.unique())
    lines = [f"| INT8 in ONNX Runtime | {' | '.join(f'batch {batch}' for batch in batches)} | retained |"]
    lines.append("|---" * (2 + len(batches)) + "|")
    for name, rows in sorted(fast.groupby("name"), key=lambda pair: -pair[1].ratio.max()):
        ratios = [spread(rows[rows.batch == batch].ratio, 2) for batch in batches]
        lines.append(f"| {name} | {' | '.join(ratios)} | {spread(rows[rows.batch == batches[0]].retained, 1)} % |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
