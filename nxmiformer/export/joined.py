"""One file of tensors out of several, with no more in memory than a part of one of them.

The bytes are those that `safetensors` writes for all the tensors together.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# As `safetensors` orders tensors: the last of these first, so that none begins between the bytes of a wider one's kind.
KINDS = ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64", "U64")
ALIGNMENT = 8  # bytes, of the header


class Entry(NamedTuple):
    """A tensor in a file: its header's words, and where its bytes begin in the file."""

    file: Path
    dtype: str
    shape: list[int]
    start: int
    size: int


def entries(file: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file by name."""
    content, first = _header(file)
    content.pop("__metadata__", None)
    return {
        name: Entry(file, each["dtype"], each["shape"], first + (offsets := each["data_offsets"])[0], offsets[1] - offsets[0])
        for name, each in content.items()
    }


def metadata(file: Path) -> dict[str, str]:
    """What a safetensors file says of itself."""
    found: dict[str, str] = _header(file)[0].get("__metadata__", {})
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
    ordered = sorted(found.items(), key=lambda pair: (-KINDS.index(pair[1].dtype), pair[0]))
    header: dict[str, Any] = {"__metadata__": dict(told)} if told else {}
    end = 0
    for name, entry in ordered:
        header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [end, end + entry.size]}
        end += entry.size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with out.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for _, entry in ordered:
            _copy(entry, stream)


def _copy(entry: Entry, stream: Any) -> None:
    with entry.file.open("rb") as source:
        source.seek(entry.start)
        shutil.copyfileobj(_Part(source, entry.size), stream, 2**20)


class _Part:
    """The next so many bytes of an open file, as a file."""

    def __init__(self, file: Any, left: int) -> None:
        self.file, self.left = file, left

    def read(self, most: int) -> bytes:
        found: bytes = self.file.read(min(most, self.left))
        self.left -= len(found)
        return found


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The content of a file's header, and where the bytes of its tensors begin."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return json.loads(stream.read(length)), 8 + length
