"""The oracle of the search with bits only: python experiments/peers/auto_quantize.py --model DIR --task stsb --seed 0

NVIDIA ModelOpt's `auto_quantize` and our search choose the bits of each layer's weights at equal effective bits (of the
weights; scales are not counted), from the same batches of a part of the holdout. On the rest of it, which neither has
seen, both choices are measured with the same weights: rounded to our grids, a scale a row for the least squared error,
not reconstructed, not trained; activations stay in float32. ModelOpt's own model is measured besides, as it stands.
"""

import argparse
import copy
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import modelopt.torch.quantization as mtq
import numpy as np
import pandas as pd
import torch
import transformers
from modelopt_qat import CALIBRATIONS
from torch import Tensor, nn

from nxmiformer.applied.convert import convert
from nxmiformer.jobs.search import ANY
from nxmiformer.layers.moments import Batch
from nxmiformer.layers.targets import Targets, find_targets
from nxmiformer.models.source import Pretrained
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.search.anchored import Anchored
from nxmiformer.search.budget import Budget
from nxmiformer.search.candidates import Candidates
from nxmiformer.search.evidence import Evidence
from nxmiformer.search.knapsack import Knapsack
from nxmiformer.search.search import Search
from nxmiformer.search.sensitivity import LossChange, Measured, OutputError, Sensitivity
from nxmiformer.search.whole import OneShot, Sets
from nxmiformer.sets import Grid
from nxmiformer.tasks.batches import Examples
from nxmiformer.tasks.units import Units, whole_units

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from glue import HUB, NAMES, glue  # noqa: E402 (beside the studies, not installed)

FILE = Path(__file__).with_suffix(".csv")
CELL = ["model", "task", "seed", "bits"]  # what one call of the command replaces in the file
Scoring = Callable[[np.ndarray, np.ndarray], float]  # from logits and labels
# Of the projection, which is all that either makes of a layer here.
SENSITIVITIES: dict[str, Sensitivity] = {
    "output error": OutputError(rows=32, iterations=0),
    "output error of all rows": OutputError(rows=sys.maxsize, iterations=0),
    "loss change": LossChange(2),
    "output error, anchored": Anchored(OutputError(iterations=0), Measured(examples=16), ("int4", "int2")),
}


class Choice(NamedTuple):
    """The bits of each layer, the CPU seconds that it took to find them, and the logits of the chooser's own model."""

    name: str
    bits: Mapping[str, int]
    seconds: float
    logits: Sequence[Tensor] | None = None


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    transformers.set_seed(arguments.seed)
    task, source = glue(arguments.task, arguments.glue), Pretrained(str(arguments.model))
    tokenizer = source.tokenizer(task)
    dense = source.model(task, tokenizer, arguments.seed).eval()
    examples = task.encode(task.splits()["holdout"], tokenizer, 128, dense.config)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(arguments.seed)).tolist()
    end = arguments.examples + arguments.unseen
    looked = batches(examples, order[: arguments.examples], arguments.batch_size)
    unseen = batches(examples, order[arguments.examples : end], arguments.batch_size)

    def scoring(logits: np.ndarray, labels: np.ndarray) -> float:
        return task.score(list(logits), labels.tolist())[task.metric]

    if "kl_div" in arguments.methods and not task.labels:
        raise ValueError(f"--methods kl_div: the one output of {task.name} is no distribution; leave it out")
    rows = compare(dense, scoring, looked, unseen, arguments.bits, arguments.effective_bits, arguments.methods)
    cell = {
        "model": "/".join(arguments.model.resolve().parts[-2:]),
        "task": arguments.task,
        "seed": arguments.seed,
        "bits": " ".join(map(str, sorted(arguments.bits))),
    }
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.5g}".format))
    _write(pd.DataFrame([{**cell, **row} for row in rows]))


