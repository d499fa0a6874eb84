"""Stream — the batches of a rank and worker, read buffer by buffer.

Before the batches of a buffer, its columns are decoded, and what is not mapped from a disk is read:
compressed arrays, and those in a bucket. The vectors of plain arrays are gathered batch by batch. The kernel
is asked for the blocks of a buffer one buffer ahead, so that a cold disk reads blocks rather than rows.

A stream that goes on behind a number of batches reads nothing for those.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zarrow.torch._order import Order
from zarrow.torch._source import Columns, Rows, Source, TensorBatch, as_tensor

__all__ = ["Stream"]


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Batches of an epoch.

    Parameters
    ----------
    source : Source
        The columns and arrays.
    order : Order
        Which rows.
    chosen : int64 array, shape (n,), optional
        The rows that pass the filter, which `order` counts; all by default.
    mapped : bool
        Whether vectors that lie together are shown, not copied.
    """

    source: Source
    order: Order
    chosen: Rows | None
    mapped: bool

    def batches(self, epoch: int, worker: int, workers: int, skip: int) -> Iterator[TensorBatch]:
        """Yield the batches of a worker behind the first `skip` ones."""
        buffers, counts = self.order.buffers(epoch), self.order.batches(epoch)
        asked = False
        for index in range(worker, len(buffers), workers):
            if skip >= counts[index]:
                skip -= counts[index]
                continue
            for buffer in buffers[index + asked * workers : index + workers + 1 : workers]:
                self._prefetch(buffer)
            asked = True
            rows = self.order.rows_of(buffers[index], epoch, index)
            rows = rows if self.chosen is None else self.chosen[rows]
            start, skip = int(skip) * self.order.batch_size, 0
            yield from self._batches_of(rows[start:])

    def _prefetch(self, buffer: Rows) -> None:
        """Ask the kernel for the blocks of a buffer; of filtered ones for nothing, which may be too much."""
        if self.chosen is None:
            for name in (*self.source.arrays, *self.source.ragged):
                for start, stop in self.order.spans(buffer):
                    self.source.store[name].prefetch(start, stop)

    def _batches_of(self, rows: Rows) -> Iterator[TensorBatch]:
        """Yield the batches of a buffer, from its rows in their order."""
        source, size, shuffle = self.source, self.order.batch_size, self.order.shuffle
        columns = source.columns_of(rows)
        # Of compressed rows, the same chunks would be decoded for batch after batch.
        held = {
            name: source.store[name].take(rows)
            for name in (*source.arrays, *source.ragged)
            if shuffle and not source.is_mapped(name)
        }
        for start in range(0, len(rows), size):
            here = slice(start, start + size)
            own = {name: values[here] for name, values in columns.items()}
            ours = {name: values[here] for name, values in held.items()}
            if shuffle:
                yield source.batch(own, rows[here], ours)
            else:
                yield self._in_order(own, rows[here])

    def _in_order(self, columns: Columns, rows: Rows) -> TensorBatch:
        """Return a batch of rows that are in the order of the files, and of what the next one needs."""
        source, first, stop = self.source, int(rows[0]), int(rows[-1]) + 1
        together = range(first, stop) if stop - first == len(rows) else None
        if together is None or not self.mapped:
            return source.batch(columns, rows, together=together)
        arrays = {name: source.store[name].read(first, stop) for name in source.arrays}
        found = {name: as_tensor(values) for name, values in columns.items()}
        found |= {name: as_tensor(values, writable=False) for name, values in arrays.items()}
        for name in source.ragged:
            found |= source.tensors_of(name, source.store[name].read(first, stop), writable=False)
        return found
