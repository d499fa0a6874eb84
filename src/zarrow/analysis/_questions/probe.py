"""Linear probe — what a linear model can read off the stored vectors.

A logistic or ridge regression (`_numbers.linear`) of a label column on the standardised vectors of
some of the groups (patients), judged on the others, overall and per group of rows
(Alain and Bengio, *Understanding intermediate layers using linear classifier probes*, 2017).

Labels and groups are held in memory, about 40 bytes per row; vectors are streamed, once per iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zarrow._format.layout import ROW
from zarrow.analysis._numbers.linear import Scatter, Standard, fit_logistic, fit_ridge, predict
from zarrow.analysis._numbers.regression import regression_scores
from zarrow.analysis._questions.answer import HIDDEN, Answer, shown
from zarrow.analysis._questions.evaluate import Evaluation, evaluate, read_numbers
from zarrow.analysis._rows.arguments import read_vectors, require_choice
from zarrow.analysis._rows.blocks import Block, Progress, choose_array, width_of
from zarrow.analysis._rows.dataset import Source, source_of
from zarrow.analysis._rows.folds import Passes, State
from zarrow.analysis._rows.groups import Groups, column_codes, free_names, names_of, plain
from zarrow.analysis._rows.roles import subject_of
from zarrow.analysis._rows.workers import Client
from zarrow.errors import InvalidInputError

__all__ = ["Probe", "probe"]

Float = npt.NDArray[np.float64]
Kind = Literal["auto", "logistic", "ridge"]
MAX_INTEGER_CLASSES = 20


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Probe(Answer):
    """A linear model of a label, and how well it does on rows that it was not fitted to.

    Parameters
    ----------
    array, label : str
        The array that it reads, and the column that it predicts.
    group : str or None
        The column whose values are either all for training or all for testing.
    kind : {"logistic", "ridge"}
        The model.
    classes : list
        The values of the label, sorted; empty for ``ridge``.
    weights : float64 array, shape (outputs, width)
        For standardised columns; one output for two classes and for ``ridge``, else one per class.
    intercept : float64 array, shape (outputs,)
        Added to the outputs.
    mean, scale : float64 array, shape (width,)
        Columns are standardised by these; `scale` is inf for a column that does not vary.
    train_rows, test_rows : int64 array
        The rows for training and for testing, ascending.
    predictions : float64 array, shape (test rows, classes or 1)
        For each test row, the probability of each class, or the predicted number.
    overall : dict of str to number or None
        How good they are. Two classes: as in `Evaluation.overall`. More: ``accuracy`` of the likeliest
        class, and the means over classes of ``auroc``, ``auprc``, ``brier`` and ``ece``, each against the
        rest. Ridge: ``r2``, ``rmse``, ``mae``. With 95 % intervals, from ``_low`` to ``_high``.
    report : pyarrow.Table
        The same per group of `by`; for more than two classes, a row per group and class, against the rest.
    evaluations : dict of value to Evaluation
        With curves: of each class against the rest, or only of the second of two classes.
    iterations : int
        Iterations of the optimizer; 0 for ``ridge``.
    converged : bool
        Whether the optimizer converged.
    missing_labels, nonfinite_rows : int
        Rows left out because the label is null or NaN, and because the vector has a NaN or infinity.
    """

    array: str
    label: str
    group: str | None
    kind: Literal["logistic", "ridge"]
    classes: list[Any]
    weights: Float = field(repr=False, metadata=HIDDEN)
    intercept: Float = field(repr=False, metadata=HIDDEN)
    mean: Float = field(repr=False, metadata=HIDDEN)
    scale: Float = field(repr=False, metadata=HIDDEN)
    train_rows: npt.NDArray[np.int64] = field(
        repr=False, metadata=shown("train_rows", lambda own: len(own.train_rows))
    )
    test_rows: npt.NDArray[np.int64] = field(
        repr=False, metadata=shown("test_rows", lambda own: len(own.test_rows))
    )
    predictions: Float = field(repr=False, metadata=HIDDEN)
    overall: dict[str, Any]
    report: pa.Table = field(repr=False, metadata=shown("groups", lambda own: own.report))
    evaluations: dict[Any, Evaluation] = field(repr=False, metadata=HIDDEN)
    iterations: int
    converged: bool
    missing_labels: int
    nonfinite_rows: int

    def predict(self, vectors: npt.ArrayLike) -> Float:
        """Apply the model.

        Parameters
        ----------
        vectors : array, shape (n, width) or (n, *row_shape)
            Vectors.

        Returns
        -------
        float64 array, shape (n, classes or 1)
            For each vector, the probability of each class, or the predicted number.

        Raises
        ------
        InvalidInputError
            If they have another width or are not finite.

        Examples
        --------
        >>> import zarrow.analysis, zarrow.testing
        >>> store = zarrow.testing.example_predictions()
        >>> zarrow.analysis.probe(store, "occurs").predict(store["query_embed"][:3]).shape
        (3, 2)
        """
        values = read_vectors(vectors, len(self.mean), self.array)
        if not np.isfinite(values).all():
            raise InvalidInputError("vectors must be finite")
        return predict(values, Standard(self.mean, self.scale), self.weights, self.intercept, self.kind)


def probe(
    store: Source,
    label: str,
    *,
    array: str | None = None,
    group: str | None = "auto",
    kind: Kind = "auto",
    by: str | Sequence[str] | None = None,
    filter: pc.Expression | None = None,
    test_fraction: float = 0.2,
    regularization: float = 1.0,
    max_iterations: int = 200,
    tolerance: float = 1e-5,
    bootstrap: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
    client: Client | None = None,
) -> Probe:
    """Fit a linear probe to some groups of rows and judge it on the others.

    Parameters
    ----------
    store : Store, xarray.Dataset or xarray.DataArray
        The store, or a Dataset whose rows lie along ``row``: made from a store or not, chunked for dask or
        not, whole or a selection. A Dataset is read chunk by chunk; its rows are numbered from 0.
    label : str
        Label column, to be predicted. Rows where it is null or NaN are left out and counted.
    array : str, optional
        The array; may be left out if there is only one.
    group : str or None
        The column whose values must not be on both sides; None to split single rows. By default ("auto") the
        one that says which subject a row is about: ``subject_id``, else the first key, else single rows.
    kind : {"auto", "logistic", "ridge"}
        By default logistic for booleans, strings and integers of up to 20 values, and ridge for other
        numbers.
    by : str or list of str, optional
        Columns to report by, such as ``["query", "duration_days"]``.
    filter : pyarrow.compute.Expression, optional
        Rows to use; all by default.
    test_fraction : float
        Share of the groups that is kept for testing.
    regularization : float
        The ``C`` of scikit-learn's logistic regression, or the ``alpha`` of its ridge regression.
    max_iterations : int
        Limit for L-BFGS; each iteration takes a pass or two.
    tolerance : float
        The gradient at which L-BFGS stops.
    bootstrap : int
        Number of draws of groups for the 95 % intervals; 0 for no intervals.
    seed : int
        Random seed of the split and the draws.
    progress : callable, optional
        Called with the number of rows done and the total, in each pass.
    client : distributed.Client, optional
        The dask client whose workers read the vectors. For a Dataset of dask arrays, dask's own default
        client by default.

    Returns
    -------
    Probe
        The model and its report.

    Raises
    ------
    UnknownNameError
        If there is no such column or array.
    InvalidInputError
        If the label has only one class, or a class has no row for training; if groups are null; if no row
        is left for training or for testing.
    CorruptionError
        If the store is damaged.

    Examples
    --------
    >>> import zarrow.analysis, zarrow.testing
    >>> store = zarrow.testing.example_predictions()
    >>> found = zarrow.analysis.probe(store, "occurs", by="query")
    >>> round(found.overall["auroc"], 2), found.report.num_rows, found.converged
    (0.8, 10, True)
    """
    source, client = source_of(store, client)
    chosen = choose_array(source, array)
    require_choice("kind", kind, Kind)
    if bootstrap < 0:
        raise InvalidInputError(f"bootstrap must be >= 0, got {bootstrap}")
    if not regularization > 0:
        raise InvalidInputError(f"regularization must be positive, got {regularization}")
    if group == "auto" and group not in source.schema.names:
        group = subject_of(source)
    names = names_of(by)
    table = source.table(list(dict.fromkeys([ROW, label, *names, *([group] if group else [])])), filter)
    rows = table[ROW].to_numpy()
    target, known, classes = _read_label(table[label], label, kind)
    units = np.arange(len(rows))
    if group is not None:
        if table[group].null_count:
            raise InvalidInputError(
                f"{table[group].null_count} rows have no {group!r}, by which rows are split: leave them out "
                "with a filter, or give group=None to split single rows"
            )
        units = column_codes(table[group])[0]
    missing = int((~known).sum())
    table, rows, target, units = table.filter(pa.array(known)), rows[known], target[known], units[known]
    if not len(rows):
        raise InvalidInputError(f"no row has a label in column {label!r}: there is nothing to learn from")
    for_test = _for_test(units, test_fraction, seed)
    resolved: Literal["logistic", "ridge"] = "logistic" if classes else "ridge"

    train, train_target = rows[~for_test], target[~for_test]
    width = width_of(chosen)
    passes = Passes(source, chosen, train, train_target, client)
    scatter = passes.fold(partial(Scatter, width, full=resolved == "ridge"), progress)
    bad = np.concatenate([np.empty(0, np.int64), *scatter.bad])
    if len(bad):
        keep = ~np.isin(train, bad)
        train, train_target = train[keep], train_target[keep]
        passes = Passes(source, chosen, train, train_target, client)
    if not len(train):
        raise InvalidInputError(f"no row for training has a finite vector in array {chosen.name!r}")
    iterations, converged = 0, True
    if resolved == "ridge":
        standard = Standard.of(scatter.moments.part(slice(width)))
        weights, intercept = fit_ridge(scatter.moments, standard, regularization)
    else:
        _require_all(train_target, classes, label)
        standard = Standard.of(scatter.moments)
        weights, intercept, iterations, converged = fit_logistic(
            passes, standard, len(classes), regularization, max_iterations, tolerance, progress
        )
    make = partial(_Predictions, standard, weights, intercept, resolved)
    test = Passes(source, chosen, rows[for_test], np.flatnonzero(for_test), client).fold(make, progress)
    places, predictions = test.result(len(classes) or 1)
    if not len(places):
        raise InvalidInputError(f"no row for testing has a finite vector in array {chosen.name!r}")
    report = _judge(
        table.take(pa.array(places)),
        names,
        target[places],
        predictions,
        units[places],
        classes,
        label,
        bootstrap,
        seed,
    )
    return Probe(
        array=chosen.name,
        label=label,
        group=group,
        kind=resolved,
        classes=classes,
        weights=weights,
        intercept=intercept,
        mean=standard.mean,
        scale=standard.scale,
        train_rows=train,
        test_rows=rows[places],
        predictions=predictions,
        overall=report[0],
        report=report[1],
        evaluations=report[2],
        iterations=iterations,
        converged=converged,
        missing_labels=missing,
        nonfinite_rows=len(bad) + test.bad,
    )


def _read_label(
    column: pa.ChunkedArray, name: str, kind: str
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_], list[Any]]:
    """Return targets, a mask of the rows that have one, and the classes (none for numbers)."""
    values = plain(column)
    known = values.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_nested(values.type):
        raise InvalidInputError(
            f"a label must be a single value, but column {name!r} is of type {values.type}"
        )
    floating = pa.types.is_floating(values.type) or pa.types.is_decimal(values.type)
    integer = pa.types.is_integer(values.type)
    if floating:
        known = known & ~np.isnan(read_numbers(values, name))
    few = len(pc.unique(values.filter(pa.array(known)))) <= MAX_INTEGER_CLASSES
    numeric = floating or (integer and not few)
    if kind == "ridge" or (kind == "auto" and numeric):
        if pa.types.is_boolean(values.type):
            values = values.cast(pa.int8())
        numbers = read_numbers(values, name)
        return numbers, np.isfinite(numbers), []
    codes, names = column_codes(values.filter(pa.array(known)))
    if len(names) == 1:
        raise InvalidInputError(
            f"a probe needs a label with at least two classes: all {len(codes)} labels of column {name!r} "
            f"are {names[0].as_py()!r}"
        )
    target = np.zeros(len(known), np.int64)
    target[known] = codes
    return target, known, names.to_pylist()


def _for_test(units: npt.NDArray[np.int64], test_fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """Return which rows are for testing: those of a share of the units, rounded up."""
    from sklearn.model_selection import GroupShuffleSplit

    if not 0 < test_fraction < 1:
        raise InvalidInputError(f"test_fraction must be between 0 and 1, got {test_fraction}")
    count = len(np.unique(units))
    if count < 2:
        raise InvalidInputError(
            f"training and testing need at least two groups, but the labelled rows have {count}"
        )
    splitter = GroupShuffleSplit(1, test_size=min(ceil(test_fraction * count), count - 1), random_state=seed)
    _, places = next(splitter.split(units, groups=units))
    found = np.zeros(len(units), np.bool_)
    found[places] = True
    return found


def _require_all(target: npt.NDArray[np.int64], classes: list[Any], name: str) -> None:
    missing = np.flatnonzero(np.bincount(target, minlength=len(classes)) == 0)
    if len(missing):
        raise InvalidInputError(
            f"no row for training has the label {classes[missing[0]]!r} of column {name!r}: use another seed "
            "or a smaller test_fraction, or leave the class out with a filter"
        )


class _Predictions(State):
    """The model's predictions for the finite rows."""

    def __init__(self, standard: Standard, weights: Float, intercept: Float, kind: str) -> None:
        self._model = standard, weights, intercept, kind
        self.places: list[npt.NDArray[np.int64]] = []
        self.values: list[Float] = []
        self.bad = 0

    def add(self, block: Block) -> None:
        block, bad = block.split()
        self.bad += len(bad.rows)
        assert block.aside is not None
        self.places.append(block.aside)
        self.values.append(predict(block.values, *self._model))

    def result(self, outputs: int) -> tuple[npt.NDArray[np.int64], Float]:
        """Return the places of the rows in the table, and the predictions."""
        return (
            np.concatenate([np.empty(0, np.int64), *self.places]),
            np.concatenate([np.empty((0, outputs)), *self.values]),
        )


