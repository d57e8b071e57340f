"""The exact choice of one candidate a layer under a budget, where the damage of the layers adds up."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from nxmiformer.search.strategy import Strategy
from nxmiformer.search.table import Assignment, Table

GAP = 1e-4  # of the sum, proven; what is left to the solver is small, and small problems it solves exactly
BISECTIONS = 100


@dataclass(frozen=True)
class Knapsack(Strategy):
    """The exact optimum of the predicted damage, and those that come next.

    Attributes:
        distance: share of the choices in which each differs from those before it, at least; 0: in one.
    """

    distance: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.distance <= 1:
            raise ValueError(f"distance is a share of the choices, in [0, 1], not {self.distance}")

    def __call__(self, table: Table, budget: int, most: int) -> list[Assignment]:
        apart = max(1, round(self.distance * len(table.choices)))
        found = [solve(table.damage, table.costs, budget)]
        while len(found) < most:
            try:
                found.append(solve(table.damage, table.costs, budget, found, apart))
            except Exhausted:
                break
        return sorted((tuple(int(index) for index in each) for each in found), key=table.predicted)


class Exhausted(ValueError):
    """Every choice within the budget is forbidden."""


def solve(
    damage: ArrayLike, bits: ArrayLike, budget: float, forbidden: Sequence[np.ndarray] = (), distance: int = 1
) -> np.ndarray:
    """The candidate of each layer that has the least sum of damage within `budget`: the multiple-choice knapsack.

    The Lagrangian relaxation bounds the sum from below, and the choice that it suggests bounds it from above. A
    candidate that costs more than their difference is in no better choice (Pisinger 1995,
    doi:10.1016/0377-2217(95)00015-I). What is left is a small mixed-integer programme (HiGHS, Huangfu and Hall 2018,
    doi:10.1007/s12532-017-0130-5).

    Args:
        damage: (layers, candidates); infinite where a layer does not have the candidate.
        bits: (layers, candidates), what each costs.
        budget: bits of all layers together.
        forbidden: choices that the answer must differ from, each in `distance` layers or more.

    Returns:
        The candidate of each layer, (layers,), int64.

    Raises:
        ValueError: the arrays do not fit each other or have NaN, the budget is too small (the message has the smallest
            possible one), or every choice within it is forbidden.
    """
    damage, bits = np.asarray(damage, dtype=float), np.asarray(bits, dtype=float)
    _check(damage, bits)
    there = np.isfinite(damage)
    least = np.where(there, bits, np.inf).min(1, initial=np.inf).sum()
    if least > budget:
        raise ValueError(f"the budget of {budget:.0f} bits is too small: the smallest possible one is {least:.0f}")
    if not len(damage):
        return np.zeros(0, dtype=np.int64)
    worst = np.abs(damage[there]).max() or 1.0
    return _best(np.where(there, damage / worst, np.inf), bits, budget, forbidden, distance)


def _best(
    cost: np.ndarray, bits: np.ndarray, budget: float, forbidden: Sequence[np.ndarray], distance: int
) -> np.ndarray:
    """The answer of `solve`, for costs of 1 or less."""
    there = np.isfinite(cost)
    price, choice = _relaxed(cost, bits, budget)
    reduced = cost + price * bits
    bound = reduced.min(1).sum() - price * budget
    reduced -= reduced.min(1, keepdims=True)
    rounding = 1e-12 * (1 + price * bits.max())
    if forbidden:
        choice = _integer(cost, bits, budget, there, forbidden, distance)
    for _ in range(2):  # the second time in units of what the first one left, which may be small beside the worst
        near = there & (reduced <= _sum(cost, choice) - bound + rounding)
        near[np.arange(len(near)), choice] = True
        found = _integer(cost, bits, budget, near, forbidden, distance)
        choice = min(choice, found, key=lambda each: _sum(cost, each))
    return choice


def _sum(values: np.ndarray, choice: np.ndarray) -> float:
    """What the choice comes to."""
    return float(values[np.arange(len(values)), choice].sum())


def _relaxed(cost: np.ndarray, bits: np.ndarray, budget: float) -> tuple[float, np.ndarray]:
    """The price of a bit at which the layers, each for itself, just keep within the budget; and what they choose."""

    def chosen(price: float) -> np.ndarray:
        return (cost + price * bits).argmin(1)

    def spent(choice: np.ndarray) -> float:
        return _sum(bits, choice)

    if spent(chosen(0.0)) <= budget:
        return 0.0, chosen(0.0)
    cheap = np.where(np.isfinite(cost), bits, np.inf).argmin(1)
    low, high = 0.0, 1.0 / bits[np.isfinite(cost)].max()
    while spent(chosen(high)) > budget and high < 1e30:
        high *= 4
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(chosen(middle)) > budget else (low, middle)
    found = chosen(high)
    return high, _filled(found if spent(found) <= budget else cheap, cost, bits, budget)


def _filled(choice: np.ndarray, cost: np.ndarray, bits: np.ndarray, budget: float) -> np.ndarray:
    """The choice after spending what is left, each time where a bit gains the most."""
    choice, rows = choice.copy(), np.arange(len(bits))
    while True:
        more = bits - bits[rows, choice][:, None]
        gain = cost[rows, choice][:, None] - cost
        fits = (gain > 0) & (more <= budget - bits[rows, choice].sum())
        if not fits.any():
            return choice
        worth = np.where(fits, gain / np.maximum(more, np.finfo(float).tiny), -np.inf)
        layer, candidate = np.unravel_index(worth.argmax(), worth.shape)
        choice[layer] = candidate


def _integer(
    cost: np.ndarray,
    bits: np.ndarray,
    budget: float,
    there: np.ndarray,
    forbidden: Sequence[np.ndarray],
    distance: int,
) -> np.ndarray:
    """The best choice among the candidates that are `there`."""
    layer, candidate = there.nonzero()

    def above(values: np.ndarray) -> np.ndarray:
        """By how much each candidate's value is above its layer's least one."""
        return (values - np.where(there, values, np.inf).min(1, keepdims=True))[there]

    def differs(choice: np.ndarray, distance: int) -> LinearConstraint:
        return LinearConstraint((candidate == np.asarray(choice)[layer]).astype(float), -np.inf, len(there) - distance)

    costs, sizes = above(cost), above(bits)
    left, unit = budget - np.where(there, bits, np.inf).min(1).sum(), sizes.max() or 1.0
    costs /= costs.max() or 1.0  # in units that the solver's tolerances are meant for
    one = csr_array((np.ones(len(layer)), (layer, np.arange(len(layer)))), shape=(len(there), len(layer)))
    rules = [LinearConstraint(one, 1, 1), LinearConstraint(sizes / unit, -np.inf, left / unit)]
    rules += [differs(each, distance) for each in forbidden]
    whole = np.ones(len(layer))
    while True:
        found = milp(costs, integrality=whole, bounds=Bounds(0, 1), constraints=rules, options={"mip_rel_gap": GAP})
        if found.x is None:
            others = f"{len(forbidden)} others in {distance} layers"
            raise Exhausted(f"no choice within {budget:.0f} bits differs from {others}")
        chosen = found.x > 0.5
        choice = np.zeros(len(there), dtype=np.int64)
        choice[layer[chosen]] = candidate[chosen]
        if _sum(bits, choice) <= budget:
            return choice
        rules.append(differs(choice, 1))  # over the budget by less than the solver's tolerance


def _check(damage: np.ndarray, bits: np.ndarray) -> None:
    if damage.ndim != 2 or damage.shape != bits.shape:
        raise ValueError(f"damage and bits are two arrays of layers x candidates, not {damage.shape} and {bits.shape}")
    if np.isnan(damage).any() or (damage == -np.inf).any() or not np.isfinite(bits).all() or (bits < 0).any():
        raise ValueError("damage is a number, or infinite where a layer lacks a candidate; bits are numbers, 0 or more")
    if len(damage) and not np.isfinite(damage).any(axis=1).all():
        raise ValueError(f"layer {int(np.isfinite(damage).any(axis=1).argmin())} has no candidate")
