"""Every tensor that is made says its device, so that none is made on the CPU by oversight."""

import ast
from pathlib import Path

import pytest

import nxmiformer

FACTORIES = {
    *("arange", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn"),
    *("randperm", "tensor", "zeros"),
}
PACKAGE = Path(nxmiformer.__file__).parent


def undecided(source):
    """The lines on which a tensor is made without a device."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FACTORIES:
            of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            if of_torch and not any(keyword.arg == "device" for keyword in node.keywords):
                yield node.lineno


def test_every_tensor_that_is_made_says_its_device():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 50
    found = {str(file.relative_to(PACKAGE)): list(undecided(file.read_text(encoding="utf-8"))) for file in files}
    assert {file: lines for file, lines in found.items() if lines} == {}


@pytest.mark.parametrize("call", ["zeros(2)", "tensor([1])", "randperm(3, generator=g)"])
def test_a_tensor_that_is_made_without_a_device_is_found(call):
    assert list(undecided(f"a = 1\nb = torch.{call}\n")) == [2]
    assert not list(undecided(f"b = torch.{call[:-1]}, device=w.device)"))
