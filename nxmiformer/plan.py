"""Which layer becomes a point of which set, and what that costs."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from torch import nn

from nxmiformer.errors import unknown
from nxmiformer.layers.quantizers import Activations
from nxmiformer.layers.targets import Target, Targets
from nxmiformer.sets import NM, Block, ConstraintSet, Grid, Storage, Then, Transposed, Unstructured
from nxmiformer.sets.base import Shape

FORMAT = 1
SETS: dict[str, type[Any]] = {kind.__name__: kind for kind in (NM, Unstructured, Block, Grid, Then)}
FLOAT = 32  # bits of a dense weight, the base of every ratio


@dataclass(frozen=True)
class LayerSpec:
    """What one layer becomes.

    Attributes:
        weight: the set of its weight.
        shape: (out_features, in_features).
        activations: how its input is quantized; None leaves it.
        transposed: whether the module stores (in, out).
        aliases: modules that share the weight.
    """

    weight: ConstraintSet
    shape: Shape
    activations: Activations | None = None
    transposed: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def bits(self) -> float:
        """Stored for each weight of the layer, in the mean: values, indices and scales."""
        return self.weight.storage(self.shape).total / (self.shape[0] * self.shape[1])

    def __str__(self) -> str:
        return f"{self.weight}" + (f" {self.activations}" if self.activations else "")


@dataclass(frozen=True)
class PlanStorage:
    """Bits of the compressed layers, and of the whole model around them.

    Attributes:
        packed: values, indices and scales of all compressed weights, in bits.
        dense: the same weights in float32, in bits.
        rest: everything else in the model, float32, in bits.
    """

    packed: Storage
    dense: int
    rest: int

    @property
    def values(self) -> int:
        """Bits of the kept values."""
        return self.packed.values

    @property
    def indices(self) -> int:
        """Bits that tell where the kept values are."""
        return self.packed.indices

    @property
    def scales(self) -> int:
        """Bits of the scales."""
        return self.packed.scales

    @property
    def total(self) -> int:
        """Bits of the compressed weights, all of it."""
        return self.packed.total

    @property
    def compression(self) -> dict[str, float]:
        """1 - stored / dense float32 bits: by values alone, with indices, with scales too, and of the whole model."""
        return {
            "values": _saved(self.values, self.dense),
            "indices": _saved(self.values + self.indices, self.dense),
            "all": _saved(self.total, self.dense),
            "model": _saved(self.total + self.rest, self.dense + self.rest),
        }


def _saved(stored: int, dense: int) -> float:
    return 1 - stored / dense if dense else 0.0


@dataclass(frozen=True)
class CompressionPlan:
    """A set for each layer that is compressed, by module name, and the reason for each that is not.

    `rest` counts the model's other parameters. A plan is a value: it compares, hashes to a fingerprint, and survives
    JSON. Nothing in it refers to a model's weights.
    """

    layers: Mapping[str, LayerSpec]
    skipped: Mapping[str, str] = field(default_factory=dict)
    rest: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {spec.weight} rejects shape {tuple(spec.shape)}: {reason}"
            for name, spec in self.layers.items()
            if (reason := spec.weight.rejects(spec.shape))
        ]
        if problems:
            raise ValueError("the plan does not fit the model:\n  " + "\n  ".join(problems))

    @classmethod
    def uniform(
        cls, model: nn.Module, targets: Targets, weight: ConstraintSet, activations: Activations | None = None
    ) -> Self:
        """The same set for every target of `model`."""
        return cls.assigned(model, targets, {target.name: weight for target in targets.layers}, activations)

    @classmethod
    def assigned(
        cls,
        model: nn.Module,
        targets: Targets,
        weights: Mapping[str, ConstraintSet | None],
        activations: Activations | None = None,
    ) -> Self:
        """A set for each target of `model` by name; None, or no entry, leaves the layer dense.

        Raises:
            ValueError: a name that is no target, or a set that rejects its layer's shape (all of them are told).
        """
        names = [target.name for target in targets.layers]
        for name in weights:
            if name not in names:
                raise unknown("layer in the plan", name, names)
        layers = {t.name: _spec(t, weight, activations) for t in targets.layers if (weight := weights.get(t.name))}
        dense = {name: "the plan leaves it dense" for name in names if name not in layers}
        total = sum(p.numel() for p in model.parameters())
        compressed = sum(spec.shape[0] * spec.shape[1] for spec in layers.values())
        return cls(layers, {**targets.skipped, **dense}, total - compressed)

    def check(self, model: nn.Module) -> None:
        """Raise a ValueError that names every layer of the plan that `model` does not have, or has in another shape."""
        modules = dict(model.named_modules(remove_duplicate=False))
        problems = []
        for name, spec in self.layers.items():
            for module in (name, *spec.aliases):
                weight = getattr(modules.get(module), "weight", None)
                expected = spec.shape[::-1] if spec.transposed else spec.shape
                if weight is None:
                    problems.append(f"{module}: the model has no such layer")
                elif tuple(weight.shape) != tuple(expected):
                    problems.append(f"{module}: its weight is {tuple(weight.shape)}, the plan's {tuple(expected)}")
        if problems:
            raise ValueError("the plan does not fit the model:\n  " + "\n  ".join(problems))

    def sets(self) -> dict[str, ConstraintSet]:
        """The set of each compressed parameter by its name, as `nxmiformer.optim.ADMM` takes them."""
        return {
            f"{name}.weight": Transposed(spec.weight) if spec.transposed else spec.weight
            for name, spec in self.layers.items()
        }

    def storage(self) -> PlanStorage:
        """What the packed weights cost, exactly."""
        packed = Storage()
        for spec in self.layers.values():
            packed += spec.weight.storage(spec.shape)
        dense = sum(spec.shape[0] * spec.shape[1] for spec in self.layers.values()) * FLOAT
        return PlanStorage(packed, dense, self.rest * FLOAT)

    def to_json(self) -> str:
        """The plan as JSON."""
        layers = {name: _layer_to_dict(spec) for name, spec in self.layers.items()}
        content = {"format": FORMAT, "layers": layers, "skipped": dict(self.skipped), "rest": self.rest}
        return json.dumps(content, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The plan that `to_json` wrote.

        Raises:
            ValueError: the text is not such a plan; the message says where.
        """
        try:
            content = json.loads(text)
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}, not {FORMAT}")
            layers = {name: _layer_from_dict(spec) for name, spec in content["layers"].items()}
            return cls(layers, {str(k): str(v) for k, v in content["skipped"].items()}, int(content["rest"]))
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"this is not a compression plan: {type(error).__name__}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the plan to a JSON file."""
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan from a JSON file; a ValueError names the file where it is none."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the layers, their sets and their shapes."""
        layers = {name: _layer_to_dict(spec) for name, spec in self.layers.items()}
        return hashlib.sha256(json.dumps(layers, sort_keys=True).encode()).hexdigest()[:16]


