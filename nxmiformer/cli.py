"""The console script `nxmiformer`: Hydra composes a configuration, and the job runs it."""

import difflib
import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from nxmiformer.job import Job, run
from nxmiformer.report.numbers import read_run
from nxmiformer.report.table import summary


def build(config: DictConfig, directory: Path) -> Job:
    """The job that a composed configuration describes.

    Raises:
        ValueError: a value is missing, unknown or out of range; the message says which.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"these values must be given: {', '.join(f'{key}=...' for key in missing)}")
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    parts = {key: _instantiate(key, config[key]) for key in ("task", "model", "plan", "recipe", "train")}
    return Job(
        name=config.name,
        directory=directory,
        seed=config.seed,
        task=parts["task"],
        source=parts["model"],
        planning=parts["plan"],
        recipe=parts["recipe"],
        settings=parts["train"],
        config=plain,
        report_on=config.report_on,
        resume=config.resume,
        wandb=plain["tracker"]["wandb"],
    )


def _instantiate(key: str, node: DictConfig) -> Any:
    """The object that a node describes; errors say which node."""
    try:
        return hydra.utils.instantiate(node, _convert_="object")
    except hydra.errors.InstantiationException as error:
        cause = error.__cause__
        while cause is not None and cause.__cause__ is not None:
            cause = cause.__cause__
        where = next((line for line in str(error).splitlines() if line.startswith("full_key")), f"full_key: {key}")
        raise ValueError(f"{where.removeprefix('full_key: ')}: {cause or error}") from error


@hydra.main(version_base="1.3", config_path="pkg://nxmiformer.conf", config_name="config")
def _main(config: DictConfig) -> float:
    directory = Path(HydraConfig.get().runtime.output_dir)
    content = run(build(config, directory))
    console = Console()
    console.print(summary(read_run(directory)))
    console.print(f"report: {os.path.relpath(directory / 'report.html')}")
    metric: str = content["task"]["metric"]
    score: float = content["scores"]["packed"][metric]
    return score


def main() -> None:
    """Run, and turn a mistake in the command line into one clear message and exit status 2."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let Hydra's errors through to here
    try:
        _main()
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(_fail(f"{_root(error)}{_suggestion(str(_root(error)))}"))
    except ValueError as error:
        if os.environ.get("NXMIFORMER_TRACEBACK"):
            raise
        sys.exit(_fail(str(error)))


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _fail(message: str) -> int:
    print(f"nxmiformer: {message}", file=sys.stderr)
    return 2


def _suggestion(message: str) -> str:
    """The valid keys nearest to the one that the message says is not there."""
    given = [word.split("=")[0].lstrip("+~") for word in sys.argv[1:] if "=" in word]
    wrong = [key for key in given if f"'{key}'" in message or f"'{key.rsplit('.', 1)[-1]}'" in message]
    if not wrong:
        return ""
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        groups = [word for word in sys.argv[1:] if "=" in word and "." not in word.split("=")[0] and "," not in word]
        try:
            config = hydra.compose("config", [g for g in groups if g.split("=")[0] not in wrong])
        except (HydraException, OmegaConfBaseException):
            config = hydra.compose("config")
    near = difflib.get_close_matches(wrong[0], _keys(config), n=3, cutoff=0.5)
    return f"\ndid you mean {' or '.join(near)}?" if near else ""


def _keys(node: Any, prefix: str = "") -> list[str]:
    """The dotted names of all values below a node."""
    if not isinstance(node, DictConfig):
        return []
    names = []
    for key in map(str, node):
        names.append(f"{prefix}{key}")
        if not OmegaConf.is_missing(node, key):
            names += _keys(node._get_node(key), f"{prefix}{key}.")
    return names
