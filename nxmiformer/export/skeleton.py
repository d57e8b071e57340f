"""The model of a packed directory without its weights, and whether the file of weights fits it."""

import json
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers import AutoConfig, GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from nxmiformer.applied.convert import convert
from nxmiformer.export.manifest import CONFIG, DTYPES, GENERATION, MANIFEST, PLAN, WEIGHTS, PackedError, reading
from nxmiformer.export.weights import PARTS, part_keys, put, rest_of
from nxmiformer.layers.compact import resize
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import ConstraintSet

SIZES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}  # bytes; those of a packed part are single ones otherwise
# A model larger than both is not what its file says: the smallest sets, 1:64 of 1 bit, save a factor of 300.
LEAST_BOUND, BOUND = 2**30, 512  # bytes, and times the bytes of the file

MANY = 10_000  # layers, or labels without names
NAMES = {dtype: name for name, dtype in DTYPES.items()}
Header = Mapping[str, tuple[tuple[int, ...], str]]  # the shape and the dtype of each tensor in a file of weights


def read_plan(path: Path) -> CompressionPlan:
    """The plan in a packed directory."""
    with reading(path / PLAN):
        return CompressionPlan.load(path / PLAN)


def check(
    path: Path, manifest: Mapping[str, Any], plan: CompressionPlan, header: Header | None = None
) -> PreTrainedModel:
    """The blank model; a PackedError unless the weights have the names, shapes and dtypes that it and the plan need.

    `header` is that of the file of weights, where that is still to be written.
    """
    header = header_of(path / WEIGHTS) if header is None else header
    with reading(path / CONFIG):
        _check_counts(json.loads((path / CONFIG).read_text(encoding="utf-8")))
        with _at_most(64 + 16 * len(header)):
            model = _blank(path, manifest)
            join(model, path, manifest, plan)
    fit(model, path, manifest, plan, header)
    return model


def header_of(file: Path) -> Header:
    """Of a file of weights, which need not be read for it."""
    with reading(file), safe_open(file, framework="pt") as stored:
        slices = {key: stored.get_slice(key) for key in stored.keys()}  # noqa: SIM118 (it is no mapping)
        return {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}


def planned_header(model: PreTrainedModel, plan: CompressionPlan) -> Header:
    """Of the file that the packed model will be: the parts of a set's point nearest to zero are those of any other."""
    rest, _ = rest_of(model, plan)
    header = {key: (tuple(tensor.shape), NAMES.get(tensor.dtype, "I64")) for key, tensor in rest.items()}

    @cache
    def parts(constraint: ConstraintSet, shape: tuple[int, int]) -> dict[str, tuple[tuple[int, ...], str]]:
        packed = constraint.pack(constraint.project(torch.zeros(shape, dtype=model.dtype, device="cpu")))
        return {part: (tuple(each.shape), NAMES.get(each.dtype, "U8")) for part, each in packed.items()}

    for name, spec in plan.layers.items():
        header |= {name + PARTS[part]: entry for part, entry in parts(spec.weight, spec.shape).items()}
    return header


def _blank(path: Path, manifest: Mapping[str, Any]) -> PreTrainedModel:
    """The dense model, on the meta device."""
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    architecture: type[PreTrainedModel] = getattr(transformers, manifest["architecture"])
    if type(config) is not architecture.config_class:
        raise PackedError(f"{path / CONFIG} is a {type(config).__name__}, not that of a {manifest['architecture']}")
    vars(config).pop("quantization_config", None)  # what this model saves from now on is dense
    with torch.device("meta"), no_init_weights():
        dtype, attention = getattr(torch, manifest["dtype"]), manifest["attention"]
        model: PreTrainedModel = architecture._from_config(config, dtype=dtype, attn_implementation=attention)
    if model.can_generate() and (path / GENERATION).is_file():
        with reading(path / GENERATION):
            model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    return model


def join(model: PreTrainedModel, path: Path, manifest: Mapping[str, Any], plan: CompressionPlan) -> None:
    """Tie the weights of a blank model, give its layers their sizes, and convert them."""
    model.tie_weights()
    with reading(path / MANIFEST):
        resize(model, manifest.get("sizes", {}))
        for name, key in manifest["shared"].items():
            if model.get_parameter(name).shape != model.get_parameter(key).shape:
                raise ValueError(f"{name} and {key} cannot be the same, their shapes differ")
            put(model, name, model.get_parameter(key))
    with reading(path / PLAN):
        convert(model, plan)


def fit(model: PreTrainedModel, path: Path, manifest: Mapping[str, Any], plan: CompressionPlan, header: Header) -> None:
    """Raise a PackedError unless the weights have the names, shapes and dtypes that a joined model needs."""
    file, dtype, left = path / WEIGHTS, getattr(torch, manifest["dtype"]), dict(header)
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    if size > max(LEAST_BOUND, BOUND * sum(math.prod(shape) * SIZES.get(each, 1) for shape, each in header.values())):
        raise PackedError(f"{path / CONFIG} asks for {size} bytes, which {file} cannot be")
    with reading(file):
        rest, shared = rest_of(model, plan)
        if shared != manifest["shared"]:
            raise PackedError(
                f"{path / MANIFEST}: the tied weights should be {manifest['shared']}, but the model has {shared}"
            )
        for name, spec in plan.layers.items():
            bits = {key: left.pop(key) for key in part_keys(name, left).values()}
            stored_bytes = sum(math.prod(shape) * SIZES.get(each, 1) for shape, each in bits.values())
            if stored_bytes != (needed := spec.weight.storage(spec.shape, dtype).nbytes):
                raise PackedError(
                    f"{file}: {name} is {sorted(bits)} of {stored_bytes} bytes, and {spec} takes {needed}"
                )
        if left.keys() != rest.keys():
            missing, odd = sorted(rest.keys() - left.keys()), sorted(left.keys() - rest.keys())
            raise PackedError(f"{file} does not fit its plan and config: missing {missing}, not expected {odd}")
        for key, tensor in rest.items():
            shape, stored = left[key]
            same = DTYPES.get(stored) == dtype or not isinstance(tensor, nn.Parameter)  # a buffer is converted
            if shape != tuple(tensor.shape) or not same:
                raise PackedError(
                    f"{file}: {key} is {shape} of {stored}, and the model needs {tuple(tensor.shape)} of {dtype}"
                )


def _check_counts(config: Any) -> None:
    """Raise a ValueError where a config, or one in it, has a count below zero, or one that it would make a list of."""
    for key, value in config.items() if isinstance(config, dict) else ():
        many = isinstance(value, int) and ("layer" in key or key == "num_labels") and value > MANY
        if many or (isinstance(value, int) and key.startswith("num_") and value < 0):
            raise ValueError(f"{key} is {value}")
        if key != "label2id":
            _check_counts(value)


@contextmanager
def _at_most(most: int) -> Iterator[None]:
    """Raise a ValueError in here as soon as this thread has put more modules and parameters together than that."""
    count, thread = 0, threading.get_ident()

    def registered(*_: Any) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > most:
            raise ValueError(f"it asks for more than {most} modules and tensors")

    modules = register_module_module_registration_hook(registered)
    parameters = register_module_parameter_registration_hook(registered)
    try:
        yield
    finally:
        modules.remove()
        parameters.remove()
