"""Which rows of a dataset have been stored, and which batches are still to be predicted?

`RemainingBatches` deals batches out to ranks: *the batches that one process would have predicted, in their
order, without those whose rows are all stored; the i-th of them goes to rank i modulo the number of
ranks*. So a batch has the same rows on one rank and on eight, in a run that was killed and in one that was
not, and a model that looks at the whole batch (padding does) gives the same values. A batch of which some
rows are stored is predicted whole; whoever writes leaves the stored ones out.

Every rank deals for itself; no rank asks another. They agree because they start from the same stored rows
and the same order.

Place: under the edge `lightning`. Pure.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from zarrow._predict.row_set import RowSet

__all__ = ["RemainingBatches", "batches_in_order", "given_batches", "grouped", "packed"]

Dealer = Callable[[RowSet], Iterator[Sequence[int]]]
"""Yields the batches that are not wholly in a set."""

_BLOCK_BYTES = 1 << 16


def batches_in_order(rows: int, batch_size: int) -> Dealer:
    """Deal out ``[0, batch_size)``, ``[batch_size, 2 batch_size)``, …, without looking at stored ones.

    >>> stored = RowSet()
    >>> stored.add(np.arange(7))
    >>> list(batches_in_order(10, 3)(stored))
    [range(6, 9), range(9, 10)]
    """

    def deal(stored: RowSet) -> Iterator[Sequence[int]]:
        missing = stored.first_missing(0)
        while missing < rows:
            first = missing - missing % batch_size
            stop = min(rows, first + batch_size)
            yield range(first, stop)
            missing = stored.first_missing(stop)

    return deal


def packed(candidates: Sequence[int], batch_size: int) -> Dealer:
    """Deal out the rows that are not stored, for loaders whose order changes from run to run anyway.

    >>> stored = RowSet()
    >>> stored.add(np.array([1, 3]))
    >>> list(packed(range(6), 3)(stored))
    [[0, 2, 4], [5]]
    """

    def deal(stored: RowSet) -> Iterator[Sequence[int]]:
        def left() -> Iterator[int]:
            for first in range(0, len(candidates), _BLOCK_BYTES):
                rows = np.asarray(candidates[first : first + _BLOCK_BYTES], np.int64)
                yield from rows[~stored.contains(rows)].tolist()

        rows = left()
        while batch := list(itertools.islice(rows, batch_size)):
            yield batch

    return deal


def grouped(sampler: Iterable[int], batch_size: int) -> Dealer:
    """Deal out a sampler's rows, so many at a time.

    >>> list(grouped([4, 2, 0], 2)(RowSet()))
    [[4, 2], [0]]
    """

    def deal(stored: RowSet) -> Iterator[Sequence[int]]:
        rows = iter(sampler)
        while batch := list(itertools.islice(rows, batch_size)):
            if not stored.covers(batch):
                yield batch

    return deal


def given_batches(batch_sampler: Iterable[Sequence[int]]) -> Dealer:
    """Deal out the batches of a batch sampler.

    >>> list(given_batches([[4, 2], [0]])(RowSet()))
    [[4, 2], [0]]
    """

    def deal(stored: RowSet) -> Iterator[Sequence[int]]:
        return (batch for batch in batch_sampler if not stored.covers(batch))

    return deal


class RemainingBatches:
    """The batches that one rank still has to predict; a batch sampler for a `torch.utils.data.DataLoader`.

    Parameters
    ----------
    deal : Dealer
        Yields the batches that are not stored, in an order that is the same on every rank.
    stored : RowSet
        The rows that are stored. Not changed while this is in use.
    ranks : callable of () to (int, int)
        Which rank this is, of how many; asked for when the batches are.
    expected_rows : int, optional
        Rows of all batches, the stored ones included, if anybody knows.
    """

    def __init__(
        self, deal: Dealer, stored: RowSet, ranks: Callable[[], tuple[int, int]], expected_rows: int | None
    ) -> None:
        self._deal = deal
        self._stored = stored
        self._ranks = ranks
        self._total: int | None = None
        self.expected_rows = expected_rows

    def __iter__(self) -> Iterator[list[int]]:
        rank, world_size = self._ranks()
        for batch in itertools.islice(self._deal(self._stored), rank, None, world_size):
            yield list(batch)

    def __len__(self) -> int:
        if self._total is None:
            self._total = sum(1 for _ in self._deal(self._stored))
        rank, world_size = self._ranks()
        return len(range(rank, self._total, world_size))
