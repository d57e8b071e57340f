"""Laws of the reconstruction of one layer, against enumeration and least squares in float64."""

from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nxmiformer.optim import Problem, reconstruct
from nxmiformer.sets import NM, Block, Grid, Then, Unstructured

SETS = [
    NM(2, 4),
    NM(1, 4),
    Unstructured(0.4),
    Block(2, 2, 0.5),
    Grid(4),
    Grid(1),
    Grid(3, group=4, scale="absmax"),
    Then(NM(2, 4), Grid(4)),
    Then(NM(1, 4), Grid(2)),
    Then(Block(1, 4, 0.5), Grid(4)),
]


def problem(rows=6, columns=16, seed=0, correlation=1.0, dtype=torch.float32):
    """A weight, and the moment of inputs whose features are correlated."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mixing = torch.eye(columns, dtype=torch.float64) + correlation * torch.randn(
        columns, columns, generator=generator, dtype=torch.float64
    )
    x = torch.randn(64, columns, generator=generator, dtype=torch.float64) @ mixing
    return w.to(dtype), (x.T @ x / len(x)).float(), x


def damped(moment, damping=0.01):
    h = moment.double()
    return h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)


def error(v, w, h):
    off = v.double() - w.double()
    return (((off @ h) * off).sum() / ((w.double() @ h) * w.double()).sum()).item()


@pytest.mark.parametrize("constraint", SETS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_point_is_in_the_set_and_not_worse_than_the_projection(constraint, dtype):
    w, moment, _ = problem(dtype=dtype)
    found = reconstruct(w, moment, constraint)
    h = damped(moment)
    assert found.point.dtype == w.dtype
    assert constraint.contains(found.point)
    assert found.error == pytest.approx((error(found.kept, w, h), error(found.point, w, h)), rel=1e-3, abs=1e-5)
    assert found.error[1] <= error(constraint.project(w), w, h) * (1 + 1e-5)
    if constraint.sparsity is not None:
        assert constraint.sparsity.contains(found.kept)
        assert found.error[0] <= found.error[1] + 1e-6


@pytest.mark.parametrize("constraint", SETS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_point_alone_is_in_the_set_and_not_worse_than_the_projection(constraint, dtype):
    w, moment, _ = problem(dtype=dtype)
    found = Problem(w, moment).point(constraint, 20)
    assert found.dtype == w.dtype
    assert constraint.contains(found)
    assert error(found, w, damped(moment)) <= error(constraint.project(w), w, damped(moment)) * (1 + 1e-5)


@pytest.mark.parametrize("constraint", SETS, ids=str)
def test_the_point_alone_is_as_near_as_that_of_the_whole_reconstruction(constraint):
    ratios = []
    for seed in range(8):
        w, moment, _ = problem(rows=16, columns=32, seed=seed)
        whole, alone = reconstruct(w, moment, constraint, 10).point, Problem(w, moment).point(constraint, 10)
        ratios.append(error(alone, w, damped(moment)) / error(whole, w, damped(moment)))
    assert np.mean(ratios) < 1.05


@given(st.integers(0, 10**6), st.sampled_from([NM(2, 4), NM(1, 4), NM(3, 4)]))
def test_inputs_that_are_not_correlated_leave_the_weighted_projection(seed, constraint):
    w, _, _ = problem(seed=seed, dtype=torch.float64)
    importance = torch.rand(16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    found = reconstruct(w, torch.diag(importance), constraint, damping=0.0)
    nearest = constraint.project(w, importance.expand_as(w).contiguous())
    assert error(found.point, w, torch.diag(importance)) == pytest.approx(
        error(nearest, w, torch.diag(importance)), rel=1e-6
    )


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_the_values_are_the_least_squares_under_their_support(seed):
    w, moment, _ = problem(seed=seed, dtype=torch.float64)
    kept = reconstruct(w, moment, NM(2, 4), iterations=400).kept
    h = damped(moment).numpy()
    best = np.zeros(w.shape)
    for row, (before, values) in enumerate(zip(w.numpy(), kept.numpy(), strict=True)):
        support = values.nonzero()[0]
        best[row, support] = np.linalg.solve(h[np.ix_(support, support)], h[support] @ before)
    assert error(kept, w, damped(moment)) <= error(torch.tensor(best), w, damped(moment)) * 1.01 + 1e-9


def test_the_support_is_near_the_best_of_all():
    """One row at a time, all 36 supports of 2:4 in eight columns, each with its least squares: mean over 40 problems,
    of the error of the support found over that of the best, and of the magnitudes' over it."""
    ratios = []
    for seed in range(40):
        w, moment, _ = problem(rows=1, columns=8, seed=seed, dtype=torch.float64)
        h = damped(moment)

        def least(support, w=w, h=h):
            v = torch.zeros_like(w)
            chosen = torch.tensor(support)
            v[0, chosen] = torch.linalg.solve(h[chosen][:, chosen], h[chosen] @ w[0])
            return error(v, w, h)

        pairs = list(combinations(range(4), 2))
        best = min(least([*a, *(4 + i for i in b)]) for a, b in product(pairs, pairs))
        found = reconstruct(w, moment, NM(2, 4)).error[0]
        magnitudes = least(NM(2, 4).project(w)[0].nonzero().flatten().tolist())
        assert found >= best * (1 - 1e-6)
        ratios.append((found / best, magnitudes / best))
    ours, theirs = np.log(ratios).mean(0)
    assert ours < 0.25
    assert theirs > 2 * ours


