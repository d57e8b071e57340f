"""Files of tensors with the bytes that `safetensors` writes, and nothing copied in memory for it: of tensors that are
there, and of those in several files.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# As `safetensors` orders tensors: the last of these first, so that none begins between the bytes of a wider one's kind.
KINDS = (
    "BOOL",
    "U8",
    "I8",
    "F8_E5M2",
    "F8_E4M3",
    "I16",
    "U16",
    "F16",
    "BF16",
    "I32",
    "U32",
    "F32",
    "F64",
    "I64",
    "U64",
)
NAMES = {torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32"}
NAMES |= {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}
TYPES = {name: dtype for dtype, name in NAMES.items()}
ALIGNMENT = 8  # bytes, of the header
PIECE = 2**20  # bytes, or elements, that are read at once


class Facts(NamedTuple):
    """What a header says of a tensor, and how many bytes it has."""

    dtype: str
    shape: list[int]
    size: int


class Entry(NamedTuple):
    """A tensor in a file, and where its bytes begin there."""

    file: Path
    start: int
    facts: Facts


def entries(file: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file by name.

    Raises:
        ValueError: the file is longer or shorter than its header says.
    """
    content, first = _header(file)
    content.pop("__metadata__", None)
    if first + max((each["data_offsets"][1] for each in content.values()), default=0) != file.stat().st_size:
        raise ValueError(f"{file} is damaged: it has other bytes than its header names")
    found = {}
    for name, each in content.items():
        start, end = each["data_offsets"]
        found[name] = Entry(file, first + start, Facts(each["dtype"], each["shape"], end - start))
    return found


def metadata(file: Path) -> dict[str, str]:
    """What a safetensors file says of itself."""
    found: dict[str, str] = _header(file)[0].get("__metadata__", {})
    return found


def read(entry: Entry, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor, on the CPU, in `dtype` where that is given. It is read piece by piece, and no file is mapped, whose
    pages would count as memory of the process.

    Raises:
        ValueError: a float is not finite.
    """
    kind = TYPES[entry.facts.dtype]
    found = torch.empty(entry.facts.shape, dtype=dtype or kind, device="cpu")
    with entry.file.open("rb") as file:
        file.seek(entry.start)
        for part in found.view(-1).split(PIECE) if found.numel() else ():
            piece = torch.from_numpy(np.fromfile(file, np.uint8, len(part) * kind.itemsize)).view(kind)
            if piece.is_floating_point() and not piece.isfinite().all():
                raise ValueError(f"{entry.file}: a value is not finite")
            part.copy_(piece)
    return found


def join(files: Sequence[Path], out: Path, told: Mapping[str, str]) -> None:
    """Write all tensors of `files` to the new file `out`, which says `told` of itself.

    Raises:
        ValueError: two of the files have a tensor of one name.
    """
    found: dict[str, Entry] = {}
    for file in files:
        for name, entry in entries(file).items():
            if name in found:
                raise ValueError(f"{name} is in {found[name].file} and in {file}")
            found[name] = entry
    order, header = _laid_out({name: entry.facts for name, entry in found.items()}, told)
    with out.open("wb") as stream:
        stream.write(header)
        for name in order:
            _copy(found[name], stream)


def write(tensors: Mapping[str, Tensor], out: Path, told: Mapping[str, str]) -> None:
    """Write the tensors, contiguous ones on the CPU, to the new file `out`, which says `told` of itself."""
    facts = {
        name: Facts(NAMES[each.dtype], list(each.shape), each.numel() * each.element_size())
        for name, each in tensors.items()
    }
    order, header = _laid_out(facts, told)
    with out.open("wb") as stream:
        stream.write(header)
        for name in order:
            stream.write(tensors[name].detach().flatten().view(torch.uint8).numpy().data)


def _laid_out(tensors: Mapping[str, Facts], told: Mapping[str, str]) -> tuple[list[str], bytes]:
    """The order of the tensors in a file, and what it begins with."""
    order = sorted(tensors, key=lambda name: (-KINDS.index(tensors[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": dict(told)} if told else {}
    end = 0
    for name in order:
        dtype, shape, size = tensors[name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return order, len(text).to_bytes(8, "little") + text


def _copy(entry: Entry, stream: Any) -> None:
    with entry.file.open("rb") as source:
        source.seek(entry.start)
        shutil.copyfileobj(_Part(source, entry.facts.size), stream, PIECE)


class _Part:
    """The next so many bytes of an open file, as a file."""

    def __init__(self, file: Any, left: int) -> None:
        self.file, self.left = file, left

    def read(self, most: int = -1, /) -> bytes:
        found: bytes = self.file.read(self.left if most < 0 else min(most, self.left))
        self.left -= len(found)
        return found


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The content of a file's header, and where the bytes of its tensors begin."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return json.loads(stream.read(length)), 8 + length
