"""A compressed model as files that are as small as its plan says.

The directory holds `packed.safetensors` (the parts that each set's `pack` makes, as `<layer>.weight.<part>`, and every
other tensor as it is), `plan.json`, the `transformers` config and tokenizer, and `packed.json`, which names the format
and the SHA-256 of each of the others. Reading it executes nothing: safetensors and JSON only. The digests find damage,
not malice: whoever rewrites a file can rewrite its digest. So the model is first laid out on the meta device, and
memory is taken only once the header of the weights agrees with it.
"""

import copy
import json
import math
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from nxmiformer.export.manifest import (
    ATTENTION,
    CONFIG,
    DTYPES,
    FORMAT,
    MANIFEST,
    PLAN,
    WEIGHTS,
    PackedError,
    digest_of,
    files_in,
    read_manifest,
    reading,
    replaceable,
)
from nxmiformer.layers.convert import convert, matrix, verify
from nxmiformer.plan import CompressionPlan

SIZES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}  # bytes; those of a packed part are single ones otherwise
# A model larger than both is not what its file says: the smallest sets, 1:64 of 1 bit, save a factor of 300.
LEAST_BOUND, BOUND = 2**30, 512  # bytes, and times the bytes of the file

MANY = 10_000  # layers, or labels without names


@dataclass(frozen=True)
class PackedSize:
    """Bytes of a packed model.

    Attributes:
        weights: of the compressed layers' values, indices and scales.
        total: of every file.
    """

    weights: int
    total: int


