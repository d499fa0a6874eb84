"""How good are the probabilities that the store holds, overall and per task?

The metrics are those of `analysis._numbers.scores`, over the rows that have a label and a probability; the
label's nulls
(censored rows, say) are counted and left out, as EveryQuery's ``EQ_evaluate`` does.

The columns come past in batches. What is kept per row is its probability and label (four bytes, or eight if
probabilities are float64), its group and its unit (four each), in files once one of these is more than 64 MiB
(`analysis._rows.gather`). Memory is that of the groups and units, some 300 bytes for each that there is;
and of float64
probabilities with units, 20 bytes per row while they are sorted. Vectors are not read.

Place: tier 5, in `zarrow.analysis`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zarrow.analysis._numbers.scores import BINS, Scores, grouped_scores, score_keys
from zarrow.analysis._rows.arguments import require_store
from zarrow.analysis._rows.blocks import Progress
from zarrow.analysis._rows.gather import part, room
from zarrow.analysis._rows.groups import Groups, names_of, plain
from zarrow.errors import InvalidInputError, unknown_name
from zarrow.store import Store

__all__ = ["Evaluation", "evaluate", "hold_against", "read_binary", "read_numbers"]

Float = npt.NDArray[np.float64]
BATCH_ROWS = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How good probabilities are.

    Parameters
    ----------
    probability, label : str
        The columns.
    by : tuple of str
        The columns grouped by.
    overall : dict of str to number or None
        All groups together: the columns of `table` that are no keys. ``labelled`` rows have a label and a
        probability; ``auroc``, ``auprc``, ``brier``, ``ece`` and ``accuracy`` come with the 95 % interval,
        ``_low`` to ``_high``. None is what is not defined, as the AUROC of a single class.
    table : pyarrow.Table
        The same per group, ordered by its keys; a key called as one of the figures gets an underscore.
    missing_labels, missing_probabilities : int
        Rows left out since the label, or only the probability, is null or NaN.
    groups : Groups or None
        The groups.
    scores : list of Scores
        Per group what the curves are made of; of all rows, the last.
    """

    probability: str
    label: str
    by: tuple[str, ...]
    overall: dict[str, Any]
    table: pa.Table = field(repr=False)
    missing_labels: int
    missing_probabilities: int
    groups: Groups | None = field(repr=False)
    scores: list[Scores] = field(repr=False)

    def roc_curve(self, group: Any = None, max_points: int | None = None) -> tuple[Float, Float, Float]:
        """Return the ROC curve.

        Parameters
        ----------
        group : value, tuple or dict, optional
            The key of a group; all rows by default.
        max_points : int, optional
            Leave out points between, for drawing.

        Returns
        -------
        fpr : float64 array, shape (points,)
            False positive rates as of scikit-learn's ``roc_curve``, ends included.
        tpr : float64 array, shape (points,)
            True positive rates.
        thresholds : float64 array, shape (points,)
            The probabilities at which they change.

        Raises
        ------
        InvalidInputError
            If there is no such group, or it has one class only.

        Examples
        --------
        >>> import zarrow.analysis, zarrow.testing
        >>> store = zarrow.testing.example_predictions()
        >>> fpr, tpr, _ = zarrow.analysis.evaluate(store, "occurs_prob", "occurs").roc_curve()
        >>> fpr[0], tpr[-1]
        (np.float64(0.0), np.float64(1.0))
        """
        return self._of(group).roc_curve(max_points)

    def calibration_curve(self, group: Any = None) -> pa.Table:
        """Return how often what was predicted happened.

        Parameters
        ----------
        group : value, tuple or dict, optional
            The key of a group; all rows by default.

        Returns
        -------
        pyarrow.Table
            Per bin that holds rows: ``low``, ``high`` (included), ``rows``, ``mean_probability``,
            ``observed``.

        Raises
        ------
        InvalidInputError
            If there is no such group.

        Examples
        --------
        >>> import zarrow.analysis, zarrow.testing
        >>> store = zarrow.testing.example_predictions()
        >>> found = zarrow.analysis.evaluate(store, "occurs_prob", "occurs", by="query")
        >>> sum(found.calibration_curve("code//3")["rows"].to_pylist())
        450
        """
        return self._of(group).calibration_curve()

    def _of(self, group: Any) -> Scores:
        if group is None:
            return self.scores[-1]
        if self.groups is None:
            raise InvalidInputError(f"there is no group {group!r}: the evaluation was made without by=")
        return self.scores[self.groups.find(group)]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, but for times among the groups' keys.

        Returns
        -------
        dict
            Numbers, lists and objects.

        Examples
        --------
        >>> import zarrow.analysis, zarrow.testing
        >>> store = zarrow.testing.example_predictions()
        >>> found = zarrow.analysis.evaluate(store, "occurs_prob", "occurs", by="query").to_dict()
        >>> found["missing_labels"], len(found["groups"])
        (500, 10)
        """
        return {
            "probability": self.probability,
            "label": self.label,
            "by": list(self.by),
            "missing_labels": self.missing_labels,
            "missing_probabilities": self.missing_probabilities,
            "overall": self.overall,
            "groups": self.table.to_pylist() if self.by else [],
        }


def evaluate(
    store: Store | pa.Table,
    probability: str,
    label: str,
    *,
    by: str | Sequence[str] | None = None,
    filter: pc.Expression | None = None,
    bootstrap: int = 200,
    unit: str | None = None,
    bins: int = BINS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Hold the store's probabilities against its labels.

    What is kept of many rows lies in temporary files (see ``TMPDIR``), some 4 to 16 bytes each. Ten million
    rows of 200,000 patients as `unit` took 260 MB of memory, and 390 MB by 60 groups: 300 bytes per unit.

    Parameters
    ----------
    store : Store or pyarrow.Table
        The store, or a table such as `compose` makes.
    probability : str
        A column of probabilities, in 0..1; rows where it is null or NaN are left out and counted.
    label : str
        A column of booleans, or of zeros and ones; rows where it is null or NaN likewise.
    by : str or list of str, optional
        Columns to group by, such as ``["query", "duration_days"]``.
    filter : pyarrow.compute.Expression, optional
        Which rows; all by default.
    bootstrap : int
        How often to draw for the 95 % intervals; 0 for none.
    unit : str, optional
        The column whose values are drawn as a whole, such as ``subject_id``; single rows by default.
    bins : int
        Bins of equal width for the calibration.
    seed : int
        Of the draws.
    progress : callable, optional
        Is called with groups done and groups in all.

    Returns
    -------
    Evaluation
        Also of groups, or a store, without rows or of one class.

    Raises
    ------
    UnknownNameError
        If there is no such column.
    InvalidInputError
        If they are no probabilities, or no labels of yes and no.
    CorruptionError
        If the table is damaged.

    Examples
    --------
    >>> import zarrow.analysis, zarrow.testing
    >>> store = zarrow.testing.example_predictions()
    >>> found = zarrow.analysis.evaluate(store, "occurs_prob", "occurs", by="query")
    >>> round(found.overall["auroc"], 2), found.table.num_rows, found.missing_labels
    (0.82, 10, 500)
    """
    if bootstrap < 0 or bins < 1:
        raise InvalidInputError(f"bootstrap must be >= 0 and bins >= 1, got {bootstrap} and {bins}")
    names = names_of(by)
    columns = dict.fromkeys([probability, label, *names, *([unit] if unit else [])])
    if isinstance(store, pa.Table):
        for name in columns:
            if name not in store.column_names:
                raise unknown_name("column", name, store.column_names)
        table = (store if filter is None else store.filter(filter)).select(list(columns))
        groups = Groups(table.select(names)) if names else None
        units = None if unit is None else Groups(table.select([unit]))
        batches, most = iter(table.to_batches(BATCH_ROWS)), table.num_rows
        empty = table.schema.empty_table()
    else:
        require_store(store)
        groups = Groups.of_store(store, names, filter) if names else None
        units = None if unit is None else Groups.of_store(store, [unit], filter)
        reader = store.scan(list(columns), filter, BATCH_ROWS)
        batches, most, empty = iter(reader), store.num_rows, reader.schema.empty_table()
    gathered = _Gathered(probability, label, groups, units, most, empty)
    for batch in batches:
        gathered.add(batch)
    return gathered.evaluation(bootstrap, bins, seed, progress)


