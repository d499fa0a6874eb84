"""Preparing — the thread of a run that makes batches of the store from predictions.

The model waits for the callback, so the callback does only what cannot wait (`run`). The rest is done here, a
few batches at a time, since work between the steps of a model finds cold caches and is slow:

1. wait until the values of a batch have arrived on the host;
2. join the identifiers of its rows, by their ``sample_index``;
3. leave out rows that are stored already;
4. `Writer.append` the others, and after the last batch of the group wait until the writer has accepted it.

Step 4 keeps memory within one bound: what the writer holds is part of the group, and the group counts as
queued until it is accepted.

The first error ends the thread. The batches before it are accepted when the writer is closed; those after it
are dropped, so that the rows of a store are always those of the first batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._predict.host_copies import HostBatch
from zarrow._predict.identifiers import Identifiers
from zarrow._predict.loaders import LoaderState
from zarrow._predict.ragged_entries import RaggedEntries
from zarrow._predict.sample_set import SampleIndex
from zarrow._predict.stored_samples import DATALOADER_IDX
from zarrow._write.worker import Worker
from zarrow.errors import BatchError
from zarrow.writer import Writer

__all__ = ["PredictedBatch", "Preparing", "named"]


@dataclass(slots=True)
class PredictedBatch:
    """A prediction on its way to the writer.

    Parameters
    ----------
    loader : LoaderState
        The loader that yielded it.
    batch_idx : int
        Its number there.
    recorded : sequence of int, or None
        Lightning's or the caller's record of the rows; None if they are counted.
    identifiers : pyarrow.Table or None
        The identifiers that the caller's function found. `recorded` is the ``sample_index`` then.
    values : HostBatch
        The values to store.
    columns, arrays : tuple of str
        Their names.
    ragged : RaggedEntries
        Which arrays have any number of vectors per row.
    """

    loader: LoaderState
    batch_idx: int
    recorded: Any
    identifiers: pa.Table | None
    values: HostBatch
    columns: tuple[str, ...]
    arrays: tuple[str, ...]
    ragged: RaggedEntries

    def lengths(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return columns and arrays, of the right number of rows, though values may be on their way."""
        columns, arrays = self._split(self.values.values)
        return columns, self.ragged.lengths(arrays)

    def get(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return columns and arrays, once they have arrived."""
        columns, arrays = self._split(self.values.get())
        return columns, self.ragged.rows(arrays)

    def _split(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        return {name: values[name] for name in self.columns}, {name: values[name] for name in self.arrays}


class Preparing(Worker[PredictedBatch]):
    """The thread between the callback and the writer.

    Parameters
    ----------
    writer : Writer or None
        None if the store is complete, so that no row is left.
    limit_bytes : int
        Size of the batches that may wait, including those that the writer holds.
    drop_duplicates : bool
        Whether repeated rows are left out; otherwise they are an error.
    """

    def __init__(self, writer: Writer | None, limit_bytes: int, *, drop_duplicates: bool) -> None:
        self.writer = writer
        self._drop_duplicates = drop_duplicates
        super().__init__("zarrow-preparing", limit_bytes)

    def work(self, items: list[PredictedBatch]) -> None:
        """Append batches: accepted on return."""
        for batch in items:
            try:
                self._append(batch)
            except Exception as error:  # noqa: BLE001 - raised again, with the batch named
                raise named(error, batch.loader, batch.batch_idx) from error.__cause__
        if self.writer is not None:
            self.writer.flush()

    def _append(self, batch: PredictedBatch) -> None:
        """Append the rows of a batch that are not stored."""
        loader, sample_index = batch.loader, batch.recorded
        if batch.identifiers is None:
            sample_index = loader.sample_index(batch.recorded, *batch.lengths())
        columns, vectors = batch.get()
        table = _identify(batch, sample_index, columns)
        fresh = self._fresh(loader, sample_index)
        if not fresh.all():
            if not fresh.any():
                return
            table = {name: _pick(column, fresh) for name, column in table.items()}
            vectors = {name: rows[fresh] for name, rows in vectors.items()}
            sample_index = sample_index[fresh]
        loader.written.add(sample_index)
        if self.writer is not None:
            self.writer.append(table, vectors, sample_index, copy=False)
        elif len(sample_index):
            raise BatchError(
                f"the store was completed with {len(loader.before):,} rows of this loader, without "
                f"sample_index {sample_index[0]}: to add the others, pass expected_rows=, "
                "the number of all of them, with resume=True; or write another store"
            )

    def _fresh(self, loader: LoaderState, sample_index: SampleIndex) -> npt.NDArray[np.bool_]:
        """Return which rows are to be stored."""
        fresh = ~loader.before.contains(sample_index)  # not all, if a crash left a part of the batch
        again = fresh & ~loader.written.fresh(sample_index)
        if again.any() and not self._drop_duplicates:
            raise BatchError(
                f"{again.sum()} of its {len(sample_index)} rows are stored already, the first of them with "
                f"sample_index {sample_index[again][0]}: use a sampler that yields every row once, or leave "
                "out repeated rows with duplicates='drop'"
            )
        return fresh & ~again


def _identify(batch: PredictedBatch, sample_index: SampleIndex, columns: dict[str, Any]) -> dict[str, Any]:
    """Return the table of a batch: the identifiers of its rows, then the prediction's columns."""
    loader = batch.loader
    table: dict[str, Any] = {}
    if loader.is_one_of_several:
        table[DATALOADER_IDX] = np.full(len(sample_index), loader.facts.position, np.int32)
    found = batch.identifiers
    if isinstance(loader.identifiers, Identifiers):
        found = loader.identifiers.take(sample_index)
    if found is not None:
        table |= zip(found.column_names, found.columns, strict=True)
    for name in columns.keys() & table.keys():
        _check_same(name, table[name], columns[name], sample_index)
    return table | {name: values for name, values in columns.items() if name not in table}


def _check_same(name: str, known: Any, predicted: Any, sample_index: SampleIndex) -> None:
    """Raise if a column that the identifiers and the prediction both have is not the same in both."""
    pairs = zip(
        known.to_pylist(), predicted.tolist() if hasattr(predicted, "tolist") else predicted, strict=True
    )
    for sample, (identifier, value) in zip(sample_index.tolist(), pairs, strict=True):
        if identifier != value:
            raise BatchError(
                f"column {name!r} is in the identifiers and in the prediction, and differs: for sample_index "
                f"{sample} they have {identifier!r} and {value!r}: give the identifiers in the dataset's "
                f"order; or if they are two things, leave one out (ignore=[{name!r}]), or rename one "
                f"(columns={{'predicted_{name}': {name!r}}})"
            )


def named(error: Exception, loader: LoaderState, batch_idx: int) -> Exception:
    """Return an error that names its batch."""
    where = f"in batch {batch_idx} of {loader.facts.name}"
    if isinstance(error, BatchError):
        return BatchError(f"{where}: {error}")
    error.add_note(where)
    return error


def _pick(values: Any, chosen: npt.NDArray[np.bool_]) -> Any:
    """Return the chosen rows of a column."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values.filter(pa.array(chosen))
    if isinstance(values, np.ndarray):
        return values[chosen]
    return [value for value, keep in zip(values, chosen, strict=True) if keep]
