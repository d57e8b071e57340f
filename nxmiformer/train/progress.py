"""What is shown of a phase while it trains."""

from collections.abc import Mapping

from nxmiformer.console.display import Display, Work


class Progress:
    """Steps, time left, loss, latest score on the holdout, and gap."""

    def __init__(self, display: Display, work: Work) -> None:
        self.display, self.work, self.scores = display, work, ""

    def score(self, metric: str, value: float) -> None:
        """The latest score on the holdout."""
        self.scores = f", {metric} {value:.4f}"

    def step(self, row: Mapping[str, float]) -> None:
        """One step more, with the figures of it."""
        gap = f", gap {row['gap']:.3f}" if "gap" in row else ""
        self.display.step(self.work, f"loss {row['loss']:.4f}{self.scores}{gap}")