class _Gathered:
    """The rows that have a label and a probability, brought together group by group; of many, in files."""

    def __init__(
        self,
        probability: str,
        label: str,
        groups: Groups | None,
        units: Groups | None,
        most: int,
        empty: pa.Table,
    ) -> None:
        self._names = probability, label
        self._groups, self._units = groups, units
        self._single = empty.schema.field(probability).type in (pa.float16(), pa.float32())
        read_binary(empty[label], label)  # raises what is wrong with their types, though there be no rows
        read_numbers(empty[probability], probability)
        self._keys = room(most, np.dtype(np.uint32 if self._single else np.uint64))
        self._codes = room(most if groups is not None else 0, np.dtype(np.int32))
        self._unit = room(most if units is not None else 0, np.dtype(np.int32))
        self._filled = self._missing_labels = self._missing_probabilities = self._passed = 0
        self._rows = np.zeros(0 if groups is None else groups.count, np.int64)
        self._low, self._high = 0.0, 1.0

    def add(self, batch: pa.RecordBatch) -> None:
        probability, label = self._names
        labels, known = read_binary(batch[label], label)
        probabilities = read_numbers(batch[probability], probability)
        scored = ~np.isnan(probabilities)
        used = known & scored
        self._passed += batch.num_rows
        self._missing_labels += int((~known).sum())
        self._missing_probabilities += int((known & ~scored).sum())
        if scored.any():
            self._low = min(self._low, probabilities[scored].min())
            self._high = max(self._high, probabilities[scored].max())
        chosen = probabilities[used]
        here = slice(self._filled, self._filled + len(chosen))
        self._keys[here] = score_keys(labels[used], chosen.astype(np.float32) if self._single else chosen)
        if self._groups is not None:
            codes = self._groups.codes(batch)
            self._rows += np.bincount(codes, minlength=self._groups.count)
            self._codes[here] = codes[used]
        if self._units is not None:
            self._unit[here] = self._units.codes(batch)[used]
        self._filled = here.stop

    def evaluation(self, bootstrap: int, bins: int, seed: int, progress: Progress | None) -> Evaluation:
        _require_probabilities(np.array([self._low, self._high]), self._names[0])
        keys, codes = self._keys[: self._filled], self._codes[: self._filled]
        unit, scores = None if self._units is None else self._unit[: self._filled], []
        if self._groups is not None:
            count = self._groups.count
            parts = [None] * count if unit is None else part(unit, codes, count)
            for own_keys, own_unit in zip(part(keys, codes, count), parts, strict=True):
                scores.append(Scores.of_keys(own_keys, own_unit, bins))
        return _evaluation(
            Scores.of_keys(keys, unit, bins),
            scores,
            self._groups,
            self._rows,
            self._passed,
            probability=self._names[0],
            label=self._names[1],
            bootstrap=bootstrap,
            seed=seed,
            missing_labels=self._missing_labels,
            missing_probabilities=self._missing_probabilities,
            progress=progress,
        )


