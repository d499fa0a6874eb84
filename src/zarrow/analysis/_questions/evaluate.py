"""Evaluation — how good the probabilities in a store are, overall and per task.

The metrics are those of `_numbers.scores`, over the rows that have a label and a probability; rows
without a label (censored rows, say) are counted and left out, as EveryQuery's ``EQ_evaluate`` does.

The columns are read in batches. What is kept of each row is its probability and label (4 bytes, or 8 if
probabilities are float64), its group and its unit (4 bytes each), and twice to four times as much while rows
are sorted by group and with their units. Vectors are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zarrow.analysis._numbers.scores import BINS, Scores, grouped_scores, score_keys
from zarrow.analysis._questions.answer import HIDDEN, Answer, shown
from zarrow.analysis._rows.arguments import require_store
from zarrow.analysis._rows.blocks import Progress
from zarrow.analysis._rows.groups import Groups, names_of, plain
from zarrow.analysis._rows.roles import choose_label, choose_probability, order_of_tasks
from zarrow.errors import InvalidInputError, unknown_name
from zarrow.several import Union
from zarrow.store import Store

__all__ = ["Evaluation", "evaluate", "read_binary", "read_numbers"]

Float = npt.NDArray[np.float64]
BATCH_ROWS = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Evaluation(Answer):
    """How good probabilities are, overall and per group.

    Parameters
    ----------
    probability, label : str
        The columns.
    by : tuple of str
        The columns grouped by.
    overall : dict of str to number or None
        Of all rows: the columns of `table` except the keys. ``labelled`` rows have a label and a
        probability; ``auroc``, ``auprc``, ``brier``, ``ece`` and ``accuracy`` come with their 95 % intervals,
        from ``_low`` to ``_high``. ``censor_auroc`` is that of censoring, if it was asked for. A metric that
        is not defined, such as the AUROC of one class, is None.
    table : pyarrow.Table
        The same per group, ordered by key; a key column named like a metric gets a trailing underscore.
    missing_labels, missing_probabilities : int
        Rows left out because the label, or only the probability, is null or NaN.
    groups : Groups or None
        The groups.
    scores : list of Scores
        The scores that curves are made of: of each group, then of all rows.
    """

    probability: str
    label: str
    by: tuple[str, ...]
    overall: dict[str, Any]
    table: pa.Table = field(repr=False, metadata=shown("groups", lambda own: own.table if own.by else []))
    missing_labels: int
    missing_probabilities: int
    groups: Groups | None = field(repr=False, metadata=HIDDEN)
    scores: list[Scores] = field(repr=False, metadata=HIDDEN)

    def roc_curve(self, group: Any = None, max_points: int | None = None) -> tuple[Float, Float, Float]:
        """Return the ROC curve.

        Parameters
        ----------
        group : value, tuple or dict, optional
            The key of a group; all rows by default.
        max_points : int, optional
            Thin the curve to this number of points, for drawing.

        Returns
        -------
        fpr : float64 array, shape (points,)
            False positive rates, as from scikit-learn's ``roc_curve``, including both ends.
        tpr : float64 array, shape (points,)
            True positive rates.
        thresholds : float64 array, shape (points,)
            The probabilities at which they change.

        Raises
        ------
        InvalidInputError
            If there is no such group, or it has only one class.

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
        """Return the share of positives per bin of the probability.

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


def evaluate(
    store: Store | Union | pa.Table,
    probability: str | None = None,
    label: str | None = None,
    *,
    by: str | Sequence[str] | None = None,
    filter: pc.Expression | None = None,
    bootstrap: int = 200,
    unit: str | None = None,
    equal_units: bool = False,
    censoring: str | None = None,
    draws: Literal["rows", "cells"] = "rows",
    bins: int = BINS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Score the store's probabilities against its labels.

    Memory grows with the rows, so there should not be more than 100 million: 4 bytes per row, that is 400 MB,
    or 8 if probabilities are float64; measured at its peak, 26 bytes per row with `by`, 36 with `unit` and 50
    with both.

    Parameters
    ----------
    store : Store, Union or pyarrow.Table
        The store, the view of several (with ``by="model"``, say), or a table such as `compose` makes.
    probability : str, optional
        A column of probabilities, in 0..1; of a store, by default the one that looks like it. Rows where it
        is null or NaN are left out and counted.
    label : str, optional
        A column of booleans, or of zeros and ones; of a store, by default the one that looks like it. Rows
        where it is null or NaN are left out and counted.
    by : str or list of str, optional
        Columns to group by, such as ``["query", "duration_days"]``.
    filter : pyarrow.compute.Expression, optional
        Rows to use; all by default.
    bootstrap : int
        Number of draws for the 95 % intervals; 0 for no intervals.
    unit : str, optional
        The column whose values are drawn as a whole, such as ``subject_id``. By default single rows are.
    equal_units : bool
        Whether every unit counts once in each metric, however many rows it has: subjects weighted equally.
    censoring : str, optional
        A column of the probability that a row is censored, that is, has no label. Its AUROC over all rows
        is ``censor_auroc``, as EveryQuery's ``EQ_evaluate`` has it.
    draws : {"rows", "cells"}
        ``"cells"`` draws as ``EQ_evaluate_multitask`` does: with 1,000 of them, by ``"task"``, the intervals
        of AUROC are the same to the last bit. There are none of the other metrics then.
    bins : int
        Number of bins of equal width for the calibration.
    seed : int
        Random seed of the draws.
    progress : callable, optional
        Called with the number of groups done and the total.

    Returns
    -------
    Evaluation
        Also for groups, or a store, with no rows or with one class only.

    Raises
    ------
    UnknownNameError
        If there is no such column.
    InvalidInputError
        If a column does not hold probabilities, or labels of yes and no, or cannot be found by default.
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
    if draws not in ("rows", "cells"):
        raise InvalidInputError(f"draws must be 'rows' or 'cells', got {draws!r}")
    if equal_units and unit is None:
        raise InvalidInputError("equal_units=True weighs units equally: name their column with unit=")
    if draws == "cells" and unit is not None:
        raise InvalidInputError("draws='cells' draws single rows, and unit= whole units: choose one")
    names = names_of(by)
    if not isinstance(store, pa.Table):
        require_store(store, or_union=True)
        probability, label = choose_probability(store, probability), choose_label(store, label)
    elif probability is None or label is None:
        raise InvalidInputError("name the columns of a table that hold the probabilities and the labels")
    columns = dict.fromkeys(one for one in (probability, label, *names, unit, censoring) if one)
    if isinstance(store, pa.Table):
        for name in columns:
            if name not in store.column_names:
                raise unknown_name("column", name, store.column_names)
        table = (store if filter is None else store.filter(filter)).select(list(columns))
        groups = Groups(table.select(names)) if names else None
        units = None if unit is None else Groups(table.select([unit]))
        most, empty = table.num_rows, table.schema.empty_table()

        def batches() -> Iterator[pa.RecordBatch]:
            return iter(table.to_batches(BATCH_ROWS))

    else:
        groups = Groups.of_store(store, names, filter) if names else None
        units = None if unit is None else Groups.of_store(store, [unit], filter)
        most, empty = store.num_rows, store.scan(list(columns)).schema.empty_table()

        def batches() -> Iterator[pa.RecordBatch]:
            return iter(store.scan(list(columns), filter, BATCH_ROWS))

    def _score(
        probability: str, *, censored: bool, bootstrap: int
    ) -> tuple[_Scored, list[Scores], list[pa.Table]]:
        """Return the rows to score, the scores of groups and of all rows, and tables of their metrics."""
        make = partial(Scores, bins=bins, equal_units=equal_units)
        scored = _gather(batches(), most, empty, probability, label, groups, units, censored=censored)
        scores, tables = [], []
        if groups is not None and scored.codes is not None:
            scores = _group_scores(scored.keys, scored.codes, scored.units, groups.count, make)
            order = order_of_tasks(groups.keys) if draws == "cells" else None
            tables = [grouped_scores(groups, scores, scored.group_rows, bootstrap, seed, progress, order)]
        everything, order = make(scored.keys, scored.units), [0] if draws == "cells" else None
        rows = np.array([scored.rows])
        tables.append(grouped_scores(None, [everything], rows, bootstrap, seed, order=order))
        return scored, [*scores, everything], tables

    scored, scores, tables = _score(probability, censored=False, bootstrap=bootstrap)
    if censoring is not None:
        _, _, of_censoring = _score(censoring, censored=True, bootstrap=0)
        tables = [
            table.append_column("censor_auroc", one["auroc"])
            for table, one in zip(tables, of_censoring, strict=True)
        ]
    return Evaluation(
        probability=probability,
        label=label,
        by=tuple(names),
        overall=tables[-1].to_pylist()[0],
        table=tables[0],
        missing_labels=scored.missing_labels,
        missing_probabilities=scored.missing_probabilities,
        groups=groups,
        scores=scores,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    """The rows that have a label and a probability: keys of `score_keys`, groups, units; and counts."""

    keys: npt.NDArray[Any]
    codes: npt.NDArray[np.integer[Any]] | None
    units: npt.NDArray[np.integer[Any]] | None
    rows: int
    group_rows: npt.NDArray[np.int64]
    missing_labels: int
    missing_probabilities: int


def _gather(
    batches: Iterable[pa.RecordBatch],
    most: int,
    empty: pa.Table,
    probability: str,
    label: str,
    groups: Groups | None,
    units: Groups | None,
    *,
    censored: bool,
) -> _Scored:
    """Return the rows, at most `most`, that have a label and a probability.

    If `censored`, the label of a row is whether it has none.
    """
    single = empty.schema.field(probability).type in (pa.float16(), pa.float32())
    read_binary(empty[label], label)  # raises if a type is wrong, even if there are no rows
    read_numbers(empty[probability], probability)
    keys = np.empty(most, np.uint32 if single else np.uint64)
    codes = None if groups is None else np.empty(most, np.int32)
    unit = None if units is None else np.empty(most, np.int32)
    group_rows = np.zeros(0 if groups is None else groups.count, np.int64)
    filled = rows = missing_labels = missing_probabilities = 0
    for batch in batches:
        labels, known = read_binary(batch[label], label)
        if censored:
            labels, known = ~known, np.ones(len(known), bool)
        probabilities = read_numbers(batch[probability], probability)
        scored = ~np.isnan(probabilities)
        _require_probabilities(probabilities[scored], probability)
        used = known & scored
        rows += batch.num_rows
        missing_labels += int((~known).sum())
        missing_probabilities += int((known & ~scored).sum())
        here = slice(filled, filled := filled + int(used.sum()))
        keys[here] = score_keys(
            labels[used], probabilities[used].astype(np.float32 if single else np.float64)
        )
        if groups is not None and codes is not None:
            all_codes = groups.codes(batch)
            group_rows += np.bincount(all_codes, minlength=groups.count)
            codes[here] = all_codes[used]
        if units is not None and unit is not None:
            unit[here] = units.codes(batch)[used]
    return _Scored(
        keys=keys[:filled],
        codes=None if codes is None else codes[:filled],
        units=None if unit is None else unit[:filled],
        rows=rows,
        group_rows=group_rows,
        missing_labels=missing_labels,
        missing_probabilities=missing_probabilities,
    )


def _group_scores(
    keys: npt.NDArray[Any],
    codes: npt.NDArray[np.integer[Any]],
    units: npt.NDArray[np.integer[Any]] | None,
    groups: int,
    make: Callable[..., Scores],
) -> list[Scores]:
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=groups))
    rows = np.split(order, ends)[:-1]
    return [make(keys[here], None if units is None else units[here]) for here in rows]


def read_binary(column: pa.ChunkedArray, name: str) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return labels of yes and no, and a mask of the rows that have one.

    Raises
    ------
    InvalidInputError
        If the column holds anything but booleans, or zeros and ones.
    """
    values = plain(column)
    if not pa.types.is_boolean(values.type):
        if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
            raise InvalidInputError(
                f"labels must be booleans, or zeros and ones: column {name!r} is of type {values.type}: "
                "for several classes, write a column per class that is true for its rows"
            )
        numbers = read_numbers(values, name)
        known = ~np.isnan(numbers)
        others = numbers[known & (numbers != 0) & (numbers != 1)]
        if len(others):
            raise InvalidInputError(
                f"labels must be booleans, or zeros and ones: column {name!r} has the value {others[0]:g}: "
                "for several classes, write a column per class that is true for its rows"
            )
        return numbers == 1, known
    known = values.is_valid().to_numpy(zero_copy_only=False)
    return values.fill_null(False).to_numpy(zero_copy_only=False), known


def read_numbers(column: pa.ChunkedArray | pa.Array, name: str) -> Float:
    """Return numbers, NaN where a value is null.

    Raises
    ------
    InvalidInputError
        If the column holds anything but numbers.
    """
    values = plain(column)
    kind = values.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise InvalidInputError(f"column {name!r} must hold numbers, but is of type {kind}")
    return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))


def _require_probabilities(values: Float, name: str) -> None:
    if len(values) and not (values.min() >= 0 and values.max() <= 1):
        raise InvalidInputError(
            f"probabilities must be in 0..1: column {name!r} has values from {float(values.min())} to "
            f"{float(values.max())}; apply the sigmoid to logits"
        )
