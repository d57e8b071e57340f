"""Jointly sparsify and quantize Transformers with ADMM, and ship the result as small as it claims to be."""

from importlib.metadata import version

from nxmiformer.export import PackedError, load_packed, save_packed
from nxmiformer.layers.convert import convert, project, strip, verify
from nxmiformer.layers.quantizers import Activations
from nxmiformer.layers.targets import find_targets
from nxmiformer.optim import ADMM
from nxmiformer.plan.compression import CompressionPlan, LayerSpec
from nxmiformer.sets import NM, Block, ConstraintSet, Grid, Then, Unstructured

__version__ = version("nxmiformer")
__all__ = [
    "ADMM",
    "NM",
    "Activations",
    "Block",
    "CompressionPlan",
    "ConstraintSet",
    "Grid",
    "LayerSpec",
    "PackedError",
    "Then",
    "Unstructured",
    "convert",
    "find_targets",
    "load_packed",
    "project",
    "save_packed",
    "strip",
    "verify",
]
