"""What do the searched plans give to which layer, and do seeds and tasks agree?

python experiments/glue_search/plans.py outputs/glue      # plans.csv, of the runs' plan.json
python experiments/glue_search/plans.py                   # prints tables of plans.csv

Bits are those of a weight, zeros among them: 2:4 + INT4 takes 3, one of which tells where, and a little for the scales.
"""

import argparse
from itertools import combinations
from pathlib import Path

import pandas as pd
from scipy.stats import spearmanr

from nxmiformer.plan.compression import CompressionPlan

HERE = Path(__file__).parent
FILE = HERE / "plans.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", nargs="?", type=Path, help="where study.py put the runs")
    outputs = parser.parse_args().outputs
    if outputs is not None:
        _collect(outputs).to_csv(FILE, index=False, lineterminator="\n")
    plans = pd.read_csv(FILE)
    plans["block"] = plans.layer.str.extract(r"layer\.(\d+)\.")[0].astype(int)
    plans["component"] = plans.layer.str.replace(r".*layer\.\d+\.", "", regex=True)
    for name, rows in plans.groupby("plan", sort=False):
        print(f"\n{name}: mean bits of a weight, over tasks and seeds\n")
        print(rows.pivot_table(index="component", columns="block", values="bits", sort=False).round(1).to_string())
        print(f"\n{name}: Spearman's rank correlation of the layers' bits, mean over pairs of plans\n")
        print(_agreement(rows))


def _collect(outputs: Path) -> pd.DataFrame:
    """A row for each layer of each searched plan."""
    runs = pd.read_csv(HERE / "results.csv").query("plan.str.startswith('searched') and method == 'admm'")
    rows = []
    for run in runs.itertuples():
        plan = CompressionPlan.load(outputs / f"{run.task}-{run.plan}-admm-{run.seed}" / "plan.json")
        for layer, spec in plan.layers.items():
            bits = 8 * spec.weight.storage(spec.shape).nbytes / (spec.shape[0] * spec.shape[1])
            row = {"task": run.task, "plan": run.plan, "seed": run.seed, "layer": layer, "set": str(spec.weight)}
            rows.append({**row, "bits": round(bits, 3)})
    return pd.DataFrame(rows)


def _agreement(rows: pd.DataFrame) -> str:
    bits = rows.pivot_table(index="layer", columns=["task", "seed"], values="bits")
    found: dict[str, list[float]] = {}
    for one, other in combinations(bits.columns, 2):
        pair = f"seeds of {one[0]}" if one[0] == other[0] else " and ".join(sorted((one[0], other[0])))
        found.setdefault(pair, []).append(spearmanr(bits[one], bits[other])[0])
    return "\n".join(f"{pair}: {sum(each) / len(each):.2f} ({len(each)})" for pair, each in found.items())


if __name__ == "__main__":
    main()
