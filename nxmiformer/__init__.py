"""Jointly sparsify and quantize Transformers with ADMM, and pack the result."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from nxmiformer.applied.convert import convert, strip, verify
from nxmiformer.export import PackedError, load_packed, save_packed
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.projection import project
from nxmiformer.layers.targets import find_targets
from nxmiformer.optim import ADMM
from nxmiformer.plan.compression import CompressionPlan, LayerSpec
from nxmiformer.sets import NM, Block, ConstraintSet, Grid, Then, Unstructured

if TYPE_CHECKING:
    from nxmiformer.jobs.direct import compress
    from nxmiformer.train.callback import Compression
    from nxmiformer.train.objective import Objective

__version__ = version("nxmiformer")
__all__ = [
    "ADMM",
    "NM",
    "Activations",
    "Block",
    "Compression",
    "CompressionPlan",
    "ConstraintSet",
    "Grid",
    "LayerSpec",
    "Objective",
    "PackedError",
    "Then",
    "Unstructured",
    "compress",
    "convert",
    "find_targets",
    "load_packed",
    "project",
    "save_packed",
    "strip",
    "verify",
]

LATE = {  # they import much
    "compress": "nxmiformer.jobs.direct",
    "Compression": "nxmiformer.train.callback",
    "Objective": "nxmiformer.train.objective",
}


def __getattr__(name: str) -> Any:
    """Names that are imported on first use."""
    if name not in LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(LATE[name]), name)
