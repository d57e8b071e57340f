"""The command `nxmiformer`: it answers `--help` and `--version` at once, and leaves the rest to `nxmiformer.cli`.

It stands beside the package, because to import anything of the package is to import torch, which takes seconds.
"""

import gc
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

COMMANDS = {
    "nxmiformer experiment=demo": "all steps on a small task, in a few minutes on two cores; nothing to download",
    "nxmiformer task=rte model=pretrained model.path=bert-base-uncased": "compress your model",
    "nxmiformer job=search budget.ratio=0.1": "find sparsity and bits of each layer, for a tenth of their bytes",
    "nxmiformer job=export format=onnx path=RUN/packed": "write the packed model in another format",
    "nxmiformer job=bench path=RUN/packed": "time the packed model, and measure its memory",
    "nxmiformer job=blockwise task=wikitext model=pretrained model.path=DECODER": "compress a decoder block by block",
}
RUNS = "A run leaves its report and its packed model in outputs/NAME/, a sweep (-m) its runs in multirun/."
READING = {
    "nxmiformer --help": "the groups, their options, and the values of a run",
    "nxmiformer --help plan": "the values of a group; --help plan=int4 shows those of an option",
    "docs/": "in the repository: a tutorial, how to choose, every option; see also notebooks/ and experiments/",
}
FLAGS = {
    "--help GROUP": "the values of a group, and what they mean",
    "--help GROUP=OPTION": "the values of another option",
    "-m KEY=A,B ...": "a sweep: one run for each value",
    "--cfg job ...": "print the whole configuration of a command, and run nothing",
    "--version": "the version",
    "--hydra-help": "the flags of Hydra, which reads the command line",
}
INNER = {  # groups that are chosen within another, how, and what they are
    "phase": ("phase@recipe.phases.NAME", "one phase of a recipe"),
    "method": ("method@recipe.phases.NAME.method", "how layers are compressed while a phase trains"),
    "sensitivity": ("sensitivity@search.sensitivity", "how the damage of a set to a layer is predicted"),
}
SHARED = ("base", "common")  # files that options are made of
LINE = re.compile(r"( *)([\w.]+):(?: +([^#\s].*?))?(?: *# (.*))?")  # of a YAML file: indent, key, value, comment
ENTRY = re.compile(r"  - (override )?(?:/?(\w+)(?:@([\w.]+))?: )?(\w+)(?:@([\w.]+))?(?: *# (.*))?")  # of its defaults


