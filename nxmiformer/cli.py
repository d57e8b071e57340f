"""The console script `nxmiformer`: Hydra composes a configuration, and the job runs it."""

import difflib
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationToMissingValueError,
    OmegaConfBaseException,
)

from nxmiformer.console.ending import STOPPED, interrupted
from nxmiformer.console.quiet import barless
from nxmiformer.errors import unknown
from nxmiformer.jobs.build import asked_for, build
from nxmiformer.jobs.job import Job
from nxmiformer.jobs.origin import as_trained
from nxmiformer.jobs.place import occupied
from nxmiformer.jobs.sweep import HELD, Ended, noted
from nxmiformer.jobs.work import work
from nxmiformer.ranks import LostError, joined, ranks

CONF = Path(str(resources.files("nxmiformer.conf")))
NAMELESS = "Config group override must be a string"  # Hydra, of task=null
LAUNCHERS = ("joblib", "submitit", "ray")  # of Hydra's, those that are extras


@hydra.main(version_base="1.3", config_path="pkg://nxmiformer.conf", config_name="config")
def _main(config: DictConfig) -> float:
    directory, sweeping = Path(HydraConfig.get().runtime.output_dir), HydraConfig.get().mode == RunMode.MULTIRUN
    if ranks().count > 1:  # each has read the clock for its name
        directory, config.name = ranks().first((directory, config.name))

    def job() -> Job:
        reads_packed = config.job in ("export", "bench")
        whole = as_trained(config, HydraConfig.get().overrides.task) if reads_packed else config
        label = f"job {HydraConfig.get().job.num}" if sweeping else ""
        return replace(build(whole, directory), notes=_notes(config), label=label)

    with told(), barless(), noted(directory) if sweeping else _single(config, directory) as ended:
        work(config.job, job, directory, ended, sweeping)
    return ended.value


@contextmanager
def _single(config: DictConfig, directory: Path) -> Iterator[Ended]:
    """How a job outside a sweep ends. If stopped, it says how to continue: afterwards, Hydra does not know its name."""
    overrides = HydraConfig.get().overrides
    placed = [word for word in overrides.hydra if word.startswith("hydra.run.dir=")]
    words = [*overrides.task, *placed]
    try:
        yield Ended(overrides=list(overrides.task))
    except KeyboardInterrupt:
        if config.job == "bench":
            line = interrupted(words)
        elif occupied(directory):
            line = interrupted(words, *([] if placed else [f"name={config.name}"]))
        else:
            line = STOPPED
        print(line, file=sys.stderr)
        sys.exit(130)


def _notes(config: DictConfig) -> dict[str, str]:
    """The files that Hydra writes before it calls a job. Here the job writes them, after its start."""
    ours = HydraConfig.get()
    parts = {"config": config, "hydra": OmegaConf.create({"hydra": ours}), "overrides": ours.overrides.task}
    return {f".hydra/{name}.yaml": OmegaConf.to_yaml(part) for name, part in parts.items()}


@contextmanager
def told() -> Iterator[None]:
    """Print what the package logs about a checkpoint and about data."""
    logger, handler = logging.getLogger("nxmiformer"), logging.StreamHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def main() -> None:
    """Run, and turn a mistake in the command line into one clear message and exit status 2."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let Hydra's errors through to here
    with ExitStack() as held:
        try:
            held.enter_context(joined())
        except ValueError as error:
            sys.exit(_fail(str(error)))
        _run()


def _run() -> None:
    try:
        with HELD:
            _main()
    except LostError as error:
        print(f"nxmiformer: {error}", file=sys.stderr)
        sys.exit(1)
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(_fail(_explain(error)))
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("NXMIFORMER_TRACEBACK"):
            raise
        if isinstance(error, ValueError | OSError):
            sys.exit(_fail(_nameless(sys.argv[1:]) if NAMELESS in str(error) else str(error)))
        _say(_unforeseen(error))
        sys.exit(1)


def _unforeseen(error: Exception) -> str:
    """An unexpected error in one message; its traceback is kept in a file."""
    with tempfile.NamedTemporaryFile("w", prefix="nxmiformer-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    return f"nxmiformer: {type(error).__name__}: {error}\nthis error is unexpected: please report it with {file.name}"


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _fail(message: str) -> int:
    _say(f"nxmiformer: {message}")
    return 2


def _say(message: str) -> None:
    print(message, file=sys.stderr)
    ranks().tell(message)


def _explain(error: Exception) -> str:
    """What is wrong with the command line, and the valid names nearest to what it says."""
    root = _root(error)
    if isinstance(error, OverrideParseException):
        if "=" not in error.override:
            job = f"job={error.override}" if (CONF / "job" / f"{error.override}.yaml").exists() else "seed=1"
            return f"{error.override!r} sets nothing: write NAME=VALUE, such as {job}; nxmiformer --help has the names"
        reason = error.message.removeprefix(f"Error parsing override '{error.override}'\n").partition("\nSee ")[0]
        return f"{error.override!r} cannot be read: {reason}\nquote a value that has other characters: 'key=\"value\"'"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        extra = option.partition("_")[0]
        if group == "hydra/launcher" and extra in LAUNCHERS:
            return f"hydra/launcher={option} is not installed; it comes with: pip install 'nxmiformer[{extra}]'"
        return str(unknown(f"option of {group}", option, error.options))
    if isinstance(root, InterpolationToMissingValueError):
        return asked_for([str(root).splitlines()[0].rsplit(" ", 1)[-1]])
    if isinstance(root, ConfigKeyError | ConfigAttributeError) and root.full_key:
        return f"there is no {root.full_key}{_near(str(root.full_key))}"
    return str(root)


def _nameless(words: list[str]) -> str:
    """The group whose option is not a string, which Hydra does not name."""
    given = OverridesParser.create().parse_overrides([word for word in words if "=" in word and word[0] != "-"])
    chosen = {each.key_or_group: each.value() for each in given if not each.is_sweep_override()}
    options = {group: sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in chosen}
    wrong = [group for group, value in chosen.items() if options[group] and not isinstance(value, str)]
    shown = {group: "null" if chosen[group] is None else chosen[group] for group in wrong}
    return "\n  ".join(f"{group}={shown[group]}: choose one of {', '.join(options[group])}" for group in wrong)


def _near(key: str) -> str:
    """The sibling names most similar to `key`."""
    parent, _, last = key.rpartition(".")
    groups = [word for word in sys.argv[1:] if "=" in word and not {".", ",", "+", "~"} & set(word.split("=")[0])]
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        try:
            chosen = [word for word in groups if word.split("=")[0] != key and "," not in word]
            config = hydra.compose("config", chosen, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException):
            config = hydra.compose("config", return_hydra_config=True)
    node = OmegaConf.select(config, parent) if parent else config
    names = [str(name) for name in node] if isinstance(node, DictConfig) else []
    near = difflib.get_close_matches(last, names, n=3, cutoff=0.4)
    prefix = f"{parent}." if parent else ""
    return f": did you mean {' or '.join(prefix + name for name in near)}?" if near else f"; there are {names}"
