"""The tables of a report, as text cells; the document and the console lay them out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nxmiformer.runs import speeds, words
from nxmiformer.runs.numbers import STAGES, Run

SCORES = (
    "Retained: final / dense, where the dense model is better than chance. One-shot: the dense model projected onto "
    "the same sets, without training. Packed, reloaded: read back from the packed file."
)
STORAGE = (
    "Compression: 1 − stored / float32 bits. Of the layers: the compressed ones only, each row with what is above it. "
    "Of the file: the whole model. On disk: measured, with headers, configuration and tokenizer."
)
LAYERS = (
    "Error: ‖W_dense − W_final‖² / ‖W_dense‖². Gap: ‖W − Z‖ / ‖W‖ when ADMM ended. Density: the share of the weights "
    "that may be non-zero."
)
TRAINING = (
    "Time: wall-clock time, of a phase with calibration and evaluations, of the whole run also with reading, scoring "
    "and packing. Per step: forward, backward and update alone. Memory: the most that the process has in memory while "
    "the phase runs, on a GPU what torch has allocated of it."
)


@dataclass(frozen=True)
class Table:
    """A table of text; the first `named` columns hold words, the others numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    named: int = 1


@dataclass(frozen=True)
class Section:
    """A part of a report: a table, figures by their names, and notes; `folded` is what a page says of a long table that
    it shows when it is asked to."""

    heading: str
    table: Table
    figures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    folded: str = ""


def sections(run: Run) -> list[Section]:
    """The parts of the report that the run has something for, in their order."""
    advice = words.advice(run)
    found = (
        Section("Scores", scores(run), notes=(SCORES,)),
        Section("Storage", storage(run), ("storage",), (STORAGE, *([f"{advice}."] if advice else []))),
        Section("Layers", layers(run), ("heatmap", "units"), (LAYERS,), folded="Every layer"),
        Section("Training", phases(run), ("training", "convergence"), (TRAINING,)),
        Section("Layers left dense", skipped(run), folded="Which, and why"),
    )
    return [section for section in found if section.table.rows]


def shares(run: Run) -> list[tuple[str, str]]:
    """The most important results: the retained score, the size, and the time."""
    measured, above = run.report.storage.bytes, run.report.above_chance
    kept = words.kept(run.report.task.metric, run.report.kept("final"))
    return [
        ("score retained" if above else f"score retained: the dense model is {words.NO_BETTER}", kept),
        (f"of the file, {words.size(measured.dense_model)} when dense", words.size(measured.packed_model)),
        ("of the layers", words.percent(run.report.storage.compression.all) + " smaller"),
        ("wall-clock time", words.duration(run.report.seconds)),
    ]


def scores(run: Run) -> Table:
    """Each stage's metrics, the task's own first, and what it retains of the dense model's; and what chance gives,
    where the dense model is no better."""
    taken = run.report.scores
    stages = [stage for stage in STAGES if stage in taken]
    metrics = dict.fromkeys([run.report.task.metric, *(name for stage in stages for name in taken[stage])])
    rows = [
        (
            STAGES[stage],
            *(words.score(metric, taken[stage].get(metric)) for metric in metrics),
            words.kept(run.report.task.metric, run.report.kept(stage)),
        )
        for stage in stages
    ]
    if run.report.chance is not None and not run.report.above_chance:
        blank = (words.NONE,) * len(metrics)
        rows.append(("chance, up to", words.score(run.report.task.metric, run.report.chance.limit), *blank))
    return Table((f"{run.report.report_on} split", *metrics, "retained"), tuple(rows))


def storage(run: Run) -> Table:
    """The bits, one part after the other added; the bytes on disk are those of whole files."""
    s = run.report.storage
    ratios, measured = s.compression, s.bytes
    whole, weights, none = s.packed_bits + s.rest_bits, words.size(measured.packed_weights), words.NONE
    return Table(
        ("stored", "of", "bits", "compression", "on disk"),
        (
            ("dense", "the layers", _count(s.dense_bits), none, none),
            ("values", "the layers", _count(s.value_bits), words.percent(ratios.values, 2), none),
            ("+ indices", "the layers", _count(s.value_bits + s.index_bits), words.percent(ratios.indices, 2), none),
            ("+ scales", "the layers", _count(s.packed_bits), words.percent(ratios.all, 2), weights),
            ("dense", "the file", _count(s.dense_bits + s.rest_bits), none, words.size(measured.dense_model)),
            ("packed", "the file", _count(whole), words.percent(ratios.model, 2), words.size(measured.packed_model)),
        ),
        named=2,
    )


