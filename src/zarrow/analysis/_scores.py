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

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow.analysis._groups import Groups
from zarrow.errors import InvalidInputError

__all__ = ["METRICS", "Scores", "grouped_scores", "score_keys"]

METRICS = ("auroc", "auprc", "brier", "ece", "accuracy")
COUNTS = ("rows", "labelled", "positives")
BINS = 15
CHUNK = 1 << 18
DRAWN = 1 << 21
TAIL = 0.025

Float = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Keys = npt.NDArray[Any]


class Scores:
    """Probabilities and labels, highest probability first.

    Each row is one sorted integer: what its probability lacks of one, in bits, and its label. That is four
    bytes of float16 and float32, eight of anything wider; and metrics are summed over pieces of it, so that
    it may as well lie in a file.

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
        self._keys = score_keys(label, probability)
        self._units = None
        self.bins = bins
        # Bins are open at the left, as scikit-learn's are: 0.2 of five bins is in the first.
        self._edges = np.linspace(0, 1, bins + 1)[1:-1]
        if units is None:
            self._keys.sort()
        else:
            order = np.argsort(self._keys, kind="stable")
            self._keys = self._keys[order]
            self._units = np.unique(units[order], return_inverse=True)[1].reshape(-1)

    @classmethod
    def of_keys(cls, keys: Keys, bins: int = BINS) -> Scores:
        """Return scores of `score_keys` that are the scores' from now on: sorts them in place."""
        made = cls(np.empty(0, np.bool_), np.empty(0, np.float32), None, bins)
        keys.sort()
        made._keys = keys
        return made

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def label(self) -> npt.NDArray[np.bool_]:
        """The labels."""
        return (self._keys & 1).astype(np.bool_)

    @property
    def probability(self) -> Float:
        """The probabilities."""
        return _probabilities(self._keys >> 1)

    @property
    def positives(self) -> int:
        """How many labels are true."""
        return sum(int(positive.sum()) for _, _, positive in self.runs())

    def runs(self) -> Iterator[tuple[Float, Counts, Counts]]:
        """Yield different probabilities, highest first, how many rows have each, and how many positive."""
        held: tuple[Float, Counts, Counts] | None = None
        for start in range(0, len(self._keys), CHUNK):
            keys = np.asarray(self._keys[start : start + CHUNK])
            codes = keys >> 1
            starts = np.append(0, np.flatnonzero(np.diff(codes)) + 1)
            run = (
                _probabilities(codes[starts]),
                np.diff(np.append(starts, len(codes))),
                np.add.reduceat((keys & 1).astype(np.int64), starts),
            )
            if held is not None and held[0][0] == run[0][0]:
                run[1][0] += held[1][0]
                run[2][0] += held[2][0]
            elif held is not None:
                yield held
            # The next piece may begin with more of the last.
            yield run[0][:-1], run[1][:-1], run[2][:-1]
            held = run[0][-1:], run[1][-1:], run[2][-1:]
        if held is not None:
            yield held

    def metrics(self) -> dict[str, float | None]:
        """Return each metric, None where it is not defined."""
        pairs = precision = squares = called = 0.0
        errors = np.zeros(self.bins)
        rows = positives = 0
        for values, counts, positive in self.runs():
            negative = counts - positive
            above = positives + np.cumsum(positive)
            together = rows + np.cumsum(counts)
            pairs += float((negative * (above - positive / 2)).sum())
            precision += float((positive * (above / together)).sum())
            squares += float((positive * (1 - values) ** 2 + negative * values**2).sum())
            called += float(np.where(values > 0.5, positive, negative).sum())
            bins = np.searchsorted(self._edges, values)
            errors += np.bincount(bins, counts * values - positive, minlength=self.bins)
            rows, positives = rows + int(counts.sum()), positives + int(positive.sum())
        if not rows:
            return dict.fromkeys(METRICS)
        negatives = rows - positives
        return {
            "auroc": pairs / (positives * negatives) if positives and negatives else None,
            "auprc": precision / positives if positives else None,
            "brier": squares / rows,
            "ece": float(np.abs(errors).sum()) / rows,
            "accuracy": called / rows,
        }

    def intervals(self, draws: int, seed: int = 0) -> dict[str, tuple[float, float] | None]:
        """Return the 95 % interval of each metric, None where it is not defined."""
        count = len(self)
        if not count or not draws:
            return dict.fromkeys(METRICS)
        rows = _Rows(self.probability, self.label, self._edges)
        generator = np.random.default_rng(seed)
        units = count if self._units is None else int(self._units.max()) + 1
        chunks: dict[str, list[Float]] = {name: [] for name in METRICS}
        step = max(DRAWN // count, 1)
        for start in range(0, draws, step):
            here = min(step, draws - start)
            drawn = generator.integers(0, units, (here, units)) + np.arange(here)[:, None] * units
            weights = np.bincount(drawn.reshape(-1), minlength=here * units).reshape(here, units)
            found = rows.weighted(weights if self._units is None else weights[:, self._units])
            for name in METRICS:
                chunks[name].append(found[name])
        return {name: _interval(np.concatenate(values)) for name, values in chunks.items()}

    def roc_curve(self, max_points: int | None = None) -> tuple[Float, Float, Float]:
        """Return false and true positive rates and thresholds, from (0, 0) to (1, 1)."""
        points = 1 + sum(len(values) for values, _, _ in self.runs())
        keep = np.arange(points)
        if max_points is not None and points > max_points:
            keep = np.unique(np.linspace(0, points - 1, max(max_points, 2)).round().astype(np.int64))
        positive, negative, thresholds = np.zeros(len(keep)), np.zeros(len(keep)), np.full(len(keep), np.inf)
        passed = positives = negatives = 0
        for values, counts, positives_of in self.runs():
            here = (keep > passed) & (keep <= passed + len(values))
            places = keep[here] - passed - 1
            positive[here] = positives + np.cumsum(positives_of)[places]
            negative[here] = negatives + np.cumsum(counts - positives_of)[places]
            thresholds[here] = values[places]
            passed += len(values)
            positives += int(positives_of.sum())
            negatives += int((counts - positives_of).sum())
        if not positives or not negatives:
            raise InvalidInputError("a ROC curve needs rows of both classes")
        return negative / negatives, positive / positives, thresholds

    def calibration_curve(self) -> pa.Table:
        """Return the bins that hold rows: low, high, rows, mean probability, share of positives."""
        sums = np.zeros((3, self.bins))
        for values, counts, positive in self.runs():
            bins = np.searchsorted(self._edges, values)
            for total, what in zip(sums, (counts, counts * values, positive), strict=True):
                total += np.bincount(bins, what, minlength=self.bins)
        edges, used = np.linspace(0, 1, self.bins + 1), sums[0] > 0
        rows, mean, observed = sums[0][used], sums[1][used] / sums[0][used], sums[2][used] / sums[0][used]
        columns = {"rows": rows.astype(np.int64), "mean_probability": mean, "observed": observed}
        return pa.table({"low": edges[:-1][used], "high": edges[1:][used], **columns})


def score_keys(label: npt.NDArray[np.bool_], probability: npt.NDArray[np.floating[Any]]) -> Keys:
    """Return an integer per row that orders rows by probability, highest first, and holds the label.

    The bits of a positive float, read as an integer, are in the order of its values (IEEE 754).

    >>> score_keys(np.array([True, False]), np.array([1.0, 1.0], np.float32)).tolist()
    [1, 0]
    """
    single = probability.dtype.itemsize <= 4
    values = probability.astype(np.float32 if single else np.float64) + 0  # −0 has another bit
    bits = values.view(np.uint32 if single else np.uint64)
    keys: Keys = ((_one(bits.dtype) - bits) << 1) | label
    return keys


def _probabilities(codes: Keys) -> Float:
    values: Keys = (_one(codes.dtype) - codes).view(np.float32 if codes.itemsize == 4 else np.float64)
    return values.astype(np.float64)


def _one(dtype: np.dtype[Any]) -> Any:
    """Return the bits of one."""
    return np.ones(1, np.float32 if dtype.itemsize == 4 else np.float64).view(dtype)[0]


class _Rows:
    """Rows one by one, to be weighted."""

    def __init__(self, probability: Float, label: npt.NDArray[np.bool_], edges: Float) -> None:
        self.probability, self.label = probability, label
        self._ends = np.append(np.flatnonzero(np.diff(probability)), len(label) - 1)
        self._bin_starts = np.flatnonzero(np.diff(np.searchsorted(edges, probability), prepend=-1))

    def weighted(self, weights: npt.NDArray[np.int64]) -> dict[str, Float]:
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
        labelled, positives = len(one), one.positives
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
