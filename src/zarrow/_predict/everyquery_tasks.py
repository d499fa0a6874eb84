"""EveryQuery's tasks — the frame that identifies the rows of a run, and the preset that stores predictions.

EveryQuery's dataset keeps its tasks in a frame: one question per row (``EQ_predict``) or a sequence of them,
of which the last one is scored (``EQ_predict_multitask``). `identifiers` takes from it the columns that name
a row, and its label; the other columns, and the array, are entries of the prediction. `preset` declares all
of them to `zarrow.lightning.PredictionWriter`. The frame may have many millions of rows; only a window around
those of the last batch is converted at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zarrow._format.checksum import crc32c
from zarrow._predict.identifiers import Identifiers, TableIdentifiers
from zarrow._predict.sample_set import SampleIndex
from zarrow.errors import BatchError, InvalidInputError
from zarrow.transfer._everyquery import ARRAY, MULTITASK, SINGLE, TASK, Pipeline, pipeline_of, task_of

__all__ = ["WINDOWS", "entries", "frame_pipeline", "identifiers", "preset", "tasks_crc32c"]

WINDOWS = "window_embed"
"""The ragged array of the hidden states of all windows of a row, of which the last one is scored."""
_OCCURS = "occurs"
_CODE = "scored_code"
_REQUIRED = {
    SINGLE: SINGLE.keys,
    MULTITASK: ("subject_id", "prediction_time", "queries", "durations", "answers"),
}
_IGNORED = {SINGLE: (_OCCURS, "censor", "query", "duration_days"), MULTITASK: ("labels", "scored_codes")}
_WINDOW_ROWS = 1 << 13


def identifiers(frame: Any, code_to_index: Mapping[str, int] | None = None) -> pa.Table:
    """Return the columns that name EveryQuery's tasks, and their labels.

    The dataset of ``EQ_predict`` splits a nullable ``boolean_value`` in two: ``boolean_value``, which from
    then on says whether the row is censored, and ``occurs``. Here it is one column again: null where the row
    is censored, else what occurred. Of ``EQ_predict_multitask``'s sequences the columns that a frame lacks
    are filled as EveryQuery does it, and ``target_code`` and ``label`` are the last query and its answer.

    Parameters
    ----------
    frame : polars.DataFrame or pyarrow.Table
        The ``schema_df`` of EveryQuery's dataset, or a slice of it.
    code_to_index : mapping of str to int, optional
        The ``code_to_index`` of the multitask dataset. With it there is a column ``scored_code``, the index
        of ``target_code``.

    Returns
    -------
    pyarrow.Table
        ``subject_id``, ``prediction_time``, ``query``, ``duration_days`` and, if the frame has both
        ``boolean_value`` (censored) and ``occurs``, ``boolean_value``: null where censored. Or, if the frame
        has ``queries``, the columns of ``EQ_predict_multitask``'s file but ``prob``, and ``task``, a text of
        all that was asked.

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
    >>> tasks = tasks.select(["subject_id", "prediction_time"]).add_column(
    ...     2, "queries", [[["HR"], ["TEMP", "HR"]]]
    ... )
    >>> tasks = tasks.append_column("durations", [[[1.0], [1.0, 7.0]]])
    >>> tasks = tasks.append_column("answers", [[[True], [True, False]]])
    >>> identifiers(tasks).select(["start_durations", "target_code", "label"]).to_pylist()[1]
    {'start_durations': [0.0, 0.0], 'target_code': 'HR', 'label': False}
    """
    pipeline = frame_pipeline(frame)
    names = _column_names(frame)
    if pipeline is MULTITASK:
        return _sequences(frame, names, code_to_index)
    has_label = pipeline.label in names and _OCCURS in names
    table = pa.table(frame.select([*pipeline.keys, *((pipeline.label, _OCCURS) if has_label else ())]))
    columns = {name: _cast(table, name, pipeline.types[name]) for name in pipeline.keys}
    if has_label:
        # In this order, as EveryQuery has it: a row whose censoring is unknown counts as not censored.
        censored = _cast(table, pipeline.label, pa.bool_()).fill_null(False)
        occurs = _cast(table, _OCCURS, pa.bool_())
        columns[pipeline.label] = pc.if_else(censored, pa.scalar(None, pa.bool_()), occurs)
    return pa.table(columns)


def _sequences(frame: Any, names: list[str], code_to_index: Mapping[str, int] | None) -> pa.Table:
    types = MULTITASK.types
    table = pa.table(frame.select([name for name in types if name in names]))
    columns = {name: _cast(table, name, types[name]).combine_chunks() for name in table.column_names}
    queries = columns["queries"]
    for name in ("queries", "answers"):
        if columns[name].null_count or pc.any(pc.equal(pc.list_value_length(columns[name]), 0)).as_py():
            raise InvalidInputError(
                f"schema_df: {name!r} must have one query or more in every row, got none in some"
            )
    offsets = pc.subtract(queries.offsets, queries.offsets[0])
    for name, kind in types.items():
        if name not in columns and pa.types.is_large_list(kind):
            values = pa.nulls(offsets[-1].as_py(), kind.value_type)
            if pa.types.is_floating(kind.value_type):
                values = values.fill_null(0)
            columns[name] = pa.LargeListArray.from_arrays(offsets, values).cast(kind)
    columns["target_code"], columns["label"] = map(_last, (queries, columns["answers"]))
    found = {name: columns[name] for name in types if name in columns} | {TASK: task_of(columns)}
    if code_to_index is not None:
        codes = columns["target_code"].dictionary_encode()
        of_each = pa.array([code_to_index[code] for code in codes.dictionary.to_pylist()], pa.int64())
        found[_CODE] = of_each.take(codes.indices)
    return pa.table(found)


def _last(lists: pa.Array) -> pa.Array:
    """Return the last value of each list."""
    return lists.values.take(pc.subtract(lists.offsets[1:], 1))


def frame_pipeline(frame: Any) -> Pipeline:
    """Return whose tasks a frame has; raise if it lacks one of their columns."""
    names = _column_names(frame)
    pipeline = pipeline_of(names)
    required = _REQUIRED[pipeline]
    missing = [name for name in required if name not in names]
    if missing:
        raise InvalidInputError(
            f"schema_df must have the columns {', '.join(required)}; missing {missing}, got {names}: "
            "pass the schema_df of EveryQuery's dataset"
        )
    return pipeline


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

    def __init__(self, frame: Any, code_to_index: Mapping[str, int] | None) -> None:
        self._frame = frame
        self._code_to_index = code_to_index
        self._start = 0
        self._window = self._identify(frame.slice(0, 0) if hasattr(frame, "slice") else frame)

    def _identify(self, frame: Any) -> TableIdentifiers:
        return TableIdentifiers(identifiers(frame, self._code_to_index))

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
            self._window = self._identify(
                self._frame.slice(self._start, max(_WINDOW_ROWS, stop - self._start))
            )


def tasks_crc32c(frame: Any) -> str:
    """Return a checksum of the identifiers and labels of a frame of tasks."""
    checksum = 0
    for start in range(0, len(frame), _WINDOW_ROWS):
        for column in identifiers(frame.slice(start, _WINDOW_ROWS)).itercolumns():
            checksum = _values_crc32c(column.combine_chunks(), checksum)
    return f"{checksum:08x}"


def _values_crc32c(values: pa.Array, checksum: int) -> int:
    """Return a checksum that does not depend on what lies in memory where a value is null."""
    if pa.types.is_large_list(values.type):
        checksum = _values_crc32c(pc.list_value_length(values), checksum)
        return _values_crc32c(values.flatten(), checksum)
    zero = pa.scalar("" if pa.types.is_large_string(values.type) else 0).cast(values.type)
    batch = pa.record_batch([values.is_valid(), values.fill_null(zero)], ["valid", "value"])
    return crc32c(np.frombuffer(batch.serialize(), np.uint8), checksum)


def entries(pipeline: Pipeline, arrays: Sequence[str] = (ARRAY,)) -> dict[str, str]:
    """Return the names under which entries of a prediction are stored, and the entries.

    >>> entries(MULTITASK)
    {'prob': 'probs', 'query_embed': 'query_embed'}
    """
    return {name: f"{name}s" for name in pipeline.probabilities} | {name: name for name in arrays}


def preset(
    schema_df: Any,
    *,
    embeddings: bool = True,
    windows: bool = False,
    code_to_index: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return arguments with which `zarrow.lightning.PredictionWriter` stores EveryQuery's predictions.

    For runs other than ``EQ_predict``'s and ``EQ_predict_multitask``'s; `export_predictions` writes
    EveryQuery's files from the store.

    Parameters
    ----------
    schema_df : polars.DataFrame or pyarrow.Table
        The tasks, in the dataset's order. Kept, not copied.
    embeddings : bool
        Whether to store ``query_embed``.
    windows : bool
        Whether to store ``window_embed``, a ragged array: the step returns it as a jagged nested tensor.
    code_to_index : mapping of str to int, optional
        The ``code_to_index`` of the multitask dataset. With it labels and codes that a model scored are
        compared with the tasks', batch by batch, and ``scored_code`` is stored.

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
    pipeline = frame_pipeline(schema_df)
    arrays = [name for name, is_stored in ((ARRAY, embeddings), (WINDOWS, windows)) if is_stored]
    stored = entries(pipeline, arrays)
    compared = {} if code_to_index is None else {pipeline.label: "labels", _CODE: "scored_codes"}
    return {
        "identifiers": _TaskIdentifiers(schema_df, code_to_index),
        "columns": {name: entry for name, entry in stored.items() if name not in arrays} | compared,
        "arrays": {name: stored[name] for name in arrays},
        "keys": pipeline.keys,
        "ignore": [
            name
            for name in (*_IGNORED[pipeline], ARRAY, WINDOWS)
            if name not in (*compared.values(), *arrays)
        ],
        # EveryQuery's files have float32, whatever precision the model predicts in.
        "dtypes": dict.fromkeys(stored, "float32"),
    }
