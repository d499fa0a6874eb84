"""EveryQuery's tasks — the frame that identifies the rows of a run, and the preset that stores predictions.

EveryQuery's dataset keeps its tasks in a frame. `identifiers` takes from it the columns that name a row, and
its label; the other columns, and the array, are entries of the prediction. `preset` declares all of them to
`zarrow.lightning.PredictionWriter`. The frame may have many millions of rows; only a window around those of
the last batch is converted at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zarrow._format.checksum import crc32c
from zarrow._predict.identifiers import Identifiers, TableIdentifiers
from zarrow._predict.sample_set import SampleIndex
from zarrow.errors import BatchError, InvalidInputError
from zarrow.transfer._everyquery import ARRAY, KEYS, LABEL, PROBABILITIES, TYPES

__all__ = ["ENTRIES", "identifiers", "preset", "tasks_crc32c"]

OCCURS = "occurs"
ENTRIES = {"censor_prob": "censor_probs", "occurs_prob": "occurs_probs", ARRAY: "query_embed"}
"""Names in the store, and the entries of EveryQuery's prediction that are stored under them."""

_IGNORED = ("occurs", "censor", "query", "duration_days")
_WINDOW_ROWS = 1 << 16


def identifiers(frame: Any) -> pa.Table:
    """Return the columns that name EveryQuery's tasks, and their labels.

    EveryQuery's dataset splits a nullable ``boolean_value`` in two: ``boolean_value``, which from then on
    says whether the row is censored, and ``occurs``. Here it is one column again: null where the row is
    censored, else what occurred.

    Parameters
    ----------
    frame : polars.DataFrame or pyarrow.Table
        The ``schema_df`` of EveryQuery's dataset, or a slice of it.

    Returns
    -------
    pyarrow.Table
        ``subject_id``, ``prediction_time``, ``query``, ``duration_days`` and, if the frame has both
        ``boolean_value`` (censored) and ``occurs``, ``boolean_value``: null where censored.

    Raises
    ------
    InvalidInputError
        If `frame` is neither, lacks a column, or a column cannot be cast to its type.

    Examples
    --------
    >>> tasks = pa.table(
    ...     {
    ...         "subject_id": [7, 7],
    ...         "prediction_time": pa.array([0, 0], pa.timestamp("us")),
    ...         "query": ["HR", "TEMP"],
    ...         "duration_days": [30.0, 30.0],
    ...         "boolean_value": [True, False],
    ...         "occurs": [False, True],
    ...     }
    ... )
    >>> identifiers(tasks)["boolean_value"].to_pylist()
    [None, True]
    """
    names = _column_names(frame)
    missing = [name for name in KEYS if name not in names]
    if missing:
        raise InvalidInputError(
            f"schema_df must have the columns {', '.join(KEYS)}; missing {missing}, got {names}: "
            "pass the schema_df of EveryQuery's dataset"
        )
    has_label = LABEL in names and OCCURS in names
    table = pa.table(frame.select([*KEYS, *((LABEL, OCCURS) if has_label else ())]))
    columns = {name: _cast(table, name, TYPES[name]) for name in KEYS}
    if has_label:
        # In this order, as EveryQuery has it: a row whose censoring is unknown counts as not censored.
        censored = _cast(table, LABEL, pa.bool_()).fill_null(False)
        columns[LABEL] = pc.if_else(censored, pa.scalar(None, pa.bool_()), _cast(table, OCCURS, pa.bool_()))
    return pa.table(columns)


def _column_names(frame: Any) -> list[str]:
    """Return the names of a frame's columns, if it can be sliced without a copy."""
    names = getattr(frame, "column_names", None) or getattr(frame, "columns", None)
    if not hasattr(frame, "__arrow_c_stream__") or not hasattr(frame, "slice") or names is None:
        raise InvalidInputError(
            f"schema_df must be a polars DataFrame or a pyarrow Table, got {type(frame).__name__}: "
            "convert it: polars.DataFrame(frame)"
        )
    return list(names)


def _cast(table: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    try:
        return table[name].cast(kind)
    except pa.ArrowException as error:
        raise InvalidInputError(
            f"schema_df: the column {name!r} must be {kind}, got {table[name].type}: {error}: cast it"
        ) from error


class _TaskIdentifiers(Identifiers):
    """Identifiers out of a frame of tasks, of which a window at a time is converted and kept."""

    def __init__(self, frame: Any) -> None:
        self._frame = frame
        self._start = 0
        self._window = TableIdentifiers(identifiers(frame.slice(0, 0) if hasattr(frame, "slice") else frame))

    @property
    def rows(self) -> int:
        return len(self._frame)

    def take(self, sample_index: SampleIndex) -> pa.Table:
        if len(sample_index):
            self._convert(int(sample_index.min()), int(sample_index.max()) + 1)
        return self._window.take(sample_index - self._start)

    def _convert(self, start: int, stop: int) -> None:
        """Let the window cover these rows."""
        if stop > self.rows:
            raise BatchError(
                f"the batch has the rows {start} to {stop}, but schema_df has only {self.rows}: pass the "
                "schema_df of the dataset that is predicted, and a loader that yields each row once"
            )
        if not self._start <= start <= stop <= self._start + self._window.rows:
            self._start = start // _WINDOW_ROWS * _WINDOW_ROWS
            window = self._frame.slice(self._start, max(_WINDOW_ROWS, stop - self._start))
            self._window = TableIdentifiers(identifiers(window))


def tasks_crc32c(frame: Any) -> str:
    """Return a checksum of the identifiers and labels of a frame of tasks."""
    checksum = 0
    for start in range(0, len(frame), _WINDOW_ROWS):
        for batch in identifiers(frame.slice(start, _WINDOW_ROWS)).combine_chunks().to_batches():
            checksum = crc32c(np.frombuffer(batch.serialize(), np.uint8), checksum)
    return f"{checksum:08x}"


def preset(schema_df: Any, *, embeddings: bool = True) -> dict[str, Any]:
    """Return arguments with which `zarrow.lightning.PredictionWriter` stores EveryQuery's predictions.

    For runs other than ``EQ_predict``'s; `export_predictions` writes EveryQuery's files from the store.

    Parameters
    ----------
    schema_df : polars.DataFrame or pyarrow.Table
        The tasks, in the dataset's order. Kept, not copied.
    embeddings : bool
        Whether to store ``query_embed``.

    Returns
    -------
    dict
        Keyword arguments.

    Raises
    ------
    InvalidInputError
        If the frame lacks a column.

    Examples
    --------
    >>> tasks = pa.table(
    ...     {
    ...         "subject_id": [7],
    ...         "prediction_time": pa.array([0], pa.timestamp("us")),
    ...         "query": ["HR"],
    ...         "duration_days": [30.0],
    ...     }
    ... )
    >>> preset(tasks)["keys"]
    ('subject_id', 'prediction_time', 'query', 'duration_days')
    """
    arrays = {ARRAY: ENTRIES[ARRAY]} if embeddings else {}
    columns = {name: ENTRIES[name] for name in PROBABILITIES}
    return {
        "identifiers": _TaskIdentifiers(schema_df),
        "columns": columns,
        "arrays": arrays,
        "keys": KEYS,
        "ignore": (*_IGNORED, *(() if embeddings else (ENTRIES[ARRAY],))),
        # EveryQuery's files have float32, whatever precision the model predicts in.
        "dtypes": dict.fromkeys((*columns, *arrays), "float32"),
    }
