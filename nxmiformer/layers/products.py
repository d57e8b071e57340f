"""What a model multiplies: found by watching it compute an example, so that nothing is quantized twice or left out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nxmiformer.console.quiet import quiet
from nxmiformer.layers import attention, norms
from nxmiformer.layers.everything import INPUT, OUTPUT, Parts
from nxmiformer.layers.examples import made_up
from nxmiformer.layers.mode import evaluating
from nxmiformer.layers.wrapped import unwrapped

LENGTH, PADDED = 6, 2  # tokens of the example, and those of its second row that are padding
MULTIPLYING: tuple[Callable[..., Any], ...] = (
    *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum),
    *(Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.addmm, Tensor.baddbmm),
    *(F.linear, F.conv1d, F.bilinear, F.scaled_dot_product_attention, F.layer_norm, F.rms_norm),
)
POSITIONS = "Rotary"  # of a module that multiplies positions by constants: nothing that the text decides


def find_products(model: nn.Module) -> dict[str, dict[str, int]]:
    """The parts of a model, by the name of the module, that have to be quantized so that all that it multiplies is; and
    how many features each has that can have ends of their own. See `Everything`.

    What is quantized where it comes from (by a norm, an attention) is not quantized again where it is used. A layer of
    the repeated blocks that multiplies something else, as the second one of a feed-forward part does, has its output
    quantized too; the sum of embeddings and positions is an input, of the first block or of what comes before it.

    Raises:
        ValueError: some of the model's products, or norms, cannot be reached: it computes them by its own code, which
            is named; or, with our attention in place of its own, the model computes something else.
    """
    model = unwrapped(model)
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"everything can be quantized in models of transformers, not in a {type(model).__name__}")
    kind, example = type(model).__name__, _example(model)
    with evaluating(model), torch.no_grad():
        own = model(**example)[0]
        watch, before = _Watch(model, "attention_mask" in example), model.config._attn_implementation
        try:
            with quiet(), watch.watching():  # which would tell of a model that has no place for an attention
                model.set_attn_implementation(attention.NAME)
                ours = model(**example)[0]
        finally:
            model.set_attn_implementation(before)
    if watch.odd:
        lines = "".join(f"\n  {line}" for line in dict.fromkeys(watch.odd))
        raise ValueError(f"not everything that a {kind} multiplies can be reached: by code of its own compute{lines}")
    apart, most = (own - ours).abs().max().item(), own.abs().max().item()
    if not apart <= most * (1e-4 if model.dtype.itemsize > 2 else 0.1):
        raise ValueError(
            f"a {kind} computes something else where its attention is replaced: its outputs differ by up to {apart:g}"
        )
    return watch.parts


def counted(parts: Parts, features: bool) -> Parts:
    """The parts as they are, or with one pair of ends for all features."""
    return parts if features else {name: dict.fromkeys(own, 1) for name, own in parts.items()}


def _example(model: PreTrainedModel) -> dict[str, Tensor]:
    """Two texts, the end of the second one padding."""
    given = made_up(model, 2, LENGTH)
    if "attention_mask" in given:
        given["attention_mask"][1, -PADDED:] = 0
    return {name: each.to(model.device) for name, each in given.items()}


class _Watch(TorchFunctionMode):
    """Sees a model compute, and remembers what of it has to be quantized.

    Attributes:
        padded: whether what it computes has padding, which its attention has to be told of.
        parts: see `find_products`.
        odd: a line for each product, or norm, that cannot be reached.
    """

    def __init__(self, model: nn.Module, padded: bool) -> None:
        super().__init__()
        self.padded = padded
        self.model, self.names = model, {module: name for name, module in model.named_modules()}
        stacks = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
        self.blocks = tuple(f"{name}." for name, _ in stacks)
        inside = {name for name, _ in stacks if any(name.startswith(f"{other}.") for other, _ in stacks)}
        self.firsts = {stack[0] for name, stack in stacks if len(stack) and name not in inside}
        self.parts: dict[str, dict[str, int]] = {}
        self.odd: list[str] = []
        self.inside: list[nn.Module] = []
        self.attending = False
        self.done: dict[int, Tensor] = {}  # what is quantized, by its memory
        # The dropout that was given it, by its memory; held, so that its memory does not become another's.
        self.dropped: dict[int, tuple[Tensor, nn.Module]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While the model computes."""
        hooks = []
        for module in self.names:
            hooks += [module.register_forward_pre_hook(self._begins), module.register_forward_hook(self._ends)]
            vars(module)["ranges"] = _Recorded(self, module)
        try:
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()
            for module in self.names:
                del vars(module)["ranges"]

    def record(self, module: nn.Module, part: str, x: Tensor, single: bool = False) -> None:
        """A part of the module has to be quantized."""
        self.parts.setdefault(self.names[module], {})[part] = 1 if single else x.shape[-1]

    def quantized(self, x: Tensor) -> None:
        """This, and what shares its memory, is quantized."""
        self.done[x.untyped_storage().data_ptr()] = x

    def is_quantized(self, x: Tensor) -> bool:
        return x.untyped_storage().data_ptr() in self.done

    def _begins(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.inside.append(module)
        x = args[0] if args else None
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return
        if isinstance(module, nn.Dropout):
            self.dropped.setdefault(x.untyped_storage().data_ptr(), (x, module))
        if module in self.firsts and not self.is_quantized(x):  # before the dropout, where that is a module
            self.record(self.dropped.get(x.untyped_storage().data_ptr(), (x, module))[1], INPUT, x)
            self.quantized(x)
        if isinstance(module, nn.Linear | Conv1D) and not self.is_quantized(x):
            self.record(module, INPUT, x)
            if self.names[module].startswith(self.blocks):
                self.parts[self.names[module]][OUTPUT] = _width(module)

    def _ends(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.inside.pop()
        if not (
            args and isinstance(args[0], Tensor) and isinstance(output, Tensor) and "Norm" in type(module).__name__
        ):
            return
        x, name = args[0], self.names[module]
        if [*module.children()]:
            return  # what it is made of computes
        with torch._C.DisableTorchFunction():
            known = norms.is_norm(module, x, output)
        if not known:
            self.odd.append(
                f"{name}: a {type(module).__name__}, which is neither a LayerNorm nor by a root mean square"
            )
            return
        if not name.startswith(self.blocks) and not self._in_blocks and not self.is_quantized(x):
            self.record(module, INPUT, x)
        for part in norms.PARTS:
            self.record(module, part, output, single=part not in norms.FEATURES)
        self.quantized(output)

    @property
    def _in_blocks(self) -> bool:
        """Whether a block has begun already."""
        return any(name.startswith(self.blocks) for name in self.parts)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in MULTIPLYING and not self.attending:
            top = self.inside[-1] if self.inside else self.model
            known = isinstance(top, nn.Linear | Conv1D) or "Norm" in type(top).__name__
            if not known and POSITIONS not in type(top).__name__:
                self.odd.append(f"{self.names[top] or 'the model'}: {type(top).__name__} ({func.__name__})")
        return func(*args, **(kwargs or {}))


class _Recorded:
    """In the place of a module's quantizers: remembers which its attention would have."""

    def __init__(self, watch: _Watch, module: nn.Module) -> None:
        self.watch, self.module = watch, module

    def __getitem__(self, part: str) -> Callable[..., Tensor]:
        def record(x: Tensor, sees: Tensor | None = None) -> Tensor:
            self.watch.record(self.module, part, x, single=part in attention.SCORES)
            if part == "key" and sees is None and self.watch.padded:
                self.watch.odd.append(f"{self.watch.names[self.module]}: its attention, which is given no mask")
            self.watch.attending = part != OUTPUT
            if part == OUTPUT:
                self.watch.quantized(x)
            return x

        return record


def _width(module: nn.Module) -> int:
    return int(module.nf if isinstance(module, Conv1D) else module.out_features)  # type: ignore[arg-type]
