"""Scores — how good probabilities of yes or no are, with bootstrap intervals.

`Scores` holds probabilities, highest first, with their labels, and computes of any weighting of the rows

* AUROC: the chance that a positive row has the higher probability, ties counting half (Hanley and McNeil,
  *The meaning and use of the area under a receiver operating characteristic curve*, 1982): exact;
* AUPRC: average precision, as scikit-learn's ``average_precision_score``;
* Brier score: the mean squared difference of probability and label (Brier, 1950);
* ECE: the expected calibration error over bins of equal width (Naeini, Cooper and Hauskrecht, *Obtaining Well
  Calibrated Probabilities Using Bayesian Binning*, AAAI 2015), 15 of them, as in Guo et al., ICML 2017;
* accuracy: the share of rows whose label is whether the probability is above one half.

A metric that a group of rows cannot have (AUROC of one class, AUPRC without positives, anything of no rows)
is None. Intervals are percentiles of a bootstrap: rows, or whole units such as patients, are drawn with
replacement (`draws`); draws for which the metric is not defined are left out. Drawn rows look worse
calibrated than the rows they are drawn from, by chance: the ECE of the draws is first corrected by the
difference between their mean and the ECE of the rows (Efron and Tibshirani, *An Introduction to the
Bootstrap*, 1993, chapter 10).

Rows are sorted once and held in memory, 4 or 8 bytes each, and 4 more with units. Every metric is a sum over
pieces of them, so that once they are sorted nothing else grows with the rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow.analysis._numbers.draws import draw_rows, draw_units, interval, pieces_of
from zarrow.analysis._rows.groups import Groups, metric_table
from zarrow.errors import InvalidInputError

__all__ = ["METRICS", "Scores", "grouped_scores", "score_keys"]

METRICS = ("auroc", "auprc", "brier", "ece", "accuracy")
COUNTS = ("rows", "labelled", "positives")
BINS = 15
CHUNK = 1 << 18
DRAWN_ROWS = 1 << 15
DRAWN = 1 << 19

Float = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Keys = npt.NDArray[Any]


class Scores:
    """Probabilities and labels, highest probability first.

    Parameters
    ----------
    keys : uint32 or uint64 array, shape (n,)
        The rows, as returned by `score_keys`; sorted in place.
    units : integer array, shape (n,), optional
        The unit of each row, for the bootstrap: small numbers, not negative.
    bins : int
        Number of bins of equal width for the calibration.
    equal_units : bool
        Whether every unit counts once in `metrics` and `intervals`, however many rows it has.

    Examples
    --------
    >>> scores = Scores.of(np.array([True, False, True, False]), np.array([0.9, 0.5, 0.5, 0.1]))
    >>> scores.metrics()["auroc"]
    0.875
    """

    def __init__(
        self,
        keys: Keys,
        units: npt.NDArray[np.integer[Any]] | None = None,
        bins: int = BINS,
        *,
        equal_units: bool = False,
    ) -> None:
        self.bins = bins
        # Bins are open at the left, as scikit-learn's are: 0.2 of five bins is in the first.
        self._edges = np.linspace(0, 1, bins + 1)[1:-1]
        self._units: npt.NDArray[np.int32] | None = None
        if units is None:
            keys.sort()
        else:
            order = np.argsort(keys)
            keys = keys[order]
            numbers = (
                np.cumsum(np.bincount(units) > 0, dtype=np.int32) - 1
            )  # numbers the units that occur, from 0
            self._units = numbers[units[order]]
        self._keys = keys
        self._weights: Float | None = None
        if equal_units and self._units is not None:
            self._weights = 1 / np.bincount(self._units)[self._units]

    @classmethod
    def of(
        cls,
        label: npt.NDArray[np.bool_],
        probability: npt.NDArray[np.floating[Any]],
        units: npt.NDArray[np.integer[Any]] | None = None,
    ) -> Scores:
        """Return the scores of labels and of probabilities in 0..1."""
        return cls(score_keys(label, probability), units)

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

    def runs(
        self, weights: Iterable[Counts] | None = None, rows: int | None = None
    ) -> Iterator[tuple[Float, Counts, Counts]]:
        """Yield distinct probabilities, highest first, how many rows have each, and how many positive.

        Weights come in pieces of shape (draws, rows) and say how often each row counts; the counts then have
        one row per draw.
        """
        held: tuple[Float, Counts, Counts] | None = None
        rows = CHUNK if rows is None else rows
        weighing = itertools.repeat(np.ones(rows, np.int64)) if weights is None else iter(weights)
        for here in pieces_of(len(self._keys), rows):
            keys = self._keys[here]
            weight = next(weighing)[..., : len(keys)]
            codes = keys >> 1
            ends = np.append(np.flatnonzero(np.diff(codes)), len(codes) - 1)
            counts, positive = (
                np.diff(np.cumsum(what, axis=-1)[..., ends], axis=-1, prepend=0)
                for what in (weight, weight * (keys & 1).astype(np.int64))
            )
            values = _probabilities(codes[ends])
            if held is not None and held[0][0] == values[0]:
                counts[..., 0] += held[1][..., 0]
                positive[..., 0] += held[2][..., 0]
            elif held is not None:
                yield held
            # The next piece may begin with more of the last.
            yield values[:-1], counts[..., :-1], positive[..., :-1]
            held = values[-1:], counts[..., -1:], positive[..., -1:]
        if held is not None:
            yield held

    def metrics(self) -> dict[str, float | None]:
        """Return each metric, None where it is not defined."""
        sums = _Sums(1, self._edges)
        weights = itertools.repeat(np.ones((1, CHUNK), np.int64))
        for run in self.runs(self._weighted(weights, CHUNK)):
            sums.add(*run)
        found = {name: float(values[0]) for name, values in sums.metrics().items()}
        return {name: None if np.isnan(value) else value for name, value in found.items()}

    def intervals(self, draws: int, seed: int = 0) -> dict[str, tuple[float, float] | None]:
        """Return the 95 % interval of each metric, None where it is not defined.

        Several draws are made at a time, in pieces of the rows: memory is that of the pieces, and 8 bytes per
        unit.
        """
        count = len(self)
        if not count or not draws:
            return dict.fromkeys(METRICS)
        generator = np.random.default_rng(seed)
        units = 0 if self._units is None else int(self._units.max()) + 1
        rows = min(count, DRAWN_ROWS)
        step = max(DRAWN // max(rows, units), 1)
        found: list[dict[str, Float]] = []
        for start in range(0, draws, step):
            here = min(step, draws - start)
            if self._units is None:
                weights = draw_rows(generator, here, count, rows)
            else:
                weights = draw_units(generator, here, units, self._units, rows)
            sums = _Sums(here, self._edges)
            for run in self.runs(self._weighted(weights, rows), rows):
                sums.add(*run)
            found.append(sums.metrics())
        drawn = {name: np.concatenate([one[name] for one in found]) for name in METRICS}
        drawn["ece"] = np.maximum(drawn["ece"] - drawn["ece"].mean() + self.metrics()["ece"], 0)
        return {name: interval(values) for name, values in drawn.items()}

    def _weighted(self, drawn: Iterable[Counts], rows: int) -> Iterator[Any]:
        """Yield how often rows count, with the weights of their units, in pieces."""
        for piece, here in zip(drawn, pieces_of(len(self), rows), strict=False):
            yield piece if self._weights is None else piece[:, : here.stop - here.start] * self._weights[here]

    def cell_interval(self, generator: np.random.Generator, draws: int) -> tuple[float, float] | None:
        """Return the interval of the AUROC as EveryQuery's ``EQ_evaluate_multitask`` computes it.

        Rows are drawn by one multinomial draw over the cells of equal probability and label, which is
        distributed as drawing them one by one, and depends on the state of the generator.

        Examples
        --------
        >>> scores = Scores.of(np.array([True, False, True, False]), np.array([0.9, 0.5, 0.5, 0.1]))
        >>> scores.cell_interval(np.random.default_rng(0), 1000)
        (0.5, 1.0)
        """
        runs = list(self.runs())
        if not runs:
            return None
        counts, positive = (np.concatenate([run[part] for run in runs])[::-1] for part in (1, 2))
        cells = np.concatenate([positive, counts - positive])
        if not 0 < positive.sum() < len(self):
            return None
        found = []
        step = max(DRAWN // len(cells), 1)
        for start in range(0, draws, step):
            drawn = generator.multinomial(len(self), cells / len(self), size=min(step, draws - start))
            yes, no = drawn[:, : len(counts)], drawn[:, len(counts) :]
            midranks = np.cumsum(yes + no, axis=1) - (yes + no) + (yes + no + 1.0) / 2.0
            of_yes, of_no = yes.sum(axis=1), no.sum(axis=1)
            above = (yes * midranks).sum(axis=1) - of_yes * (of_yes + 1.0) / 2.0
            with np.errstate(invalid="ignore", divide="ignore"):
                found.append(np.where((of_yes > 0) & (of_no > 0), above / (of_yes * of_no), np.nan))
        drawn_auroc = np.concatenate(found)
        if np.isnan(drawn_auroc).all():
            return None
        tail = (1.0 - 0.95) / 2.0 * 100.0  # not exactly 2.5, as EveryQuery has it
        low, high = np.nanpercentile(drawn_auroc, [tail, 100.0 - tail]).tolist()
        return low, high

    def roc_curve(self, max_points: int | None = None) -> tuple[Float, Float, Float]:
        """Return false and true positive rates and thresholds, from (0, 0) to (1, 1)."""
        points = 1 + sum(len(values) for values, _, _ in self.runs())
        keep = np.arange(points)
        if max_points is not None and points > max_points:
            keep = np.unique(np.linspace(0, points - 1, max(max_points, 2)).round().astype(np.int64))
        passed, totals, pieces = 0, np.zeros((2, 1)), [np.array([[np.inf], [0], [0]])]
        for values, counts, positive in self.runs():
            curve = totals + np.cumsum([positive, counts - positive], axis=1)
            here = keep[(keep > passed) & (keep <= passed + len(values))] - passed - 1
            pieces.append(np.stack([values, *curve])[:, here])
            passed, totals = passed + len(values), np.concatenate([totals, curve], axis=1)[:, -1:]
        if not totals.all():
            raise InvalidInputError("a ROC curve needs rows of both classes")
        thresholds, positives, negatives = np.concatenate(pieces, axis=1)
        return negatives / totals[1], positives / totals[0], thresholds

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


class _Sums:
    """The sums that metrics are made of, per draw, over runs of equal probabilities, highest first."""

    def __init__(self, draws: int, edges: Float) -> None:
        self._edges = edges
        self._pairs, self._precision, self._squares, self._called = np.zeros((4, draws))
        self._rows, self._positives = np.zeros((2, draws))
        self._errors = np.zeros((draws, len(edges) + 1))

    def add(self, values: Float, counts: Counts, positive: Counts) -> None:
        """Add runs; counts are of shape (draws, runs)."""
        if not len(values):
            return
        negative = (counts - positive).astype(np.float64)
        above = self._positives[:, None] + np.cumsum(positive, axis=1)
        together = self._rows[:, None] + np.cumsum(counts, axis=1)
        self._rows, self._positives = together[:, -1].copy(), above[:, -1].copy()
        precision = np.divide(above, together, out=np.zeros_like(above), where=together > 0)
        self._precision += np.einsum("ij,ij->i", positive, precision)
        above -= positive / 2
        self._pairs += np.einsum("ij,ij->i", negative, above)
        self._squares += positive @ (1 - values) ** 2 + negative @ values**2
        self._called += positive @ (values > 0.5) + negative @ (values <= 0.5)
        bins = np.searchsorted(self._edges, values)
        starts = np.flatnonzero(np.diff(bins, prepend=-1))
        self._errors[:, bins[starts]] += np.add.reduceat(counts * values - positive, starts, axis=1)

    def metrics(self) -> dict[str, Float]:
        """Return the metrics of each draw; NaN where one is not defined."""
        rows, positives = self._rows, self._positives
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "auroc": self._pairs / (positives * (rows - positives)),
                "auprc": self._precision / positives,
                "brier": self._squares / rows,
                "ece": np.abs(self._errors).sum(axis=1) / rows,
                "accuracy": self._called / rows,
            }


def grouped_scores(
    groups: Groups | None,
    scores: list[Scores],
    rows: npt.NDArray[np.int64],
    bootstrap: int,
    seed: int,
    progress: Any = None,
    order: Sequence[int] | None = None,
) -> pa.Table:
    """Return a table with a row per group: its key, counts, metrics and their intervals.

    With an order of the groups there are only the `Scores.cell_interval` of all of them, from one generator.
    """
    lines = []
    drawn: dict[int, tuple[float, float] | None] = {}
    generator = np.random.default_rng(seed)
    for number in order or ():
        drawn[number] = scores[number].cell_interval(generator, bootstrap) if bootstrap else None
    for number, one in enumerate(scores):
        labelled, positives = len(one), one.positives
        line: dict[str, float | None] = {
            "rows": int(rows[number]),
            "labelled": labelled,
            "positives": positives,
        }
        line["prevalence"] = positives / labelled if labelled else None
        intervals = one.intervals(0 if drawn else bootstrap, seed)
        intervals["auroc"] = drawn.get(number, intervals["auroc"])
        for name, value in one.metrics().items():
            line[name] = value
            line[f"{name}_low"], line[f"{name}_high"] = intervals[name] or (None, None)
        lines.append(line)
        if progress is not None:
            progress(number + 1, len(scores))
    return metric_table(groups, lines, [*COUNTS, "prevalence"], METRICS)
