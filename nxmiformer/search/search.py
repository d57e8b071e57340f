"""From a budget to a plan."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nxmiformer.console.display import SILENT, Display
from nxmiformer.layers.targets import Targets
from nxmiformer.search.candidates import Candidates, Choice, words_of
from nxmiformer.search.costs import Costs
from nxmiformer.search.evidence import Evidence
from nxmiformer.search.halving import Halving
from nxmiformer.search.sensitivity import Sensitivity
from nxmiformer.search.strategy import Strategy
from nxmiformer.search.table import Assignment, Damages, Table, measure
from nxmiformer.search.whole import OneShot, Sets

Trial = Callable[[Sets, int], float]


@dataclass(frozen=True)
class Scored:
    """An assignment of sets to layers, with its measurements.

    Attributes:
        name: its origin.
        sets: by layer; None is dense.
        bits: stored for the layers, as the budget counts them; all of them where it counts time.
        cost: of the layers, in the unit of the budget: these bits, or nanoseconds.
        predicted: predicted damage, added up over the layers.
        divergence: divergence of the logits, with all layers in their sets and without training.
        score: score of the task, likewise.
        trials: steps of training, and the score after them.
    """

    name: str
    sets: Sets
    bits: int
    cost: int
    predicted: float
    divergence: float
    score: float
    trials: tuple[tuple[int, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        sets = {name: words_of(each) for name, each in self.sets.items()}
        return {**vars(self), "sets": sets, "trials": [list(trial) for trial in self.trials]}


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        best: the plan to use.
        plans: all plans within the budget that were measured as whole models, in the order of their divergence.
        frontier: the best plans for other budgets, and all uniform ones.
        damages: the sensitivity, by layer and set.
        interactions: of pairs of layers: both names, the damage of both together, the sum of their damages.
        budget: limit of the layers, in bits or nanoseconds.
        latency: facts of the measurement where time was counted.
    """

    best: Scored
    plans: tuple[Scored, ...]
    frontier: tuple[Scored, ...]
    damages: Damages
    interactions: tuple[tuple[str, str, float, float], ...]
    budget: int
    latency: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "budget": self.budget,
            "latency": None if self.latency is None else dict(self.latency),
            "best": self.best.to_dict(),
            "plans": [each.to_dict() for each in self.plans],
            "frontier": [each.to_dict() for each in self.frontier],
            "damages": {layer: dict(row) for layer, row in self.damages.items()},
            "interactions": [
                {"layers": [a, b], "together": both, "sum": total} for a, b, both, total in self.interactions
            ],
        }


