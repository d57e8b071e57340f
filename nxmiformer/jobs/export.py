"""Write a packed model in another format, once the result agrees with the packed model."""

import json
import math
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from nxmiformer.console.display import Display
from nxmiformer.export.agreement import Comparison, DisagreementError
from nxmiformer.export.format import Format, Run
from nxmiformer.export.manifest import CONFIG, EXPORTED, PLAN, WEIGHTS
from nxmiformer.export.packed import load_packed
from nxmiformer.files import digests_of, replacing, write_text
from nxmiformer.jobs.job import Job
from nxmiformer.jobs.origin import packed_of
from nxmiformer.jobs.provenance import provenance
from nxmiformer.models.labels import classes_of
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.tasks.units import Outputs
from nxmiformer.train.evaluate import Answers, side_by_side


def export(job: Job) -> dict[str, Any]:
    """Write the packed model at `job.path` in `job.format`, beside it or to `job.out`; give `export.json`.

    The artefact is read back by its own reader, and compared with the packed model on the task's validation split. Only
    then is it moved to `out`.

    Raises:
        ValueError: there is no path or format, packages are missing, the format cannot represent a layer (each is
            named), or the directory is not a packed model.
        FileExistsError: `out` exists and is not an export alone. An export would be replaced.
        BusyError: another export to `out` is running.
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
        raise ValueError(f"{job.format.name} cannot represent {path}:\n  " + "\n  ".join(refused))
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out, is_export, "an export") as directory:
        content = _exported(job, job.format, model, plan, path, directory)
        agreement, tolerance = content["agreement"], job.format.tolerance
        if agreement["equal"] < 1 - tolerance:
            aside = out.with_name(f"{out.name}-differs")
            with replacing(aside, is_export, "an export") as kept:
                shutil.copytree(directory, kept, dirs_exist_ok=True)
            raise DisagreementError(
                f"{job.format.name} does not agree with {path}: {agreement['equal']:.2%} of {agreement['units']} "
                f"predictions are the same, less than format.tolerance={tolerance} allows; logits differ by up to "
                f"{agreement['difference']:g} in a range of {agreement['range']:g}. It is kept as {aside}; "
                f"format.tolerance={math.ceil(100 * (1 - agreement['equal'])) / 100:g} would accept it"
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
    task = job.task.in_order(classes_of(model.config))
    examples = task.encode(task.splits()["validation"], tokenizer, job.settings.max_length, model.config)
    runs = {"packed": _forward(model), form.name: form.read(directory, threads)}
    answers = {name: Answers(task, examples) for name in runs}
    name, comparison = f"validation, packed and {form.name}", Comparison()
    for pair in side_by_side([*runs.values()], [*answers.values()], size, "cpu", display, name):
        comparison.add(*(units for _, _, units in pair))
    agreement = comparison.agreement()
    storage = plan.storage()
    content = {
        "format": 1,
        "form": form.name,
        "tolerance": form.tolerance,
        "plan": plan.fingerprint,
        "task": {"name": task.name, "metric": task.metric, "validation": len(examples)},
        "agreement": vars(agreement),
        "scores": {name: each.score() for name, each in answers.items()},
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


def _forward(model: PreTrainedModel) -> Run:
    def run(inputs: Mapping[str, Tensor]) -> Outputs:
        outputs: Outputs = model(**inputs)
        return outputs

    return run
