"""How do the rows of an array come past, when they do not fit in memory?

In *blocks*: a few MiB of vectors as a matrix of floats, with the narrow columns that were asked for, in row
order. Rows of plain float32 or float64 bytes are the mapped files themselves; others are decoded or cast,
one block at a time.

The rules that all analyses share are here, and nowhere else:

* A row of several axes is one long vector, in C order.
* Computation is in float32 where the dtype fits into it exactly (float16, float32, bool, integers of 8 and
  16 bits), else in float64.
* A row with a NaN or an infinity in it is *not finite*: it is counted, and left out of everything else
  (`split_finite`).
* A filter chooses rows by the table; the vectors of others are not read.
* `progress` is called with rows done and rows in all, as often as there are blocks.

`fold` runs a state over the blocks, here or on the workers of a dask client: each takes a range of whole
segments, and the states are merged in the order of the rows, so the result does not depend on who was first.

Place: tier 5, the floor of `zarrow.analysis`. Reads only; interrupting it harms nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zarrow.errors import InvalidInputError
from zarrow.layout import ROW
from zarrow.store import Store, StoreArray

__all__ = [
    "Block",
    "Client",
    "Passes",
    "Progress",
    "State",
    "as_matrix",
    "blocks",
    "choose_array",
    "fold",
    "split_finite",
    "width_of",
]

Matrix = npt.NDArray[np.floating[Any]]
Progress = Callable[[int, int], None]

BLOCK_BYTES = 16 << 20
MAX_BLOCK_ROWS = 65_536
KEPT_BYTES = 128 << 20
PARTS_PER_WORKER = 4


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of an array, and columns of the same rows.

    Parameters
    ----------
    rows : int64 array, shape (n,)
        Their numbers, ascending.
    values : float32 or float64 array, shape (n, width)
        The vectors; read-only where they are the mapped files.
    table : pyarrow.RecordBatch
        The columns that were asked for.
    aside : array, shape (n, …), or None
        What `Passes` was given for these rows.
    """

    rows: npt.NDArray[np.int64]
    values: Matrix
    table: pa.RecordBatch
    aside: npt.NDArray[Any] | None = None


class State(Protocol):
    """What is known after some blocks, and can be joined with what is known after later ones."""

    def add(self, block: Block) -> None:
        """Take in a block."""

    def merge(self, later: Self) -> None:
        """Take in what another state knows of later rows."""


S = TypeVar("S", bound=State)


class Client(Protocol):
    """What is used of a ``distributed.Client``."""

    def submit(self, function: Callable[..., Any], *arguments: Any, pure: bool) -> Any:
        """Run a function on a worker, and return its future."""

    def cancel(self, futures: Sequence[Any]) -> Any:
        """Forget about futures."""

    def scatter(self, data: list[Any], *, hash: bool) -> Any:
        """Send things to workers, and return their futures."""

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        """Tell which workers there are."""


# What an array is to an analysis


def choose_array(store: Store, name: str | None) -> StoreArray:
    """Return the array of that name, or the only one.

    Raises
    ------
    UnknownNameError
        If there is none of that name.
    InvalidInputError
        If no name is given and there is not exactly one, or if it holds no real numbers.
    """
    if name is None:
        if len(store.arrays) != 1:
            names = ", ".join(store.arrays) or "none"
            raise InvalidInputError(f"array= must say which array of the store is meant; there are: {names}")
        name = next(iter(store.arrays))
    return store[name]


