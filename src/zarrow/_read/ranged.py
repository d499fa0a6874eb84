"""Ranged rows — the rows of plain shards in a bucket, read by ranges.

It has the methods of the mapped arrays of `mapping`. Rows that are asked for twice, or lie together, are read
once; ranges with a small gap between them are one request (`objects`). Several requests are under way at a
time, and several shards: what is read at once, and not copied yet, is at most 128 MiB. After each read the
guard tells whether this is still the store that was opened: one more request.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrow._read.shard_files import RowsInFiles

__all__ = ["RangedRows"]

_SHARDS_AT_ONCE = 4
_BLOCK_BYTES = 4 << 20
_BYTES_AT_ONCE = 32 << 20


class RangedRows(RowsInFiles):
    """An array whose files are read by ranges."""

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows `start` to `stop`.

        Raises
        ------
        CorruptionError
            If a file of theirs is missing or truncated.
        StoreChangedError
            If another store took the place of this one.
        """
        out = np.empty((max(stop - start, 0), *self.row_shape), self.dtype)
        step = max(_BLOCK_BYTES // self.row_bytes, 1)
        pieces: list[tuple[int, list[tuple[int, int]]]] = []
        for number in self._between(start, stop):
            first = self._first(number)
            low, high = max(start, first), min(stop, first + self._rows_of(number))
            runs = [(row, min(row + step, high)) for row in range(low, high, step)]
            pieces.append((number, runs))

        def put(runs: Sequence[tuple[int, int]], blocks: Sequence[memoryview]) -> None:
            for (low, high), block in zip(runs, blocks, strict=True):
                out[low - start : high - start] = self._as_rows(block)

        self._fetch(pieces, put)
        return out

    def take(self, rows: npt.NDArray[np.int64], out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Return these rows, which are in range, in the order given.

        Raises
        ------
        CorruptionError
            If a file of theirs is missing or truncated.
        StoreChangedError
            If another store took the place of this one.
        """
        if out is None:
            out = np.empty((len(rows), *self.row_shape), self.dtype)
        if not len(rows):
            return out
        target = out
        wanted, places = np.unique(rows, return_inverse=True)
        order = np.argsort(places, kind="stable")
        ends = np.cumsum(np.bincount(places, minlength=len(wanted)))
        apart = np.flatnonzero((np.diff(wanted) > 1) | (np.diff(self._numbers(wanted)) > 0)) + 1
        bounds = np.concatenate(([0], apart, [len(wanted)])).tolist()
        numbers = self._numbers(wanted)
        by_file: dict[int, list[tuple[int, int]]] = {}
        first_of: dict[int, int] = {}
        for low, high in itertools.pairwise(bounds):
            row = int(wanted[low])
            first_of[row] = low
            by_file.setdefault(int(numbers[low]), []).append((row, row + high - low))

        def put(runs: Sequence[tuple[int, int]], blocks: Sequence[memoryview]) -> None:
            for (row, stop), block in zip(runs, blocks, strict=True):
                found, low = self._as_rows(block), first_of[row]
                begin = int(ends[low - 1]) if low else 0
                chosen = order[begin : int(ends[low + stop - row - 1])]
                target[chosen] = found[rows[chosen] - row]

        self._fetch(list(by_file.items()), put)
        return out

    def _as_rows(self, block: memoryview) -> npt.NDArray[Any]:
        return np.frombuffer(block, self.dtype).reshape(-1, *self.row_shape)

    def _fetch(
        self,
        pieces: Sequence[tuple[int, list[tuple[int, int]]]],
        put: Callable[[Sequence[tuple[int, int]], Sequence[memoryview]], None],
    ) -> None:
        """Read runs of rows, by the number of their file, and put them in place."""

        def fetch(piece: tuple[int, list[tuple[int, int]]]) -> None:
            number, runs = piece
            begin = 0
            while begin < len(runs):
                end, size_bytes = begin, 0
                while end < len(runs) and (end == begin or size_bytes < _BYTES_AT_ONCE):
                    size_bytes += (runs[end][1] - runs[end][0]) * self.row_bytes
                    end += 1
                put(runs[begin:end], self._blocks(number, runs[begin:end]))
                begin = end

        if len(pieces) == 1:
            fetch(pieces[0])
        elif pieces:
            with ThreadPoolExecutor(min(_SHARDS_AT_ONCE, len(pieces)), "zarrow-ranges") as pool:
                deque(pool.map(fetch, pieces), maxlen=0)
        if pieces:
            self._guard()  # after each read: ranges do not say of which object they are

    def _blocks(self, number: int, runs: Sequence[tuple[int, int]]) -> list[memoryview]:
        first = self._first(number)
        ranges = [((low - first) * self.row_bytes, (high - first) * self.row_bytes) for low, high in runs]
        return self._locate(number).ranges(self._guard, self._content_of(number), ranges)

    def prefetch(self, start: int, stop: int) -> None:
        """Do nothing: rows are read when they are needed."""

    def release(self) -> None:
        """Do nothing: no memory is kept."""