def hold_against(
    labels: npt.NDArray[np.bool_],
    probabilities: Float,
    groups: Groups | None,
    codes: npt.NDArray[np.int64] | None,
    used: npt.NDArray[np.bool_],
    units: npt.NDArray[np.int64] | None,
    *,
    probability: str,
    label: str,
    bootstrap: int,
    bins: int,
    seed: int,
    missing_labels: int = 0,
    missing_probabilities: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate arrays: `labels`, `probabilities` and `units` of the `used` rows, `codes` of all of them."""
    scores, rows = [], np.zeros(0, np.int64)
    if groups is not None and codes is not None:
        chosen = codes[used]
        order = np.argsort(chosen, kind="stable")
        bounds = np.append(0, np.cumsum(np.bincount(chosen, minlength=groups.count))).tolist()
        for start, stop in itertools.pairwise(bounds):
            here = order[start:stop]
            scores.append(
                Scores(labels[here], probabilities[here], None if units is None else units[here], bins)
            )
        rows = np.bincount(codes, minlength=groups.count)
    return _evaluation(
        Scores(labels, probabilities, units, bins),
        scores,
        groups,
        rows,
        len(used),
        probability=probability,
        label=label,
        bootstrap=bootstrap,
        seed=seed,
        missing_labels=missing_labels,
        missing_probabilities=missing_probabilities,
        progress=progress,
    )


def _evaluation(
    everything: Scores,
    scores: list[Scores],
    groups: Groups | None,
    rows: npt.NDArray[np.int64],
    all_rows: int,
    *,
    probability: str,
    label: str,
    bootstrap: int,
    seed: int,
    missing_labels: int,
    missing_probabilities: int,
    progress: Progress | None,
) -> Evaluation:
    table = None
    if groups is not None:
        table = grouped_scores(groups, scores, rows, bootstrap, seed, progress)
    overall = grouped_scores(None, [everything], np.array([all_rows]), bootstrap, seed)
    return Evaluation(
        probability=probability,
        label=label,
        by=() if groups is None else tuple(groups.names),
        overall=overall.to_pylist()[0],
        table=overall if table is None else table,
        missing_labels=missing_labels,
        missing_probabilities=missing_probabilities,
        groups=groups,
        scores=[*scores, everything],
    )


def read_binary(column: pa.ChunkedArray, name: str) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return labels of yes and no, and which rows have one.

    Raises
    ------
    InvalidInputError
        If the column holds something else than booleans, or zeros and ones.
    """
    values = plain(column)
    if not pa.types.is_boolean(values.type):
        if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
            raise InvalidInputError(
                f"labels must be booleans, or zeros and ones: column {name!r} is of type {values.type}"
            )
        numbers = read_numbers(values, name)
        known = ~np.isnan(numbers)
        others = numbers[known & (numbers != 0) & (numbers != 1)]
        if len(others):
            raise InvalidInputError(
                f"labels must be booleans, or zeros and ones: column {name!r} has a {others[0]:g}"
            )
        return numbers == 1, known
    known = values.is_valid().to_numpy(zero_copy_only=False)
    return values.fill_null(False).to_numpy(zero_copy_only=False), known


def read_numbers(column: pa.ChunkedArray | pa.Array, name: str) -> Float:
    """Return numbers, NaN where there is none.

    Raises
    ------
    InvalidInputError
        If the column holds something else.
    """
    values = plain(column)
    kind = values.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise InvalidInputError(f"column {name!r} must hold numbers, it is of type {kind}")
    return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))


def _require_probabilities(values: Float, name: str) -> None:
    if len(values) and not (values.min() >= 0 and values.max() <= 1):
        raise InvalidInputError(
            f"probabilities must be in 0..1: column {name!r} has values from {values.min():g} to "
            f"{values.max():g}; apply the sigmoid to logits"
        )
