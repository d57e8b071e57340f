"""JSON that has the shape of a type, or an error that names the file and the key."""

from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def parse(text: bytes, where: object) -> dict[str, Any]:
    """The JSON object in `text`; errors as `shaped`."""
    content: dict[str, Any] = shaped(text, where, dict)
    return content


def shaped(text: bytes, where: object, kind: type[T]) -> T:
    """The JSON in `text` as a `kind`, such as a dataclass. Nothing is cast, and keys that it does not have count for
    nothing.

    Raises:
        ValueError: it is none; the message begins with `where`, and names the key.
    """
    hashable: Any = kind
    try:
        content: T = _adapter(hashable).validate_json(text, strict=True)
        return content
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key, said = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Input ")
        if first["type"] == "json_invalid":
            told = f"this is not JSON: {said.removeprefix('Invalid JSON: ')}"
        elif first["type"] == "missing":
            told = f"the key {key!r} is missing"
        else:
            told = f"{f'the key {key!r}' if key else 'this'} {said}, but is {first['input']!r}"
        raise ValueError(f"{where}: {told}") from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
