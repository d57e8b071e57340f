"""Plans that prune whole heads and whole dimensions."""

from dataclasses import dataclass

from torch import nn

from nxmiformer.layers.units import ARCHITECTURES, Units, find_units
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.plan.origin import Planning
from nxmiformer.sets import Block, ConstraintSet
from nxmiformer.sets.unstructured import check_density


@dataclass(frozen=True)
class Structured(Planning):
    """A plan whose layers keep so many dimensions of each feed-forward part, and of each attention so many heads.

    A dimension, or a head, is a block: its rows in the layers that compute it, and its columns in the layer that reads
    it. `weight` is the set of all other targets.

    Attributes:
        dimensions: share of the dimensions that remain, at most; None: the feed-forward parts have `weight`.
        heads: share of the heads that remain, at most; None: attention has `weight`.
        reading: whether only the layers that read dimensions and heads have sets: their columns go, and what computes
            those is dense, until compaction takes it out. So a method that treats each layer by itself, as ADMM does,
            needs no agreement between layers.
    """

    dimensions: float | None = 0.5
    heads: float | None = None
    reading: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for density in (self.dimensions, self.heads):
            if density is not None:
                check_density(density)

    def __call__(self, model: nn.Module) -> CompressionPlan:
        """The plan for `model`; a ValueError where its heads and dimensions are not known."""
        if self.path is not None:
            return super().__call__(model)
        found = find_units(model)
        if not found:
            raise ValueError(
                f"plan={self.name} takes heads and dimensions, and those of a {type(model).__name__} are not known, "
                f"but of {', '.join(ARCHITECTURES)}: give plan=block, or another set for all layers"
            )
        targets = self.targets(model)
        shapes = {target.name: target.shape for target in targets.layers}
        sets: dict[str, ConstraintSet | None] = dict.fromkeys(shapes, self.weight)
        for units in found:
            density = self.heads if units.kind == "heads" else self.dimensions
            if density is not None:
                sets |= {
                    name: None if self.reading and name != units.out else _blocks(units, name, shapes[name], density)
                    for name in units.names & shapes.keys()
                }
        return self.assigned(model, targets, sets)


def _blocks(units: Units, name: str, shape: tuple[int, int], density: float) -> Block:
    """The set of the points that keep a share of the units."""
    if name == units.out:
        return Block(shape[0], units.width, density)
    width = next(source.width for source in units.sources if source.name == name)
    return Block(width, shape[1], density)
