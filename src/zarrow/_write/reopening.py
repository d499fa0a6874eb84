"""Reopening — a committed segment becomes an open one again.

This lets rows be appended after a short last segment, and moves the rows of a segment to the number of a
damaged one (`recovery`). The segment is copied aside as an open segment, checked, made durable, and only then
withdrawn.

A crash in between leaves either the segment or the open segment in force, never both: the open one names the
record whose rows it has, and counts only once that is gone.

Both functions assume that the store's lock is held exclusively: no other writer is alive.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrow._format import layout
from zarrow._format.array_spec import ArraySpec, rows_of
from zarrow._format.records import Owner, SegmentRecord
from zarrow._format.spec import StoreSpec
from zarrow._read import catalog, shard_rows
from zarrow._read.open_rows import read
from zarrow._read.part_files import committed_table
from zarrow._storage import files, reading
from zarrow._storage.reading import Place
from zarrow._write import publishing
from zarrow._write.batches import CheckedBatch, as_appended
from zarrow._write.directory import in_own_session
from zarrow._write.open_segment import OpenSegment
from zarrow._write.seal import Dead

__all__ = ["committed_batches", "enter_again", "remove_segment_files", "reopen", "segment_files"]

_STEP_ROWS, _STEP_BYTES = 4096, 16 << 20


def reopen(root: Path, spec: StoreSpec, owner: Owner) -> Dead | None:
    """Make a store incomplete again, so that rows can be appended; a short last segment becomes an open one.

    Parameters
    ----------
    root : Path
        The store, recovered, with its lock held exclusively.
    spec : StoreSpec
        Its spec.
    owner : Owner
        The writer that will append.

    Returns
    -------
    Dead or None
        The open segment, its lock held; None if the last segment is full.
    """
    if not _last_is_short(root, spec):
        publishing.withdraw_manifest(root)
        return None
    return enter_again(root, spec, owner, catalog.dense_segments(root) - 1)


def _last_is_short(root: Path, spec: StoreSpec) -> bool:
    segments = catalog.dense_segments(root)
    return bool(segments) and catalog.read_record(root, segments - 1, spec)[0].rows < spec.segment_rows


def enter_again(root: Path, spec: StoreSpec, owner: Owner, number: int) -> Dead:
    """Make the segment of the last record an open one, in a session of its own, since no rows follow it."""
    record, checksum = catalog.read_record(root, number, spec)
    lowest = min(number, catalog.dense_segments(root))  # a repair may have left a gap
    owner = in_own_session(owner, from_segment=lowest, reopens=(number, checksum))
    segment = OpenSegment.build(files.scratch_name(root / layout.OPEN_DIR), spec, owner)
    try:
        for batch in committed_batches(root, spec, record):
            segment.append([batch])
        segment.enter(root)
        publishing.withdraw_manifest(root)
        publishing.uncommit(root, spec, number, root / layout.OPEN_DIR)
        remove_segment_files(root, spec, number)
        found = read(segment.path, spec)
        assert found is not None
        assert found.rows == record.rows
        return Dead(found, segment.let_go())
    except BaseException:
        segment.close()
        raise


def remove_segment_files(root: Path, spec: StoreSpec, number: int) -> None:
    """Remove shards and part of a segment that was withdrawn.

    Repeated after a crash: every Parquet reader would take a part that stays for rows.
    """
    for path in segment_files(root, spec, number):
        files.remove(path)


def segment_files(root: Path, spec: StoreSpec, number: int) -> Iterator[Path]:
    """Yield the shards and the part of a segment, whether they exist or not."""
    for array in spec.arrays:
        shard = array.shard_path(number)
        reading.require_own_dirs(root, shard)
        yield root / shard
    yield root / layout.part_path(number)


def committed_batches(root: Place, spec: StoreSpec, record: SegmentRecord) -> Iterator[CheckedBatch]:
    """Yield a committed segment's rows as they were appended, checked against its record."""
    table = committed_table(root, spec, record)
    blocks = [
        _Blocks(array, shard_rows.committed_rows(root, array, spec.segment_rows, record))
        for array in spec.arrays
    ]
    fixed = [place for place, array in enumerate(spec.arrays) if not array.is_ragged]
    step = min(spec.segment_rows, _STEP_ROWS, *(spec.arrays[place].chunk_rows for place in fixed))
    for array in spec.ragged:
        step = min(step, rows_of(_STEP_BYTES, record.items(array) * array.row_bytes // max(record.rows, 1)))
    for start in range(0, record.rows, step):
        rows = table.slice(start, step).combine_chunks().to_batches()[0]
        arrays = {place: blocks[place].take(rows.num_rows) for place in fixed}
        for ragged, extents in spec.extent_places.items():
            arrays[ragged] = blocks[ragged].take(int(arrays[extents][:, 1].sum()))
        given = as_appended(spec, [arrays[place] for place in range(len(blocks))])
        yield CheckedBatch(rows.num_rows, tuple(rows.columns), spec.wire_schema, given)


class _Blocks:
    """Rows that come in blocks, taken in other numbers."""

    def __init__(self, array: ArraySpec, blocks: Iterator[npt.NDArray[Any]]) -> None:
        self._blocks = blocks
        self._rest = np.empty((0, *array.row_shape), array.numpy_dtype)

    def take(self, rows: int) -> npt.NDArray[Any]:
        """Return the next rows."""
        pieces, missing = [self._rest], rows - len(self._rest)
        while missing > 0:
            pieces.append(next(self._blocks))
            missing -= len(pieces[-1])
        found = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        self._rest = found[rows:]
        return found[:rows]
