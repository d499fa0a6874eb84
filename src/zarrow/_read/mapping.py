"""Mapping — the shards of an array as one piece of memory.

The data part of a shard of plain bytes is its rows, in order, and that of a full shard is a multiple of the
page. So `map_rows`

1. reserves as much address space as the whole array takes (memory that must not be touched);
2. maps each shard's data part over its place in there when its rows are first read, so that a store of ten
   thousand shards costs nothing to open, and a damaged shard affects its own rows only;
3. hands out numpy views of it: slices without a copy, gathers at the speed of `numpy.memmap`.

Where this is not possible (rows that do not fill pages, more files than a process may map, another
platform) there is one map per shard, behind the same methods.

For a gather from a cold file the kernel would read 128 KiB around every row. It is therefore asked for the
rows one by one, and advised not to read around them. A file's size is checked before it is mapped, because
touching memory behind the end of a file kills the process. Reads only; an array keeps its memory mapped,
whatever happens to the store.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import resource
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrow._read.shard_files import Guard, RowsInFiles, ShardFile
from zarrow._storage import threads
from zarrow._storage.reading import File
from zarrow.errors import ZarrowError

__all__ = ["JoinedRows", "RowsPerFile", "map_rows"]

_PROT_NONE = 0
_MAP_FIXED = 0x10
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0)
_FAILED = ctypes.c_void_p(-1).value
_SAMPLED_ROWS = (1, 4, 16, 64)
_SAMPLED_ROWS_WARM = (8,)
_HUGE_PAGE_BYTES = 2 << 20
_NEAR_BYTES = 16384
_RUSAGE = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
_MAPS_KEPT = 1024
_PIECE_BYTES = 4 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


class _Region:
    """Reserved address space, released with the last array that points into it."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        # If address and file offset agree modulo a huge page, Linux maps files by huge pages, and a gather is
        # a third faster. It aligns maps itself unless it is given the address.
        reserved = size_bytes + _HUGE_PAGE_BYTES if size_bytes >= _HUGE_PAGE_BYTES else size_bytes
        start = _map(None, reserved, _PROT_NONE, flags, -1)
        self.address = start + (-start % _HUGE_PAGE_BYTES if reserved > size_bytes else 0)
        weakref.finalize(self, _libc.munmap, start, reserved).atexit = False

    def put(self, offset: int, size_bytes: int, file: File) -> None:
        """Map the beginning of a file at an offset."""
        _map(self.address + offset, size_bytes, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, file.fd)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return a read-only array over it, which keeps it alive."""
        return np.asarray(_Exporter(self, shape, dtype))


class _Exporter:
    """The object that shows numpy the memory, and that numpy keeps as the array's base."""

    def __init__(self, region: _Region, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.region = region
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": dtype.str,
            "data": (region.address, True),
        }


def _map(address: int | None, size_bytes: int, protection: int, flags: int, fd: int) -> int:
    found = _libc.mmap(address, size_bytes, protection, flags, fd, 0)
    if found == _FAILED:
        number = ctypes.get_errno()
        why = os.strerror(number)
        if number == errno.ENOMEM:
            why += f" (of address space, or of the {_max_maps()} maps of a process: close stores not in use)"
        raise OSError(number, f"mapping {size_bytes} bytes: {why}")
    return int(found)


def _disk_reads() -> int:
    """Return the number of pages that this thread waited for to be read from a disk."""
    return resource.getrusage(_RUSAGE).ru_majflt


def _whole_pages(size_bytes: int) -> int:
    return size_bytes + -size_bytes % mmap.PAGESIZE


def _max_maps() -> int:
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return 65530


