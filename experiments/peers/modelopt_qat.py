"""The baseline: python experiments/peers/modelopt_qat.py --model DIR --task stsb --plan 2of4_int4 --out FILE

NVIDIA ModelOpt's way to the same kind of result as ours: its 2:4 magnitude mask, then QAT under that mask with INT4 or
INT8 weights (symmetric, a scale a row, fixed by calibration) and INT8 activations. It starts from the same dense
fine-tuned checkpoint, compresses the same layers, and sees the same batches in the same order for as many steps.

Activations are quantized dynamically, a scale a token, as ours are: before any training that scores better than
ModelOpt's static scale a tensor (README.md beside this file has the figures), and it cannot go stale in training.
"""

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import modelopt
import modelopt.torch.quantization as mtq
import modelopt.torch.sparsity as mts
import torch
import transformers
from torch import Tensor, nn

from nxmiformer.files import write_text
from nxmiformer.layers.targets import find_targets
from nxmiformer.models.source import Pretrained
from nxmiformer.tasks.batches import shuffled
from nxmiformer.train.evaluate import evaluate
from nxmiformer.train.settings import Settings

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from glue import HUB, NAMES, glue  # noqa: E402 (beside the studies, not installed)

Forward = Callable[[nn.Module], None]
PLANS = {"2of4_int4": (True, 4), "2of4_int8": (True, 8), "int4": (False, 4), "int8": (False, 8)}  # 2:4?, bits
# The search for a row's scale, as multiples of that of its largest weight. ModelOpt's default is 39 multiples from 0.25
# to 4, none of them 1: too coarse for 4 bits, and worse than "max" for 8.
SEARCH = {"start_multiplier": 0.3, "stop_multiplier": 1.0, "step_size": 0.01}
CALIBRATIONS: dict[str, dict[str, Any]] = {
    "max": {"method": "max"},
    "mse": {"method": "mse", **SEARCH},
    "local_hessian": {"method": "local_hessian", "fp8_scale_sweep": False, "block_size": 128, **SEARCH},
}
ACTIVATIONS: dict[str, dict[str, Any]] = {
    "token": {"num_bits": 8, "narrow_range": True, "type": "dynamic", "block_sizes": {-1: None}},
    "tensor": {"num_bits": 8, "narrow_range": True, "axis": None},
}
RECORDED = ("task", "plan", "seed", "steps", "lr", "report_on", "calibration", "activations")
PHASE = 1  # what our loop counts the phase after the dense one as; the order of its batches depends on it


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    transformers.set_seed(arguments.seed)
    task, source = glue(arguments.task, arguments.glue), Pretrained(str(arguments.model))
    tokenizer = source.tokenizer(task)
    settings = Settings(batch_size=arguments.batch_size, precision="bf16")
    accelerator = settings.accelerator()
    model = source.model(task, tokenizer, arguments.seed).to(accelerator.device)
    splits = task.splits()
    train = task.encode(splits["train"], tokenizer, settings.max_length, model.config)
    reported = task.encode(splits[arguments.report_on], tokenizer, settings.max_length, model.config)

    def batches(count: int) -> Iterator[dict[str, Tensor]]:
        order = arguments.seed * 1009 + PHASE
        return islice(shuffled(train, settings.batch_size, order, start=0, device=accelerator.device), count)

    def calibrate(model: nn.Module) -> None:
        for batch in batches(arguments.calibration_batches):  # in float32: local_hessian fails under autocast
            model(**batch)

    def scores() -> dict[str, float]:
        return evaluate(model, task, reported, settings.eval_batch_size, accelerator)

    sparse, bits = PLANS[arguments.plan]
    names = [target.name for target in find_targets(model).layers]
    masks = sparsify(model, names) if sparse else {}
    quantize(model, names, bits, arguments, calibrate)
    layers = {name: model.get_submodule(name) for name in names}
    verify(layers, masks, bits)
    one_shot = scores()[task.metric]
    print(f"one shot: {task.metric} {one_shot:.4f} on {arguments.report_on}", flush=True)

    began = time.perf_counter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr, weight_decay=0.0)
    scheduler = transformers.get_scheduler("linear", optimizer, round(0.1 * arguments.steps), arguments.steps)
    model.train()
    for step, batch in enumerate(batches(arguments.steps), 1):
        with accelerator.autocast():
            loss = model(**batch).loss
        if not math.isfinite(loss.item()):
            raise ValueError(f"the loss is {loss.item()} at step {step}: lower --lr")
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)
    seconds = time.perf_counter() - began

    gap = verify(layers, masks, bits)
    asked = {key: getattr(arguments, key) for key in RECORDED}
    trained = scores()
    found = {"metric": task.metric, "score": trained[task.metric], "scores": trained, "one_shot": one_shot}
    found |= {"gap": gap, "seconds": seconds}
    place = {"device": _device(accelerator.device), "modelopt": modelopt.__version__}
    report = {"model": "/".join(arguments.model.resolve().parts[-2:]), **asked, **found, **place}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out, json.dumps(report, indent=2) + "\n")
    print(f"trained: {task.metric} {found['score']:.4f}, gap {gap:.4f}, {seconds:.0f} s; see {arguments.out}")


