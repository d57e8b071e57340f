"""The console script `nxmiformer`: Hydra composes a configuration, and the job runs it."""

import difflib
import logging
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationToMissingValueError,
    OmegaConfBaseException,
)

from nxmiformer.console.ending import interrupted
from nxmiformer.errors import unknown
from nxmiformer.jobs.job import Job
from nxmiformer.jobs.origin import as_trained
from nxmiformer.jobs.place import occupied
from nxmiformer.jobs.sweep import HELD, Ended, noted
from nxmiformer.jobs.work import KINDS, work

PARTS = {"task": "task", "model": "source", "plan": "planning", "recipe": "recipe", "train": "settings"}
PARTS |= {"budget": "budget", "search": "search", "format": "format", "bench": "bench"}
PLAIN = ("name", "seed", "report_on", "resume", "overwrite", "dense_cache", "path", "out")
LAUNCHERS = ("joblib", "submitit", "ray")  # of Hydra's, those that are extras


def build(config: DictConfig, directory: Path) -> Job:
    """The job that a composed configuration describes.

    Raises:
        ValueError: a value is missing, unknown, of another type or out of range; the message says which.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(_missing(missing))
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    valid = [*PARTS, *PLAIN, "tracker", "job"]
    for key in plain:
        if key not in valid:
            raise unknown("key", key, valid)
    if plain["job"] not in KINDS:
        raise unknown("job", plain["job"], KINDS)
    hints = get_type_hints(Job)
    wanted = {key: hints[name] for key, name in {**PARTS, **dict(zip(PLAIN, PLAIN, strict=True))}.items()}
    mistakes = [line for key, hint in wanted.items() for line in _mistakes(plain[key], hint, key)]
    if mistakes:
        raise ValueError("\n  ".join(mistakes))
    parts: dict[str, Any] = {name: _instantiate(key, config[key]) for key, name in PARTS.items()}
    for name, phase in parts["recipe"].phases.items():
        _try_optimizer(f"recipe.phases.{name}", phase)
    values = {key: plain[key] for key in PLAIN}
    return Job(**values, **parts, directory=directory, config=plain, wandb=plain["tracker"]["wandb"])


def _missing(keys: list[str]) -> str:
    return f"these values must be given: {', '.join(f'{key}=...' for key in keys)}"


def _mistakes(value: Any, hint: Any, where: str) -> Iterator[str]:
    """What in a configured value is not of the type that its place has; names of a choice are left to their class."""
    origin, options = get_origin(hint), [option for option in get_args(hint) if option is not types.NoneType]
    if origin in (Union, types.UnionType) and len(options) == 1:
        if value is not None:
            yield from _mistakes(value, options[0], where)
    elif isinstance(value, dict) and "_target_" in value:
        yield from _object_mistakes(value, hint, where)
    elif origin is Mapping and isinstance(value, dict):
        for key, item in value.items():
            yield from _mistakes(item, options[1], f"{where}.{key}")
    elif not _fits(value, hint, origin):
        what = "list" if origin is not None else getattr(hint, "__name__", hint)
        yield f"{where}={'null' if value is None else value}: its value must be of type {what}"


def _fits(value: Any, hint: Any, origin: Any) -> bool:
    if hint is Any:
        return True
    if origin is Literal:
        return isinstance(value, str)
    if origin is not None and origin is not Callable:
        return isinstance(value, list)
    accepted = {float: (int, float)}.get(hint, hint)
    return isinstance(hint, type) and isinstance(value, accepted) and isinstance(value, bool) == (hint is bool)


def _object_mistakes(node: dict[str, Any], hint: Any, where: str) -> Iterator[str]:
    """As `_mistakes`, of a node that describes an object."""
    try:
        target = hydra.utils.get_object(node["_target_"])
    except Exception:  # instantiating it says what is wrong
        return
    if isinstance(hint, type) and not (isinstance(target, type) and issubclass(target, hint)):
        yield f"{where}._target_={node['_target_']}: it is no {hint.__name__}"
    elif is_dataclass(target):
        hints, names = get_type_hints(target), [field.name for field in fields(target) if field.init]
        for key, value in node.items():
            if key in names:
                yield from _mistakes(value, hints[key], f"{where}.{key}")
            elif not key.startswith("_"):
                yield str(unknown(f"key of {where}", key, names))


def _instantiate(key: str, node: DictConfig) -> Any:
    """The object that a node describes; errors say which node."""
    try:
        return hydra.utils.instantiate(node, _convert_="object")
    except hydra.errors.InstantiationException as error:
        where = next((line for line in str(error).splitlines() if line.startswith("full_key")), f"full_key: {key}")
        raise ValueError(f"{where.removeprefix('full_key: ')}: {_root(error)}") from error


def _try_optimizer(where: str, phase: Any) -> None:
    """Build the phase's optimizer on nothing much: what it refuses is better known now than after hours of training."""
    try:
        phase.optimizer(
            [{"params": [torch.nn.Parameter(torch.zeros(1, 1, device="cpu"))], "weight_decay": phase.weight_decay}]
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}.optimizer: {error}") from error


