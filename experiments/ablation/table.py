"""Write the table of results.csv into README.md: python experiments/ablation/table.py"""

import re
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
MARKS = ("<!-- made by experiments/ablation/table.py -->", "<!-- end -->")


def main() -> None:
    results = pd.read_csv(HERE / "results.csv")
    runs = results[results.method != "dense_more"]
    ours = runs[runs.method == "admm"].set_index("seed").score
    lines = ["| method | seeds | accuracy | against `admm`, points |", "|---|---|---|---|"]
    for method, rows in runs.groupby("method", sort=False):
        difference = 100 * (rows.set_index("seed").score - ours).dropna()
        against = "" if method == "admm" else f"{difference.mean():+.1f} ± {difference.std():.1f}"
        lines.append(f"| `{method}` | {len(rows)} | {_percent(rows.score)} | {against} |")
    dense = results[results.method == "dense_more"].dense_score
    text = "\n".join([f"The dense models have {_percent(dense)}.", "", *lines])
    pattern = "(" + re.escape(MARKS[0]) + r"\n).*?(" + re.escape(MARKS[1]) + ")"
    readme = HERE / "README.md"
    readme.write_text(re.sub(pattern, lambda m: f"{m[1]}{text}\n{m[2]}", readme.read_text(), flags=re.S))


def _percent(scores: pd.Series) -> str:
    return f"{100 * scores.mean():.2f} ± {100 * scores.std():.2f} %"


if __name__ == "__main__":
    main()
