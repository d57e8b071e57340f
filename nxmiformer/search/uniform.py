"""No choice by layer: the baseline of every search."""

from dataclasses import dataclass

from nxmiformer.search.strategy import Strategy
from nxmiformer.search.table import Assignment, Table


@dataclass(frozen=True)
class Uniform(Strategy):
    """The assignments with the same set for every layer that is not pinned."""

    def __call__(self, table: Table, budget: int, most: int) -> list[Assignment]:
        found = [each for each in table.uniform().values() if table.cost(each) <= budget]
        if not found:
            costs = [table.cost(each) for each in table.uniform().values()]
            least = "no set is a candidate of every layer"
            if costs:
                least = f"the smallest one takes {min(costs) / max(1, budget):.4g} times as much as there is"
            raise ValueError(f"no uniform plan fits into the budget: {least}")
        return sorted(found, key=table.predicted)[:most]
