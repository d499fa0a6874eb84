"""How does a store become the two Parquet files that EveryQuery's tools read?

EveryQuery keeps predictions in one Parquet file of its PredictionSchema and embeddings, if asked for, in
another. `export_predictions` streams both out of a store, columns, types and their order to the letter:
first under scratch names, a row group at a time, and into place when both are durable.

Place: tier 5, used by `everyquery`; imports the reader, but neither torch, lightning nor EveryQuery. A
crash leaves a file ``.<name>.exporting`` that the next export overwrites, and no file at the names asked
for but whole ones.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zarrow._format.layout import MEBIBYTE, SAMPLE_INDEX
from zarrow._format.spec import rows_of
from zarrow._storage import files
from zarrow.errors import InvalidInputError
from zarrow.store import Store
from zarrow.store import open as open_store
from zarrow.transfer._everyquery_columns import ARRAY, BATCH, EMBEDDING, KEYS, LABEL, PROBABILITIES, TYPES

__all__ = ["export_predictions"]

_PREDICTION_ORDER = ("subject_id", "prediction_time", LABEL, "query", "duration_days", *PROBABILITIES)
_EMBEDDING_ORDER = (*KEYS, LABEL)
_ROW_GROUP_ROWS = 1 << 17
_ROW_GROUP_BYTES = 16 * MEBIBYTE


def export_predictions(
    store: Store | str | os.PathLike[str],
    predictions: str | os.PathLike[str],
    embeddings: str | os.PathLike[str] | None = None,
    *,
    array: str = ARRAY,
    one_row_group_per_batch: bool = False,
    partial: bool = False,
) -> int:
    """Write EveryQuery's Parquet files from a store: whole and durable on return.

    Memory is that of one row group. Rows come in the order of the dataset that was predicted.

    Parameters
    ----------
    store : Store or path
        A store with the columns of the PredictionSchema, as `StreamingPredictionWriter` writes it, or
        `zarrow.lightning.PredictionWriter` with `preset`.
    predictions : path
        Where the predictions go: the identifiers, the label if the store has it, both probabilities.
    embeddings : path, optional
        Where the embeddings go, beside the identifiers and the label.
    array : str
        The array that has the embeddings.
    one_row_group_per_batch : bool
        Whether each predict batch becomes a row group, as in the files that EveryQuery writes. Parquet's
        list of row groups is kept in memory until the end: about 15 kB per batch. By default a row group
        has up to 16 MiB of vectors, or 131,072 rows.
    partial : bool
        Whether an incomplete store will do, if `store` is a path.

    Returns
    -------
    int
        Rows written.

    Raises
    ------
    InvalidInputError
        If the store has other columns or the array another shape, or batches are asked for and it does
        not know them.
    UnknownNameError
        If it has no such array.
    IncompleteStoreError
        If it was not finalized and `partial` is False.
    OSError
        If a file cannot be written; none of the two is replaced then.

    Examples
    --------
    >>> import tempfile, zarrow
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
                opened,
                predictions,
                embeddings,
                array=array,
                one_row_group_per_batch=one_row_group_per_batch,
            )
    _check_columns(store)
    exports = [_Export(store, Path(predictions), None, one_row_group_per_batch)]
    if embeddings is not None:
        exports.append(_Export(store, Path(embeddings), array, one_row_group_per_batch))
    try:
        for export in exports:
            export.write()
        # Neither file is put into place before both are durable, so that no crash while they are written
        # leaves a new one beside an old one.
        for export in exports:
            export.install()
    finally:
        for export in exports:
            export.clean_up()
    return store.num_rows


def _check_columns(store: Store) -> None:
    schema = store.schema
    for name in (*KEYS, *PROBABILITIES, *([LABEL] if LABEL in schema.names else [])):
        if name not in schema.names or schema.field(name).type != TYPES[name]:
            got = f"got {schema.field(name).type}" if name in schema.names else f"there are {schema.names}"
            raise InvalidInputError(
                f"{store.path}: a store of EveryQuery's predictions must have the column {name!r} of type "
                f"{TYPES[name]}, {got}: write it with zarrow.everyquery's writer or preset"
            )


