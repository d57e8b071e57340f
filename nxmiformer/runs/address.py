"""The position of a layer in the model, by its name."""

from collections.abc import Iterable, Sequence
from itertools import groupby

OUTSIDE = "other"  # the row of layers whose name has no index
Address = tuple[str, int | None, str]  # prefix, layer index, component


def address(name: str) -> Address:
    """A module's name as (prefix, layer index, component), cut at its first segment that is an integer.

    A name without one has no index, and is all component.
    """
    segments = name.split(".")
    for i, segment in enumerate(segments):
        if segment.isdecimal() and i + 1 < len(segments):
            return ".".join(segments[:i]), int(segment), ".".join(segments[i + 1 :])
    return "", None, name


def spoken(name: str) -> str:
    """A module's name in a sentence: "output.dense of layer 3"."""
    _, index, component = address(name)
    return component if index is None else f"{component} of layer {index}"


def rows(addresses: Iterable[Address]) -> dict[tuple[str, int | None], str]:
    """The rows in order, with their labels; layers whose name has no index are one row, the last."""
    seen = {(prefix, index) for prefix, index, _ in addresses}
    order = sorted(seen, key=lambda row: (row[1] is None, row[0], row[1] or 0))
    heads = _short(list(dict.fromkeys(row[0] for row in order if row[1] is not None)))
    return {row: OUTSIDE if row[1] is None else f"{heads[row[0]]} {row[1]}".strip() for row in order}


def columns(addresses: Iterable[Address]) -> list[str]:
    """The components in the order of the rows, each after the one that it follows in its row."""
    found: list[str] = []
    for _, row in groupby(addresses, key=lambda place: place[:2]):
        after = 0
        for _, _, component in row:
            if component not in found:
                found.insert(after, component)
            after = found.index(component) + 1
    return found


def _short(prefixes: Sequence[str]) -> dict[str, str]:
    """What distinguishes the prefixes: nothing if there is one, else the first segment in which they differ."""
    if len(prefixes) < 2:
        return dict.fromkeys(prefixes, "")
    split_up = [prefix.split(".") for prefix in prefixes]
    same = 0
    while all(len(s) > same for s in split_up) and len({s[same] for s in split_up}) == 1:
        same += 1
    heads = [s[same] if len(s) > same else s[-1] for s in split_up]
    return dict(zip(prefixes, heads if len(set(heads)) == len(heads) else prefixes, strict=True))
