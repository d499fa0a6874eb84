"""EveryQuery's pair of Parquet files — predictions, and embeddings in a second file, out of a store and back.

The columns of the predictions, their types and their order are those of EveryQuery's PredictionSchema; the
embeddings have the identifiers, the label and one fixed-size list per row. `export_predictions` streams both
files out of a store in the order of the dataset that was predicted, a row group at a time; `read` streams a
pair back, comparing the identifiers of the two files.

Both files get their names only when both are durable. A crash leaves files ``.<name>.exporting``, which the
next export replaces, and at the targets only whole files.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from zarrow._format.arrow import numbers_as_arrow
from zarrow._format.layout import SAMPLE_INDEX
from zarrow.errors import ConflictError, InvalidInputError
from zarrow.store import Store, StoreArray
from zarrow.store import open as open_store
from zarrow.transfer._parquet import open_parquet, write_parquet
from zarrow.transfer._place import in_place
from zarrow.transfer._rows import Incoming, Outgoing, batch_rows, from_arrow

__all__ = ["export_predictions", "read", "write"]

KEYS = ("subject_id", "prediction_time", "query", "duration_days")
LABEL = "boolean_value"
PROBABILITIES = ("censor_prob", "occurs_prob")
ARRAY = "query_embed"
EMBEDDING = "embedding"

TYPES = {
    "subject_id": pa.int64(),
    "prediction_time": pa.timestamp("us"),
    "query": pa.large_string(),
    "duration_days": pa.float32(),
    LABEL: pa.bool_(),
    "censor_prob": pa.float32(),
    "occurs_prob": pa.float32(),
}

_PREDICTION_ORDER = ("subject_id", "prediction_time", LABEL, "query", "duration_days", *PROBABILITIES)
_EMBEDDING_ORDER = (*KEYS, LABEL)


# Out


def export_predictions(
    store: Store | str | os.PathLike[str],
    predictions: str | os.PathLike[str],
    embeddings: str | os.PathLike[str] | None = None,
    *,
    array: str = ARRAY,
    partial: bool = False,
) -> int:
    """Write EveryQuery's Parquet files from a store: whole and durable on return.

    Rows come in the order of the dataset that was predicted. A row group has about 16 MiB of vectors, or
    65,536 rows, whatever the batches of the run were, and memory is that of one row group.

    Parameters
    ----------
    store : Store or path
        A store with the columns of the PredictionSchema, as `zarrow.everyquery.StreamingPredictionWriter`
        writes it, or `zarrow.lightning.PredictionWriter` with `zarrow.everyquery.preset`.
    predictions : path
        Target of the predictions: the identifiers, the label if the store has it, both probabilities.
    embeddings : path, optional
        Target of the embeddings, with the identifiers and the label.
    array : str
        The array with the embeddings.
    partial : bool
        Whether to accept an incomplete store, if `store` is a path.

    Returns
    -------
    int
        Rows written.

    Raises
    ------
    InvalidInputError
        If the store has other columns, or the array another shape.
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
            return export_predictions(opened, predictions, embeddings, array=array)
    _check_columns(store)
    vectors = None if embeddings is None else _vectors(store, array)
    order = _order(store)
    targets = [Path(predictions), *([] if embeddings is None else [Path(embeddings)])]
    with in_place(*targets) as scratch:
        _write_file(scratch[0], store, order, None)
        if vectors is not None:
            _write_file(scratch[1], store, order, vectors)
    return store.num_rows


def _check_columns(store: Store) -> None:
    schema = store.schema
    for name in (*KEYS, *PROBABILITIES, *([LABEL] if LABEL in schema.names else [])):
        if name not in schema.names or schema.field(name).type != TYPES[name]:
            got = f"got {schema.field(name).type}" if name in schema.names else f"got {schema.names}"
            raise InvalidInputError(
                f"{store.path}: a store of EveryQuery's predictions must have the column {name!r} of type "
                f"{TYPES[name]}, {got}: write it with zarrow.everyquery's writer or preset"
            )


