"""How good are probabilities of yes or no?

`Scores` holds probabilities, highest first, with their labels, and computes of any weighting of the rows

* AUROC: the chance that a positive row has the higher probability, ties counting half (Hanley and McNeil,
  *The meaning and use of the area under a receiver operating characteristic curve*, 1982): exact;
* AUPRC: average precision, as scikit-learn's ``average_precision_score``;
* Brier score: the mean squared difference of probability and label (Brier, 1950);
* ECE: the expected calibration error over bins of equal width (Naeini, Cooper and Hauskrecht, *Obtaining Well
  Calibrated Probabilities Using Bayesian Binning*, AAAI 2015), 15 of them, as in Guo et al., ICML 2017;
* accuracy: of calling everything above one half a yes.

A metric that a group of rows cannot have (AUROC of one class, AUPRC without positives, anything of no rows)
is None. Intervals are percentiles of a bootstrap: rows, or whole units such as patients, are drawn with
replacement; draws for which the metric is not defined are left out.

Place: tier 5, in `zarrow.analysis`; below `_evaluate` and `_probe`. Pure.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow.analysis._groups import Groups
from zarrow.errors import InvalidInputError

__all__ = ["METRICS", "Scores", "grouped_scores"]

METRICS = ("auroc", "auprc", "brier", "ece", "accuracy")
COUNTS = ("rows", "labelled", "positives")
BINS = 15
CHUNK = 1 << 21
TAIL = 0.025

Float = npt.NDArray[np.float64]


class Scores:
    """Probabilities and labels.

    Parameters
    ----------
    label : bool array, shape (n,)
        Labels.
    probability : float array, shape (n,)
        Probabilities, in 0..1.
    units : int64 array, shape (n,), optional
        The unit of each row, for the bootstrap.
    bins : int
        How many for the calibration.

    Examples
    --------
    >>> scores = Scores(np.array([True, False, True, False]), np.array([0.9, 0.5, 0.5, 0.1]))
    >>> scores.metrics()["auroc"]
    0.875
    """

    def __init__(
        self,
        label: npt.NDArray[np.bool_],
        probability: npt.NDArray[np.floating[Any]],
        units: npt.NDArray[np.int64] | None = None,
        bins: int = BINS,
    ) -> None:
        order = np.argsort(-probability, kind="stable")
        self.probability = probability[order].astype(np.float64)
        self.label = label[order]
        self.bins = bins
        self._units = None if units is None else np.unique(units[order], return_inverse=True)[1].reshape(-1)
        changes = np.flatnonzero(np.diff(self.probability))
        self._ends = np.append(changes, len(order) - 1) if len(order) else changes
        # Bins are open at the left, as scikit-learn's are: 0.2 of five bins is in the first.
        edges = np.linspace(0, 1, bins + 1)[1:-1]
        self._bin = np.searchsorted(edges, self.probability)
        self._bin_starts = np.flatnonzero(np.diff(self._bin, prepend=-1))

    def metrics(self) -> dict[str, float | None]:
        """Return each metric, None where it is not defined."""
        if not len(self.label):
            return dict.fromkeys(METRICS)
        found = self._weighted(np.ones((1, len(self.label)), np.int64))
        return {name: None if np.isnan(values[0]) else float(values[0]) for name, values in found.items()}

    def intervals(self, draws: int, seed: int = 0) -> dict[str, tuple[float, float] | None]:
        """Return the 95 % interval of each metric, None where it is not defined."""
        count = len(self.label)
        if not count or not draws:
            return dict.fromkeys(METRICS)
        generator = np.random.default_rng(seed)
        units = count if self._units is None else int(self._units.max()) + 1
        chunks: dict[str, list[Float]] = {name: [] for name in METRICS}
        step = max(CHUNK // count, 1)
        for start in range(0, draws, step):
            here = min(step, draws - start)
            drawn = generator.integers(0, units, (here, units)) + np.arange(here)[:, None] * units
            weights = np.bincount(drawn.reshape(-1), minlength=here * units).reshape(here, units)
            found = self._weighted(weights if self._units is None else weights[:, self._units])
            for name in METRICS:
                chunks[name].append(found[name])
        return {name: _interval(np.concatenate(values)) for name, values in chunks.items()}

    def _weighted(self, weights: npt.NDArray[np.int64]) -> dict[str, Float]:
        """Return metrics for each row of weights; NaN where one is not defined."""
        positive = np.cumsum(weights * self.label, axis=1)[:, self._ends].astype(np.float64)
        together = np.cumsum(weights, axis=1)[:, self._ends].astype(np.float64)
        positives, total = positive[:, -1], together[:, -1]
        new = np.diff(positive, axis=1, prepend=0)
        new_negative = np.diff(together, axis=1, prepend=0) - new
        with np.errstate(invalid="ignore", divide="ignore"):
            pairs = (new_negative * (positive - new / 2)).sum(axis=1)
            auroc = pairs / (positives * (total - positives))
            precision = np.divide(positive, together, out=np.zeros_like(positive), where=together > 0)
            auprc = (new * precision).sum(axis=1) / positives
            error = self.probability - self.label
            per_bin = np.add.reduceat(weights * error, self._bin_starts, axis=1)
            called = self.probability > 0.5
            return {
                "auroc": auroc,
                "auprc": auprc,
                "brier": (weights * error**2).sum(axis=1) / total,
                "ece": np.abs(per_bin).sum(axis=1) / total,
                "accuracy": (weights * (called == self.label)).sum(axis=1) / total,
            }

    def roc_curve(self, max_points: int | None = None) -> tuple[Float, Float, Float]:
        """Return false and true positive rates and thresholds, from (0, 0) to (1, 1)."""
        positive = np.append(0, np.cumsum(self.label)[self._ends]).astype(np.float64)
        negative = np.append(0, np.cumsum(~self.label)[self._ends]).astype(np.float64)
        if not len(self.label) or not positive[-1] or not negative[-1]:
            raise InvalidInputError("a ROC curve needs rows of both classes")
        thresholds = np.append(np.inf, self.probability[self._ends])
        keep = np.arange(len(thresholds))
        if max_points is not None and len(keep) > max_points:
            keep = np.unique(np.linspace(0, len(keep) - 1, max(max_points, 2)).round().astype(np.int64))
        return negative[keep] / negative[-1], positive[keep] / positive[-1], thresholds[keep]

    def calibration_curve(self) -> pa.Table:
        """Return the bins that hold rows: low, high, rows, mean probability, share of positives."""
        names = ("rows", "mean_probability", "observed")
        summed = (np.ones(len(self.label)), self.probability, self.label.astype(np.float64))
        sums = [np.bincount(self._bin, values, minlength=self.bins) for values in summed]
        edges, used = np.linspace(0, 1, self.bins + 1), sums[0] > 0
        columns = [sums[0][used].astype(np.int64), *(total[used] / sums[0][used] for total in sums[1:])]
        return pa.table(
            {"low": edges[:-1][used], "high": edges[1:][used], **dict(zip(names, columns, strict=True))}
        )


def _interval(values: Float) -> tuple[float, float] | None:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [TAIL, 1 - TAIL])
    return float(low), float(high)


def grouped_scores(
    groups: Groups | None,
    scores: list[Scores],
    rows: npt.NDArray[np.int64],
    bootstrap: int,
    seed: int,
    progress: Any = None,
) -> pa.Table:
    """Return a table with a row per group: its key, counts, metrics and their intervals."""
    columns: dict[str, list[Any]] = {"rows": [], "labelled": [], "positives": [], "prevalence": []}
    for name in METRICS:
        columns |= {name: [], f"{name}_low": [], f"{name}_high": []}
    for number, one in enumerate(scores):
        labelled, positives = len(one.label), int(one.label.sum())
        columns["rows"].append(int(rows[number]))
        columns["labelled"].append(labelled)
        columns["positives"].append(positives)
        columns["prevalence"].append(positives / labelled if labelled else None)
        metrics, intervals = one.metrics(), one.intervals(bootstrap, seed)
        for name in METRICS:
            low, high = intervals[name] or (None, None)
            columns[name].append(metrics[name])
            columns[f"{name}_low"].append(low)
            columns[f"{name}_high"].append(high)
        if progress is not None:
            progress(number + 1, len(scores))
    arrays = {} if groups is None else {name: groups.keys[name] for name in groups.names}
    for name, values in columns.items():
        arrays[name] = pa.array(values, pa.int64() if name in COUNTS else pa.float64())
    return pa.table(arrays)
