"""Shard files — the files of an array of plain bytes: found, opened, checked.

`RowsInFiles` is what the ways to read them share: `mapping`, for a disk, and `ranged`, for a bucket.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrow._storage.reading import File, Place, open_file
from zarrow.errors import CorruptionError

__all__ = ["Guard", "RowsInFiles", "ShardFile"]

Guard = Callable[[], None]


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A file of rows.

    Parameters
    ----------
    root : Path or RemotePath
        The store, or another directory that is trusted.
    path : str
        Where it is in there.
    size_bytes : int or None
        The size that it must have; None where it need only hold the rows, as that of an open segment.
    file : File or None
        If it was opened already, so that it does not matter what becomes of the path.
    """

    root: Place
    path: str
    size_bytes: int | None
    file: File | None = None

    @property
    def where(self) -> Any:
        """The whole path."""
        return self.root / self.path

    def open(self, guard: Guard, rows: str, needed_bytes: int = 0) -> File:
        """Return the file, whose size was checked.

        Parameters
        ----------
        guard : callable
            Raises if this is not the store that was opened, which explains a missing or wrong file.
        rows : str
            What it holds, for messages.
        needed_bytes : int
            What will be read of it.

        Returns
        -------
        File
            Open.

        Raises
        ------
        CorruptionError
            If it is missing or has another size.
        """
        try:
            file = self.file or open_file(self.root, self.path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._missing(guard, rows) from error
        if self.file is None:
            guard()
        wanted = needed_bytes if self.size_bytes is None else self.size_bytes
        if file.size_bytes < wanted or (self.size_bytes is not None and file.size_bytes != wanted):
            raise CorruptionError(
                f"the file of {rows} has {file.size_bytes} bytes, {wanted} were committed: "
                "the rows of other files can still be read",
                path=self.where,
            )
        return file

    def ranges(self, guard: Guard, rows: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Return ranges of it, which lies in a bucket.

        Parameters
        ----------
        guard, rows
            As in `open`.
        ranges : list of (int, int)
            Where each starts and stops.

        Returns
        -------
        list of memoryview
            Their bytes.

        Raises
        ------
        CorruptionError
            If it is missing or too short.
        """
        assert not isinstance(self.root, Path)
        try:
            return self.root.ranges(self.path, ranges)
        except FileNotFoundError as error:
            raise self._missing(guard, rows) from error

    def _missing(self, guard: Guard, rows: str) -> CorruptionError:
        guard()
        return CorruptionError(f"the file of {rows} is missing", path=self.where)


class RowsInFiles:
    """Rows that lie in many files, what the ways to read them share.

    Parameters
    ----------
    rows : int
        Rows of the array.
    file_rows : int
        Rows of every file but the last, which may have fewer.
    row_shape : tuple of int
        The shape of a row.
    dtype : dtype
        Little-endian.
    locate : callable of int to ShardFile
        The file of that number.
    guard : callable
        See `ShardFile.open`.
    first_row : int
        The row of the store that row 0 is, for messages.
    starts : int64 array, shape (files + 1,), optional
        Of the vectors of a ragged array, where each file's begin, and where the last one's end; the files are
        of segments of `file_rows` rows.
    """

    def __init__(
        self,
        rows: int,
        file_rows: int,
        row_shape: tuple[int, ...],
        dtype: np.dtype[Any],
        locate: Callable[[int], ShardFile],
        guard: Guard,
        first_row: int = 0,
        starts: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.rows = rows
        self.row_shape = row_shape
        self.dtype = dtype
        self.row_bytes = int(np.prod(row_shape)) * dtype.itemsize
        self.file_rows = file_rows
        self.files = -(-rows // file_rows) if starts is None else len(starts) - 1
        self._starts = starts
        self._locate = locate
        self._guard = guard
        self._first_row = first_row
        self._lock = threading.Lock()

    def _numbers(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the file of each row."""
        if self._starts is None:
            return rows // self.file_rows
        return np.searchsorted(self._starts, rows, "right") - 1

    def _between(self, start: int, stop: int) -> range:
        """Return the files of the rows `start` to `stop`."""
        if start >= stop:
            return range(0)
        if self._starts is None:
            return range(start // self.file_rows, (stop - 1) // self.file_rows + 1)
        low, high = (int(one) for one in self._numbers(np.array([start, stop - 1])))
        return range(low, high + 1)

    def _first(self, number: int) -> int:
        """Return the first row of a file."""
        return number * self.file_rows if self._starts is None else int(self._starts[number])

    def _rows_of(self, number: int) -> int:
        if self._starts is None:
            return min(self.file_rows, self.rows - number * self.file_rows)
        return int(self._starts[number + 1] - self._starts[number])

    def _content_of(self, number: int) -> str:
        """Return what a file holds, for messages."""
        if self._starts is not None:
            return f"the vectors of segment {self._first_row // self.file_rows + number}"
        start = self._first_row + number * self.file_rows
        return f"segment {start // self.file_rows} (rows {start} to {start + self._rows_of(number)})"

    def _open(self, number: int) -> File:
        needed_bytes = self._rows_of(number) * self.row_bytes
        return self._locate(number).open(self._guard, self._content_of(number), needed_bytes)
