"""Parts — the Parquet file of a segment's columns, with one row group.

A part has the user's columns, then ``row`` and ``sample_index``
(https://parquet.apache.org/docs/file-format/), and says in its key-value metadata, under ``zarrow``, which
store it belongs to and where that one's rows come from (`facts_of`). It is written for stock readers: zstd,
statistics, page index, page checksums, bloom filters on the keys where pyarrow can write them, and a
dictionary for strings only (random floats grow by half in one). Columns that shrink so much that a reader
would take them for an attack (`check_part`), which happens to large constants, are written again, without a
dictionary and with LZ4, which shrinks nothing that much.

pyarrow ignores short writes of Python files, and its own files bypass `_storage.files`. So it writes to
`_Sink`, which passes every byte to `_storage.files` and computes the checksum on the way. A crash leaves a
scratch file in the open segment.
"""

from __future__ import annotations

import inspect
import io
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from zarrow._format.arrow import is_text
from zarrow._format.checksum import crc32c
from zarrow._format.layout import RESERVED_COLUMNS
from zarrow._format.pages import MAX_VALUES, SMALL_BYTES, read_footer
from zarrow._format.parts import POOL, check_part, parquet
from zarrow._format.records import PartFacts
from zarrow._format.spec import StoreSpec
from zarrow._format.statistics import column_statistics, nans_in
from zarrow._format.zarr_metadata import facts_of
from zarrow._storage import files
from zarrow._storage.reading import File, open_file
from zarrow.errors import CorruptionError, InvalidInputError

__all__ = ["check_columns", "write_part"]


_BUFFER_BYTES = 1 << 20


class _Sink(io.RawIOBase):
    """A file whose writes are complete or raise."""

    def __init__(self, path: Path) -> None:
        self._fd = files.create(path)
        self._pending = bytearray()
        self.size_bytes = 0
        self.crc32c = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size_bytes + len(self._pending)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._pending += view
        if len(self._pending) >= _BUFFER_BYTES:
            self._drain()
        return len(view)

    def _drain(self) -> None:
        data = bytes(self._pending)
        files.write(self._fd, data, self.size_bytes)
        self.crc32c = crc32c(data, self.crc32c)
        self.size_bytes += len(data)
        self._pending.clear()

    def flush(self) -> None:
        pass

    def sync(self) -> None:
        self._drain()
        files.sync(self._fd)

    def close(self) -> None:
        fd, self._fd = self._fd, -1  # first: a descriptor that is closed twice may be another file's
        if fd >= 0:
            os.close(fd)
        super().close()


def _with_statistics(table: pa.Table) -> list[str]:
    """Return the columns whose minimum and maximum may be written.

    Parquet's leave NaN out, and a reader that skips a row group by them loses the rows whose value is NaN: so
    a column that has one gets none. Neither do nested columns, whose leaves a name does not tell apart.
    """
    return [
        name
        for name, column in zip(table.column_names, table.columns, strict=True)
        if "." not in name and not pa.types.is_nested(column.type) and not nans_in(column)
    ]


def _writer_options(spec: StoreSpec, table: pa.Table) -> dict[str, Any]:
    rows = table.num_rows
    strings = [
        column.name for column in spec.schema if pa.types.is_dictionary(column.type) or is_text(column.type)
    ]
    options: dict[str, Any] = {
        "compression": "zstd",
        "use_dictionary": strings,
        "column_encoding": dict.fromkeys(RESERVED_COLUMNS, "DELTA_BINARY_PACKED"),
        "write_page_index": True,
        "write_page_checksum": True,
        "write_statistics": _with_statistics(table),
        "store_schema": True,
        "memory_pool": POOL,
    }
    # DuckDB reads float16 as float32, and looks for the hash of that.
    kinds = {key: spec.schema.field(key).type for key in spec.keys}
    keys = [
        key for key, kind in kinds.items() if not (pa.types.is_boolean(kind) or pa.types.is_float16(kind))
    ]
    if keys and rows and _has_bloom_filters():
        options["bloom_filter_options"] = {key: {"ndv": rows, "fpp": 0.05} for key in keys}
    return options


def _has_bloom_filters() -> bool:
    return "bloom_filter_options" in inspect.signature(parquet().ParquetWriter.__init__).parameters


