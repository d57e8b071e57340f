"""The dense model that runs share: it is trained once, and used by all runs that would train the same.

What is shared is a checkpoint of the end of the dense phases, named by everything that it depends on. A run that takes
it resumes there, bit for bit.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from nxmiformer.errors import FileError
from nxmiformer.files import BusyError, alone
from nxmiformer.jobs.job import Job
from nxmiformer.jobs.opening import without_paths
from nxmiformer.jobs.provenance import code, device_name, provenance
from nxmiformer.layers.found import distinct_layers
from nxmiformer.ranks import ranks
from nxmiformer.runs.numbers import METRICS
from nxmiformer.train.checkpoint import Checkpoints, Position, restore_rng
from nxmiformer.train.loop import Stage
from nxmiformer.train.recipe import Phase

NAME = "latest"
PAUSE = 0.2  # seconds between two looks whether another process is done
PASSING = frozenset({"checkpoint_every", "cpu", "threads"})  # of settings: the last two make the name of the device


class Kept:
    """The place of one dense model."""

    def __init__(self, place: Path, key: Mapping[str, Any]) -> None:
        self.place, self.checkpoints = place, Checkpoints(place, key)

    def take(self, stage: Stage) -> Position | None:
        """Put the model into the stage, as if its phases had just been trained; give the position after them.

        None if it does not exist, or is damaged.
        """
        try:
            if self.checkpoints.path(NAME) is None:
                return None
            position, state = self.checkpoints.load(NAME, stage.model)
        except ValueError as error:
            print(f"the dense model in {self.place} is trained again: {error}", flush=True)
            shutil.rmtree(self.checkpoints.root, ignore_errors=True)
            return None
        stage.facts["phases"].update(json.loads(state["facts"])["phases"])
        for row in json.loads(state["rows"]):
            stage.tracker.log(row)
        restore_rng(state["rng"])
        print(f"dense model taken from {self.place}", flush=True)
        return position

    def keep(self, stage: Stage, position: Position, rows: list[dict[str, Any]]) -> None:
        """Save the stage's model, its facts and its rows of metrics, unless the disk is full."""
        state = {"facts": json.dumps(stage.facts), "rows": json.dumps(rows)}
        try:
            self.checkpoints.save(NAME, stage.model, position, state)
        except FileError as error:
            print(f"the dense model is not shared with other runs: {error}", flush=True)
        else:
            print(f"dense model saved for other runs in {self.place}", flush=True)


@contextmanager
def shared(job: Job, stage: Stage, phases: Mapping[str, Phase]) -> Iterator[Kept | None]:
    """The place of the dense model that the phases lead to, for this process alone while the block runs.

    If another process is training it, this waits. None if there is nothing to train, no directory for it, if the job's
    configuration does not determine its phases, or if several processes train it, which add up in another order.
    """
    key = _key(job, stage, phases)
    if job.dense_cache is None or key is None:
        yield None
        return
    if ranks().count > 1:
        print("the dense model is not shared with other runs: several processes train it", flush=True)
        yield None
        return
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    place = Path(job.dense_cache) / digest
    with ExitStack() as held:
        kept: Kept | None = Kept(place, key)
        try:
            held.enter_context(_turn(place))
        except FileError as error:
            print(f"the dense model is not shared with other runs: {error}", flush=True)
            kept = None
        yield kept


def rows_of(job: Job, position: Position) -> list[dict[str, Any]]:
    """The rows of metrics up to the position."""
    rows = map(json.loads, (job.directory / METRICS).read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row["total_step"] <= position.total_step]


@contextmanager
def _turn(place: Path) -> Iterator[None]:
    """As `alone`, but wait for it."""
    with ExitStack() as held:
        told = False
        while True:
            try:
                held.enter_context(alone(place))
                break
            except BusyError:
                if not told:
                    print(f"waiting for the dense model that another run is training, in {place}", flush=True)
                told = True
                time.sleep(PAUSE)
        yield


def _key(job: Job, stage: Stage, phases: Mapping[str, Phase]) -> dict[str, Any] | None:
    """Everything that determines the result of the phases; None if they take no step, or if it is unknown."""
    described = job.config.get("recipe", {}).get("phases", {})
    settings, task = stage.settings, stage.task
    epoch = settings.steps_per_epoch(len(stage.data["train"]))
    if not (phases.keys() <= described.keys() and any(phase.length(epoch).steps for phase in phases.values())):
        return None
    content = stage.checkpoints.identity["content"]
    # A layer that is stored the other way round is multiplied otherwise where its input may be quantized.
    layers = {
        name: layer.transposed and layer.inputs is not None for name, layer in distinct_layers(stage.model).items()
    }
    return {
        "content": {name: digest for name, digest in content.items() if name != "validation"},
        "task": [type(task).__qualname__, task.name, task.metric, without_paths(job.config).get("task")],
        "seed": stage.seed,
        "phases": [[name, described[name]] for name in phases],
        "train": {name: value for name, value in vars(settings).items() if name not in PASSING},
        "layers": layers,
        "tensors": list(stage.model.state_dict()),
        "versions": provenance()["versions"],
        "code": code(),
        "device": [device_name(stage.accelerator.device), torch.backends.cpu.get_cpu_capability()],
    }
