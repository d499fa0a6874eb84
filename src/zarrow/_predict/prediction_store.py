"""Which of the tasks' rows does the store have, and how do the next ones come into it?

EveryQuery's tasks are a frame; row i of the store is the prediction of task i. `PredictionStore.open` finds
how far an earlier run came, if its rows are those of the same tasks, model and precision, and refuses or
removes the store if not. `append` takes in the next batch, less what of it is stored already, and `close`
finalizes the store when every task has its row.

Place: tier 5, under the edge `everyquery`, for runs of one process; several ranks write by
`lightning.PredictionWriter`. The invariant it owns: a row of the store has the identifiers of the task at its
``sample_index``, and was predicted by the model, in the precision, that the store's provenance names. A
crash leaves an incomplete store that `open` goes on with, or a complete one.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from zarrow._format import layout
from zarrow._predict.host_copies import HostBatch, HostCopies, UnderWay
from zarrow._predict.identity import differences
from zarrow.errors import ConflictError, ZarrowError
from zarrow.store import open as open_store
from zarrow.transfer import _everyquery_columns as columns
from zarrow.transfer._everyquery_columns import FLOAT32, KEYS, PROBABILITIES, identifiers
from zarrow.writer import Durability, Writer

__all__ = ["PredictionStore"]


class PredictionStore:
    """The store of a run, from its opening to its end."""

    def __init__(
        self,
        path: Path,
        frame: Any,
        arrays: dict[str, tuple[tuple[int, ...], str]],
        durability: Durability | Literal["segment", "batch"],
    ) -> None:
        self.path = path
        self.rows = 0  # of the tasks, from the first on: stored, or handed to the writer
        self.batches = 0
        self._frame = frame
        self._label = columns.has_label(columns.column_names(frame))
        identifiers(frame.slice(0, 0))  # what it lacks is told now
        self._arrays = arrays
        self._durability = durability
        self._writer: Writer | None = None
        self._copies = HostCopies(FLOAT32)
        self._under_way = UnderWay()

    # The beginning

    @property
    def exists(self) -> bool:
        """Whether there is a store."""
        return (self.path / layout.STORE_JSON).exists()

    def is_complete(self) -> bool:
        """Tell whether there is a complete store."""
        if not self.exists:
            return False
        with open_store(self.path, partial=True) as store:
            return store.complete

    def open(self, identity: dict[str, Any], *, may_replace: bool) -> None:
        """Create, resume, or replace the store; leaves no writer if it is complete."""
        if self.exists:
            difference = self._take_up(identity)
            if difference is None:
                return
            if not may_replace:
                raise ConflictError(
                    f"{self.path}: the store is that of another run: {difference}: remove it, choose "
                    "another output_parquet, or pass overwrite=true"
                )
            self.remove()
        self._writer = self._new_writer(identity)

    def remove(self) -> None:
        """Remove the store."""
        # Aside first: killed amid the removal, a half removed store would look like something that is none.
        aside = self.path.with_name(self.path.name + ".replaced")
        shutil.rmtree(aside, ignore_errors=True)
        self.path.rename(aside)
        shutil.rmtree(aside)

    def _new_writer(self, identity: dict[str, Any]) -> Writer:
        schema = columns.prediction_schema(label=self._label).append(pa.field(columns.BATCH, pa.int32()))
        return Writer(
            self.path,
            arrays=self._arrays,
            schema=schema,
            keys=KEYS,
            mode="a",
            durability=self._durability,
            provenance=identity,
        )

    def _take_up(self, identity: dict[str, Any]) -> str | None:
        """Go on where the store ends; return what it has that we do not, if that cannot be."""
        with open_store(self.path, partial=True) as store:
            differing = differences(store.provenance, identity)
            if differing:
                return "; ".join(differing)
            arrays = {name: (array.row_shape, array.dtype.name) for name, array in store.arrays.items()}
            if arrays != self._arrays:
                return f"it has the arrays {arrays}, this run has {self._arrays}"
            if columns.BATCH not in store.schema.names:
                return "it was begun by several ranks, this run has one"
            if (columns.LABEL in store.schema.names) != self._label:
                return f"one of the two has labels ({columns.LABEL}), the other has not"
            complete = store.complete
        # The lock first: what another process is writing cannot be compared.
        writer = None if complete else self._new_writer(identity)
        try:
            difference = self._compare()
        except BaseException:
            if writer is not None:
                writer.close()
            raise
        if difference is not None:
            if writer is not None:
                writer.close()
            self.rows = self.batches = 0
            return difference
        self._writer = writer
        return None

    def _compare(self) -> str | None:
        """Count the rows of the store; return the first of them that is not that of our task, in words."""
        with open_store(self.path, partial=True) as store:
            if store.num_rows > len(self._frame):
                return f"it has {store.num_rows} rows, this run has {len(self._frame)}"
            if store.complete and store.num_rows < len(self._frame):
                return f"it is complete with {store.num_rows} rows, this run has {len(self._frame)}"
            names = [*KEYS, *([columns.LABEL] if self._label else [])]
            for batch in store.scan([*names, columns.BATCH]):
                ours = identifiers(self._frame.slice(self.rows, batch.num_rows))
                for name in names:
                    if not ours[name].equals(pa.chunked_array([batch[name]])):
                        pairs = zip(batch[name].to_pylist(), ours[name].to_pylist(), strict=True)
                        row, pair = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
                        return f"in row {self.rows + row} it has {name} {pair[0]!r}, this run has {pair[1]!r}"
                self.rows += batch.num_rows
                self.batches = batch[columns.BATCH][-1].as_py() + 1
        return None

    # The batches

    def append(self, values: dict[str, Any], first_row: int, rows: int) -> None:
        """Append a batch, the rows of the tasks from `first_row` on: queued on return.

        What of it is stored, by a run that was killed amid a batch, is left out.
        """
        columns.check_range(len(self._frame), first_row, rows)
        stored = max(0, min(rows, self.rows - first_row))
        if stored == rows:
            return
        assert self._writer is not None
        number = self.batches - 1 if stored else self.batches
        table = identifiers(self._frame.slice(self.rows, rows - stored))
        narrow: dict[str, Any] = dict(zip(table.column_names, table.columns, strict=True))
        narrow[columns.BATCH] = np.full(rows - stored, number, np.int32)
        places = np.arange(self.rows, self.rows + rows - stored)
        writer = self._writer

        def append(done: HostBatch) -> None:
            hosted = done.get()
            probabilities = {name: hosted[name][stored:] for name in PROBABILITIES}
            arrays = {name: hosted[name][stored:] for name in self._arrays}
            writer.append(narrow | probabilities, arrays, places, copy=False)

        self._under_way.add(self._copies.begin(values), append)
        self.rows += rows - stored
        self.batches = number + 1

    def flush(self) -> None:
        """Write every batch that was appended: durable on return."""
        if self._writer is not None:
            self._under_way.finish()
            self._writer.flush(durable=True)

    # The end

    def close(self) -> bool:
        """Finalize the store if every task has its row, else let it be resumed; tell which."""
        writer, self._writer = self._writer, None
        try:
            self._under_way.finish()
        except BaseException:
            if writer is not None:
                with contextlib.suppress(ZarrowError):
                    writer.close()
            raise
        whole = self.rows >= len(self._frame)
        if writer is not None:
            if whole:
                writer.finalize()
            else:
                writer.close()
        return whole

    def abandon(self) -> None:
        """Keep every finished batch, whatever is wrong with the others."""
        writer, self._writer = self._writer, None
        if writer is not None:
            # The exception under way is the news; a second one, of ours or the GPU's, would hide it.
            with contextlib.suppress(ZarrowError, RuntimeError):
                self._under_way.finish()
            with contextlib.suppress(ZarrowError):
                writer.close()
