"""One Parquet file — the narrow columns, and each array as a column of fixed-size lists.

An array whose rows have several axes is a column of Arrow's fixed-shape tensors, which are lists to programs
that do not know them: the shape is in the Arrow schema
(https://arrow.apache.org/docs/format/CanonicalExtensions.html#fixed-shape-tensor).

Row groups have about 16 MiB of vectors: small enough to write and read in little memory. Vectors get neither
a dictionary nor statistics, which cost time and space and save nothing for floating-point noise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from zarrow._format.arrow import rebatched
from zarrow._format.zarr_metadata import dimension_names
from zarrow._storage.reading import parquet_files
from zarrow.errors import InvalidInputError
from zarrow.transfer._rows import Incoming, Outgoing, batch_rows, from_arrow, to_arrow

__all__ = ["ParquetRows", "open_parquet", "read", "write", "write_parquet"]

_SIZES = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}

ParquetRows = Callable[[int], Iterator[pa.RecordBatch]]
"""The rows of Parquet files in batches of a size, from the beginning at every call."""


def write(rows: Outgoing, scratch: Path, target: Path) -> None:
    """Write one file."""
    del target
    schema, batches = to_arrow(rows)
    for array in rows.fixed:
        if len(array.row_shape) > 1:
            names = dimension_names(array.name, array.row_shape)[1:]
            kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(array.dtype), array.row_shape, dim_names=names)
            place = schema.get_field_index(array.name)
            schema = schema.set(place, schema.field(place).with_type(kind))
    tensors = (_as_tensors(batch, schema) for batch in batches)
    write_parquet(scratch, schema, tensors, [field.name for field in rows.schema])


def _as_tensors(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch with lists of lists as the tensors that a schema has in their place."""
    columns = []
    for column, kind in zip(batch.columns, schema.types, strict=True):
        if isinstance(kind, pa.FixedShapeTensorType):
            while pa.types.is_fixed_size_list(column.type):
                column = column.flatten()
            lists = pa.FixedSizeListArray.from_arrays(column, type=kind.storage_type)
            column = pa.ExtensionArray.from_storage(kind, lists)
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def write_parquet(
    path: Path,
    schema: pa.Schema,
    batches: Iterator[pa.RecordBatch],
    narrow: list[str],
    *,
    compression: str = "zstd",
    dictionary: Sequence[str] | None = None,
) -> None:
    """Write a stream of batches, each as a row group.

    The `narrow` columns get statistics, and those in `dictionary` (by default all of them but floats) a
    dictionary.
    """
    if dictionary is None:
        dictionary = [name for name in narrow if not pa.types.is_floating(schema.field(name).type)]
    with (
        pa.OSFile(str(path), "wb") as sink,
        pq.ParquetWriter(
            sink,
            schema,
            compression=compression,
            use_dictionary=[*dictionary],
            write_statistics=narrow,
        ) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch, row_group_size=max(batch.num_rows, 1))


def read(source: Path, beside: Path | None) -> Incoming:
    """Return the rows of a file, or of a folder of files."""
    if beside is not None:
        raise InvalidInputError("a Parquet file holds its vectors itself: leave beside out")
    with contextlib.ExitStack() as files:
        total, schema, batches = open_parquet(source, files)
        size = batch_rows(_row_bytes(source))
        first = next(iter(batches(size)), None)
        if first is None:
            first = pa.RecordBatch.from_pylist([], schema=schema)
        found = from_arrow(total, first, lambda: batches(size), source)
        found.files = files.pop_all()
        return found


def open_parquet(source: Path, files: contextlib.ExitStack) -> tuple[int, pa.Schema, ParquetRows]:
    """Open a file, or the files of a folder in natural order; return rows, schema, batches."""
    paths = parquet_files(source)
    parts = []
    for path in paths:
        try:
            parts.append(files.enter_context(pq.ParquetFile(path, memory_map=False, pre_buffer=False)))
        except pa.ArrowInvalid as error:
            raise InvalidInputError(f"{path}: not a Parquet file: {error}") from error
    schema = parts[0].schema_arrow.remove_metadata()
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise InvalidInputError(f"{source}: column {name!r} is there more than once: rename one")
    for path, part in zip(paths, parts, strict=True):
        if part.schema_arrow.remove_metadata() != schema:
            raise InvalidInputError(
                f"{path}: its columns differ from those of {paths[0]}: import them one at a time"
            )

    def batches(size: int) -> Iterator[pa.RecordBatch]:
        return rebatched(
            (batch for part in parts for batch in part.iter_batches(size, use_threads=False)), size
        )

    return sum(part.metadata.num_rows for part in parts), schema, batches


def _row_bytes(source: Path) -> int:
    """Return the bytes of a row's values, on average over the files: also of lists of any length."""
    total, rows = 0, 0
    for path in parquet_files(source):
        about = pq.read_metadata(path)
        rows += about.num_rows
        for place in range(about.num_columns):
            kind = about.schema.column(place)
            size = _SIZES.get(kind.physical_type) or kind.length or 16  # text: a guess
            for group in range(about.num_row_groups):
                total += size * about.row_group(group).column(place).num_values
    return total // max(rows, 1)
