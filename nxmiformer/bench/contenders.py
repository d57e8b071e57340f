"""All ways to run a packed model, and the dense model as their baseline."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nxmiformer.applied.convert import convert, strip
from nxmiformer.applied.semi_structured import Kernel, make_semi_structured, refusals
from nxmiformer.console.quiet import quiet
from nxmiformer.export.compact import Compact
from nxmiformer.export.compressed_tensors import CompressedTensors
from nxmiformer.export.format import Format, Outputs, Run, compared
from nxmiformer.export.manifest import EXPORTED, PLAN, WEIGHTS
from nxmiformer.export.onnx import Onnx
from nxmiformer.export.packed import load_packed
from nxmiformer.layers.projection import project
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.runs.parse import parse
from nxmiformer.sets import Products

FORMATS: tuple[type[Format], ...] = (Onnx, CompressedTensors, Compact)  # whose artefacts are timed
BASELINE = "dense fp32"


@dataclass(frozen=True)
class Contender:
    """One way to run a model.

    Attributes:
        how: what computes with what, in words.
        nbytes: bytes of the files of weights that it is read from; None if there are none.
        load: reads it, and gives what runs it; it can be pickled.
        control: the contender that differs from this one only in its pattern of zeros; None: there is none.
    """

    name: str
    how: str
    nbytes: int | None
    load: Callable[[], Run]
    control: str | None = None


@dataclass(frozen=True)
class LineUp:
    """The contenders, BASELINE first, and why others are not among them, by name."""

    contenders: tuple[Contender, ...]
    left_out: Mapping[str, str]


def line_up(path: Path, scratch: Path, device: torch.device, threads: int) -> LineUp:
    """All contenders of the packed model at `path`, in PyTorch on `device`, others on so many threads of the CPU.

    The dense model is that of `dense/` beside `path`. If there is none, it is the packed model with float weights and
    without quantized inputs. ONNX files of it are written to the empty directory `scratch`.

    Raises:
        PackedError: `path` is not a packed model, or is damaged.
        ValueError: what lies in `dense/` is another model.
    """
    model, plan = load_packed(path), CompressionPlan.load(path / PLAN)
    packed = (path / WEIGHTS).stat().st_size
    reading, nbytes, whose = _dense_source(path, model)
    found = [
        Contender(
            name, f"PyTorch, {dtype} {whose}", nbytes, partial(_run_dense, reading, getattr(torch, dtype), device)
        )
        for name, dtype in ((BASELINE, "float32"), ("dense bf16", "bfloat16"))
    ]
    factored = {isinstance(spec.weight, Products) for spec in plan.layers.values()}
    what = " or ".join(name for name, has in (("weights", factored != {True}), ("factors", True in factored)) if has)
    multiplied = f"products of float32 {what} and rounded inputs"
    found.append(Contender("packed", f"PyTorch, {multiplied}", packed, partial(_run_packed, path, False, device)))
    left_out: dict[str, str] = {}
    if factored == {True}:
        left_out["packed lazy"] = "it is packed: its layers have factors, which are never unpacked"
    else:
        how = f"PyTorch, weights unpacked in each pass, {multiplied}"
        found.append(Contender("packed lazy", how, packed, partial(_run_packed, path, True, device)))
    for kernel in get_args(Kernel) if device.type == "cuda" else ():
        name, refused = f"packed 2:4 {kernel}", list(refusals(model, plan, kernel))
        if refused:
            left_out[name] = f"{refused[0]} (and {len(refused) - 1} more)"
        else:
            how = f"PyTorch, sparse tensor cores, {kernel} products"
            found.append(Contender(name, how, packed, partial(_run_sparse, path, kernel, device)))
    unpruned = None if nbytes is None else _unpruned(plan)
    with quiet():
        dense = reading(dtype=torch.float32)
    try:
        found.append(_written(Onnx(), dense, CompressionPlan({}), "dense onnx", scratch, threads))
    except ValueError as error:
        left_out["dense onnx"] = str(error)
    for directory in sorted(record.parent for record in path.parent.glob(f"*/{EXPORTED}")):
        try:
            artefact, form = _artefact(directory, plan, threads)
        except ValueError as error:
            left_out[directory.name] = str(error)
            continue
        found.append(artefact)
        if unpruned is not None:
            found.append(_control(form, artefact, dense, unpruned, scratch, threads))
    return LineUp(tuple(found), left_out)


def _dense_source(path: Path, model: PreTrainedModel) -> tuple[Callable[..., PreTrainedModel], int | None, str]:
    """What gives the dense model in a `dtype`, the bytes of its file, and whose weights it has."""
    directory = path.with_name("dense")
    if not directory.is_dir():
        return partial(_decoded, path), None, "from the packed weights"
    with quiet():
        theirs = type(model).from_pretrained(directory, dtype=torch.float32).state_dict()
    ours = strip(copy.deepcopy(model)).state_dict()
    odd = [key for key in ours.keys() | theirs.keys() if key not in ours or key not in theirs]
    odd += [key for key in ours.keys() & theirs.keys() if ours[key].shape != theirs[key].shape]
    if odd:
        raise ValueError(f"{directory} is not the dense model of {path}: they differ in {', '.join(sorted(odd)[:3])}")
    nbytes = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    return partial(type(model).from_pretrained, directory), nbytes, "from dense/"


def _decoded(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The packed model as a dense one: plain layers with its weights."""
    model = load_packed(path)
    strip(model)
    return model.to(dtype)  # type: ignore[arg-type]


