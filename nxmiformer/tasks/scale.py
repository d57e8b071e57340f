"""How the values of a metric are read, by its name: whether higher is better, and on which scale it is."""

from typing import Literal

Better = Literal["higher", "lower"]
Scale = Literal["share", "points", "perplexity", "loss"]

POINTS = ("bleu", "chrf")  # of 100, and shown as they are


def scale(metric: str) -> Scale:
    """The scale of a metric.

    A "share" is a fraction of 1, shown in per cent; "points" are of 100. A "perplexity" is compared by its logarithm. A
    "loss" is any other metric that is better if lower, and is called loss or error.
    """
    if metric.endswith("perplexity"):
        return "perplexity"
    if metric.endswith(("loss", "error")):
        return "loss"
    return "points" if metric.startswith(POINTS) else "share"


def better(metric: str) -> Better:
    """Whether a higher or a lower value is better."""
    return "lower" if scale(metric) in ("perplexity", "loss") else "higher"
