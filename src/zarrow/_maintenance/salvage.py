"""Salvage — the rows of a damaged segment or open segment that can still be read and checked.

A row is sound if its table columns and its bytes in every array are those that checksums vouch for: in a
committed segment those of the record (the part, and each chunk), in an open one those of the frames.
`Salvage` tells which rows are, and yields them as a writer appends them. Nothing is changed.

Of an open segment without encoded arrays, frames behind a damaged one count, too; where encoded chunks lie is
only known from the frames before.

Memory: the narrow columns of the segment, and a chunk of each array.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format import frames, layout
from zarrow._format.array_spec import ArraySpec
from zarrow._format.layout import SAMPLE_INDEX
from zarrow._format.parts import to_wire
from zarrow._format.records import SegmentRecord
from zarrow._format.spec import StoreSpec
from zarrow._maintenance.audit_segment import open_part
from zarrow._read.shard_rows import CommittedShard, StoredChunks
from zarrow._storage.reading import Beneath, File
from zarrow._write.batches import CheckedBatch, as_appended
from zarrow.errors import CorruptionError, ZarrowError

__all__ = ["Salvage", "in_open_segments", "of_open_segment", "of_segment"]

_STEP_ROWS = 4096
_Mask = npt.NDArray[np.bool_]
_Read = Callable[[int, int], npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Salvage:
    """The rows of a segment or open segment, and which of them are sound.

    Parameters
    ----------
    sound : bool array, shape (rows,)
        Which rows can be read and checked.
    sample_index : int64 array, shape (rows,)
        Of all rows whose table columns are sound, −1 where there is none or it is unknown.
    """

    sound: _Mask
    sample_index: npt.NDArray[np.int64]
    _spec: StoreSpec
    _tables: Sequence[tuple[int, pa.RecordBatch]]
    _reads: Sequence[_Read]

    @property
    def rows(self) -> int:
        """The number of sound rows."""
        return int(np.count_nonzero(self.sound))

    @property
    def table_is_sound(self) -> bool:
        """Whether the table columns of all rows are."""
        return bool(sum(batch.num_rows for _, batch in self._tables) == len(self.sound))

    def lost_samples(self, start: int = 0) -> tuple[int, ...]:
        """Return the known ``sample_index`` values of the rows from `start` on that are not sound."""
        values = self.sample_index[start:][~self.sound[start:]]
        return tuple(sorted(set(values[values >= 0].tolist())))

    def batches(self, start: int = 0) -> Iterator[CheckedBatch]:
        """Yield the sound rows from `start` on."""
        chunks = [array.chunk_rows for array in self._spec.arrays if not array.is_ragged]
        step = min([*chunks, _STEP_ROWS])
        for first, batch in self._tables:
            for low, high in _runs(self.sound, max(first, start), first + batch.num_rows, step):
                table = pa.Table.from_batches([batch]).slice(low - first, high - low).combine_chunks()
                arrays = as_appended(self._spec, [read(low, high) for read in self._reads])
                columns = tuple(table.to_batches()[0].columns)
                yield CheckedBatch(high - low, columns, self._spec.wire_schema, arrays)


def _runs(sound: _Mask, start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Yield the runs of sound rows from `start` to `stop`, cut at multiples of `step`.

    >>> list(_runs(np.array([True, True, False, True, True]), 1, 5, 4))
    [(1, 2), (3, 4), (4, 5)]
    """
    low = start
    while low < stop:
        high = low
        while high < stop and sound[high] and (high == low or high % step):
            high += 1
        if high > low:
            yield low, high
        low = max(high, low + 1)


