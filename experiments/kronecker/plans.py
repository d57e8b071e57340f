"""The plans of the study, with a shape for each layer: python experiments/kronecker/plans.py --models MODELS --out OUT

Attention and feed-forward parts have factors of the proportions that Tahaei et al. 2022 give BERT-base in their two
configurations, at the width of all-MiniLM-L6-v2. `svd8` and `svd21` are the low-rank matrices of as many numbers: a sum
of r products of a column and a row. `corpus-kron8` and `corpus-kron21` leave the embeddings dense, which are the head
of a masked language model too. OUT gets a file of each, and what each stores is printed.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from blank import blank  # noqa: E402 (beside the studies, not installed)

from nxmiformer.layers.targets import Target, find_targets  # noqa: E402
from nxmiformer.plan.origin import Planning  # noqa: E402
from nxmiformer.sets import ConstraintSet, Kronecker  # noqa: E402

# The right factors in attention and in the feed-forward part's wide and narrow matrix, and columns of the embeddings'.
SHAPES = {"kron8": ((2, 2), (192, 192), 8), "kron21": ((2, 16), (96, 192), 16)}


def main() -> None:
    model, out = blank(HERE, __doc__)
    targets = find_targets(model)
    for name, (attention, feed_forward, width) in SHAPES.items():
        products: dict[str, ConstraintSet] = {}
        for target in targets.layers:
            rows, columns = target.shape
            shape = attention if rows == columns else feed_forward if rows > columns else feed_forward[::-1]
            products[target.name] = Kronecker(*shape)
        planning = Planning(name=name, weight=Kronecker(*attention))
        planning.assigned(model, targets, products).save(out / f"corpus-{name}.json")
        for each, weights in {name: products, name.replace("kron", "svd"): _low_rank(targets.layers, products)}.items():
            plan = replace(planning, embeddings=f"kron1x{width}").assigned(model, targets, weights)
            plan.save(out / f"{each}.json")
            storage = plan.storage()
            print(f"{each}: {(storage.total + storage.rest) // 32:,} of {model.num_parameters():,} numbers")


def _low_rank(layers: Iterable[Target], products: Mapping[str, ConstraintSet]) -> dict[str, ConstraintSet]:
    """For each product, the low-rank set of at most as many numbers."""
    found: dict[str, ConstraintSet] = {}
    for target in layers:
        out, given = target.shape
        numbers = products[target.name].storage(target.shape).values / 32
        found[target.name] = Kronecker(1, given, rank=max(1, int(numbers // (out + given))))
    return found


if __name__ == "__main__":
    main()
