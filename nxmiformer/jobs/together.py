"""What several processes of one run can do together."""

import os
from collections.abc import Iterator

import torch

from nxmiformer.jobs.job import Job
from nxmiformer.methods.obert import Obert
from nxmiformer.ranks import ranks

SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")  # by `accelerate launch`


def check_together(kind: str, job: Job) -> None:
    """Raise a ValueError that names whatever in the job takes a single process, where there are several."""
    if ranks().count == 1:
        return
    wrong = list(_alone(kind, job))
    if wrong:
        count = ranks().count
        raise ValueError("\n  ".join([f"WORLD_SIZE={count}: {count} processes cannot run this job together:", *wrong]))


def _alone(kind: str, job: Job) -> Iterator[str]:
    count, settings = ranks().count, job.settings
    if kind != "compress":
        yield f"job={kind} takes one process"
    if job.budget.given:
        yield "a budget takes one process, which searches: give the plan that it found, plan.path=SEARCH/plan.json"
    if settings.compile:
        yield "train.compile=true takes one process"
    if settings.batch_size < count:
        yield f"train.batch_size={settings.batch_size} is for all of them, and each needs an example"
    for name, phase in job.recipe.phases.items():
        if isinstance(phase.method, Obert) and phase.method.gradients:
            yield f"recipe.phases.{name}.method=Obert takes one process: its Fisher information is not shared out"
    here, devices = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if devices and not settings.cpu and here > devices:
        yield f"there are {devices} GPUs for {here} processes: start as many, or give train.cpu=true"
    for name in SHARDING:
        if os.environ.get(name, "").lower() in ("1", "true"):
            yield f"{name}=true shards the model, which stays whole here: configure accelerate without it"
