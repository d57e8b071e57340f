"""Fields of a task that are read from its data if they are not given."""

from typing import Any


class Told:
    """A field that is read from the rows if it is not given, through the task's `facts`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, task: Any, owner: type | None = None) -> Any:
        return None if task is None else getattr(task.facts, self.name)  # of the class: the default

    def __set__(self, task: Any, value: Any) -> None:
        vars(task)[self.name] = value
