"""Recovery — finishing what dead writers left in their open segments, and finalizing a store.

`recover` runs before the first append:

1. names and removals that a power cut could undo are made durable, scratch files are removed;
2. the open segments are locked and read, and those that do not count are dropped: copies of a segment that
   is still committed, and rows after a gap that a power cut left;
3. claims without a record are committed from their open segments, and open segments whose rows are committed
   are removed;
4. full open segments are sealed, empty ones removed; the others are returned, to be filled further.

From then on the records are dense, except for the numbers of damaged segments that `repair` has put aside:
the rows of the last segments move to these numbers (`_close_gaps`).

`finalize` recovers, then seals the only unfilled open segment as it is, or packs several into dense ones, by
the steps of `seal`, and publishes the manifest. If there are more than a claim can name, the last segment,
which is short, becomes an open one again after each step (`reopening`), and is packed with the next ones.

A crash leaves what the next recovery finishes: every step may be repeated. Both functions assume that the
store's lock is held exclusively: no other writer is alive.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from zarrow._format import layout
from zarrow._format.records import Claim, Manifest, Owner, SegmentRecord, Source
from zarrow._format.spec import StoreSpec, rows_of_expected
from zarrow._read import catalog
from zarrow._read.catalog import put_aside
from zarrow._read.open_rows import OpenRows, read, slots
from zarrow._read.visible import lacking, lacking_error, visible_rows
from zarrow._storage import files
from zarrow._storage.lock import FileLock
from zarrow._write import publishing
from zarrow._write.batches import CheckedBatch, as_appended
from zarrow._write.directory import in_own_session
from zarrow._write.open_segment import OpenSegment, discard, new_slot
from zarrow._write.quarantine import Aside, SetAside
from zarrow._write.reopening import enter_again, remove_segment_files, reopen, segment_files
from zarrow._write.seal import Dead, commit_claim, commit_copy, release, seal
from zarrow.errors import CorruptionError, IncompleteStoreError, StoreLockedError

__all__ = ["batches", "copy_open", "finalize", "lock_all", "put_open_aside", "recover", "require_expected"]

MAX_PIECES = 32_768
"""Open segments that are packed at once: a claim that names them takes no more than half a document."""


def recover(root: Path, spec: StoreSpec, owner: Owner) -> list[Dead]:
    """Finish what dead writers began.

    Parameters
    ----------
    root : Path
        The store, whose lock is held exclusively.
    spec : StoreSpec
        Its spec.
    owner : Owner
        The writer that recovers it.

    Returns
    -------
    list
        The open segments that are neither full nor empty, oldest first, each with its lock, held.

    Raises
    ------
    CorruptionError
        If rows that were durable are damaged.
    """
    # The last steps of the dead may not be on the disk. If a power cut undid a record, or the removal of an
    # open segment, on which this recovery had relied, its rows would be lost, or count twice.
    files.sync_dir(root / layout.SEGMENTS_DIR)
    files.sync_dir(root / layout.OPEN_DIR)
    for path in (root / layout.OPEN_DIR).glob(f"{layout.SCRATCH_PREFIX}*"):
        _remove_any(path)
    _remove_what_was_set_aside(root, spec)
    dead = lock_all(root, spec)
    try:
        _drop_what_does_not_count(root, spec, dead)
        for claim in catalog.read_claims(root):
            if not catalog.has_record(root, claim.segment):
                _finish(root, spec, claim, dead)
        _drop_committed(root, spec, dead)
        for one in dead.values():
            if one.rows.rows > one.start and (root / layout.MANIFEST_JSON).exists():
                raise CorruptionError(
                    f"has {one.rows.rows} rows, though the store is complete, with the manifest of another "
                    "state: 'zarrow repair' keeps the rows",
                    path=one.rows.path,
                )
        for slot, one in [*dead.items()]:
            if one.rows.unvouched:
                del dead[slot]
                dead |= put_open_aside(root, spec, owner, one)
        if any(one.start for one in dead.values()):
            _pack(root, spec, owner, dead)  # it was interrupted
        for slot, one in list(dead.items()):
            if one.rows.rows == spec.segment_rows:
                del dead[slot]
                _seal_dead(root, spec, one)
            elif not one.rows.rows:
                del dead[slot]
                one.lock.release()
                discard(one.rows.path)
        dead = _close_gaps(root, spec, owner, dead) | dead
    except BaseException:
        release(dead.values())
        raise
    return list(dead.values())


def _close_gaps(root: Path, spec: StoreSpec, owner: Owner, dead: dict[str, Dead]) -> dict[str, Dead]:
    """Move the rows of the last segments to the numbers of damaged ones that were put aside.

    Each becomes an open segment again (`enter_again`), which is sealed under the lowest free number. The
    last, short one comes first and stays open, so that no short one lands in between. A crash leaves fewer
    gaps, or a full open segment, which recovery seals. The open segments `dead` get sessions of their own
    first, since the records that they follow are about to be replaced by others.
    """
    short: dict[str, Dead] = {}
    if catalog.dense_segments(root) < len(catalog.segment_numbers(root)):
        for one in dead.values():
            alone = in_own_session(owner, reopens=one.rows.owner.reopens)
            files.replace(one.rows.path / layout.OWNER_JSON, alone.encode(), scratch=root / layout.OPEN_DIR)
            one.rows = replace(one.rows, owner=alone)
    try:
        while catalog.dense_segments(root) < len(numbers := catalog.segment_numbers(root)):
            one = enter_again(root, spec, owner, numbers[-1])
            if one.rows.rows == spec.segment_rows:
                _seal_dead(root, spec, one)
            else:
                short[one.rows.slot] = one
    except BaseException:
        release(short.values())
        raise
    return short


def _adopt(one: Dead, spec: StoreSpec) -> OpenSegment:
    """Take an open segment over in order to seal it; its owner stays the writer that filled it.

    After a crash, `visible_rows` learns from the owners which rows follow which. With one owner for all,
    the open segments would look like those of one writer, with rows missing in between. With a new owner for
    one from which a power cut then takes rows, later rows of its writer would hide the gap.
    """
    return OpenSegment.adopt(one.rows, spec, one.rows.owner, one.lock)


def _seal_dead(root: Path, spec: StoreSpec, one: Dead) -> None:
    segment = _adopt(one, spec)
    del one  # the journal that it holds is read again, and should not be in memory twice
    try:
        seal(root, spec, segment)
    finally:
        segment.close()


def _remove_what_was_set_aside(root: Path, spec: StoreSpec) -> None:
    """Remove the old names of files that a repair has linked into quarantine, if it was killed before it did.

    Parquet readers would take such a part for rows.
    """
    for number in put_aside(root):
        if catalog.has_record(root, number):
            continue
        for path in segment_files(root, spec, number):
            if path.is_file() and path.stat().st_nlink > 1:
                kept = (root / layout.QUARANTINE_DIR).glob(f"{number:08d}-*/*")
                if any(os.path.samefile(path, one) for one in kept):
                    files.remove(path)
                    files.sync_dir(path.parent)


def _remove_any(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        files.remove_tree(path)
    else:
        files.remove(path)


def lock_all(root: Path, spec: StoreSpec) -> dict[str, Dead]:
    """Lock and read the open segments; discard those whose creation was never finished."""
    dead: dict[str, Dead] = {}
    try:
        for path in slots(root):
            lock = FileLock(path / layout.LOCK)
            if not lock.acquire():
                raise StoreLockedError(f"{path}: another writer fills this open segment")
            try:
                found = read(path, spec)
            except BaseException:
                lock.release()
                raise
            if found is None:
                lock.release()
                discard(path)
            else:
                dead[path.name] = Dead(found, lock)
    except BaseException:
        release(dead.values())
        raise
    return dead


def _drop_what_does_not_count(root: Path, spec: StoreSpec, dead: dict[str, Dead]) -> None:
    """Discard copies of what still counts, and rows whose predecessors a power cut took.

    None of the latter was durable: an open segment is synced before rows of the next one are.
    """
    numbers, owners = catalog.segment_numbers(root), [one.rows.owner for one in dead.values()]
    catalog.check_records(root, numbers, catalog.part_numbers(root), owners)
    records = catalog.read_records_for(root, spec, numbers, owners)
    found = visible_rows((one.rows.facts for one in dead.values()), records, spec.segment_rows)
    found.check(root)
    for slot in (*found.copies, *found.behind):
        dead.pop(slot).lock.release()
        discard(root / layout.slot_dir(slot))
    for one in dead.values():
        reopens = one.rows.owner.reopens
        if isinstance(reopens, tuple) and reopens[0] not in numbers:
            remove_segment_files(root, spec, reopens[0])  # a crash may have come before that


def _finish(root: Path, spec: StoreSpec, claim: Claim, dead: dict[str, Dead]) -> None:
    """Commit a claim from its open segments."""
    rows = {slot: one.rows.rows for slot, one in dead.items()}
    for source in lacking(claim, rows):
        raise lacking_error(claim, source, rows, root)
    if len(claim.sources) == 1:
        source = claim.sources[0]
        one = dead[source.slot]
        if source.start == 0 and source.stop == one.rows.rows:
            segment = _adopt(one, spec)
            try:
                commit_claim(root, spec, claim, segment.path, segment.seal_shards(), segment.batches())
            finally:
                segment.close()
            return
    commit_copy(root, spec, claim, {slot: one.rows for slot, one in dead.items()})


def _drop_committed(root: Path, spec: StoreSpec, dead: dict[str, Dead]) -> None:
    """Remove open segments whose rows are all committed, then the claims."""
    claims, numbers = catalog.read_claims(root), catalog.segment_numbers(root)
    owners = [one.rows.owner for one in dead.values()]
    for record, _ in catalog.read_records_for(root, spec, numbers, owners):
        for source in record.sources:
            if source.slot in dead:
                _require_files(root, spec, record, source)
                dead[source.slot].start = max(dead[source.slot].start, source.stop)
    for slot, one in list(dead.items()):
        if one.start and one.start >= one.rows.rows:
            dead.pop(slot).lock.release()
            discard(root / layout.slot_dir(slot))
    for claim in claims:
        if not any(source.slot in dead for source in claim.sources):
            publishing.release_claim(root, claim)


def put_open_aside(root: Path, spec: StoreSpec, owner: Owner, one: Dead) -> dict[str, Dead]:
    """Move an open segment with bytes that no frame vouches for to quarantine; return a copy of its rows.

    A writer that filled it further would overwrite the bytes, which are the rows of lost frames.
    """
    found = {}
    path, rows = f"{layout.OPEN_DIR}/{one.rows.slot}", one.rows.rows
    copy = None
    try:
        if rows:
            alone = in_own_session(owner, reopens=one.rows.slot)
            copy = OpenSegment.build(files.scratch_name(root / layout.OPEN_DIR), spec, alone)
            for batch in batches(one.rows, spec):
                copy.append([batch])
            copy.enter(root)
        facts = SetAside(
            path=path,
            reasons=(f"after its {rows} rows, more bytes than one frame has: the journal has lost frames",),
        )
        Aside(root, one.rows.slot, {path: "open"}, facts).fill()
        if copy is not None:
            copied = read(copy.path, spec)
            assert copied is not None
            assert copied.rows == rows
            found[copied.slot] = Dead(copied, copy.let_go())
    finally:
        one.lock.release()
        if copy is not None and not found:
            copy.close()
    return found


def copy_open(found: OpenRows, start: int, spec: StoreSpec, scratch: Path, owner: Owner) -> str:
    """Copy an open segment's rows from `start` to a new one; return a name for it."""
    copy = OpenSegment.build(scratch, spec, owner)
    try:
        for batch in batches(found, spec, start):
            copy.append([batch])
        copy.sync()
        files.publish(scratch / layout.OWNER_JSON, owner.encode(), scratch=scratch)
    finally:
        copy.close()
    return new_slot()


