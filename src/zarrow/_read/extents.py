"""Extents — runs of rows of an array, each read through one object, and their checksums.

All committed rows are one extent, and so is each segment behind a gap and each run of live rows (`view`).
Plain rows are mapped (`mapping`), or read by ranges from a bucket (`ranged`), others decoded chunk by chunk
(`chunks`). `Extent.verify` compares chunks of plain bytes with the checksums in their segment's record, and
live rows with their frames. No file is opened before its rows are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrow._format import layout
from zarrow._format.checksum import crc32c
from zarrow._format.records import SegmentRecord
from zarrow._format.spec import ArraySpec
from zarrow._read.chunks import EncodedRows
from zarrow._read.mapping import JoinedRows, RowsPerFile, map_rows
from zarrow._read.ranged import RangedRows
from zarrow._read.shard_files import ShardFile
from zarrow._read.shard_rows import CommittedShard, StoredChunks, damaged_chunk, is_written
from zarrow._read.view import OpenPiece, View
from zarrow._storage.reading import Place
from zarrow.errors import CorruptionError

__all__ = ["Extent", "find_extents"]

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


def _map(
    view: View, array: ArraySpec, count: int, locate: Callable[[int], ShardFile], first_row: int, root: Place
) -> JoinedRows | RowsPerFile | RangedRows:
    read_rows = map_rows if isinstance(root, Path) else RangedRows
    return read_rows(
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
) -> Extent:
    """Return the extent of consecutive segments."""
    manifest = view.snapshot.manifest

    def locate(index: int) -> ShardFile:
        number = first_segment + index
        if manifest is not None:  # it saves reading the record
            size_bytes = manifest.shard_bytes[array.name][number]
        else:
            size_bytes = record_of(number).arrays[array.name].size_bytes
        file = view.last_files.get(array.name) if view.is_short_last(number) else None
        path = layout.shard_path(array.name, number, len(array.row_shape))
        return ShardFile(view.snapshot.root, path, size_bytes, file)

    def open_shard(index: int) -> CommittedShard:
        number = first_segment + index
        file = locate(index).open(view.guard, f"segment {number}")
        first_row = rows.start + index * view.spec.segment_rows
        return CommittedShard(file, array, view.spec.segment_rows, record_of(number), first_row)

    if not array.is_plain:
        encoded = EncodedRows(array, len(rows), view.spec.segment_rows, open_shard)
        return Extent(rows.start, rows.stop, encoded, -rows.start, _verified_when_decoded)
    mapped = _map(view, array, len(rows), locate, rows.start, view.snapshot.root)

    def verify(low: int, high: int) -> npt.NDArray[Any] | None:
        chunk_rows, last = array.chunk_rows, len(rows)
        low, high = low - rows.start, high - rows.start
        begin = low - low % chunk_rows
        whole = None
        if isinstance(mapped, RangedRows):
            whole = mapped.read(begin, min(high + -high % chunk_rows, last))
        for first in range(begin, high, chunk_rows):
            index, within = divmod(first, view.spec.segment_rows)
            record = record_of(first_segment + index)
            stop = min(first + chunk_rows, last)
            here = mapped.read(first, stop) if whole is None else whole[first - begin : stop - begin]
            data, number = here.reshape(-1).view(np.uint8), within // chunk_rows
            if not is_written(data, record.arrays[array.name].chunks_crc32c[number], array):
                raise damaged_chunk(locate(index).where, number, range(rows.start + first, rows.start + stop))
        return None if whole is None else whole[low - begin : high - begin]

    return Extent(rows.start, rows.stop, mapped, -rows.start, verify)


def _verified_when_decoded(_start: int, _stop: int) -> None:
    """Do nothing: a chunk is compared with its checksum before it is decoded."""


# Live rows


def _open(view: View, array: ArraySpec, rows: range, piece: OpenPiece) -> Extent:
    """Return the extent of rows of an open segment."""
    shift = piece.start - rows.start
    index = view.spec.arrays.index(array)
    if not array.is_plain:
        chunks = [chunk for frame in piece.rows.frames for chunk in frame.arrays[index].chunks]
        stored = StoredChunks(piece.files[array.name], array, chunks, piece.tails.get(array.name), -shift)
        encoded = EncodedRows(array, piece.stop, view.spec.segment_rows, lambda _: stored)
        return Extent(rows.start, rows.stop, encoded, shift, _verified_when_decoded)

    file = ShardFile(piece.rows.path, layout.rows_name(array.name), None, piece.files[array.name])
    # All rows of the open segment, so that whole frames can be checked.
    mapped = _map(view, array, piece.rows.rows, lambda _: file, -shift, piece.rows.path)

    def verify(start: int, stop: int) -> None:
        for frame in piece.rows.frames:
            if frame.first_row < stop + shift and frame.stop > start + shift:
                data = mapped.read(frame.first_row, frame.stop).reshape(-1).view(np.uint8)
                if crc32c(data) != frame.arrays[index].rows_crc32c:
                    raise CorruptionError(
                        f"rows {frame.first_row} to {frame.stop} of array {array.name!r} "
                        "in this open segment are not what was written",
                        path=piece.rows.path,
                    )

    return Extent(rows.start, rows.stop, mapped, shift, verify)