def blocks(found: Mapping[str, Any]) -> Table:
    """Each block of a decoder that was compressed block by block."""
    rows = []
    for number, block in enumerate(found["blocks"]):
        errors, output = list(block["layers"].values()), block.get("output")
        rows.append(
            (
                str(number),
                f"{block['seconds']:.1f} s",
                f"{sum(errors) / len(errors):.4f}" if errors else "",
                f"{max(errors):.4f}" if errors else "",
                *((f"{output['before']:.4f}", f"{output['after']:.4f}") if output else ("", "")),
            )
        )
    header = ("block", "time", "layers' error, mean", "largest", "block's error", "trained")
    trained = any(row[4] for row in rows)
    return Table(header if trained else header[:4], tuple(row if trained else row[:4] for row in rows))


def sweep(jobs: Sequence[Mapping[str, Any]]) -> Table:
    """The jobs of a sweep, each by its directory and those of its overrides that not all have."""
    common = set.intersection(*(set(job["overrides"]) for job in jobs)) if len(jobs) > 1 else set()
    figures = list(dict.fromkeys(name for job in jobs for name in job["figures"]))
    values = [] if figures else ["value"]
    rows = [
        (
            Path(job["directory"]).name,
            " ".join(word for word in job["overrides"] if word not in common),
            job["state"],
            *(job["figures"].get(name, words.NONE) for name in figures),
            *(words.small(job["value"]) for _ in values),
        )
        for job in jobs
    ]
    return Table(("job", "given", "state", *figures, *values), tuple(rows), named=3)


def phases(run: Run) -> Table:
    """The wall time of each phase and of the whole run, and the time of a step alone."""
    rows = [
        (
            name,
            phase.method,
            str(phase.steps),
            words.duration(phase.seconds),
            _pace(phase.step_seconds),
            words.size(phase.memory),
        )
        for name, phase in run.report.phases.items()
    ]
    steps = sum(phase.steps for phase in run.report.phases.values())
    rows.append(("whole run", "", str(steps), words.duration(run.report.seconds), "", ""))
    return Table(("phase", "method", "steps", "time", "per step", "memory"), tuple(rows), named=2)


def layers(run: Run) -> Table:
    """Every compressed layer: its set, its shape, and how far it is from the dense one."""
    rows = []
    for name, layer in run.report.layers.items():
        spec = run.plan.layers.get(name)
        shape = f"{spec.shape[0]} × {spec.shape[1]}" if spec else words.NONE
        errors = (words.percent(layer.projection_error), words.percent(layer.error), words.small(layer.gap))
        rows.append((name, layer.set, shape, words.percent(layer.kept), *errors))
    header = ("layer", "set", "out × in", "density", "one-shot error", "final error", "gap")
    return Table(header, tuple(rows), named=2)


def skipped(run: Run) -> Table:
    """Every linear layer that stays dense, and why."""
    return Table(("layer", "reason"), tuple(run.plan.skipped.items()), named=2)


def facts(run: Run) -> Table:
    """What the result depends on: data, model, plan, seed, versions, revision and device."""
    r = run.report
    examples = f"{r.task.train:,} train, {r.task.holdout:,} holdout, {r.task.validation:,} validation"
    rows: Sequence[tuple[str, str]] = [
        ("task", f"{r.task.name} ({examples})"),
        *([(r.task.metric, r.task.measured)] if r.task.measured else []),
        ("model", f"{r.model.name} ({r.model.parameters:,} parameters)"),
        ("plan", f"{r.plan.name} ({r.plan.fingerprint})"),
        *([] if run.plan.everything is None else [("everything", str(run.plan.everything))]),
        ("seed", str(r.seed)),
        *_cut(run),
        ("versions", ", ".join(f"{name} {version}" for name, version in r.versions.items())),
        ("revision", r.revision or "unknown"),
        ("device", r.device),
    ]
    return Table(("", ""), tuple(rows), named=2)


