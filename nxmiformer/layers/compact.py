"""A model without what contributes nothing: fewer heads, fewer dimensions in the feed-forward parts, fewer layers.

The rules are exact, so the smaller model computes what the larger one does, up to rounding. A head is removed if its
values and their bias are zero, or the columns that read it. Zero queries or keys alone are not enough: attention is
then uniform, not zero. A dimension of the feed-forward part is removed if its row and its bias are zero and the
activation function of 0 is 0, or if its column is zero. One head and one dimension of a layer stay, as the code of
`transformers` needs them. A layer without a norm behind its residual (GPT-2, Llama) is removed when only constant
biases are left of it. These are added elsewhere.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nxmiformer.layers.compressed import Compressed
from nxmiformer.layers.units import ARCHITECTURES, Units, architecture, bias_of, find_units, silent

UNNORMED = ("GPT2Block", "LlamaDecoderLayer")  # layers whose output is added, with no norm behind it
Sizes = Mapping[str, Mapping[str, int]]  # heads and dimensions, by the layer's name


@dataclass(frozen=True)
class Compacted:
    """What remains of a model.

    Attributes:
        units: the remaining and the original heads and dimensions of each layer, by its original name and by kind.
        layers: original names of the removed layers.
    """

    units: Mapping[str, Mapping[str, tuple[int, int]]]
    layers: tuple[str, ...]


def refusals(model: nn.Module) -> Iterator[str]:
    """Why the model cannot be made compact, a line each."""
    found = find_units(model)
    if not found:
        yield f"{type(model).__name__} has no layers of {', '.join(ARCHITECTURES)}, whose parts are known"
    inside = {name for units in found for name in units.names}
    owners: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if name not in inside:
            continue
        for part, parameter in module.named_parameters(recurse=False):
            if owners.setdefault(id(parameter), name) != name:
                yield f"{name}: it shares its {part} with {owners[id(parameter)]}, which would have another size"
        if isinstance(module, Compressed) and module.inputs is not None:
            yield f"{name}: its inputs are quantized, by ranges that what goes has a say in: quantize after compaction"


@torch.no_grad()
def compact(model: PreTrainedModel) -> Compacted:
    """Remove from a plain model, in place, what contributes nothing.

    Raises:
        ValueError: the parts of the model are not known, or it has compressed layers (`strip` makes them plain).
    """
    modules = model.named_modules()
    compressed = [f"{name}: it is compressed: strip(model) first" for name, m in modules if isinstance(m, Compressed)]
    if refused := [*compressed[:1], *refusals(model)]:
        raise ValueError("the model cannot be made compact:\n  " + "\n  ".join(refused))
    left: dict[str, dict[str, tuple[int, int]]] = {}
    dead: dict[str, set[str]] = {}
    for units in find_units(model):
        keep = (~silent(model, units)).nonzero().flatten()
        left.setdefault(units.layer, {})[units.kind] = (len(keep), units.count)
        if not len(keep):
            dead.setdefault(units.layer, set()).add(units.kind)
            keep = torch.zeros(1, dtype=torch.long, device=keep.device)
        _cut(model, units, keep)
    whole = [name for name, kinds in dead.items() if len(kinds) == 2]
    return Compacted(left, tuple(_drop_layers(model, whole)))


def left_of(model: nn.Module) -> dict[str, dict[str, tuple[int, int]]]:
    """As `Compacted.units`: what `compact` would leave of a model, plain or compressed."""
    left: dict[str, dict[str, tuple[int, int]]] = {}
    for units in find_units(model):
        kept = units.count - int(silent(model, units).sum())
        left.setdefault(units.layer, {})[units.kind] = (kept, units.full)
    return left


def sizes_of(model: nn.Module) -> dict[str, dict[str, int]]:
    """The heads and dimensions of each layer that has not as many as the model's config tells of."""
    sizes: dict[str, dict[str, int]] = {}
    for units in find_units(model):
        if units.count != units.full:
            sizes.setdefault(units.layer, {})[units.kind] = units.count
    return sizes


@torch.no_grad()
def resize(model: nn.Module, sizes: Sizes) -> None:
    """Give a plain model as large as its config tells, in place, the sizes that `sizes_of` had of another.

    Raises:
        ValueError: it has no such layer, or not so many heads or dimensions.
    """
    known = {(units.layer, units.kind): units for units in find_units(model)}
    for layer, counts in sizes.items():
        for kind, count in counts.items():
            units = known.get((layer, kind))  # type: ignore[arg-type]
            if units is None or type(count) is not int or not 1 <= count <= units.count:
                most = f"no {kind}" if units is None else f"{units.count} {kind}"
                raise ValueError(f"{layer} is to have {count!r} {kind}, and the model has {most} there")
            _cut(model, units, torch.arange(count, device=model.get_parameter(f"{units.out}.weight").device))


def _cut(model: nn.Module, units: Units, keep: Tensor) -> None:
    """Keep these units alone."""
    if len(keep) == units.count:
        return
    rows: dict[str, list[Tensor]] = {}
    for source in units.sources:
        rows.setdefault(source.name, []).append(source.rows(keep))
    for name, kept in rows.items():
        _select(model.get_submodule(name), torch.cat(kept), 0)
    _select(model.get_submodule(units.out), units.columns(keep), 1)
    for counter, each in units.counters.items():
        name, _, attribute = counter.rpartition(".")
        setattr(model.get_submodule(name), attribute, len(keep) * each)


def _select(module: nn.Module, kept: Tensor, axis: int) -> None:
    """Keep these rows (axis 0, with their bias) or columns (axis 1) of a linear layer."""
    transposed = isinstance(module, Conv1D)
    names = {"weight": 1 - axis if transposed else axis, **({"bias": 0} if axis == 0 else {})}
    for name, along in names.items():
        old = dict(module.named_parameters(recurse=False)).get(name)
        if old is not None:
            new = nn.Parameter(old.index_select(along, kept), requires_grad=old.requires_grad)
            setattr(module, name, new)
    sizes: Any = module
    ours = ("nf", "nx") if transposed else ("out_features", "in_features")
    setattr(sizes, ours[axis], len(kept))


def _drop_layers(model: PreTrainedModel, dead: list[str]) -> Iterator[str]:
    """Take out the layers that add constants only, and add these before them; give the names of those that went."""
    names = [name for name, module in model.named_modules() if architecture(module) in UNNORMED]
    if not names or getattr(model.config, "scale_attn_by_inverse_layer_idx", False):  # then a layer's place matters
        return
    outs = {(units.layer, units.kind): model.get_submodule(units.out) for units in find_units(model)}
    positions = dict(model.base_model.named_children()).get("wpe")  # GPT-2's, which are added before all layers
    before = None if positions is None else positions.get_parameter("weight")
    gone: list[str] = []
    for name in names:
        own = [bias_of(outs[name, kind]) for kind in ("heads", "dimensions")]
        constants = [bias for bias in own if bias is not None and bias.any()]
        if name in dead and (before is not None or not constants) and len(gone) < len(names) - 1:
            for constant in constants:
                before.add_(constant)  # type: ignore[union-attr]
            gone.append(name)
        else:
            before = own[1]
    stack = model.get_submodule(names[0].rpartition(".")[0])
    assert isinstance(stack, nn.ModuleList)
    for name in reversed(gone):
        del stack[names.index(name)]
    for number, layer in enumerate(stack):
        for module in layer.modules():
            if "layer_idx" in vars(module):
                module.layer_idx = number  # type: ignore[assignment]
    model.config.num_hidden_layers = len(stack)
    yield from gone
