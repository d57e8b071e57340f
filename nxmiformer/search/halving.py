"""Short training runs that compare similar plans."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

Plan = TypeVar("Plan")


@dataclass(frozen=True)
class Halving:
    """Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943). Every plan is trained for `steps` optimizer
    steps, the better half for twice as many, and so on until one is left.

    Attributes:
        steps: optimizer steps of the first round.
    """

    steps: int = 20

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"halving.steps={self.steps}: a round needs at least one optimizer step")

    def __call__(self, plans: Sequence[Plan], trial: Callable[[Plan, int], float]) -> Iterator[tuple[Plan, int, float]]:
        """Each trial as it ends: the plan, its steps and its score, where higher is better. The best of the last round
        wins; of two equal scores, that of the plan that comes first in `plans`."""
        left, steps = list(plans), self.steps
        while len(left) > 1:
            scores = []
            for plan in left:
                scores.append(trial(plan, steps))
                yield plan, steps, scores[-1]
            order = sorted(range(len(left)), key=lambda index: -scores[index])[: len(left) // 2]
            left, steps = [left[index] for index in sorted(order)], 2 * steps
