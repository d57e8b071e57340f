"""What ran, and on what."""

import hashlib
import platform
import shlex
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("nxmiformer", "torch", "transformers", "datasets", "accelerate", "safetensors", "hydra-core")


def provenance() -> dict[str, Any]:
    """What ran: the command, the versions, the revision."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {"command": shlex.join(["nxmiformer", *sys.argv[1:]]), "versions": versions, "revision": revision()}


def revision() -> str | None:
    """The git revision that the package runs from, with a + where the work tree differs; None outside a checkout."""
    where = Path(__file__).parent
    try:
        head, changed = (
            subprocess.run(["git", *words], cwd=where, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


@cache
def code() -> str:
    """A digest of the package's source, in hexadecimal: a revision does not include the changes of a work tree."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def device_name(device: torch.device) -> str:
    """What computes: the GPU, or the processor and how many of its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
