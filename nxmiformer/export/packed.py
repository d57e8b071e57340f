"""A compressed model as files that are as small as its plan says.

The directory holds `packed.safetensors` (the parts that each set's `pack` makes, as `<layer>.weight.<part>`, and every
other tensor as it is), `plan.json`, the `transformers` config and tokenizer, and `packed.json`, which names the format
and the SHA-256 of each of the others. Reading it executes nothing: safetensors and JSON only.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from nxmiformer.layers.convert import convert, matrix, verify
from nxmiformer.plan import CompressionPlan

FORMAT = "nxmiformer-packed-1"
WEIGHTS, PLAN, MANIFEST = "packed.safetensors", "plan.json", "packed.json"


class PackedError(ValueError):
    """A directory that is not a whole packed model."""


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
        ValueError: the plan does not fit the model, or weights are not in their sets (each is named).
        FileExistsError: `path` is there already and is not a packed model, which would be replaced.
    """
    path = Path(path)
    if path.exists() and not (path / MANIFEST).exists():
        raise FileExistsError(f"{path} exists and is not a packed model; it is left as it is")
    plan.check(model)
    verify(model, plan)
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    packed = _pack(model, plan)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in packed.values())
    save_file({**packed, **_rest(model, plan)}, temporary / WEIGHTS, metadata={"format": FORMAT})
    plan.save(temporary / PLAN)
    model.config.save_pretrained(temporary)
    if tokenizer is not None:
        tokenizer.save_pretrained(temporary)
    manifest = {
        "format": FORMAT,
        "architecture": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "files": {str(file.relative_to(temporary)): _digest(file) for file in _files(temporary)},
    }
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(path, ignore_errors=True)
    temporary.rename(path)
    return PackedSize(weights, sum(file.stat().st_size for file in _files(path)))


def load_packed(path: str | Path) -> PreTrainedModel:
    """The model that `save_packed` was given, in evaluation mode: the same logits, bit for bit.

    Its compressed layers quantize their inputs as they did; `transformers.AutoTokenizer.from_pretrained(path)` gives
    the tokenizer.

    Raises:
        PackedError: the directory, or a file in it, is missing, damaged, cut short or something else; it says which.
    """
    path = Path(path)
    manifest = _manifest(path)
    try:
        plan = CompressionPlan.load(path / PLAN)
        architecture, config = _architecture(path, manifest)
        with torch.random.fork_rng(devices=[]):
            model = architecture._from_config(config, dtype=getattr(torch, manifest["dtype"]))
        convert(model, plan)
        _load(model, plan, path / WEIGHTS)
    except PackedError:
        raise
    except (ValueError, KeyError, AttributeError, TypeError, SafetensorError, OSError) as error:
        raise PackedError(f"{path} is not a whole packed model: {error}") from error
    return model.eval()


def _pack(model: PreTrainedModel, plan: CompressionPlan) -> dict[str, Tensor]:
    """The parts of every compressed weight, by `<layer>.weight.<part>`."""
    parts: dict[str, Tensor] = {}
    for name, spec in plan.layers.items():
        weight = matrix(model, name, spec).cpu()
        parts |= {f"{name}.weight.{part}": tensor for part, tensor in spec.weight.pack(weight).items()}
    return parts


def _rest(model: PreTrainedModel, plan: CompressionPlan) -> dict[str, Tensor]:
    """Every tensor of the model that is not packed; one that is shared, once."""
    packed = {f"{module}.weight" for name, spec in plan.layers.items() for module in (name, *spec.aliases)}
    first: dict[int, str] = {}
    state = {k: v for k, v in model.state_dict().items() if k not in packed and not k.endswith(".quantizer.scales")}
    for key, tensor in state.items():
        first.setdefault(tensor.data_ptr() if tensor.numel() else id(tensor), key)
    return {key: state[key].cpu().contiguous() for key in first.values()}


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest, after checking every file against it."""
    if not (path / MANIFEST).is_file():
        raise PackedError(f"{path} is not a packed model: it has no {MANIFEST}")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = dict(manifest["files"])
        if manifest["format"] != FORMAT:
            raise PackedError(f"{path / MANIFEST}: its format is {manifest['format']!r}, not {FORMAT!r}")
        if not {WEIGHTS, PLAN, "config.json"} <= set(files):
            raise PackedError(f"{path / MANIFEST} names the files {sorted(files)} only")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, PackedError):
            raise
        raise PackedError(f"{path / MANIFEST} is damaged: {type(error).__name__}: {error}") from error
    for name, digest in files.items():
        if not (path / name).resolve().is_relative_to(path.resolve()) or not (path / name).is_file():
            raise PackedError(f"{path / name} is missing")
        if _digest(path / name) != digest:
            raise PackedError(f"{path / name} is damaged: it is not the file that was saved (its SHA-256 differs)")
    return manifest


def _architecture(path: Path, manifest: Mapping[str, Any]) -> tuple[type[PreTrainedModel], Any]:
    """The model class, which must be one of `transformers`' own, and the config."""
    architecture = getattr(transformers, str(manifest["architecture"]), None)
    if not (isinstance(architecture, type) and issubclass(architecture, PreTrainedModel)):
        raise PackedError(f"{path}: transformers has no model {manifest['architecture']!r}")
    if manifest["dtype"] not in ("float32", "bfloat16", "float16"):
        raise PackedError(f"{path}: weights cannot have the dtype {manifest['dtype']!r}")
    return architecture, AutoConfig.from_pretrained(path, local_files_only=True)


def _load(model: PreTrainedModel, plan: CompressionPlan, file: Path) -> None:
    """Fill the model from the file, which must hold exactly what it needs."""
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
    expected = _rest(model, plan).keys() | {f"{name}.weight" for name in plan.layers}
    if state.keys() != expected:
        raise PackedError(
            f"{file} does not fit its plan and config: missing {sorted(expected - state.keys())}, "
            f"not expected {sorted(state.keys() - expected)}"
        )
    model.load_state_dict(state, strict=False)


def _files(directory: Path) -> list[Path]:
    return sorted(file for file in directory.rglob("*") if file.is_file())


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
