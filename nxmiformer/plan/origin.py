"""How a plan comes about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from nxmiformer.layers.everything import Everything
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.products import counted, find_products
from nxmiformer.layers.ranges import Ranges
from nxmiformer.layers.targets import Target, Targets, find_embeddings, find_head, find_targets
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import ConstraintSet
from nxmiformer.sets.words import from_words


@dataclass(frozen=True)
class Planning:
    """The origin of a plan: a set for all layers that match, or a plan file.

    Attributes:
        name: name in reports.
        weight: the set of every target's weight.
        activations: how inputs are quantized; None: they are not.
        include, exclude: patterns of layer names; see `find_targets`.
        embeddings: the set of all embeddings, in words, such as "int8"; None leaves them dense.
        head: the set of every linear layer outside the repeated blocks, in words; None leaves them dense.
        everything: how all inputs of the model's products are quantized, as in FullyQT, or in words, such as "int8". It
            replaces `activations`, and embeddings and head without a set of theirs are on a grid of as many bits. None
            quantizes the inputs of layers alone.
        path: a plan.json, instead of `weight`, `activations` and `everything`.
    """

    name: str
    weight: ConstraintSet | None = None
    activations: Activations | None = None
    include: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    path: str | None = None
    embeddings: str | None = None
    head: str | None = None
    everything: str | Ranges | None = None

    def __post_init__(self) -> None:
        if isinstance(self.everything, str):
            Ranges.from_words(self.everything)
        if self.path is None and self.weight is None:
            raise ValueError("a plan needs plan.weight or plan.path")
        if self.path is not None and not Path(self.path).is_file():
            raise ValueError(f"plan.path={self.path}: there is no such file")
        for words in (self.embeddings, self.head):
            if words is not None:
                from_words(words)

    def __call__(self, model: nn.Module) -> CompressionPlan:
        """The plan for `model`."""
        if self.path is not None:
            plan = CompressionPlan.load(self.path)
            plan.check(model)
            return plan
        assert self.weight is not None
        targets = self.targets(model)
        return self.assigned(model, targets, {target.name: self.weight for target in targets.layers})

    def assigned(
        self, model: nn.Module, targets: Targets, weights: Mapping[str, ConstraintSet | None]
    ) -> CompressionPlan:
        """The plan with these sets of the targets, with embeddings and head besides, and with everything, if asked for.

        Raises:
            ValueError: a set rejects its layer, or not everything can be reached: see `find_products`.
        """
        around = self.around(model)
        sets = {**weights, **{target.name: each for target, each in around}}
        taken = {*sets, *(alias for target, _ in around for alias in target.aliases)}
        skipped = {name: reason for name, reason in targets.skipped.items() if name not in taken}
        found = Targets((*targets.layers, *(target for target, _ in around)), skipped)
        ranges = self.ranges
        if ranges is None:
            return CompressionPlan.assigned(model, found, sets, self.activations)
        try:
            parts = counted(find_products(model), ranges.features)
        except ValueError as error:
            raise ValueError(f"plan.everything={ranges}: {error}\nleave plan.everything out for this model") from error
        return replace(CompressionPlan.assigned(model, found, sets), everything=Everything(ranges, parts))

    @property
    def ranges(self) -> Ranges | None:
        """How everything is quantized, if it is."""
        return Ranges.from_words(self.everything) if isinstance(self.everything, str) else self.everything

    def around(self, model: nn.Module) -> list[tuple[Target, ConstraintSet]]:
        """Embeddings and head, and the set of each, where there is one."""
        named = {target.name for target in self.targets(model).layers}
        default = None if self.ranges is None else f"int{self.ranges.bits}"
        found = []
        for words, targets in ((self.embeddings or default, find_embeddings), (self.head or default, find_head)):
            if words is not None:
                found += [(each, from_words(words)) for each in targets(model, self.exclude) if each.name not in named]
        return found

    def targets(self, model: nn.Module) -> Targets:
        """The layers that are to be compressed."""
        return find_targets(model, self.include, self.exclude)
