"""Predict run — the batches of one rank, from the first to the end.

`Run` lives from the callback's ``setup`` to its ``teardown``. For a batch it

1. splits the prediction into columns and arrays (`rules`);
2. finds out which rows of the dataset they are (`loaders`), and asks the caller's function for identifiers;
3. has the values copied to the host (`host_copies`), into memory that nothing else writes into;
4. hands them to a thread that makes a batch of the store of them (`preparing`).

The model waits for these steps only, which take a tenth of a millisecond. At the end `Run` judges whether
every expected row has arrived. One rank knows by itself; of several, rank 0 asks the store when the others
have closed their writers.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from zarrow._predict.host_copies import HostCopies
from zarrow._predict.identifiers import CallableIdentifiers, Identifiers
from zarrow._predict.loaders import LoaderState, as_sample_index, describe, recorded_index, trim
from zarrow._predict.preparing import PredictedBatch, Preparing, named
from zarrow._predict.rules import PredictionRules
from zarrow._predict.sample_set import SampleSet
from zarrow._predict.stored_samples import stored_samples
from zarrow._write.worker import close_at_exit
from zarrow.errors import BatchError, InvalidInputError, ZarrowError
from zarrow.writer import Writer

__all__ = ["Run"]


class Run:
    """One predict run on one rank.

    Parameters
    ----------
    writer : Writer or None
        None if the store is complete.
    before : mapping of int to SampleSet
        The rows that were stored when the run began, per ``dataloader_idx``.
    identifiers : list of Identifiers, CallableIdentifiers or None
        One, or one per loader.
    rules : PredictionRules
        What is stored.
    host_copies : HostCopies
        How it gets to the host.
    sample_index : str or callable or None
        Where the caller finds the rows' index in the dataset.
    drop_duplicates : bool
        Whether rows that come twice are left out.
    queue_bytes : int
        Size of the batches that may wait.
    """

    def __init__(
        self,
        writer: Writer | None,
        before: Mapping[int, SampleSet],
        identifiers: list[Identifiers | CallableIdentifiers | None],
        rules: PredictionRules,
        host_copies: HostCopies,
        *,
        sample_index: str | Callable[[Any], Any] | None,
        drop_duplicates: bool,
        queue_bytes: int,
    ) -> None:
        self.writer = writer
        self.identifiers = identifiers
        self.loaders: list[LoaderState] = []
        self.started = self.finished = 0
        self._before = before
        self._rules = rules
        self._host_copies = host_copies
        self._sample_index = sample_index
        self._drop_duplicates = drop_duplicates
        self._preparing = Preparing(writer, queue_bytes, drop_duplicates=drop_duplicates)
        self._at_exit = close_at_exit(weakref.ref(self))

    def meet(self, loaders: list[Any], world_size: int) -> None:
        """Get to know the data loaders, and raise if one cannot work."""
        identifiers = self.identifiers
        if len(identifiers) != len(loaders):
            if len(identifiers) != 1 or identifiers[0] is not None:
                raise InvalidInputError(
                    f"identifiers must be a list of one per predict data loader: there are {len(loaders)} "
                    f"loaders, got {len(identifiers)}"
                )
            identifiers = [None] * len(loaders)
        for position, (loader, found) in enumerate(zip(loaders, identifiers, strict=True)):
            facts = describe(loader, position, given=self._sample_index is not None, world_size=world_size)
            rows = found.rows if isinstance(found, Identifiers) else None
            if rows is not None and facts.dataset_rows is not None and rows != facts.dataset_rows:
                raise InvalidInputError(
                    f"identifiers must have one row per sample of the dataset, {facts.dataset_rows}, got "
                    f"{rows}: those of {facts.name}, in its order"
                )
            before = self._before.get(position, SampleSet())
            self.loaders.append(LoaderState(loader, facts, found, before, is_one_of_several=len(loaders) > 1))

    # One batch

    def write(self, position: int, batch_idx: int, prediction: Any, batch: Any) -> None:
        """Take a batch on: queued on return.

        The model waits for this, so the rest is left to a thread. Only the first batch of a store is waited
        for: what is wrong with every batch is raised at once. See `PredictionWriter.write_on_batch_end`.
        """
        self._check()
        loader = self.loaders[position]
        try:
            columns, arrays = self._rules.split(prediction)
            index, identifiers = self._index(loader, batch_idx, prediction, batch), None
            if isinstance(loader.identifiers, CallableIdentifiers):
                index = loader.sample_index(index, columns, arrays)
                identifiers = loader.identifiers.find(batch, index)
            values = self._host_copies.begin(columns | arrays)
        except ZarrowError as error:
            raise named(error, loader, batch_idx) from error.__cause__
        loader.batches += 1
        self.finished += 1
        predicted = PredictedBatch(
            loader, batch_idx, index, identifiers, values, tuple(columns), tuple(arrays)
        )
        self._preparing.put(predicted, values.size_bytes)
        if self.writer is not None and self.writer.spec is None:
            self._preparing.call()
        self._check()
        trim(loader.loader, batch_idx)

    def _index(self, loader: LoaderState, batch_idx: int, prediction: Mapping[str, Any], batch: Any) -> Any:
        """Return the rows' index in the dataset, as the caller or Lightning has it; None if it is counted."""
        chosen = self._sample_index
        if isinstance(chosen, str):
            if chosen not in prediction:
                raise BatchError(
                    f"sample_index={chosen!r}: the prediction has no such entry; it has {list(prediction)}"
                )
            return as_sample_index(prediction[chosen], f"sample_index={chosen!r}")
        if chosen is not None:
            return as_sample_index(chosen(batch), "what the callable sample_index returns")
        return None if loader.facts.order == "running" else recorded_index(loader.loader, batch_idx)

    def _check(self) -> None:
        """Raise what is wrong with an earlier batch."""
        if self._preparing.error is not None:
            raise self._preparing.error

    def finish(self, *, durable: bool = False) -> None:
        """End the thread when it is done: every batch is accepted, or durable, on return."""
        self._preparing.call()
        self._preparing.stop()
        atexit.unregister(self._at_exit)
        self._check()
        if self.writer is not None and durable:
            self.writer.flush(durable=True)

    def close(self) -> None:
        """Keep every finished batch, after an error that is raised already: a second one would hide it."""
        with contextlib.suppress(Exception):
            self.finish()
        with contextlib.suppress(ZarrowError, RuntimeError):
            if self.writer is not None:
                self.writer.close()

    # The end

    def missing(self, limit: int | float | None) -> str | None:
        """Return what is missing of the rows of a run on one rank, in words; None if nothing is."""
        found = [state.missing_rows(len(state.before) + len(state.written)) for state in self.loaders]
        return "; ".join(filter(None, [*found, self.cut_short(limit)])) or None

    def cut_short(self, limit: int | float | None) -> str | None:
        """Return how this rank's end was not the end of its data, in words; None if it was."""
        found = [state.cut_short(limit) for state in self.loaders]
        if self.started > self.finished:
            found.append("a step ended the run with StopIteration")
        return "; ".join(filter(None, found)) or None

    def missing_on_disk(self, path: str | os.PathLike[str]) -> str | None:
        """Return what is missing of the rows of all ranks, in words; None if nothing is."""
        stored, _ = stored_samples(path, repeated_ok=self._drop_duplicates)
        found = [state.missing_rows(len(stored.get(i, ()))) for i, state in enumerate(self.loaders)]
        return "; ".join(filter(None, found)) or None

    def table_without_rows(self) -> pa.Table:
        """Return the identifiers' columns, which are known without a prediction."""
        for one in self.identifiers:
            if isinstance(one, Identifiers):
                return one.take(np.zeros(0, np.int64))
        return pa.table({})