def _cut(run: Run) -> list[tuple[str, str]]:
    """How many texts were truncated, if any."""
    counts, task = run.report.cut or {}, run.report.task
    sizes = {"train": task.train, "holdout": task.holdout, "validation": task.validation}
    told = [f"{counts.get(split, 0):,} of {size:,} in {split}" for split, size in sizes.items()]
    return [("texts cut off", ", ".join(told))] if any(counts.values()) else []


def plans(found: Mapping[str, Any]) -> Table:
    """The plans of a search, from the content of its `search.json`; of their trials the last, where there are any."""
    metric, tried = found["task"]["metric"], any(plan["trials"] for plan in found["plans"])
    timed = found.get("latency") is not None
    rows = [
        (
            plan["name"],
            words.size(plan["bits"] / 8),
            *((words.latency(words.spent(found, plan)),) if timed else ()),
            words.small(plan["predicted"]),
            words.small(plan["divergence"]),
            words.score(metric, plan["score"]),
            *((_trained(metric, plan["trials"]),) if tried else ()),
        )
        for plan in found["plans"]
    ]
    header = ("plan", "of the\nlayers", *(("latency",) if timed else ()), "predicted", "divergence", "one-shot")
    header += ("trained",) if tried else ()
    return Table(header, tuple(rows))


def _trained(metric: str, trials: Sequence[Sequence[float]]) -> str:
    """The score of the last trial, and its steps: a longer header would fold the names of plans at 80 columns."""
    return f"{words.score(metric, trials[-1][1])} ({trials[-1][0]})" if trials else words.NONE


def _count(bits: int) -> str:
    return f"{bits:,}"


def _pace(seconds: float | None) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds else words.NONE


def export(content: Mapping[str, Any]) -> Table:
    """The dense model, the packed one and the artefact: their bytes, and what is the same as of the packed one."""
    form, metric, agreement = content["form"], content["task"]["metric"], content["agreement"]
    rows = []
    for name, nbytes in content["bytes"].items():
        taken = (content["scores"].get(name) or {}).get(metric)
        same = (words.percent(agreement["equal"], 2), f"{agreement['difference']:.2g}")
        rows.append(
            (name, words.size(nbytes), words.score(metric, taken), *(same if name == form else (words.NONE,) * 2))
        )
    return Table(("model", "file", metric, "same predictions", "largest difference"), tuple(rows))


def contenders(found: Mapping[str, Any]) -> Table:
    """What was timed, from the content of a `bench.json`, with its figures at the shape in the middle."""
    taken = speeds.timings(found)[speeds.middle(found)]
    rows = []
    for name, facts in found["contenders"].items():
        timing, memory = taken[name], found["memory"].get(name)
        rows.append(
            (
                name,
                words.latency(timing["median"]),
                speeds.spread(timing),
                f"{timing['throughput']:.3g}",
                f"{timing['ratio']:.2f}",
                words.size(memory and (memory["device"] or memory["host"])),
                words.size(facts["bytes"]),
            )
        )
    return Table(("", "latency", "spread", "per s", "times", "memory", "file"), tuple(rows))


def throughputs(found: Mapping[str, Any]) -> Table:
    """The throughput of every contender over the baseline's, a row a shape, from the content of a `bench.json`."""
    names = [name for name in found["contenders"] if name != found["baseline"]]
    rows = [
        (
            f"{batch} × {length}",
            words.latency(of[found["baseline"]]["median"]),
            *(f"{of[n]['ratio']:.2f}" for n in names),
        )
        for (batch, length), of in speeds.timings(found).items()
    ]
    folded = [name.replace(" ", "\n") for name in (found["baseline"], *names)]
    return Table(("batch ×\nlength", *folded), tuple(rows))