def main() -> None:
    """Answer at once, or run the command."""
    words = sys.argv[1:]
    try:
        if not words:
            print(greeting())
        elif "--version" in words:
            print(f"nxmiformer {version()}")
        elif {"--help", "-h"} & set(words):
            asked = [word for word in words if not word.startswith("-")]
            print("\n\n".join(map(explained, asked)) if asked else overview())
        else:
            # Threads that spin while they wait take cores from other processes, and slow both. OpenMP reads this once,
            # when torch loads it.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            _imported()()
    except KeyboardInterrupt:  # a job that has begun says how to continue
        print("nxmiformer: stopped before anything started", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # who reads, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _imported() -> Callable[[], None]:
    """What runs the command. To look for garbage among all that is imported, which stays, takes a fifth of a start."""
    gc.disable()
    try:
        from nxmiformer.cli import main as run
    finally:
        gc.freeze()
        gc.enable()
    return run


def version() -> str:
    """Of the package that is installed."""
    return importlib.metadata.version("nxmiformer")


def greeting() -> str:
    """What this is, some commands, and what to read."""
    return "\n".join([*_introduction(), "", "To read:", *_beside(READING)])


def _introduction() -> list[str]:
    what = f"nxmiformer {version()}: make a Transformer sparse (N:M) and low-bit at once, with ADMM, and pack it."
    commands = (f"  {command}\n{_filled(does, '      ')}" for command, does in COMMANDS.items())
    return [_filled(what), "", *commands, "", _filled(RUNS)]


def overview() -> str:
    """What this is, every group with its options, the values outside the groups, and the flags."""
    top = read("config")
    chosen = {each.group: each for each in top.defaults if each.group and not each.overrides}
    lines = [*_introduction(), "", "nxmiformer [GROUP=OPTION ...] [KEY=VALUE ...]", "", "A * marks the default."]
    for group in [*chosen, *INNER]:
        key, what = INNER[group] if group in INNER else (group, chosen[group].comment)
        lines += ["", _filled(f"{key}: {what}"), *_options(group)]
    values = {key: value for key, value in top.values.items() if not key.startswith("hydra.")}
    flags = {f"nxmiformer {flag}": what for flag, what in FLAGS.items()}
    return "\n".join([*lines, "", "Values outside the groups:", *_values(values), "", *_beside(flags)])


def explained(word: str) -> str:
    """Of a group, its options and the values of the default; of GROUP=OPTION, the values of that option."""
    group, _, option = word.partition("=")
    groups = sorted(path.name for path in _conf().iterdir() if any(path.glob("*.yaml")))
    if group not in groups:
        raise SystemExit(_mistaken(f"there is no group {group}; there are {', '.join(groups)}"))
    names = _names(group)
    if option and option not in names:
        raise SystemExit(_mistaken(f"{group} has no option {option}; there are {', '.join(names)}"))
    key, what = INNER.get(group, (group, _default(group).comment))
    listed = [] if option else [_filled(f"{key}: {what}"), *_options(group), ""]
    shown = option or (_default(group).option if _default(group).option in names else names[0])
    values = gathered(group, shown, key.partition("@")[2] or group)
    told = {name: value for name, value in values.items() if "._" not in name}
    return "\n".join([*listed, _filled(f"{key}={shown}: {read(f'{group}/{shown}').head}"), *_values(told)])


class Value(NamedTuple):
    """What a configuration file gives a key, and the comment beside it."""

    value: str
    comment: str


class Default(NamedTuple):
    """An entry of a file's defaults: an option of a group ("": of the file's own), put below `package`.

    One that overrides is taken instead of that of a file which this one is made of.
    """

    overrides: bool
    group: str
    option: str
    package: str
    comment: str


class File(NamedTuple):
    """A configuration file: the comment at its head, its defaults, its values by their whole keys."""

    head: str
    everywhere: bool
    defaults: list[Default]
    values: dict[str, Value]


def read(name: str) -> File:
    """The configuration file of that name, line by line: what is wanted is its comments."""
    head: list[str] = []
    defaults: list[Default] = []
    values: dict[str, Value] = {}
    parents: list[tuple[int, str]] = []
    text = (_conf() / f"{name}.yaml").read_text(encoding="utf-8")
    for line in text.splitlines():
        comment = line.lstrip(" #")
        if line.startswith("#"):
            head += [] if comment.startswith(("nxmiformer ", "@package ")) else [comment]
        elif line.lstrip().startswith("#") and values:  # the comment of the line above goes on
            key, value = values.popitem()
            values[key] = Value(value.value, f"{value.comment} {comment}")
        elif entry := ENTRY.fullmatch(line):
            defaults.append(
                Default(bool(entry[1]), entry[2] or "", entry[4], entry[3] or entry[5] or "", entry[6] or "")
            )
        elif match := LINE.fullmatch(line):
            parents = [*(each for each in parents if each[0] < len(match[1])), (len(match[1]), match[2])]
            if match[3]:
                values[".".join(key for _, key in parents)] = Value(match[3], match[4] or "")
    return File(" ".join(head), "# @package _global_" in text, defaults, values)


def gathered(group: str, option: str, package: str, instead: Mapping[str, str] | None = None) -> dict[str, Value]:
    """The values of an option, by their whole keys, with those of the files that it is made of."""
    file, found = read(f"{group}/{option}"), dict[str, Value]()
    below = {each: f"{package}.{each.package}" if each.package else package for each in file.defaults}
    instead = {**{below[each]: each.option for each in file.defaults if each.overrides}, **(instead or {})}
    for each, place in below.items():
        if each.overrides and not each.package:  # of a group of the whole configuration
            found[each.group] = Value(each.option, each.comment)
        elif not each.overrides and each.option != "_self_":
            option = instead.get(place, each.option) if each.package else each.option
            found |= gathered(each.group or group, option, place, instead)
    for key, value in file.values.items():
        whole = key if file.everywhere else f"{package}.{key}"
        comment = value.comment or (found[whole].comment if whole in found else "")
        found[whole] = Value(value.value, comment)
    return found


def _conf() -> Path:
    """The configuration files: in the package, or in a source tree beside it."""
    found = importlib.util.find_spec("nxmiformer")
    assert found is not None
    assert found.submodule_search_locations is not None
    package = Path(next(iter(found.submodule_search_locations)))
    return next(place for place in (package / "conf", package.parent / "conf") if (place / "config.yaml").is_file())


def _names(group: str) -> list[str]:
    return sorted(path.stem for path in (_conf() / group).glob("*.yaml") if path.stem not in SHARED)


def _default(group: str) -> Default:
    return next((each for each in read("config").defaults if each.group == group), Default(False, group, "", "", ""))


def _options(group: str) -> list[str]:
    default, names = _default(group).option, _names(group)
    return list(_beside({f"{name} *" if name == default else name: read(f"{group}/{name}").head for name in names}))


def _values(values: Mapping[str, Value]) -> list[str]:
    return list(_beside({f"{key}={each.value}": each.comment for key, each in values.items()}))


def _mistaken(message: str) -> int:
    print(_filled(f"nxmiformer: {message}"), file=sys.stderr)
    return 2


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 100)


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(text, _width(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _beside(rows: Mapping[str, str]) -> Iterator[str]:
    """Names, and in a column beside them what each is; below a name that is too long for that."""
    column = min(max(map(len, rows), default=0), _width() // 2 - 4) + 4
    for name, what in rows.items():
        told = _filled(what, " " * column)
        if what and len(name) + 4 <= column:
            yield f"  {name}".ljust(column) + told.lstrip()
        else:
            yield f"  {name}\n{told}" if what else f"  {name}"
