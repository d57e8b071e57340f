"""How near do the logits of the packed models come to the dense model's?

python experiments/glue_search/fidelity.py outputs/glue --glue GLUE     # fidelity.csv, of the runs of results.csv there
python experiments/glue_search/fidelity.py                              # prints the means of fidelity.csv

On the validation split, on which nothing was chosen. Divergence is KL(dense || packed), half the squared error for a
regression; agreement the share of equal predictions. A score moves by the luck of a few examples, these do not.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

import nxmiformer as nx
from nxmiformer.layers.mode import evaluating
from nxmiformer.train.evaluate import forward_of, looks

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from glue import HUB, glue  # noqa: E402 (beside the studies, not installed)

FILE = HERE / "fidelity.csv"
CELL = ["task", "plan", "method", "seed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", nargs="?", type=Path, help="where study.py put the runs")
    parser.add_argument("--glue", default=HUB, help="directory of GLUE in the hub's layout (default: the hub)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.outputs is not None:
        torch.set_num_threads(arguments.threads)
        _collect(arguments.outputs, arguments.glue)
    _print(pd.read_csv(FILE))


def _collect(outputs: Path, directory: str) -> None:
    """A row for every run whose packed model and dense model are there; those of before that are not stay."""
    known = pd.read_csv(FILE).to_dict("records") if FILE.exists() else []
    rows = {tuple(row[key] for key in CELL): row for row in known}
    runs = pd.read_csv(HERE / "results.csv").query("method != 'dense_more'")
    for (task, seed), cells in runs.groupby(["task", "seed"], sort=False):
        dense = outputs / f"{task}-dense-{seed}" / "dense"
        packed = {cell: outputs / "{}-{}-{}-{}".format(*cell) / "packed" for cell in map(tuple, cells[CELL].to_numpy())}
        there = {cell: path for cell, path in packed.items() if path.is_dir() and dense.is_dir()}
        if there:
            work = _Fidelity(task, dense, directory)
            rows |= {cell: {**dict(zip(CELL, cell, strict=True)), **work(path)} for cell, path in there.items()}
            pd.DataFrame(list(rows.values())).to_csv(FILE, index=False, lineterminator="\n")


class _Fidelity:
    """Compares packed models with a dense one."""

    def __init__(self, task: str, dense: Path, directory: str) -> None:
        data = glue(task, directory)
        self.accelerator, tokenizer = Accelerator(cpu=True), AutoTokenizer.from_pretrained(dense)
        model, self.task = AutoModelForSequenceClassification.from_pretrained(dense), data
        self.examples = data.encode(data.splits()["validation"], tokenizer, 128, model.config)
        self.dense = self._logits(model)

    def _logits(self, model: PreTrainedModel) -> Tensor:
        """In order of the examples' lengths."""
        forward = forward_of(model, self.accelerator)
        with evaluating(model):
            seen = [units.logits for _, _, units in looks(forward, self.task, self.examples, 64, "cpu")]
        return torch.cat(seen).double()

    def __call__(self, packed: Path) -> dict[str, float]:
        logits = self._logits(nx.load_packed(packed))
        if logits.shape[1] == 1:
            return {"divergence": round(0.5 * F.mse_loss(logits, self.dense).item(), 6), "agreement": np.nan}
        after, before = logits.log_softmax(1), self.dense.log_softmax(1)
        equal = (logits.argmax(1) == self.dense.argmax(1)).double().mean().item()
        divergence = F.kl_div(after, before, reduction="batchmean", log_target=True).item()
        return {"divergence": round(divergence, 6), "agreement": round(equal, 6)}


def _print(frame: pd.DataFrame) -> None:
    found = frame.groupby(CELL[:3], sort=False)[["divergence", "agreement"]].agg(["mean", "count"])
    print("| task | plan | method | seeds | divergence | agreement |\n|---|---|---|---|---|---|")
    for (task, plan, method), row in found.iterrows():
        agreement = row["agreement", "mean"]
        told = "" if np.isnan(agreement) else f"{100 * agreement:.1f} %"
        count = int(row["divergence", "count"])
        print(f"| {task} | {plan} | {method} | {count} | {row['divergence', 'mean']:.4f} | {told} |")


if __name__ == "__main__":
    main()
