"""EveryQuery's pair of Parquet files — predictions, and embeddings in a second file, out of a store and back.

The columns of the predictions, their types and their order are those of EveryQuery's own files, of which
there are two kinds (`Pipeline`); the embeddings have the identifiers, the label and one fixed-size list per
row. `export_predictions` streams both files out of a store in the order of the dataset that was predicted, a
row group at a time; `read` streams a pair back, comparing the identifiers of the two files.

Both files get their names only when both are durable; a crash never leaves a file of one export next to one
of another.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zarrow._format.arrow import numbers_as_arrow
from zarrow._format.layout import SAMPLE_INDEX
from zarrow.errors import InvalidInputError
from zarrow.store import Store, StoreArray
from zarrow.store import open as open_store
from zarrow.transfer._parquet import open_parquet, write_parquet
from zarrow.transfer._place import in_place
from zarrow.transfer._rows import Incoming, Outgoing, batch_rows, from_arrow

__all__ = [
    "MULTITASK",
    "SINGLE",
    "TASK",
    "Pipeline",
    "embeddings_path",
    "export_predictions",
    "in_sample_order",
    "pipeline_of",
    "read",
    "task_of",
    "write",
]

ARRAY = "query_embed"
TASK = "task"
_ROW_BYTES = 1024  # of the lists of a multitask row
EMBEDDING = "embedding"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pipeline:
    """The files of one of EveryQuery's two pipelines.

    Parameters
    ----------
    command : str
        What writes the predictions.
    types : dict of str to DataType
        Their columns, in order.
    task : tuple of str
        Columns of a store that say what was asked; with subject and time they name a row.
    label : str
        Column of the label.
    probabilities : tuple of str
        Columns that the model predicts, that of the answer last.
    embeddings : tuple of str
        Columns of the embeddings, in order, without the vectors.
    compression : str
        Codec of the Parquet files.
    """

    command: str
    types: dict[str, pa.DataType]
    task: tuple[str, ...]
    label: str
    probabilities: tuple[str, ...]
    embeddings: tuple[str, ...]
    compression: str

    @property
    def keys(self) -> tuple[str, ...]:
        """Columns of a store that name a row."""
        return (*_SUBJECT, *self.task)


_TEXT, _TEXTS = pa.large_string(), pa.large_list(pa.large_string())
_NUMBERS, _ANSWERS = pa.large_list(pa.float32()), pa.large_list(pa.bool_())
_SUBJECT = {"subject_id": pa.int64(), "prediction_time": pa.timestamp("us")}
_WINDOWS = {
    "queries": _TEXTS,
    "start_durations": _NUMBERS,
    "start_events": _TEXTS,
    "durations": _NUMBERS,
    "bound_events": _TEXTS,
    "answers": _ANSWERS,
    "forced_answers": _ANSWERS,
}
_TASK_KEY = ("queries", "durations", "start_durations", "start_events", "bound_events", "forced_answers")
_ANSWERED = {**_SUBJECT, **_WINDOWS, "target_code": _TEXT, "label": pa.bool_()}

SINGLE = Pipeline(
    command="EQ_predict",
    types={
        **_SUBJECT,
        "boolean_value": pa.bool_(),
        "query": _TEXT,
        "duration_days": pa.float32(),
        "censor_prob": pa.float32(),
        "occurs_prob": pa.float32(),
    },
    task=("query", "duration_days"),
    label="boolean_value",
    probabilities=("censor_prob", "occurs_prob"),
    embeddings=(*_SUBJECT, "query", "duration_days", "boolean_value"),
    compression="snappy",
)
MULTITASK = Pipeline(
    command="EQ_predict_multitask",
    types={**_ANSWERED, "prob": pa.float32()},
    task=(TASK,),
    label="label",
    probabilities=("prob",),
    embeddings=tuple(_ANSWERED),
    compression="zstd",
)


def pipeline_of(names: Iterable[str]) -> Pipeline:
    """Return the pipeline whose tasks or predictions have these columns.

    >>> pipeline_of(["subject_id", "queries"]).command
    'EQ_predict_multitask'
    """
    return MULTITASK if "queries" in names else SINGLE


def task_of(columns: Mapping[str, Any]) -> pa.Array:
    """Return what was asked in each row, as one text: the columns that EveryQuery's evaluation groups by.

    These are the windows and the answers that the scored query was conditioned on, in the order of its key.

    >>> lists = {name: pa.array([[]], kind) for name, kind in _WINDOWS.items()}
    >>> lists |= {"queries": pa.array([["HR", "MAP"]]), "answers": pa.array([[True, False]])}
    >>> task_of(lists)[0].as_py()[:40], task_of(lists)[0].as_py()[-24:]
    ('{"queries": ["HR","MAP"], "durations": [', '"prior_answers": [true]}')
    """
    answers = columns["answers"]
    offsets = answers.offsets.to_numpy()
    earlier = np.ones(offsets[-1] - offsets[0], bool)
    earlier[offsets[1:] - 1 - offsets[0]] = False
    prior = answers.values.slice(offsets[0], len(earlier)).filter(pa.array(earlier))
    starts = pa.array(offsets - offsets[0] - np.arange(len(offsets)))
    parts = {name: columns[name] for name in _TASK_KEY} | {
        "prior_answers": pa.LargeListArray.from_arrays(starts.cast(pa.int64()), prior)
    }
    comma = pa.scalar(",", _TEXT)
    texts = [
        _joined(f'"{name}": [', pc.binary_join(_as_json(lists), comma), "]") for name, lists in parts.items()
    ]
    return _joined("{", pc.binary_join_element_wise(*texts, pa.scalar(", ", _TEXT)), "}")


def _joined(before: str, texts: pa.Array, after: str) -> pa.Array:
    start, end, nothing = (pa.scalar(one, _TEXT) for one in (before, after, ""))
    return pc.binary_join_element_wise(start, texts, end, nothing)


def _as_json(lists: pa.Array) -> pa.Array:
    """Return lists of the same values as texts."""
    values = lists.flatten()
    texts = values.cast(_TEXT)
    if pa.types.is_large_string(values.type) or pa.types.is_string(values.type):
        for special in ("\\", '"'):
            texts = pc.replace_substring(texts, special, f"\\{special}")
        texts = _joined('"', texts, '"')
    starts = pc.subtract(lists.offsets, lists.offsets[0]).cast(pa.int64())
    return pa.LargeListArray.from_arrays(starts, texts.fill_null("null"))


# Out


def export_predictions(
    store: Store | str | os.PathLike[str],
    predictions: str | os.PathLike[str],
    embeddings: str | os.PathLike[str] | None = None,
    *,
    array: str = ARRAY,
    row_group_rows: int | None = None,
    partial: bool = False,
) -> int:
    """Write EveryQuery's Parquet files from a store: whole and durable on return.

    Rows come in the order of the dataset that was predicted, and memory is that of one row group.

    Parameters
    ----------
    store : Store or path
        A store of ``EQ_predict``'s or ``EQ_predict_multitask``'s columns, as
        `zarrow.everyquery.StreamingPredictionWriter` writes it, or `zarrow.lightning.PredictionWriter` with
        `zarrow.everyquery.preset`.
    predictions : path
        Target of the predictions: the identifiers, the label if the store has it, the probabilities.
    embeddings : path, optional
        Target of the embeddings, with the identifiers and the label.
    array : str
        The array with the embeddings.
    row_group_rows : int, optional
        Rows of a row group; that of EveryQuery's own files is a batch. By default about 16 MiB of vectors, or
        65,536 rows without vectors.
    partial : bool
        Whether to accept an incomplete store, if `store` is a path.

    Returns
    -------
    int
        Rows written.

    Raises
    ------
    InvalidInputError
        If the store has other columns, the array another shape, or `row_group_rows` is below 1.
    UnknownNameError
        If the store has no such array.
    IncompleteStoreError
        If the store was not finalized and `partial` is False.
    OSError
        If a file cannot be written; neither target is replaced then.

    Examples
    --------
    >>> import tempfile, zarrow, pyarrow.parquet as pq
    >>> folder = tempfile.mkdtemp()
    >>> with zarrow.Writer(folder + "/run.zarrow") as writer:
    ...     writer.append(
    ...         {
    ...             "subject_id": [7, 7],
    ...             "prediction_time": pa.array([0, 0], pa.timestamp("us")),
    ...             "query": pa.array(["HR", "TEMP"], pa.large_string()),
    ...             "duration_days": np.float32([30, 30]),
    ...             "censor_prob": np.float32([0.25, 0.5]),
    ...             "occurs_prob": np.float32([0.75, 0.125]),
    ...         },
    ...         {"query_embed": np.ones((2, 4), np.float32)},
    ...     )
    ...     writer.finalize()
    >>> export_predictions(folder + "/run.zarrow", folder + "/p.parquet", folder + "/e.parquet")
    2
    >>> pq.read_schema(folder + "/e.parquet").names
    ['subject_id', 'prediction_time', 'query', 'duration_days', 'embedding']
    """
    if not isinstance(store, Store):
        with open_store(store, partial=partial) as opened:
            return export_predictions(
                opened, predictions, embeddings, array=array, row_group_rows=row_group_rows
            )
    if row_group_rows is not None and row_group_rows < 1:
        raise InvalidInputError(f"row_group_rows must be at least 1, got {row_group_rows}")
    targets = [Path(predictions), *([] if embeddings is None else [Path(embeddings)])]
    return _write_pair(store, targets, array, row_group_rows, overwrite=True)


def _write_pair(
    store: Store, targets: list[Path], array: str, row_group_rows: int | None = None, *, overwrite: bool
) -> int:
    pipeline = _pipeline(store)
    vectors = None if len(targets) == 1 else _vectors(store, array)
    order = in_sample_order(store)
    with in_place(*targets, store=store.path, overwrite=overwrite) as scratch:
        _write_file(scratch[0], store, pipeline, order, None, row_group_rows)
        if vectors is not None:
            _write_file(scratch[1], store, pipeline, order, vectors, row_group_rows)
    return store.num_rows


def embeddings_path(predictions: Path) -> Path:
    """Return where EveryQuery has the embeddings that belong to a file of predictions.

    >>> embeddings_path(Path("run/p.parquet")).name
    'p.embeddings.parquet'
    """
    return predictions.with_suffix(f".embeddings{predictions.suffix}")


def _pipeline(store: Store) -> Pipeline:
    """Return whose predictions a store has; raise if it has not all of their columns."""
    schema = store.schema
    pipeline = pipeline_of(schema.names)
    for name, kind in pipeline.types.items():
        if name not in schema.names and name == pipeline.label:
            continue
        if name not in schema.names or schema.field(name).type != kind:
            got = f"got {schema.field(name).type}" if name in schema.names else f"got {schema.names}"
            raise InvalidInputError(
                f"{store.path}: a store of {pipeline.command}'s predictions must have the column {name!r} of "
                f"type {kind}, {got}: write it with zarrow.everyquery's writer or preset"
            )
    return pipeline


def _vectors(store: Store, name: str) -> StoreArray:
    array: StoreArray = store[name]
    if len(array.row_shape) != 1 or array.dtype.kind != "f" or array.dtype.itemsize > 4:
        raise InvalidInputError(
            f"{store.path}: embeddings must be one float32 or float16 vector per row, got the array {name!r} "
            f"with rows of shape {array.row_shape} and dtype {array.dtype}: choose another with array="
        )
    return array


def in_sample_order(store: Store) -> Any:
    """Return the order to ask `Store.join` for: by sample index, which takes memory, only where needed."""
    last = -1
    for batch in store.scan([SAMPLE_INDEX]):
        column = batch[SAMPLE_INDEX]
        if column.null_count:
            return None
        sample_index = column.to_numpy()
        if sample_index[0] < last or (np.diff(sample_index) < 0).any():
            return "sample_index"
        last = int(sample_index[-1])
    return None


def _write_file(
    path: Path,
    store: Store,
    pipeline: Pipeline,
    order: Any,
    vectors: StoreArray | None,
    row_group_rows: int | None,
) -> None:
    """Write the predictions, or with `vectors` the embeddings."""
    wanted = pipeline.types if vectors is None else pipeline.embeddings
    names = [name for name in wanted if name in store.schema.names]
    fields = [pa.field(name, pipeline.types[name]) for name in names]
    if vectors is not None:
        fields.append(pa.field(EMBEDDING, pa.list_(pa.float32(), vectors.row_shape[0])))
    schema = pa.schema(fields)
    row_bytes = _ROW_BYTES if pipeline is MULTITASK else 0
    size = row_group_rows or batch_rows(max(row_bytes, 0 if vectors is None else 4 * vectors.row_shape[0]))

    def batches() -> Iterator[pa.RecordBatch]:
        for batch, found in store.join(
            columns=names, arrays=[] if vectors is None else [vectors.name], batch_size=size, order=order
        ):
            columns = list(batch.columns)
            if vectors is not None:
                values = numbers_as_arrow(np.float32(found[vectors.name]).reshape(-1))
                columns.append(pa.FixedSizeListArray.from_arrays(values, type=schema[-1].type))
            yield pa.RecordBatch.from_arrays(columns, schema=schema)
            if vectors is not None:
                vectors.release()

    leaves = {
        name: f"{name}.list.element" if pa.types.is_large_list(schema.field(name).type) else name
        for name in names
    }
    write_parquet(
        path,
        schema,
        batches(),
        list(leaves.values()),
        compression=pipeline.compression,
        dictionary=[leaves[name] for name in names if name not in (*pipeline.probabilities, pipeline.label)],
    )


def write(rows: Outgoing, target: Path, *, overwrite: bool) -> None:
    """Write the predictions and, if the store has any, the embeddings next to them."""
    if len(rows.arrays) > 1:
        names = ", ".join(array.name for array in rows.arrays)
        raise InvalidInputError(f"EveryQuery keeps one embedding per row, the store has {names}: choose one")
    if rows.explicit:
        raise InvalidInputError("the columns of EveryQuery's files are fixed: do not choose columns")
    beside = [embeddings_path(target)] if rows.arrays else []
    array = rows.arrays[0].name if rows.arrays else ARRAY
    done = _write_pair(rows.store, [target, *beside], array, overwrite=overwrite)
    if rows.progress is not None:
        rows.progress(done, rows.rows)


# In


def read(source: Path, beside: Path | None) -> Incoming:
    """Return the rows of a pair of files, or of the predictions alone if there is no second one."""
    with contextlib.ExitStack() as files:
        total, schema, predictions = open_parquet(source, files)
        pipeline = pipeline_of(schema.names)
        keys = [name for name in pipeline.embeddings if name != pipeline.label]
        lacks = [name for name in keys if name not in schema.names]
        if lacks:
            raise InvalidInputError(f"{source}: EveryQuery's predictions have {list(keys)}, missing {lacks}")
        if beside is None and embeddings_path(source).exists():
            beside = embeddings_path(source)
        if beside is None:
            empty = pa.RecordBatch.from_pylist([], schema=schema)
            found = from_arrow(
                total, _with_task(empty), lambda: map(_with_task, predictions(batch_rows(0))), source
            )
        else:
            count, kinds, embeddings = open_parquet(beside, files)
            lacks = [name for name in (*keys, EMBEDDING) if name not in kinds.names]
            if lacks or count != total:
                raise InvalidInputError(
                    f"{beside}: not the embeddings of {source}: "
                    + (f"missing {lacks}" if lacks else f"{count} rows for {total}")
                )
            width = kinds.field(EMBEDDING).type
            size = batch_rows(getattr(width, "list_size", 1024) * 4)

            def pairs() -> Iterator[pa.RecordBatch]:
                done = 0
                for ours, theirs in zip(predictions(size), embeddings(size), strict=True):
                    for name in keys:
                        if not ours[name].equals(theirs[name]):
                            raise InvalidInputError(
                                f"{beside}: {name} differs from {source} in rows {done} to "
                                f"{done + ours.num_rows}: the files are of different runs, or orders"
                            )
                    yield _with_task(ours).append_column(ARRAY, theirs[EMBEDDING])
                    done += ours.num_rows

            first = next(pairs(), None)
            if first is None:
                fields = [*schema, pa.field(ARRAY, kinds.field(EMBEDDING).type)]
                first = _with_task(pa.RecordBatch.from_pylist([], schema=pa.schema(fields)))
            found = from_arrow(total, first, pairs, source)
        found.keys = pipeline.keys
        found.files = files.pop_all()
        return found


def _with_task(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch of predictions with the columns that name their task in a store."""
    if pipeline_of(batch.schema.names) is SINGLE:
        return batch
    lists = {name: batch[name].cast(kind) for name, kind in _WINDOWS.items()}
    return batch.append_column(TASK, task_of(lists))
