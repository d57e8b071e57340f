"""Numbers in words, the same in the console, the document and the figures."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from nxmiformer.runs.numbers import Run
from nxmiformer.tasks.scale import better, scale
from nxmiformer.tasks.task import Chance

NONE = "–"
NO_BETTER = "no better than chance"


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction as "98.9 %"; a dash where there is none."""
    if fraction is None or not math.isfinite(fraction):
        return NONE
    return f"{100 * fraction:.{digits}f} %".replace("-", "−")


def lower_is_better(metric: str) -> bool:
    """Whether a metric is better the lower it is, as a loss is."""
    return better(metric) == "lower"


def score(metric: str, value: float | None) -> str:
    """A score: a share as a percentage, anything else as it is."""
    if value is None or not math.isfinite(value):
        return NONE
    large = f"{value:,.0f}" if value < 1e6 else f"{value:.2g}"
    forms = {"loss": f"{value:.4f}", "points": f"{value:.2f}", "perplexity": f"{value:.2f}" if value < 1000 else large}
    return forms.get(scale(metric)) or percent(value, 2)


def kept(metric: str, ratio: float | None, digits: int = 1) -> str:
    """A score over the dense model's: "98.9 %"; where lower is better "1.13 ×", of a perplexity with the rise of its
    logarithm, "1.13 × (+0.12)"."""
    if ratio is None or not math.isfinite(ratio):
        return NONE
    if not lower_is_better(metric):
        return percent(ratio, digits)
    rise = f" ({math.log(ratio):+.2f})".replace("-", "−") if scale(metric) == "perplexity" and ratio > 0 else ""
    return f"{ratio:.3g} ×{rise}"


def results(content: Mapping[str, Any]) -> dict[str, str]:
    """What the card of a packed model says of its run, by what it is called; of the content of a `report.json`."""
    task, scores = content["task"], content["scores"]
    names = {"dense": "dense", "one_shot": "one-shot, without training", "packed": "packed"}
    return {
        "task": f"{task['name']}, {content['report_on']}",
        **{
            f"{task['metric']}, {names[key]}": score(task["metric"], scores[key][task["metric"]])
            for key in names
            if key in scores
        },
        "retained of the dense score": _kept(content),
        "command": f"`{content['command']}`",
        "revision": content["revision"] or NONE,
    }


def _kept(content: Mapping[str, Any]) -> str:
    share = content["retention"]
    return kept(content["task"]["metric"], share, 2) if share is not None else f"{NONE}: the dense model is {NO_BETTER}"


def no_better(metric: str, value: float, chance: Chance) -> str:
    """That the dense model's score is no better than chance."""
    about = f"{score(metric, chance.score)} ± {score(metric, chance.error)}"
    return f"the dense model, with {score(metric, value)} {metric}, is {NO_BETTER} ({about})"


def outcome(content: Mapping[str, Any]) -> dict[str, str]:
    """A run on one line of a table, of the content of a `report.json`."""
    task, scores = content["task"], content["scores"]
    metric: str = task["metric"]
    return {
        f"dense {metric}": score(metric, scores["dense"][metric]),
        f"packed {metric}": score(metric, scores["packed"][metric]),
        "retained": kept(metric, content["retention"]),
        "of the file": size(content["storage"]["bytes"]["packed_model"]),
    }


def size(nbytes: float | None) -> str:
    """Bytes with three digits and a decimal unit: "37.4 MB"; a dash where it is not known."""
    if nbytes is None:
        return NONE
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5 or unit == "GB":
            break
        nbytes /= 1000
    return f"{nbytes:.0f} B" if unit == "B" else f"{_three(nbytes)} {unit}"


def latency(seconds: float) -> str:
    """A time with three digits: "35.1 ms", "1.29 s"."""
    return f"{_three(seconds)} s" if seconds >= 0.9995 else f"{_three(1000 * seconds)} ms"


def _three(value: float) -> str:
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}"


def duration(seconds: float) -> str:
    """A wall time: "0.8 s", "41 s", "3 min 12 s", "1 h 02 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def small(value: float | None) -> str:
    """A number with two significant digits."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.2g}"


def file_share(shrinkage: float) -> str:
    """The size of the packed model as a share of the dense file: "1/7.1 of the file"."""
    if shrinkage < 1.05:
        return f"{1 / shrinkage:.2f}× the file"
    return f"1/{shrinkage:.{0 if shrinkage >= 9.95 else 1}f} of the file".replace(".0 ", " ")


def sized(nbytes: float, of: str) -> str:
    """Bytes, and what they are bytes of: "37.4 MB of the file"."""
    return f"{size(nbytes)} of the {of}"


def points(metric: str, difference: float) -> str:
    """A difference of scores without its sign: "1.0 points", of 100; of a loss, "0.0123"."""
    if lower_is_better(metric):
        return score(metric, abs(difference))
    return f"{abs(difference) * (100 if scale(metric) == 'share' else 1):.1f} points"


