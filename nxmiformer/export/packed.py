"""A compressed model as files that are as small as its plan says.

The directory has `model.safetensors`, `plan.json`, the `transformers` configs and tokenizer, a model card, and
`packed.json`. `model.safetensors` has the parts that each set's `pack` makes of a weight, and all other tensors
unchanged. `packed.json` names the format and the SHA-256 of each other file, except the card, which anyone may edit.

Reading it executes no code: the files are safetensors and JSON. The digests find damage, not malice, as whoever
rewrites a file can rewrite its digest. So the model is first built on the meta device, and memory is allocated only
when the header of the weights agrees with it.
"""

import copy
import inspect
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nxmiformer.applied.convert import verify
from nxmiformer.applied.lazy import lazy_layers, make_eager
from nxmiformer.export.card import card
from nxmiformer.export.manifest import (
    ATTENTION,
    CARD,
    CONFIG,
    FORMAT,
    GENERATION,
    MANIFEST,
    METHOD,
    PLAN,
    REQUIRES,
    WEIGHTS,
    Digest,
    check_known,
    read_manifest,
    reading,
    replaceable,
)
from nxmiformer.export.skeleton import check, planned_header, read_plan
from nxmiformer.export.weights import fill, packed_parts, rest_of
from nxmiformer.files import digest_of, digests_of, files_in, replacing, write_text
from nxmiformer.layers.compact import sizes_of
from nxmiformer.layers.factored import Factored, unfactor
from nxmiformer.layers.wrapped import unwrapped
from nxmiformer.plan.compression import CompressionPlan


@dataclass(frozen=True)
class PackedSize:
    """Bytes of a packed model.

    Attributes:
        weights: of the compressed layers' values, indices and scales.
        total: of every file but the card.
    """

    weights: int
    total: int


def save_packed(
    model: PreTrainedModel,
    plan: CompressionPlan,
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> PackedSize:
    """Write the model, whose weights are points of the plan's sets, to a new directory, completely or not at all.

    Raises:
        ValueError: the plan does not fit the model, weights are not in their sets (each is named), or `load_packed`
            could not build the model again: it is not one of `transformers`' own, or has weights of several dtypes.
        FileExistsError: `path` exists and is not a packed model. A packed model would be replaced.
    """
    model = unwrapped(model)  # type: ignore[assignment]
    if tokenizer is None and "input_ids" in inspect.signature(model.forward).parameters:
        warnings.warn(
            f"save_packed writes no tokenizer to {path}: whoever reads the model needs it; give it as tokenizer=...",
            stacklevel=2,
        )
    with packing(model, plan, Path(path).resolve(), tokenizer, parents=True) as (_, size):
        return size


@contextmanager
def packing(
    model: PreTrainedModel,
    plan: CompressionPlan,
    path: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    parents: bool = False,
) -> Iterator[tuple[Path, PackedSize]]:
    """As `save_packed`, but the block has the directory before it takes its place: to read it, and to `add_results`.

    Args:
        parents: make the directories above.
    """
    if lazy_layers(model) or any(isinstance(module, Factored) for module in model.modules()):
        model = copy.deepcopy(model)
        make_eager(model)
        unfactor(model)
    plan.check(model)
    verify(model, plan)
    check_dtype(model)
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, replaceable, "a packed model") as directory:
        weights = write_packed(model, plan, directory, tokenizer)
        check(directory, read_manifest(directory), plan)
        files = [file for file in files_in(directory) if file.name != CARD]
        yield directory, PackedSize(weights, sum(file.stat().st_size for file in files))


