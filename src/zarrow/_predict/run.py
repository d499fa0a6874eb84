"""What happens to the batches of one predict run, from its first to its end?

`Run` lives from the callback's ``setup`` to the run's end, on every rank one. Per batch it finds the rows'
places in the dataset, their identifiers, and the values to store, leaves out what was stored before, and
hands the rest to the writer. The model waits for the callback, so most of that is left to the thread that
writes: work between steps is cold, and took 0.6 ms of each. At the end `Run` judges whether every expected
row arrived. With one rank it knows; with several, rank 0 asks the store, when all others have closed their
writers: what counts is what is there, not who says that it is done.

Place: under the edge `lightning`, above `writer` and `store`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._predict.host_copies import HostBatch, HostCopies, UnderWay
from zarrow._predict.identifiers import CallableIdentifiers, Identifiers
from zarrow._predict.loaders import LoaderFacts, as_indices, describe, recorded_indices
from zarrow._predict.row_set import RowSet
from zarrow._predict.rules import PredictionRules, count_rows
from zarrow._predict.stored_rows import DATALOADER_IDX, stored_rows
from zarrow.errors import BatchError, InvalidInputError, ZarrowError
from zarrow.writer import Writer

__all__ = ["Run"]

_WHO_KNOWS = {
    "recorded": "Lightning's record of the batch",
    "given": "sample_index",
    "running": "the batch",
}

Indices = npt.NDArray[np.int64]


class LoaderState:
    """How far the rows of one data loader have come on this rank."""

    def __init__(
        self, loader: Any, facts: LoaderFacts, identifiers: Identifiers | None, before: RowSet
    ) -> None:
        self.loader = loader
        self.facts = facts
        self.identifiers = identifiers
        self.before = before
        self.written = RowSet()
        self.next_row = 0
        self.batches = 0
        self.asks_caller = isinstance(identifiers, CallableIdentifiers)
        self.at_once = self.asks_caller

    @property
    def expected_rows(self) -> int | None:
        """Rows that all ranks together are to store, if anybody knows."""
        if self.facts.expected_rows is None and self.identifiers is not None:
            return self.identifiers.rows
        return self.facts.expected_rows

    def missing_rows(self, stored: int) -> str | None:
        """Return how many rows are missing, in words; None if none is, or nobody knows."""
        expected = self.expected_rows
        if expected is None or stored >= expected:
            return None
        return f"{expected - stored} of {expected} rows of {self.facts.name} are missing"

    def cut_short(self, limit: int | float | None) -> str | None:
        """Return, for a loader whose rows nobody can count, how its end was not the end of its data."""
        facts = self.facts
        if self.expected_rows is not None:
            return None
        if facts.expected_batches is not None:
            left = facts.expected_batches - self.batches
            if left > 0:
                return f"{left} of {facts.expected_batches} batches of {facts.name} are missing"
            return None
        if isinstance(limit, int) and self.batches >= limit:
            return (
                f"limit_predict_batches ended {facts.name} after {self.next_row} rows, "
                "and nobody knows how many it has"
            )
        return None


class Run:
    """One predict run on one rank.

    Parameters
    ----------
    writer : Writer or None
        None if the store is complete.
    before : mapping of int to RowSet
        The rows that were stored when the run began, per ``dataloader_idx``.
    identifiers : list of Identifiers or None
        One, or one per loader.
    rules : PredictionRules
        What is stored.
    host_copies : HostCopies
        How it gets to the host.
    sample_index : str or callable or None
        Where the caller finds the rows' places in the dataset.
    drop_duplicates : bool
        Whether rows that come twice are left out.
    """

    def __init__(
        self,
        writer: Writer | None,
        before: Mapping[int, RowSet],
        identifiers: list[Identifiers | None],
        rules: PredictionRules,
        host_copies: HostCopies,
        *,
        sample_index: str | Callable[[Any], Any] | None,
        drop_duplicates: bool,
    ) -> None:
        self.writer = writer
        self.identifiers = identifiers
        self.loaders: list[LoaderState] = []
        self.started = self.finished = 0
        self._before = before
        self._rules = rules
        self._host_copies = host_copies
        self._under_way = UnderWay()
        self._sample_index = sample_index
        self._drop_duplicates = drop_duplicates

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
            rows = None if found is None else found.rows
            if rows is not None and facts.dataset_rows is not None and rows != facts.dataset_rows:
                raise InvalidInputError(
                    f"identifiers must have one row per sample of the dataset, {facts.dataset_rows}, got "
                    f"{rows}: those of {facts.name}, in its order"
                )
            self.loaders.append(LoaderState(loader, facts, found, self._before.get(position, RowSet())))

    # One batch

    def write(self, position: int, batch_idx: int, prediction: Any, batch: Any) -> None:
        """Take a batch on: queued on return, but for copies from a device that are under way.

        The model waits for this. So what can be left to the thread that writes is left to it (`_rows`): all
        but the caller's own functions, and values in memory that the caller may change.
        See `PredictionWriter.write_on_batch_end`.
        """
        state = self.loaders[position]
        try:
            columns, arrays = self._rules.split(prediction)
            places = self._places(state, batch_idx, prediction, batch)
            hosted = self._host_copies.begin(columns | arrays)
        except ZarrowError as error:
            raise _named(error, state, batch_idx) from error.__cause__
        names = tuple(columns), tuple(arrays)
        asked = batch if state.asks_caller else None
        state.batches += 1
        self.finished += 1

        def append_to(append: Callable[..., None], done: HostBatch) -> None:
            try:
                rows = self._rows(state, done, names, places, asked)
                if rows is not None:
                    append(*rows)
            except ZarrowError as error:
                raise _named(error, state, batch_idx) from error.__cause__

        def hand_over(done: HostBatch) -> None:
            done.arrive()
            if not state.at_once and not done.is_its_own:
                self._flush()
                state.at_once = True
            if state.at_once or self.writer is None:
                append_to(self._append, done)
            else:
                self.writer.append_later(partial(append_to, done=done), done.size_bytes)

        self._under_way.add(hosted, hand_over)

    def finish(self) -> None:
        """Wait for copies from a device and for the writing thread: every batch is accepted on return."""
        self._under_way.finish()
        self._flush()

    def _flush(self) -> None:
        if self.writer is not None:
            self.writer.flush()

    def close(self) -> None:
        """Let go of the writer after an error, which is the news: a second one would hide it."""
        with contextlib.suppress(ZarrowError, RuntimeError):
            if self.writer is not None:
                self.writer.close()

    def _append(self, *rows: Any) -> None:
        assert self.writer is not None
        self.writer.append(*rows, copy=False)

    def _rows(
        self,
        state: LoaderState,
        hosted: HostBatch,
        names: tuple[tuple[str, ...], tuple[str, ...]],
        places: Any,
        batch: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], Indices] | None:
        """Return table, arrays and places of the rows of a batch that are not stored; None if all are."""
        columns, arrays = ({name: hosted.values[name] for name in kind} for kind in names)
        indices = None if places is None else as_indices(places, "what the sampler yields")
        rows = count_rows(
            columns, arrays, None if indices is None else len(indices), _WHO_KNOWS[state.facts.order]
        )
        if indices is None:
            indices = np.arange(state.next_row, state.next_row + rows)
        known = state.facts.dataset_rows
        if known is not None and rows and state.facts.order != "running" and indices.max() >= known:
            raise BatchError(f"got dataset index {indices.max()}, but the dataset has {known} rows")
        table = self._identify(state, batch, indices, columns)
        values = hosted.get()
        table |= {name: values[name] for name in columns}
        vectors = {name: values[name] for name in arrays}
        fresh = self._fresh(state, indices)
        state.next_row += rows
        if not fresh.all():
            table = {name: _pick(values, fresh) for name, values in table.items()}
            vectors = {name: values[fresh] for name, values in vectors.items()}
            indices = indices[fresh]
        state.written.add(indices)
        return (table, vectors, indices) if len(indices) or not rows else None

    def _places(self, state: LoaderState, batch_idx: int, prediction: Any, batch: Any) -> Any:
        """Return the rows' places in the dataset; None if they are to be counted."""
        chosen = self._sample_index
        if isinstance(chosen, str):
            if chosen not in prediction:
                raise BatchError(
                    f"sample_index={chosen!r}: the prediction has no such entry; it has {list(prediction)}"
                )
            return as_indices(_on_host(prediction[chosen]), f"sample_index={chosen!r}")
        if chosen is not None:
            return as_indices(_on_host(chosen(batch)), "what the callable sample_index returns")
        if state.facts.order == "running":
            return None
        return recorded_indices(state.loader, batch_idx)

    def _identify(
        self, state: LoaderState, batch: Any, indices: Indices, columns: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the columns that say which rows these are."""
        table: dict[str, Any] = {}
        if len(self.loaders) > 1:
            table[DATALOADER_IDX] = np.full(len(indices), state.facts.position, np.int32)
        if state.identifiers is not None:
            found = state.identifiers.take(batch, indices, len(indices))
            table |= zip(found.column_names, found.columns, strict=True)
        for name in columns:
            if name in table:
                raise BatchError(
                    f"the column {name!r} comes from the identifiers as well as from the prediction: leave "
                    f"one out (ignore=[{name!r}]), or rename one (columns={{'predicted_{name}': {name!r}}})"
                )
        return table

    def _fresh(self, state: LoaderState, indices: Indices) -> npt.NDArray[np.bool_]:
        """Return which rows are to be stored."""
        fresh = ~state.before.contains(indices)  # rows of a batch that was cut by a crash, say
        again = fresh & ~state.written.fresh(indices)
        if again.any() and not self._drop_duplicates:
            raise BatchError(
                f"{again.sum()} of its {len(indices)} rows were stored already, the first of them dataset "
                f"index {indices[again][0]}: use a sampler that yields every row once, or leave them out "
                "with duplicates='drop'"
            )
        return fresh & ~again

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
        stored, _ = stored_rows(path, repeated_ok=self._drop_duplicates)
        found = [state.missing_rows(len(stored.get(i, ()))) for i, state in enumerate(self.loaders)]
        return "; ".join(filter(None, found)) or None

    def table_without_rows(self) -> pa.Table:
        """Return the identifiers' columns, which are known without a prediction."""
        for one in self.identifiers:
            if one is not None and one.rows is not None:
                return one.take(None, np.zeros(0, np.int64), 0)
        return pa.table({})


def _named(error: ZarrowError, state: LoaderState, batch_idx: int) -> ZarrowError:
    """Return an error that says which batch it is about."""
    where = f"in batch {batch_idx} of {state.facts.name}"
    if isinstance(error, BatchError):
        return BatchError(f"{where}: {error}")
    error.add_note(where)
    return error


def _on_host(values: Any) -> Any:
    return values.detach().cpu() if hasattr(values, "detach") else values


def _pick(values: Any, chosen: npt.NDArray[np.bool_]) -> Any:
    """Return the chosen rows of a column."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values.filter(pa.array(chosen))
    if isinstance(values, np.ndarray):
        return values[chosen]
    return [value for value, keep in zip(values, chosen, strict=True) if keep]