def sparsify(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Put the layers `names`, and no others, under ModelOpt's 2:4 magnitude masks; copies of the masks by layer."""
    rules = {"nn.Linear": {"*": None, **{name: {} for name in names}}, "nn.Conv2d": {"*": None}}
    mts.sparsify(model, [("sparse_magnitude", rules)])
    masks = {name: model.get_submodule(name)._weight_mask for name in names}
    dense = [name for name, mask in masks.items() if mask is None or mask.all()]
    if dense:  # of which ModelOpt only warns
        raise ValueError(f"ModelOpt masks multiples of 8 rows and 16 columns only, and left these dense: {dense}")
    return {name: mask.clone() for name, mask in masks.items()}


def quantize(model: nn.Module, names: list[str], bits: int, arguments: argparse.Namespace, calibrate: Forward) -> None:
    """Quantize the weights and inputs of the layers `names`, and nothing else, with ModelOpt.

    `narrow_range` gives the levels -q ... q, as ours are; ModelOpt's default has one more negative level.
    """
    weight = {"num_bits": bits, "axis": 0, "narrow_range": True}
    quantizers: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for name in names:
        quantizers.append({"quantizer_name": f"{name}.weight_quantizer", "cfg": weight})
        quantizers.append({"quantizer_name": f"{name}.input_quantizer", "cfg": ACTIVATIONS[arguments.activations]})
    algorithm = CALIBRATIONS[arguments.calibration]
    mtq.quantize(model, {"quant_cfg": quantizers, "algorithm": algorithm}, calibrate)
    wanted = {f"{name}.{kind}_quantizer" for name in names for kind in ("weight", "input")}
    enabled = {name for name, m in model.named_modules() if isinstance(m, mtq.nn.TensorQuantizer) and m.is_enabled}
    if enabled != wanted:  # its patterns match silently, or not
        raise RuntimeError(f"ModelOpt quantizes other tensors than asked for: {sorted(enabled ^ wanted)}")


@torch.no_grad()
def verify(layers: Mapping[str, Any], masks: Mapping[str, Tensor], bits: int) -> float:
    """Check the weights Z that the layers compute with; ||W - Z|| / ||W|| for their masked latent weights W.

    Raises:
        RuntimeError: a layer is not 2:4 under its first mask, where it has one, or has too many levels in a row.
    """
    error = norm = 0.0
    for name, layer in layers.items():
        latent = layer.weight
        with layer.quantize_weight():  # as in its forward pass
            seen = layer.weight
        if name in masks and ((seen != 0).unflatten(1, (-1, 4)).sum(2).max() > 2 or seen[~masks[name]].any()):
            raise RuntimeError(f"{name} has lost its 2:4 mask")
        levels = int((seen.sort(dim=1).values.diff(dim=1) > 0).sum(1).max()) + 1
        if levels > 2**bits - 1:
            raise RuntimeError(f"{name} has a row of {levels} levels; {bits} bits have {2**bits - 1}")
        error += float((latent - seen).double().square().sum())
        norm += float(latent.double().square().sum())
    return math.sqrt(error / norm)


def _plan(text: str) -> str:
    if text not in PLANS:
        raise argparse.ArgumentTypeError(f"{text!r}: ModelOpt sparsifies to 2:4 alone; known plans: {', '.join(PLANS)}")
    return text


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="directory of the dense fine-tuned checkpoint")
    add("--task", required=True, choices=NAMES)
    add("--glue", default=HUB, help="directory of GLUE in the hub's layout (default: the hub)")
    add("--plan", required=True, type=_plan, help=", ".join(PLANS))
    add("--steps", required=True, type=int, help="optimizer steps; 0 leaves the one-shot score")
    add("--lr", type=float, default=1e-4)
    add("--seed", type=int, default=0)
    add("--batch-size", type=int, default=32)
    add("--calibration", choices=CALIBRATIONS, default="mse", help="how a row's scale is chosen (default: %(default)s)")
    add("--calibration-batches", type=int, default=8, help="for local_hessian and for static activations")
    add("--activations", choices=ACTIVATIONS, default="token", help="dynamic or static scales (default: %(default)s)")
    add("--report-on", choices=("validation", "holdout"), default="validation")
    add("--threads", type=int, default=1, help="CPU threads of torch")
    add("--out", type=Path, required=True, help="where the report goes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
