"""From a composed configuration to a job, or to one message that says what in it is wrong, and where."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import hydra
from omegaconf import DictConfig, OmegaConf

from nxmiformer.errors import unknown
from nxmiformer.jobs.job import Job
from nxmiformer.jobs.values import mistakes
from nxmiformer.jobs.work import KINDS

PARTS = {"task": "task", "model": "source", "plan": "planning", "recipe": "recipe", "train": "settings"}
PARTS |= {"budget": "budget", "search": "search", "format": "format", "bench": "bench"}
PARTS |= {"blockwise": "blockwise"}
PLAIN = ("name", "seed", "report_on", "resume", "overwrite", "dense_cache", "path", "out")
TRACKER = Mapping[str, Mapping[str, Any] | None]


def build(config: DictConfig, directory: Path) -> Job:
    """The job that a composed configuration describes.

    Raises:
        ValueError: a value is missing, unknown, of another type or out of range; the message says which.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(asked_for(missing))
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    wanted = _wanted()
    for key in plain:
        if key not in wanted:
            raise unknown("key", key, wanted)
    absent = [key for key in wanted if key not in plain]
    if absent:
        raise ValueError(asked_for(absent))
    if plain["job"] not in list(KINDS):  # a value of any type, which need not be hashable
        raise unknown("job", plain["job"], KINDS)
    wrong = [line for key, hint in wanted.items() for line in mistakes(plain[key], hint, key)]
    if wrong:
        raise ValueError("\n  ".join(wrong))
    parts: dict[str, Any] = {name: _instantiate(key, config[key]) for key, name in PARTS.items()}
    values = {key: plain[key] for key in PLAIN}
    return Job(**values, **parts, directory=directory, config=plain, wandb=plain["tracker"]["wandb"])


def asked_for(keys: list[str]) -> str:
    """The message where values have none of their own."""
    return f"these values must be given: {', '.join(f'{key}=...' for key in keys)}"


def _wanted() -> dict[str, Any]:
    """Every key of a configuration, and the type of its value."""
    hints = get_type_hints(Job)
    return {key: hints[PARTS.get(key, key)] for key in (*PARTS, *PLAIN)} | {"tracker": TRACKER, "job": str}


def _instantiate(key: str, node: DictConfig) -> Any:
    """The object that a node describes; errors say which node."""
    try:
        return hydra.utils.instantiate(node, _convert_="object")
    except hydra.errors.InstantiationException as error:
        where = next((line for line in str(error).splitlines() if line.startswith("full_key")), f"full_key: {key}")
        raise ValueError(f"{where.removeprefix('full_key: ')}: {error.__cause__ or error}") from error
