"""The names of classes, and the order in which a model numbers them."""

from collections.abc import Callable, Sequence


def plain(name: str) -> str:
    """A label's name without case and signs: "Not-Entailment" is "not_entailment"."""
    return "".join(sign for sign in str(name).casefold() if sign.isalnum())


def reading(labels: Sequence[str]) -> Callable[[str], str]:
    """How names are compared with these labels: without case and signs, unless nothing else tells two labels apart, as
    it does not "." from ","."""
    return plain if len({plain(label) for label in labels}) == len(labels) else str


def order_of(names: Sequence[str], labels: Sequence[str]) -> tuple[int, ...] | None:
    """For each of a model's class names, the place of the label that it is; None where they are the labels in their own
    order, or other names."""
    read = (
        str if sorted(names) == sorted(labels) else reading(labels)
    )  # where they are written so, "+1" and "-1" are two
    place = {read(label): number for number, label in enumerate(labels)}
    theirs = [read(name) for name in names]
    if sorted(theirs) != sorted(place) or theirs == list(place):
        return None
    return tuple(place[name] for name in theirs)
