"""The sets that each layer may have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, get_args

from nxmiformer.errors import unknown
from nxmiformer.layers.targets import Target, Targets
from nxmiformer.sets import NM, ConstraintSet
from nxmiformer.sets.words import from_words

DENSE = "dense"
Tie = Literal["free", "attention", "component"]
Hardware = Literal["any", "ampere_sparse", "cpu_int8"]
QUERY_KEY_VALUE = (
    *("query", "key", "value", "query_proj", "key_proj", "value_proj"),
    *("q", "k", "v", "q_proj", "k_proj", "v_proj", "q_lin", "k_lin", "v_lin"),
)


@dataclass(frozen=True)
class Choice:
    """One decision: layers that get the same set, and their candidate sets; None leaves them dense."""

    layers: tuple[Target, ...]
    sets: tuple[ConstraintSet | None, ...]

    @property
    def name(self) -> str:
        """Name in reports: its only layer, or its first and how many more."""
        more = len(self.layers) - 1
        return self.layers[0].name + (f" (+{more})" if more else "")


@dataclass(frozen=True)
class Candidates:
    """The sets that a search chooses from, and for which layers it chooses together.

    Attributes:
        sets: in words, such as "2:4+int4", "int8", "int4g64" or "dense"; a set that rejects a layer's shape is not a
            candidate of that layer.
        tie: "free" chooses for each layer alone; "attention" for query, key and value of a block together; "component"
            for the same component of all blocks, as the paper's code does.
        hardware: "any"; "ampere_sparse" keeps dense, INT8 and 2:4 sets, which sparse tensor cores run; "cpu_int8"
            keeps dense and INT8.
        pinned: patterns of layer names, each with the one set of the layers that it matches; a later one wins.
    """

    sets: Sequence[str]
    tie: Tie = "free"
    hardware: Hardware = "any"
    pinned: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.tie not in get_args(Tie):
            raise unknown("tie of layers", self.tie, get_args(Tie))
        if self.hardware not in get_args(Hardware):
            raise unknown("hardware", self.hardware, get_args(Hardware))
        if not self._runs:
            raise ValueError(f"none of the candidates {list(self.sets)} runs on hardware={self.hardware}")
        for words in self.pinned.values():
            _set(words)

    @property
    def _runs(self) -> tuple[ConstraintSet | None, ...]:
        """The sets that the hardware runs, each once."""
        return tuple(dict.fromkeys(each for each in map(_set, self.sets) if _fast(each, self.hardware)))

    def choices(self, targets: Targets) -> list[Choice]:
        """The decisions to make for these layers, in the model's order.

        Raises:
            ValueError: a pattern of `pinned` matches no layer, a pinned set rejects the shape of its layer, or no set
                is left for a layer.
        """
        names = [target.name for target in targets.layers]
        for pattern in self.pinned:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise unknown("pattern of layer names in pinned", pattern, names)
        pins = {target.name: self._pin(target) for target in targets.layers}
        tied: dict[object, list[Target]] = {}
        for target in targets.layers:
            tied.setdefault((_key(target.name, self.tie), pins[target.name]), []).append(target)
        return [self._choice(layers, pins[layers[0].name]) for layers in tied.values()]

    def _pin(self, target: Target) -> str | None:
        """The words of the set that the layer is pinned to."""
        matching = [words for pattern, words in self.pinned.items() if fnmatchcase(target.name, pattern)]
        return matching[-1] if matching else None

    def _choice(self, layers: list[Target], pin: str | None) -> Choice:
        sets = self._runs if pin is None else (_set(pin),)
        reasons = [
            f"{each} rejects {layer.name}: {reason}"
            for each in sets
            for layer in layers
            if each is not None and (reason := each.rejects(layer.shape))
        ]
        fitting = [each for each in sets if each is None or not any(each.rejects(layer.shape) for layer in layers)]
        if not fitting:
            raise ValueError(f"no candidate is left for {layers[0].name}:\n  " + "\n  ".join(reasons))
        return Choice(tuple(layers), tuple(fitting))


def _set(words: str) -> ConstraintSet | None:
    return None if words == DENSE else from_words(words)


def words_of(constraint: ConstraintSet | None) -> str:
    """A candidate in words."""
    return DENSE if constraint is None else str(constraint)


def _fast(constraint: ConstraintSet | None, hardware: Hardware) -> bool:
    """Whether there are kernels for the set: cuSPARSELt's 2:4 in 16 bits and INT8, or INT8 linears of a CPU."""
    if constraint is None or hardware == "any":
        return True
    sparsity, grid = constraint.sparsity, constraint.grid
    eight = grid is None or str(grid) == "int8"
    if hardware == "cpu_int8":
        return sparsity is None and eight
    return eight and sparsity in (None, NM(2, 4))


def _key(name: str, tie: Tie) -> object:
    """What the names of tied layers have in common."""
    parts = name.split(".")
    if tie == "component":
        return tuple(part for part in parts if not part.isdigit())
    if tie == "attention" and parts[-1] in QUERY_KEY_VALUE:
        return tuple(parts[:-1])
    return name
