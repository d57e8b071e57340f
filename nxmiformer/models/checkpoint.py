"""Which weights of a model are the checkpoint's. A head may be newly initialized, and nothing else."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from transformers import PreTrainedModel

log = logging.getLogger(__name__)

# What puts a name of its own before, or into, the names of a model's weights.
WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DataParallel",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
LISTED, LINE = 40, "\n    "  # names that a message has, at most, and what parts them where there are many


def head(model: PreTrainedModel) -> frozenset[str]:
    """The names of the parameters that a task may initialize: those outside the backbone, and its pooler, which masked
    language models are saved without. A model that is its own backbone has no head of which that is known."""
    backbone = model.base_model
    below = {id(p) for name, p in backbone.named_parameters() if not name.startswith("pooler.")}
    every = model.named_parameters(remove_duplicate=False)  # a bias that two modules of a head share has both names
    return frozenset(name for name, p in every if id(p) not in below)


def check_loaded(model: PreTrainedModel, report: Mapping[str, Any], path: str) -> bool:
    """Whether the head above the backbone is the checkpoint's, and so its classes are. Newly initialized weights, and
    weights of the checkpoint that are not read, are logged.

    Args:
        report: what `from_pretrained` gives for `output_loading_info`.
        path: of the checkpoint, for messages.

    Raises:
        ValueError: weights below the head are missing, of another shape or under other names, or a weight is not
            finite; each is listed.
    """
    own, missing = head(model), set(report["missing_keys"])
    shapes = {name: f"{name}: {tuple(theirs)}, not {tuple(ours)}" for name, theirs, ours in report["mismatched_keys"]}
    strange = _of_the_backbone(model, report["unexpected_keys"])
    wrong = [
        ("not in the checkpoint", missing - own),
        ("of another shape than in config.json", [shapes[name] for name in shapes.keys() - own]),
        ("in the checkpoint, and unknown to the model", strange),
    ]
    if any(names for _, names in wrong):
        lines = [f"model.path={path}: {type(model).__name__} is not what was saved there"]
        lines += [f"  {what} ({len(names)}): {_listed(names, LINE)}" for what, names in wrong if names]
        raise ValueError("\n".join([*lines, f"  {_remedy(model, report['unexpected_keys'])}"]))
    _check_finite(model, path)
    if drawn := (missing | shapes.keys()) & own:
        log.info("model.path=%s: the head is newly initialized: %s", path, _listed(drawn))
    if unused := set(report["unexpected_keys"]) - strange - _old_buffers(model, report["unexpected_keys"]):
        log.info("model.path=%s: a head of another task is not read: %s", path, _listed(unused))
    return all(name.startswith(f"{model.base_model_prefix}.") for name in drawn)


def _check_finite(model: PreTrainedModel, path: str) -> None:
    counts = {name: int((~weight.isfinite()).sum()) for name, weight in model.named_parameters()}
    bad = [f"{name} has {count}" for name, count in counts.items() if count]
    if bad:
        raise ValueError(f"model.path={path}: values that are not finite: {_listed(bad, LINE)}")


def _of_the_backbone(model: PreTrainedModel, names: Iterable[str]) -> set[str]:
    """Those of a checkpoint's unread names that belong to a part of the backbone, such as a layer that it lacks."""
    parts = {name for name, _ in model.base_model.named_children()} - {"pooler"}
    inside = {name for name in names if _below(model, name).partition(".")[0] in parts}
    return inside - _old_buffers(model, inside)


def _old_buffers(model: PreTrainedModel, names: Iterable[str]) -> set[str]:
    """The names of what a module without parameters once saved, such as the mask of an attention."""
    bare = {name for name, module in model.base_model.named_modules() if not [*module.parameters(recurse=False)]}
    return {name for name in names if "." in (inner := _below(model, name)) and inner.rpartition(".")[0] in bare}


def _below(model: PreTrainedModel, name: str) -> str:
    """The name inside the backbone: checkpoints of the backbone alone have no prefix."""
    return name.removeprefix(f"{model.base_model_prefix}.")


def _remedy(model: PreTrainedModel, unread: Collection[str]) -> str:
    known = set(model.state_dict())
    known |= {_below(model, name) for name in known}
    found = Counter(prefix for name in unread if (prefix := _wrapped(name, known)))
    if not found:
        return "give the directory that save_pretrained wrote, whose config.json and weights are of one model"
    prefix = found.most_common(1)[0][0]
    whose = WRAPPERS.get(prefix.split(".")[0], "a wrapper")
    return (
        f"{found[prefix]} names have {prefix!r} in them, which {whose} puts there: call save_pretrained of the model "
        f"inside it, or save its weights as {{name.replace({prefix!r}, ''): value for name, value in weights.items()}}"
    )


def _wrapped(name: str, known: Collection[str]) -> str | None:
    """What has to go from a name of the checkpoint to make it one that the model knows."""
    parts = name.split(".")
    wrappers = [part for part in parts if part in WRAPPERS]
    if wrappers and ".".join(part for part in parts if part not in WRAPPERS) in known:
        together = ".".join(wrappers) + "."
        return together if together in name else f"{wrappers[0]}."
    for start in range(1, len(parts)):
        if ".".join(parts[start:]) in known:
            return ".".join(parts[:start]) + "."
    return None


def _listed(names: Iterable[str], separator: str = ", ") -> str:
    """The names, those that only the number of a layer tells apart as one with their count."""
    counts = Counter(re.sub(r"\.\d+(?=\.)", ".*", name) for name in sorted(names))
    shown = [name if count == 1 else f"{name} ({count})" for name, count in counts.items()]
    more = [f"and {len(shown) - LISTED} more"] if len(shown) > LISTED else []
    return separator.join([*shown[:LISTED], *more])
