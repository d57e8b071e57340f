"""The names of a classifier's classes, and their order: the checkpoint's, where it has any."""

import logging
import re
from collections.abc import Sequence

from transformers import PreTrainedConfig

from nxmiformer.tasks.order import plain, reading
from nxmiformer.tasks.task import Task

log = logging.getLogger(__name__)

GENERIC = re.compile(r"(label|class)?\d+")  # after `plain`: what `transformers` calls classes that nobody named


def class_names(own: Sequence[str], task: Task, loaded: bool, asked: Sequence[str] | None, path: str) -> list[str]:
    """The names of a model's classes for a task of classes, in the order of its outputs.

    Args:
        own: what the checkpoint calls its classes.
        loaded: whether its head is used; a newly initialized head has the task's order.
        asked: the task's names in the order of the model's outputs, if the user gives them (`model.labels`).
        path: of the checkpoint, for messages.

    Raises:
        ValueError: the checkpoint's names, or those of the user, are not the task's.
    """
    read = reading(task.labels)
    ours = {read(name) for name in task.labels}
    if asked is not None:
        if {read(name) for name in asked} != ours or len(asked) != len(task.labels):
            raise ValueError(f"model.labels={list(asked)}: the classes of {task.name} are {list(task.labels)}")
        return list(asked)
    if not loaded:
        return list(task.labels)
    theirs = [read(name) for name in own]
    if set(theirs) == ours:
        if theirs != [read(name) for name in task.labels]:
            log.info("model.path=%s: its labels are %s, in this order, and stay so", path, ", ".join(own))
        return list(own)
    if all(GENERIC.fullmatch(plain(name)) for name in own):
        log.info(
            "model.path=%s: it does not name its labels; they are taken to be %s, in this order (model.labels=[...] "
            "gives another)",
            path,
            ", ".join(task.labels),
        )
        return list(task.labels)
    raise ValueError(
        f"model.path={path}: it calls its classes {list(own)}, and {task.name} has {list(task.labels)}: say which is "
        f"which in the model's order, model.labels=[{','.join(task.labels)}] or another"
    )


def name_classes(config: PreTrainedConfig, names: Sequence[str]) -> None:
    """Write the names into a config."""
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}


def classes_of(config: PreTrainedConfig) -> list[str]:
    """The names of a model's classes, in the order of its outputs."""
    return [name for _, name in sorted((config.id2label or {}).items())]
