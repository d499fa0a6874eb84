"""Folds — from blocks to one answer, here or on a cluster, once or many times.

A `State` takes blocks one by one, and can be merged with the state of later rows. `fold` runs a state over
all blocks, here or on the workers of a dask client: each worker takes a range of whole segments of a store,
or a piece of a Dataset, and the states are merged in row order, so that the result does not depend on which
worker is first. `Passes` does so many times over selected rows. Reads only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zarrow._read.indexing import IndexedRagged
from zarrow.analysis._rows.blocks import (
    NO_COLUMNS,
    Block,
    Progress,
    as_matrix,
    block_rows,
    blocks,
    width_of,
)
from zarrow.analysis._rows.dataset import Array, DatasetRows, Rows, pieces, received
from zarrow.analysis._rows.workers import Client
from zarrow.several import Union
from zarrow.store import Store

__all__ = ["Passes", "State", "fold"]

KEPT_BYTES = 128 << 20
PARTS_PER_WORKER = 4


class State(ABC):
    """What is known after some blocks; can be merged with what is known after later ones.

    Attributes whose names begin without an underscore add up: numbers, arrays and lists, and whatever has
    ``merge``.
    """

    @abstractmethod
    def add(self, block: Block) -> None:
        """Add a block."""

    def merge(self, later: Self) -> None:
        """Add the state of later rows."""
        for name, own in vars(self).items():
            if hasattr(own, "merge"):
                own.merge(getattr(later, name))
            elif not name.startswith("_"):
                setattr(self, name, own + getattr(later, name))


S = TypeVar("S", bound=State)


def fold(
    make: Callable[[], S],
    store: Rows,
    array: Array | IndexedRagged,
    columns: Sequence[str] = (),
    filter: pc.Expression | None = None,
    progress: Progress | None = None,
    client: Client | None = None,
) -> S:
    """Return a state to which all blocks were added.

    Parameters
    ----------
    make : callable
        Makes an empty state; must be picklable if there is a `client`.
    store, array, columns, filter, progress
        As in `blocks`.
    client : distributed.Client, optional
        The dask client whose workers read the rows; they must see the store under the same path.

    Returns
    -------
    State
        The same wherever it was computed, except for rounding.
    """
    if client is None:
        state = make()
        for block in blocks(store, array, columns, filter, progress=progress):
            state.add(block)
        return state

    def submitted() -> Iterator[tuple[int, Any]]:
        for span, schema, send in _sources(store, [array.name, *columns], client, filter):
            piece = make, _of_span, send(), schema, span
            asked = array.name, tuple(columns), filter, span
            yield span.stop, client.submit(_fold_piece, *piece, *asked, pure=False)

    return _merged(make, submitted(), client, store.num_rows, progress)


def _fold_piece(
    make: Callable[[], S],
    blocks_of: Callable[..., Iterator[Block]],
    source: Any,
    schema: pa.Schema | None,
    span: range,
    *asked: Any,
) -> S:
    """Run on a worker."""
    state = make()
    for block in blocks_of(received(source, schema, span), *asked):
        state.add(block)
    return state


def _of_span(
    rows: Rows, name: str, columns: Sequence[str], filter: pc.Expression | None, span: range
) -> Iterator[Block]:
    return blocks(rows, rows[name], columns, filter, span)


def _of_rows(
    rows: Rows, name: str, numbers: npt.NDArray[np.int64], aside: npt.NDArray[Any]
) -> Iterator[Block]:
    array = rows[name]
    size = block_rows(array)
    for start in range(0, len(numbers), size):
        here = numbers[start : start + size]
        first, stop = int(here[0]), int(here[-1]) + 1
        if stop - first == len(here):
            values = array.read(first, stop)
        elif stop - first < 2 * len(here):  # most of them: one read, which is faster from a cold disk, too
            values = array.read(first, stop)[here - first]
        else:
            values = array.take(here)
        yield Block(here, as_matrix(values), NO_COLUMNS, aside[start : start + size])


def _sources(
    store: Rows, names: Sequence[str], client: Client, filter: pc.Expression | None = None
) -> Iterator[tuple[range, pa.Schema | None, Callable[[], Any]]]:
    """Yield ranges of rows, each with a function that sends these rows to a worker; see `received`."""
    if isinstance(store, DatasetRows):
        wanted = store.wanted(names, filter)
        schema = store.columns_of(wanted)
        for span, send in store.senders(wanted, client):
            yield span, schema, send
    else:
        for span in _spans(store, _parts(client)):
            yield span, None, lambda: store


def _merged(
    make: Callable[[], S],
    submitted: Iterable[tuple[int, Any]],
    client: Client,
    total: int,
    progress: Progress | None,
) -> S:
    """Return the merged states of futures, which are submitted as workers become free."""
    state, window, pending = make(), _parts(client), deque[tuple[int, Any]]()

    def merge_first() -> None:
        done, future = pending[0]
        state.merge(future.result())
        pending.popleft()
        if progress is not None:
            progress(done, total)

    try:
        for one in submitted:
            pending.append(one)
            if len(pending) >= window:
                merge_first()
        while pending:
            merge_first()
    finally:
        client.cancel([future for _, future in pending])
    return state


class Passes:
    """Many passes over the same rows, with values of their own for each row.

    Without a cluster, rows stay in memory if they take at most 128 MiB; a dask cluster is sent the row
    numbers once.

    Parameters
    ----------
    store, array
        As in `blocks`.
    rows : int64 array, shape (n,)
        The rows, ascending.
    aside : array, shape (n, …)
        Values of these rows, handed on as `Block.aside`.
    client : distributed.Client, optional
        As in `fold`.
    """

    def __init__(
        self,
        store: Rows,
        array: Array,
        rows: npt.NDArray[np.int64],
        aside: npt.NDArray[Any],
        client: Client | None = None,
    ) -> None:
        self.store, self.array, self.rows, self.aside, self.client = store, array, rows, aside, client
        self._kept: list[Block] | None = None
        self._sent: list[tuple[int, range, pa.Schema | None, Callable[[], Any], Any, Any]] = []
        if client is not None:
            for span, schema, send in _sources(store, [array.name], client):
                low, high = np.searchsorted(rows, [span.start, span.stop]).tolist()
                if low < high:
                    # Not under a hash: equal data of another pass may be released at any time.
                    sent = client.scatter([rows[low:high], aside[low:high]], hash=False)
                    self._sent.append((high, span, schema, send, *sent))

    def fold(self, make: Callable[[], S], progress: Progress | None = None) -> S:
        """Return a state to which all of the rows were added."""
        if self.client is not None:
            return _merged(make, self._submitted(make, self.client), self.client, len(self.rows), progress)
        state, done = make(), 0
        for block in self._blocks():
            state.add(block)
            done += len(block.rows)
            if progress is not None:
                progress(done, len(self.rows))
        return state

    def _submitted(self, make: Callable[[], State], client: Client) -> Iterator[tuple[int, Any]]:
        for done, span, schema, send, *sent in self._sent:
            piece = make, _of_rows, send(), schema, span
            yield done, client.submit(_fold_piece, *piece, self.array.name, *sent, pure=False)

    def _blocks(self) -> Iterator[Block]:
        if self._kept is not None:
            yield from self._kept
            return
        size_bytes = len(self.rows) * width_of(self.array) * 8
        kept: list[Block] | None = [] if size_bytes <= KEPT_BYTES else None
        for span, at_hand in pieces(self.store, [self.array.name]):
            low, high = np.searchsorted(self.rows, [span.start, span.stop]).tolist()
            if low < high:
                rows = at_hand()
                for block in _of_rows(rows, self.array.name, self.rows[low:high], self.aside[low:high]):
                    if kept is not None:
                        kept.append(block)
                    yield block
        self._kept = kept


def _parts(client: Client) -> int:
    """Return the number of parts to cut the rows into."""
    return PARTS_PER_WORKER * max(len(client.scheduler_info(n_workers=-1)["workers"]), 1)


def _spans(store: Store | Union, parts: int) -> list[range]:
    """Cut the rows into about `parts` ranges of whole segments."""
    segments = [rows for rows in store.segments if len(rows)]
    per_part = -(-len(segments) // parts) if segments else 1
    groups = [segments[start : start + per_part] for start in range(0, len(segments), per_part)]
    return [range(group[0].start, group[-1].stop) for group in groups]
