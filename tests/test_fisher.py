"""The optimal brain surgeon against dense inverses, exact optima and enumeration, in float64."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nxmiformer.optim.fisher import Fisher, Surgeon
from nxmiformer.sets import NM, Block, Unstructured

CPU = "cpu"


def problem(shape, size, gradients=64, damping=1e-3, seed=0):
    """A weight, its gradients, and its Fisher information as `Fisher` has it."""
    generator = torch.Generator(CPU).manual_seed(seed)
    w = torch.randn(shape, generator=generator, dtype=torch.float64)
    scale = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1
    mixed = torch.randn(gradients, *shape, generator=generator, dtype=torch.float64).cumsum(-1) * scale
    fisher = Fisher(shape, size, CPU)
    for gradient in mixed:
        fisher.add(gradient)
    return w, mixed, fisher, fisher.inverse(damping)


def dense(gradients, size, damping=1e-3):
    """The whole Fisher information of a flattened weight, its blocks alone, float64."""
    flat = gradients.flatten(1)
    whole = flat.t() @ flat / len(flat)
    number = torch.arange(len(whole)) // size
    return whole * (number[:, None] == number) + damping * torch.eye(len(whole), dtype=torch.float64)


def least(w, hessian, mask):
    """The exact minimum of the quadratic under a support: its point, and its value."""
    kept, target = mask.flatten(), w.flatten()
    point = torch.zeros_like(target)
    rest = hessian[kept][:, ~kept] @ target[~kept]
    point[kept] = target[kept] + torch.linalg.solve(hessian[kept][:, kept], rest)
    change = point - target
    return point.view_as(w), (change @ hessian @ change / 2).item()


@pytest.mark.parametrize(("shape", "size"), [((6, 8), 8), ((6, 8), 4), ((5, 7), 4), ((3, 4), 1), ((3, 4), 50)])
def test_the_inverse_of_each_block_is_that_of_the_dense_matrix(shape, size):
    w, gradients, _, inverse = problem(shape, size)
    expected = torch.linalg.inv(dense(gradients, size))
    for number, block in enumerate(inverse):
        own = slice(number * size, min((number + 1) * size, w.numel()))
        ours = block[: own.stop - own.start, : own.stop - own.start].double()
        torch.testing.assert_close(ours, expected[own, own], rtol=1e-3, atol=1e-3)


def test_blocks_of_one_weight_are_the_diagonal_and_leave_the_survivors_alone():
    w, gradients, _, inverse = problem((4, 8), 1)
    torch.testing.assert_close(inverse.flatten().double(), 1 / dense(gradients, 1).diagonal(), rtol=1e-5, atol=0)
    mask = Unstructured(0.5).mask(w.abs())
    torch.testing.assert_close(Surgeon(w, inverse).prune(mask)[0], torch.where(mask, w, 0.0))


@given(seed=st.integers(0, 50), density=st.sampled_from([0.2, 0.5, 0.9]), size=st.sampled_from([4, 8, 16]))
def test_the_survivors_are_the_exact_optimum_and_the_predicted_rise_is_the_realised_one(seed, density, size):
    w, gradients, _, inverse = problem((4, 8), size, seed=seed)
    mask = Unstructured(density).mask(w.abs())
    point, rise = Surgeon(w, inverse).prune(mask)
    exact, value = least(w, dense(gradients, size), mask)
    torch.testing.assert_close(point, exact, rtol=2e-3, atol=2e-3)
    assert rise == pytest.approx(value, rel=2e-3)


@given(seed=st.integers(0, 50), pattern=st.sampled_from([(1, 4), (2, 4), (3, 4), (1, 8), (1, 16)]))
def test_of_each_group_the_pattern_that_costs_least_of_all_is_kept(seed, pattern):
    keep, size = pattern
    w, gradients, _, inverse = problem((2, size), size, seed=seed)
    mask, hessian = Surgeon(w, inverse).support(NM(keep, size)), dense(gradients, size)
    for group in range(2):
        own = slice(size * group, size * group + size)
        kept_ones = itertools.combinations(range(size), keep)
        patterns = [torch.tensor([i in kept for i in range(size)]) for kept in kept_ones]
        costs = [least(w.flatten()[own], hessian[own, own], pattern)[1] for pattern in patterns]
        assert patterns[costs.index(min(costs))].equal(mask.flatten()[own])


@given(seed=st.integers(0, 50))
def test_rows_of_blocks_cost_what_the_exact_optimum_loses_and_the_cheapest_go(seed):
    w, gradients, _, inverse = problem((2, 16), 8, seed=seed)
    mask, hessian = Surgeon(w, inverse).support(Block(1, 4, 0.5)), dense(gradients, 8)
    costs = []
    for group in range(8):
        kept = torch.ones(32, dtype=torch.bool)
        kept[4 * group : 4 * group + 4] = False
        costs.append(least(w.flatten(), hessian, kept)[1])
    expected = sorted(range(8), key=costs.__getitem__)[4:]
    assert mask.view(8, 4).all(1).nonzero().flatten().tolist() == sorted(expected)
    assert int(mask.sum()) == 16


@given(seed=st.integers(0, 50))
def test_an_element_alone_costs_what_the_exact_optimum_loses(seed):
    w, gradients, _, inverse = problem((2, 8), 8, seed=seed)
    mask, hessian = Surgeon(w, inverse).support(Unstructured(0.5)), dense(gradients, 8)
    alone = ~torch.eye(16, dtype=torch.bool)
    costs = torch.tensor([least(w.flatten(), hessian, kept)[1] for kept in alone])
    assert mask.flatten().equal(Unstructured(0.5).mask(costs[None])[0])


def test_the_surgeon_loses_less_than_magnitude_where_gradients_are_correlated():
    w, gradients, _, inverse = problem((16, 32), 32, gradients=256)
    surgeon, hessian = Surgeon(w, inverse), dense(gradients, 32)
    for constraint in (NM(2, 4), NM(1, 4), Unstructured(0.3), Block(1, 4, 0.5)):
        change = (constraint.project(w) - w).flatten()
        _, ours = surgeon.prune(surgeon.support(constraint))
        assert ours < 0.5 * (change @ hessian @ change / 2).item()


def test_memory_is_told_in_advance():
    fisher = Fisher((6, 9), 4, CPU)
    assert Fisher.nbytes((6, 9), 4) == fisher.gram.numel() * fisher.gram.element_size()


def test_what_cannot_be_is_named():
    w, _, fisher, inverse = problem((2, 12), 6)
    with pytest.raises(ValueError, match="blocks of 6 weights cut groups of 4 in two"):
        Surgeon(w, inverse).support(NM(2, 4))
    with pytest.raises(ValueError, match="damping of the Fisher information must be positive, not 0"):
        fisher.inverse(0.0)
    with pytest.raises(ValueError, match="no gradients"):
        Fisher((2, 4), 4, CPU).inverse(1.0)
    with pytest.raises(ValueError, match="not finite"):
        fisher.add(torch.full((2, 12), torch.nan))
    with pytest.raises(ValueError, match="at least 1 weight, not 0"):
        Fisher((2, 4), 0, CPU)