def width_of(array: StoreArray) -> int:
    """Return how many numbers a row has."""
    return int(np.prod(array.row_shape))


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which values are computed with.

    >>> compute_dtype(np.dtype("float16")).name, compute_dtype(np.dtype("int32")).name
    ('float32', 'float64')
    """
    return np.dtype(np.float32 if np.can_cast(dtype, np.float32) else np.float64)


def as_matrix(values: npt.NDArray[Any]) -> Matrix:
    """Return rows as a matrix of floats, without a copy where they are one.

    >>> as_matrix(np.ones((3, 2, 4), np.float16)).shape
    (3, 8)
    """
    width = int(np.prod(values.shape[1:]))
    return np.ascontiguousarray(values.reshape(len(values), width), compute_dtype(values.dtype))


def split_finite(values: Matrix) -> npt.NDArray[np.bool_] | None:
    """Return which rows are finite, or None if all are.

    >>> split_finite(np.array([[1.0, 2.0], [np.inf, 0.0], [0.0, np.nan]]))
    array([ True, False, False])
    """
    with np.errstate(invalid="ignore", over="ignore"):
        # One pass at the speed of memory: a sum is finite only if all its terms are.
        sums = values @ np.ones(values.shape[1], values.dtype)
    suspects = np.flatnonzero(~np.isfinite(sums))
    if not len(suspects):
        return None
    finite = np.ones(len(values), np.bool_)
    finite[suspects] = np.isfinite(values[suspects]).all(axis=1)  # large numbers may just have overflowed
    return None if finite.all() else finite


# Streams


def block_rows(array: StoreArray) -> int:
    """Return how many rows make a block."""
    rows = BLOCK_BYTES // max(width_of(array) * compute_dtype(array.dtype).itemsize, 1)
    rows = min(max(rows, 1), MAX_BLOCK_ROWS)
    return rows - rows % 64 if rows > 64 else rows


def blocks(
    store: Store,
    array: StoreArray,
    columns: Sequence[str] = (),
    filter: pc.Expression | None = None,
    span: range | None = None,
    progress: Progress | None = None,
) -> Iterator[Block]:
    """Yield the rows of an array in blocks.

    Parameters
    ----------
    store : Store
        The store.
    array : StoreArray
        One of its arrays.
    columns : list of str
        Columns to come along.
    filter : pyarrow.compute.Expression, optional
        Which rows.
    span : range, optional
        Only rows in it.
    progress : callable, optional
        Is called with the rows that were passed and all that are to be.

    Yields
    ------
    Block
        In row order, none of them empty.
    """
    size = block_rows(array)
    span = range(store.num_rows) if span is None else span
    if columns or filter is not None:
        stream = _joined(store, array, columns, filter, span, size)
    else:
        stream = _plain(array, span, size)
    done = 0
    for block in stream:
        yield block
        done = int(block.rows[-1]) + 1 - span.start
        if progress is not None:
            progress(done, len(span))
    if progress is not None and done < len(span):
        progress(len(span), len(span))


_NO_COLUMNS = pa.record_batch({})


def _plain(array: StoreArray, span: range, size: int) -> Iterator[Block]:
    for start in range(span.start, span.stop, size):
        stop = min(start + size, span.stop)
        array.prefetch(stop, stop + size)
        yield Block(np.arange(start, stop), as_matrix(array.read(start, stop)), _NO_COLUMNS)


def _joined(
    store: Store,
    array: StoreArray,
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


def _chosen(array: StoreArray, rows: npt.NDArray[np.int64], size: int) -> Iterator[Block]:
    for start in range(0, len(rows), size):
        here = rows[start : start + size]
        first, stop = int(here[0]), int(here[-1]) + 1
        if stop - first == len(here):
            values = array.read(first, stop)
        elif stop - first < 2 * len(here):  # most of them: in one go, also from a cold disk
            values = array.read(first, stop)[here - first]
        else:
            values = array.take(here)
        yield Block(here, as_matrix(values), _NO_COLUMNS)


# Folds


def fold(
    make: Callable[[], S],
    store: Store,
    array: StoreArray,
    columns: Sequence[str] = (),
    filter: pc.Expression | None = None,
    progress: Progress | None = None,
    client: Client | None = None,
) -> S:
    """Return a state that has taken in all blocks.

    Parameters
    ----------
    make : callable
        Makes an empty state; can be pickled if there is a `client`.
    store, array, columns, filter, progress
        As of `blocks`.
    client : distributed.Client, optional
        Whose workers do it; they must see the store's files under the same path.

    Returns
    -------
    State
        The same, but for the last bits, wherever it was done.
    """
    if client is None:
        state = make()
        for block in blocks(store, array, columns, filter, progress=progress):
            state.add(block)
        return state
    spans = _spans(store, _parts(client))
    futures = [
        client.submit(_fold_span, make, store, array.name, tuple(columns), filter, span, pure=False)
        for span in spans
    ]
    try:
        state = make()
        for span, future in zip(spans, futures, strict=True):
            state.merge(future.result())
            future.release()
            if progress is not None:
                progress(span.stop, store.num_rows)
    finally:
        client.cancel(futures)
    return state


def _fold_span(
    make: Callable[[], S],
    store: Store,
    name: str,
    columns: Sequence[str],
    filter: pc.Expression | None,
    span: range,
) -> S:
    """Run on a worker."""
    state = make()
    for block in blocks(store, store[name], columns, filter, span):
        state.add(block)
    return state


class Passes:
    """The same rows again and again, with something aside for each: for what takes many passes.

    Here they stay in memory if they take little of it; a dask cluster is sent the row numbers once.

    Parameters
    ----------
    store, array
        As of `blocks`.
    rows : int64 array, shape (n,)
        The rows, ascending.
    aside : array, shape (n, …)
        What comes along with them, as `Block.aside`.
    client : distributed.Client, optional
        As of `fold`.
    """

    def __init__(
        self,
        store: Store,
        array: StoreArray,
        rows: npt.NDArray[np.int64],
        aside: npt.NDArray[Any],
        client: Client | None = None,
    ) -> None:
        self.store, self.array, self.rows, self.aside, self.client = store, array, rows, aside, client
        self._kept: list[Block] | None = None
        self._parts: list[tuple[int, Any, Any]] = []
        if client is not None:
            for span in _spans(store, _parts(client)):
                low, high = np.searchsorted(rows, [span.start, span.stop]).tolist()
                if low < high:
                    # Under names of their own: equal ones of another pass may be let go any time.
                    sent = client.scatter([rows[low:high], aside[low:high]], hash=False)
                    self._parts.append((high, *sent))

    def fold(self, make: Callable[[], S], progress: Progress | None = None) -> S:
        """Return a state that has taken in all of the rows."""
        state = make()
        if self.client is None:
            done = 0
            for block in self._blocks():
                state.add(block)
                done += len(block.rows)
                if progress is not None:
                    progress(done, len(self.rows))
            return state
        futures = [
            self.client.submit(_fold_rows, make, self.store, self.array.name, rows, aside, pure=False)
            for _, rows, aside in self._parts
        ]
        try:
            for (done, *_), future in zip(self._parts, futures, strict=True):
                state.merge(future.result())
                if progress is not None:
                    progress(done, len(self.rows))
        finally:
            self.client.cancel(futures)
        return state

    def _blocks(self) -> Iterator[Block]:
        if self._kept is not None:
            yield from self._kept
            return
        size_bytes = len(self.rows) * width_of(self.array) * compute_dtype(self.array.dtype).itemsize
        kept: list[Block] | None = [] if size_bytes <= KEPT_BYTES else None
        for block in _with_aside(self.array, self.rows, self.aside):
            if kept is not None:
                kept.append(block)
            yield block
        self._kept = kept


def _with_aside(array: StoreArray, rows: npt.NDArray[np.int64], aside: npt.NDArray[Any]) -> Iterator[Block]:
    done = 0
    for block in _chosen(array, rows, block_rows(array)):
        yield dataclasses.replace(block, aside=aside[done : done + len(block.rows)])
        done += len(block.rows)


def _fold_rows(
    make: Callable[[], S],
    store: Store,
    name: str,
    rows: npt.NDArray[np.int64],
    aside: npt.NDArray[Any],
) -> S:
    """Run on a worker."""
    state = make()
    for block in _with_aside(store[name], rows, aside):
        state.add(block)
    return state


def _parts(client: Client) -> int:
    """Return into how many parts to cut the rows."""
    return PARTS_PER_WORKER * max(len(client.scheduler_info(n_workers=-1)["workers"]), 1)


def _spans(store: Store, parts: int) -> list[range]:
    """Cut the rows into about so many ranges of whole segments."""
    segments = [rows for rows in store.segments if len(rows)]
    per_part = -(-len(segments) // parts) if segments else 1
    groups = [segments[start : start + per_part] for start in range(0, len(segments), per_part)]
    return [range(group[0].start, group[-1].stop) for group in groups]
