"""The structures that can be removed from a layer: attention heads, and dimensions of the feed-forward part.

Both are units of the same kind. A unit is some rows of a few linear layers, and the columns of one more layer that
reads them. If either is zero, the unit contributes nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nxmiformer.layers.targets import is_transposed
from nxmiformer.layers.wrapped import unwrapped

Kind = Literal["heads", "dimensions"]


@dataclass(frozen=True)
class Source:
    """Where units come from: unit u has the `width` rows of a linear layer that begin at start + u * width.

    Attributes:
        silences: whether a unit contributes nothing if these rows and their bias are zero.
    """

    name: str
    width: int
    start: int = 0
    silences: bool = True

    def rows(self, units: Tensor) -> Tensor:
        """The rows of these units, in order."""
        return _spans(units, self.width) + self.start


@dataclass(frozen=True)
class Units:
    """The heads, or the dimensions of the feed-forward part, of one layer.

    Query heads that share a key and a value head are one unit.

    Attributes:
        layer: name of the layer in the model.
        count: how many there are.
        full: how many there are by the model's config.
        sources: where they come from.
        out: name of the linear layer that reads them.
        width: columns of `out` that read one unit.
        counters: attributes of modules that count them, by their names in the model, and what a unit adds to each.
    """

    layer: str
    kind: Kind
    count: int
    full: int
    sources: tuple[Source, ...]
    out: str
    width: int
    counters: Mapping[str, int]

    def columns(self, units: Tensor) -> Tensor:
        """The columns of `out` that read these units, in order."""
        return _spans(units, self.width)

    @property
    def names(self) -> frozenset[str]:
        """The linear layers that the units are in."""
        return frozenset((self.out, *(source.name for source in self.sources)))


def find_units(model: nn.Module) -> tuple[Units, ...]:
    """The units of every layer of an architecture in `ARCHITECTURES`, in the model's order; none of another's.

    A layer with cross-attention is another's.
    """
    return tuple(
        units
        for name, module in unwrapped(model).named_modules()
        if (kind := architecture(module)) is not None
        for units in _LAYERS[kind](name, module)
    )


def architecture(module: nn.Module) -> str | None:
    """Which of `ARCHITECTURES` the module is a layer of, if any."""
    kind = type(module)
    known = kind.__module__.startswith("transformers.models.") and "crossattention" not in dict(module.named_children())
    return kind.__name__ if known and kind.__name__ in _LAYERS else None


@torch.no_grad()
def silent(model: nn.Module, units: Units) -> Tensor:
    """Which units (count,) add exactly nothing, whatever the input: their columns are zero, or rows that silence them
    are, with their bias."""
    model = unwrapped(model)
    gone = _empty(_matrix(model, units.out), units.count, units.width, 1)
    for source in units.sources:
        if source.silences:
            end = source.start + units.count * source.width
            weight = _matrix(model, source.name)[source.start : end]
            bias = model.get_submodule(source.name).bias
            values = weight if bias is None else torch.cat([weight, bias[source.start : end, None]], 1)  # type: ignore[index]
            gone |= _empty(values, units.count, source.width, 0)
    return gone


def _empty(w: Tensor, count: int, width: int, axis: int) -> Tensor:
    """Which of `count` pieces of `width` rows (axis 0) or columns (axis 1) hold zeros only."""
    return (w == 0).all(1 - axis).view(count, width).all(1)


def _matrix(model: nn.Module, name: str) -> Tensor:
    module = model.get_submodule(name)
    weight = module.get_parameter("weight")
    return weight.t() if is_transposed(module) else weight


def _spans(units: Tensor, width: int) -> Tensor:
    return (units[:, None] * width + torch.arange(width, device=units.device)).flatten()


def _still(activation: Callable[[Tensor], Tensor]) -> bool:
    """Whether an activation function of 0 is 0."""
    return not activation(torch.zeros(1, dtype=torch.float64, device="cpu")).any()


def _bert(name: str, layer: Any) -> Iterator[Units]:
    """BERT, RoBERTa, ELECTRA."""
    own, head = layer.attention.self, layer.attention.self.attention_head_size
    inside = f"{name}.attention.self"
    yield Units(
        name, "heads", own.value.weight.shape[0] // head, own.config.num_attention_heads,
        (*(Source(f"{inside}.{part}", head, silences=False) for part in ("query", "key")),
         Source(f"{inside}.value", head)),
        f"{name}.attention.output.dense", head,
        {f"{inside}.num_attention_heads": 1, f"{inside}.all_head_size": head},
    )  # fmt: skip
    yield Units(
        name, "dimensions", layer.intermediate.dense.weight.shape[0], own.config.intermediate_size,
        (Source(f"{name}.intermediate.dense", 1, silences=_still(layer.intermediate.intermediate_act_fn)),),
        f"{name}.output.dense", 1, {},
    )  # fmt: skip


def _distilbert(name: str, layer: Any) -> Iterator[Units]:
    own, head = layer.attention, layer.attention.attention_head_size
    inside = f"{name}.attention"
    yield Units(
        name, "heads", own.v_lin.weight.shape[0] // head, own.config.n_heads,
        (*(Source(f"{inside}.{part}", head, silences=False) for part in ("q_lin", "k_lin")),
         Source(f"{inside}.v_lin", head)),
        f"{inside}.out_lin", head, {f"{inside}.n_heads": 1, f"{inside}.dim": head},
    )  # fmt: skip
    yield Units(
        name, "dimensions", layer.ffn.lin1.weight.shape[0], own.config.hidden_dim,
        (Source(f"{name}.ffn.lin1", 1, silences=_still(layer.ffn.activation)),), f"{name}.ffn.lin2", 1, {},
    )  # fmt: skip


def _gpt2(name: str, layer: Any) -> Iterator[Units]:
    """Its queries, keys and values are thirds of one matrix."""
    own, head = layer.attn, layer.attn.head_dim
    inside, third = f"{name}.attn", layer.attn.c_attn.weight.shape[1] // 3
    yield Units(
        name, "heads", third // head, own.config.num_attention_heads,
        tuple(Source(f"{inside}.c_attn", head, part * third, silences=part == 2) for part in range(3)),
        f"{inside}.c_proj", head, {f"{inside}.num_heads": 1, f"{inside}.split_size": head},
    )  # fmt: skip
    yield Units(
        name, "dimensions", layer.mlp.c_fc.weight.shape[1], own.config.n_inner or 4 * own.config.hidden_size,
        (Source(f"{name}.mlp.c_fc", 1, silences=_still(layer.mlp.act)),), f"{name}.mlp.c_proj", 1, {},
    )  # fmt: skip


def _llama(name: str, layer: Any) -> Iterator[Units]:
    """Its heads go by groups, its feed-forward part has a gate."""
    own, head = layer.self_attn, layer.self_attn.head_dim
    inside, group = f"{name}.self_attn", layer.self_attn.num_key_value_groups
    yield Units(
        name, "heads", own.v_proj.weight.shape[0] // head, own.config.num_key_value_heads,
        (Source(f"{inside}.q_proj", group * head, silences=False), Source(f"{inside}.k_proj", head, silences=False),
         Source(f"{inside}.v_proj", head)),
        f"{inside}.o_proj", group * head, {},
    )  # fmt: skip
    yield Units(
        name, "dimensions", layer.mlp.up_proj.weight.shape[0], own.config.intermediate_size,
        (Source(f"{name}.mlp.gate_proj", 1, silences=_still(layer.mlp.act_fn)), Source(f"{name}.mlp.up_proj", 1)),
        f"{name}.mlp.down_proj", 1, {},
    )  # fmt: skip


_LAYERS: Mapping[str, Callable[[str, Any], Iterator[Units]]] = {
    "BertLayer": _bert,
    "RobertaLayer": _bert,
    "ElectraLayer": _bert,
    "TransformerBlock": _distilbert,  # DistilBERT's
    "GPT2Block": _gpt2,
    "LlamaDecoderLayer": _llama,
}
ARCHITECTURES = ("BERT", "RoBERTa", "ELECTRA", "DistilBERT", "GPT-2", "Llama")


def bias_of(module: nn.Module) -> nn.Parameter | None:
    """The bias that a layer has of its own, if it has one."""
    return dict(module.named_parameters(recurse=False)).get("bias")
