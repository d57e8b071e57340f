"""A packed model out of files of its tensors, where the whole of them is in no memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nxmiformer.export.joined import entries, join
from nxmiformer.export.manifest import CARD, WEIGHTS, read_manifest, replaceable
from nxmiformer.export.packed import PackedSize, seal, write_frame
from nxmiformer.export.skeleton import check
from nxmiformer.export.weights import part_keys
from nxmiformer.files import digests_of, files_in, replacing
from nxmiformer.plan.compression import CompressionPlan


@contextmanager
def assembling(
    blank: PreTrainedModel,
    plan: CompressionPlan,
    files: Sequence[Path],
    path: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Iterator[tuple[Path, PackedSize]]:
    """As `packing`, of the tensors in `files`: the parts of the compressed weights, and all others, as a packed model
    has them. That the weights are points of their sets is for whoever packed them to see to.

    Args:
        blank: the converted model, on the meta device if that is where it is.

    Raises:
        PackedError: the tensors are not those of the model and its plan.
        FileExistsError, FileError: as `save_packed`.
    """
    with replacing(path, replaceable, "a packed model") as directory:
        join(files, directory / WEIGHTS, {"format": "pt"})
        manifest = write_frame(blank, plan, directory, tokenizer)
        seal(directory, {**manifest, "files": digests_of(directory)}, plan)
        check(directory, read_manifest(directory), plan)
        found = entries(directory / WEIGHTS)
        weights = sum(found[key].facts.size for name in plan.layers for key in part_keys(name, found).values())
        kept = [file for file in files_in(directory) if file.name != CARD]
        yield directory, PackedSize(weights, sum(file.stat().st_size for file in kept))