class _Export:
    """One of the files on its way out of a store."""

    def __init__(self, store: Store, path: Path, array: str | None, per_batch: bool) -> None:
        self._store = store
        self._path = path
        self._array = array
        self._scratch = path.with_name(f".{path.name}.exporting")
        names = _PREDICTION_ORDER if array is None else _EMBEDDING_ORDER
        self._names = [name for name in names if name in store.schema.names]
        fields = [pa.field(name, TYPES[name]) for name in self._names]
        row_bytes = 0
        if array is not None:
            found = store[array]
            if len(found.row_shape) != 1 or found.dtype.kind != "f" or found.dtype.itemsize > 4:
                raise InvalidInputError(
                    f"{store.path}: embeddings must be one float32 or float16 vector per row; the array "
                    f"{array!r} has rows of shape {found.row_shape} and dtype {found.dtype}: name another"
                )
            fields.append(pa.field(EMBEDDING, pa.list_(pa.float32(), found.row_shape[0])))
            row_bytes = found.row_shape[0] * 4
        self._schema = pa.schema(fields)
        self._group_rows = min(_ROW_GROUP_ROWS, rows_of(_ROW_GROUP_BYTES, row_bytes))
        if per_batch and BATCH not in store.schema.names:
            raise InvalidInputError(
                f"{store.path}: the store does not know its batches, as it has no column {BATCH!r}: "
                "leave one_row_group_per_batch away"
            )
        self._per_batch = per_batch

    def write(self) -> None:
        """Write the file under its scratch name: durable on return."""
        order = _order(self._store)
        with (
            pa.OSFile(str(self._scratch), "wb") as sink,
            # Floats repeat too seldom for a dictionary to pay, and nobody looks for a vector by its range.
            pq.ParquetWriter(
                sink, self._schema, use_dictionary=[*KEYS], write_statistics=self._names
            ) as writer,
        ):
            for table in _regroup(self._pieces(order), self._group_sizes(order)):
                writer.write_table(table, row_group_size=max(table.num_rows, 1))
        fd = os.open(self._scratch, os.O_RDONLY)
        try:
            files.sync(fd)
        finally:
            os.close(fd)

    def install(self) -> None:
        """Put the file into place: durable on return."""
        files.rename(self._scratch, self._path)
        files.sync_dir(self._path.parent)

    def clean_up(self) -> None:
        """Remove what an export that failed left."""
        files.remove(self._scratch)

    def _pieces(self, order: Any) -> Iterator[pa.Table]:
        arrays = [] if self._array is None else [self._array]
        for batch, vectors in self._store.join(
            columns=self._names, arrays=arrays, batch_size=self._group_rows, order=order
        ):
            columns = list(batch.columns)
            if self._array is not None:
                rows = np.ascontiguousarray(vectors[self._array], np.float32)
                columns.append(
                    pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), type=self._schema[-1].type)
                )
            yield pa.Table.from_arrays(columns, schema=self._schema)

    def _group_sizes(self, order: Any) -> Iterator[int]:
        """Yield the rows of each row group, forever."""
        if self._per_batch:
            yield from _batch_sizes(self._store, order)
        while True:
            yield self._group_rows


def _order(store: Store) -> Any:
    """Return the order to ask `Store.join` for; the one that costs memory only where rows need it."""
    last = -1
    for batch, _ in store.join(columns=[SAMPLE_INDEX], arrays=[], batch_size=_ROW_GROUP_ROWS):
        index = batch[SAMPLE_INDEX]
        if index.null_count:
            return None
        places = index.to_numpy()
        if places[0] < last or (np.diff(places) < 0).any():
            return "sample_index"
        last = int(places[-1])
    return None


def _batch_sizes(store: Store, order: Any) -> Iterator[int]:
    """Yield the rows of each run of rows that came in one batch."""
    current, size = None, 0
    for batch, _ in store.join(columns=[BATCH], arrays=[], batch_size=_ROW_GROUP_ROWS, order=order):
        numbers = batch[BATCH].to_numpy()
        edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        for start, stop in itertools.pairwise(edges):
            if size and numbers[start] != current:
                yield size
                size = 0
            current, size = numbers[start], size + stop - start
    if size:
        yield size


def _regroup(pieces: Iterator[pa.Table], sizes: Iterator[int]) -> Iterator[pa.Table]:
    """Yield the rows of `pieces` in tables of the given sizes, the last one shorter."""
    pending: list[pa.Table] = []
    have, want = 0, next(sizes)
    for piece in pieces:
        start = 0
        while have + piece.num_rows - start >= want:
            stop = start + want - have
            yield pa.concat_tables([*pending, piece.slice(start, stop - start)])
            pending, have, start, want = [], 0, stop, next(sizes)
        if start < piece.num_rows:
            pending.append(piece.slice(start))
            have += piece.num_rows - start
    if pending:
        yield pa.concat_tables(pending)
