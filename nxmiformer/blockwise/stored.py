"""The tensors of a model where they lie on disk, read one by one when they are asked for."""

import abc
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import PreTrainedModel

from nxmiformer.export.joined import TYPES, Entry, entries, read
from nxmiformer.export.weights import part_keys
from nxmiformer.models.source import Pretrained, Source
from nxmiformer.plan.compression import CompressionPlan

ONE, MANY = "model.safetensors", "model.safetensors.index.json"
READ = ["*.json", "*.safetensors", "*.model", "*.txt"]  # of a checkpoint on the hub


class Stored(abc.ABC):
    """Tensors by the names that the model has for them."""

    @abc.abstractmethod
    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """The tensor in this dtype, on the CPU."""


class Checkpoint(Stored):
    """The safetensors of a dense checkpoint.

    Args:
        path: its directory.
        shapes: the tensors that are wanted, and their shapes.
        prefix: what the names of a checkpoint of the backbone alone are without.

    Raises:
        ValueError: there are no safetensors, or tensors are missing or of another shape; each is named.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], prefix: str) -> None:
        self.path, self.files = path, _files(path)
        found = {name: entry for file in self.files for name, entry in entries(file).items()}
        self.places: dict[str, Entry] = {}
        wrong = []
        for name, shape in shapes.items():
            key = name if name in found else name.removeprefix(f"{prefix}.")
            if key not in found:
                wrong.append(f"{name} is missing")
            elif tuple(found[key].facts.shape) != shape:
                wrong.append(f"{name} is {tuple(found[key].facts.shape)}, not {shape}")
            elif found[key].facts.dtype not in TYPES:
                wrong.append(f"{name} is of {found[key].facts.dtype}")
            else:
                self.places[name] = found[key]
        if wrong:
            raise ValueError(
                f"model.path={path}: {len(wrong)} tensors of the model are not in the checkpoint under their names: "
                f"{', '.join(wrong[:8])}; read it by from_pretrained of transformers and write it by save_pretrained"
            )

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        try:
            return read(self.places[name], dtype)
        except ValueError as error:
            raise ValueError(f"model.path={self.path}: {name}: {error}") from error


class Packed(Stored):
    """The tensors of a packed file, compressed weights unpacked.

    Args:
        dtype: of the model that was packed.
    """

    def __init__(self, file: Path, plan: CompressionPlan, dtype: torch.dtype) -> None:
        self.file, self.plan, self.dtype, self.keys = file, plan, dtype, entries(file)

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        layer = name.removesuffix(".weight")
        spec = self.plan.layers.get(layer) if name.endswith(".weight") else None
        if spec is None:
            return read(self.keys[name], dtype)
        parts = {part: read(self.keys[key]) for part, key in part_keys(layer, self.keys).items()}
        weight = spec.weight.unpack(parts, spec.shape, self.dtype).to(dtype)
        return weight.t().contiguous() if spec.transposed else weight  # as it is read whole


def checkpoint(source: Source) -> Path:
    """The directory of the checkpoint, fetched from the hub where it is there.

    Raises:
        ValueError: the model is made, and not read.
    """
    if not isinstance(source, Pretrained):
        raise ValueError(
            f"job=blockwise reads a checkpoint block by block, and {source.name} is none: model=pretrained"
        )
    local = Path(source.path).expanduser()
    if local.is_dir():
        return local
    return Path(snapshot_download(source.path, revision=source.revision, allow_patterns=READ))


def shapes_of(model: PreTrainedModel, shared: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of the model that is in its files, one of those that share it."""
    return {name: tuple(each.shape) for name, each in model.state_dict().items() if name not in shared}


def _files(path: Path) -> list[Path]:
    if (path / MANY).is_file():
        names: dict[str, str] = json.loads((path / MANY).read_text(encoding="utf-8"))["weight_map"]
        return [path / name for name in dict.fromkeys(names.values())]
    if (path / ONE).is_file():
        return [path / ONE]
    raise ValueError(
        f"model.path={path}: there is no {ONE} and no {MANY}; save_pretrained of transformers writes them, of a "
        f"checkpoint in another format too"
    )