def batches(found: OpenRows, spec: StoreSpec, start: int = 0) -> Iterator[CheckedBatch]:
    """Yield an open segment's rows from `start` as they were appended."""
    for frame in found.frames:
        first = max(frame.first_row, start)
        for batch in found.batches(spec, first, frame.stop) if first < frame.stop else ():
            arrays = [
                np.concatenate(
                    [
                        np.empty((0, *array.row_shape), array.numpy_dtype),
                        *found.vectors(spec, place, first, frame.stop),
                    ]
                )
                for place, array in enumerate(spec.arrays)
            ]
            columns, given = tuple(batch.columns), as_appended(spec, arrays)
            yield CheckedBatch(batch.num_rows, columns, spec.wire_schema, given)


def _require_files(root: Path, spec: StoreSpec, record: SegmentRecord, source: Source) -> None:
    """Raise unless a segment has its files: else the open segment may be the only place that has its rows."""
    sizes = [*(record.arrays[array.name].size_bytes for array in spec.arrays), record.part.size_bytes]
    for path, size_bytes in zip(segment_files(root, spec, record.segment), sizes, strict=True):
        if size_bytes and (not path.is_file() or path.stat().st_size != size_bytes):
            raise CorruptionError(
                f"not the file of {size_bytes} bytes that was committed; open segment {source.slot} has its "
                "rows, too: 'zarrow repair' keeps them",
                path=path,
            )