@dataclass(frozen=True)
class Search:
    """Predicts the damage of every layer in every set, proposes assignments that fit the budget, and measures these as
    whole models.

    Attributes:
        candidates: the sets that each layer may have.
        sensitivity: predicts the damage of one layer.
        strategy: proposes assignments by the sum of these.
        keep: number of assignments to measure as whole models.
        uniform: number of uniform assignments to measure too, those of the least predicted damage.
        iterations: iterations of each stage of a layer's reconstruction there; 0: projection only.
        examples: examples of the holdout, on which everything is measured.
        frontier: further budgets to find plans for, evenly apart on a log scale; 0: none.
        interactions: number of layers of the plan, those of the most damage, whose pairs are measured; 0: none.
        halving: compares the best plans by training them; None: the least divergence wins.
    """

    candidates: Candidates
    sensitivity: Sensitivity
    strategy: Strategy
    keep: int = 3
    uniform: int = 2
    iterations: int = 3
    examples: int = 128
    frontier: int = 0
    interactions: int = 0
    halving: Halving | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("keep", 1),
            ("uniform", 0),
            ("iterations", 0),
            ("examples", 1),
            ("frontier", 0),
            ("interactions", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"search.{name}={getattr(self, name)}: it must be at least {least}")

    def __call__(
        self,
        evidence: Evidence,
        targets: Targets,
        costs: Costs,
        cache: Path,
        trial: Trial,
        display: Display = SILENT,
    ) -> Found:
        """The plan for these layers.

        Args:
            evidence: of the dense model.
            targets: its layers.
            costs: of their sets, and the limit.
            cache: directory in which measured damages are kept.
            trial: trains with these sets for so many steps, and gives the score on the holdout; for `halving`.
            display: shows how far it is.

        Raises:
            ValueError: as `check`.
        """
        self.check(targets, costs)
        choices = self.candidates.choices(targets)
        damages = self._damages(evidence, choices, cache, display)
        table, whole = Table.of(choices, damages, costs.cost), OneShot(evidence, self.iterations)
        plans = _scored(table, whole, self._proposals(table, costs.limit), costs, "plans", display)
        plans = self._halved(sorted(plans, key=lambda each: (each.divergence, each.cost)), trial, display)
        pairs = whole.interactions(plans[0].sets, self.interactions, display) if self.interactions else []
        frontier = _scored(table, whole, self._frontier(table, costs), costs, "frontier", display)
        return Found(plans[0], tuple(plans), tuple(frontier), damages, tuple(pairs), costs.limit, costs.latency)

    def check(self, targets: Targets, costs: Costs) -> None:
        """Whether there is a plan within the limit is known before anything is trained.

        Raises:
            ValueError: the budget is too small (the message has the smallest possible one); or a layer has no
                candidate.
        """
        least = 0
        for choice in self.candidates.choices(targets):
            least += min(sum(costs.cost(each, layer) for layer in choice.layers) for each in choice.sets)
        if least > costs.limit:
            raise ValueError(f"budget {costs.budget} is too small: the least is {costs.smallest(least)}")

    def _damages(self, evidence: Evidence, choices: Sequence[Choice], cache: Path, display: Display) -> Damages:
        damages = {}
        work = measure(evidence, choices, self.sensitivity, cache)
        total = sum(len(choice.layers) for choice in choices)
        for layer, row in display.tracked(work, "sensitivity", total):
            damages[layer] = row
        return damages

    def _proposals(self, table: Table, limit: int) -> dict[str, Assignment]:
        found = self.strategy(table, limit, self.keep)
        named = {f"{type(self.strategy).__name__.lower()} {n}": each for n, each in enumerate(found, 1)}
        fitting = [(words, each) for words, each in table.uniform().items() if table.cost(each) <= limit]
        fitting.sort(key=lambda pair: table.predicted(pair[1]))
        uniform = {f"uniform {words}": each for words, each in fitting[: self.uniform] if each not in found}
        return {**named, **uniform}

    def _frontier(self, table: Table, costs: Costs) -> dict[str, Assignment]:
        """The uniform assignments, and the best ones for budgets between the smallest and the largest of them."""
        uniform = table.uniform()
        if not self.frontier or not uniform:
            return {}
        spent = [table.cost(each) for each in uniform.values()]
        places = np.geomspace(min(spent), max(spent), self.frontier + 1)[:-1]
        limits = sorted({max(min(spent), int(place)) for place in places})  # a place may be a hair below the least
        found = {f"searched {costs.words(limit)}": self.strategy(table, limit, 1)[0] for limit in limits}
        return {**{f"uniform {words}": each for words, each in uniform.items()}, **found}

    def _halved(self, plans: list[Scored], trial: Trial, display: Display) -> list[Scored]:
        """The plans, those first that came furthest in the trials, and there by their scores."""
        if self.halving is None:
            return plans
        trials: dict[str, tuple[tuple[int, float], ...]] = {each.name: () for each in plans}

        def tried_out(plan: Scored, steps: int) -> float:
            display.say(f"trial of {plan.name} in {steps} steps")
            return trial(plan.sets, steps)

        for plan, steps, score in self.halving(plans, tried_out):
            trials[plan.name] += ((steps, score),)
        tried = [replace(each, trials=trials[each.name]) for each in plans]
        return sorted(tried, key=lambda each: [(-steps, -score) for steps, score in each.trials[-1:]])


def _scored(
    table: Table, whole: OneShot, assignments: Mapping[str, Assignment], costs: Costs, name: str, display: Display
) -> list[Scored]:
    """The assignments by name, measured as whole models."""

    def work() -> Iterator[Scored]:
        for each, assignment in assignments.items():
            sets = table.sets(assignment)
            logits = whole.logits(sets)
            figures = whole.evidence.divergence(logits), whole.evidence.score(logits)
            bits = sum(costs.bits(sets[layer.name], layer) for choice in table.choices for layer in choice.layers)
            yield Scored(each, sets, bits, table.cost(assignment), table.predicted(assignment), *figures)

    return list(display.tracked(work(), name, len(assignments)))