def of_segment(files: Beneath, spec: StoreSpec, record: SegmentRecord) -> Salvage:
    """Return what is left of a committed segment, whose record is sound."""
    sound = np.ones(record.rows, np.bool_)
    tables: list[tuple[int, pa.RecordBatch]] = []
    path = layout.part_path(record.segment)
    try:
        with files.open(path) as file, open_part(file, spec, record), file.stream() as stream:
            table = to_wire(spec, stream, file.read, path)
        tables = [(0, batch) for batch in table.to_batches()]
    except (ZarrowError, FileNotFoundError):
        sound[:] = False
    reads: dict[int, _Read] = {}
    for index in _extents_first(spec):
        array = spec.arrays[index]
        path = array.shard_path(record.segment)
        checksums = record.arrays[array.name].chunks_crc32c
        pieces = [(n * array.chunk_rows, array.chunk_rows, crc) for n, crc in enumerate(checksums)]

        def stored(file: File, array: ArraySpec = array) -> StoredChunks:
            return CommittedShard(file, array, spec.segment_rows, record)

        if array.is_ragged:
            extents = reads[spec.extent_places[index]]
            vectors = np.ones(record.items(array), np.bool_)
            reads[index] = _ragged(
                extents, sound, vectors, _array(files, path, array, vectors, pieces, stored)
            )
        else:
            reads[index] = _array(files, path, array, sound, pieces, stored)
    return _salvage(spec, sound, tables, [reads[index] for index in sorted(reads)])


def _extents_first(spec: StoreSpec) -> list[int]:
    """Return the places of the arrays, those of ragged ones last."""
    return sorted(range(len(spec.arrays)), key=lambda index: spec.arrays[index].is_ragged)


def in_open_segments(record: SegmentRecord, rows: Mapping[str, int]) -> _Mask:
    """Tell which rows of a segment are in open segments, too, of so many rows: they count without its record.

    A writer was about to remove these, or the store was copied while it was written.
    """
    found, start = np.zeros(record.rows, np.bool_), 0
    for source in record.sources:
        found[start : start + max(0, min(source.stop, rows.get(source.slot, 0)) - source.start)] = True
        start += source.rows
    return found


def of_open_segment(files: Beneath, spec: StoreSpec, slot: str) -> Salvage:
    """Return what is left of an open segment."""
    found: Sequence[frames.Frame] = ()
    sound = np.zeros(0, np.bool_)
    tables = []
    path = f"{layout.slot_dir(slot)}/{layout.FRAMES}"
    with contextlib.suppress(FileNotFoundError, CorruptionError), files.open(path) as file:
        scan = frames.scan_prefix if any(not array.is_plain for array in spec.arrays) else frames.scan_sound
        found = scan(file.journal(), bytes.fromhex(spec.uuid), len(spec.arrays), spec.segment_rows).frames
        sound = np.zeros(max((frame.stop for frame in found), default=0), np.bool_)
        for frame in found:
            with contextlib.suppress(CorruptionError):
                if frame.rows:
                    tables.append((frame.first_row, frames.parse_payload(frame, spec.wire_schema)))
                    sound[frame.first_row : frame.stop] = True
    reads: dict[int, _Read] = {}
    for index in _extents_first(spec):
        array = spec.arrays[index]
        pieces = [(frame.first_row, frame.rows, frame.arrays[index].rows_crc32c) for frame in found]
        vectors = sound
        if array.is_ragged:
            extents = reads[spec.extent_places[index]]
            pieces = [
                (int(rows[0, 0]), int(rows[:, 1].sum()), frame.arrays[index].rows_crc32c)
                for frame in found
                if frame.rows and sound[frame.first_row : frame.stop].all()
                for rows in (extents(frame.first_row, frame.stop),)
                if _is_run(rows, array.shard_rows(spec.segment_rows))
            ]
            vectors = np.ones(max((first + count for first, count, _ in pieces), default=0), np.bool_)

        def stored(
            file: File, array: ArraySpec = array, index: int = index, rows: int = len(vectors)
        ) -> StoredChunks:
            chunks = [chunk for frame in found for chunk in frame.arrays[index].chunks]
            used = rows - len(chunks) * array.chunk_rows
            return StoredChunks(file, array, chunks, _tail(files, array, slot, found[-1].arrays[index], used))

        path = f"{layout.slot_dir(slot)}/{layout.rows_name(array.name)}"
        read = _array(files, path, array, vectors, pieces, stored)
        reads[index] = _ragged(extents, sound, vectors, read) if array.is_ragged else read
    return _salvage(spec, sound, tables, [reads[index] for index in sorted(reads)])


