"""The file formats of compressed models. The job that writes them is in jobs."""

from nxmiformer.export.manifest import PackedError
from nxmiformer.export.packed import PackedSize, add_results, load_packed, save_packed
from nxmiformer.export.quantizer import PackedConfig, PackedQuantizer  # with them, from_pretrained knows packed models

__all__ = [
    "PackedConfig",
    "PackedError",
    "PackedQuantizer",
    "PackedSize",
    "add_results",
    "load_packed",
    "save_packed",
]