# The end


def finalize(
    root: Path, spec: StoreSpec, owner: Owner, *, expected_rows: int | None, partial: bool
) -> Manifest:
    """Complete a store: every row is visible and durable, and the manifest is published, on return.

    Parameters
    ----------
    root : Path
        The store, whose lock is held exclusively.
    spec : StoreSpec
        What it is.
    owner : Owner
        The writer that completes it.
    expected_rows : int or None
        Rows that it is to have, if known.
    partial : bool
        Whether fewer rows will do.

    Returns
    -------
    Manifest
        As published, or the one of a store that was complete.

    Raises
    ------
    IncompleteStoreError
        If it has fewer rows than expected and `partial` is False.
    CorruptionError
        If rows that were durable are damaged.
    """
    manifest = catalog.read_manifest(root, spec)
    dead = {one.rows.slot: one for one in recover(root, spec, owner)}
    try:
        if not partial:
            rows = catalog.read_snapshot(root).rows + sum(one.rows.rows - one.start for one in dead.values())
            require_expected(root, rows, expected_rows)
        if dead:
            reopened = reopen(root, spec, owner)
            dead = ({} if reopened is None else {reopened.rows.slot: reopened}) | dead
        if len(dead) == 1:
            _seal_dead(root, spec, dead.popitem()[1])
        elif dead:
            _pack(root, spec, owner, dead)
    finally:
        release(dead.values())
    if not catalog.dense_segments(root):
        claim = publishing.claim(root, [], root / layout.OPEN_DIR)
        commit_copy(root, spec, claim, {})
        publishing.release_claim(root, claim)
    publishing.publish_shape(root, spec, root / layout.OPEN_DIR)
    if manifest is None or manifest.expected_rows != expected_rows:
        manifest = publishing.publish_manifest(root, spec, expected_rows, root / layout.OPEN_DIR)
    elif not (root / layout.STATISTICS).exists():
        publishing.publish_statistics(root, spec, manifest, root / layout.OPEN_DIR)
    return manifest


