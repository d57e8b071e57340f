"""Metrics of labels and numbers, by name, from established packages where they have them."""

import warnings
from collections.abc import Callable

import numpy as np
from scipy import stats
from sklearn import metrics

from nxmiformer.errors import unknown
from nxmiformer.tasks.outcomes import Classes, Labels, Number, Outcome

Metric = Callable[[np.ndarray, np.ndarray], float]  # what is true, what is predicted


def _f1(average: str) -> Metric:
    def f1(truths: np.ndarray, predicted: np.ndarray) -> float:
        return float(metrics.f1_score(truths, predicted, average=average, zero_division=0.0))

    return f1


def _balanced(truths: np.ndarray, predicted: np.ndarray) -> float:
    """The mean recall of the classes that there are."""
    there = np.unique(truths)
    return float(metrics.recall_score(truths, predicted, labels=there, average="macro", zero_division=0.0))


def _correlation(of: Callable[[np.ndarray, np.ndarray], object]) -> Metric:
    def correlation(truths: np.ndarray, predicted: np.ndarray) -> float:
        """0 for a constant prediction, which correlates with nothing."""
        if np.ptp(predicted) == 0 or np.ptp(truths) == 0:
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.NearConstantInputWarning)
            return float(of(predicted, truths).statistic)  # type: ignore[attr-defined]

    return correlation


def _exact(truths: np.ndarray, predicted: np.ndarray) -> float:
    """The share of examples of which every label is right."""
    return float((truths == predicted).reshape(len(truths), -1).all(-1).mean())


OF_CLASSES: dict[str, Metric] = {
    "accuracy": _exact,
    "f1": _f1("binary"),
    "macro_f1": _f1("macro"),
    "micro_f1": _f1("micro"),
    "weighted_f1": _f1("weighted"),
    "matthews": lambda truths, predicted: float(metrics.matthews_corrcoef(truths, predicted)),
    "balanced_accuracy": _balanced,
}
OF_LABELS: dict[str, Metric] = {
    "micro_f1": _f1("micro"),
    "macro_f1": _f1("macro"),
    "samples_f1": _f1("samples"),
    "accuracy": _exact,
}
OF_NUMBERS: dict[str, Metric] = {
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
    "mean_absolute_error": lambda truths, predicted: float(metrics.mean_absolute_error(truths, predicted)),
    "mean_squared_error": lambda truths, predicted: float(metrics.mean_squared_error(truths, predicted)),
}


def metrics_of(outcome: Outcome, classes: int) -> dict[str, Metric]:
    """The metrics that an outcome of so many classes can be scored by, by name."""
    if isinstance(outcome, Number):
        return OF_NUMBERS
    if isinstance(outcome, Labels):
        return OF_LABELS
    assert isinstance(outcome, Classes)
    return {name: metric for name, metric in OF_CLASSES.items() if name != "f1" or classes == 2}


def usual(outcome: Outcome, classes: int) -> tuple[str, ...]:
    """The metrics in the score of an outcome of so many classes; the first is the default."""
    if isinstance(outcome, Classes):
        return ("accuracy", "f1" if classes == 2 else "macro_f1", "matthews")
    return ("micro_f1", "macro_f1", "accuracy") if isinstance(outcome, Labels) else ("pearson", "spearman")


def chosen(metric: str, outcome: Outcome, classes: int) -> Metric:
    """The metric of this name.

    Raises:
        ValueError: there is none of this name for such an outcome; the message names those that there are.
    """
    there = metrics_of(outcome, classes)
    if metric not in there:
        raise unknown(f"task.metric for {_words(outcome, classes)}", metric, there)
    return there[metric]


def _words(outcome: Outcome, classes: int) -> str:
    if isinstance(outcome, Number):
        return "a number"
    return f"{classes} classes" if isinstance(outcome, Classes) else f"{classes} labels at once"


def predictions(logits: np.ndarray, outcome: Outcome) -> np.ndarray:
    """What rows of logits (examples, outputs) say: classes or numbers (examples,), or labels (examples, outputs)."""
    if isinstance(outcome, Number):
        return logits[:, 0]
    return (logits > 0).astype(int) if isinstance(outcome, Labels) else logits.argmax(-1)