class JoinedRows(RowsInFiles):
    """An array whose files are mapped one after the other. Use `map_rows`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._mapped = np.zeros(self.files, bool)
        self._unmapped = self.files
        self._region = _Region(max(_whole_pages(self.rows * self.row_bytes), mmap.PAGESIZE))
        self._array = self._region.array((self.rows, *self.row_shape), self.dtype)
        self._touch = self._array.reshape(self.rows, -1)[:, 0]
        self._was_warm = False

    def _ensure(self, numbers: Any) -> None:
        """Map the files of these numbers."""
        if not self._unmapped:
            return
        for number in numbers:
            if not self._mapped[number]:
                with self._lock:
                    if not self._mapped[number]:
                        self._put(int(number))
                        self._mapped[number] = True
                        self._unmapped -= 1

    def _put(self, number: int) -> None:
        if size_bytes := _whole_pages(self._rows_of(number) * self.row_bytes):
            self._region.put(self._first(number) * self.row_bytes, size_bytes, self._open(number))

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows `start` to `stop`, without a copy and read-only.

        Raises
        ------
        CorruptionError
            If a file of theirs is missing or truncated.
        """
        if self._unmapped and start < stop:
            self._ensure(self._between(start, stop))
        return self._array[start:stop]

    def take(self, rows: npt.NDArray[np.int64], out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Return these rows, which are in range, in the order given.

        Raises
        ------
        CorruptionError
            If a file of theirs is missing or truncated.
        """
        if self._unmapped:
            wanted = np.zeros(self.files, np.bool_)  # np.unique would import numpy.ma, which takes 10 ms
            wanted[self._numbers(rows)] = True
            self._ensure(np.flatnonzero(wanted & ~self._mapped))
        before = _disk_reads()
        if len(rows) and self._is_cold(rows, before):
            self._was_warm = False
            return self._take_cold(rows, out)
        found = self._gather(rows, out)
        self._was_warm = _disk_reads() == before
        return found

    def _gather(self, rows: npt.NDArray[np.int64], out: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
        """Copy rows, many of them in several threads: most of the time is spent waiting for memory."""
        chosen = np.empty((len(rows), *self.row_shape), self.dtype) if out is None else out
        # "raise" would gather into a buffer first; the caller has checked the bounds.
        pieces = len(rows) * self.row_bytes // _PIECE_BYTES
        if pieces < 2:
            self._array.take(rows, axis=0, out=chosen, mode="clip")
            return chosen
        step = -(-len(rows) // pieces)

        def gather(start: int) -> None:
            stop = start + step
            self._array.take(rows[start:stop], axis=0, out=chosen[start:stop], mode="clip")

        deque(threads.in_order(gather, range(0, len(rows), step)), maxlen=0)
        return chosen

    def _is_cold(self, rows: npt.NDArray[np.int64], before: int) -> bool:
        """Tell whether any of a sample of the rows is on the disk only, or has to be read from it.

        The kernel shows what is in memory only to those who may write to the file. So rows are touched as
        well: few at first, because it reads far ahead of each that is missing; and only a few if the last
        gather found all of its rows in memory.
        """
        if not self._was_warm and not self._is_resident(int(rows[0])):
            return True
        for count in _SAMPLED_ROWS_WARM if self._was_warm else _SAMPLED_ROWS:
            self._touch[rows[:: -(-len(rows) // count)]]
            if _disk_reads() > before:
                return True
            if count >= len(rows):
                break
        return False

    @contextlib.contextmanager
    def _advice(self, first: int, last: int, advice: int) -> Iterator[None]:
        """Advise the kernel on whole files, so that their maps are not split, and revoke the advice.

        `MADV_RANDOM`, if left on, would make the next scan of a cold file crawl.
        """
        start = self._first(first) * self.row_bytes
        address = self._region.address + start
        end = (self._first(last) + self._rows_of(last)) * self.row_bytes
        size_bytes = min(_whole_pages(end), self._region.size_bytes) - start
        _libc.madvise(address, size_bytes, advice)
        try:
            yield
        finally:
            _libc.madvise(address, size_bytes, mmap.MADV_NORMAL)

    def _is_resident(self, row: int) -> bool:
        """Tell, without waiting, whether a row is in memory; true if the kernel does not say."""
        address = self._region.address + row * self.row_bytes
        resident = ctypes.create_string_buffer(1)
        missing = (
            _libc.mincore(address - address % mmap.PAGESIZE, 1, resident) == 0 and not resident.raw[0] & 1
        )
        return not missing

    def _take_cold(self, rows: npt.NDArray[np.int64], out: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
        ordered = np.sort(rows)
        starts = ordered[np.append(True, ordered[1:] != ordered[:-1])] * self.row_bytes
        ends = starts + self.row_bytes
        apart = np.flatnonzero(starts[1:] > ends[:-1] + _NEAR_BYTES) + 1
        runs = zip(
            starts[np.concatenate(([0], apart))].tolist(),
            ends[np.concatenate((apart - 1, [len(ends) - 1]))].tolist(),
            strict=True,
        )
        first, last = (int(one) for one in self._numbers(np.array([rows.min(), rows.max()])))
        with self._advice(first, last, mmap.MADV_RANDOM):
            for start, end in runs:
                self._will_need(start, end)
            return self._gather(rows, out)

    def _will_need(self, start: int, end: int) -> None:
        start -= start % mmap.PAGESIZE
        _libc.madvise(self._region.address + start, end - start, mmap.MADV_WILLNEED)

    def prefetch(self, start: int, stop: int) -> None:
        """Ask the kernel to read rows that will be needed soon, if they are not in memory.

        After a gather that found all of its rows there, nothing is asked.
        """
        if start >= stop or self._was_warm:
            return
        try:
            self._ensure(self._between(start, stop))
        except (OSError, ZarrowError):
            return  # an error when the rows are read
        if not (self._is_resident(start) and self._is_resident(stop - 1)):
            self._will_need(start * self.row_bytes, stop * self.row_bytes)

    def release(self) -> None:
        """Let go of the pages of rows that were read; the page cache keeps them as long as it likes."""
        _libc.madvise(self._region.address, self._region.size_bytes, mmap.MADV_DONTNEED)


class RowsPerFile(RowsInFiles):
    """An array whose files are mapped one by one, those used last at a time. Use `map_rows`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._maps: OrderedDict[int, npt.NDArray[Any]] = OrderedDict()

    def _map(self, number: int) -> npt.NDArray[Any]:
        with self._lock:
            found = self._maps.pop(number, None)
            if found is None:
                file = self._open(number)
                try:
                    found = self._map_file(number, file)
                except OSError:  # other stores may hold the maps that a process may have
                    self._maps.clear()
                    found = self._map_file(number, file)
            self._maps[number] = found
            if len(self._maps) > _MAPS_KEPT:
                self._maps.popitem(last=False)
            return found

    def _map_file(self, number: int, file: File) -> npt.NDArray[Any]:
        rows = self._rows_of(number)
        region = _Region(_whole_pages(rows * self.row_bytes))
        region.put(0, region.size_bytes, file)
        return region.array((rows, *self.row_shape), self.dtype)

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows `start` to `stop`: without a copy if they lie in one file."""
        if start >= stop:
            return np.empty((0, *self.row_shape), self.dtype)
        pieces = [
            self._map(number)[max(start - self._first(number), 0) : stop - self._first(number)]
            for number in self._between(start, stop)
            if self._rows_of(number)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def take(self, rows: npt.NDArray[np.int64], out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Return these rows, which are in range, in the order given."""
        if out is None:
            out = np.empty((len(rows), *self.row_shape), self.dtype)
        numbers = self._numbers(rows)
        for number in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == number)
            out[places] = self._map(number)[rows[places] - self._first(number)]
        return out

    def prefetch(self, start: int, stop: int) -> None:
        """Do nothing: the kernel's own read-ahead will do."""

    def release(self) -> None:
        """Unmap the files."""
        with self._lock:
            self._maps.clear()