@hydra.main(version_base="1.3", config_path="pkg://nxmiformer.conf", config_name="config")
def _main(config: DictConfig) -> float:
    directory, sweeping = Path(HydraConfig.get().runtime.output_dir), HydraConfig.get().mode == RunMode.MULTIRUN

    def job() -> Job:
        reads_packed = config.job in ("export", "bench")
        whole = as_trained(config, HydraConfig.get().overrides.task) if reads_packed else config
        label = f"job {HydraConfig.get().job.num}" if sweeping else ""
        return replace(build(whole, directory), notes=_notes(config), label=label)

    words = list(HydraConfig.get().overrides.task)
    with told(), noted(directory) if sweeping else nullcontext(Ended(overrides=words)) as ended:
        work(config.job, job, directory, ended, sweeping)
    return ended.value


def _notes(config: DictConfig) -> dict[str, str]:
    """What Hydra writes before it calls a job, and here the job itself, once it has begun."""
    ours = HydraConfig.get()
    parts = {"config": config, "hydra": OmegaConf.create({"hydra": ours}), "overrides": ours.overrides.task}
    return {f".hydra/{name}.yaml": OmegaConf.to_yaml(part) for name, part in parts.items()}


@contextmanager
def told() -> Iterator[None]:
    """Print what the package logs: what it found in a checkpoint and in data, and made of it."""
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
    world = os.environ.get("WORLD_SIZE", "1")  # as torchrun and `accelerate launch` set it
    if world != "1":
        sys.exit(_fail(f"WORLD_SIZE={world}: a run takes one process, as each would write the same files"))
    try:
        with HELD:
            _main()
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(_fail(_explain(error)))
    except (ValueError, OSError) as error:
        if os.environ.get("NXMIFORMER_TRACEBACK"):
            raise
        sys.exit(_fail(str(error)))
    except KeyboardInterrupt:
        print(_stopped(), file=sys.stderr)
        sys.exit(130)


def _stopped() -> str:
    """How to go on with what has been stopped, where anything was begun."""
    ours = HydraConfig.get() if HydraConfig.initialized() else None
    if ours is None:
        return "nxmiformer: stopped; nothing was begun"
    if ours.mode == RunMode.MULTIRUN:
        return interrupted(sys.argv[1:], f"hydra.sweep.dir={ours.sweep.dir}")
    directory = Path(ours.runtime.output_dir)
    if not occupied(directory):
        return "nxmiformer: stopped; nothing was begun"
    return interrupted(sys.argv[1:], f"hydra.run.dir={os.path.relpath(directory)}")


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _fail(message: str) -> int:
    print(f"nxmiformer: {message}", file=sys.stderr)
    return 2


def _explain(error: Exception) -> str:
    """What is wrong with the command line, and the valid names nearest to what it says."""
    root = _root(error)
    if isinstance(error, OverrideParseException):
        reason = error.message.removeprefix(f"Error parsing override '{error.override}'\n").partition("\nSee ")[0]
        return f"{error.override!r} cannot be read: {reason}\na value with other signs is quoted: 'key=\"value\"'"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        extra = option.partition("_")[0]
        if group == "hydra/launcher" and extra in LAUNCHERS:
            return f"hydra/launcher={option} is not installed; it comes with: pip install 'nxmiformer[{extra}]'"
        return str(unknown(f"option of {group}", option, error.options))
    if isinstance(root, InterpolationToMissingValueError):
        return _missing([str(root).splitlines()[0].rsplit(" ", 1)[-1]])
    if isinstance(root, ConfigKeyError | ConfigAttributeError) and root.full_key:
        return f"there is no {root.full_key}{_near(str(root.full_key))}"
    return str(root)


def _near(key: str) -> str:
    """The names beside `key` that are most like it."""
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
