"""A decoder without its weights, whose blocks are given theirs one at a time, and what each is called with."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from nxmiformer.blockwise.stored import Stored
from nxmiformer.export.manifest import GENERATION
from nxmiformer.export.weights import put, rest_of
from nxmiformer.layers.found import compressed_layers
from nxmiformer.plan.compression import CompressionPlan

HIDDEN = "hidden_states"  # as `transformers` calls what goes from block to block


class Call(NamedTuple):
    """What a block is called with besides the hidden states: masks, positions."""

    args: tuple[Any, ...]
    named: Mapping[str, Any]

    def __call__(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The hidden states (batch, tokens, width) after the block."""
        found = block(hidden, *self.args, **self.named)
        after: Tensor = found if isinstance(found, Tensor) else found[0]
        return after


class Seen(NamedTuple):
    """What a pass through the model shows: its outputs, the hidden states before the first block, each block's call."""

    outputs: Any
    hidden: Tensor
    calls: list[Call]


def blank(path: Path, head: str, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a checkpoint's config on the meta device, with the class that `head`, an `Auto` class, gives it.

    Raises:
        ValueError: the checkpoint is compressed already.
    """
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"model.path={path}: it is compressed already, and blocks are compressed from dense weights")
    with torch.device("meta"), no_init_weights():
        model: PreTrainedModel = getattr(transformers, head).from_config(config, dtype=dtype)
    model.tie_weights()
    if model.can_generate() and (path / GENERATION).is_file():
        model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    return model.eval().requires_grad_(False)


def blocks_of(model: PreTrainedModel) -> str:
    """The name of the model's list of blocks.

    Raises:
        ValueError: there is no one list, or its blocks share weights: then they cannot be worked on one by one.
    """
    lists = {name: each for name, each in model.named_modules() if isinstance(each, nn.ModuleList) and len(each)}
    outer = {name: each for name, each in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}
    kind = type(model).__name__
    if len(outer) != 1:
        told = ", ".join(f"{name} ({len(each)})" for name, each in outer.items()) or "none"
        raise ValueError(
            f"job=blockwise takes a decoder that is one list of blocks, and the lists of a {kind} are: {told}. "
            f"job=compress takes it whole"
        )
    ((name, blocks),) = outer.items()
    owners: dict[int, str] = {}
    for key, parameter in blocks.named_parameters(remove_duplicate=False):
        owner = owners.setdefault(id(parameter), key)
        if owner.partition(".")[0] != key.partition(".")[0]:
            raise ValueError(f"job=blockwise: blocks of this {kind} share weights: {name}.{owner} and {name}.{key}")
    return name


class Decoder:
    """A blank model that is converted to `plan`. What of it is loaded has its weights on `device`; the buffers that it
    computes itself are there from the start.

    Attributes:
        name: of the list of blocks.
        blocks: the blocks, in order.
        shared: names of parameters, and the name that the file has each by.
    """

    def __init__(self, model: PreTrainedModel, plan: CompressionPlan, device: torch.device) -> None:
        self.model, self.plan, self.device, self.name = model, plan, device, blocks_of(model)
        self.blocks: list[nn.Module] = list(model.get_submodule(self.name).children())
        _, self.shared = rest_of(model, plan)
        for known in model.state_dict(keep_vars=True).values():
            known._is_hf_initialized = True
        for name, buffer in list(model.named_non_persistent_buffers()):
            put(model, name, torch.empty_like(buffer, device=device))
        model.initialize_weights()
        self.tuples = False  # whether blocks give tuples; known once one has been run

    @property
    def embedding(self) -> tuple[int, int]:
        """How many words the model has, and how wide its hidden states are."""
        words, width = self.model.get_input_embeddings().get_parameter("weight").shape
        return words, width

    def tensors(self, index: int | None) -> list[str]:
        """The names of the stored tensors of a block, or of all that is in none."""
        start, every = f"{self.name}.", [name for name in self.model.state_dict() if name not in self.shared]
        if index is None:
            return [name for name in every if not name.startswith(start)]
        return [name for name in every if name.startswith(f"{start}{index}.")]

    def layers(self, index: int | None) -> list[str]:
        """The names of the layers among these that the plan has a set for."""
        names = [name.removesuffix(".weight") for name in self.tensors(index) if name.endswith(".weight")]
        return [name for name in names if name in self.plan.layers]

    @contextmanager
    def loaded(self, index: int | None, stored: Stored) -> Iterator[None]:
        """A block, or all that is in none, with its tensors while the block runs."""
        names = self.tensors(index)
        state = self.model.state_dict(keep_vars=True)
        blanks = {name: state[name] for name in names}
        try:
            for name in names:
                self._put(name, blanks[name], stored.tensor(name, blanks[name].dtype).to(self.device))
            yield
        finally:
            for name in names:
                self._put(name, blanks[name], blanks[name].detach())

    def _put(self, name: str, like: Tensor, tensor: Tensor) -> None:
        parameter = isinstance(like, nn.Parameter)
        value = nn.Parameter(tensor, requires_grad=False) if parameter else tensor
        for each in (name, *(other for other, first in self.shared.items() if first == name)):
            put(self.model, each, value)

    def quantize_inputs(self, on: bool, block: nn.Module) -> None:
        """Have the layers of a block quantize their inputs, or not."""
        for layer in compressed_layers(block).values():
            if layer.inputs is not None:
                layer.inputs.active = on

    @torch.no_grad()
    def seen(self, ids: Tensor, hidden: Tensor | None = None) -> Seen:
        """Run the model, all of it that is in no block being loaded, on tokens (batch, tokens), past the blocks: what
        comes out of them is `hidden`, or, without the head, what goes in."""
        calls: list[Call] = []
        entered: list[Tensor] = []

        def passing(*args: Any, **named: Any) -> Any:
            first, call = _parted(args, named)
            entered.append(first)
            calls.append(call)
            after = first if hidden is None else hidden
            return (after,) if self.tuples else after

        with _replaced(self.blocks, passing):
            model = self.model.base_model if hidden is None else self.model
            outputs = model(input_ids=ids.to(self.device), use_cache=False)
        return Seen(outputs, entered[0], calls)

    @torch.no_grad()
    def look(self, ids: Tensor, stored: Stored) -> None:
        """Find out what the blocks give, and whether they see of a text no more than its hidden states. All that is in
        no block is loaded.

        Raises:
            ValueError: they see more, or are not called one after another.
        """

        class Stop(Exception):
            pass

        found: list[tuple[Tensor, Call]] = []

        def stopping(*args: Any, **named: Any) -> Any:
            found.append(_parted(args, named))
            raise Stop

        ids, kind = ids.to(self.device), type(self.model).__name__
        with _replaced(self.blocks, stopping), suppress(Stop):
            self.model(input_ids=ids, use_cache=False)
        ((hidden, call),) = found
        with self.loaded(0, stored):
            self.tuples = not isinstance(self.blocks[0](hidden, *call.args, **call.named), Tensor)
        one, other = self.seen(ids), self.seen(ids.flip(1).contiguous())
        if len(one.calls) != len(self.blocks):
            raise ValueError(f"job=blockwise: a {kind} calls {len(one.calls)} times its {len(self.blocks)} blocks")
        for first, second in zip(one.calls, other.calls, strict=True):
            if not _same(first, second):
                raise ValueError(f"job=blockwise: the blocks of a {kind} see more of a text than its hidden states")


@contextmanager
def _replaced(blocks: Iterable[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """The blocks with another forward: the model reads other attributes of theirs."""
    for block in blocks:
        block.forward = forward
    try:
        yield
    finally:
        for block in blocks:
            vars(block).pop("forward", None)


def _parted(args: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Tensor, Call]:
    """The hidden states that a block is called with, and the rest."""
    if args:
        return args[0], Call(args[1:], named)
    return named[HIDDEN], Call((), {key: value for key, value in named.items() if key != HIDDEN})


def _same(a: Any, b: Any) -> bool:
    """Whether two calls have the same in them."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and (a is b or not isinstance(a, bool | int | float | str) or a == b)
