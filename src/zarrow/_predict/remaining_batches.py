"""Remaining batches — the batch samplers of a run that is resumed, or shared by several ranks.

`RemainingBatches` deals out *the batches that one process would have predicted, in their order, without those
that are stored*; batch i of them goes to rank i modulo the number of ranks. So a batch has the same rows on
one rank and on eight, in a run that was killed and in one that was not, and a model that looks at the whole
batch (padding does) gives the same values. A batch of which some rows are stored is predicted whole; the run
leaves out the stored rows.

Every rank deals for itself, without a collective. The ranks agree because they start from the same stored
samples and the same order.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized

import numpy as np
import torch.distributed

from zarrow._predict.sample_set import SampleSet
from zarrow._predict.stored_samples import stored_samples
from zarrow.errors import InvalidInputError

__all__ = ["MissingRowsSampler", "RemainingBatches", "batches_in_order", "given_batches", "grouped", "packed"]

Dealer = Callable[[SampleSet], Iterator[Sequence[int]]]
"""Yields the batches that are not wholly in a set."""

_BLOCK_ROWS = 1 << 16


def batches_in_order(rows: int, batch_size: int) -> Dealer:
    """Deal out ``[0, batch_size)``, ``[batch_size, 2 batch_size)``, …, jumping over what is stored.

    >>> stored = SampleSet()
    >>> stored.add(np.arange(7))
    >>> list(batches_in_order(10, 3)(stored))
    [range(6, 9), range(9, 10)]
    """

    def deal(stored: SampleSet) -> Iterator[Sequence[int]]:
        missing = stored.first_missing(0)
        while missing < rows:
            first = missing - missing % batch_size
            stop = min(rows, first + batch_size)
            yield range(first, stop)
            missing = stored.first_missing(stop)

    return deal


def packed(candidates: Sequence[int], batch_size: int) -> Dealer:
    """Deal out the samples that are not stored, for loaders whose order changes from run to run anyway.

    >>> stored = SampleSet()
    >>> stored.add(np.array([1, 3]))
    >>> list(packed(range(6), 3)(stored))
    [[0, 2, 4], [5]]
    """

    def deal(stored: SampleSet) -> Iterator[Sequence[int]]:
        def missing() -> Iterator[int]:
            for first in range(0, len(candidates), _BLOCK_ROWS):
                samples = np.asarray(candidates[first : first + _BLOCK_ROWS], np.int64)
                yield from samples[~stored.contains(samples)].tolist()

        return _batched(missing(), batch_size)

    return deal


def grouped(sampler: Iterable[int], batch_size: int) -> Dealer:
    """Deal out the samples of a sampler, `batch_size` at a time.

    >>> list(grouped([4, 2, 0], 2)(SampleSet()))
    [[4, 2], [0]]
    """
    return lambda stored: (batch for batch in _batched(sampler, batch_size) if not stored.covers(batch))


def given_batches(batch_sampler: Iterable[Sequence[int]]) -> Dealer:
    """Deal out the batches of a batch sampler.

    >>> list(given_batches([[4, 2], [0]])(SampleSet()))
    [[4, 2], [0]]
    """
    return lambda stored: (batch for batch in batch_sampler if not stored.covers(batch))


def _batched(samples: Iterable[int], batch_size: int) -> Iterator[list[int]]:
    remaining = iter(samples)
    while batch := list(itertools.islice(remaining, batch_size)):
        yield batch


class RemainingBatches:
    """The batches that one rank still has to predict; a batch sampler for a `torch.utils.data.DataLoader`.

    Parameters
    ----------
    deal : Dealer
        Yields the batches that are not stored, in an order that is the same on every rank.
    stored : SampleSet
        The samples that are stored. Not changed while this is in use.
    ranks : callable of () to (int, int)
        Returns this rank and the number of ranks; called when the batches are needed.
    expected_rows : int, optional
        Rows of all batches, including stored ones, if known.
    """

    def __init__(
        self, deal: Dealer, stored: SampleSet, ranks: Callable[[], tuple[int, int]], expected_rows: int | None
    ) -> None:
        self._deal = deal
        self._stored = stored
        self._ranks = ranks
        self._total: int | None = None
        self.expected_rows = expected_rows
        # Lightning warns that a batch sampler may leave rows out, which is what this one is for.
        warnings.filterwarnings("ignore", f"You are using a custom batch sampler `{type(self).__name__}`")

    def __iter__(self) -> Iterator[list[int]]:
        rank, world_size = self._ranks()
        for batch in itertools.islice(self._deal(self._stored), rank, None, world_size):
            yield list(batch)

    def __len__(self) -> int:
        if self._total is None:
            self._total = sum(1 for _ in self._deal(self._stored))
        rank, world_size = self._ranks()
        return len(range(rank, self._total, world_size))


class MissingRowsSampler(RemainingBatches):
    """A batch sampler of the rows that a store does not have yet: the public way to resume.

    `PredictionWriter` chooses the batches by itself; this class is for code that makes its own loaders, or
    calls a model itself. It yields the batches ``[0, batch_size)``, ``[batch_size, 2 batch_size)``, … of the
    dataset, without those that are stored; on several ranks, each rank gets its own. It holds one bit per
    row of the dataset.

    Parameters
    ----------
    path : path
        The store, which need not exist yet. Read on construction.
    dataset : sized or int
        The dataset, or its length.
    batch_size : int
        Rows of a batch.
    dataloader_idx : int
        The data loader that the rows belong to, if the store has the rows of several.
    rank, world_size : int, optional
        By default those of `torch.distributed`, if it is initialized when the batches are needed.

    Raises
    ------
    InvalidInputError
        If `batch_size` is not positive, or a row of the store has no ``sample_index``.

    Examples
    --------
    >>> import tempfile, zarrow
    >>> from zarrow.lightning import MissingRowsSampler
    >>> path = tempfile.mkdtemp() + "/run.zarrow"
    >>> with zarrow.Writer(path) as writer:
    ...     writer.append({"x": [1.0, 2.0]}, sample_index=[0, 1])
    >>> list(MissingRowsSampler(path, 7, batch_size=2))
    [[2, 3], [4, 5], [6]]
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        dataset: Sized | int,
        *,
        batch_size: int,
        dataloader_idx: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise InvalidInputError(f"batch_size must be positive, got {batch_size}")
        rows = dataset if isinstance(dataset, int) else len(dataset)
        stored, _ = stored_samples(path)

        def ranks() -> tuple[int, int]:
            if rank is not None and world_size is not None:
                return rank, world_size
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                return torch.distributed.get_rank(), torch.distributed.get_world_size()
            return 0, 1

        super().__init__(
            batches_in_order(rows, batch_size), stored.get(dataloader_idx, SampleSet()), ranks, rows
        )
