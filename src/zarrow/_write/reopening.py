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
from zarrow._format.records import Owner, SegmentRecord
from zarrow._format.spec import StoreSpec
from zarrow._read import catalog, shard_rows
from zarrow._read.open_rows import read
from zarrow._read.part_files import committed_table
from zarrow._storage import files, reading
from zarrow._write import publishing
from zarrow._write.batches import CheckedBatch
from zarrow._write.directory import in_own_session
from zarrow._write.open_segment import OpenSegment
from zarrow._write.seal import Dead

__all__ = ["enter_again", "remove_segment_files", "reopen", "segment_files"]


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
        for batch in _committed_batches(root, spec, record):
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
        shard = layout.shard_path(array.name, number, len(array.row_shape))
        reading.require_own_dirs(root, shard)
        yield root / shard
    yield root / layout.part_path(number)


def _committed_batches(root: Path, spec: StoreSpec, record: SegmentRecord) -> Iterator[CheckedBatch]:
    """Yield a committed segment's rows as they were appended, checked against its record."""
    table = committed_table(root, spec, record)
    blocks = [shard_rows.committed_rows(root, array, spec.segment_rows, record) for array in spec.arrays]
    step = min((array.chunk_rows for array in spec.arrays), default=spec.segment_rows)
    readers = [_rechunk(block, step) for block in blocks]
    for start in range(0, record.rows, step):
        rows = table.slice(start, step).combine_chunks().to_batches()[0]
        arrays = tuple(np.ascontiguousarray(next(reader)) for reader in readers)
        yield CheckedBatch(rows.num_rows, tuple(rows.columns), spec.wire_schema, arrays)


def _rechunk(blocks: Iterator[npt.NDArray[Any]], step: int) -> Iterator[npt.NDArray[Any]]:
    for block in blocks:
        for start in range(0, len(block), step):
            yield block[start : start + step]