def check_packable(
    model: PreTrainedModel, plan: CompressionPlan, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Raise what `save_packed`, or `load_packed` after it, would raise whatever the weights are. All other files are
    written to a temporary directory, and a model is built from them with tensors of the same names, shapes and sizes.

    Raises:
        ValueError: as `save_packed`, or as `load_packed`.
    """
    plan.check(model)
    check_dtype(model)
    with TemporaryDirectory() as temporary:
        directory = Path(temporary)
        manifest = write_frame(model, plan, directory, tokenizer)
        check_known(manifest, directory)
        check(directory, manifest, plan, planned_header(model, plan))


def check_dtype(model: PreTrainedModel) -> None:
    odd = [f"{name} is {p.dtype}" for name, p in model.named_parameters() if p.dtype != model.dtype]
    if odd:
        raise ValueError(f"a packed model has one dtype: the model's is {model.dtype}, and {', '.join(odd)}")


def write_packed(
    model: PreTrainedModel, plan: CompressionPlan, directory: Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> int:
    """Write all files into a directory that nobody reads yet; give the bytes of the packed weights."""
    packed = packed_parts(model, plan)
    rest, _ = rest_of(model, plan)
    plain = {key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in rest.items()}
    save_file({**packed, **plain}, directory / WEIGHTS, metadata={"format": "pt"})
    manifest = write_frame(model, plan, directory, tokenizer)
    seal(directory, {**manifest, "files": digests_of(directory)}, plan)
    return sum(tensor.numel() * tensor.element_size() for tensor in packed.values())


def write_frame(
    model: PreTrainedModel, plan: CompressionPlan, directory: Path, tokenizer: PreTrainedTokenizerBase | None
) -> dict[str, Any]:
    """Write plan, config and tokenizer; give the manifest, which names no files yet."""
    plan.save(directory / PLAN)
    attention = model.config._attn_implementation if model.config._attn_implementation in ATTENTION else None
    _write_config(model, attention, directory)
    if model.can_generate():
        model.generation_config.to_json_file(directory / GENERATION)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    sizes = sizes_of(model)
    return {
        "format": FORMAT,
        "architecture": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": attention,
        "shared": rest_of(model, plan)[1],
        **({"sizes": sizes} if sizes else {}),
    }


def seal(
    directory: Path, manifest: dict[str, Any], plan: CompressionPlan, results: Mapping[str, str] | None = None
) -> None:
    """Write the card, and the manifest with its digest."""
    dtype, file = getattr(torch, manifest["dtype"]), (directory / WEIGHTS).stat().st_size
    text = card(plan, manifest["architecture"], dtype, file, results)
    write_text(directory / CARD, text)
    content = {**manifest, "card": digest_of(directory / CARD)}
    write_text(directory / MANIFEST, json.dumps(content, indent=1) + "\n")


def add_results(path: str | Path, results: Mapping[str, str]) -> None:
    """Rewrite the card of a packed model with named `results`: scores, a command, a revision.

    In the block of `packing`, the model gets its place with them.

    Raises:
        PackedError: as `load_packed`, but that the weights are not read.
    """
    path = Path(path)
    seal(path, read_manifest(path), CompressionPlan.load(path / PLAN), results)


def _write_config(model: PreTrainedModel, attention: str | None, directory: Path) -> None:
    """The config, from which `from_pretrained` takes that the model is packed, and the attention that it had."""
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], model.dtype
    config.quantization_config = {"quant_method": METHOD, "format": FORMAT, "requires": REQUIRES}
    config.save_pretrained(directory)
    if attention is not None:  # `transformers` reads it, but does not write it
        content = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        content["attn_implementation"] = attention
        write_text(directory / CONFIG, json.dumps(content, indent=2, sort_keys=True) + "\n")


def load_packed(path: str | Path, lazy: bool = False) -> PreTrainedModel:
    """The model that `save_packed` wrote, in evaluation mode. Its logits are the same, bit for bit.

    Layers of Kronecker products have factors in place of the weight, as parameters, and compute with them. Where the
    saved model multiplied by the weight, the logits are the same within rounding.

    Its compressed layers quantize their inputs as before. `transformers.AutoTokenizer.from_pretrained(path)` gives the
    tokenizer.

    Args:
        lazy: keep the compressed weights packed in memory. A linear layer unpacks its weight in every forward pass, an
            embedding the rows that are looked up. Such a model is for evaluation only, and is saved as it was read.

    Raises:
        PackedError: the directory, or a file in it, is missing, damaged, incomplete or something else. It says which.
    """
    path = Path(path)
    manifest = read_manifest(path)
    with Digest(path, manifest):
        plan = read_plan(path)
        model = check(path, manifest, plan)
        with reading(path / WEIGHTS):
            fill(model, plan, path / WEIGHTS, lazy)
    if lazy:
        stay_packed(model, plan)
    return model.eval()


def stay_packed(model: PreTrainedModel, plan: CompressionPlan) -> None:
    """Make the model's `save_pretrained`, and `push_to_hub`, which calls it, write what `save_packed` does.

    `transformers` has no other place for it: a quantizer may change the tensors that it writes, but not which files.
    """
    # No bound method: what is bound to an object is pickled by its name, and this has none.
    model.save_pretrained = partial(_save_pretrained, model, plan=plan)  # type: ignore[method-assign]


def _save_pretrained(
    model: PreTrainedModel,
    save_directory: str | Path,
    is_main_process: bool = True,
    push_to_hub: bool = False,
    *,
    plan: CompressionPlan,
    **options: Any,
) -> None:
    """`save_pretrained` of a packed model: a directory that is new, empty, or holds a packed model only.

    Raises:
        ValueError: as `save_packed`, or for an option that would make other files of it.
        FileExistsError: as `save_packed`.
    """
    if model._hf_peft_config_loaded:  # its adapters are saved, which are not packed
        type(model).save_pretrained(model, save_directory, is_main_process, push_to_hub=push_to_hub, **options)
        return
    odd = [name for name in ("state_dict", "variant", "distributed_checkpoint") if options.get(name)]
    if push_to_hub or odd:
        raise ValueError(
            f"a packed model is saved whole: save_pretrained(directory) without {', '.join(odd) or 'push_to_hub'}; "
            f"model.push_to_hub(repo_id) puts it on the hub"
        )
    if is_main_process:
        with packing(model, plan, Path(save_directory).resolve(), parents=True):
            pass  # whoever saves with transformers saves the tokenizer beside the model