def save_packed(
    model: PreTrainedModel,
    plan: CompressionPlan,
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> PackedSize:
    """Write the model, whose weights are points of the plan's sets, to a new directory; all of it or nothing.

    Raises:
        ValueError: the plan does not fit the model, weights are not in their sets (each is named), or `load_packed`
            could not build the model again: it is not one of `transformers`' own, or has weights of several dtypes.
        FileExistsError: `path` is there already and is not a packed model, which would be replaced.
    """
    path = Path(path).resolve()
    if path.exists() and not replaceable(path):
        raise FileExistsError(f"{path} exists and is not a packed model and nothing else; it is left as it is")
    plan.check(model)
    verify(model, plan)
    odd = [f"{name} is {p.dtype}" for name, p in model.named_parameters() if p.dtype != model.dtype]
    if odd:
        raise ValueError(f"a packed model has one dtype: the model's is {model.dtype}, and {', '.join(odd)}")
    temporary, old = (path.with_name(f".{path.name}.{end}") for end in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        weights = _write(model, plan, temporary, tokenizer)
        _check(temporary, read_manifest(temporary), plan)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return PackedSize(weights, sum(file.stat().st_size for file in files_in(path)))


def _write(
    model: PreTrainedModel, plan: CompressionPlan, directory: Path, tokenizer: PreTrainedTokenizerBase | None
) -> int:
    """Write all files; give the bytes of the packed weights."""
    packed = _pack(model, plan)
    rest, shared = _rest(model, plan)
    plain = {key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in rest.items()}
    save_file({**packed, **plain}, directory / WEIGHTS, metadata={"format": FORMAT})
    plan.save(directory / PLAN)
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], model.dtype
    config.save_pretrained(directory)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    attention = model.config._attn_implementation
    manifest = {
        "format": FORMAT,
        "architecture": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": attention if attention in ATTENTION else None,
        "shared": shared,
        "files": {file.relative_to(directory).as_posix(): digest_of(file) for file in files_in(directory)},
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return sum(tensor.numel() * tensor.element_size() for tensor in packed.values())


def load_packed(path: str | Path) -> PreTrainedModel:
    """The model that `save_packed` was given, in evaluation mode: the same logits, bit for bit.

    Its compressed layers quantize their inputs as they did; `transformers.AutoTokenizer.from_pretrained(path)` gives
    the tokenizer.

    Raises:
        PackedError: the directory, or a file in it, is missing, damaged, cut short or something else; it says which.
    """
    path = Path(path)
    manifest = read_manifest(path)
    with reading(path / PLAN):
        plan = CompressionPlan.load(path / PLAN)
    _check(path, manifest, plan)
    with reading(path / CONFIG):
        model = _blank(path, manifest, plan)
    with reading(path / WEIGHTS):
        _load(model, plan, path / WEIGHTS)
    return model.eval()


def _pack(model: PreTrainedModel, plan: CompressionPlan) -> dict[str, Tensor]:
    """The parts of every compressed weight, by `<layer>.weight.<part>`."""
    parts: dict[str, Tensor] = {}
    for name, spec in plan.layers.items():
        weight = matrix(model, name, spec).cpu()
        parts |= {f"{name}.weight.{part}": tensor for part, tensor in spec.weight.pack(weight).items()}
    return parts


def _rest(model: PreTrainedModel, plan: CompressionPlan) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor of the model that is not packed; and, of a parameter with several names, which others have which."""
    state = {k: v for k, v in model.state_dict(keep_vars=True).items() if not k.endswith(".quantizer.scales")}
    packed = {f"{name}.weight" for name in plan.layers}
    first = {id(state[key]): key for key in packed}
    shared: dict[str, str] = {}
    for key, tensor in state.items():
        if isinstance(tensor, nn.Parameter) and first.setdefault(id(tensor), key) != key:
            shared[key] = first[id(tensor)]
    return {key: tensor for key, tensor in state.items() if key not in packed and key not in shared}, shared


def _blank(path: Path, manifest: Mapping[str, Any], plan: CompressionPlan) -> PreTrainedModel:
    """The model, converted and tied, with any weights; on the device that torch takes for new tensors."""
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    architecture: type[PreTrainedModel] = getattr(transformers, manifest["architecture"])
    if type(config) is not architecture.config_class:
        raise PackedError(f"{path / CONFIG} is a {type(config).__name__}, not that of a {manifest['architecture']}")
    with torch.random.fork_rng(devices=[]):
        dtype, attention = getattr(torch, manifest["dtype"]), manifest["attention"]
        model: PreTrainedModel = architecture._from_config(config, dtype=dtype, attn_implementation=attention)
    for name, key in manifest["shared"].items():
        parameter = model.get_parameter(key)
        module, _, attribute = name.rpartition(".")
        if model.get_parameter(name).shape != parameter.shape:
            raise PackedError(f"{path / MANIFEST}: {name} and {key} cannot be the same, their shapes differ")
        setattr(model.get_submodule(module), attribute, parameter)
    with reading(path / PLAN):
        convert(model, plan)
    return model


def _check(path: Path, manifest: Mapping[str, Any], plan: CompressionPlan) -> None:
    """Raise a PackedError unless the weights have the names, shapes and dtypes that the plan and the config need."""
    file = path / WEIGHTS
    with reading(file), safe_open(file, framework="pt") as stored:
        slices = {key: stored.get_slice(key) for key in stored.keys()}  # noqa: SIM118 (it is no mapping)
        header = {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
    with reading(path / CONFIG):
        _check_counts(json.loads((path / CONFIG).read_text(encoding="utf-8")))
        with torch.device("meta"), _at_most(64 + 16 * len(header)):
            model = _blank(path, manifest, plan)
        size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
        if size > max(LEAST_BOUND, BOUND * file.stat().st_size):
            raise PackedError(f"{path / CONFIG} asks for {size} bytes, which {file} cannot be")
    with reading(file):
        rest, shared = _rest(model, plan)
        if shared != manifest["shared"]:
            raise PackedError(f"{path / MANIFEST}: {manifest['shared']} are to be the same, the model has {shared}")
        for name, spec in plan.layers.items():
            bits = {key: header.pop(key) for key in list(header) if key.startswith(f"{name}.weight.")}
            stored_bytes = sum(math.prod(shape) * SIZES.get(dtype, 1) for shape, dtype in bits.values())
            if stored_bytes != (needed := spec.weight.storage(spec.shape, model.dtype).nbytes):
                raise PackedError(
                    f"{file}: {name} is {sorted(bits)} of {stored_bytes} bytes, and {spec} takes {needed}"
                )
        if header.keys() != rest.keys():
            missing, odd = sorted(rest.keys() - header.keys()), sorted(header.keys() - rest.keys())
            raise PackedError(f"{file} does not fit its plan and config: missing {missing}, not expected {odd}")
        for key, tensor in rest.items():
            shape, dtype = header[key]
            same = DTYPES.get(dtype) == tensor.dtype or not isinstance(tensor, nn.Parameter)  # a buffer is converted
            if shape != tuple(tensor.shape) or not same:
                raise PackedError(
                    f"{file}: {key} is {shape} of {dtype}, and the model needs {tuple(tensor.shape)} of {tensor.dtype}"
                )


def _check_counts(config: Any) -> None:
    """Raise a ValueError where a config, or one in it, has a count that it would make a list of, and of no use."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, int) and ("layer" in key or key == "num_labels") and value > MANY:
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


def _load(model: PreTrainedModel, plan: CompressionPlan, file: Path) -> None:
    """Fill the model from the file, which `_check` has seen."""
    state: dict[str, Tensor] = {}
    with safe_open(file, framework="pt") as stored:
        keys = set(stored.keys())
        for name, spec in plan.layers.items():
            prefix = f"{name}.weight."
            parts = {key.removeprefix(prefix): stored.get_tensor(key) for key in keys if key.startswith(prefix)}
            try:
                weight = spec.weight.unpack(parts, spec.shape, model.dtype)
            except ValueError as error:
                raise PackedError(f"{file}: {name}: {error}") from error
            state[f"{name}.weight"] = weight.t() if spec.transposed else weight
            keys -= {prefix + part for part in parts}
        state |= {key: stored.get_tensor(key) for key in keys}
    model.load_state_dict(state, strict=False)
