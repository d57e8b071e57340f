"""Which layers of a model can be compressed, and why the others are not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import nn
from transformers.pytorch_utils import Conv1D

from nxmiformer.errors import unknown
from nxmiformer.layers.compressed import PLAIN, obstacle
from nxmiformer.layers.linear import CompressedLinear
from nxmiformer.layers.wrapped import adapted, unwrapped
from nxmiformer.sets.base import Shape

Affine = nn.Linear | Conv1D


@dataclass(frozen=True)
class Target:
    """One weight matrix that can be compressed.

    Attributes:
        name: the module's name in the model; its weight's name is `parameter`.
        shape: (out_features, in_features), whichever way round the module stores it.
        transposed: whether the module stores (in, out), as `transformers`' Conv1D does.
        aliases: other modules that share the same weight; they are converted with it and counted once.
        lookup: whether its rows are looked up, as those of an embedding: it has no input to quantize.
    """

    name: str
    shape: Shape
    transposed: bool = False
    aliases: tuple[str, ...] = ()
    lookup: bool = False

    @property
    def parameter(self) -> str:
        """The weight's name in `model.named_parameters()`."""
        return f"{self.name}.weight"


@dataclass(frozen=True)
class Targets:
    """The layers to compress, in the model's order, and the reason for each other matrix of the model, by its layer."""

    layers: tuple[Target, ...]
    skipped: Mapping[str, str]


def find_targets(model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] = ()) -> Targets:
    """The linear layers (nn.Linear, transformers' Conv1D) of `model` whose names match.

    Args:
        model: any module.
        include: shell patterns of module names, such as `*.attention.*`. None takes the layers inside the model's
            repeated blocks (its ModuleLists): the encoder, without embeddings, pooler and heads.
        exclude: patterns of the names to leave out.

    Raises:
        ValueError: a pattern matches no linear layer, or nothing is left.

    The result's `skipped` has the linear layers that cannot be compressed, those of adapters, and all other matrices. A
    wrapper, such as that of `torch.compile`, is the same as the model inside.
    """
    model = unwrapped(model)
    linears = {name: m for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, Affine)}
    for pattern in [*(include or ()), *exclude]:
        if not any(fnmatchcase(name, pattern) for name in linears):
            raise unknown("pattern of layer names", pattern, linears)
    blocks, adapters = _blocks(model), tuple(f"{name}." for name in adapted(model))
    chosen: dict[int, Target] = {}
    skipped: dict[str, str] = {}
    for name, module in linears.items():
        reason = _reason(name, blocks, include, exclude)
        if reason is None and name.startswith(adapters):
            reason = "it is in an adapter: merge or remove adapters first, and attach them to the compressed model"
        reason = reason or obstacle(module)
        if reason:
            skipped[name] = reason
        elif id(module.weight) in chosen:
            first = chosen[id(module.weight)]
            chosen[id(module.weight)] = replace(first, aliases=(*first.aliases, name))
            skipped[name] = f"it shares its weight with {first.name}, and is compressed with it"
        else:
            transposed = is_transposed(module)
            rows, columns = module.weight.shape
            chosen[id(module.weight)] = Target(name, (columns, rows) if transposed else (rows, columns), transposed)
    if not chosen:
        why = "".join(f"\n  {reason}" for reason in dict.fromkeys(skipped.values()))
        raise ValueError(f"no layer is left to compress: {len(linears)} linear layers were found, all left out{why}")
    return Targets(tuple(chosen.values()), {**skipped, **_others(model)})


def _others(model: nn.Module) -> dict[str, str]:
    """The matrices of the model that are not of a linear layer, by the names of their modules, or their own, with the
    reason."""
    others: dict[str, str] = {}
    linear = {
        id(m.weight): f"it is an embedding that shares its weight with {n}"
        for n, m in model.named_modules()
        if isinstance(m, Affine)
    }
    within: tuple[str, ...] = ()  # the modules whose parameters have been spoken for
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, PLAIN):
            within += (f"{name}.",)
        if isinstance(module, nn.Embedding):
            others[name] = obstacle(module) or linear.get(id(module.weight), "it is an embedding")
        elif not isinstance(module, PLAIN) and not name.startswith(within):
            kind = type(module).__name__
            for key, parameter in module.named_parameters(name, recurse=False):
                if parameter.ndim > 1:
                    reason = f"it is a parameter {tuple(parameter.shape)} of a {kind}, no linear layer's"
                    others[key.removesuffix(".weight")] = reason
    return others


def find_head(model: nn.Module, exclude: Sequence[str] = ()) -> tuple[Target, ...]:
    """The linear layers outside the model's repeated blocks, such as pooler and classifier."""
    model = unwrapped(model)
    blocks = _blocks(model)
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, Affine) and not name.startswith(blocks)]
    outside = [name for name, module in found if obstacle(module) is None]
    names = [name for name in outside if not any(fnmatchcase(name, pattern) for pattern in exclude)]
    return find_targets(model, names).layers if names else ()


def find_embeddings(model: nn.Module, exclude: Sequence[str] = ()) -> tuple[Target, ...]:
    """The embeddings of `model`, (num_embeddings, embedding_dim). Left out are those that share their weight with a
    linear layer, whose requirements differ, and those that cannot be compressed."""
    model = unwrapped(model)
    linear = {id(m.weight) for m in model.modules() if isinstance(m, Affine)}
    chosen: dict[int, Target] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, nn.Embedding) or any(fnmatchcase(name, pattern) for pattern in exclude):
            continue
        if obstacle(module) is not None:
            continue
        key, (rows, columns) = id(module.weight), module.weight.shape
        if key in chosen:
            chosen[key] = replace(chosen[key], aliases=(*chosen[key].aliases, name))
        elif key not in linear:
            chosen[key] = Target(name, (rows, columns), lookup=True)
    return tuple(chosen.values())


def in_blocks(model: nn.Module) -> dict[str, int]:
    """How many weights each matrix in the model's repeated blocks has, by its layer or own name; no weight twice."""
    model = unwrapped(model)
    matrices = {name: p.numel() for name, p in model.named_parameters() if p.ndim > 1}
    return {name.removesuffix(".weight"): n for name, n in matrices.items() if name.startswith(_blocks(model))}


def is_transposed(module: nn.Module) -> bool:
    """Whether the layer stores its weight (in, out), as `transformers`' Conv1D does."""
    return isinstance(module, Conv1D) or (isinstance(module, CompressedLinear) and module.transposed)


def _blocks(model: nn.Module) -> tuple[str, ...]:
    """What the names of all modules in the repeated blocks begin with."""
    return tuple(f"{name}." for name, m in model.named_modules() if isinstance(m, nn.ModuleList))


def _reason(name: str, blocks: Sequence[str], include: Sequence[str] | None, exclude: Sequence[str]) -> str | None:
    """Why the linear layer `name` is left out, or None."""
    for pattern in exclude:
        if fnmatchcase(name, pattern):
            return f"the pattern {pattern!r} excludes it"
    if include is None:
        return None if name.startswith(tuple(blocks)) else "it is outside the model's repeated blocks"
    return None if any(fnmatchcase(name, pattern) for pattern in include) else "no include pattern names it"
