"""Matrices in parts that fit the cache of a CPU; an accelerator takes them whole, and so does compiled code."""

from collections.abc import Iterator

from torch import Tensor

from nxmiformer.sets.fused import pays

CHUNK = 1 << 17  # elements of a part


def parts(rows: Tensor) -> Iterator[slice]:
    """Which rows make each part."""
    whole = rows.device.type != "cpu" or pays(rows)
    size = max(1, rows.shape[0] if whole else CHUNK // max(1, rows.shape[1]))
    return (slice(start, start + size) for start in range(0, rows.shape[0], size))


def chunks(rows: Tensor, weight: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The parts of the rows and of their weights."""
    return ((rows[part], None if weight is None else weight[part]) for part in parts(rows))