def write_part(path: Path, spec: StoreSpec, table: pa.Table) -> PartFacts:
    """Write a part: durable on return, but not in place.

    Parameters
    ----------
    path : Path
        A scratch file, which does not exist yet.
    spec : StoreSpec
        The store.
    table : pyarrow.Table
        Of the spec's `table_schema`.

    Returns
    -------
    PartFacts
        For the record.
    """
    options = _writer_options(spec, table)
    facts = _write_with(options, path, spec, table)
    large = [column.name for column in table.schema if not _is_small(table[column.name])]
    with open_file(path.parent, path.name) as file, file.stream() as stream:
        metadata: Any = parquet().read_metadata(stream) if large else None
        dense = [name for name in large if not _is_harmless(file, stream, metadata, name)]
    if dense:
        leaves = [metadata.schema.column(index).path for index in range(len(metadata.schema))]
        options["use_dictionary"] = [name for name in options["use_dictionary"] if name not in dense]
        options["compression"] = {
            leaf: "lz4" if any(f"{leaf}.".startswith(f"{name}.") for name in dense) else "zstd"
            for leaf in leaves
        }
        files.remove(path)
        facts = _write_with(options, path, spec, table)
    return facts


def _is_small(values: pa.ChunkedArray) -> bool:
    """Tell whether values are so few and short that they are harmless, however they are stored."""
    plain = not (pa.types.is_nested(values.type) or pa.types.is_dictionary(values.type))
    return plain and len(values) <= MAX_VALUES and int(values.nbytes) <= SMALL_BYTES


def _is_harmless(file: File, stream: Any, metadata: Any, column: str) -> bool:
    try:
        check_part(stream, metadata, file.read, file.path, columns=[column])
    except CorruptionError:
        return False
    return True


def _write_with(options: dict[str, Any], path: Path, spec: StoreSpec, table: pa.Table) -> PartFacts:
    sink = _Sink(path)
    try:
        with pa.PythonFile(sink, mode="w") as file:
            with parquet().ParquetWriter(file, spec.table_schema, **options) as writer:
                writer.write_table(table, row_group_size=max(table.num_rows, 1))
                writer.add_key_value_metadata({"zarrow": json.dumps(facts_of(spec), separators=(",", ":"))})
            sink.sync()
    finally:
        sink.close()
    with open_file(path.parent, path.name) as part:
        footer = read_footer(part.read, sink.size_bytes)
    return PartFacts(
        size_bytes=sink.size_bytes,
        crc32c=sink.crc32c,
        footer_crc32c=crc32c(footer),
        statistics=column_statistics(table),
    )


def check_columns(spec: StoreSpec) -> None:
    """Raise if a column cannot be stored in a frame or in Parquet.

    Parameters
    ----------
    spec : StoreSpec
        The store.

    Raises
    ------
    InvalidInputError
        It names the column and the type.
    """
    for column in spec.schema:
        if _may_be_null_list(column) and not _reads_null_lists():
            raise InvalidInputError(
                f"column {column.name!r}: pyarrow {pa.__version__} cannot read a null of {column.type} back "
                "from Parquet: upgrade pyarrow, declare the column not nullable, or cast it to a list"
            )
        try:
            table = pa.Table.from_batches([], pa.schema([column]))  # empty_table imports pandas
            with parquet().ParquetWriter(pa.BufferOutputStream(), table.schema) as writer:
                writer.write_table(table)
        except (pa.ArrowException, OSError) as error:
            raise InvalidInputError(
                f"column {column.name!r}: Parquet cannot hold {column.type} ({error}): cast it"
            ) from error


def _may_be_null_list(field: pa.Field, *, in_null: bool = False) -> bool:
    """Tell whether a list of fixed size can be null, in a column or anywhere inside it."""
    null, kind = field.nullable or in_null, field.type
    if pa.types.is_fixed_size_list(kind):
        return null or _may_be_null_list(kind.value_field)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _may_be_null_list(kind.value_field)
    if pa.types.is_struct(kind):
        return any(_may_be_null_list(kind.field(i), in_null=null) for i in range(kind.num_fields))
    return False


@cache
def _reads_null_lists() -> bool:
    """Tell whether this pyarrow reads a null list of fixed size from Parquet; 21 does not."""
    table = pa.table({"probe": pa.array([[1, 2], None], pa.list_(pa.int64(), 2))})
    sink = pa.BufferOutputStream()
    try:
        parquet().write_table(table, sink)
        return bool(parquet().ParquetFile(pa.BufferReader(sink.getvalue())).read().equals(table))
    except (pa.ArrowException, OSError):
        return False