def subject(run: Run) -> str:
    """What compressed the model: its one set, or the plan's name and how many sets it has."""
    if len(run.sets) == 1:
        return next(iter(run.sets))
    return f"{run.report.plan.name} ({len(run.sets)} sets)"


def headline(run: Run) -> str:
    """The finding: how much of the score is retained, in which share of the file (both as measured)."""
    metric, space = run.report.task.metric, file_share(run.shrinkage)
    if run.score("final") is not None and not run.report.above_chance:
        return f"{subject(run)} retains {NONE} of {metric} in {space}: the dense model is {NO_BETTER}"
    if run.score("final") is not None and run.report.retention is not None:
        if lower_is_better(metric):
            return f"{subject(run)} has {kept(metric, run.report.retention)} the {metric} of the dense model in {space}"
        return f"{subject(run)} retains {percent(run.report.retention)} of {metric} in {space}"
    if (one_shot := run.score("one_shot")) is not None:
        return f"{subject(run)} in one shot leaves {score(metric, one_shot)} {metric} in {space}"
    return f"{subject(run)} stores the model in {space}"


def advice(run: Run) -> str:
    """Where most of the packed file is what the plan leaves dense: the override that packs embeddings and head too."""
    s = run.report.storage
    left = {part: bits for part, bits in s.left.items() if bits}
    if s.rest_bits <= s.packed_bits or not left:
        return ""
    share, whole = percent(s.rest_bits / (s.rest_bits + s.packed_bits), 0), s.rest_bits + s.packed_bits
    parts = " and ".join(f"{part} ({percent(bits / whole, 0)} of the file)" for part, bits in left.items())
    overrides = " ".join(f"plan.{part}=int4" for part in left)
    return f"{share} of the packed file is what the plan leaves dense; {overrides} packs {parts} too"


def amount(found: Mapping[str, Any], cost: float) -> float:
    """What layers cost, in the unit of the search's figures: bytes of the layers; of a budget of latency seconds of the
    whole model."""
    timed = found.get("latency")
    return cost / 8 if timed is None else (cost + timed["rest"]) / 1e9


def spent(found: Mapping[str, Any], plan: Mapping[str, Any]) -> float:
    """What a plan of the search costs, as `amount` has it."""
    return amount(found, plan.get("cost", plan["bits"]))


def said(found: Mapping[str, Any]) -> Callable[[float], str]:
    """How such an amount is written: "37.4 MB", "35.1 ms"."""
    return size if found.get("latency") is None else latency


def limit(found: Mapping[str, Any]) -> str:
    """The budget of a search: "1.2 MB of the layers", "35.1 ms"."""
    value = amount(found, found["budget"])
    return sized(value, "layers") if found.get("latency") is None else latency(value)


def search_headline(found: Mapping[str, Any]) -> str:
    """The finding of a search, from the content of its `search.json`: what the best plan does without training."""
    best, metric = found["best"], found["task"]["metric"]
    others = [plan["divergence"] for plan in found["plans"] if plan["name"].startswith("uniform")]
    against = ""
    if others and min(others) > best["divergence"] > 0:
        against = f", {min(others) / best['divergence']:.1f} times closer to the dense one than any uniform plan"
    took, most = map(said(found), (spent(found, best), amount(found, found["budget"])))
    of = f"{took} of the layers' {most}" if found.get("latency") is None else f"predicted {took} of {most}"
    return f"{of}: {score(metric, best['score'])} {metric}{against}{search_caveat(found)}"


def search_caveat(found: Mapping[str, Any]) -> str:
    """What is to be said beside the scores of a search whose dense model is no better than chance, else nothing."""
    chance = found.get("chance")
    return "" if chance is None or Chance(**chance).beaten(found["dense"]) else f"; the dense model is {NO_BETTER}"


def export_headline(content: Mapping[str, Any]) -> str:
    """The finding of an export, from the content of its `export.json`: how far the artefact agrees, and its size."""
    form, agreement, nbytes = content["form"], content["agreement"], content["bytes"]
    return (
        f"{form} gives {percent(agreement['equal'], 2)} of {agreement['units']} predictions as the packed model "
        f"does, in a file of {size(nbytes[form])}"
    )


def blockwise_headline(content: Mapping[str, Any]) -> str:
    """What a decoder that was compressed block by block scores, from the content of its `blocks.json`."""
    metric, nbytes = content["task"]["metric"], content["bytes"]
    dense, packed = (content["scores"][name][metric] for name in ("dense", "packed"))
    return (
        f"{score(metric, packed)} {metric} in {size(nbytes['packed_model'])}, dense {score(metric, dense)} in "
        f"{size(nbytes['dense_model'])}, on windows of {content['tokens']} tokens"
    )


def blockwise_memory(content: Mapping[str, Any]) -> str:
    """The memory that was predicted, and the one that was measured, beside what was taken before."""
    told, found = content["memory"]["predicted"], content["memory"]["measured"]
    parts = []
    for part in ("blocks", "scoring"):
        taken = "not measured here" if found[part] is None else f"{size(found[part])} measured"
        parts.append(f"{part} {size(told[part])} predicted, {taken}")
    return f"Memory: {'; '.join(parts)}."
