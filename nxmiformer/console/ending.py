"""What a command says at its end: where the result is and what to do with it, or how to continue."""

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

STOPPED = "nxmiformer: stopped; nothing was started"
NEXT = "next:"  # what parts the places from the commands
PASSED = ("job", "budget", "search", "plan", "sensitivity", "name", "out", "resume", "overwrite")  # of a search's words


def compressed(run: Path, report: str = "report.html") -> list[str]:
    """The last lines of a run in this directory, whose report has this name."""
    packed = _near(run / "packed")
    return _told(
        {"report": _near(run / report), "packed model": packed},
        {
            command([], "job=export", "format=onnx", f"path={_near(run)}"): "in another format",
            command([], "job=bench", f"path={_near(run)}"): "its speed and its memory",
            _python("import nxmiformer", f'nxmiformer.load_packed("{packed}")'): "load it",
        },
    )


def searched(directory: Path, words: Sequence[str], name: str) -> list[str]:
    """The last lines of a search called `name`, whose command had these words."""
    plan = _near(directory / "plan.json")
    groups = {word: re.split("[.@]", _key(word))[0] for word in words}
    kept = [word for word in words if groups[word] not in PASSED]
    # What named the search would give its name, and so its directory, to the run too.
    named = [f"name={name}-compressed"] if {"name", "experiment"} & {*groups.values()} else []
    then = command(kept, f"plan.path={plan}", *named)
    return _told({"plan": plan, "figures": _near(directory / "figures")}, {then: "compress the model with it"})


def exported(form: str, out: Path, path: str, head: str) -> list[str]:
    """The last lines of an export of `path` to `out`; `head` is the task's `Auto` class of `transformers`."""
    reading = {
        "onnx": _python("import onnxruntime", f'onnxruntime.InferenceSession("{_near(out / "model.onnx")}")'),
        "compressed_tensors": _python("import transformers", f'transformers.{head}.from_pretrained("{_near(out)}")'),
    }
    read = {reading[form]: "load it"} if form in reading else {}
    return _told({form: _near(out)}, {**read, command([], "job=bench", f"path={path}"): "its speed"})


def benched(out: Path, path: str) -> list[str]:
    """The last lines of a bench of `path` in `out`."""
    more = command([], "job=bench", f"path={path}", "bench.batches=[64]", "resume=true")
    return _told({"bench": _near(out / "bench.json"), "figure": _near(out / "figures")}, {more: "another shape"})


def interrupted(words: Iterable[str], *more: str) -> str:
    """The line that says how to continue a stopped command: with the same words, and `more`."""
    kept = [word for word in words if _key(word) != "overwrite"]  # which would start again
    return f"nxmiformer: stopped; this continues it: {command(kept, *more, 'resume=true')}"


def command(words: Iterable[str], *more: str) -> str:
    """The command line of these words, but with `more` instead of what they say of the same keys."""
    given = {_key(word) for word in more}
    return shlex.join(["nxmiformer", *(word for word in words if _key(word) not in given), *more])


def _told(places: Mapping[str, str], commands: Mapping[str, str]) -> list[str]:
    """A line for each place, and for each command with what it is for."""
    found = [f"{name}: {place}" for name, place in places.items()]
    return [*found, NEXT, *(f"  {each}    # {what}" for each, what in commands.items())]


def _python(imported: str, expression: str) -> str:
    return f"python: {imported}; model = {expression}"


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _near(path: Path) -> str:
    """The path from here, where that is shorter."""
    return min(str(path.absolute()), os.path.relpath(path), key=len)
