"""In which order do rows come, sorted by their columns, if they do not fit into memory?

`sort_rows` sorts as tapes were sorted:

1. tables are gathered up to 16 MiB, sorted, and written one behind the other into a scratch file without a
   name: each is a *run*, and is mapped from there;
2. from every run the next rows are looked at. The least of the last ones is a *bound*: no row that has not
   been looked at comes before it. What is not behind it is taken from all runs, sorted, and handed out.

So every row is sorted twice, and nothing of a run is in memory but what is taken from it at once. Rows that
are equal keep the order of the column that comes last, which tells all of them apart.

Place: tier 2. Pure, but for the scratch file, which is gone with the process.
"""

from __future__ import annotations

import math
import mmap
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from zarrow.errors import InvalidInputError

__all__ = ["are_sorted", "check_sortable", "sort_rows"]

RUN_BYTES = 16 << 20
_STEP_ROWS = 1 << 16
_MIN_STEP_ROWS = 256


def check_sortable(schema: pa.Schema, by: Sequence[str]) -> None:
    """Raise `InvalidInputError` if rows cannot be sorted by these columns.

    >>> check_sortable(pa.schema({"codes": pa.list_(pa.int64())}), ["codes"])
    Traceback (most recent call last):
    zarrow.errors.InvalidInputError: rows cannot be sorted by 'codes', which is list<item: int64>
    """
    for name in by:
        try:
            _indices(schema.empty_table().select([name]), [name])
        except pa.ArrowException:
            raise InvalidInputError(
                f"rows cannot be sorted by {name!r}, which is {schema.field(name).type}"
            ) from None


def are_sorted(batches: Iterable[pa.RecordBatch], by: Sequence[str]) -> bool:
    """Tell whether rows are in order.

    >>> are_sorted([pa.record_batch({"x": [1, 2]}), pa.record_batch({"x": [2]})], ["x"])
    True
    """
    last: tuple[Any, ...] | None = None
    for batch in batches:
        keys = [_comparable(batch.column(name)) for name in by]
        first = _key(keys, 0)
        indices = _indices(pa.Table.from_batches([batch]), by).to_numpy()
        if (last is not None and first < last) or np.any(indices[1:] < indices[:-1]):
            return False
        last = _key(keys, batch.num_rows - 1)
    return True


def sort_rows(batches: Iterable[pa.RecordBatch], by: Sequence[str], scratch: Path) -> Iterator[pa.Table]:
    """Yield rows in order, in bounded memory.

    Parameters
    ----------
    batches : iterable of pyarrow.RecordBatch
        The rows, all of one schema, without dictionaries.
    by : sequence of str
        The columns to sort by, ascending; a null comes last. No two rows are equal in all of them.
    scratch : Path
        Where the scratch file goes; it gets as large as the rows are.

    Yields
    ------
    pyarrow.Table
        One chunk per column.

    Examples
    --------
    >>> batches = [pa.record_batch({"x": [3, 1], "row": [0, 1]}), pa.record_batch({"x": [2], "row": [2]})]
    >>> [table.to_pydict() for table in sort_rows(batches, ["x", "row"], Path("/tmp"))]
    [{'x': [1, 2, 3], 'row': [1, 2, 0]}]
    """
    with tempfile.TemporaryFile(prefix="zarrow-sort-", dir=scratch) as file:
        places = [_write_run(file, table, by) for table in _gathered(batches)]
        file.flush()
        if not places:
            return
        mapped = pa.py_buffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    runs = [_Run(mapped.slice(offset, size), by) for offset, size in places]
    step = max(_STEP_ROWS // len(runs), _MIN_STEP_ROWS)
    while runs:
        bound = min(run.key(min(run.start + step, run.rows.num_rows) - 1) for run in runs)
        taken = pa.Table.from_batches([run.take_until(bound, step) for run in runs]).combine_chunks()
        yield taken.take(_indices(taken, by)).combine_chunks()
        runs = [run for run in runs if run.start < run.rows.num_rows]


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    pending: list[pa.RecordBatch] = []
    size_bytes = 0
    for batch in batches:
        pending.append(batch)
        size_bytes += batch.nbytes
        if size_bytes >= RUN_BYTES:
            yield pa.Table.from_batches(pending)
            pending, size_bytes = [], 0
    if pending:
        yield pa.Table.from_batches(pending)


def _indices(table: pa.Table, by: Sequence[str]) -> pa.Array:
    import pyarrow.compute as pc

    return pc.sort_indices(table, sort_keys=[(name, "ascending") for name in by])


def _write_run(file: IO[bytes], table: pa.Table, by: Sequence[str]) -> tuple[int, int]:
    """Write a run, and return where it lies."""
    offset = file.tell()
    batch = table.take(_indices(table, by)).combine_chunks().to_batches()[0]
    with pa.ipc.new_stream(pa.PythonFile(file, mode="w"), batch.schema) as stream:
        stream.write_batch(batch)
    size = file.tell() - offset
    file.write(bytes(-size % 64))  # so that Arrow finds the next run aligned, and maps it without a copy
    return offset, size


class _Run:
    """Rows that are in order, and how far they have been taken."""

    def __init__(self, data: pa.Buffer, by: Sequence[str]) -> None:
        self.rows: pa.RecordBatch = pa.ipc.open_stream(data).read_next_batch()
        self.start = 0
        self._columns = [_comparable(self.rows.column(name)) for name in by]

    def key(self, row: int) -> tuple[Any, ...]:
        """Return what Python compares as Arrow sorts."""
        return _key(self._columns, row)

    def take_until(self, bound: tuple[Any, ...], step: int) -> pa.RecordBatch:
        """Return the next rows that are not behind a bound, at most `step`."""
        low, high = self.start, min(self.start + step, self.rows.num_rows)
        while low < high:
            middle = (low + high) // 2
            if self.key(middle) <= bound:
                low = middle + 1
            else:
                high = middle
        taken = self.rows.slice(self.start, low - self.start)
        self.start = low
        return taken


def _key(columns: Sequence[pa.Array], row: int) -> tuple[Any, ...]:
    """Return what Python compares as Arrow sorts: numbers, NaN, nulls."""
    values = (column[row].as_py() for column in columns)
    return tuple(
        (2,) if value is None else (1,) if isinstance(value, float) and math.isnan(value) else (0, value)
        for value in values
    )


def _comparable(column: pa.Array) -> pa.Array:
    """Return a column whose values Python knows to the last digit: times as numbers."""
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind) or pa.types.is_time64(kind):
        return column.view(pa.int64())
    return column.view(pa.int32()) if pa.types.is_date32(kind) or pa.types.is_time32(kind) else column