def map_rows(
    *,
    rows: int,
    file_rows: int,
    row_shape: tuple[int, ...],
    dtype: np.dtype[Any],
    locate: Callable[[int], ShardFile],
    guard: Guard,
    first_row: int = 0,
    starts: npt.NDArray[np.int64] | None = None,
) -> JoinedRows | RowsPerFile:
    """Return the rows of many files, mapped as one array if possible.

    Parameters
    ----------
    rows, file_rows, row_shape, dtype, locate, guard, first_row, starts
        See `RowsInFiles`. No file is opened before its rows are read.

    Returns
    -------
    JoinedRows or RowsPerFile
        The former's ``read(0, rows)`` is the whole array without a copy.
    """
    arguments = (rows, file_rows, row_shape, dtype, locate, guard, first_row, starts)
    row_bytes = int(np.prod(row_shape)) * dtype.itemsize
    files = -(-rows // file_rows) if starts is None else len(starts) - 1
    ends = np.array([file_rows]) if starts is None else starts[1:-1]
    fits = files <= 1 or not (ends * row_bytes % mmap.PAGESIZE).any()
    # A quarter of the maps of a process: there are other arrays, and other libraries.
    if fits and files <= _max_maps() // 4:
        try:
            return JoinedRows(*arguments)
        except OSError:
            pass  # not enough address space, usually because of a limit on it (RLIMIT_AS)
    return RowsPerFile(*arguments)
