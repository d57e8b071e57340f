"""The GLUE tasks, as the configuration has them."""

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
    told = [f"task={name}", *(f"task.{key}={value}" for key, value in options.items())]
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        values = OmegaConf.to_container(hydra.compose("config", told).task)
    return hydra.utils.get_class(values.pop("_target_"))(**values)
