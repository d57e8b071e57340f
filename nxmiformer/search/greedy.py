"""The greedy choice: from the least damage downwards."""

from dataclasses import dataclass

import numpy as np

from nxmiformer.search.strategy import Strategy
from nxmiformer.search.table import Assignment, Table


@dataclass(frozen=True)
class Greedy(Strategy):
    """Start with every layer in its candidate of least damage. Until all fit, take the step to a smaller candidate that
    adds the least damage for each unit of cost that it saves. Gives one assignment."""

    def __call__(self, table: Table, budget: int, most: int) -> list[Assignment]:
        damage, costs, rows = table.damage, table.costs, np.arange(len(table.choices))
        there = np.isfinite(damage)
        if (least := int(np.where(there, costs, np.inf).min(1).sum())) > budget:
            raise ValueError(f"the budget of {budget} is too small: the smallest possible one is {least}")
        chosen = damage.argmin(1)
        while costs[rows, chosen].sum() > budget:
            saved = costs[rows, chosen][:, None] - costs
            price = np.where(
                there & (saved > 0), (damage - damage[rows, chosen][:, None]) / np.maximum(saved, 1), np.inf
            )
            row, column = np.unravel_index(price.argmin(), price.shape)
            chosen[row] = column
        return [tuple(int(index) for index in chosen)]
