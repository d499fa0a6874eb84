"""Sealing — an open segment becomes a committed one, in steps that recovery can finish.

1. the files of the open segment become shards, in place, and durable;
2. a claim takes the next segment number and names the rows of the open segments that it stands for;
3. the shards are linked into the Zarr arrays, the Parquet part is written to the open segment and renamed
   into the table, and their directories are synced;
4. the commit record is linked: the rows are visible;
5. the Zarr shapes grow, the open segments are removed, then the claim.

A crash before 2 leaves an open segment that is full; after 2, a claim that recovery finishes from the open
segments, which are untouched until 5; after 4, leftovers. Every step may be repeated.

A claim may also stand for pieces of several open segments: these are copied together first (`commit_copy`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from zarrow._format import layout
from zarrow._format.array_spec import ArraySpec
from zarrow._format.parts import to_table
from zarrow._format.records import Claim, SegmentRecord, ShardFacts, Source
from zarrow._format.spec import StoreSpec
from zarrow._read.open_rows import OpenRows
from zarrow._storage import files
from zarrow._storage.lock import FileLock
from zarrow._write import parts, publishing
from zarrow._write.directory import require_in_place
from zarrow._write.open_segment import OpenSegment, discard
from zarrow._write.shards import Shard, open_shard

__all__ = ["Dead", "commit_claim", "commit_copy", "copy_pieces", "release", "seal"]


def seal(
    root: Path, spec: StoreSpec, segment: OpenSegment, known: int = 0, lock: FileLock | None = None
) -> int:
    """Commit an open segment of this process: visible and durable on return.

    Parameters
    ----------
    root : Path
        The store.
    spec : StoreSpec
        The store's spec.
    segment : OpenSegment
        Full, or the last of the store. It is closed and removed.
    known : int
        Number of segments, from the first on, that are known to be committed.
    lock : FileLock, optional
        The store's, held: what lies at the path of a writer that has worked for a while may be another store.

    Returns
    -------
    int
        That number now.
    """
    shards = segment.seal_shards()
    if lock is not None:
        require_in_place(lock)
    source = segment.owner.source(segment.slot, 0, segment.rows)
    claim = publishing.claim(root, [source], segment.path.parent, known)
    dense = commit_claim(root, spec, claim, segment.path, shards, segment.batches(), known, lock)
    segment.close()
    discard(segment.path)
    publishing.release_claim(root, claim)
    return dense


def commit_claim(
    root: Path,
    spec: StoreSpec,
    claim: Claim,
    directory: Path,
    shards: dict[str, ShardFacts],
    batches: Sequence[pa.RecordBatch],
    known: int = 0,
    lock: FileLock | None = None,
) -> int:
    """Put a claimed segment's files into place and publish its record (steps 3 to 5a)."""
    for array in spec.arrays:
        if shards[array.name].size_bytes:
            _place_shard(root, array, claim.segment, directory / layout.rows_name(array.name))
    part = directory / layout.PART
    files.remove(part)  # a crash may have left one
    table = to_table(spec, batches, claim.segment * spec.segment_rows)
    assert table.num_rows == claim.rows
    facts = parts.write_part(part, spec, table)
    files.rename(part, root / layout.part_path(claim.segment))
    files.sync_dir(root / layout.TABLE_DIR)
    record = SegmentRecord(
        segment=claim.segment, rows=claim.rows, arrays=shards, part=facts, sources=claim.sources
    )
    if lock is not None:
        require_in_place(lock)
    publishing.commit(root, record, root / layout.OPEN_DIR)
    return publishing.publish_shape(root, spec, root / layout.OPEN_DIR, known=known)


def _place_shard(root: Path, array: ArraySpec, segment: int, source: Path) -> None:
    target = root / array.shard_path(segment)
    # Also if they exist: the writer that created them may have died before it synced them.
    for parent in reversed(target.parents[: array.shard_ndim]):
        files.make_dir(parent, exist_ok=True)
        files.sync_dir(parent.parent)
    try:
        files.link(source, target)
    except FileExistsError:
        if not os.path.samestat(target.lstat(), source.lstat()):
            # Left by a segment that was withdrawn or never committed: this claim owns the number.
            files.remove(target)
            files.link(source, target)
    files.sync_dir(target.parent)


def commit_copy(root: Path, spec: StoreSpec, claim: Claim, found: dict[str, OpenRows]) -> None:
    """Copy the pieces of open segments that a claim stands for together, and commit them."""
    with copy_pieces(root, spec, claim.sources, found) as (scratch, shards, batches):
        commit_claim(root, spec, claim, scratch, shards, batches)


@contextlib.contextmanager
def copy_pieces(
    root: Path, spec: StoreSpec, sources: Sequence[Source], found: dict[str, OpenRows]
) -> Iterator[tuple[Path, dict[str, ShardFacts], list[pa.RecordBatch]]]:
    """Copy pieces of open segments together; yield the directory of the shards, their facts, the batches."""
    scratch = files.scratch_name(root / layout.OPEN_DIR)
    files.make_dir(scratch)
    shards = {}
    ragged_of = {extents: ragged for ragged, extents in spec.extent_places.items()}
    for index, array in enumerate(spec.arrays):
        shard = open_shard(scratch, array, spec.segment_rows, create=True)
        ragged, vectors = ragged_of.get(index), 0
        try:
            for source in sources:
                rows_of = found[source.slot]
                shift = 0
                if ragged is not None:
                    first, last = (rows_of.items(spec, ragged, row) for row in (source.start, source.stop))
                    shift = vectors - first
                    vectors += last - first
                for rows in rows_of.vectors(spec, index, source.start, source.stop):
                    shard.append(np.ascontiguousarray(np.add(rows, (shift, 0)) if shift else rows))
            shards[array.name] = _sealed(shard, sum(source.rows for source in sources))
        finally:
            shard.close()
    batches = [
        batch for source in sources for batch in found[source.slot].batches(spec, source.start, source.stop)
    ]
    yield scratch, shards, batches
    files.remove_tree(scratch)


def _sealed(shard: Shard, rows: int) -> ShardFacts:
    if rows:
        return shard.seal()
    vectors = 0 if shard.array.is_ragged else None
    return ShardFacts(size_bytes=0, chunks_crc32c=(), index_crc32c=0, vectors=vectors)


@dataclass(slots=True)
class Dead:
    """An open segment without a writer, its lock, which is held, and where its uncommitted rows start."""

    rows: OpenRows
    lock: FileLock
    start: int = 0


def release(dead: Iterable[Dead]) -> None:
    """Release the locks of open segments."""
    for one in dead:
        one.lock.release()
