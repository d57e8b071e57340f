"""The inputs of the compressed layers of a model."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from nxmiformer.layers.found import compressed_layers, linear_layers
from nxmiformer.layers.linear import CompressedLinear
from nxmiformer.layers.mode import evaluating
from nxmiformer.layers.ranges import widened
from nxmiformer.ranks import ranks

Batch = Mapping[str, Tensor]


@torch.no_grad()
def input_moments(model: nn.Module, batches: Iterable[Batch], forward: Callable[[Batch], object]) -> dict[str, Tensor]:
    """The second moment X^T X / n of the n inputs of each compressed linear layer, (in_features, in_features), float32
    (float64 of inputs in float64). Several processes each look at batches of their own, and have the moments of all.

    Args:
        model: a converted model, which is in evaluation mode during this.
        batches: of tokens. If there is an `attention_mask` (batch, tokens), masked tokens do not count.
        forward: runs `model` on a batch.

    Returns:
        The moments by layer name. Layers that share a weight share a moment, of the inputs of all of them.

    Raises:
        ValueError: no input reached a layer.
    """
    distinct = linear_layers(model)
    names = {id(layer.weight): name for name, layer in distinct.items()}
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(distinct, 0)
    real: Tensor | None = None
    latest: tuple[Tensor, Tensor, int] | None = None  # query, key and value see one and the same input

    def look(layer: CompressedLinear, inputs: tuple[Tensor, ...]) -> None:
        nonlocal latest
        x = inputs[0]
        if latest is None or x is not latest[0]:
            rows = x[real] if real is not None and x.shape[:-1] == real.shape else x.flatten(0, -2)
            rows = widened(rows)
            with torch.autocast(x.device.type, enabled=False):  # a product in bfloat16 is not positive semidefinite
                latest = (x, rows.t() @ rows, len(rows))
        name = names[id(layer.weight)]
        sums[name] = sums[name] + latest[1] if name in sums else latest[1]
        counts[name] += latest[2]

    watched = [layer for layer in compressed_layers(model).values() if isinstance(layer, CompressedLinear)]
    hooks = [layer.register_forward_pre_hook(look) for layer in watched]
    try:
        with evaluating(model):
            for batch in batches:
                real = batch["attention_mask"].bool() if "attention_mask" in batch else None
                forward(batch)
    finally:
        for hook in hooks:
            hook.remove()
    counts = _of_all_ranks(distinct, sums, counts)
    unseen = [name for name, count in counts.items() if not count]
    if unseen:
        raise ValueError("no calibration input reached these layers: " + ", ".join(unseen))
    return {name: sums[name] / count for name, count in counts.items()}


def _of_all_ranks(
    layers: Mapping[str, CompressedLinear], sums: dict[str, Tensor], counts: Mapping[str, int]
) -> dict[str, int]:
    """Add up the sums of all ranks, in place, and give the counts. A rank may have looked at nothing."""
    if ranks().count == 1:
        return dict(counts)
    for name, layer in layers.items():
        found = sums.get(name)
        if found is None:
            found = widened(layer.weight.detach().new_zeros(layer.in_features, layer.in_features))
        sums[name] = found.clone()  # layers of one input share a sum of one batch, which is to be added once to each
    ranks().add([sums[name] for name in layers])
    totals = torch.tensor(list(counts.values()), device="cpu")
    ranks().add([totals])
    return dict(zip(counts, totals.tolist(), strict=True))
