"""The damage and the bits of every candidate."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nxmiformer.files import append, write_text
from nxmiformer.search.candidates import Choice, words_of
from nxmiformer.search.costs import Cost
from nxmiformer.search.evidence import Evidence
from nxmiformer.search.sensitivity import Sensitivity
from nxmiformer.sets import ConstraintSet

Damages = Mapping[str, Mapping[str, float]]  # by layer and set, in words
Assignment = tuple[int, ...]  # the candidate of each choice


@dataclass(frozen=True)
class Table:
    """What there is to choose from.

    Attributes:
        choices: the decisions.
        damage: (choices, candidates), summed over tied layers; infinite where a choice has fewer candidates.
        costs: (choices, candidates), likewise, in the unit of the budget; 0 where there is no candidate.
    """

    choices: Sequence[Choice]
    damage: np.ndarray
    costs: np.ndarray

    @classmethod
    def of(cls, choices: Sequence[Choice], damages: Damages, cost: Cost) -> "Table":
        """The table of these damages."""
        width = max(len(choice.sets) for choice in choices)
        damage, costs = np.full((len(choices), width), np.inf), np.zeros((len(choices), width))
        for row, choice in enumerate(choices):
            for column, each in enumerate(choice.sets):
                costs[row, column] = sum(cost(each, layer) for layer in choice.layers)
                damage[row, column] = sum(
                    0.0 if each is None else damages[layer.name][words_of(each)] for layer in choice.layers
                )
        return cls(choices, damage, costs)

    def predicted(self, assignment: Assignment) -> float:
        """The damage of all layers, added up."""
        return float(self.damage[np.arange(len(assignment)), assignment].sum())

    def cost(self, assignment: Assignment) -> int:
        """What all layers cost."""
        return int(self.costs[np.arange(len(assignment)), assignment].sum())

    def sets(self, assignment: Assignment) -> dict[str, ConstraintSet | None]:
        """The set of each layer by name."""
        pairs = zip(self.choices, assignment, strict=True)
        return {layer.name: choice.sets[index] for choice, index in pairs for layer in choice.layers}

    def uniform(self) -> dict[str, Assignment]:
        """The assignments with the same set for every choice that has more than one, by the set in words."""
        free = [choice.sets for choice in self.choices if len(choice.sets) > 1]
        common = [each for each in (free[0] if free else ()) if all(each in sets for sets in free)]
        return {
            words_of(each): tuple(c.sets.index(each) if len(c.sets) > 1 else 0 for c in self.choices) for each in common
        }


def measure(
    evidence: Evidence, choices: Sequence[Choice], sensitivity: Sensitivity, cache: Path
) -> Iterator[tuple[str, dict[str, float]]]:
    """The damages of each layer, by set in words, as they come.

    Each is a line of a file in the directory `cache`, named after measurement, model and data, and is not measured
    again.
    """
    cache.mkdir(parents=True, exist_ok=True)
    mark = hashlib.sha256(f"{sensitivity!r} {evidence.fingerprint}".encode()).hexdigest()[:16]
    file = cache / f"sensitivity-{mark}.jsonl"
    known = _read(file)
    for choice in choices:
        sets = {words_of(each): each for each in choice.sets if each is not None}
        for layer in choice.layers:
            damages = known.get(layer.name, {})
            missing = {words: each for words, each in sets.items() if words not in damages}
            if missing:
                found = sensitivity(evidence, layer.name, list(missing.values()))
                new = dict(zip(missing, found, strict=True))
                damages = {**damages, **new}
                append(file, json.dumps({"layer": layer.name, "damage": new}))
            yield layer.name, {words: damages[words] for words in sets}


def _read(file: Path) -> dict[str, dict[str, float]]:
    """What an earlier measurement left, and is there from now on; what a kill cut short is measured again."""
    known: dict[str, dict[str, float]] = {}
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    for line in whole.splitlines():
        row = json.loads(line)
        known[row["layer"]] = {**known.get(row["layer"], {}), **row["damage"]}
    if whole != text or not file.exists():
        write_text(file, whole)
    return known
