"""The chance level of each metric: the best score of answers that do not depend on the text, and its standard error.

The answers are constant, or drawn at the rates of the classes, whichever is better. The error is that of the rows, and
of the draw if there is one.
"""

import math

import numpy as np

from nxmiformer.tasks.outcomes import Labels, Number, Outcome
from nxmiformer.tasks.scale import better
from nxmiformer.tasks.task import Chance, uncorrelated


def blind(metric: str, outcome: Outcome, truths: np.ndarray) -> Chance:
    """Chance by a metric of `tasks.metrics`, on examples with these truths: (examples,), or (examples, labels)."""
    if metric.endswith("error"):  # of the best constant: the median, or the mean
        absolute = metric == "mean_absolute_error"
        each = np.abs(truths - np.median(truths)) if absolute else (truths - truths.mean()) ** 2
        return Chance(float(each.mean()), float(each.std()) / math.sqrt(len(truths)), better(metric))
    if isinstance(outcome, Number) or metric == "matthews":
        return uncorrelated(len(truths))
    return _of_labels(metric, truths) if isinstance(outcome, Labels) else _of_classes(metric, truths)


def _of_classes(metric: str, truths: np.ndarray) -> Chance:
    count, rows = np.bincount(truths), len(truths)
    shares = count[count > 0] / rows
    classes, most = len(shares), float(shares.max())
    if metric == "f1":  # of the second class: always answering with it is the best
        return _constant_f1(float((truths == 1).mean()), rows)
    if metric == "balanced_accuracy":  # the mean recall of any such answer is 1 / classes; the error is a fair draw's
        error = math.sqrt((1 / classes) * (1 - 1 / classes) * float((1 / (shares * rows)).sum())) / classes
        return Chance(1 / classes, error)
    if metric == "macro_f1":
        # Answers at a rate r of a class of a share p have an F1 of 2pr / (p + r), whose slope is equal for all classes
        # where r = p: each then has p, the mean 1 / classes. The errors of the classes, (1 - p) / sqrt(rows), add up.
        return Chance(1 / classes, (classes - 1) / classes / math.sqrt(rows))
    if metric == "weighted_f1":
        constant = Chance(2 * most**2 / (1 + most), _spread(most, rows) * (4 * most + 2 * most**2) / (1 + most) ** 2)
        squares = float((shares**2).sum())
        spread = 4 * (float((shares**3).sum()) - squares**2) + float((shares * (1 - shares)).sum()) ** 2
        drawn = Chance(squares, math.sqrt(max(0.0, spread) / rows))
        return max(constant, drawn, key=lambda chance: chance.score)
    return Chance(most, _spread(most, rows))  # the largest class, always


def _constant_f1(share: float, rows: int) -> Chance:
    """The F1 of always answering with a class of this share, 2q / (1 + q): its error is the share's times
    2 / (1 + q)^2."""
    return Chance(2 * share / (1 + share), 2 * _spread(share, rows) / (1 + share) ** 2)


def _spread(share: float, rows: int) -> float:
    """The standard error of a share."""
    return math.sqrt(share * (1 - share) / rows)


def _of_labels(metric: str, truths: np.ndarray) -> Chance:
    rows, labels = truths.shape
    shares = truths.mean(0)
    if metric == "accuracy":  # the most frequent set of labels, always
        return Chance(most := float(np.unique(truths, axis=0, return_counts=True)[1].max() / rows), _spread(most, rows))
    if metric == "macro_f1":  # every label, always
        each = (2 / (1 + shares) ** 2 * (truths - shares)).mean(-1)
        return Chance(float((2 * shares / (1 + shares)).mean()), float(each.std()) / math.sqrt(rows))
    order, found = np.argsort(-shares, kind="stable"), []
    for size in range(1, labels + 1):  # the most frequent labels, always: as many as are best
        right, true = truths[:, order[:size]].sum(-1), truths.sum(-1)
        if metric == "samples_f1":
            each = 2 * right / (size + true)
            found.append(Chance(float(each.mean()), float(each.std()) / math.sqrt(rows)))
        else:  # a ratio of two sums: its error is that of what is left of the rows (Cochran 1977, section 2.11)
            score = float(2 * right.sum() / (size + true).sum())
            left = 2 * right - score * (size + true)
            found.append(Chance(score, math.sqrt(float((left**2).sum())) / float((size + true).sum())))
    return max(found, key=lambda chance: chance.score)
