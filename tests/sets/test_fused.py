"""Compiled functions of the sets, and many matrices at once."""

import functools

import naive
import pytest
import torch
from every import SETS, SPARSE

from nxmiformer.sets import NM, Grid, Then
from nxmiformer.sets import fused as module
from nxmiformer.sets.base import DTYPES
from nxmiformer.sets.fused import LEAST, compiling, fused, pays
from nxmiformer.sets.nm import PAIRWISE, _beaten_by_few, _pairwise_compiled

LARGE = torch.randn(LEAST // 128, 128, generator=torch.Generator().manual_seed(0), device="cpu")


@pytest.fixture
def traced(monkeypatch):
    """torch.compile that traces, in one graph, and leaves out the minutes of a C++ compiler; counts the graphs."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=keep, fullgraph=True))
    monkeypatch.setattr(module._Compiler, "broken", False)
    torch._dynamo.reset()
    yield graphs
    torch._dynamo.reset()


def test_a_compiled_projection_is_that_of_the_twin_which_is_not(traced, monkeypatch):
    monkeypatch.setattr("nxmiformer.sets.grid.CANDIDATES", 2)  # a sixth of the tracing
    points = Then(NM(2, 4), Grid(4))
    expected = points.project(LARGE)
    assert not traced
    with compiling():
        found = points.project(LARGE)
        count = len(traced)
        points.project(torch.cat([LARGE, LARGE[:64]]))
    assert len(traced) == count == 3  # another number of rows compiles nothing anew
    assert points.contains(found)
    torch.testing.assert_close((LARGE - found).norm(), (LARGE - expected).norm(), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "points", [each for each in SPARSE if isinstance(each, NM) and each.group <= PAIRWISE], ids=str
)
@pytest.mark.parametrize("function", [_beaten_by_few, _pairwise_compiled])
def test_the_mask_for_a_compiler_is_that_of_pairs_ties_included(points, function):
    chance = torch.Generator().manual_seed(0)
    for score in (torch.randn(8, 64, generator=chance), torch.randint(3, (8, 64), generator=chance).float()):
        assert torch.equal(function(score, points.group, points.keep), points.mask(score))


def test_without_a_compiler_the_function_runs_as_it_is_and_that_is_told_once(monkeypatch, recwarn):
    def broken(function):
        def call(*args):
            raise RuntimeError("no compiler\nat all")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(module._Compiler, "broken", False)
    double = fused(lambda x: x * 2)
    with compiling(), pytest.warns(UserWarning, match="projections take longer without: no compiler$"):
        assert torch.equal(double(LARGE), LARGE * 2)
    with compiling():
        assert not pays(LARGE)
        assert torch.equal(double(LARGE), LARGE * 2)
    assert not recwarn.list


def _of_wide_groups(points):
    """Whether a row by chance has no scale that explains it, as one of a single weight has."""
    return points.grid is None or (points.grid.group is None and isinstance(points.sparsity, NM | None))


def test_an_error_of_the_function_is_no_matter_of_the_compiler(traced):
    wrong = fused(lambda x: x @ x)
    with compiling(), pytest.raises(RuntimeError, match="shapes"):
        wrong(LARGE)
    assert not module._Compiler.broken


@pytest.mark.parametrize("points", [each for each in SETS if _of_wide_groups(each)], ids=str)
def test_weights_on_no_grid_get_the_piece_that_recovering_gives_them(points):
    for dtype in DTYPES[:2]:
        w = LARGE[:8].to(dtype)
        for mask in (None, points.piece(w).mask):
            found, expected = points.piece(w, None, mask, recover=False), points.piece(w, None, mask)
            for one, other in zip(found, expected, strict=True):
                assert one is other is None or naive.same_bits(one, other)
