import itertools

import pytest

from nxmiformer.optim import Balanced, Constant, Ramp, Residuals, SupportChange, Warmup

STILL = Residuals(gap=0.0, dual=0.0, flips=0.0)


def test_constant_never_moves():
    schedule = Constant(0.3)
    assert schedule.first() == 0.3
    assert schedule.after(0.7, 1000, Residuals(9.0, 0.0, 1.0)) == 0.3


def test_warmup_is_linear_and_then_stays():
    schedule = Warmup(0.5, steps=10)
    assert schedule.first() == pytest.approx(0.05)
    assert [schedule.after(9.0, step, STILL) for step in (1, 5, 10, 99)] == pytest.approx([0.05, 0.25, 0.5, 0.5])


def test_an_update_before_the_first_step_leaves_the_warmup_where_it_starts():
    schedule = Warmup(0.5, steps=10)
    assert schedule.after(schedule.first(), 0, STILL) == schedule.first()


@pytest.mark.parametrize(("start", "end"), [(1e-3, 1.0), (1.0, 1e-3), (0.2, 0.2)])
def test_ramp_multiplies_by_the_same_factor_every_step_from_start_to_end(start, end):
    schedule = Ramp(start, end, steps=20)
    values = [schedule.after(9.0, step, STILL) for step in range(41)]
    assert values[0] == schedule.first() == start
    assert values[20:] == pytest.approx([end] * 21)
    ratios = [b / a for a, b in itertools.pairwise(values[:21])]
    assert ratios == pytest.approx([(end / start) ** (1 / 20)] * 20)


@pytest.mark.parametrize(
    ("gap", "dual", "expected"),
    [(1.1, 1.0, 0.2), (0.9, 1.0, 0.1), (0.01, 0.9, 0.1), (0.01, 1.1, 0.05), (0.0, 0.0, 0.1), (1.0, 0.0, 0.2)],
)
def test_balanced_doubles_above_and_halves_below_ten_times_the_dual_residual(gap, dual, expected):
    assert Balanced(0.1).after(0.1, 1, Residuals(gap, dual, 0.0)) == pytest.approx(expected)


def test_balanced_stays_within_its_bounds():
    schedule = Balanced(0.1, least=0.02, most=0.5)
    assert schedule.first() == 0.1
    assert schedule.after(0.4, 1, Residuals(1.0, 0.0, 0.0)) == 0.5
    assert schedule.after(0.03, 1, Residuals(0.0, 1.0, 0.0)) == 0.02


@pytest.mark.parametrize(
    ("flips", "factor"), [(0.0, 1.0), (0.004, 1.1), (0.005, 1.1), (0.006, 1.2), (0.1, 1.2), (0.11, 1.3)]
)
def test_support_change_grows_with_the_share_of_flips(flips, factor):
    assert SupportChange(0.1).after(0.2, 1, Residuals(0.0, 0.0, flips)) == pytest.approx(0.2 * factor)


def test_support_change_stops_at_its_most():
    schedule = SupportChange(0.1, most=0.5)
    assert schedule.first() == 0.1
    assert schedule.after(0.45, 1, Residuals(0.0, 0.0, 1.0)) == 0.5


@pytest.mark.parametrize("rho", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("make", [Constant, Balanced, SupportChange, lambda rho: Warmup(rho, 5)])
def test_rho_must_be_a_positive_number(make, rho):
    with pytest.raises(ValueError, match="rho must be a positive number"):
        make(rho)


@pytest.mark.parametrize("field", ["start", "end", "steps"])
def test_a_ramp_names_the_value_that_is_not_positive(field):
    with pytest.raises(ValueError, match=f"{field} must be a positive number, not 0"):
        Ramp(**{"start": 0.1, "end": 1.0, "steps": 5, field: 0})


def test_a_warmup_needs_steps():
    with pytest.raises(ValueError, match="steps must be a positive number"):
        Warmup(0.1, steps=0)


@pytest.mark.parametrize("options", [{"ratio": 1.0}, {"factor": 0.5}])
def test_balancing_needs_a_ratio_and_a_factor_above_one(options):
    with pytest.raises(ValueError, match="ratio and factor must be above 1"):
        Balanced(0.1, **options)
