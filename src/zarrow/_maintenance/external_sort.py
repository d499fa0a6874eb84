"""External sort — a store's narrow columns in the order of some of them, in bounded memory.

1. `spool` writes the columns, uncompressed, into a scratch file and maps it, so that a row can be taken
   without decoding the page that it lies in.
2. `sort` has DuckDB sort the row numbers by the columns to sort by; what does not fit into 256 MB, DuckDB
   writes to disk. The row numbers go into a second scratch file, which is mapped, too.
3. `take` gathers the rows, a block of row numbers at a time.

Only the columns to sort by pass through DuckDB, times as integers: no value is converted to one of DuckDB's
types and back. DuckDB orders them as Arrow does: numbers ascending (−0.0 equals 0.0), false before true, text
and binary by their bytes; then NaN; then nulls. Rows that are equal keep their order.

The scratch files have no name, so a crash leaves at most the directory that DuckDB was writing to.
"""

from __future__ import annotations

import errno
import mmap
import tempfile
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format.arrow import is_bytes, is_text, numbers_as_arrow
from zarrow._format.layout import ROW
from zarrow.errors import InvalidInputError, MissingExtraError

if TYPE_CHECKING:
    import duckdb

__all__ = ["SCRATCH_PREFIX", "check_sortable", "sort", "spool", "take"]

SCRATCH_PREFIX = "zarrow-pack-"
MEMORY_LIMITS = ("256MB", "80%")
"""DuckDB's; the second, its default, is tried if the first is too little, as it is for text of many KB."""


def check_sortable(schema: pa.Schema, by: Sequence[str]) -> None:
    """Raise `InvalidInputError` if rows cannot be sorted by these columns.

    >>> check_sortable(pa.schema({"codes": pa.list_(pa.int64())}), ["codes"])
    Traceback (most recent call last):
    zarrow.errors.InvalidInputError: rows cannot be sorted by 'codes', which is list<item: int64>
    """
    types = pa.types
    for name in by:
        kind = schema.field(name).type
        number = (types.is_primitive(kind) and not types.is_float16(kind)) or types.is_decimal128(kind)
        bytewise = is_text(kind) or is_bytes(kind) or types.is_fixed_size_binary(kind)
        if not (number or bytewise or types.is_null(kind)):
            raise InvalidInputError(f"rows cannot be sorted by {name!r}, which is {kind}")


def spool(batches: Iterable[pa.RecordBatch], schema: pa.Schema, scratch: Path) -> pa.Table:
    """Return rows mapped from a nameless file in the directory `scratch`."""
    with tempfile.TemporaryFile(prefix=SCRATCH_PREFIX, dir=scratch) as file:
        with pa.ipc.new_stream(pa.PythonFile(file, mode="w"), schema) as stream:
            for batch in batches:
                stream.write_batch(batch)
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    return pa.ipc.open_stream(pa.py_buffer(mapped)).read_all()


def sort(rows: pa.Table, by: Sequence[str], scratch: Path) -> npt.NDArray[np.int64] | None:
    """Return the numbers of rows in their order, mapped from a nameless file; None if they are in order.

    Parameters
    ----------
    rows : pyarrow.Table
        The rows, numbered from 0, and without dictionaries.
    by : sequence of str
        The columns to sort by, ascending.
    scratch : Path
        A directory for scratch files: 8 bytes per row, and what DuckDB needs.

    Raises
    ------
    MissingExtraError
        Without DuckDB.
    OSError
        If DuckDB fails for lack of disk or memory.

    Examples
    --------
    >>> sort(pa.table({"x": [3, None, 1], "row": [0, 1, 2]}), ["x"], Path("/tmp")).tolist()
    [2, 0, 1]
    """
    try:
        import duckdb
    except ImportError as error:
        raise MissingExtraError("sorting rows needs DuckDB: pip install duckdb") from error

    for limit in MEMORY_LIMITS:
        # DuckDB makes this directory if it needs it, and removes it afterwards.
        directory = scratch / f"{SCRATCH_PREFIX}{uuid.uuid4().hex}"
        config: dict[str, Any] = {"memory_limit": limit, "temp_directory": str(directory), "threads": 1}
        try:
            with (
                tempfile.TemporaryFile(prefix=SCRATCH_PREFIX, dir=scratch) as file,
                duckdb.connect(config=config) as connection,
            ):
                moved = _write_sorted(connection, rows, by, file)
                return np.memmap(file, np.int64, "r") if moved else None
        except (duckdb.Error, OSError) as error:
            failed = error
    reason = str(failed).partition("\n")[0]  # without DuckDB's advice, which cannot be followed here
    raise OSError(errno.EIO, f"DuckDB cannot sort the rows: {reason}") from failed


def _write_sorted(
    connection: duckdb.DuckDBPyConnection, rows: pa.Table, by: Sequence[str], file: IO[bytes]
) -> bool:
    """Write the numbers of rows in their order; return whether that is another one than now."""
    names = [f"key_{number}" for number in range(len(by))]
    keys = pa.table([*(_comparable(rows[column]) for column in by), rows[ROW]], [*names, "number"])
    connection.register("keys", keys)
    order = ", ".join(f"{name} NULLS LAST" for name in names)
    found = connection.sql(f"SELECT number FROM keys ORDER BY {order}, number")
    done, moved = 0, False
    for batch in pa.RecordBatchReader.from_stream(found):
        numbers = np.from_dlpack(batch.column(0))
        moved = moved or not np.array_equal(numbers, np.arange(done, done + len(numbers)))
        done += len(numbers)
        file.write(numbers.tobytes())
    file.flush()
    return moved


def take(rows: pa.Table, numbers: npt.NDArray[np.int64]) -> pa.Table:
    """Return rows by position, in the order given: `pyarrow.Table.take` would copy all of `rows` for it."""
    order = np.argsort(numbers)
    ascending = numbers[order]
    batches = rows.to_batches()
    starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
    edges = np.searchsorted(ascending, starts)
    taken = [
        batch.take(numbers_as_arrow(ascending[low:high] - start))
        for batch, start, low, high in zip(batches, starts, edges, edges[1:], strict=False)
        if low < high
    ]
    return pa.Table.from_batches(taken).combine_chunks().take(numbers_as_arrow(np.argsort(order)))


def _comparable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column in types that DuckDB has: it has no nanoseconds of a day, for one."""
    if not pa.types.is_temporal(column.type):
        return column
    stored = pa.int32() if column.type.bit_width == 32 else pa.int64()
    return pa.chunked_array([chunk.view(stored) for chunk in column.chunks], stored)