@pytest.mark.parametrize("constraint", [Then(NM(2, 4), Grid(4)), Grid(3)], ids=str)
def test_the_grid_is_searched_with_the_inputs_in_view(constraint):
    """At least a tenth nearer than rounding the same weights to the levels of least weighted error."""
    w, moment, _ = problem(rows=32, columns=32, correlation=0.5)
    found = reconstruct(w, moment, constraint)
    importance = damped(moment).diagonal().float().expand_as(w).contiguous()
    mask = found.kept != 0 if constraint.sparsity else None
    rounded = constraint.apply(found.kept, constraint.piece(found.kept, importance, mask))
    h = damped(moment)
    loss = error(found.point, w, h) - found.error[0]
    assert loss < 0.9 * (error(rounded, w, h) - found.error[0])


def test_the_output_on_the_inputs_changes_by_the_error():
    w, moment, x = problem(dtype=torch.float64)
    found = reconstruct(w, moment, NM(2, 4), damping=0.0)
    before, after = x @ w.T, x @ found.kept.T
    assert ((after - before).square().sum() / before.square().sum()).item() == pytest.approx(found.error[0], rel=1e-4)


def test_one_problem_serves_every_set_as_one_of_its_own_does():
    w, moment, _ = problem()
    shared = Problem(w, moment)
    for constraint in [*SETS, *reversed(SETS)]:
        found, alone = shared.reconstruct(constraint, 10), reconstruct(w, moment, constraint, 10)
        assert torch.equal(found.kept, alone.kept)
        assert torch.equal(found.point, alone.point)
        assert found.error == alone.error


@given(st.integers(0, 10**6), st.sampled_from(SETS))
def test_the_errors_are_those_of_each_output_on_the_inputs(seed, constraint):
    w, moment, x = problem(seed=seed, dtype=torch.float64)
    v = constraint.project(w)
    before, after = x @ w.T, x @ v.T
    exact = Problem(w, moment, damping=0.0)
    torch.testing.assert_close(exact.row_errors(v), (after - before).square().mean(0), rtol=1e-4, atol=1e-6)
    assert exact.error(v) == pytest.approx(error(v, w, moment.double()), rel=1e-4)
    assert Problem(w, moment).error(v) == pytest.approx(error(v, w, damped(moment)), rel=1e-6)


def test_the_weight_itself_has_no_error():
    w, moment, _ = problem()
    assert Problem(w, moment).error(w) == 0
    assert not Problem(w, moment).row_errors(w).any()


def test_rows_are_problems_of_their_own():
    w, moment, _ = problem(rows=8)
    v, rows = NM(1, 4).project(w), [1, 2, 5]
    torch.testing.assert_close(Problem(w[rows], moment).row_errors(v[rows]), Problem(w, moment).row_errors(v)[rows])


def test_a_member_stays_where_it_is():
    w, moment, _ = problem()
    constraint = Then(NM(2, 4), Grid(4))
    member = constraint.project(w)
    assert torch.equal(reconstruct(member, moment, constraint).point, member)


def test_the_same_again_gives_the_same_bits():
    w, moment, _ = problem()
    first, second = (reconstruct(w, moment, Then(NM(2, 4), Grid(4))) for _ in range(2))
    assert torch.equal(first.kept, second.kept)
    assert torch.equal(first.point, second.point)


def test_inputs_that_are_all_zero_leave_the_projection():
    w, _, _ = problem()
    constraint = Then(NM(2, 4), Grid(4))
    found = reconstruct(w, torch.zeros(16, 16), constraint)
    assert constraint.contains(found.point)
    assert torch.equal(found.kept != 0, constraint.sparsity.piece(w).mask)


def test_a_zero_weight_stays_zero():
    _, moment, _ = problem()
    found = reconstruct(torch.zeros(6, 16), moment, Then(NM(2, 4), Grid(4)))
    assert not found.point.any()
    assert found.error == (0, 0)


def test_a_feature_that_is_never_on_is_pruned_first():
    w, moment, _ = problem(dtype=torch.float64)
    dead = [1, 6, 8]
    moment[dead], moment[:, dead] = 0, 0
    w[:, dead] = 3.0
    mask = reconstruct(w, moment, NM(2, 4), damping=1e-6).kept != 0
    assert not mask[:, dead].any()


@pytest.mark.parametrize("moment", [torch.eye(8), torch.full((16, 16), torch.nan), torch.full((16, 16), torch.inf)])
def test_a_moment_that_cannot_be_one_is_refused(moment):
    w, _, _ = problem()
    with pytest.raises(ValueError, match="moment of inputs must be finite"):
        reconstruct(w, moment, NM(2, 4))


def test_a_weight_that_the_set_rejects_is_refused():
    with pytest.raises(ValueError, match="not a multiple of the group"):
        reconstruct(torch.ones(2, 6), torch.eye(6), NM(2, 4))


@pytest.mark.parametrize("constraint", [Then(NM(2, 4), Grid(4)), Grid(3), NM(1, 4)], ids=str)
def test_rows_of_a_problem_are_the_problem_of_these_rows(constraint):
    w, moment, _ = problem(rows=9, dtype=torch.float64)
    rows = torch.tensor([1, 4, 8])
    part, alone = Problem(w, moment).of(rows), Problem(w[rows], moment)
    assert part.error(w[rows] * 0.5) == pytest.approx(alone.error(w[rows] * 0.5), rel=1e-5)
    found, expected = part.reconstruct(constraint), alone.reconstruct(constraint)
    torch.testing.assert_close(found.point, expected.point)
    assert found.error == pytest.approx(expected.error, rel=1e-4)
