"""Which columns do EveryQuery's predictions have, and where do they come from?

`identifiers` takes the columns that name a row, and its label, from the frame that EveryQuery keeps of its
tasks; the other columns, and the array, are entries of the prediction. `preset` says both to
`zarrow.lightning.PredictionWriter`.

The label: EveryQuery's dataset splits a nullable ``boolean_value`` in two, ``boolean_value`` (which from
then on says whether the row is censored) and ``occurs``. Here it is one column again: null where the row
is censored, else what occurred.

Place: tier 5, used by `everyquery` and `_everyquery_files`; imports neither torch, lightning, polars nor
EveryQuery. Pure.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zarrow._format.checksum import crc32c
from zarrow.errors import BatchError, InvalidInputError

__all__ = ["KEYS", "identifiers", "prediction_schema", "preset", "tasks_crc32c"]

_SLICE_ROWS = 1 << 16
KEYS = ("subject_id", "prediction_time", "query", "duration_days")
LABEL = "boolean_value"
OCCURS = "occurs"
PROBABILITIES = ("censor_prob", "occurs_prob")
ARRAY = "query_embed"
EMBEDDING = "embedding"
BATCH = "batch_idx"
"""The store's column with the number of the predict batch that a row came in."""

TYPES = {
    "subject_id": pa.int64(),
    "prediction_time": pa.timestamp("us"),
    "query": pa.large_string(),
    "duration_days": pa.float32(),
    LABEL: pa.bool_(),
    "censor_prob": pa.float32(),
    "occurs_prob": pa.float32(),
}

ENTRIES = {"censor_prob": "censor_probs", "occurs_prob": "occurs_probs", ARRAY: "query_embed"}
"""What is stored, and the entry of EveryQuery's prediction that it comes from."""

FLOAT32 = dict.fromkeys(ENTRIES, "float32")
"""EveryQuery's files have float32, whatever precision the model predicts in."""

_IGNORED = ("occurs", "censor", "query", "duration_days")


def has_label(names: list[str]) -> bool:
    """Tell whether a frame of EveryQuery's tasks knows what occurred."""
    return LABEL in names and OCCURS in names


def prediction_schema(*, label: bool) -> pa.Schema:
    """Return the columns that a store of EveryQuery's predictions has, without those of its batches.

    Parameters
    ----------
    label : bool
        Whether the tasks have labels.

    Returns
    -------
    pyarrow.Schema
        The identifiers, the label, the probabilities.
    """
    names = [*KEYS, *([LABEL] if label else []), *PROBABILITIES]
    return pa.schema([pa.field(name, TYPES[name], name not in KEYS) for name in names])


def identifiers(frame: Any) -> pa.Table:
    """Return what names the rows of EveryQuery's tasks, and the label that they had.

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
        If it is no such frame, lacks a column, or a column cannot be what it must be.

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
    names = column_names(frame)
    missing = [name for name in KEYS if name not in names]
    if missing:
        raise InvalidInputError(
            f"schema_df must have the columns {', '.join(KEYS)}; missing {missing}, got {names}: "
            "pass the schema_df of EveryQuery's dataset"
        )
    wanted = [*KEYS, *((LABEL, OCCURS) if has_label(names) else ())]
    table = pa.table(frame.select(wanted))
    columns = {name: _cast(table, name, TYPES[name]) for name in KEYS}
    if has_label(names):
        # In this order, as EveryQuery has it: a row whose censoring is unknown counts as not censored.
        censored = _cast(table, LABEL, pa.bool_()).fill_null(False)
        columns[LABEL] = pc.if_else(censored, pa.scalar(None, pa.bool_()), _cast(table, OCCURS, pa.bool_()))
    return pa.table(columns)


def column_names(frame: Any) -> list[str]:
    """Return the names of a frame's columns, if it is one that can be sliced without a copy."""
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


def check_range(frame_rows: int, start: int, rows: int) -> None:
    """Raise `BatchError` if a batch goes beyond the tasks."""
    if start + rows > frame_rows:
        raise BatchError(
            f"the batch has the rows {start} to {start + rows}, but schema_df has {frame_rows} only: pass "
            "the schema_df of the dataset that is predicted, and a loader that yields each row once, in order"
        )


class _TaskIdentifiers:
    """Finds the identifiers of a batch by its places in the dataset; can be sent to other processes."""

    def __init__(self, frame: Any) -> None:
        self._frame = frame

    def __call__(self, batch: Any, indices: npt.NDArray[np.int64]) -> pa.Table:
        del batch
        if not len(indices):
            return identifiers(self._frame.slice(0, 0))
        first, last = int(indices.min()), int(indices.max())
        check_range(len(self._frame), first, last + 1 - first)
        window = identifiers(self._frame.slice(first, last + 1 - first))
        return window.take(pa.array(indices - first))


def preset(schema_df: Any, *, embeddings: bool = True) -> dict[str, Any]:
    """Return arguments with which `zarrow.lightning.PredictionWriter` stores EveryQuery's predictions.

    For runs that are not ``EQ_predict``'s; `export_predictions` writes EveryQuery's files from the store.

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
    identifiers(schema_df.slice(0, 0) if hasattr(schema_df, "slice") else schema_df)
    arrays = {ARRAY: ENTRIES[ARRAY]} if embeddings else {}
    columns = {name: entry for name, entry in ENTRIES.items() if name != ARRAY}
    return {
        "identifiers": _TaskIdentifiers(schema_df),
        "columns": columns,
        "arrays": arrays,
        "keys": KEYS,
        "ignore": (*_IGNORED, *(() if embeddings else (ENTRIES[ARRAY],))),
        "dtypes": {name: FLOAT32[name] for name in (*columns, *arrays)},
    }


def tasks_crc32c(frame: Any) -> str:
    """Return a checksum of the identifiers and labels of a frame of tasks."""
    checksum = 0
    for start in range(0, len(frame), _SLICE_ROWS):
        for batch in identifiers(frame.slice(start, _SLICE_ROWS)).combine_chunks().to_batches():
            checksum = crc32c(np.frombuffer(batch.serialize(), np.uint8), checksum)
    return f"{checksum:08x}"
