"""What a search counts against its budget."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nxmiformer.layers.targets import Target
from nxmiformer.sets import ConstraintSet

Cost = Callable[[ConstraintSet | None, Target], int]  # of a layer in a set; None is a dense layer


@dataclass(frozen=True)
class Costs:
    """The cost of each layer in each set, and the limit of all layers together, in whole units: bits or nanoseconds.

    Attributes:
        budget: the budget in words.
        limit: of the searched layers together.
        cost: what a layer in a set counts for.
        bits: what it stores, in bits; where these are counted, the same.
        smallest: the smallest budget, as it is given, under whose limit so many units are.
        words: a limit in words, with its unit.
        latency: facts of the measurement where time is counted; None: bits are.
    """

    budget: str
    limit: int
    cost: Cost
    bits: Cost
    smallest: Callable[[int], str]
    words: Callable[[int], str]
    latency: Mapping[str, Any] | None = None