def _vectors(store: Store, name: str) -> StoreArray:
    array = store[name]
    if len(array.row_shape) != 1 or array.dtype.kind != "f" or array.dtype.itemsize > 4:
        raise InvalidInputError(
            f"{store.path}: embeddings must be one float32 or float16 vector per row, got the array {name!r} "
            f"with rows of shape {array.row_shape} and dtype {array.dtype}: choose another with array="
        )
    return array


def _order(store: Store) -> Any:
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


def _write_file(path: Path, store: Store, order: Any, vectors: StoreArray | None) -> None:
    """Write the predictions, or with `vectors` the embeddings."""
    wanted = _PREDICTION_ORDER if vectors is None else _EMBEDDING_ORDER
    names = [name for name in wanted if name in store.schema.names]
    fields = [pa.field(name, TYPES[name]) for name in names]
    if vectors is not None:
        fields.append(pa.field(EMBEDDING, pa.list_(pa.float32(), vectors.row_shape[0])))
    schema = pa.schema(fields)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch, found in store.join(
            columns=names,
            arrays=[] if vectors is None else [vectors.name],
            batch_size=batch_rows(0 if vectors is None else 4 * vectors.row_shape[0]),
            order=order,
        ):
            columns = list(batch.columns)
            if vectors is not None:
                values = numbers_as_arrow(np.float32(found[vectors.name]).reshape(-1))
                columns.append(pa.FixedSizeListArray.from_arrays(values, type=schema[-1].type))
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    write_parquet(path, schema, batches(), names, compression="snappy", dictionary=KEYS)


def write(rows: Outgoing, target: Path, *, overwrite: bool) -> None:
    """Write the predictions and, if the store has any, the embeddings next to them."""
    if len(rows.arrays) > 1:
        names = ", ".join(array.name for array in rows.arrays)
        raise InvalidInputError(f"EveryQuery keeps one embedding per row, the store has {names}: choose one")
    if rows.explicit:
        raise InvalidInputError("the columns of EveryQuery's files are fixed: do not choose columns")
    embeddings = target.with_name(f"{target.stem}_embeddings.parquet") if rows.arrays else None
    if embeddings is not None and embeddings.exists() and not overwrite:
        raise ConflictError(f"{embeddings} exists already: choose another target, or overwrite it")
    array = rows.arrays[0].name if rows.arrays else ARRAY
    done = export_predictions(rows.store, target, embeddings, array=array)
    if rows.progress is not None:
        rows.progress(done, rows.rows)


# In


def read(source: Path, beside: Path | None) -> Incoming:
    """Return the rows of a pair of files, or of the predictions alone."""
    with contextlib.ExitStack() as files:
        total, schema, predictions = open_parquet(source, files)
        lacks = [name for name in KEYS if name not in schema.names]
        if lacks:
            raise InvalidInputError(f"{source}: EveryQuery's predictions have {list(KEYS)}, missing {lacks}")
        if beside is None:
            empty = pa.RecordBatch.from_pylist([], schema=schema)
            found = from_arrow(total, empty, lambda: predictions(batch_rows(0)), source)
        else:
            count, kinds, embeddings = open_parquet(beside, files)
            lacks = [name for name in (*KEYS, EMBEDDING) if name not in kinds.names]
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
                    for name in KEYS:
                        if not ours[name].equals(theirs[name]):
                            raise InvalidInputError(
                                f"{beside}: {name} differs from {source} in rows {done} to "
                                f"{done + ours.num_rows}: the files are of different runs, or orders"
                            )
                    yield ours.append_column(ARRAY, theirs[EMBEDDING])
                    done += ours.num_rows

            first = next(pairs(), None)
            if first is None:
                fields = [*schema, pa.field(ARRAY, kinds.field(EMBEDDING).type)]
                first = pa.RecordBatch.from_pylist([], schema=pa.schema(fields))
            found = from_arrow(total, first, pairs, source)
        found.keys = KEYS
        found.files = files.pop_all()
        return found
