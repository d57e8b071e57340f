"""`from_pretrained` of `transformers`, of a packed directory.

`transformers` makes the model and reads the tensors that are not packed, as always. Packed tensors are not passed to
it. The conversions that a quantizer could give it for them change from release to release, and cannot check the files.
So the layers have no weight while it reads, and get theirs from the file afterwards.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from nxmiformer.export.manifest import FORMAT, MANIFEST, METHOD, WEIGHTS, Digest, PackedError, read_manifest, reading
from nxmiformer.export.packed import stay_packed
from nxmiformer.export.skeleton import fit, header_of, join, read_plan
from nxmiformer.export.weights import PARTS, Below, fill_layers


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):
    """What a packed model's config says of it. The plan is in a file of its own, as is what the files must be.

    `lazy` is as in `load_packed`, for users who read the config first and pass it as `config=`.
    """

    def __init__(self, format: str = FORMAT, lazy: bool = False, **_: Any) -> None:
        self.quant_method, self.format, self.lazy = METHOD, format, lazy  # type: ignore[assignment]


@register_quantizer(METHOD)
class PackedQuantizer(HfQuantizer):
    """Puts the packed weights into a model that `from_pretrained` reads: the one that `load_packed` gives.

    With a `dtype` of the caller's, it is that one with its parameters cast.
    """

    quantization_config: PackedConfig
    requires_calibration = True  # a model that is dense is compressed by training, not while it is read

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """Raise a ValueError unless the model is to be on one device."""
        if device_map is not None and not (isinstance(device_map, dict) and device_map.keys() == {""}):
            raise ValueError(f"a packed model is read onto one device: such as device_map='cpu', not {device_map!r}")

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        self.path = _whole(Path(kwargs["checkpoint_files"][0]), str(model.name_or_path))
        self.manifest, self.plan = read_manifest(self.path), read_plan(self.path)
        self.part = ""
        if type(model).__name__ != self.manifest["architecture"]:
            self.part = _part(model, self.path, self.manifest)
            self.plan = self.plan.within(self.part, model)
            self.manifest = {**self.manifest, **_below(self.manifest, f"{self.part}.")}
        self.digest = Digest(self.path, self.manifest)
        try:
            header = header_of(self.path / WEIGHTS)
            if self.part:
                start = f"{self.part}."
                header = {key.removeprefix(start): facts for key, facts in header.items() if key.startswith(start)}
            join(model, self.path, self.manifest, self.plan)
            fit(model, self.path, self.manifest, self.plan, header)
        except PackedError:
            self.digest.settle()
            raise
        packed, shared = {f"{name}.weight" for name in self.plan.layers}, self.manifest["shared"]
        self.tied = model.all_tied_weights_keys
        model.all_tied_weights_keys = {name: key for name, key in shared.items() if key not in packed}
        for name in [*packed, *(name for name, key in shared.items() if key in packed)]:
            _hide(model, name)
        ours = {re.escape(name + end) for name in self.plan.layers for end in PARTS.values()}
        if self.part:  # the head, and the layers under the names that they have in the whole model
            ours |= {rf"(?!{re.escape(self.part)}\.).*", *(rf"{re.escape(self.part)}\.{each}" for each in ours)}
        model._keys_to_ignore_on_load_unexpected = {f"^({'|'.join(sorted(ours))})$"} if ours else None

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        dtype, file, lazy = getattr(torch, self.manifest["dtype"]), self.path / WEIGHTS, self.quantization_config.lazy
        with self.digest, reading(file), safe_open(file, framework="pt") as stored:
            tensors = Below(stored, self.part) if self.part else stored
            fill_layers(model, self.plan, self.manifest["shared"], tensors, dtype, model.device, lazy)
        model.all_tied_weights_keys = self.tied
        del model._keys_to_ignore_on_load_unexpected, self.digest  # which cannot be copied, as a model may be
        stay_packed(model, self.plan)

    def is_serializable(self) -> bool:
        """Not by `transformers`, which asks before it writes weights as they are unpacked: see `stay_packed`."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Whether adapters may be trained on the model."""
        return not self.quantization_config.lazy


def _part(model: PreTrainedModel, path: Path, manifest: Mapping[str, Any]) -> str:
    """The name that the model has in the packed one, whose backbone it is; a PackedError where it is another model."""
    architecture: type[PreTrainedModel] = getattr(transformers, manifest["architecture"])
    name = architecture.base_model_prefix
    with torch.device("meta"):
        backbone = getattr(architecture(model.config), name, None)
    if type(backbone) is not type(model):
        raise PackedError(
            f"{path} is a packed {architecture.__name__}, and was read as a {type(model).__name__}: read it as what it "
            f"is, or as its backbone, {type(backbone).__name__}"
        )
    return name


def _below(manifest: Mapping[str, Any], start: str) -> dict[str, Any]:
    """The manifest's entries of the tensors and layers with this prefix, without the prefix."""
    pairs, sizes = manifest["shared"].items(), manifest.get("sizes", {}).items()
    return {
        "shared": {a.removeprefix(start): b.removeprefix(start) for a, b in pairs if a.startswith(start)},
        "sizes": {name.removeprefix(start): each for name, each in sizes if name.startswith(start)},
    }


def _hide(model: nn.Module, name: str) -> None:
    """Leave the model without this parameter: neither to be read nor to be drawn, but there for who asks its shape."""
    module, _, attribute = name.rpartition(".")
    nothing = model.get_parameter(name).detach().to("meta")
    nothing._is_hf_initialized = True  # type: ignore[attr-defined]
    delattr(model.get_submodule(module), attribute)
    setattr(model.get_submodule(module), attribute, nothing)


def _whole(weights: Path, name: str) -> Path:
    """The directory of the file of weights; from the hub, of which `transformers` fetches that file only, with all."""
    snapshot = weights.parent
    if snapshot.parent.name == "snapshots" and not (snapshot / MANIFEST).is_file():
        snapshot_download(name, revision=snapshot.name, cache_dir=snapshot.parents[2])
    return snapshot