def _unpruned(plan: CompressionPlan) -> CompressionPlan | None:
    """The plan with its grids alone; None where it has no zeros to leave out, or quantizes more than layers."""
    if plan.everything is not None or not any(
        spec.weight.sparsity is not None and spec.weight.grid is not None for spec in plan.layers.values()
    ):
        return None
    grids = {name: (spec, spec.weight.grid) for name, spec in plan.layers.items()}
    return replace(plan, layers={name: replace(spec, weight=grid) for name, (spec, grid) in grids.items() if grid})


def _artefact(directory: Path, plan: CompressionPlan, threads: int) -> tuple[Contender, Format]:
    """The export in a directory, and its format; a ValueError says why it cannot be timed."""
    record: dict[str, Any] = parse((directory / EXPORTED).read_bytes(), str(directory / EXPORTED))
    kinds = {kind.name: kind for kind in FORMATS}
    if record.get("form") not in kinds:
        raise ValueError(f"its form is {record.get('form')!r}; the forms that can be timed: {', '.join(kinds)}")
    form = kinds[record["form"]]()
    form.check_packages()
    if record["plan"] != plan.fingerprint:
        raise ValueError(f"it is an export of plan {record['plan']}, and the packed model is of {plan.fingerprint}")
    if (equal := record["agreement"]["equal"]) < 1 - record.get("tolerance", 1.0):
        raise ValueError(f"it gives {equal:.2%} of the predictions of the packed model, less than its tolerance allows")
    how = f"{form.name}, weights as exported, on the CPU"
    return Contender(directory.name, how, record["bytes"][form.name], partial(form.read, directory, threads)), form


def _control(
    form: Format, artefact: Contender, dense: PreTrainedModel, unpruned: CompressionPlan, scratch: Path, threads: int
) -> Contender:
    """The artefact as it would be without a pattern of zeros: the dense model on the grids alone."""
    model = copy.deepcopy(dense)
    convert(model, unpruned)
    project(model)
    written = _written(form, model, unpruned, f"{artefact.name} unpruned", scratch, threads)
    return replace(written, how=f"{form.name}, the same grids without the pattern of zeros", control=artefact.name)


def _written(
    form: Format, model: PreTrainedModel, plan: CompressionPlan, name: str, scratch: Path, threads: int
) -> Contender:
    """The model in a format, written here; a ValueError says why it cannot be."""
    form.check_packages()
    refused = list(form.refusals(model, plan))
    if refused:
        raise ValueError("; ".join(refused))
    directory = scratch / name.replace(" ", "-")
    directory.mkdir()
    form.write(model.eval(), plan, directory)
    nbytes = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    return Contender(name, f"{form.name}, float32, on the CPU", nbytes, partial(form.read, directory, threads))


def _run_dense(reading: Callable[..., PreTrainedModel], dtype: torch.dtype, device: torch.device) -> Run:
    with quiet():
        return _run(reading(dtype=dtype), device)


def _run_packed(path: Path, lazy: bool, device: torch.device) -> Run:
    return _run(load_packed(path, lazy=lazy), device)


def _run_sparse(path: Path, kernel: Kernel, device: torch.device) -> Run:
    model = load_packed(path).to(device)  # type: ignore[arg-type]
    make_semi_structured(model, CompressionPlan.load(path / PLAN), kernel)
    return _run(model, device)


def _run(model: PreTrainedModel, device: torch.device) -> Run:
    """What gives the outputs on the CPU, and so waits for a GPU to have them."""
    model = model.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]

    @torch.inference_mode()
    def run(batch: Mapping[str, Tensor]) -> Outputs:
        outputs = compared(model(**{name: tensor.to(device) for name, tensor in batch.items()}))
        return {name: tensor.cpu() for name, tensor in outputs.items()}

    return run
