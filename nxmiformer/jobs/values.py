"""Checks whether configured values have the right types, and names those that do not.

A place is a field of a dataclass, or an argument of whatever else `_target_` names. What lies in the value itself, such
as its range, is left to the class that it is for.
"""

import inspect
import math
import pydoc
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from nxmiformer.errors import unknown
from nxmiformer.sets.fields import choices, hints

MOST = 2**63  # what counts something fits into 64 bits
TARGET, PARTIAL = "_target_", "_partial_"
BRIEF = reprlib.Repr()  # what lies deep in a value is left out, so that a line stays one
BRIEF.maxlevel = 2


def mistakes(value: Any, hint: Any, where: str) -> Iterator[str]:
    """A line for each mistake in `value`, of the place `where`, which is declared to hold a `hint`."""
    options = [option for option in choices(hint) if option is not NoneType]
    if value is None and len(options) < len(choices(hint)):
        return
    found = [list(_mistakes(value, option, where)) for option in options]
    yield from min(found, key=len)


def _mistakes(value: Any, kind: Any, where: str) -> Iterator[str]:
    """As `mistakes`, of a place that holds one type only."""
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(value, float) and not math.isfinite(value):
        yield _wrong(where, value, "a finite number")
    elif kind is Any:
        yield from _anywhere(value, where)
    elif origin is Literal:
        if not isinstance(value, str):
            yield _wrong(where, value, f"one of {', '.join(map(str, inner))}")
    elif origin is Callable or (isinstance(kind, type) and kind not in (int, float, str, bool)):
        yield from _object_mistakes(value, kind, where)
    elif origin is Mapping and isinstance(value, dict):
        for key, item in value.items():
            yield from mistakes(item, inner[1], f"{where}.{key}")
    elif origin is Sequence and isinstance(value, list):
        for number, item in enumerate(value):
            yield from mistakes(item, inner[0], f"{where}[{number}]")
    elif not _fits(value, kind):
        yield _wrong(where, value, f"of type {_name(kind)}")
    elif isinstance(value, int) and abs(value) >= MOST:
        yield _wrong(where, value, "a number that fits into 64 bits")


def _wrong(where: str, value: Any, what: str) -> str:
    shown = "null" if value is None else value if isinstance(value, str) else BRIEF.repr(value)
    return f"{where}={shown}: its value must be {what}"


def _name(kind: Any) -> str:
    names = {Mapping: "mapping", Sequence: "list"}
    return names.get(get_origin(kind), getattr(kind, "__name__", str(kind)))


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is a number, a text, or true or false, as `kind` has it."""
    accepted = (int, float) if kind is float else kind
    return isinstance(kind, type) and isinstance(value, accepted) and isinstance(value, bool) == (kind is bool)


def _anywhere(value: Any, where: str) -> Iterator[str]:
    """Numbers that are not finite, or do not fit into 64 bits, in a value of any type."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from mistakes(item, Any, f"{where}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from mistakes(item, Any, f"{where}[{number}]")
    elif isinstance(value, int) and abs(value) >= MOST:
        yield _wrong(where, value, "a number that fits into 64 bits")


def _object_mistakes(node: Any, kind: Any, where: str) -> Iterator[str]:
    """As `mistakes`, of a node that is to describe an object: `_target_` names its class, the rest its arguments."""
    if not isinstance(node, dict) or TARGET not in node:
        yield _wrong(where, node, f"of type {_name(kind)}")
        return
    path = node[TARGET]
    try:
        target = pydoc.locate(path) if isinstance(path, str) else None
    except pydoc.ErrorDuringImport as error:
        yield f"{where}.{TARGET}={path}: it cannot be imported: {type(error.value).__name__}: {error.value}"
        return
    if not callable(target):
        yield f"{where}.{TARGET}={reprlib.repr(path)}: there is no such class"
    elif isinstance(kind, type) and not (isinstance(target, type) and issubclass(target, kind)):
        yield f"{where}.{TARGET}={path}: it is not a {kind.__name__}"
    elif not isinstance(node.get(PARTIAL, False), bool):
        yield _wrong(f"{where}.{PARTIAL}", node[PARTIAL], "of type bool")
    else:
        arguments = {key: value for key, value in node.items() if key not in (TARGET, PARTIAL)}
        yield from (_field_mistakes if is_dataclass(target) else _argument_mistakes)(arguments, target, where)


def _field_mistakes(arguments: Mapping[str, Any], target: Any, where: str) -> Iterator[str]:
    declared = {field.name: hints(target)[field.name] for field in fields(target) if field.init}
    for key, value in arguments.items():
        if key in declared:
            yield from mistakes(value, declared[key], f"{where}.{key}")
        else:
            yield str(unknown(f"key of {where}", key, declared))


def _argument_mistakes(arguments: Mapping[str, Any], target: Any, where: str) -> Iterator[str]:
    """As `mistakes`, of what a class such as an optimizer takes: a value is to be like the default in its place."""
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(target).parameters
    except ValueError:  # of some classes that are written in C there is no telling
        parameters = {}
    for key, value in arguments.items():
        default = parameters[key].default if key in parameters else inspect.Parameter.empty
        found = list(mistakes(value, Any, f"{where}.{key}"))
        if not found and not _alike(value, default):
            found = [_wrong(f"{where}.{key}", value, f"like {default}")]
        yield from found


def _alike(value: Any, default: Any) -> bool:
    """Whether a value may stand where `default` does: true or false, a number, or so many of them in a list."""
    if isinstance(default, tuple):
        return isinstance(value, list) and len(value) == len(default) and all(map(_alike, value, default))
    if isinstance(default, bool | int | float):
        return isinstance(value, int | float) and isinstance(value, bool) == isinstance(default, bool)
    return True
