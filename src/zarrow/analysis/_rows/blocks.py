"""Blocks — the rows of an array, a few MiB at a time, when they do not fit in memory.

A *block* is a few MiB of vectors as a matrix of float64, with the narrow columns that were named, in row
order.

The rules that all analyses share are here, and nowhere else:

* A row of several axes is flattened to one vector, in C order.
* A block of a ragged array has vectors in place of rows: `Block.rows` are the rows that they are of. Analyses
  that need one vector per row refuse such an array (`width_of`).
* Computation is in float64.
* A row that contains a NaN or an infinity is *not finite*: it is counted, and left out of everything else
  (`Block.split`).
* A filter selects rows by the table; the vectors of other rows are not read.
* `progress` is called with the number of rows done and the total, after each block.

The same rules hold for an xarray Dataset, whose rows are read piece by piece (`dataset`). Reads only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zarrow._format.array_spec import rows_of
from zarrow._format.layout import ROW
from zarrow._read.indexing import IndexedRagged
from zarrow.analysis._rows.dataset import Array, Rows, pieces
from zarrow.errors import InvalidInputError
from zarrow.store import QuantizedArray, Store, StoreArray

__all__ = [
    "NO_COLUMNS",
    "Block",
    "Progress",
    "as_matrix",
    "block_rows",
    "blocks",
    "choose_array",
    "part_of",
    "vector_width",
    "width_of",
]

Progress = Callable[[int, int], None]

BLOCK_BYTES = 8 << 20
MAX_BLOCK_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of an array, and columns of the same rows.

    Parameters
    ----------
    rows : int64 array, shape (n,)
        Row numbers, ascending; of a ragged array that of each vector.
    values : float64 array, shape (n, width)
        The vectors.
    table : pyarrow.RecordBatch
        The columns that were named.
    aside : array, shape (n, …), or None
        The values that `folds.Passes` was given for these rows.
    """

    rows: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    table: pa.RecordBatch
    aside: npt.NDArray[Any] | None = None

    def split(self) -> tuple[Block, Block]:
        """Return the rows that are finite, and the others."""
        finite = np.asarray(np.isfinite(self.values).all(axis=1))
        return self if finite.all() else self.where(finite), self.where(~finite)

    def where(self, chosen: npt.NDArray[np.bool_]) -> Block:
        """Return some of the rows."""
        table = self.table.filter(pa.array(chosen)) if self.table.num_columns else self.table
        aside = None if self.aside is None else self.aside[chosen]
        return Block(self.rows[chosen], self.values[chosen], table, aside)


def part_of(progress: Progress | None, place: int, parts: int) -> Progress | None:
    """Return a callback for one of several passes of equal length."""
    if progress is None:
        return None
    return lambda done, total: progress(place * total + done, parts * total)


# Arrays


@overload
def choose_array(store: Store, name: str | None) -> StoreArray: ...
@overload
def choose_array(store: Rows, name: str | None) -> Array: ...
def choose_array(store: Rows, name: str | None) -> Array:
    """Return the array of that name, or the only one.

    Raises
    ------
    UnknownNameError
        If there is no array with that name.
    InvalidInputError
        If no name is given and there is not exactly one array.
    """
    if name is None:
        if len(store.arrays) != 1:
            names = ", ".join(store.arrays) or "none"
            raise InvalidInputError(f"name one array, with array=; there are: {names}")
        name = next(iter(store.arrays))
    found = store[name]
    width_of(found)  # of a ragged array, an error
    return found


def width_of(array: Array) -> int:
    """Return the number of elements of a row."""
    return int(np.prod(array.row_shape))


def vector_width(array: Array | IndexedRagged) -> int:
    """Return the number of elements of a row, or of a vector of a ragged array."""
    return int(np.prod(array.vector_shape)) if isinstance(array, IndexedRagged) else width_of(array)


