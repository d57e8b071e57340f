"""The GLUE tasks, for scripts that take one by its name."""

from pathlib import Path
from typing import Any

import hydra

NAMES = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")
HUB = "nyu-mll/glue"


def glue(name: str, path: str | Path = HUB) -> Any:
    """The task of this name, from the hub or a directory of its layout."""
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        return hydra.utils.instantiate(hydra.compose("config", [f"task={name}", f"task.path={path}"]).task)
