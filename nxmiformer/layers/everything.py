"""Quantizers of whatever a model multiplies besides the weights of its layers, and how they get into it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from nxmiformer.errors import unknown
from nxmiformer.layers import attention, norms
from nxmiformer.layers.inputs import ActivationQuantizer
from nxmiformer.layers.norms import QuantizedNorm
from nxmiformer.layers.padding import Padding, drop, unwatch, watch
from nxmiformer.layers.ranges import RangeQuantizer, Ranges
from nxmiformer.layers.wrapped import unwrapped
from nxmiformer.sets.fields import check_fields

INPUT, OUTPUT = "input", "output"
POSITIVE = ("denominator",)  # what is divided by
ATTENTION = frozenset((*attention.FEATURES, *attention.SCORES))
NORM = frozenset(norms.PARTS)
Parts = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Everything:
    """What a model multiplies, and how it is quantized.

    Attributes:
        ranges: how.
        parts: by the name of a module, what of it is quantized, and how many features have ends of their own (1: all
            share two). Of an attention these are `query`, `key`, `value`, the softmax's `numerator`, `denominator` and
            `weights`, and its `output`; of a norm `numerator`, `denominator`, `quotient` and `output`; of any module
            its `input`, and of one that is neither its `output`.
    """

    ranges: Ranges
    parts: Parts

    def __post_init__(self) -> None:
        check_fields(self)
        known = {INPUT, *ATTENTION, *NORM}
        for name, parts in self.parts.items():
            for part, count in parts.items():
                if part not in known:
                    raise unknown(f"part of {name}", part, known)
                if count < 1:
                    raise ValueError(f"{name}: {part} needs ends for at least 1 feature, not for {count}")
            own = parts.keys() - {INPUT}
            if own not in (ATTENTION, NORM) and not own <= {OUTPUT}:
                raise ValueError(f"{name}: {', '.join(sorted(own))} are not the parts of an attention or of a norm")

    @property
    def count(self) -> int:
        """How many tensors are quantized."""
        return sum(map(len, self.parts.values()))

    def misfits(self, model: nn.Module) -> Iterator[str]:
        """A line for each module that the model does not have."""
        modules = dict(unwrapped(model).named_modules())
        for name in self.parts:
            if name not in modules:
                yield f"{name}: the model has no such module"

    def within(self, start: str) -> Self:
        """That of the part of the model whose names begin so."""
        return type(self)(self.ranges, {k.removeprefix(start): v for k, v in self.parts.items() if k.startswith(start)})

    def __str__(self) -> str:
        """How many tensors are quantized, and how."""
        return f"{self.ranges} for {self.count} inputs of products"


def install(model: Any, everything: Everything) -> None:
    """Put the quantizers into the model, in place: as children `ranges` of the modules that multiply."""
    model, padding = unwrapped(model), Padding()
    for name, parts in everything.parts.items():
        module = model.get_submodule(name)
        device = next((each.device for each in (*module.parameters(), *model.parameters())), "cpu")
        module.ranges = nn.ModuleDict(
            {
                part: RangeQuantizer(everything.ranges, count, part in POSITIVE, padding, device)
                for part, count in parts.items()
            }
        ).train(module.training)
        if parts.keys() >= NORM:
            QuantizedNorm.adopt(module)
        if INPUT in parts:
            module.register_forward_pre_hook(_quantize_input)
        if OUTPUT in parts and not parts.keys() & (NORM | ATTENTION) - {OUTPUT}:
            module.register_forward_hook(_quantize_output)
    watch(model, padding)
    vars(model)["attention_before"] = model.config._attn_implementation
    model.set_attn_implementation(attention.NAME)


def remove(model: Any) -> None:
    """Take out, in place, what `install` put in."""
    model = unwrapped(model)
    for module in [module for module in model.modules() if "ranges" in module._modules]:
        if isinstance(module, QuantizedNorm):
            module.release()
        drop(module, _quantize_input, _quantize_output)
        del module.ranges
    if "padding" in vars(model):
        unwatch(model)
        model.set_attn_implementation(vars(model).pop("attention_before"))


def hand_on(module: nn.Module, other: nn.Module) -> None:
    """Give a module that takes the place of another the quantizers of its input and of its output, if it has them."""
    if "ranges" not in module._modules:
        return
    other.ranges = module.ranges
    if _quantize_input in module._forward_pre_hooks.values():
        other.register_forward_pre_hook(_quantize_input)
    if _quantize_output in module._forward_hooks.values():
        other.register_forward_hook(_quantize_output)


def range_quantizers(model: nn.Module) -> dict[str, RangeQuantizer]:
    """The quantizers that `install` put into a model, and those of layers' inputs with static ranges, by name."""
    named = unwrapped(model).named_modules()
    return {name: module for name, module in named if isinstance(module, RangeQuantizer)}


def blind_ranges(model: nn.Module) -> list[str]:
    """The names of the quantizers of fixed ranges that have seen no input, those of layers' inputs among them."""
    named = unwrapped(model).named_modules()
    fixed = {name: each for name, each in named if isinstance(each, RangeQuantizer | ActivationQuantizer)}
    return [name for name, each in fixed.items() if not each.seen]


def check_ranges(blind: Sequence[str]) -> None:
    """Raise a ValueError for quantizers that see no input before evaluation: they would follow each batch instead."""
    if blind:
        raise ValueError(
            f"plan: {len(blind)} ranges have seen no input, such as {', '.join(blind[:4])}: take a recipe that trains, "
            f"for more steps than method.delay, or recipe=one_shot with method.calibration"
        )


def _quantize_input(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (module.ranges[INPUT](args[0]), *args[1:])


def _quantize_output(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
    quantized: Tensor = module.ranges[OUTPUT](output)
    return quantized
