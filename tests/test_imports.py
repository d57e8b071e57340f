import ast
import graphlib
from pathlib import Path

import pytest

import nxmiformer

ROOT = Path(nxmiformer.__file__).parent
# The modules and packages at the root: each imports from itself and from those above it.
ORDER = """
errors
ranks
files
console
sets
layers
plan
applied
optim
methods
tasks
models
train
search
export
blockwise
runs
figures
report
bench
jobs
cli
"""
RANKS = {f"nxmiformer.{name}": rank for rank, name in enumerate(ORDER.split())}
FILES = {
    ".".join(("nxmiformer", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def rank(module):
    """The line of the package that `module` is in; the root itself is the last of all."""
    return len(RANKS) if module == "nxmiformer" else RANKS[".".join(module.split(".")[:2])]


def at_run_time(tree):
    """The nodes of `tree` without what only type checkers read."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield node
            yield from at_run_time(node)


def imports(module):
    """The modules of the package that `module` imports."""
    found = set()
    for node in at_run_time(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in inner}
    return {name for name in found if name in FILES}


def back_arrows(module):
    return [f"{module} -> {name}" for name in sorted(imports(module)) if rank(name) > rank(module)]


@pytest.mark.parametrize("module", [name for name in FILES if name != "nxmiformer"])
def test_a_module_imports_only_from_its_own_package_and_those_before(module):
    assert back_arrows(module) == []


def test_no_imports_go_in_a_circle():
    order = list(graphlib.TopologicalSorter({module: imports(module) for module in FILES}).static_order())
    assert sorted(order) == sorted(FILES)


def test_the_imports_are_read_from_the_source():
    assert "nxmiformer.plan.compression" in imports("nxmiformer.applied.convert")
    assert "nxmiformer.sets" in imports("nxmiformer.plan.compression")
    assert "nxmiformer.sets.grid" not in imports("nxmiformer.sets.base")  # for type checkers only
    assert rank("nxmiformer.plan.compression") < rank("nxmiformer.applied.convert") < rank("nxmiformer.optim.admm")


def test_no_module_is_a_drawer_for_utilities():
    assert [name for name in FILES if "utils" in name.rpartition(".")[2]] == []


def test_nothing_asks_for_attributes_by_hasattr():
    assert [name for name, path in FILES.items() if "hasattr(" in path.read_text(encoding="utf-8")] == []