def require_expected(path: object, rows: int, expected_rows: int | None) -> None:
    """Raise `IncompleteStoreError` if a store that is to be completed lacks rows."""
    if expected_rows is not None and rows < expected_rows:
        raise IncompleteStoreError(
            f"{path}: {rows_of_expected(rows, expected_rows)} are stored, and safe: resume the run or append "
            f"the other {expected_rows - rows:,}, or complete the store without them: "
            f"'zarrow finalize --partial {path}', or finalize(partial=True)"
        )


def _pack(root: Path, spec: StoreSpec, owner: Owner, dead: dict[str, Dead]) -> None:
    """Commit the rows of several open segments as dense segments, and empty `dead`."""
    while len(dead) > MAX_PIECES:
        slots = [*dead]
        _pack_at_once(root, spec, {slot: dead[slot] for slot in slots[:MAX_PIECES]})
        for slot in slots[:MAX_PIECES]:
            del dead[slot]
        reopened = reopen(root, spec, owner)
        if reopened is not None:  # whose rows come first
            rest = dict(dead)
            dead.clear()
            dead |= {reopened.rows.slot: reopened} | rest
    _pack_at_once(root, spec, dead)


def _pack_at_once(root: Path, spec: StoreSpec, dead: dict[str, Dead]) -> None:
    """Commit the rows of as many open segments as a claim can name, and empty `dead`."""
    pieces: list[list[Source]] = [[]]
    room = spec.segment_rows
    for slot, one in dead.items():
        segment = _adopt(one, spec)
        try:
            segment.sync()  # a claim stands for rows that no power cut can take
        finally:
            segment.close(keep_lock=True)
        start = one.start
        while start < one.rows.rows:
            stop = min(one.rows.rows, start + room)
            pieces[-1].append(one.rows.owner.source(slot, start, stop))
            room -= stop - start
            start = stop
            if not room:
                pieces.append([])
                room = spec.segment_rows
    found = {slot: one.rows for slot, one in dead.items()}
    for sources in filter(None, pieces):
        commit_copy(root, spec, publishing.claim(root, sources, root / layout.OPEN_DIR), found)
    _drop_committed(root, spec, dead)
    assert not dead
