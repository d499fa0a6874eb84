"""How do open segments become committed ones, whatever dies on the way?

Sealing one segment (`seal`):

1. the open segment's files are made shards, in place, and durable;
2. a claim takes the next segment number and says which rows of which open segments it stands for;
3. the shards are linked into the Zarr arrays, the Parquet part is written beside and renamed into the
   table, and their directories are synced;
4. the commit record is linked: the rows are visible;
5. the Zarr shapes grow, the open segments are removed, then the claim.

A crash before 2 leaves an open segment that is full; after 2, a claim that `recover` finishes from the
open segments, which are untouched until 5; after 4, leftovers. Every step may be done twice.

The records are dense from then on, but for the numbers of damaged segments that `repair` put aside: the
rows of the last segments are entered anew into these (`_close_gaps`).

`finalize` seals the one unfilled open segment as it is, or packs several into dense ones, by the same
steps, and publishes the manifest. `reopen` is the way back: the last, short segment becomes an open one
again, so that more rows can be appended behind it.

All but `seal` assume that the store's lock is held exclusively: no other writer is alive.

Place: tier 3, used by `writer`; orders what `_catalog`, `_parts` and `_open_segment` do.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow import _catalog, _files, _parts, _shards, layout
from zarrow._batches import Batch
from zarrow._checksum import crc32c
from zarrow._codecs import ChunkCodec
from zarrow._open_segment import OpenRows, OpenSegment, discard, open_shard, read, slots
from zarrow._quarantine import put_aside
from zarrow._records import Claim, Manifest, Owner, SegmentRecord, ShardFacts, Source
from zarrow.errors import CorruptionError, StoreLockedError
from zarrow.layout import StoreSpec

__all__ = ["Dead", "finalize", "recover", "release", "reopen", "seal"]


def seal(root: Path, spec: StoreSpec, segment: OpenSegment, known: int = 0) -> int:
    """Commit an open segment of this process: visible and durable on return.

    Parameters
    ----------
    root : Path
        The store.
    spec : StoreSpec
        What the store is.
    segment : OpenSegment
        Full, or the last of the store. It is closed and removed.
    known : int
        So many segments, from the first on, are known to be committed.

    Returns
    -------
    int
        How many are now.
    """
    shards = segment.seal_shards()
    source = Source(slot=segment.slot, start=0, stop=segment.rows)
    claim = _catalog.claim(root, [source], segment.path.parent, known)
    dense = _commit(root, spec, claim, segment.path, shards, segment.batches(), known)
    segment.close()
    discard(segment.path)
    _catalog.release_claim(root, claim)
    return dense


def _commit(
    root: Path,
    spec: StoreSpec,
    claim: Claim,
    directory: Path,
    shards: dict[str, ShardFacts],
    batches: Sequence[pa.RecordBatch],
    known: int = 0,
) -> int:
    """Put a claimed segment's files into place and publish its record (steps 3 to 5a)."""
    for array in spec.arrays:
        if shards[array.name].size_bytes:
            _place_shard(root, array, claim.segment, directory / layout.rows_name(array.name))
    part = directory / layout.PART
    _files.remove(part)  # a crash may have left one
    table = _parts.to_table(spec, batches, claim.segment * spec.segment_rows)
    assert table.num_rows == claim.rows
    facts = _parts.write_part(part, spec, table)
    _files.rename(part, root / layout.part_path(claim.segment))
    _files.sync_dir(root / layout.TABLE_DIR)
    record = SegmentRecord(
        segment=claim.segment, rows=claim.rows, arrays=shards, part=facts, sources=claim.sources
    )
    _catalog.commit(root, record, root / layout.OPEN_DIR)
    return _catalog.publish_shape(root, spec, root / layout.OPEN_DIR, known=known)


