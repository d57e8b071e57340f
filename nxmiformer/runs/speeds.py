"""What a bench found, from the content of its `bench.json`."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nxmiformer.runs import words
from nxmiformer.runs.parse import parse

BENCH, FORMAT = "bench.json", 1
BUSY = 1.1  # times its time on the processor: what takes longer has waited for others
GAIN = 1.05  # times the throughput: what is less gains nothing
Shape = tuple[int, int]  # (batch, length)


class Gain(NamedTuple):
    """How many times the throughput of the baseline a contender has, and at which shape."""

    ratio: float
    name: str
    shape: Shape


def read_bench(directory: str | Path) -> dict[str, Any]:
    """The content of the `bench.json` in a directory, as `job=bench` writes it.

    Raises:
        FileNotFoundError: the directory, or the file, is not there.
        ValueError: the file is damaged or of another format; the message names it.
    """
    path = Path(directory) / BENCH
    content = parse(path.read_bytes(), str(path))
    if content.get("format") != FORMAT:
        raise ValueError(f"{path}: its format is {content.get('format')!r}, not {FORMAT}")
    return content


def timings(content: Mapping[str, Any]) -> dict[Shape, dict[str, Any]]:
    """The timings by contender, of every shape, by length and then batch."""
    cells = {(cell["batch"], cell["length"]): cell["timings"] for cell in content["cells"]}
    return {shape: cells[shape] for shape in sorted(cells, key=lambda shape: shape[::-1])}


def ratios(content: Mapping[str, Any], name: str) -> dict[Shape, float]:
    """How many times the throughput of the baseline a contender has, by shape."""
    return {shape: of[content["baseline"]]["median"] / of[name]["median"] for shape, of in timings(content).items()}


def middle(content: Mapping[str, Any]) -> Shape:
    """The shape in the middle of those that were timed."""
    shapes = list(timings(content))
    lengths = sorted({length for _, length in shapes})
    length = lengths[len(lengths) // 2]
    batches = sorted(batch for batch, each in shapes if each == length)
    return batches[len(batches) // 2], length


def rivals(content: Mapping[str, Any]) -> list[str]:
    """The contenders but the baseline, those that are the control of another left out."""
    found = content["contenders"].items()
    return [name for name, facts in found if name != content["baseline"] and facts["control"] is None]


def best(content: Mapping[str, Any]) -> Gain:
    """What gains most over the baseline at the shape in the middle."""
    shape = middle(content)
    return max(Gain(ratios(content, name)[shape], name, shape) for name in rivals(content))


def headline(content: Mapping[str, Any]) -> str:
    """The finding: what is fastest, by how much, and what gains nothing."""
    top = best(content)
    finding = (
        f"{top.name} is {top.ratio:.1f} times as fast as {content['baseline']}, at {shape_words(top.shape)}"
        if top.ratio >= GAIN
        else f"nothing gains over {content['baseline']} at {shape_words(top.shape)}"
    )
    losers = idle(content)
    return finding + (
        f"; {_listed(losers)} {'gains' if len(losers) == 1 else 'gain'} nothing" if losers and top.ratio >= GAIN else ""
    )


def idle(content: Mapping[str, Any]) -> list[str]:
    """The contenders that gain nothing at any shape."""
    return [name for name in rivals(content) if max(ratios(content, name).values()) < GAIN]


def findings(content: Mapping[str, Any]) -> list[str]:
    """What gains how much, what gains nothing, and what was not measured: a sentence each."""
    base, losers, told = content["baseline"], idle(content), []
    winners = [name for name in rivals(content) if name not in losers]
    for name in sorted(winners, key=lambda name: -ratios(content, name)[middle(content)]):
        all_of = ratios(content, name)
        where = [shape for shape, ratio in all_of.items() if ratio >= GAIN]
        extent = f"{_extent([all_of[shape] for shape in where])} times the throughput of {base}"
        if len(where) == len(all_of):
            told.append(f"{name} gains at every shape: {extent}.")
        else:
            rest = [shape_words(shape) for shape in all_of if shape not in where]
            told.append(f"{name} gains at {len(where)} of {len(all_of)} shapes, {extent}; nothing at {_listed(rest)}.")
    for name in losers:
        extent, how = _extent(ratios(content, name).values()), content["contenders"][name]["how"]
        told.append(f"{name} gains nothing on this device: {extent} times the throughput of {base} ({how}).")
    told += [_control(content, name) for name in content["contenders"]] + [_waited(content)]
    told += [f"{name} is left out: {reason}." for name, reason in content["left_out"].items()]
    if content["too_long"]:
        told.append(f"Too long for the model: {', '.join(map(str, content['too_long']))} tokens.")
    return [sentence for sentence in told if sentence]


def _control(content: Mapping[str, Any], name: str) -> str:
    """What the zeros of an artefact gain, by the one without them.

    By the time of the quickest round on the processor: two that are nearly the same differ less than what else the
    machine does.
    """
    of = content["contenders"][name]["control"]
    if of is None:
        return ""
    quickest = [
        {who: min(timing["processor_seconds"]) for who, timing in each.items()} for each in timings(content).values()
    ]
    gained = [each[name] / each[of] for each in quickest]  # by shape
    mean = statistics.geometric_mean(gained)
    verdict = "gain nothing" if mean < GAIN else "gain"
    return (
        f"The zeros of {of} {verdict}: in the mean {mean:.2f} times the throughput of "
        f"the same grids without a pattern ({_extent(gained)} by shape, of processor time in the quickest round)."
    )


def _waited(content: Mapping[str, Any]) -> str:
    """How far the clock shows the other work of the machine: what each would gain by its time on the processor."""
    if content["threads"] > 1 or not content["device"].endswith("threads"):
        return ""  # of several threads, or a GPU, the time on processors is no time to wait
    at, base = middle(content), content["baseline"]
    of = timings(content)[at]
    waited = of[base]["median"] / of[base]["processor"]
    if waited < BUSY:
        return ""
    gains = [f"{name} {of[base]['processor'] / of[name]['processor']:.2f}" for name in of if name != base]
    return (
        f"The machine was busy: at {shape_words(at)} {base} took {waited:.2f} times its time on the processor. By that "
        f"time the throughputs are, times that of {base}: {', '.join(gains)}."
    )


def shape_words(shape: Shape) -> str:
    """A shape as "batch 8, length 128"."""
    return f"batch {shape[0]}, length {shape[1]}"


def spread(timing: Mapping[str, Any]) -> str:
    """The distance of the quartiles, as a share of the median."""
    low, high = timing["quartiles"]
    return words.percent((high - low) / timing["median"], 0)


def _extent(values: Any) -> str:
    low, high = (f"{end(values):.2f}" for end in (min, max))
    return low if low == high else f"{low} to {high}"


def _listed(names: Sequence[str]) -> str:
    *most, last = names
    return f"{('; ' if ',' in last else ', ').join(most)} and {last}" if most else last
