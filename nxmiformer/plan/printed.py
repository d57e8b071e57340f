"""A plan as a short table, for people."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

SKIPPED = 8  # lines of reasons, at most


class Spec(Protocol):
    """What is printed of a layer."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def bits(self) -> float: ...


@dataclass
class _Row:
    """Layers that differ in the number of their block alone."""

    name: str
    what: str
    shape: Sequence[int]
    bits: float
    count: int = 1


def printed(layers: Mapping[str, Spec], skipped: Mapping[str, str], rest: int) -> str:
    """Each layer with its set, shape and stored bits a weight, equal blocks together; their sum; and the layers that
    stay dense, with the reason.

    Args:
        rest: parameters of the model that the plan leaves alone.
    """
    rows: dict[tuple[str, str, tuple[int, ...]], _Row] = {}
    for name, spec in layers.items():
        row = _Row(_starred(name), str(spec), spec.shape, spec.bits)
        key = row.name, row.what, tuple(row.shape)
        if key in rows:
            rows[key].count += 1
        else:
            rows[key] = row
    cells = [
        (r.name, f"{r.count} ×" if r.count > 1 else "", r.what, " × ".join(map(str, r.shape)), f"{r.bits:.2f} bits")
        for r in rows.values()
    ]
    return "\n".join([*_aligned(cells), _sum(layers, rest), *_reasons(skipped)])


def _aligned(cells: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _sum(layers: Mapping[str, Spec], rest: int) -> str:
    sizes = [spec.shape[0] * spec.shape[1] for spec in layers.values()]
    weights, bits = sum(sizes), sum(spec.bits * size for spec, size in zip(layers.values(), sizes, strict=True))
    mean = f" in {bits / weights:.2f} bits each" if weights else ""
    return f"{len(layers)} layers: {weights:,} weights{mean}; {rest:,} other parameters stay float32"


def _reasons(skipped: Mapping[str, str]) -> Iterator[str]:
    """What stays dense, those that differ in a number alone on one line."""
    told = list(dict.fromkeys(f"dense: {_starred(name)}: {why}" for name, why in skipped.items()))
    yield from told[:SKIPPED]
    if len(told) > SKIPPED:
        yield f"dense: and {len(told) - SKIPPED} more, in plan.skipped"


def _starred(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
