"""Predict run — the batches of one rank, from the first to the end.

`Run` lives from the callback's ``setup`` to its ``teardown``. For a batch it

1. splits the prediction into columns and arrays (`rules`);
2. takes the record of its rows (`loaders`), and calls the caller's function for identifiers, if any;
3. has the values copied to the host (`host_copies`), into memory that nothing else writes into;
4. hands them to a thread that makes a batch of the store from them (`preparing`).

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
from zarrow._predict.loaders import LoaderState, as_sample_index, describe, recorded_samples, trim
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
        The samples that were stored when the run began, per ``dataloader_idx``.
    identifiers : list of Identifiers, CallableIdentifiers or None
        One, or one per loader.
    rules : PredictionRules
        Which entries of a prediction are stored.
    host_copies : HostCopies
        Copies them to the host.
    sample_index : str or callable or None
        The caller's source of the rows' ``sample_index``.
    drop_duplicates : bool
        Whether repeated rows are left out.
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
        self._at_exit = close_at_exit(weakref.ref(self), self._preparing)

    def meet(self, loaders: list[Any], world_size: int) -> None:
        """Look at the data loaders; raise if one cannot work."""
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
        """Hand a batch to the preparing thread: queued on return.

        Only the first batch of a store is waited for, so that an error in every batch is raised at once. See
        `PredictionWriter.write_on_batch_end`.
        """
        self._check()
        loader = self.loaders[position]
        try:
            columns, arrays = self._rules.split(prediction)
            recorded, identifiers = self._recorded(loader, batch_idx, prediction, batch), None
            if isinstance(loader.identifiers, CallableIdentifiers):
                recorded = loader.sample_index(recorded, columns, arrays)
                identifiers = loader.identifiers.find(batch, recorded)
            values = self._host_copies.begin(columns | arrays)
        except ZarrowError as error:
            raise named(error, loader, batch_idx) from error.__cause__
        loader.batches += 1
        self.finished += 1
        predicted = PredictedBatch(
            loader, batch_idx, recorded, identifiers, values, tuple(columns), tuple(arrays)
        )
        self._preparing.put(predicted, values.size_bytes)
        if self.writer is not None and self.writer.spec is None:
            self._preparing.call()
        self._check()
        trim(loader.loader, batch_idx)

    def _recorded(self, loader: LoaderState, batch_idx: int, prediction: Any, batch: Any) -> Any:
        """Return the caller's or Lightning's record of a batch's rows; None if they are counted."""
        chosen = self._sample_index
        if isinstance(chosen, str):
            if chosen not in prediction:
                raise BatchError(
                    f"sample_index={chosen!r}: the prediction has no such entry; it has {list(prediction)}"
                )
            return as_sample_index(prediction[chosen], f"sample_index={chosen!r}")
        if chosen is not None:
            return as_sample_index(chosen(batch), "what the callable sample_index returns")
        return None if loader.facts.order == "running" else recorded_samples(loader.loader, batch_idx)

    def _check(self) -> None:
        """Raise the error of an earlier batch, if any."""
        if self._preparing.error is not None:
            raise self._preparing.error

    def finish(self, *, durable: bool = False) -> None:
        """End the thread when its work is done: every batch is accepted, or durable, on return."""
        self._preparing.call()
        self._preparing.stop()
        atexit.unregister(self._at_exit)
        self._check()
        if self.writer is not None and durable:
            self.writer.flush(durable=True)

    def close(self) -> None:
        """Close the writer with every finished batch; raises nothing, which would hide the first error."""
        with contextlib.suppress(Exception):
            self.finish()
        with contextlib.suppress(ZarrowError, RuntimeError):
            if self.writer is not None:
                self.writer.close()

    # The end

    def missing(self, limit: int | float | None) -> str | None:
        """Return which rows of a run on one rank are missing, in words; None if none are."""
        found = [one.missing_rows(len(one.before) + len(one.written)) for one in self.loaders]
        return "; ".join(filter(None, [*found, self.cut_short(limit)])) or None

    def cut_short(self, limit: int | float | None) -> str | None:
        """Return why this rank ended before its data did, in words; None if it did not."""
        found = [loader.cut_short(limit) for loader in self.loaders]
        if self.started > self.finished:
            found.append("a step ended the run with StopIteration")
        return "; ".join(filter(None, found)) or None

    def missing_on_disk(self, path: str | os.PathLike[str]) -> str | None:
        """Return which rows of all ranks are missing, in words; None if none are."""
        stored, _ = stored_samples(path, repeated_ok=self._drop_duplicates)
        found = [loader.missing_rows(len(stored.get(i, ()))) for i, loader in enumerate(self.loaders)]
        return "; ".join(filter(None, found)) or None

    def table_without_rows(self) -> pa.Table:
        """Return the identifiers' columns without rows."""
        for one in self.identifiers:
            if isinstance(one, Identifiers):
                return one.take(np.zeros(0, np.int64))
        return pa.table({})