def _judge(
    table: pa.Table,
    names: list[str],
    target: npt.NDArray[Any],
    predictions: Float,
    units: npt.NDArray[np.int64],
    classes: list[Any],
    label: str,
    bootstrap: int,
    seed: int,
) -> tuple[dict[str, Any], pa.Table, dict[Any, Evaluation]]:
    """Return the overall metrics, the report and the evaluations of the test rows."""
    if not classes:
        groups = Groups(table.select(names)) if names else None
        codes = None if groups is None else groups.codes(table)
        overall = regression_scores(None, None, target, predictions[:, 0], units, bootstrap, seed)
        report = regression_scores(groups, codes, target, predictions[:, 0], units, bootstrap, seed)
        return overall.to_pylist()[0], report, {}
    evaluations = {}
    for place in [1] if len(classes) == 2 else range(len(classes)):
        columns = [f"probability of {classes[place]!r}", label, "unit"]
        columns = free_names(columns, names)
        scored = dict(zip(columns, (predictions[:, place], target == place, units), strict=True))
        scored = pa.table(dict(zip(names, table.select(names).columns, strict=True)) | scored)
        evaluations[classes[place]] = evaluate(
            scored, *columns[:2], by=names, unit=columns[2], bootstrap=bootstrap, seed=seed
        )
    if len(classes) == 2:
        (only,) = evaluations.values()
        return only.overall, only.table, evaluations
    tables = [
        one.table.drop_columns([name for name in one.table.column_names if name.startswith("accuracy")])
        for one in evaluations.values()
    ]
    kind = plain(table[label]).type
    keys = free_names(tables[0].column_names[: len(names)], ["class"])
    report = pa.concat_tables(
        one.rename_columns([*keys, *one.column_names[len(names) :]]).add_column(
            len(names), "class", pa.array([name] * one.num_rows, kind)
        )
        for name, one in zip(evaluations, tables, strict=True)
    )
    if names:
        numbers = [str(number) for number in range(report.num_columns)]  # a name may begin with a dot
        ordered = report.rename_columns(numbers).sort_by(
            [(one, "ascending") for one in numbers[: len(keys) + 1]]
        )
        report = ordered.rename_columns(report.column_names)
    return _over_classes(evaluations, target, predictions, units, bootstrap, seed), report, evaluations


def _over_classes(
    evaluations: dict[Any, Evaluation],
    target: npt.NDArray[np.int64],
    predictions: Float,
    units: npt.NDArray[np.int64],
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    right = (predictions.argmax(axis=1) == target).astype(np.float64)
    found: dict[str, Any] = {"rows": len(target), "labelled": len(target), "accuracy": float(right.mean())}
    # The mean absolute error of "right", compared to one, is the share that is wrong.
    wrong = regression_scores(None, None, np.ones(len(right)), right, units, bootstrap, seed).to_pylist()[0]
    for end, other in (("low", "high"), ("high", "low")):
        bound = wrong[f"mae_{other}"]
        found[f"accuracy_{end}"] = None if bound is None else 1 - bound
    for name in ("auroc", "auprc", "brier", "ece"):
        values = [one.overall[name] for one in evaluations.values() if one.overall[name] is not None]
        found[name] = float(np.mean(values)) if values else None
    return found
