"""Blocks — the rows of an array, a few MiB at a time, when they do not fit in memory.

A *block* is a few MiB of vectors as a matrix of floats, with the narrow columns that were named, in row
order. Rows of plain float32 or float64 bytes are the mapped files themselves; others are decoded or cast, one
block at a time.

The rules that all analyses share are here, and nowhere else:

* A row of several axes is flattened to one vector, in C order.
* Computation is in float32 where the dtype fits into it exactly (float16, float32, bool, integers of 8 and
  16 bits), else in float64.
* A row that contains a NaN or an infinity is *not finite*: it is counted, and left out of everything else
  (`split_finite`).
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

from zarrow._format.layout import ROW
from zarrow._format.spec import rows_of
from zarrow.analysis._rows.dataset import Array, Rows, pieces
from zarrow.errors import InvalidInputError
from zarrow.store import Store, StoreArray

__all__ = [
    "NO_COLUMNS",
    "Block",
    "Matrix",
    "Progress",
    "as_matrix",
    "block_rows",
    "blocks",
    "choose_array",
    "compute_dtype",
    "split_finite",
    "width_of",
]

Matrix = npt.NDArray[np.floating[Any]]
Progress = Callable[[int, int], None]

BLOCK_BYTES = 16 << 20
MAX_BLOCK_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of an array, and columns of the same rows.

    Parameters
    ----------
    rows : int64 array, shape (n,)
        Row numbers, ascending.
    values : float32 or float64 array, shape (n, width)
        The vectors; read-only where they are mapped files.
    table : pyarrow.RecordBatch
        The columns that were named.
    aside : array, shape (n, …), or None
        The values that `folds.Passes` was given for these rows.
    """

    rows: npt.NDArray[np.int64]
    values: Matrix
    table: pa.RecordBatch
    aside: npt.NDArray[Any] | None = None


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
            raise InvalidInputError(f"name one array, with array= or --array; there are: {names}")
        name = next(iter(store.arrays))
    return store[name]


def width_of(array: Array) -> int:
    """Return the number of elements of a row."""
    return int(np.prod(array.row_shape))


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which an array is computed with.

    >>> compute_dtype(np.dtype("float16")).name, compute_dtype(np.dtype("int32")).name
    ('float32', 'float64')
    """
    return np.dtype(np.float32 if np.can_cast(dtype, np.float32) else np.float64)


def as_matrix(values: npt.NDArray[Any]) -> Matrix:
    """Return rows as a matrix of floats, without a copy if they are one already.

    >>> as_matrix(np.ones((3, 2, 4), np.float16)).shape
    (3, 8)
    """
    width = int(np.prod(values.shape[1:]))
    return np.ascontiguousarray(values.reshape(len(values), width), compute_dtype(values.dtype))


def split_finite(values: Matrix) -> npt.NDArray[np.bool_] | None:
    """Return a mask of the rows that are finite, or None if all are.

    >>> split_finite(np.array([[1.0, 2.0], [np.inf, 0.0], [0.0, np.nan]]))
    array([ True, False, False])
    """
    with np.errstate(invalid="ignore", over="ignore"):
        # A sum is finite only if all its terms are, and BLAS sums columns fastest.
        if np.isfinite(np.ones(len(values), values.dtype) @ values).all():
            return None
        sums = values @ np.ones(values.shape[1], values.dtype)
    suspects = np.flatnonzero(~np.isfinite(sums))
    finite = np.ones(len(values), np.bool_)
    finite[suspects] = np.isfinite(values[suspects]).all(axis=1)  # the sum of large numbers may overflow
    return None if finite.all() else finite


# Streams


def block_rows(array: Array) -> int:
    """Return the number of rows of a block."""
    rows = rows_of(BLOCK_BYTES, width_of(array) * compute_dtype(array.dtype).itemsize)
    rows = min(rows, MAX_BLOCK_ROWS)
    return rows - rows % 64 if rows > 64 else rows


def blocks(
    store: Rows,
    array: Array,
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
    array : StoreArray or DatasetArray
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
        if columns or filter is not None:
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
        yield Block(np.arange(start, stop), as_matrix(array.read(start, stop)), NO_COLUMNS)


def _joined(
    store: Rows,
    array: Array,
    columns: Sequence[str],
    filter: pc.Expression | None,
    span: range,
    size: int,
) -> Iterator[Block]:
    if len(span) < store.num_rows:
        within = (pc.field(ROW) >= span.start) & (pc.field(ROW) < span.stop)
        filter = within if filter is None else filter & within
    names = list(dict.fromkeys([*columns, ROW]))
    for table, vectors in store.join(filter, names, [array.name], size):
        rows = table[ROW].to_numpy(zero_copy_only=False)
        yield Block(rows, as_matrix(vectors[array.name]), table)
