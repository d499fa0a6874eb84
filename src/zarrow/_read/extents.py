"""Extents — runs of rows of an array, each read through one object, and their checksums.

All committed rows are one extent, and so is each segment behind a gap and each run of live rows (`view`).
Plain rows are mapped (`mapping`), or read by ranges from a bucket (`ranged`), others decoded chunk by chunk
(`chunks`). `Extent.verify` compares chunks of plain bytes with the checksums in their segment's record, and
live rows with their frames. No file is opened before its rows are read.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrow._format import layout
from zarrow._format.array_spec import ArraySpec
from zarrow._format.checksum import crc32c
from zarrow._format.records import SegmentRecord
from zarrow._read.chunks import EncodedRows
from zarrow._read.mapping import JoinedRows, RowsPerFile, map_rows
from zarrow._read.ranged import RangedRows
from zarrow._read.shard_files import ShardFile
from zarrow._read.shard_rows import CommittedShard, StoredChunks, damaged_chunk, is_written
from zarrow._read.view import OpenPiece, View
from zarrow._storage.reading import Place
from zarrow.errors import CorruptionError

__all__ = ["Block", "Extent", "find_extents", "find_vectors"]

RowReader = JoinedRows | RowsPerFile | RangedRows | EncodedRows


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of rows of an array.

    Parameters
    ----------
    start, stop : int
        Rows `start` to `stop` of the array.
    rows : JoinedRows, RowsPerFile, RangedRows or EncodedRows
        Reads them, as its rows ``start + shift`` to ``stop + shift``.
    shift : int
        See `rows`.
    verify : callable of int and int
        Raises `CorruptionError` if chunks of these rows of the array are not what was written. Returns the
        rows if it had to read them, so that they are not read twice; else None.
    """

    start: int
    stop: int
    rows: RowReader
    shift: int
    verify: Callable[[int, int], npt.NDArray[Any] | None]


def find_extents(view: View, array: ArraySpec) -> tuple[Extent, ...]:
    """Return the extents of an array, in order.

    Parameters
    ----------
    view : View
        The rows.
    array : ArraySpec
        The array.

    Returns
    -------
    tuple of Extent
        They cover all rows of the view.
    """
    return tuple(_find(view, array))


