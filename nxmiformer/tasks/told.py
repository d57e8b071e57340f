"""Fields of a task that are read from its data if they are not given."""

from typing import Any


class Told:
    """A field that is read from the rows if it is not given, through the task's `facts`.

    Args:
        known: whether it is what is given, where it is: then nothing has to be read to know it.
    """

    def __init__(self, known: bool = False) -> None:
        self.known = known

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, task: Any, owner: type | None = None) -> Any:
        if task is None:  # of the class: the default
            return None
        given = vars(task)[self.name] if self.known else None
        return getattr(task.facts, self.name) if given is None else given

    def __set__(self, task: Any, value: Any) -> None:
        vars(task)[self.name] = value
