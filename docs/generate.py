"""The pages that are made of other files, in docs/made: every option, the API, the studies, what changed, contributing.

`make docs` makes them again each time; none is committed.
"""

import importlib
import inspect
import pkgutil
import re
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import nxmiformer
import nxmiformer_console as console

ROOT = Path(__file__).parents[1]
FIELD = re.compile(r" {4}([\w, ]+?)(?: \([^)]*\))?: (.*)")  # of a docstring's Attributes or Args
OPTIONS = """# Every option

`nxmiformer GROUP=OPTION KEY=VALUE ...` An option is a file in `conf/`. `nxmiformer --help GROUP=OPTION` shows it on the
command line. An option is often built on another, and then only what differs is listed. `nxmiformer --cfg job ...`
prints the values of a whole command. A * marks the default.
"""


def main(docs: Path) -> None:
    """Write all pages below `docs`/made."""
    made = docs / "made"
    shutil.rmtree(made, ignore_errors=True)
    for folder in (made, made / "api", made / "studies"):
        folder.mkdir(parents=True)
    (made / "options.md").write_text(options(), encoding="utf-8")
    for name in parts():
        (made / "api" / f"{name}.md").write_text(api(name), encoding="utf-8")
    for file, page in (("CHANGELOG.md", "changelog.md"), ("CONTRIBUTING.md", "contributing.md")):
        text = (ROOT / file).read_text(encoding="utf-8")
        (made / page).write_text(re.sub(r"\]\(docs/", "](/", text), encoding="utf-8")
    studies(made / "studies")


def options() -> str:
    """Every option of every group, and the values outside the groups, with what each means."""
    top = console.read("config")
    chosen = {each.group: each for each in top.defaults if each.group and not each.overrides}
    values = {key: value for key, value in top.values.items() if not key.startswith("hydra.")}
    parts = [OPTIONS, "## Values outside the groups", *_table(values)]
    for group in [*chosen, *console.INNER]:
        key, what = console.INNER.get(group, (group, chosen[group].comment if group in chosen else ""))
        parts += [f"## {group}", f"`{key}`: {what}." if what else f"`{key}`"]
        for option in sorted(path.stem for path in (console._conf() / group).glob("*.yaml")):
            default = " *" if group in chosen and chosen[group].option == option else ""
            parts += [f"### {group}={option}{default}", *_option(group, option, key.partition("@")[2] or group)]
    return "\n\n".join(parts) + "\n"


def _option(group: str, option: str, package: str) -> Iterator[str]:
    """What an option is, what it is built on, and the values that it sets itself."""
    file = console.read(f"{group}/{option}")
    yield file.head
    built = [f"`{each.group or group}={each.option}`" for each in file.defaults if each.option != "_self_"]
    if built:
        yield f"Built on {', '.join(built)}."
    told = explained(group, option, package)
    own = {key: told[key] for key in _keys(file, package) if "._" not in key}
    meanings = _meanings() if not all(each.comment for each in own.values()) else {}
    yield from _table({key: each._replace(comment=each.comment or meanings.get(key, "")) for key, each in own.items()})


@cache
def _meanings() -> dict[str, str]:
    """What values mean that options set for other groups, by the keys of those groups."""
    top = console.read("config")
    found = {each.group: each.comment for each in top.defaults} | {key: v.comment for key, v in top.values.items()}
    for group in ("train", "search", "recipe"):
        default = next(each.option for each in top.defaults if each.group == group)
        found |= {key: each.comment for key, each in explained(group, default, group).items()}
    return found


def explained(group: str, option: str, package: str) -> dict[str, console.Value]:
    """The values of an option by their keys; where no comment says what a value means, its class does."""
    found = console.gathered(group, option, package)
    for key, value in found.items():
        parent, _, name = key.rpartition(".")
        target = found.get(f"{parent}._target_")
        if not value.comment and target and not name.startswith("_"):
            found[key] = console.Value(value.value, _attribute(target.value, name))
    return found


def _keys(file: console.File, package: str) -> list[str]:
    return [key if file.everywhere else f"{package}.{key}" for key in file.values]


def _attribute(target: str, name: str) -> str:
    """What the docstring of a class, or of one that it derives from, says of a field."""
    module, _, called = target.rpartition(".")
    made = getattr(importlib.import_module(module), called)
    for each in inspect.getmro(made) if inspect.isclass(made) else (made,):
        fields = _fields(inspect.getdoc(each) or "") if each.__doc__ else {}
        if name in fields:
            return fields[name]
    return ""


def _fields(text: str) -> dict[str, str]:
    """The fields that a docstring explains, by name."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in re.split(r"^(?:Attributes|Args):$", text, flags=re.MULTILINE)[-1].splitlines():
        if match := FIELD.fullmatch(line):
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        elif line.startswith(" " * 8):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        elif line.strip():
            names = []
    return found


def _table(values: Mapping[str, console.Value]) -> list[str]:
    rows = [f"| `{key}={_cell(each.value)}` | {_cell(each.comment)} |" for key, each in values.items()]
    return ["\n".join(["| key and value | meaning |", "|---|---|", *rows])] if rows else []


def _cell(text: str) -> str:
    """Text as a cell of a table, where a pattern's star is a star."""
    return re.sub(r"([|*])", r"\\\1", text) if "`" not in text else text.replace("|", "\\|")


def parts() -> list[str]:
    """The packages and modules below nxmiformer, without the configuration and the console's inside."""
    return sorted({each.name for each in pkgutil.iter_modules(nxmiformer.__path__)} - {"conf", "console"})


def api(name: str) -> str:
    """The page of a package, or of a module at the root: what its docstrings say, and those of its modules."""
    found = importlib.import_module(f"nxmiformer.{name}")
    if found.__spec__ is None or found.__spec__.submodule_search_locations is None:
        return f"# nxmiformer.{name}\n\n{_members(found.__name__)}\n"
    modules = [f"{found.__name__}.{each.name}" for each in pkgutil.iter_modules(found.__path__) if not each.ispkg]
    body = (f"## {each.split('.')[-1]}\n\n{_members(each)}" for each in modules)
    return "\n\n".join([f"# nxmiformer.{name}", inspect.getdoc(found) or "", *body]) + "\n"


def _members(module: str) -> str:
    return f"```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n```"


def studies(folder: Path) -> None:
    """Each study's page with its pictures and tables, and the page that lists them."""
    experiments = ROOT / "experiments"
    named = sorted(path.parent.name for path in experiments.glob("*/README.md"))
    for name in named:
        text = (experiments / name / "README.md").read_text(encoding="utf-8")
        for file in re.findall(r"\]\((\w[\w.-]*\.(?:png|csv))\)", text):
            shutil.copy(experiments / name / file, folder / f"{name}-{file}")
        text = re.sub(r"\]\((\w[\w.-]*\.(?:png|csv))\)", rf"]({name}-\1)", text)
        (folder / f"{name}.md").write_text(_siblings(text, r"\.\./"), encoding="utf-8")
    listed = _siblings((experiments / "README.md").read_text(encoding="utf-8"), "")
    tree = "\n".join(["```{toctree}", ":hidden:", "", *named, "```"])
    (folder / "index.md").write_text(f"{listed}\n{tree}\n", encoding="utf-8")


def _siblings(text: str, above: str) -> str:
    """Links to the directories of other studies, as links to their pages."""
    return re.sub(rf"\]\({above}(\w+)\)", r"](\1.md)", text)
