"""The GLUE tasks, as the configuration has them."""

from functools import cache
from pathlib import Path

import hydra
import yaml
from omegaconf import OmegaConf

CONF = Path(__file__).parents[1] / "conf" / "task"
TASKS = {
    path.stem: values
    for path in sorted(CONF.glob("*.yaml"))
    if (values := yaml.safe_load(path.read_text(encoding="utf-8"))).get("path") == "nyu-mll/glue"
}


def glue(name, **options):
    """The task of that name; nothing of its data is read yet."""
    values = dict(_values(name, *(f"task.{key}={value}" for key, value in options.items())))
    return hydra.utils.get_class(values.pop("_target_"))(**values)


@cache
def _values(name, *told):
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        return OmegaConf.to_container(hydra.compose("config", [f"task={name}", *told]).task)