def compare(
    dense: nn.Module,
    scoring: Scoring,
    looked: Sequence[Batch],
    unseen: Sequence[Batch],
    bits: Sequence[int],
    effective: Sequence[float],
    methods: Sequence[str],
) -> list[dict[str, Any]]:
    """A row for each choice within each budget: its bits, and what it was measured to do on the batches `unseen`.

    Args:
        dense: the model; it is left as it was.
        scoring: the task's score, from logits and labels.
        looked: the batches that both searches look at.
        unseen: those that they do not.
        bits: the candidates of each layer.
        effective: the budgets, in bits of a weight on average.
        methods: of `auto_quantize`: "gradient", "kl_div".
    """
    model, targets = copy.deepcopy(dense), find_targets(dense)
    convert(model, CompressionPlan.uniform(model, targets, ANY))
    whole, rows = OneShot(evidence(model, scoring, unseen), iterations=0), []
    sizes = {target.name: target.shape[0] * target.shape[1] for target in targets.layers}

    @functools.cache
    def logits_with(chosen: tuple[int, ...]) -> list[Tensor]:
        return whole.logits(dict(zip(sizes, map(Grid, chosen), strict=True)))

    with tempfile.TemporaryDirectory() as cache:
        for limit in effective:
            choices = [Choice("uniform", dict.fromkeys(sizes, max(each for each in bits if each <= limit)), 0.0)]
            for sensitivity in SENSITIVITIES:
                choices += ours(evidence(model, scoring, looked), targets, bits, limit, sensitivity, Path(cache))
            for method in methods:
                choices += theirs(dense, list(sizes), looked, bits, limit, method, Path(cache), unseen)
            for choice in choices:
                logits = choice.logits or logits_with(tuple(choice.bits[layer] for layer in sizes))
                rows.append({"budget": limit, **_row(choice, sizes, whole.evidence, logits)})
    return rows


def ours(
    evidence: Evidence, targets: Targets, bits: Sequence[int], limit: float, sensitivity: str, cache: Path
) -> list[Choice]:
    """Our search's plan, and the plan of the least predicted damage, with which it starts."""
    began = time.process_time()
    weights = sum(target.shape[0] * target.shape[1] for target in targets.layers)
    candidates = Candidates([f"int{each}" for each in bits])
    search = Search(candidates, SENSITIVITIES[sensitivity], Knapsack(), iterations=0)
    budget = Budget(bytes=int(limit * weights / 8), accounting="values")
    found = search(evidence, targets, budget.costs(targets.layers, 0), cache, _no_trial)
    seconds = time.process_time() - began
    first = next(plan for plan in found.plans if plan.name == "knapsack 1")
    plans = {f"ours, {sensitivity}": found.best, f"ours, {sensitivity}, foreseen only": first}
    return [
        Choice(name, {layer: each.grid.bits for layer, each in plan.sets.items()}, seconds)
        for name, plan in plans.items()
    ]


def theirs(
    dense: nn.Module,
    names: list[str],
    looked: Sequence[Batch],
    bits: Sequence[int],
    limit: float,
    method: str,
    cache: Path,
    unseen: Sequence[Batch],
) -> list[Choice]:
    """ModelOpt's plan, and the same with the logits of its own model."""
    began = time.process_time()
    model = auto_quantize(dense, names, looked, bits, limit, method, cache)
    seconds, chosen = time.process_time() - began, chosen_bits(model, names)
    name, logits = f"ModelOpt, {method}", logits_of(model, unseen)
    return [Choice(name, chosen, seconds), Choice(f"{name}, its own model", chosen, seconds, logits)]


def auto_quantize(
    dense: nn.Module,
    names: list[str],
    looked: Sequence[Batch],
    bits: Sequence[int],
    limit: float,
    method: str,
    cache: Path,
) -> nn.Module:
    """A copy of the model in which ModelOpt has chosen among INT weights of these bits for the layers `names`.

    Leaving a layer as it is, always a choice of ModelOpt's, is ruled out; the other layers are left, and do not count.
    What it measures stays in `cache`, for further budgets.
    """
    model = copy.deepcopy(dense)
    formats = [_format(each) for each in bits]
    others = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n not in names]
    model, _ = mtq.auto_quantize(
        model,
        {"effective_bits": limit, "cost": {"excluded_module_name_patterns": others}},
        formats,
        looked,
        forward_step=lambda model, batch: model(**_inputs(batch)).logits,
        loss_func=_loss if method == "gradient" else None,
        disabled_layers=others,
        module_search_spaces=[
            {"module_name_patterns": names, "quantization_formats": formats, "allow_no_quant": False}
        ],
        num_calib_steps=len(looked),
        num_score_steps=len(looked),
        method=method,
        checkpoint=str(cache / f"{method}.pt"),
    )
    return model


