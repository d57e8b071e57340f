"""A budget of time: what each layer takes in ONNX Runtime."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nxmiformer.layers.targets import Target
from nxmiformer.search.budget import Budget
from nxmiformer.search.candidates import DENSE, words_of
from nxmiformer.search.costs import Costs
from nxmiformer.sets import ConstraintSet, Grid, Products
from nxmiformer.sets.base import Shape

WIDTH = 8  # bits of the integers that it multiplies
MILLISECOND = 1_000_000  # nanoseconds

Call = tuple[tuple[int, ...], Shape]  # the shape of the inputs of a layer, and of its weight


@dataclass(frozen=True)
class Latency:
    """How long a model takes, and each of its layers by itself.

    The prediction for a plan is the time of the dense model, with the time of each dense layer replaced by that of the
    layer in its set.

    Attributes:
        dense: nanoseconds of the dense model.
        around: of what else the plan compresses, above its dense time.
        calls: of each layer in one forward pass of it.
        layers: nanoseconds of a call, by call and `form`.
        facts: of the measurement, as JSON values.
    """

    dense: int
    around: int
    calls: Mapping[str, Sequence[Call]]
    layers: Mapping[tuple[Call, str], int]
    facts: Mapping[str, Any]

    def of(self, constraint: ConstraintSet | None, layer: Target) -> int:
        """Nanoseconds of all calls of the layer, with its weight in the set."""
        return sum(self.layers[call, form(constraint)] for call in self.calls[layer.name])

    def costs(self, budget: Budget, layers: Sequence[Target]) -> Costs:
        """What a search among these layers counts, under a budget of time."""
        rest = self.dense + self.around - sum(self.of(None, layer) for layer in layers)
        whole = budget.latency * self.dense if budget.latency is not None else (budget.milliseconds or 0) * MILLISECOND

        def smallest(cost: int) -> str:
            if budget.latency is not None:
                return f"budget.latency={_above((cost + rest) / self.dense)}"
            return f"budget.milliseconds={_above((cost + rest) / MILLISECOND)}"

        return Costs(
            budget=str(budget),
            limit=math.floor(whole - rest),
            cost=self.of,
            bits=budget.of,
            smallest=smallest,
            words=lambda cost: f"{(cost + rest) / MILLISECOND:.4g} ms",
            latency={**self.facts, "dense": self.dense, "rest": rest},
        )


def _above(value: float) -> str:
    """The next number of two digits: measured again, times differ in the third."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / step) * step:.6g}"


def form(constraint: ConstraintSet | None) -> str:
    """What ONNX Runtime computes with in the place of a set: it multiplies zeros as it does any other number, and codes
    of fewer bits as codes of 8.

    Raises:
        ValueError: it has no form of its own there.
    """
    if constraint is None or isinstance(constraint, Products):
        return words_of(constraint)
    if not isinstance(constraint.grid, Grid):
        raise ValueError(
            f"the set {constraint} has float values, which ONNX Runtime multiplies as it does dense ones: under "
            f"a budget of latency give it a grid, such as {constraint}+int8, or take {DENSE}"
        )
    return str(replace(constraint.grid, bits=WIDTH))
