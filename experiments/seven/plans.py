"""The plans of the study: python experiments/seven/plans.py --models MODELS --out OUT

A family is one kind of set. Of each, OUT gets the plan whose layers take the most bytes within a tenth, a twentieth and
a fortieth of float32, and what each takes is printed.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from blank import blank  # noqa: E402 (beside the studies, not installed)

from nxmiformer.layers.inputs import Activations  # noqa: E402
from nxmiformer.layers.targets import Target, find_targets  # noqa: E402
from nxmiformer.plan.origin import Planning  # noqa: E402
from nxmiformer.sets.words import from_words  # noqa: E402

SHARES = (0.1, 0.05, 0.025)
DENSITIES = [each / 1000 for each in range(1, 1000)]
FAMILIES: Mapping[str, Sequence[str]] = {
    "sparse_int8": [f"{density}densec+int8" for density in DENSITIES],
    "sparse_int4": [f"{density}densec+int4" for density in DENSITIES],
    "pieces_int8": [f"1x8@{density}+int8" for density in DENSITIES],
    "blocks_int8": [f"32x32@{density}+int8" for density in DENSITIES],
    "kronecker_int8": [f"kron{rows}x{cols}+int8" for rows in (1, 2, 3, 4) for cols in (1, 2, 3, 4)],
}


def main() -> None:
    model, out = blank(HERE, __doc__)
    targets = find_targets(model)
    dense = sum(4 * rows * cols for rows, cols in (target.shape for target in targets.layers))
    for family, sets in FAMILIES.items():
        sizes = {words: size_of(words, targets.layers) for words in sets}
        for share in SHARES:
            words = max((each for each in sets if sizes[each] <= share * dense), key=sizes.__getitem__)
            weight = from_words(words)
            planning = Planning(name=f"{family}_{share}", weight=weight, activations=Activations(8))
            plan = planning.assigned(model, targets, {target.name: weight for target in targets.layers})
            plan.save(out / f"{family}_{share}.json")
            print(f"{family}_{share}: {words}, {sizes[words] / dense:.4f} of the layers")


def size_of(words: str, layers: Iterable[Target]) -> int:
    """What the layers take in this set, in bytes."""
    chosen = from_words(words)
    return sum(chosen.storage(target.shape).nbytes for target in layers)


if __name__ == "__main__":
    main()
