"""Files that a compressed model leaves the framework in."""

from nxmiformer.export.manifest import PackedError
from nxmiformer.export.packed import PackedSize, load_packed, save_packed

__all__ = ["PackedError", "PackedSize", "load_packed", "save_packed"]
