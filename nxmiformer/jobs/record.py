"""The content of a run's report.json."""

from dataclasses import asdict
from typing import Any

from torch import nn

from nxmiformer.export.packed import PackedSize
from nxmiformer.jobs.job import Job
from nxmiformer.jobs.phases import errors
from nxmiformer.jobs.provenance import device_name, provenance
from nxmiformer.layers.compact import left_of
from nxmiformer.layers.found import distinct_layers
from nxmiformer.layers.targets import find_embeddings, find_head
from nxmiformer.plan.compression import FLOAT, CompressionPlan
from nxmiformer.train.loop import Stage


def report(job: Job, stage: Stage, plan: CompressionPlan, size: PackedSize, seconds: float) -> dict[str, Any]:
    """The content of report.json of a run that took so many `seconds` of wall-clock time."""
    storage, facts, metric = plan.storage(), stage.facts, job.task.metric
    layers = distinct_layers(stage.model)
    alike = facts.get("dense_alike", True)  # a teacher of another size has no layers to compare with
    distances = errors(job, stage.model) if alike else dict.fromkeys(layers)
    scores, phases = facts["scores"], facts["phases"]
    gaps: dict[str, float] = next(
        (phase["gaps"] for phase in phases.values() if phase["gaps"]), {}
    )  # at the first hard projection
    chance = stage.chance(job.report_on)
    dense_bytes = sum(file.stat().st_size for file in (job.directory / "dense").rglob("*") if file.is_file())
    return {
        "format": 1,
        "name": job.name,
        "seed": job.seed,
        "task": {
            "name": job.task.name,
            "metric": metric,
            **{k: len(v) for k, v in stage.data.items()},
            "measured": job.task.measured(job.settings.max_length),
        },
        "model": {"name": job.source.name, "parameters": (storage.dense + storage.rest) // 32},
        "plan": {"name": job.planning.name, "fingerprint": plan.fingerprint},
        "scores": scores,
        "report_on": job.report_on,
        "chance": asdict(chance),
        "retention": scores["final"][metric] / dense if chance.beaten(dense := scores["dense"][metric]) else None,
        "cut": {name: examples.cut for name, examples in stage.data.items()},
        "storage": {
            "dense_bits": storage.dense,
            "value_bits": storage.values,
            "index_bits": storage.indices,
            "scale_bits": storage.scales,
            "rest_bits": storage.rest,
            "compression": storage.compression,
            "bytes": {"dense_model": dense_bytes, "packed_model": size.total, "packed_weights": size.weights},
            "left": _left(stage.model, plan),
        },
        "layers": {
            name: {
                "set": str(spec),
                "error": distances[name],
                "projection_error": facts["projection_error"][name],
                "gap": gaps.get(name),
                "kept": (layers[name].weight != 0).float().mean().item(),
            }
            for name, spec in plan.layers.items()
        },
        "phases": {name: {k: v for k, v in phase.items() if k != "gaps"} for name, phase in phases.items()},
        **_units(stage.model),
        **provenance(),
        "device": device_name(stage.accelerator.device),
        "seconds": seconds,
    }


def _units(model: nn.Module) -> dict[str, Any]:
    """What compaction would leave of the heads and dimensions of each layer, where it would take any."""
    left = left_of(model)
    fewer = any(kept < full for kinds in left.values() for kept, full in kinds.values())
    return {"units": left} if fewer else {}


def _left(model: nn.Module, plan: CompressionPlan) -> dict[str, int]:
    """Bits of the embeddings and of the head that the plan leaves dense, by the plan's key that has a set for them."""
    around = {"embeddings": find_embeddings(model), "head": find_head(model)}
    return {
        part: FLOAT * sum(t.shape[0] * t.shape[1] for t in targets if t.name not in plan.layers)
        for part, targets in around.items()
    }
