"""Sets, and dataclasses that hold them, as JSON values."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin

from nxmiformer.errors import unknown
from nxmiformer.sets.base import ConstraintSet
from nxmiformer.sets.block import Block
from nxmiformer.sets.fields import choices, hints, implied
from nxmiformer.sets.grid import Grid
from nxmiformer.sets.kronecker import Kronecker
from nxmiformer.sets.nm import NM
from nxmiformer.sets.quantized_kronecker import QuantizedKronecker
from nxmiformer.sets.then import Then
from nxmiformer.sets.unstructured import Unstructured

_KINDS = (NM, Unstructured, Block, Grid, Then, Kronecker, QuantizedKronecker)
SETS: dict[str, type[Any]] = {kind.__name__: kind for kind in _KINDS}


def to_values(value: Any) -> Any:
    """A dataclass as a mapping of its fields, with a set's class name under `set`, and a tuple as a list; in mappings
    and tuples too."""
    if is_dataclass(value):
        kind: Any = type(value)
        named = {"set": kind.__name__} if issubclass(kind, ConstraintSet) else {}
        fields = {field: getattr(value, field) for field in hints(kind)}
        left_out = implied(kind).items()
        return named | {name: to_values(each) for name, each in fields.items() if (name, each) not in left_out}
    if isinstance(value, Mapping):
        return {key: to_values(each) for key, each in value.items()}
    return [to_values(each) for each in value] if isinstance(value, tuple) else value


def from_values(hint: Any, content: Any) -> Any:
    """The value of type `hint`, a dataclass, of which `to_values` made `content`: each field is there but those of
    `implied`, and no other.

    Values as such are left to the dataclass, which checks them.

    Raises:
        ValueError: a field is missing or unknown, a set is unknown, or a dataclass refuses a value.
    """
    for kind in choices(hint):
        if isinstance(content, list) and get_origin(kind) is tuple:
            return tuple(from_values(get_args(kind)[0], each) for each in content)
        if isinstance(content, dict) and get_origin(kind) is Mapping:
            return {key: _entry(get_args(kind)[1], key, each) for key, each in content.items()}
        if isinstance(content, dict) and isinstance(kind, type) and issubclass(kind, ConstraintSet):
            named, rest = content.get("set"), {key: each for key, each in content.items() if key != "set"}
            if not isinstance(named, str) or named not in SETS:
                raise unknown("set", named, SETS)
            return _built(SETS[named], rest)
        if isinstance(content, dict) and is_dataclass(kind):
            return _built(kind, content)
    return content


def _entry(hint: Any, key: str, content: Any) -> Any:
    """`from_values` of an entry of a mapping, by which its errors are called."""
    try:
        return from_values(hint, content)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _built(kind: Any, content: dict[str, Any]) -> Any:
    """The dataclass with the fields in `content`."""
    types = hints(kind)
    for name in content:
        if name not in types:
            raise unknown(f"field of {kind.__name__}", name, types)
    if missing := [name for name in types if name not in content and name not in implied(kind)]:
        raise ValueError(f"{kind.__name__} lacks {', '.join(missing)}")
    return kind(**{name: from_values(types[name], each) for name, each in content.items()})