def _is_run(extents: npt.NDArray[Any], most: int) -> bool:
    """Tell whether rows of a ragged array lie one behind the other, where a segment may have vectors."""
    ends = extents.sum(axis=1)
    return bool(
        (extents >= 0).all()
        and (extents <= most).all()
        and (ends <= most).all()
        and np.array_equal(extents[1:, 0], ends[:-1])
    )


def _ragged(extents: _Read, sound: _Mask, vectors: _Mask, read: _Read) -> _Read:
    """Note which rows of a ragged array have a vector that is not sound, and return what reads the others."""
    bad = np.concatenate(([0], np.cumsum(~vectors)))
    end = -1
    for row in np.flatnonzero(sound).tolist():
        offset, count = extents(row, row + 1)[0].tolist()
        runs = 0 <= offset <= offset + count < len(bad) and (not sound[row - 1] or not row or offset == end)
        sound[row] = runs and bad[offset + count] == bad[offset]
        end = offset + count

    def read_rows(start: int, stop: int) -> npt.NDArray[Any]:
        rows = extents(start, stop)
        return read(int(rows[0, 0]), int(rows[-1].sum()))

    return read_rows


def _tail(
    files: Beneath, array: ArraySpec, slot: str, entry: frames.ArrayEntry, used: int
) -> npt.NDArray[Any] | None:
    """Return the rows of the unfinished chunk; None if they are not what was written."""
    if not 0 < used < array.chunk_rows or entry.tail_side not in (0, 1):
        return None
    path = f"{layout.slot_dir(slot)}/{layout.tail_name(array.name, entry.tail_side)}"
    with contextlib.suppress(FileNotFoundError, CorruptionError), files.open(path) as file:
        if file.holds(0, used * array.row_bytes, entry.tail_crc32c):
            data = np.frombuffer(file.read(0, used * array.row_bytes), array.numpy_dtype)
            return data.reshape(used, *array.row_shape)
    return None


def _array(
    files: Beneath,
    path: str,
    array: ArraySpec,
    sound: _Mask,
    pieces: Iterable[tuple[int, int, int]],
    stored: Callable[[File], StoredChunks],
) -> _Read:
    """Note which rows of an array are not sound, and return a function that reads the others.

    Parameters
    ----------
    sound : bool array, shape (rows,)
        Rows that are not sound become False.
    pieces : iterable of (int, int, int)
        Of a plain array the first row, the number of rows and the crc32c of every piece.
    stored : callable of File to StoredChunks
        The chunks of any other array.
    """
    good = np.zeros_like(sound)
    chunk_rows = array.chunk_rows

    @lru_cache(maxsize=1)
    def decode(number: int) -> npt.NDArray[Any]:
        with files.open(path) as file:
            return stored(file).decode(number)

    with contextlib.suppress(FileNotFoundError, ZarrowError), files.open(path) as file:
        if array.is_plain:
            for first, rows, checksum in pieces:
                whole = file.holds(first * array.row_bytes, rows * array.row_bytes, checksum)
                good[first : first + rows] = whole
        else:
            for number in range(-(-len(sound) // chunk_rows)):
                with contextlib.suppress(ZarrowError, IndexError):
                    decode(number)
                    good[number * chunk_rows : (number + 1) * chunk_rows] = True
    sound &= good

    def read(start: int, stop: int) -> npt.NDArray[Any]:
        if not array.is_plain:
            pieces = [
                decode(number)[max(start - number * chunk_rows, 0) : stop - number * chunk_rows]
                for number in range(start // chunk_rows, -(-stop // chunk_rows))
            ]
            return np.concatenate([np.empty((0, *array.row_shape), array.numpy_dtype), *pieces])
        with files.open(path) as file:
            data = file.read(start * array.row_bytes, (stop - start) * array.row_bytes)
        return np.frombuffer(data, array.numpy_dtype).reshape(-1, *array.row_shape)

    return read


def _salvage(
    spec: StoreSpec, sound: _Mask, tables: Sequence[tuple[int, pa.RecordBatch]], reads: Sequence[_Read]
) -> Salvage:
    samples = np.full(len(sound), -1, np.int64)
    for first, batch in tables:
        values = batch.column(SAMPLE_INDEX).fill_null(-1)
        samples[first : first + batch.num_rows] = values.to_numpy(zero_copy_only=False)
    return Salvage(sound, samples, spec, tables, reads)
