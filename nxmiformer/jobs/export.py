"""A packed model in; a file in out that somebody else's software runs, once that agrees with the packed model."""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from nxmiformer.console.display import Display
from nxmiformer.export.format import Format, Run
from nxmiformer.export.manifest import CONFIG, EXPORTED, PLAN, WEIGHTS
from nxmiformer.export.packed import load_packed
from nxmiformer.files import digests_of, replacing, write_text
from nxmiformer.jobs.job import Job
from nxmiformer.jobs.origin import packed_of
from nxmiformer.jobs.provenance import provenance
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.tasks.batches import Examples, encode, sorted_batches
from nxmiformer.tasks.order import in_order
from nxmiformer.tasks.task import Task

NEAR = 0.01  # of the range of the outputs: how far two equal predictions of a regression may be apart


class DisagreementError(ValueError):
    """An artefact that does not compute what the packed model does."""


@dataclass(frozen=True)
class Agreement:
    """How the logits of an artefact, (examples, outputs), differ from those of the packed model.

    Attributes:
        difference: the largest, absolute.
        range: of the packed model's logits, the largest less the smallest.
        equal: the share of examples with the same prediction: the same class, or of a model with one output, a value
            that is nearer than NEAR of the range, or of that of the labels: a model that says nearly the same always is
            judged by what it should say.
    """

    examples: int
    difference: float
    range: float
    equal: float

    @classmethod
    def of(cls, ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray) -> "Agreement":
        """Of the packed model's logits and the artefact's, and the labels (examples,)."""
        if theirs.shape != ours.shape:
            raise DisagreementError(f"the artefact gives logits {theirs.shape}, and the packed model {ours.shape}")
        apart, extent = np.abs(ours - theirs), float(np.ptp(ours))
        if ours.shape[1] == 1:
            same = apart[:, 0] <= NEAR * max(extent, float(np.ptp(labels)))
        else:
            same = ours.argmax(1) == theirs.argmax(1)
        return cls(len(ours), float(apart.max()), extent, float(same.mean()))


def export(job: Job) -> dict[str, Any]:
    """Write the packed model at `job.path` in `job.format`, beside it or to `job.out`; give `export.json`.

    The artefact is read back by its own reader, and compared with the packed model on the task's validation split,
    before anything is where it is asked for.

    Raises:
        ValueError: there is no path or format, packages are missing, the format cannot carry a layer (each is named),
            or the directory is no packed model.
        FileExistsError: `out` is there already and is not an export and nothing else, which would be replaced.
        BusyError: another export to `out` is at work.
        DisagreementError: the artefact does not agree with the packed model; it is kept as `out` with `-differs`.
    """
    if job.path is None or job.format is None:
        raise ValueError("an export needs a packed model, path=RUN or path=RUN/packed, and a format, format=onnx")
    job.format.check_packages()
    path = packed_of(job.path)
    out = Path(job.out).resolve() if job.out is not None else path.with_name(job.format.name)
    model, plan = load_packed(path), CompressionPlan.load(path / PLAN)
    refused = list(job.format.refusals(model, plan))
    if refused:
        raise ValueError(f"{job.format.name} cannot carry {path}:\n  " + "\n  ".join(refused))
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out, is_export, "an export") as directory:
        content = _exported(job, job.format, model, plan, path, directory)
        agreement, tolerance = content["agreement"], job.format.tolerance
        if agreement["equal"] < 1 - tolerance:
            aside = out.with_name(f"{out.name}-differs")
            with replacing(aside, is_export, "an export") as kept:
                shutil.copytree(directory, kept, dirs_exist_ok=True)
            raise DisagreementError(
                f"{job.format.name} does not agree with {path}: {agreement['equal']:.2%} of {agreement['examples']} "
                f"predictions are the same, less than format.tolerance={tolerance} allows; logits differ by up to "
                f"{agreement['difference']:g} in a range of {agreement['range']:g}. It is kept as {aside}; "
                f"format.tolerance={math.ceil(100 * (1 - agreement['equal'])) / 100:g} would take it"
            )
    return {**content, "out": str(out)}


def is_export(directory: Path) -> bool:
    """Whether the directory is empty or an export as it was written, and nothing else."""
    try:
        found = digests_of(directory)
        if not found:
            return True
        files: dict[str, str] = json.loads((directory / EXPORTED).read_text(encoding="utf-8"))["files"]
        return found == {**files, EXPORTED: found[EXPORTED]}
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _exported(
    job: Job, form: Format, model: PreTrainedModel, plan: CompressionPlan, path: Path, directory: Path
) -> dict[str, Any]:
    """Write everything into `directory`, and compare; give the content of `export.json`."""
    threads, size = job.settings.threads, job.settings.eval_batch_size
    if threads is not None:
        torch.set_num_threads(threads)
    display = Display(job.label)
    display.say(f"writing {form.name}")
    model.config.save_pretrained(directory)
    form.write(model, plan, directory)  # which has more to say in the config, or not
    written = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file() and file.name != CONFIG)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    tokenizer.save_pretrained(directory)
    task = in_order(job.task, model.config.id2label)
    examples = encode(task.splits()["validation"], task, tokenizer, job.settings.max_length)
    packed = _logits(lambda batch: _forward(model, batch), examples, size, display, "packed")
    artefact = _logits(form.read(directory, threads), examples, size, display, form.name)
    agreement = Agreement.of(packed, artefact, examples.labels.numpy())
    storage = plan.storage()
    content = {
        "format": 1,
        "form": form.name,
        "tolerance": form.tolerance,
        "plan": plan.fingerprint,
        "task": {"name": job.task.name, "metric": job.task.metric, "validation": agreement.examples},
        "agreement": vars(agreement),
        "scores": {"packed": _scores(task, packed, examples), form.name: _scores(task, artefact, examples)},
        "bytes": {
            "dense": (storage.dense + storage.rest) // 8,
            "packed": (path / WEIGHTS).stat().st_size,
            form.name: written,
        },
        "packages": {name: version(name) for name in form.packages},
        "files": digests_of(directory),
        **provenance(),
    }
    write_text(directory / EXPORTED, json.dumps(content, indent=1) + "\n")
    return content


def _forward(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    logits: Tensor = model(**batch).logits
    return logits


@torch.no_grad()
def _logits(run: Run, examples: Examples, size: int, display: Display, name: str) -> np.ndarray:
    """Logits (examples, outputs), in the examples' order."""

    def forward(indices: list[int]) -> Tensor:
        batch = examples.batch(indices, "cpu")
        del batch["labels"]
        return run(batch).float()

    order = sorted_batches(examples, size)
    stacked = torch.cat(list(display.tracked(map(forward, order), f"validation, {name}", len(order), brief=True)))
    logits = torch.empty_like(stacked)
    logits[[index for indices in order for index in indices]] = stacked
    return logits.numpy()


def _scores(task: Task, logits: np.ndarray, examples: Examples) -> dict[str, float] | None:
    """The task's metrics; None where the model was not made for as many outputs."""
    return task.score(logits, examples.labels.numpy()) if logits.shape[1] == task.outputs else None
