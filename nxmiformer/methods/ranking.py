"""Weights or blocks of all layers that compete with each other for one density."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from nxmiformer.errors import unknown
from nxmiformer.layers.compressed import Compressed
from nxmiformer.sets import Block, SparsitySet, Unstructured
from nxmiformer.sets.base import Shape
from nxmiformer.sets.unstructured import top

Ranking = Literal["layer", "global"]
RANKED = (Unstructured, Block)  # sets whose elements or blocks compete with each other
TINY = 1e-12  # a density that keeps nothing


def shape_of(layer: Compressed) -> tuple[int, int]:
    """(out_features, in_features)."""
    return layer.matrix.shape[0], layer.matrix.shape[1]


def check_ranking(ranking: Ranking, density: float | None) -> None:
    """Raise a ValueError unless a density is given just where it is asked for, and is one."""
    if ranking not in get_args(Ranking):
        raise unknown("ranking", ranking, get_args(Ranking))
    if (ranking == "global") != (density is not None):
        raise ValueError(f"density is the share that ranking=global keeps: not {density} with {ranking}")
    if density is not None and not 0 < density <= 1:
        raise ValueError(f"ranking=global needs a density in (0, 1], not {density}")


def by_tile(layers: Mapping[str, Compressed]) -> dict[Shape, dict[str, Compressed]]:
    """The layers that have a support to find, by the size of their sets' blocks."""
    kinds: dict[Shape, dict[str, Compressed]] = {}
    for name, layer in layers.items():
        sparsity = layer.quantizer.constraint.sparsity
        if sparsity is not None:
            kinds.setdefault(sparsity.tile, {})[name] = layer
    return kinds


def check_global(layers: Mapping[str, Compressed], density: float) -> None:
    """Raise a ValueError unless the weights of these layers can compete for a share of all."""
    whole = most = 0
    for name, layer in layers.items():
        sparsity = layer.quantizer.constraint.sparsity
        if not isinstance(sparsity, RANKED):
            raise ValueError(f"ranking=global chooses single weights or blocks, not patterns, as the set of {name} has")
        whole, most = whole + layer.matrix.numel(), most + sparsity.kept(shape_of(layer))
    if density * whole > most:
        raise ValueError(
            f"density={density:g} is more than the sets of the plan may keep, {most / whole:g}: raise "
            f"their densities, which are the most that stays in a layer"
        )


def check_by_tile(layers: Mapping[str, Compressed], density: float) -> None:
    """`check_global`, of the layers of each size of blocks alone."""
    for kind in by_tile(layers).values():
        check_global(kind, density)


def ranked(
    prices: Mapping[str, Tensor], most: Mapping[str, SparsitySet | None], share: float
) -> dict[str, SparsitySet | None]:
    """The sets in which the dearest `share` of the weights of all layers stay, `most` in each.

    What a layer may not keep is pruned first, whatever it costs.

    Args:
        prices: what each weight is worth, (out, in), by the layer's name.
    """
    allowed = {name: most[name].mask(price) for name, price in prices.items()}  # type: ignore[union-attr]
    every = torch.cat([torch.where(allowed[name], price, -1.0).flatten().cpu() for name, price in prices.items()])
    chosen = top(every, round(share * len(every))).split([price.numel() for price in prices.values()])
    shares = {name: int(kept.sum()) / len(kept) for name, kept in zip(prices, chosen, strict=True)}
    return {name: replace(most[name], density=max(shares[name], TINY)) for name in prices}  # type: ignore[type-var]