def _spec(target: Target, weight: ConstraintSet, activations: Activations | None) -> LayerSpec:
    inputs = None if target.lookup else activations
    return LayerSpec(weight, target.shape, inputs, target.transposed, target.aliases)


def set_to_dict(constraint: ConstraintSet) -> dict[str, Any]:
    """A set as JSON values: its class name under `set`, and its fields."""
    fields = {name: getattr(constraint, name) for name in constraint.__dataclass_fields__}  # type: ignore[attr-defined]
    nested = {name: set_to_dict(value) if isinstance(value, ConstraintSet) else value for name, value in fields.items()}
    return {"set": type(constraint).__name__, **nested}


def set_from_dict(content: Mapping[str, Any]) -> ConstraintSet:
    """The set that `set_to_dict` was given; a ValueError for an unknown one."""
    if content["set"] not in SETS:
        raise unknown("set", content["set"], SETS)
    fields = {name: set_from_dict(v) if isinstance(v, Mapping) else v for name, v in content.items() if name != "set"}
    return SETS[content["set"]](**fields)


def _layer_to_dict(spec: LayerSpec) -> dict[str, Any]:
    return {
        "weight": set_to_dict(spec.weight),
        "shape": list(spec.shape),
        "activations": asdict(spec.activations) if spec.activations else None,
        "transposed": spec.transposed,
        "aliases": list(spec.aliases),
    }


def _layer_from_dict(content: Mapping[str, Any]) -> LayerSpec:
    rows, columns = (int(n) for n in content["shape"])
    activations = content["activations"]
    return LayerSpec(
        set_from_dict(content["weight"]),
        (rows, columns),
        Activations(**activations) if activations is not None else None,
        bool(content["transposed"]),
        tuple(content["aliases"]),
    )