def as_matrix(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return rows as a matrix of float64.

    >>> as_matrix(np.ones((3, 2, 4), np.float16)).shape
    (3, 8)
    """
    return np.ascontiguousarray(values.reshape(len(values), int(np.prod(values.shape[1:]))), np.float64)


# Streams


def block_rows(array: Array | IndexedRagged) -> int:
    """Return the number of rows of a block, or of vectors of a ragged array."""
    rows = rows_of(BLOCK_BYTES, 8 * vector_width(array))
    rows = min(rows, MAX_BLOCK_ROWS)
    return rows - rows % 64 if rows > 64 else rows


def blocks(
    store: Rows,
    array: Array | IndexedRagged,
    columns: Sequence[str] = (),
    filter: pc.Expression | None = None,
    span: range | None = None,
    progress: Progress | None = None,
) -> Iterator[Block]:
    """Yield the rows of an array in blocks.

    Parameters
    ----------
    store : Store or DatasetRows
        The source of the rows.
    array : StoreArray, DatasetArray or StoreRagged
        One of its arrays.
    columns : list of str
        Columns to add to each block.
    filter : pyarrow.compute.Expression, optional
        Rows to read; all by default.
    span : range, optional
        Read only rows in this range.
    progress : callable, optional
        Called with the number of rows done and the total.

    Yields
    ------
    Block
        In row order; never empty.
    """
    size = block_rows(array)
    span = range(store.num_rows) if span is None else span
    done = 0
    for part, at_hand in pieces(store, [array.name, *columns], filter):
        here = range(max(part.start, span.start), min(part.stop, span.stop))
        if not len(here):
            continue
        rows = at_hand()
        if isinstance(array, IndexedRagged):
            stream = _vectors(rows, array, columns, filter, here, size)
        elif columns or filter is not None:
            stream = _joined(rows, rows[array.name], columns, filter, here, size)
        else:
            stream = _plain(rows[array.name], here, size)
        for block in stream:
            yield block
            done = int(block.rows[-1]) + 1 - span.start
            if progress is not None:
                progress(done, len(span))
    if progress is not None and done < len(span):
        progress(len(span), len(span))


NO_COLUMNS = pa.record_batch({})


def _plain(array: Array, span: range, size: int) -> Iterator[Block]:
    for start in range(span.start, span.stop, size):
        stop = min(start + size, span.stop)
        array.prefetch(stop, stop + size)
        if isinstance(array, QuantizedArray):
            values = array.read_float64(start, stop)
        else:
            values = array.read(start, stop)
        yield Block(np.arange(start, stop), as_matrix(values), NO_COLUMNS)


def _joined(
    store: Rows,
    array: Array,
    columns: Sequence[str],
    filter: pc.Expression | None,
    span: range,
    size: int,
) -> Iterator[Block]:
    for rows, values, table in _rows_of_join(store, array.name, columns, filter, span, size):
        yield Block(rows, as_matrix(values), table)


def _rows_of_join(
    store: Rows, name: str, columns: Sequence[str], filter: pc.Expression | None, span: range, size: int
) -> Iterator[tuple[npt.NDArray[np.int64], Any, pa.RecordBatch]]:
    if len(span) < store.num_rows:
        within = (pc.field(ROW) >= span.start) & (pc.field(ROW) < span.stop)
        filter = within if filter is None else filter & within
    names = list(dict.fromkeys([*columns, ROW]))
    for table, vectors in store.join(filter, names, [name], size):
        yield table[ROW].to_numpy(zero_copy_only=False), vectors[name], table


def _vectors(
    store: Rows,
    array: IndexedRagged,
    columns: Sequence[str],
    filter: pc.Expression | None,
    span: range,
    size: int,
) -> Iterator[Block]:
    """Yield the vectors of rows, `size` of them at a time, whatever the number of rows."""
    mean = max(array.num_vectors // max(len(array), 1), 1)
    rows_at_once = max(size // mean, 1)
    for rows, found, table in _rows_of_join(store, array.name, columns, filter, span, rows_at_once):
        owners = np.repeat(np.arange(len(rows)), found.counts)
        for start in range(0, len(owners), size):
            here = owners[start : start + size]
            own = table.take(pa.array(here)) if columns else NO_COLUMNS
            yield Block(rows[here], as_matrix(found.values[start : start + size]), own)
