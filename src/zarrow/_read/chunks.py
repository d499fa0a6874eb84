"""Encoded rows — the rows of a compressed array, decoded chunk by chunk.

A chunk is compared with its checksum before it is decoded (`shard_rows`), and kept for the next call, up to
a number of bytes. The chunks of one call are decoded in several threads, because the codecs release
Python's lock. `EncodedRows` has the methods of the mapped arrays of `mapping`, so that the reader need not
know the kind of an array.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrow._format.array_spec import ArraySpec
from zarrow._read.shard_rows import StoredChunks
from zarrow._storage import threads
from zarrow._storage.cache import Cache

__all__ = ["EncodedRows"]

CACHE_BYTES = 64 << 20
OPEN_SHARDS = 64


class EncodedRows:
    """The rows of a compressed array.

    Parameters
    ----------
    array : ArraySpec
        The array.
    rows : int
        The number of rows.
    file_rows : int
        Rows of every shard but the last.
    open_shard : callable of int to StoredChunks
        Opens the shard of that number.
    starts : int64 array, shape (files + 1,), optional
        Of the vectors of a ragged array, where each shard's begin: whole chunks apart.
    """

    def __init__(
        self,
        array: ArraySpec,
        rows: int,
        file_rows: int,
        open_shard: Callable[[int], StoredChunks],
        starts: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.rows = rows
        self._array = array
        self._file_chunks = file_rows // array.chunk_rows
        self._first_chunks = None if starts is None else (starts // array.chunk_rows).tolist()
        self._open_shard = open_shard
        self._open: Cache[StoredChunks] = Cache(OPEN_SHARDS)
        self._decoded: Cache[npt.NDArray[Any]] = Cache(CACHE_BYTES)

    def _chunk(self, number: int) -> npt.NDArray[Any]:
        found = self._decoded.get(number)
        if found is None:
            found = self._decode(number)
            self._decoded.put(number, found, found.nbytes)
        return found

    def _decode(self, number: int) -> npt.NDArray[Any]:
        if self._first_chunks is None:
            index, chunk = divmod(number, self._file_chunks)
        else:
            index = bisect.bisect_right(self._first_chunks, number) - 1
            chunk = number - self._first_chunks[index]
        shard = self._open.get(index)
        if shard is None:
            shard = self._open_shard(index)
            self._open.put(index, shard, 1)
        return shard.decode(chunk)

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows `start` to `stop`, decoded.

        Raises
        ------
        CorruptionError
            If one of their chunks is damaged.
        """
        chunk_rows = self._array.chunk_rows
        out = np.empty((max(stop - start, 0), *self._array.row_shape), self._array.numpy_dtype)

        def fill(number: int) -> None:
            first = number * chunk_rows
            low, high = max(start, first), min(stop, first + chunk_rows)
            out[low - start : high - start] = self._chunk(number)[low - first : high - first]

        numbers = range(start // chunk_rows, -(-stop // chunk_rows)) if len(out) else range(0)
        deque(threads.in_order(fill, numbers), maxlen=0)
        return out

    def take(self, rows: npt.NDArray[np.int64], out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Return these rows, which are in range, in the order given.

        Raises
        ------
        CorruptionError
            If one of their chunks is damaged.
        """
        chunk_rows = self._array.chunk_rows
        if out is None:
            out = np.empty((len(rows), *self._array.row_shape), self._array.numpy_dtype)
        target = out
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        numbers, starts = np.unique(ordered // chunk_rows, return_index=True)
        stops = np.append(starts[1:], len(rows))

        def fill(index: int) -> None:
            here = slice(starts[index], stops[index])
            number = int(numbers[index])
            target[order[here]] = self._chunk(number)[ordered[here] - number * chunk_rows]

        deque(threads.in_order(fill, range(len(numbers))), maxlen=0)
        return out

    def prefetch(self, start: int, stop: int) -> None:
        """Do nothing: decoding takes longer than reading."""

    def release(self) -> None:
        """Do nothing: no file is mapped."""