def _find(view: View, array: ArraySpec) -> Iterator[Extent]:
    if view.snapshot.rows:
        yield _committed(view, array, range(view.snapshot.rows), 0, view.record)
    live = view.live_ranges()
    for record, rows in zip(view.behind_gap, live, strict=False):
        yield _committed(view, array, rows, record.segment, {record.segment: record}.__getitem__)
    for piece, rows in zip(view.open_pieces, live[len(view.behind_gap) :], strict=True):
        yield _open(view, array, rows, piece)


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of a ragged array whose vectors lie in one file.

    Parameters
    ----------
    start : int
        Their first row.
    first, stop : int
        Where the vectors of the file begin and end among those of all files.
    """

    start: int
    first: int
    stop: int


def find_vectors(view: View, array: ArraySpec) -> tuple[tuple[Extent, ...], tuple[Block, ...]]:
    """Return the vectors of a ragged array, file behind file, and which rows' they are.

    Vectors of a committed segment take whole chunks, so that files can be mapped one after the other: after
    the last vector of a segment, there may be some that are no row's.

    Returns
    -------
    extents : tuple of Extent
        Of vectors in place of rows, in order.
    blocks : tuple of Block
        The files, in order.
    """
    extents: list[Extent] = []
    blocks: list[Block] = []
    spec, manifest, position = view.spec, view.snapshot.manifest, 0

    def add(
        first_rows: Iterable[int],
        starts: npt.NDArray[np.int64],
        make: Callable[[npt.NDArray[np.int64], int], Extent],
    ) -> None:
        nonlocal position
        bounds = (starts + position).tolist()
        if starts[-1]:
            extents.append(make(starts, position))
        blocks.extend(map(Block, first_rows, bounds, bounds[1:]))
        position = bounds[-1]

    def committed(
        counts: Sequence[int], rows: range, first_segment: int, record_of: Callable[[int], SegmentRecord]
    ) -> None:
        chunks = -(-np.array(counts, np.int64) // array.chunk_rows)
        starts = np.concatenate(([0], np.cumsum(chunks * array.chunk_rows)))
        make = partial(_committed, view, array, rows, first_segment, record_of)
        add(rows[:: spec.segment_rows], starts, make)

    if view.snapshot.rows and manifest is not None:
        counts: Sequence[int] = manifest.vectors[array.name]
        committed(counts, range(view.snapshot.rows), 0, view.record)
    elif view.snapshot.rows:
        counts = [view.record(number).items(array) for number in range(view.snapshot.segments)]
        committed(counts, range(view.snapshot.rows), 0, view.record)
    live = view.live_ranges()
    for record, rows in zip(view.behind_gap, live, strict=False):
        committed([record.items(array)], rows, record.segment, {record.segment: record}.__getitem__)
    for piece, rows in zip(view.open_pieces, live[len(view.behind_gap) :], strict=True):
        vectors = sum(piece.rows.counts(spec.arrays.index(array)))
        add([rows.start], np.array([0, vectors]), partial(_open, view, array, rows, piece))
    return tuple(extents), tuple(blocks)


def _map(
    view: View,
    array: ArraySpec,
    count: int,
    locate: Callable[[int], ShardFile],
    first_row: int,
    root: Place,
    starts: npt.NDArray[np.int64] | None = None,
) -> JoinedRows | RowsPerFile | RangedRows:
    read_rows = map_rows if isinstance(root, Path) else RangedRows
    return read_rows(
        starts=starts,
        rows=count,
        file_rows=view.spec.segment_rows,
        row_shape=array.row_shape,
        dtype=array.numpy_dtype,
        locate=locate,
        guard=view.guard,
        first_row=first_row,
    )


# Committed rows


def _committed(
    view: View,
    array: ArraySpec,
    rows: range,
    first_segment: int,
    record_of: Callable[[int], SegmentRecord],
    starts: npt.NDArray[np.int64] | None = None,
    position: int = 0,
) -> Extent:
    """Return the extent of consecutive segments.

    Of a ragged array, that of their vectors: `starts` are where those of each begin, `position` where the
    first one's do among those of all extents.
    """
    span = range(rows.start, rows.stop) if starts is None else range(position, position + int(starts[-1]))
    bounds = np.arange(0, len(rows), view.spec.segment_rows) if starts is None else starts
    manifest = view.snapshot.manifest

    def locate(index: int) -> ShardFile:
        number = first_segment + index
        if manifest is not None:  # it saves reading the record
            size_bytes = manifest.shard_bytes[array.name][number]
        else:
            size_bytes = record_of(number).arrays[array.name].size_bytes
        file = view.last_files.get(array.name) if view.is_short_last(number) else None
        path = array.shard_path(number)
        return ShardFile(view.snapshot.root, path, size_bytes, file)

    def open_shard(index: int) -> CommittedShard:
        number = first_segment + index
        file = locate(index).open(view.guard, f"segment {number}")
        first_row = rows.start + index * view.spec.segment_rows
        return CommittedShard(file, array, view.spec.segment_rows, record_of(number), first_row)

    if not array.is_plain:
        encoded = EncodedRows(array, len(span), view.spec.segment_rows, open_shard, starts)
        return Extent(span.start, span.stop, encoded, -span.start, _verified_when_decoded)
    mapped = _map(view, array, len(span), locate, rows.start, view.snapshot.root, starts)

    def verify(low: int, high: int) -> npt.NDArray[Any] | None:
        chunk_rows, last = array.chunk_rows, len(span)
        low, high = low - span.start, high - span.start
        begin = low - low % chunk_rows
        whole = None
        if isinstance(mapped, RangedRows):
            whole = mapped.read(begin, min(high + -high % chunk_rows, last))
        for first in range(begin, high, chunk_rows):
            index = bisect.bisect_right(bounds, first) - 1
            record = record_of(first_segment + index)
            stop = min(first + chunk_rows, last)
            here = mapped.read(first, stop) if whole is None else whole[first - begin : stop - begin]
            data, number = here.reshape(-1).view(np.uint8), int(first - bounds[index]) // chunk_rows
            if not is_written(data, record.arrays[array.name].chunks_crc32c[number], array):
                raise damaged_chunk(locate(index).where, number, range(span.start + first, span.start + stop))
        return None if whole is None else whole[low - begin : high - begin]

    return Extent(span.start, span.stop, mapped, -span.start, verify)


def _verified_when_decoded(_start: int, _stop: int) -> None:
    """Do nothing: a chunk is compared with its checksum before it is decoded."""


# Live rows


def _open(
    view: View,
    array: ArraySpec,
    rows: range,
    piece: OpenPiece,
    starts: npt.NDArray[np.int64] | None = None,
    position: int = 0,
) -> Extent:
    """Return the extent of rows of an open segment.

    Of a ragged array, that of all its vectors: `starts` are 0 and their number, `position` where they begin
    among those of all extents.
    """
    index = view.spec.arrays.index(array)
    span, shift, size = rows, piece.start - rows.start, piece.stop
    if starts is not None:
        size = int(starts[-1])
        span, shift = range(position, position + size), -position
    if not array.is_plain:
        chunks = [chunk for frame in piece.rows.frames for chunk in frame.arrays[index].chunks]
        stored = StoredChunks(piece.files[array.name], array, chunks, piece.tails.get(array.name), -shift)
        encoded = EncodedRows(array, size, array.shard_rows(view.spec.segment_rows), lambda _: stored)
        return Extent(span.start, span.stop, encoded, shift, _verified_when_decoded)

    file = ShardFile(piece.rows.path, layout.rows_name(array.name), None, piece.files[array.name])
    # All rows of the open segment, so that whole frames can be checked.
    counts = piece.rows.counts(index)
    mapped = _map(view, array, sum(counts), lambda _: file, -shift, piece.rows.path, starts)

    def verify(start: int, stop: int) -> None:
        end = 0
        for frame, count in zip(piece.rows.frames, counts, strict=True):
            first, end = end, end + count
            if first < stop + shift and end > start + shift:
                data = mapped.read(first, end).reshape(-1).view(np.uint8)
                if crc32c(data) != frame.arrays[index].rows_crc32c:
                    raise CorruptionError(
                        f"rows {frame.first_row} to {frame.stop} of array {array.name!r} "
                        "in this open segment are not what was written",
                        path=piece.rows.path,
                    )

    return Extent(span.start, span.stop, mapped, shift, verify)
