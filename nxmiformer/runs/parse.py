"""JSON checked against type hints, with errors that name the file and the key."""

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints


def parse(text: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `text`; a ValueError that begins with `where` if there is none."""
    try:
        content = json.loads(text.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{where}: this is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where}: this is not a JSON object, but {type(content).__name__}")
    return content


def typed(value: Any, hint: Any, key: str, where: object) -> Any:
    """`value` as the type `hint` wants it: a dataclass, a mapping from strings, an optional, or a plain value.

    Raises:
        ValueError: it is missing or of another type; the message begins with `where` and names the key.
    """
    if value is MISSING:
        raise ValueError(f"{where}: the key {key!r} is missing")
    if isinstance(hint, types.UnionType):
        return None if value is None else typed(value, get_args(hint)[0], key, where)
    inside = f"{key}." if key else ""
    if is_dataclass(hint):
        wanted, hints = _mapping(value, key, where), get_type_hints(hint)
        given = [f for f in fields(hint) if f.name in wanted or (f.default is MISSING and f.default_factory is MISSING)]
        read = {f.name: typed(wanted.get(f.name, MISSING), hints[f.name], inside + f.name, where) for f in given}
        return hint(**read)  # type: ignore[operator]
    if get_origin(hint) is Mapping:
        return {
            str(k): typed(v, get_args(hint)[1], f"{inside}{k}", where) for k, v in _mapping(value, key, where).items()
        }
    accepted = (int, float) if hint is float else hint
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise ValueError(f"{where}: the key {key!r} should be a {hint.__name__}, but is {value!r}")
    return hint(value)


def _mapping(value: Any, key: str, where: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: the key {key!r} should be an object, but is {value!r}")
    return value