def _format(bits: int) -> dict[str, Any]:
    """Weights alone, symmetric as ours are, with a scale a row for the least squared error."""
    weight = {"num_bits": bits, "axis": 0, "narrow_range": True}
    quantizers = [{"quantizer_name": "*", "enable": False}, {"quantizer_name": "*weight_quantizer", "cfg": weight}]
    return {"quant_cfg": quantizers, "algorithm": CALIBRATIONS["mse"]}


def chosen_bits(model: nn.Module, names: Sequence[str]) -> dict[str, int]:
    """The bits of the weights of ModelOpt's layers.

    Raises:
        RuntimeError: ModelOpt quantizes other tensors than these weights.
    """
    wanted = {f"{name}.weight_quantizer": name for name in names}
    quantizers = {n: m for n, m in model.named_modules() if isinstance(m, mtq.nn.TensorQuantizer) and m.is_enabled}
    if quantizers.keys() != wanted.keys():
        raise RuntimeError(f"ModelOpt quantizes other tensors than asked: {sorted(quantizers.keys() ^ wanted.keys())}")
    return {name: quantizers[quantizer].num_bits for quantizer, name in wanted.items()}


def batches(examples: Examples, indices: list[int], size: int) -> list[Batch]:
    """These examples, those of like length together."""
    lengths = examples.lengths()
    order = sorted(indices, key=lambda index: (lengths[index], index))
    return [examples.batch(order[start : start + size], "cpu") for start in range(0, len(order), size)]


def evidence(model: nn.Module, scoring: Scoring, batches: Sequence[Batch]) -> Evidence:
    """The converted model on these batches."""

    def metric(units: Sequence[Units], batches: Sequence[Batch], truths: Sequence[Any]) -> float:
        return scoring(torch.cat([each.logits for each in units]).numpy(), np.asarray(truths))

    truths = [batch["labels"].tolist() for batch in batches]
    return Evidence(model, batches, lambda batch: whole_units(model(**_inputs(batch)), batch), truths, metric)


@torch.no_grad()
def logits_of(model: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
    """The logits of a model, a batch at a time."""
    return [model.eval()(**_inputs(batch)).logits for batch in batches]


def _row(choice: Choice, sizes: Mapping[str, int], on: Evidence, logits: Sequence[Tensor]) -> dict[str, Any]:
    return {
        "choice": choice.name,
        "used": sum(sizes[layer] * each for layer, each in choice.bits.items()) / sum(sizes.values()),
        "divergence": on.divergence(logits),
        "loss": on.loss(logits),
        "score": on.score(logits),
        "seconds": choice.seconds,
    }


def _loss(logits: Tensor, batch: Batch) -> Tensor:
    """The task's, summed over the batch."""
    units = whole_units({"logits": logits}, batch)
    return units.outcome.losses(units.logits, units.targets).sum()


def _inputs(batch: Batch) -> dict[str, Tensor]:
    return {key: value for key, value in batch.items() if key != "labels"}


def _no_trial(sets: Sets, steps: int) -> float:
    raise AssertionError("without halving, nothing is trained")


def _write(rows: pd.DataFrame) -> None:
    """Put the rows into the file, in the place of those of an earlier call with the same arguments."""
    if FILE.exists():
        kept = pd.read_csv(FILE, dtype={"bits": str})
        again = kept[CELL].astype(str).agg(tuple, axis=1).isin(rows[CELL].astype(str).agg(tuple, axis=1))
        rows = pd.concat([kept[~again], rows])
    rows.sort_values([*CELL, "budget"], kind="stable").to_csv(FILE, index=False, float_format="%.5g")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="directory of the dense fine-tuned checkpoint")
    add("--task", required=True, choices=NAMES)
    add("--glue", default=HUB, help="directory of GLUE in the hub's layout (default: the hub)")
    add("--bits", type=int, nargs="+", default=[4, 8], help="candidates of each layer (default: 4 8)")
    add("--effective-bits", type=float, nargs="+", default=[4.5, 5, 6, 7], help="budgets (default: 4.5 5 6 7)")
    add(
        "--methods",
        nargs="+",
        default=["gradient"],
        choices=("gradient", "kl_div"),
        help="ModelOpt's (default: gradient)",
    )
    add("--examples", type=int, default=128, help="of the holdout, that the searches look at (default: %(default)s)")
    add("--unseen", type=int, default=256, help="of the rest, to measure on, at most (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the draw of these (default: %(default)s)")
    add("--batch-size", type=int, default=32)
    add("--threads", type=int, default=1, help="CPU threads of torch")
    return parser.parse_args()


if __name__ == "__main__":
    main()
