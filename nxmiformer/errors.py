"""Errors that name the value, whose it is and what could have been meant."""

import difflib
from collections.abc import Iterable


def unknown(what: str, value: object, valid: Iterable[str]) -> ValueError:
    """A ValueError for a name that is not among the valid ones, with the nearest of those."""
    names = [str(name) for name in valid]
    near = difflib.get_close_matches(str(value), names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names[:12]) or 'none'}"
    return ValueError(f"unknown {what} {value!r}: {hint}")


class RefusedError(ValueError):
    """A start that is refused, for what is there already; nothing has been changed."""