def _place_shard(root: Path, array: layout.ArraySpec, segment: int, source: Path) -> None:
    target = root / layout.shard_path(array.name, segment, len(array.row_shape))
    # Also where they are there already: who made them may have died before it synced them.
    for parent in reversed(target.parents[: len(array.row_shape)]):
        _files.make_dir(parent, exist_ok=True)
        _files.sync_dir(parent.parent)
    try:
        _files.link(source, target)
    except FileExistsError:
        if not os.path.samestat(target.lstat(), source.lstat()):
            # Left behind by a segment that was taken back or never committed: the number is ours.
            _files.remove(target)
            _files.link(source, target)
    _files.sync_dir(target.parent)


# Recovery


@dataclass(slots=True)
class Dead:
    """An open segment without a writer, its lock, which we hold, and where its uncommitted rows start."""

    rows: OpenRows
    lock: _files.FileLock
    start: int = 0


def recover(root: Path, spec: StoreSpec, owner: Owner) -> list[Dead]:
    """Finish what dead writers began.

    Parameters
    ----------
    root : Path
        The store, whose lock is held exclusively.
    spec : StoreSpec
        What it is.
    owner : Owner
        Who does it.

    Returns
    -------
    list
        The open segments that are neither full nor empty, oldest first; each with its lock, held.

    Raises
    ------
    CorruptionError
        If rows that were durable are damaged.
    """
    # What the dead did last may not be on the disk. If we built on a record, or on the removal of an open
    # segment, that a power cut then takes back, its rows would be lost, or count twice.
    _files.sync_dir(root / layout.SEGMENTS_DIR)
    _files.sync_dir(root / layout.OPEN_DIR)
    for path in (root / layout.OPEN_DIR).glob(f"{layout.SCRATCH_PREFIX}*"):
        _remove_any(path)
    dead = _lock_all(root, spec, owner)
    try:
        _drop_after_gap(dead, spec)
        for claim in _catalog.read_claims(root):
            if not _catalog.has_record(root, claim.segment):
                _finish(root, spec, claim, dead)
        _clean_claims(root, spec, dead)
        if any(one.start for one in dead.values()):
            _pack(root, spec, dead)  # was interrupted
        for slot, one in list(dead.items()):
            if one.rows.rows == spec.segment_rows:
                del dead[slot]
                _seal_dead(root, spec, one)
            elif not one.rows.rows:
                del dead[slot]
                one.lock.release()
                discard(one.rows.path)
        dead = _close_gaps(root, spec, owner) | dead
    except BaseException:
        release(dead.values())
        raise
    return list(dead.values())


def _close_gaps(root: Path, spec: StoreSpec, owner: Owner) -> dict[str, Dead]:
    """Move the rows of the last segments to the numbers of damaged ones that were put aside.

    Each is made an open segment again (`_enter_again`), and that is sealed under the lowest free number. The
    last, short one comes first and stays open, so that no short one lands in between. A crash leaves fewer
    gaps, or a full open segment, which recovery seals.
    """
    short: dict[str, Dead] = {}
    try:
        while (gap := _catalog.dense_segments(root)) < len(numbers := _catalog.segment_numbers(root)):
            if gap not in put_aside(root):
                raise CorruptionError(
                    f"{root / layout.record_path(gap)}: the record is missing, though there are later ones: "
                    "'zarrow repair' puts what is left of the segment aside"
                )
            one = _enter_again(root, spec, owner, numbers[-1])
            if one.rows.rows == spec.segment_rows:
                _seal_dead(root, spec, one)
            else:
                short[one.rows.slot] = one
    except BaseException:
        release(short.values())
        raise
    return short


def release(dead: Iterable[Dead]) -> None:
    """Give the locks of open segments up."""
    for one in dead:
        one.lock.release()


def _adopt(one: Dead, spec: StoreSpec) -> OpenSegment:
    """Take an open segment over in order to seal it; its owner stays who filled it.

    The crash that this prevents: `_drop_after_gap` knows by the owners which rows follow which. With one
    owner for all they would look like one writer's, with rows missing in between; with a new owner for
    one that a power cut then takes rows of, later rows of its writer would close up on the gap.
    """
    return OpenSegment.adopt(one.rows, spec, one.rows.owner, one.lock)


