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
import logging
import os
import shlex
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from zarrow._format.layout import SAMPLE_INDEX
from zarrow._format.spec import rows_of_expected, safe_rows
from zarrow._predict.host_copies import HostCopies
from zarrow._predict.identifiers import CallableIdentifiers, Identifiers
from zarrow._predict.loaders import LoaderState, as_sample_index, describe, recorded_samples, trim
from zarrow._predict.preparing import PredictedBatch, Preparing, named
from zarrow._predict.ragged_entries import RaggedEntries
from zarrow._predict.rules import PredictionRules
from zarrow._predict.sample_set import SampleSet
from zarrow._predict.stored_samples import DATALOADER_IDX, drop_repeated, stored_samples
from zarrow._storage.objects import ObjectPath, on_disk
from zarrow._write.worker import close_at_exit
from zarrow.errors import BatchError, InvalidInputError, ZarrowError, printable
from zarrow.store import Store
from zarrow.writer import Writer

__all__ = ["Run", "Shortfall"]

_WINDOWS, _WINDOW_ROWS = 8, 128
"""Rows whose identifiers are compared when a run is resumed."""

_log = logging.getLogger("lightning.pytorch.zarrow")
"""Shown and silenced with Lightning's own lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """What a store lacks at the end of a run.

    Parameters
    ----------
    missing : str
        What is missing, in words.
    stored, expected : int, int or None
        Rows that are stored, and rows that the run is to store, if known.
    no_others : bool
        Whether the loaders yielded all that they have: the same run again would add nothing.
    """

    missing: str
    stored: int
    expected: int | None
    no_others: bool

    def __str__(self) -> str:
        return f"{safe_rows(self.stored, self.expected)}; {self.missing}"

    def remedy(self, path: str, grows_at: str) -> str:
        """Return what can be done, for a run whose rows are at `grows_at` and belong to `path`."""
        again, kept = "resume=True", ""
        if grows_at != path:
            again, kept = "mode='w', which starts over", f"; {path} is as it was"
        if not self.stored:
            return f"predict again{kept}"
        as_it_is = f"'zarrow finalize --partial {shlex.quote(grows_at)}' completes it as it is{kept}"
        if self.no_others:
            return (
                "the loaders yielded no others, so the same run again adds none: let their samplers yield "
                f"every row, or pass expected_rows={self.stored} if these are all, with {again}; {as_it_is}"
            )
        return f"predict again with {again}; {as_it_is}"


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
    expected_rows : int or None
        Rows that the caller expects; otherwise the loaders know.
    wait : bool
        Whether every batch is waited for until it is accepted.
    masks : mapping of str to str, optional
        For arrays whose rows are padded, the entry of their mask or lengths.
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
        expected_rows: int | None = None,
        wait: bool = False,
        masks: Mapping[str, str] | None = None,
    ) -> None:
        self._masks = dict(masks or {})
        self.writer = writer
        self.identifiers = identifiers
        self.loaders: list[LoaderState] = []
        self.started = self.finished = 0
        self._before = before
        self._rules = rules
        self._host_copies = host_copies
        self._sample_index = sample_index
        self._drop_duplicates = drop_duplicates
        self._expected_rows = expected_rows
        self._wait = wait
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

        The first batch of a store is waited for in any case, so that an error in every batch is raised at
        once. See `PredictionWriter.write_on_batch_end`.
        """
        self._check()
        loader = self.loaders[position]
        try:
            columns, arrays = self._rules.split(prediction)
            ragged, arrays = RaggedEntries.take(arrays, self._masks, prediction)
            recorded, identifiers = self._recorded(loader, batch_idx, prediction, batch), None
            if isinstance(loader.identifiers, CallableIdentifiers):
                recorded = loader.sample_index(recorded, columns, ragged.lengths(arrays))
                identifiers = loader.identifiers.find(batch, recorded)
            values = self._host_copies.begin(columns | arrays)
        except ZarrowError as error:
            raise named(error, loader, batch_idx) from error.__cause__
        loader.batches += 1
        self.finished += 1
        scales = [name for name in values.values if name not in columns and name not in arrays]
        predicted = PredictedBatch(
            loader, batch_idx, recorded, identifiers, values, (*columns, *scales), tuple(arrays), ragged
        )
        self._preparing.put(predicted, values.size_bytes)
        if self.writer is not None and (self._wait or self.writer.spec is None):
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

    @property
    def expected_rows(self) -> int | None:
        """Rows that all ranks together are to store, if known."""
        counts = [one.expected_rows for one in self.loaders]
        if self._expected_rows is not None or not counts or None in counts:
            return self._expected_rows
        return sum(filter(None, counts))

    def other_identifiers(self, store: Store) -> list[str]:
        """Return where the identifiers given now are not those of some stored rows, in words."""
        several, last = len(self.loaders) > 1, max(store.num_rows - _WINDOW_ROWS, 0)
        for start in np.unique(np.linspace(0, last, _WINDOWS, dtype=np.int64)):
            rows = np.arange(start, min(start + _WINDOW_ROWS, store.num_rows))
            table, _ = store.take(rows, arrays=[])
            of = table[DATALOADER_IDX].to_numpy() if several else np.zeros(len(rows), np.int64)
            for position, loader in enumerate(self.loaders):
                if not isinstance(loader.identifiers, Identifiers):
                    continue
                stored = table.filter(pa.array(of == position))
                now = loader.identifiers.take(stored[SAMPLE_INDEX].to_numpy())
                samples = stored[SAMPLE_INDEX].to_pylist()
                for name in [name for name in now.column_names if name in stored.column_names]:
                    values = zip(samples, stored[name].to_pylist(), now[name].to_pylist(), strict=True)
                    for sample, before, after in values:
                        if repr(before) != repr(after):  # NaN is NaN
                            what = f"identifier {name!r} of sample_index {sample}"
                            return [f"{what}: the store has {before!r}, now {after!r}"]
        return []

    def go_on(self, store: Store | None, open_again: Callable[[], Writer]) -> None:
        """Open a store again that was completed without all rows, now that it is known to be this run's."""
        if self.writer is None and store is not None:
            expected = store.expected_rows if self.expected_rows is None else self.expected_rows
            if store.num_rows < (expected or 0):
                self.writer = self._preparing.writer = open_again()

    def log_stored(self, path: str, rows: int, how_to_go_on: str) -> None:
        """Log what a run that ended early has stored, if anything."""
        if rows:
            _log.warning(
                "%s: %s are stored: %s", path, rows_of_expected(rows, self.expected_rows), how_to_go_on
            )

    def log_complete(self, path: str, rows: int) -> None:
        """Log what a run that ended well has stored."""
        _log.info("%s: complete, %s rows", path, f"{rows:,}")

    def log_taken_over(self, store: Store) -> None:
        """Log how many rows of an earlier run are not predicted again."""
        stored = sum(map(len, self._before.values()))
        _log.info(
            "%s: %s are taken over from the run that began at %s on %s, and not predicted again",
            store.path,
            rows_of_expected(stored, self.expected_rows),
            printable(store.provenance.get("created")),
            printable(store.provenance.get("host")),
        )

    def shortfall(self, limit: int | float | None) -> Shortfall | None:
        """Return what a run on one rank lacks; None if nothing."""
        stored = [len(one.before) + len(one.written) for one in self.loaders]
        return self._judge(stored, self.cut_short(limit), no_others=self.ended_early(limit) is None)

    def shortfall_on_disk(
        self, path: str | os.PathLike[str], cut_short: str | None, *, no_others: bool
    ) -> Shortfall | None:
        """Return what all ranks together lack; None if nothing."""
        stored, _ = stored_samples(path, repeated_ok=self._drop_duplicates)
        counts = [len(stored.get(i, ())) for i, _ in enumerate(self.loaders)]
        return self._judge(counts, cut_short, no_others=no_others)

    def _judge(self, stored: Sequence[int], cut_short: str | None, *, no_others: bool) -> Shortfall | None:
        """Judge by rows: by the caller's number, else by the loaders' numbers, else by how they ended."""
        total, expected = sum(stored), self.expected_rows
        found = [one.missing_rows(rows) for one, rows in zip(self.loaders, stored, strict=True)]
        if self._expected_rows is not None:
            lacking = self._expected_rows - total
            found = [f"{lacking:,} of {self._expected_rows:,} rows are missing" if lacking > 0 else None]
        elif not self.loaders:
            found = ["no batch was predicted, and how many rows there are is unknown"]
        elif expected is None or any(found):
            found.append(cut_short)
        missing = "; ".join(filter(None, found))
        if not missing:
            return None
        return Shortfall(missing=missing, stored=total, expected=expected, no_others=no_others)

    def cut_short(self, limit: int | float | None) -> str | None:
        """Return why a loader whose rows are not counted ended before its data did, in words, if it did."""
        return self._ended_early(limit, [one for one in self.loaders if one.expected_rows is None])

    def ended_early(self, limit: int | float | None) -> str | None:
        """Return why this rank ended before its data did, in words; None if it did not."""
        return self._ended_early(limit, self.loaders) if self.loaders else "no batch was predicted"

    def _ended_early(self, limit: int | float | None, loaders: Sequence[LoaderState]) -> str | None:
        found = [one.ended_early(limit) for one in loaders]
        if self.started > self.finished:
            found.append("a step ended the run with StopIteration")
        return "; ".join(filter(None, found)) or None

    def complete(self, path: str | ObjectPath, make_without_rows: Callable[[Run], None]) -> None:
        """Complete the store, when every rank has stored its rows."""
        if self.writer is None:
            return
        stored, store = stored_samples(self.writer.grows_at, repeated_ok=self._drop_duplicates)
        if store is None or (self.writer.spec is None and self.expected_rows == 0):
            self.writer.close()
            make_without_rows(self)
        elif store.num_rows > sum(map(len, stored.values())):
            path = on_disk(path)
            self.writer.close()
            drop_repeated(path)
        else:
            self.writer.finalize()

    def end(self, limit: int | float | None, finalize: Callable[[Run], None]) -> Shortfall | None:
        """Complete the store of a run on one rank, or close it and return what is missing."""
        self.finish()
        missing = self.shortfall(limit)
        if missing is None:
            finalize(self)
        elif self.writer is not None:
            self.writer.close()
        return missing

    def table_without_rows(self) -> pa.Table:
        """Return the identifiers' columns without rows."""
        for one in self.identifiers:
            if isinstance(one, Identifiers):
                return one.take(np.zeros(0, np.int64))
        return pa.table({})
