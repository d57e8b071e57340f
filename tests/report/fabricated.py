"""Runs that never were: directories as a finished run leaves them, of any size, within milliseconds."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nxmiformer.layers.targets import Target
from nxmiformer.plan.compression import CompressionPlan, LayerSpec
from nxmiformer.search.budget import Budget
from nxmiformer.search.candidates import Choice
from nxmiformer.search.knapsack import Knapsack
from nxmiformer.search.search import Found, Scored
from nxmiformer.search.table import Assignment, Table
from nxmiformer.sets import NM, ConstraintSet, Grid, Then, Unstructured
from nxmiformer.sets.words import from_words

JOINT = Then(NM(2, 4), Grid(4))
BERT = {
    "attention.self.query": (64, 64),
    "attention.self.key": (64, 64),
    "attention.self.value": (64, 64),
    "attention.output.dense": (64, 64),
    "intermediate.dense": (256, 64),
    "output.dense": (64, 256),
}
PHASES = {"dense": ("dense", 200), "admm": ("admm", 300), "finish": ("fixed_mask", 100)}
PLANS = {
    "int8": (Grid(8), 1.0),
    "int4": (Grid(4), 0.995),
    "2of4_int8": (Then(NM(2, 4), Grid(8)), 0.998),
    "2of4_int4": (JOINT, 0.99),
    "1of4_int8": (Then(NM(1, 4), Grid(8)), 0.97),
    "1of4_int4": (Then(NM(1, 4), Grid(4)), 0.95),
}
GAPS = {"admm": 0.061, "finish": 0.0012}  # when the phase ended
TASKS = {"stsb": "pearson", "mrpc": "f1"}
CANDIDATES = ("int8", "int4", "2:4+int8", "2:4+int4", "1:4+int4")  # of a search
Assign = Callable[[int, str], ConstraintSet | None]


def alike(index: int, component: str) -> ConstraintSet | None:
    """The same set everywhere."""
    return JOINT


def mixed(index: int, component: str) -> ConstraintSet | None:
    """Several sets, and a layer left dense."""
    if index == 0 and component.endswith("value"):
        return None
    if component == "output.dense":
        return Then(NM(1, 4), Grid(4, group=16))
    return Grid(8) if component.endswith("query") else Unstructured(0.25) if index == 1 else JOINT


def write_run(
    directory: Path,
    assign: Assign = alike,
    layers: int = 2,
    components: dict[str, tuple[int, int]] = BERT,
    prefix: str = "bert.encoder.layer",
    phases: dict[str, tuple[str, int]] = PHASES,
    rest: int = 40_000,
    config: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write a run's four files; `changes` replace keys of the report. Returns `directory`."""
    draw = random.Random(0)
    directory.mkdir(parents=True, exist_ok=True)
    specs = {}
    skipped = {"bert.pooler.dense": "it is outside the model's repeated blocks", "classifier": "the same"}
    for index in range(layers):
        for component, shape in components.items():
            name, weight = f"{prefix}.{index}.{component}", assign(index, component)
            if weight is None:
                skipped[name] = "the plan leaves it dense"
            else:
                specs[name] = LayerSpec(weight, shape)
    plan = CompressionPlan(specs, skipped, rest)
    plan.save(directory / "plan.json")
    rows = _rows(draw, phases, list(specs))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = {**_report(draw, plan, phases, "admm" in phases), **changes}
    (directory / "report.json").write_text(json.dumps(report), encoding="utf-8")
    named = {"name": report["name"], "seed": report["seed"], "report_on": report["report_on"]}
    named |= {"task": {"name": report["task"]["name"]}, "plan": {"name": report["plan"]["name"]}}
    record = {"revision": report["revision"], "config": {**named, "resume": False, **(config or {})}}
    (directory / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return directory


def write_sweep(
    directory: Path,
    plans: dict[str, tuple[ConstraintSet, float]] = PLANS,
    tasks: dict[str, str] = TASKS,
    seeds: int = 3,
    shape: tuple[int, int] = (64, 64),
) -> Path:
    """Write a run for each task, plan and seed into numbered directories; returns `directory`.

    `plans` give each plan's set and about which share of the dense score it keeps; `tasks` each task's metric.
    """
    draw = random.Random(0)
    cells = [(task, plan, seed) for task in tasks for plan in plans for seed in range(seeds)]
    for number, (task, plan, seed) in enumerate(cells):
        metric, (weight, kept) = tasks[task], plans[plan]
        dense = 0.86 + draw.gauss(0, 0.002)
        final = dense * kept + draw.gauss(0, 0.003 + 0.05 * (1 - kept))
        write_run(
            directory / str(number),
            lambda *_, weight=weight: weight,
            layers=1,
            components={"query": shape, "key": shape},
            phases={"dense": ("Dense", 4), "admm": ("Admm", 6)},
            name=f"{task}-{plan}-{seed}",
            seed=seed,
            task={"name": task, "metric": metric, "train": 100, "holdout": 10, "validation": 10},
            plan={"name": plan, "fingerprint": f"{list(plans).index(plan):016x}"},
            scores={"dense": {metric: dense}, "one_shot": {metric: 0.5}, "final": {metric: final}}
            | {"packed": {metric: final}},
            retention=final / dense,
            config={"model": {"path": "tiny"}, "train": {"batch_size": 32}},
        )
    return directory


def _rows(draw: random.Random, phases: dict[str, tuple[str, int]], names: list[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    total = 0
    for phase, (_, steps) in phases.items():
        for step in range(1, steps + 1):
            total += 1
            at = step / steps
            row: dict[str, Any] = {"phase": phase, "step": step, "total_step": total, "seconds": 0.05 * total}
            loss = {"dense": 0.9 * math.exp(-4 * at) + 0.22, "admm": 0.22 + 0.3 * math.exp(-5 * at)}.get(phase, 0.23)
            rows.append({**row, "loss": loss * draw.lognormvariate(0, 0.2), "lr": 1e-3 * (1 - at)})
            if phase == "admm":
                update = step - step % 10
                fade = math.exp(-6 * update / steps)
                noise = draw.lognormvariate(0, 0.08)
                rows[-1] |= {"gap": 0.33 * fade * noise, "dual": 0.1 * fade, "rho": 1e-3 * (1 + at)}
                rows[-1]["flips"] = 0.03 * math.exp(-9 * update / steps) * noise if at < 0.8 else 0.0
                if step % 30 == 0:
                    for i, name in enumerate(names):
                        each = 0.33 * fade * (0.5 + 1.2 * i / len(names)) * draw.lognormvariate(0, 0.1)
                        rows[-1] |= {f"gap/{name}.weight": each, f"flips/{name}.weight": 0.01 * fade}
            if step % 50 == 0:
                best = {"dense": 0.9128 - 0.3 * math.exp(-5 * at), "admm": 0.86 + 0.035 * at}.get(phase, 0.902)
                rows.append({**row, "holdout/accuracy": best + draw.gauss(0, 0.002), "holdout/loss": 1 - best})
    return rows


def _report(
    draw: random.Random, plan: CompressionPlan, phases: dict[str, tuple[str, int]], trained: bool
) -> dict[str, Any]:
    storage = plan.storage()
    dense, packed = (storage.dense + storage.rest) // 8, (storage.total + storage.rest) // 8
    scores = {"dense": {"accuracy": 0.9128, "loss": 0.2213}, "one_shot": {"accuracy": 0.8411, "loss": 0.4102}}
    if trained:
        scores |= {"final": {"accuracy": 0.9028, "loss": 0.2467}, "packed": {"accuracy": 0.9028, "loss": 0.2467}}
    layers = {}
    for name, spec in plan.layers.items():
        joint = spec.weight.sparsity is not None
        error = (0.11 if joint else 0.004) * draw.uniform(0.5, 1.6)
        kept = spec.weight.sparsity.kept(spec.shape) / (spec.shape[0] * spec.shape[1]) if joint else 1.0
        layers[name] = {"set": str(spec.weight), "error": error, "gap": 0.001 if trained else None, "kept": kept}
        layers[name]["projection_error"] = error * 0.8
    return {
        "format": 1,
        "report_on": "validation",
        "name": "sentiment-joint",
        "command": "nxmiformer run task=sst2 plan=joint seed=7",
        "seed": 7,
        "task": {
            "name": "sst2",
            "metric": "accuracy",
            "train": 67_349,
            "holdout": 872,
            "validation": 1_000,
            "measured": "",
        },
        "model": {"name": "bert-tiny", "parameters": dense // 4},
        "plan": {"name": "joint", "fingerprint": plan.fingerprint},
        "scores": scores,
        "retention": 0.9028 / 0.9128 if trained else None,
        "storage": {
            "dense_bits": storage.dense,
            "value_bits": storage.values,
            "index_bits": storage.indices,
            "scale_bits": storage.scales,
            "rest_bits": storage.rest,
            "compression": storage.compression,
            "left": {"embeddings": storage.rest * 3 // 4, "head": storage.rest // 8},
            "bytes": {
                "dense_model": dense + 1_192,
                "packed_model": packed + 2_408,
                "packed_weights": storage.total // 8,
            },
        },
        "layers": layers,
        "phases": {
            phase: {
                "method": m,
                "steps": n,
                "seconds": 0.05 * n + 9,
                "step_seconds": 0.043,
                "memory": 1_234_000_000 + n,
                "gap": GAPS.get(phase, 0.0),
            }
            for phase, (m, n) in phases.items()
        },
        "versions": {"python": "3.12.3", "torch": "2.13.0", "nxmiformer": "0.1.0"},
        "revision": "a91d6e8",
        "device": "cpu",
        "seconds": 64.5,
    }


def write_found(
    directory: Path,
    layers: int = 2,
    components: dict[str, tuple[int, int]] = BERT,
    sets: tuple[str, ...] = CANDIDATES,
    ratio: float = 0.08,
    budgets: int = 4,
    **changes: Any,
) -> Path:
    """Write the `search.json` and `plan.json` of a search that found plans for so many further `budgets`;
    `changes` replace keys of the former. Returns `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    shapes = {f"bert.encoder.layer.{i}.{name}": shape for i in range(layers) for name, shape in components.items()}
    choices = [Choice((Target(name, shape),), tuple(map(from_words, sets))) for name, shape in shapes.items()]
    damages, budget = _damages(choices), Budget(ratio)
    table, limit = Table.of(choices, damages, budget.of), budget.bits(sum(a * b for a, b in shapes.values()), 0)
    uniform = {f"uniform {words}": each for words, each in table.uniform().items()}
    costs = [table.cost(each) for each in uniform.values()]
    best = {f"knapsack {n}": each for n, each in enumerate(Knapsack()(table, limit, 3), 1)}
    plans = _scored(table, best | {name: each for name, each in uniform.items() if table.cost(each) <= limit})
    limits = [int(min(costs) * (max(costs) / min(costs)) ** (n / budgets)) for n in range(budgets)]
    searched = {f"searched {each / 8:.0f} bytes": Knapsack()(table, each, 1)[0] for each in limits}
    others = _scored(table, uniform | searched) if budgets else ()
    query, key, value, *_ = shapes
    pairs = ((query, value, 0.04, 0.01), (query, key, 0.03, 0.02))
    found = Found(plans[0], plans, others, damages, pairs, limit)
    plan = CompressionPlan({name: LayerSpec(each, shapes[name]) for name, each in plans[0].sets.items() if each})
    plan.save(directory / "plan.json")
    head = {"format": 1, "name": "found", "seed": 0, "task": {"name": "sst2", "metric": "accuracy"}}
    head |= {"asked": str(budget), "accounting": "all", "plan": plan.fingerprint, "dense": 0.92, "seconds": 3.5}
    (directory / "search.json").write_text(json.dumps({**head, **found.to_dict(), **changes}), encoding="utf-8")
    return directory


def _damages(choices: list[Choice]) -> dict[str, dict[str, float]]:
    """Less the deeper the layer is, and the more bits the set takes."""
    draw, damages = random.Random(0), {}
    for number, choice in enumerate(choices):
        (layer,) = choice.layers
        scale = 0.1 * math.exp(-4 * number / len(choices)) * draw.lognormvariate(0, 0.8)
        bits = {str(each): each.storage(layer.shape).total / math.prod(layer.shape) for each in choice.sets if each}
        damages[layer.name] = {words: scale * math.exp(-1.6 * b) * draw.uniform(0.6, 1.6) for words, b in bits.items()}
    return damages


def _scored(table: Table, assignments: dict[str, Assignment]) -> tuple[Scored, ...]:
    """The assignments by name, with a divergence that is about what was predicted; the same one has the same."""
    found = []
    for name, each in assignments.items():
        draw = random.Random(repr(each))
        divergence = 4 * table.predicted(each) ** 1.2 * draw.lognormvariate(0, 0.4)
        score = 0.5 + 0.42 * math.exp(-divergence) + draw.gauss(0, 0.002)
        cost = table.cost(each)
        found.append(Scored(name, table.sets(each), cost, cost, table.predicted(each), divergence, score))
    return tuple(found)
