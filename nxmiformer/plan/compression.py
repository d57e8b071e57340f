"""The set of each layer."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from torch import nn

from nxmiformer.errors import unknown
from nxmiformer.files import write_text
from nxmiformer.layers.everything import Everything
from nxmiformer.layers.factored import Factored, FactoredWeight
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.targets import Target, Targets, in_blocks, is_transposed
from nxmiformer.layers.wrapped import refuse_adapters, unwrapped
from nxmiformer.plan.printed import printed
from nxmiformer.plan.storage import PlanStorage
from nxmiformer.sets import ConstraintSet, Storage, Transposed
from nxmiformer.sets.base import Shape
from nxmiformer.sets.fields import ADDED, check_fields
from nxmiformer.sets.values import from_values, to_values

FORMAT = 1
FLOAT = 32  # bits of a dense weight, the base of every ratio


@dataclass(frozen=True)
class LayerSpec:
    """What one layer becomes.

    Attributes:
        weight: the set of its weight.
        shape: (out_features, in_features).
        activations: how its input is quantized; None: it is not.
        transposed: whether the module stores (in, out).
        aliases: modules that share the weight.
    """

    weight: ConstraintSet
    shape: Shape
    activations: Activations | None = None
    transposed: bool = False
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.shape) < 0:
            raise ValueError(f"LayerSpec needs a shape of no negative number, not {self.shape}")

    @property
    def bits(self) -> float:
        """Mean bits stored for a weight of the layer: values, indices and scales."""
        return self.weight.storage(self.shape).total / (self.shape[0] * self.shape[1])

    def __str__(self) -> str:
        return f"{self.weight}" + (f" {self.activations}" if self.activations else "")


@dataclass(frozen=True)
class CompressionPlan:
    """The set of each compressed layer, by module name, and the reason for each layer that is not compressed.

    `rest` counts the model's other parameters. `everything` says how all inputs of the model's products are quantized;
    None: only inputs of layers are. A plan is a value: plans can be compared, have a fingerprint, and can be written to
    JSON and read back. A plan does not refer to a model's weights.
    """

    layers: Mapping[str, LayerSpec]
    skipped: Mapping[str, str] = field(default_factory=dict)
    rest: int = 0
    everything: Everything | None = field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rest < 0:
            raise ValueError(f"CompressionPlan needs rest to be no negative number, not {self.rest}")
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
            ValueError: a name is not a target, or a set rejects the shape of its layer (all of them are named).
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
        """Raise a ValueError that names every layer of the plan that does not fit `model`. Such a layer is missing, has
        another shape, is stored transposed, or shares its weight with other layers than in the plan. A model with
        adapters is refused."""
        model = unwrapped(model)
        refuse_adapters(model)
        weights: dict[str, nn.Parameter | FactoredWeight] = dict(model.named_parameters(remove_duplicate=False))
        factored = [(name, module) for name, module in model.named_modules() if isinstance(module, Factored)]
        weights |= {f"{name}.weight": module.weight for name, module in factored}
        owners: dict[int, str] = {}
        problems = []
        for name, spec in self.layers.items():
            for module in (name, *spec.aliases):
                weight = weights.get(f"{module}.weight")
                if weight is None:
                    problems.append(f"{module}: the model has no such layer")
                    continue
                owner = owners.setdefault(id(weight), name)
                if problem := _misfit(model.get_submodule(module), weight, spec):
                    problems.append(f"{module}: {problem}")
                elif owner != name:
                    problems.append(f"{module}: its weight is that of {owner}, which the plan has a set for")
                elif weight is not weights.get(f"{name}.weight"):
                    problems.append(f"{module}: its weight is not that of {name}, which the plan has it share")
        if self.everything is not None:
            problems += self.everything.misfits(model)
        if problems:
            raise ValueError("the plan does not fit the model:\n  " + "\n  ".join(problems))

    def within(self, name: str, module: nn.Module) -> Self:
        """The plan of the part of the model that has this name, such as the backbone of a classifier."""
        start = f"{name}."
        layers = {
            layer.removeprefix(start): replace(
                spec, aliases=tuple(each.removeprefix(start) for each in spec.aliases if each.startswith(start))
            )
            for layer, spec in self.layers.items()
            if layer.startswith(start)
        }
        skipped = {each.removeprefix(start): why for each, why in self.skipped.items() if each.startswith(start)}
        compressed = sum(spec.shape[0] * spec.shape[1] for spec in layers.values())
        rest = sum(p.numel() for p in module.parameters()) - compressed
        return type(self)(layers, skipped, rest, self.everything and self.everything.within(start))

    def remark(self, model: nn.Module) -> str | None:
        """A sentence for the user of a plan that has less than half of the weights in the model's blocks."""
        sizes = in_blocks(model)
        taken = {module for name, spec in self.layers.items() for module in (name, *spec.aliases)}
        left = {name: size for name, size in sizes.items() if name not in taken}
        total, without = sum(sizes.values()), sum(left.values())
        if 2 * without <= total:
            return None
        largest = max(left, key=lambda name: left[name])
        return (
            f"the plan has only {100 * (1 - without / total):.1f} % of the weights in the model's blocks; the largest "
            f"of {len(left)} matrices without a set is {largest}: {self.skipped.get(largest, 'the plan leaves it out')}"
        )

    def __str__(self) -> str:
        """A short table; see `printed`."""
        table = printed(self.layers, self.skipped, self.rest)
        if self.everything is None:
            return table
        return f"{table}\neverything: {self.everything}"

    def sets(self) -> dict[str, ConstraintSet]:
        """The set of each compressed parameter by its name, as `nxmiformer.optim.ADMM` takes them."""
        return {
            f"{name}.weight": Transposed(spec.weight) if spec.transposed else spec.weight
            for name, spec in self.layers.items()
        }

    def storage(self) -> PlanStorage:
        """The exact size of the packed weights."""
        packed = Storage()
        for spec in self.layers.values():
            packed += spec.weight.storage(spec.shape)
        dense = sum(spec.shape[0] * spec.shape[1] for spec in self.layers.values()) * FLOAT
        return PlanStorage(packed, dense, self.rest * FLOAT)

    def to_json(self) -> str:
        """The plan as JSON."""
        return json.dumps({"format": FORMAT, **to_values(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The plan that `to_json` wrote.

        Raises:
            ValueError: the text is not such a plan; the message says where.
        """
        try:
            content = json.loads(text)
            if not isinstance(content, dict):
                raise ValueError("it is no mapping")
            if repr(written := content.pop("format", None)) != repr(FORMAT):  # nor is it True, or 1.0
                raise ValueError(f"its format is {written!r}, not {FORMAT}")
            plan: Self = from_values(cls, content)
            return plan
        except (ValueError, RecursionError) as error:
            raise ValueError(f"this is not a compression plan: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the plan to a JSON file."""
        write_text(Path(path), self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan from a JSON file; a ValueError names a file that has none."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the layers, their sets and their shapes, and with what else is
        quantized."""
        values = to_values(self.layers)
        if self.everything is not None:
            values = {"layers": values, "everything": to_values(self.everything)}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _misfit(module: nn.Module, weight: nn.Parameter | FactoredWeight, spec: LayerSpec) -> str | None:
    """How the layer differs from `spec`, or None."""
    expected = spec.shape[::-1] if spec.transposed else spec.shape
    if tuple(weight.shape) != tuple(expected):
        return f"its weight is {tuple(weight.shape)}, the plan's {tuple(expected)}"
    if is_transposed(module) != spec.transposed:
        stored = {False: "(out, in)", True: "(in, out)"}
        return f"it stores its weight {stored[not spec.transposed]}, the plan has it {stored[spec.transposed]}"
    return None


def _spec(target: Target, weight: ConstraintSet, activations: Activations | None) -> LayerSpec:
    inputs = None if target.lookup else activations
    return LayerSpec(weight, target.shape, inputs, target.transposed, target.aliases)
