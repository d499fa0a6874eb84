"""Curves along the probability — calibration with intervals, and the largest groups of an evaluation.

`evaluate` measures; pictures also need calibration in groups of about equally many rows, which shows rare
outcomes where bins of equal width would put nearly all rows into the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrow.analysis._numbers.scores import Scores
from zarrow.analysis._questions.evaluate import Evaluation
from zarrow.errors import InvalidInputError

__all__ = ["Calibration", "calibrate", "largest_groups"]

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Per group of rows: mean probability, share of positives with its 95 % Wilson interval, and size."""

    predicted: Float
    observed: Float
    low: Float
    high: Float
    rows: npt.NDArray[np.int64]


def calibrate(scores: Scores, bins: int = 10) -> Calibration:
    """Return the observed and the predicted frequencies, in ascending order of the probability.

    Rows of equal probability are always in the same group.

    >>> found = calibrate(Scores.of(np.arange(8) % 2 == 1, np.arange(8) / 8), bins=2)
    >>> found.predicted.tolist(), found.observed.tolist()
    ([0.1875, 0.6875], [0.5, 0.5])
    """
    from scipy.stats import binomtest

    if not len(scores):
        raise InvalidInputError("calibration needs rows that have a label and a probability")
    sums = np.zeros((3, bins))
    above = 0
    for values, counts, positive in scores.runs():
        below = len(scores) - above - np.cumsum(counts)
        above += int(counts.sum())
        group = np.minimum(below * bins // len(scores), bins - 1)
        for total, what in zip(sums, (counts, counts * values, positive), strict=True):
            total += np.bincount(group, what, minlength=bins)
    rows, predicted, positive = sums[:, sums[0] > 0]
    predicted, observed = predicted / rows, positive / rows
    rows, positive = rows.astype(np.int64), positive.astype(np.int64)
    tests = [binomtest(*pair) for pair in zip(positive.tolist(), rows.tolist(), strict=True)]
    low, high = np.array([test.proportion_ci(method="wilson") for test in tests]).T
    return Calibration(predicted=predicted, observed=observed, low=low, high=high, rows=rows)


def largest_groups(found: Evaluation, most: int) -> list[tuple[str, Scores]]:
    """Return up to `most` groups of an evaluation, those with the most labelled rows, ordered by key."""
    if found.groups is None:
        return []
    sizes = np.array([len(one) for one in found.scores[:-1]])
    chosen = np.sort(np.argsort(-sizes, kind="stable")[:most])
    keys = found.groups.keys.to_pylist()
    return [(group_name(keys[one]), found.scores[one]) for one in chosen]


def group_name(key: dict[str, Any]) -> str:
    """Return the name of a group in a picture.

    >>> group_name({"query": "stroke", "days": None})
    'stroke, null'
    """
    return ", ".join("null" if value is None else str(value) for value in key.values())