def _seal_dead(root: Path, spec: StoreSpec, one: Dead) -> None:
    segment = _adopt(one, spec)
    del one  # the journal that it holds is read again, and need not be in memory twice
    try:
        seal(root, spec, segment)
    finally:
        segment.close()


def _remove_any(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        _files.remove_tree(path)
    else:
        _files.remove(path)


def _lock_all(root: Path, spec: StoreSpec, owner: Owner) -> dict[str, Dead]:
    """Lock and read the open segments, and drop those that do not count."""
    dead: dict[str, Dead] = {}
    try:
        for path in slots(root):
            lock = _files.FileLock(path / layout.LOCK)
            if not lock.acquire():
                raise StoreLockedError(f"{path}: another writer fills this open segment")
            try:
                found = read(path, spec)
            except BaseException:
                lock.release()
                raise
            reopens = None if found is None else found.owner.reopens
            if found is None or (reopens is not None and _catalog.has_record(root, reopens)):
                lock.release()
                discard(path)
                continue
            dead[path.name] = Dead(found, lock)
            if reopens is not None:
                _remove_segment_files(root, spec, reopens)
                taken_over = replace(owner, session=uuid.uuid4().hex)
                _files.replace(path / layout.OWNER_JSON, taken_over.encode(), scratch=path.parent)
    except BaseException:
        release(dead.values())
        raise
    return dead


def _drop_after_gap(dead: dict[str, Dead], spec: StoreSpec) -> None:
    """Drop what a power cut left of a writer's later open segments, if it took rows of an earlier one.

    None of it was durable: an open segment is synced before rows of the next one are.
    """

    def by_session(one: Dead) -> tuple[str, int]:
        return one.rows.owner.session, one.rows.owner.sequence

    for _, group in itertools.groupby(sorted(dead.values(), key=by_session), lambda one: by_session(one)[0]):
        gap = False
        for one in group:
            if gap:
                if one.rows.durable_rows:
                    raise CorruptionError(
                        f"{one.rows.path}: {one.rows.durable_rows} of its rows were durable, "
                        "but rows before them are gone"
                    )
                del dead[one.rows.slot]
                one.lock.release()
                discard(one.rows.path)
            gap = gap or one.rows.rows < spec.segment_rows


def _finish(root: Path, spec: StoreSpec, claim: Claim, dead: dict[str, Dead]) -> None:
    """Commit a claim from its open segments."""
    for source in claim.sources:
        if source.slot not in dead:
            raise CorruptionError(
                f"{root / layout.claim_path(claim.segment)}: claims rows of {source.slot}, which is gone"
            )
        have = dead[source.slot].rows.rows
        if have < source.stop:
            raise CorruptionError(
                f"{dead[source.slot].rows.path}: {source.stop} rows of it were claimed, {have} are left"
            )
    if len(claim.sources) == 1:
        source = claim.sources[0]
        one = dead[source.slot]
        if source.start == 0 and source.stop == one.rows.rows:
            segment = _adopt(one, spec)
            try:
                _commit(root, spec, claim, segment.path, segment.seal_shards(), segment.batches())
            finally:
                segment.close()
            return
    _commit_copy(root, spec, claim, {slot: one.rows for slot, one in dead.items()})


def _commit_copy(root: Path, spec: StoreSpec, claim: Claim, found: dict[str, OpenRows]) -> None:
    """Commit a claim of pieces of open segments, copied together."""
    scratch = _files.scratch_name(root / layout.OPEN_DIR)
    _files.make_dir(scratch)
    shards = {}
    for index, array in enumerate(spec.arrays):
        shard = open_shard(scratch, array, spec.segment_rows, create=True)
        try:
            for source in claim.sources:
                for rows in found[source.slot].vectors(spec, index, source.start, source.stop):
                    shard.append(np.ascontiguousarray(rows))
            shards[array.name] = _sealed(shard)
        finally:
            shard.close()
    batches = [
        batch
        for source in claim.sources
        for batch in found[source.slot].batches(spec, source.start, source.stop)
    ]
    _commit(root, spec, claim, scratch, shards, batches)
    _files.remove_tree(scratch)


def _sealed(shard: _shards.Shard) -> ShardFacts:
    if shard.rows:
        return shard.seal()
    return ShardFacts(size_bytes=0, chunks_crc32c=(), index_crc32c=0)


def _clean_claims(root: Path, spec: StoreSpec, dead: dict[str, Dead]) -> None:
    """Remove open segments whose rows are all committed, then the claims that say so."""
    claims = _catalog.read_claims(root)
    covered: dict[str, int] = {}
    for claim in claims:
        record, _ = _catalog.read_record(root, claim.segment, spec)
        if record.sources == claim.sources:
            for source in claim.sources:
                covered[source.slot] = max(covered.get(source.slot, 0), source.stop)
    for slot, stop in covered.items():
        if slot in dead and stop == dead[slot].rows.rows:
            dead.pop(slot).lock.release()
            discard(root / layout.slot_dir(slot))
        elif slot in dead:
            dead[slot].start = stop
    for claim in claims:
        if not any(source.slot in dead for source in claim.sources):
            _catalog.release_claim(root, claim)


# The end, and the way back


def finalize(root: Path, spec: StoreSpec, owner: Owner) -> Manifest:
    """Make a store complete: visible, durable and declared so on return.

    Parameters
    ----------
    root : Path
        The store, whose lock is held exclusively.
    spec : StoreSpec
        What it is.
    owner : Owner
        Who does it.

    Returns
    -------
    Manifest
        As published, or as it was if the store is complete.

    Raises
    ------
    CorruptionError
        If rows that were durable are damaged.
    """
    manifest = _catalog.read_manifest(root, spec)
    dead = {one.rows.slot: one for one in recover(root, spec, owner)}
    assert manifest is None or not dead, "a complete store has no open rows"
    try:
        if dead:
            reopened = reopen(root, spec, owner)
            dead = ({} if reopened is None else {reopened.rows.slot: reopened}) | dead
        if len(dead) == 1:
            _seal_dead(root, spec, dead.popitem()[1])
        elif dead:
            _pack(root, spec, dead)
    finally:
        release(dead.values())
    if not _catalog.dense_segments(root):
        claim = _catalog.claim(root, [], root / layout.OPEN_DIR)
        _commit_copy(root, spec, claim, {})
        _catalog.release_claim(root, claim)
    _catalog.publish_shape(root, spec, root / layout.OPEN_DIR)
    return manifest or _catalog.publish_manifest(root, spec, root / layout.OPEN_DIR)


def _pack(root: Path, spec: StoreSpec, dead: dict[str, Dead]) -> None:
    """Commit the rows of several open segments as dense segments, and empty `dead`."""
    pieces: list[list[Source]] = [[]]
    room = spec.segment_rows
    for slot, one in dead.items():
        segment = _adopt(one, spec)
        try:
            segment.sync()  # a claim stands for rows that no power cut takes
        finally:
            segment.close(keep_lock=True)
        start = one.start
        while start < one.rows.rows:
            stop = min(one.rows.rows, start + room)
            pieces[-1].append(Source(slot=slot, start=start, stop=stop))
            room -= stop - start
            start = stop
            if not room:
                pieces.append([])
                room = spec.segment_rows
    found = {slot: one.rows for slot, one in dead.items()}
    for sources in filter(None, pieces):
        _commit_copy(root, spec, _catalog.claim(root, sources, root / layout.OPEN_DIR), found)
    _clean_claims(root, spec, dead)
    assert not dead


def _last_is_short(root: Path, spec: StoreSpec) -> bool:
    segments = _catalog.dense_segments(root)
    return bool(segments) and _catalog.read_record(root, segments - 1, spec)[0].rows < spec.segment_rows


def reopen(root: Path, spec: StoreSpec, owner: Owner) -> Dead | None:
    """Make a store incomplete again, so that rows can be appended behind its last.

    A short last segment becomes an open one: copied aside, checked, durable, and only then taken back.
    A crash in between leaves either the segment or the open segment in force, never both: the open one
    says whose rows it has, and counts only once that record is gone.

    Parameters
    ----------
    root : Path
        The store, whose lock is held exclusively, and which was recovered.
    spec : StoreSpec
        What it is.
    owner : Owner
        Who will append.

    Returns
    -------
    Dead or None
        The open segment, its lock held; None if the last segment is full.
    """
    if not _last_is_short(root, spec):
        _catalog.withdraw_manifest(root)
        return None
    return _enter_again(root, spec, owner, _catalog.dense_segments(root) - 1)


def _enter_again(root: Path, spec: StoreSpec, owner: Owner, number: int) -> Dead:
    """Make the segment of the last record an open one; nobody else's rows follow its, so it has a session."""
    owner = replace(owner, session=uuid.uuid4().hex)
    record, _ = _catalog.read_record(root, number, spec)
    segment = OpenSegment.build(_files.scratch_name(root / layout.OPEN_DIR), spec)
    try:
        for batch in _committed_batches(root, spec, record):
            segment.append([batch])
        segment.enter(root, replace(owner, reopens=number))
        path = segment.path
    finally:
        segment.close()
    _catalog.withdraw_manifest(root)
    _catalog.uncommit(root, spec, number, root / layout.OPEN_DIR)
    _remove_segment_files(root, spec, number)
    _files.replace(path / layout.OWNER_JSON, owner.encode(), scratch=path.parent)
    lock = _files.FileLock(path / layout.LOCK)
    if not lock.acquire():
        raise StoreLockedError(f"{path}: another writer fills this open segment")
    found = read(path, spec)
    assert found is not None
    assert found.rows == record.rows
    return Dead(found, lock)


def _remove_segment_files(root: Path, spec: StoreSpec, number: int) -> None:
    """Remove shards and part of a segment that was taken back.

    The crash that doing so again prevents: a part that stays would be read as rows by every Parquet reader.
    """
    for array in spec.arrays:
        shard = root / layout.shard_path(array.name, number, len(array.row_shape))
        _files.require_own_dirs(root, shard)
        _files.remove(shard)
    _files.remove(root / layout.part_path(number))


def _committed_batches(root: Path, spec: StoreSpec, record: SegmentRecord) -> Iterator[Batch]:
    """Yield a committed segment's rows as they were appended, checked against its record."""
    path = root / layout.part_path(record.segment)
    data = _files.read(path, limit_bytes=record.part.size_bytes)
    if len(data) != record.part.size_bytes or crc32c(data) != record.part.crc32c:
        raise CorruptionError(f"{path}: not the bytes that were committed")
    table = _parts.to_wire(spec, data)
    blocks = [
        _shards.committed_rows(root, array, spec.segment_rows, record, ChunkCodec(array))
        for array in spec.arrays
    ]
    step = min((array.chunk_rows for array in spec.arrays), default=spec.segment_rows)
    readers = [_rechunk(block, step) for block in blocks]
    for start in range(0, record.rows, step):
        rows = table.slice(start, step).combine_chunks().to_batches()[0]
        arrays = tuple(np.ascontiguousarray(next(reader)) for reader in readers)
        yield Batch(rows.num_rows, tuple(rows.columns), spec.wire_schema, arrays)


def _rechunk(blocks: Iterator[npt.NDArray[Any]], step: int) -> Iterator[npt.NDArray[Any]]:
    for block in blocks:
        for start in range(0, len(block), step):
            yield block[start : start + step]
