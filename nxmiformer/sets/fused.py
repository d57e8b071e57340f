"""Functions of tensors that a compiler makes one kernel of, or a few, when it is asked to.

Without it each of their operations reads and writes a matrix of its own: searching the scales of a layer's rows is some
150 of them. Compiling takes seconds for each width and set, which a short run does not earn back.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

LEAST = 2**18  # elements of a matrix from which on compiling for it can pay

P = ParamSpec("P")
T = TypeVar("T")


class _Compiler:
    """Whether compiling is asked for, and whether it has turned out not to work here."""

    asked = False
    broken = False


@contextmanager
def compiling(on: bool = True) -> Iterator[None]:
    """Compile in the block, or not. Results are those without it but for roundings, and what a rounding decides."""
    before, _Compiler.asked = _Compiler.asked, on
    try:
        yield
    finally:
        _Compiler.asked = before


def pays(x: Tensor) -> bool:
    """Whether functions of a matrix like `x` are compiled; within code that is being compiled they are part of it."""
    wanted = _Compiler.asked and not _Compiler.broken and not torch.compiler.is_compiling()
    return wanted and x.numel() >= LEAST and x.device.type in ("cpu", "cuda")


def fused(function: Callable[P, T]) -> Callable[P, T]:
    """`function` of tensors, compiled once for each width and kind of its largest argument where that `pays`.

    No gradient passes through it. Where there is no compiler that works, it runs as it is, which is told once.
    """
    compiled: list[Callable[P, T]] = []

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if not any(isinstance(each, Tensor) and pays(each) for each in args):
            return function(*args, **kwargs)
        if not compiled:
            compiled.append(torch.compile(function))
        try:
            with torch.no_grad():
                return compiled[0](*map(_of_any_length, args), **kwargs)
        except Exception as error:
            result = function(*args, **kwargs)  # raises what is no matter of the compiler
            _Compiler.broken = True
            warnings.warn(
                f"torch.compile does not work here, and projections take longer without: {_first_line(error)}",
                stacklevel=2,
            )
            return result

    return call


def _of_any_length(each: Any) -> Any:
    """An argument; of a tensor the number of rows may differ from call to call."""
    if isinstance(each, Tensor):
        each = each.detach()
        torch._dynamo.maybe_mark_dynamic(each, 0)
    return each


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
