"""The list of a packed model's files, and what each must be."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from transformers import PreTrainedModel

from nxmiformer.files import digest_of, files_in, settle

FORMAT = "nxmiformer-packed-2"
REQUIRES = "pip install nxmiformer, and import nxmiformer before transformers reads this"  # for who has it not
METHOD = "nxmiformer"  # as `transformers` knows it, in a config's `quantization_config`
WEIGHTS, PLAN, MANIFEST, CONFIG, CARD = "model.safetensors", "plan.json", "packed.json", "config.json", "README.md"
GENERATION = "generation_config.json"  # as `transformers` calls how a model writes
EXPORTED = "export.json"  # what an export says of itself
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}  # of a model
ATTENTION = ("eager", "sdpa", None)  # None: what `transformers` chooses


class PackedError(ValueError):
    """A directory that is not a complete packed model."""


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Any error in the block is reported as an error of the file, as a wrong config can make a model raise anything."""
    try:
        yield
    except PackedError:
        raise
    except Exception as error:
        what = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise PackedError(f"{file} is not part of a complete packed model: {what}") from error


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, after a check of every file against it. A `Digest` checks the weights."""
    settle(path)
    if not (path / MANIFEST).is_file():
        raise PackedError(f"{path} is not a packed model: it has no {MANIFEST}")
    with reading(path / MANIFEST):
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise PackedError(
                f"{path / MANIFEST}: its format is {manifest['format']!r}, and this version reads {FORMAT!r}: save the "
                f"model again with this version, or read it with the one that saved it"
            )
        files = dict(manifest["files"])
        if not {WEIGHTS, PLAN, CONFIG} <= set(files):
            raise PackedError(f"{path / MANIFEST} names the files {sorted(files)} only")
        for name, digest in files.items():
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise PackedError(f"{path / MANIFEST} names {name!r}, which is outside of {path}")
            if not (path / name).is_file():
                raise PackedError(f"{path / name} is missing")
            if name != WEIGHTS:
                _compare(path / name, digest_of(path / name), digest)
        check_known(manifest, path)
        return {**manifest, "shared": dict(manifest["shared"])}


def check_known(manifest: Mapping[str, Any], path: Path) -> None:
    """Raise a PackedError unless the manifest, which is that of `path`, is of a model that `transformers` builds."""
    if manifest["dtype"] not in [str(dtype).removeprefix("torch.") for dtype in DTYPES.values()]:
        raise PackedError(f"{path / MANIFEST}: weights cannot have the dtype {manifest['dtype']!r}")
    if manifest["attention"] not in ATTENTION:
        raise PackedError(f"{path / MANIFEST}: there is no attention {manifest['attention']!r}")
    architecture = getattr(transformers, str(manifest["architecture"]), None)
    if not (isinstance(architecture, type) and issubclass(architecture, PreTrainedModel)):
        raise PackedError(f"{path / MANIFEST}: transformers has no model {manifest['architecture']!r}")


def replaceable(path: Path) -> bool:
    """Whether the directory is empty or holds a packed model, and nothing else: a card that was edited is that."""
    try:
        if not any(path.iterdir()):
            return True
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        ours = {MANIFEST, CARD, *manifest["files"]}
        edited = (path / CARD).is_file() and digest_of(path / CARD) != manifest["card"]
        foreign = {file.relative_to(path).as_posix() for file in files_in(path)} - ours
        return manifest["format"] == FORMAT and not edited and not foreign
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _compare(file: Path, found: str, expected: str) -> None:
    if found != expected:
        raise PackedError(f"{file} is damaged: it is not the file that was saved (its SHA-256 differs)")


class Digest:
    """Whether the file of weights is the one that was saved: found out in a thread of its own, while it is read.

    As a context manager it decides the error: if the file is damaged, that is raised.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.file, self.expected = path / WEIGHTS, manifest["files"][WEIGHTS]
        pool = ThreadPoolExecutor(1)
        self._found = pool.submit(digest_of, self.file)
        pool.shutdown(wait=False)

    def settle(self) -> None:
        """Wait for the digest; a PackedError unless it is that of the manifest."""
        with reading(self.file):
            _compare(self.file, self._found.result(), self.expected)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.settle()
