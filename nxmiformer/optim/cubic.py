"""A value that moves from one number to another over a phase, fast at first."""

from dataclasses import dataclass

from nxmiformer.sets.fields import check_fields


@dataclass(frozen=True)
class Cubic:
    """From `start` to `end` by a cubic, with a plateau on either side: end + (start - end) * c**3, where c falls
    linearly from 1 to 0 between the plateaus (Zhu and Gupta 2017, arXiv 1710.01878, eq. 1).

    Attributes:
        steps: optimizer steps of the phase.
        before: share of the steps that stay at the start.
        after: share of the steps that have reached the end.
    """

    start: float
    end: float
    steps: int
    before: float = 0.0
    after: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.steps < 0:
            raise ValueError(f"a schedule takes 0 steps or more, not {self.steps}")
        if not (self.before >= 0 and self.after >= 0 and self.before + self.after <= 1):
            raise ValueError(
                f"before and after are shares of the steps, together at most 1, not {self.before} and {self.after}"
            )

    def at(self, step: int) -> float:
        """The value of optimizer step `step`, from 0; the end from the last step's end on."""
        first, last = round(self.before * self.steps), round((1 - self.after) * self.steps)
        if step >= last:
            return self.end
        if step <= first:
            return self.start
        return self.end + (self.start - self.end) * (1 - (step - first) / (last - first)) ** 3


def occasions(times: int, steps: int, before: float, after: float) -> list[int]:
    """The optimizer steps of so many events, at equal intervals between two plateaus: the first at the end of one
    plateau, the last at the start of the other. In a short phase several may be at one step."""
    first, last = before * steps, (1 - after) * steps
    gap = (last - first) / max(1, times - 1)
    return [min(max(0, steps - 1), round(first + gap * number)) for number in range(times)]
