"""Whether the fields of a dataclass hold what they are declared to hold.

Python does not ask: `Grid(4.0)` would train, and fail when its codes are packed.
"""

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

# Of a field that values were once written without, which meant its default: it is left out where it has that, so that
# they are written, and have the fingerprint, as they had.
ADDED: Mapping[str, bool] = {"added": True}
WORDS = {int: "an integer", float: "a finite number", str: "text", bool: "true or false", NoneType: "None"}


def check_fields(value: Any) -> None:
    """Raise a ValueError that names the first field of a dataclass which holds a value of another type.

    4.0 is no integer, and True neither that nor a number; nor is what is not finite. Only an integer that is given for
    a number becomes one, for what is equal is to be written alike.
    """
    kind: Any = type(value)
    for name, hint in hints(kind).items():
        if not _fits(found := getattr(value, name), hint):
            raise ValueError(f"{kind.__name__} needs {name} to be {_words(hint)}, not {reprlib.repr(found)}")
        if hint is float:
            object.__setattr__(value, name, float(found))  # the dataclass is frozen


@cache
def hints(kind: type[Any]) -> dict[str, Any]:
    """The declared types of a dataclass's fields, by name, in order."""
    found = get_type_hints(kind)
    return {field.name: found[field.name] for field in fields(kind)}


@cache
def implied(kind: type[Any]) -> dict[str, Any]:
    """The fields of a dataclass that are `ADDED`, and their defaults."""
    return {field.name: field.default for field in fields(kind) if field.metadata.get("added")}


def choices(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of anything else, itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Whether the value is of the type `hint`: of classes, unions, literals, tuples and mappings."""
    kind, inner = get_origin(hint), get_args(hint)
    if len(choices(hint)) > 1:
        return any(_fits(value, each) for each in inner)
    if kind is Literal:
        return type(value) in {type(each) for each in inner}
    if kind is tuple:
        each = inner[:1] * len(value) if isinstance(value, tuple) and inner[-1] is ... else inner
        return isinstance(value, tuple) and len(value) == len(each) and all(map(_fits, value, each))
    if kind is Mapping:
        return isinstance(value, kind) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if kind is Sequence:
        return isinstance(value, kind) and not isinstance(value, str) and all(_fits(each, inner[0]) for each in value)
    if kind is Callable or hint is Any:
        return callable(value) or hint is Any
    if isinstance(value, float) and not math.isfinite(value):
        return False
    number = (int, float) if hint is float else hint
    return isinstance(value, number) and (hint is bool or not isinstance(value, bool))


def _words(hint: Any) -> str:
    """What a value of the type `hint` is called."""
    if len(choices(hint)) > 1:
        return " or ".join(_words(each) for each in choices(hint))
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Literal:
        return " or ".join(map(repr, inner))
    if kind is tuple:
        return f"a tuple ({', '.join('...' if each is ... else _words(each) for each in inner)})"
    if kind is Mapping:
        return f"a mapping of {_words(inner[0])} to {_words(inner[1])}"
    if kind is Sequence:
        return f"a list of {_words(inner[0])}"
    return "a function" if kind is Callable else WORDS.get(hint, hint.__name__)
