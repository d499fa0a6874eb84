"""Which rows are visible?

The commit records under ``segments/`` and nothing else: segment N is there if and only if its record is.
Readers see the dense prefix of records (`read_snapshot`); a manifest, present if and only if the store is
complete, saves them reading the records.

A segment gets its number when it is sealed, not when it is opened: `claim` links a small file that says
which rows of which open segments the segment will be made of. It is durable before any file is put into
place, so whoever finds the claim of a dead writer can finish the work (`_write.recovery`), the numbers have no gaps
that nobody can fill, and rows that a record covers are never taken again from the open segment that they
came from.

The ``zarr.json`` documents are derived from the records (`publish_shape`), and written after them.

Place: tier 2; read by `store`, written by `_write.seal` and `writer`. Must not import its siblings.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from zarrow._format import layout, zarr_metadata
from zarrow._format.checksum import crc32c
from zarrow._format.spec import StoreSpec
from zarrow._format.records import Claim, Manifest, SegmentRecord, Source, check_record
from zarrow._storage import files
from zarrow._storage.cache import Cache
from zarrow.errors import CorruptionError, NotAStoreError, StoreNotFoundError
from zarrow._storage import reading

__all__ = ["Snapshot", "claim", "commit", "create", "publish_shape", "read_snapshot", "read_spec"]

_RECORDS_BYTES = 8 << 20
_RECORD_BYTES, _CHUNK_BYTES = 2048, 64
"""About what a record takes in memory, and each of its chunks: a snapshot keeps those last asked for, for a
scan of ten thousand segments is not to keep ten thousand."""
_RECORD = re.compile(r"(\d{8})\.(json|claim)\Z")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a reader sees of a store: the committed segments of one instant.

    Parameters
    ----------
    root : Path
        The store.
    spec : StoreSpec
        What the store is.
    rows : int
        Committed rows.
    segments : int
        Committed segments.
    manifest : Manifest or None
        If the store is complete.
    """

    root: Path
    spec: StoreSpec
    rows: int
    segments: int
    manifest: Manifest | None
    _last: dict[int, SegmentRecord] = field(default_factory=dict, repr=False, compare=False)
    _records: Cache[SegmentRecord] = field(
        default_factory=lambda: Cache(_RECORDS_BYTES), repr=False, compare=False
    )

    @property
    def complete(self) -> bool:
        """Whether this is all of the store."""
        return self.manifest is not None

    def segment_rows(self, segment: int) -> int:
        """Return how many rows a segment has."""
        full = self.spec.segment_rows
        return min(full, self.rows - segment * full)

    def record(self, segment: int) -> SegmentRecord:
        """Return a segment's commit record; `CorruptionError` if it is not the one of this snapshot."""
        record = self._last.get(segment) or self._records.get(segment)
        if record is None:
            record, checksum = read_record(self.root, segment, self.spec)
            if record.rows != self.segment_rows(segment) or (
                self.manifest is not None and self.manifest.records_crc32c[segment] != checksum
            ):
                raise CorruptionError(
                    f"{self.root / layout.record_path(segment)}: not the record that this snapshot has"
                )
            if segment == self.segments - 1:
                self._last[segment] = record  # a writer may take it back
            else:
                chunks = sum(len(facts.chunks_crc32c) for facts in record.arrays.values())
                self._records.put(segment, record, _RECORD_BYTES + chunks * _CHUNK_BYTES)
        return record


def read_record(root: Path, segment: int, spec: StoreSpec) -> tuple[SegmentRecord, int]:
    """Return a segment's commit record and the crc32c of its file."""
    path = root / layout.record_path(segment)
    data = reading.read(path)
    record = SegmentRecord.decode(data, str(path))
    if record.segment != segment:
        raise CorruptionError(f"{path}: the record of segment {record.segment}")
    check_record(record, spec, str(path))
    return record, crc32c(data)


def read_spec(root: Path) -> StoreSpec:
    """Return what the store at `root` is.

    Raises
    ------
    StoreNotFoundError
        If there is nothing.
    NotAStoreError
        If there is something else.
    """
    try:
        data = reading.read(root / layout.STORE_JSON)
    except FileNotFoundError:
        if os.path.lexists(root):
            raise NotAStoreError(
                f"{root}: no zarrow store: it has no {layout.STORE_JSON} (a run that was killed before its "
                "first batch leaves none either: give the path to a writer, or remove it)"
            ) from None
        raise StoreNotFoundError(f"{root}: there is no store at this path") from None
    except NotADirectoryError:
        raise NotAStoreError(f"{root}: no zarrow store: a store is a directory") from None
    return StoreSpec.decode(data, str(root / layout.STORE_JSON))


def read_manifest(root: Path, spec: StoreSpec) -> Manifest | None:
    """Return the manifest if the store is complete."""
    path = root / layout.MANIFEST_JSON
    try:
        data = reading.read(path)
    except FileNotFoundError:
        return None
    manifest = Manifest.decode(data, str(path))
    full, segments = spec.segment_rows, manifest.segments
    names = {array.name for array in spec.arrays}
    if (
        manifest.uuid != spec.uuid
        or not (segments - 1) * full <= manifest.rows <= segments * full
        or (segments > 1 and manifest.rows == (segments - 1) * full)
        or set(manifest.shard_bytes) != names
        or any(len(sizes) != segments for sizes in (*manifest.shard_bytes.values(), manifest.part_bytes))
    ):
        raise CorruptionError(f"{path}: does not fit the store's {layout.STORE_JSON}")
    return manifest


def _numbers(root: Path, suffix: str) -> list[int]:
    """Return the numbers of the records or claims that are there, in order."""
    try:
        names = os.listdir(root / layout.SEGMENTS_DIR)
    except FileNotFoundError:
        return []
    found = (_RECORD.match(name) for name in names)
    return sorted(int(match[1]) for match in found if match and match[2] == suffix)


def segment_numbers(root: Path) -> list[int]:
    """Return the numbers of all records, in order."""
    return _numbers(root, "json")


def dense_segments(root: Path, known: int = 0) -> int:
    """Return how many records there are before the first gap.

    A writer knows how many there were; listing all names for every segment would cost it more with each.
    """
    if known:
        return next(number for number in itertools.count(known) if not has_record(root, number))
    numbers = _numbers(root, "json")
    return next((index for index, number in enumerate(numbers) if index != number), len(numbers))


def read_snapshot(root: Path) -> Snapshot:
    """Return the committed segments of this instant.

    Parameters
    ----------
    root : Path
        The store.

    Returns
    -------
    Snapshot
        Complete if the store has a manifest.

    Raises
    ------
    StoreNotFoundError, NotAStoreError, CorruptionError
        If there is no store, or a damaged one.
    """
    spec = read_spec(root)
    for name in (layout.TABLE_DIR, layout.SEGMENTS_DIR, layout.OPEN_DIR):
        reading.require_own_dirs(root, root / name / "x")
    for array in spec.arrays:
        reading.require_own_dirs(root, root / layout.array_dir(array.name) / "c" / "x")
    manifest = read_manifest(root, spec)
    if manifest is not None:
        return Snapshot(root, spec, manifest.rows, manifest.segments, manifest)
    while True:
        segments = dense_segments(root)
        if not segments:
            return Snapshot(root, spec, 0, 0, None)
        try:
            last, _ = read_record(root, segments - 1, spec)
        except FileNotFoundError:
            continue  # a writer reopened the last, short segment just now
        rows = (segments - 1) * spec.segment_rows + last.rows
        return Snapshot(root, spec, rows, segments, None, {segments - 1: last})


# The writer's side


def create(root: Path, spec: StoreSpec, scratch: Path) -> StoreSpec:
    """Write down what the store is, if nobody was first, and make what it lacks.

    Parameters
    ----------
    root : Path
        The store's directory.
    spec : StoreSpec
        What this writer thinks the store is.
    scratch : Path
        For scratch files.

    Returns
    -------
    StoreSpec
        What the store is: `spec`, or that of the writer who was first.
    """
    try:
        files.publish(root / layout.STORE_JSON, spec.encode(), scratch=scratch)
    except FileExistsError:
        spec = read_spec(root)
        # Who was first may have died before the name was durable: without it what follows is no store.
        files.sync_dir(root)
    for name in (layout.ARRAYS_DIR, layout.TABLE_DIR, layout.SEGMENTS_DIR):
        files.make_dir(root / name, exist_ok=True)
    for array in spec.arrays:
        files.make_dir(root / layout.array_dir(array.name), exist_ok=True)
        files.make_dir(root / layout.array_dir(array.name) / "c", exist_ok=True)
        files.sync_dir(root / layout.array_dir(array.name))
    files.sync_dir(root / layout.ARRAYS_DIR)
    files.sync_dir(root)
    if not (root / layout.ARRAYS_DIR / "zarr.json").exists():
        publish_shape(root, spec, scratch)
    return spec


def read_claims(root: Path) -> list[Claim]:
    """Return the claims that stand, by segment."""
    claims = []
    for number in _numbers(root, "claim"):
        path = root / layout.claim_path(number)
        try:
            claims.append(Claim.decode(reading.read(path), str(path)))
        except FileNotFoundError:
            continue  # done and removed just now
    return claims


def has_record(root: Path, segment: int) -> bool:
    """Tell whether a segment is committed."""
    return (root / layout.record_path(segment)).exists()


def claim(root: Path, sources: Iterable[Source], scratch: Path, known: int = 0) -> Claim:
    """Take the lowest free segment number for these sources: durable on return.

    That is the next one, unless a damaged segment was put aside (`repair`), whose number is free again.

    Parameters
    ----------
    root : Path
        The store.
    sources : iterable of Source
        What the segment will be made of.
    scratch : Path
        For scratch files.
    known : int
        So many segments, from the first on, are known to be committed.

    Returns
    -------
    Claim
        It is there until `release_claim`.
    """
    rows = tuple(sources)
    for number in itertools.count(dense_segments(root, known)):
        assert number < layout.MAX_SEGMENTS
        if has_record(root, number) or (root / layout.claim_path(number)).exists():
            continue
        wanted = Claim(segment=number, sources=rows)
        try:
            files.publish(root / layout.claim_path(number), wanted.encode(), scratch=scratch)
        except FileExistsError:
            pass  # another writer was first: the next number, then
        else:
            if not has_record(root, number):
                return wanted
            # Another writer claimed, committed and released it between our look and our link.
            release_claim(root, wanted)
    raise AssertionError("there is no last number")


def commit(root: Path, record: SegmentRecord, scratch: Path) -> None:
    """Publish a segment: its rows are visible, and durable, on return.

    The crash that the order prevents: a record before its files were durable would promise rows that a
    power cut takes. So the caller has synced shards, part and their directories.
    """
    files.publish(root / layout.record_path(record.segment), record.encode(), scratch=scratch)


def uncommit(root: Path, spec: StoreSpec, segment: int, scratch: Path) -> None:
    """Take the last, short segment back, whose rows a durable open segment holds.

    The crash that the order prevents: a Zarr shape that covers rows which are not committed.
    """
    publish_shape(root, spec, scratch, segments=min(segment, dense_segments(root)))
    # The segment's claim was removed, but perhaps not for good: without the record it would claim rows of
    # an open segment that is gone.
    files.sync_dir(root / layout.SEGMENTS_DIR)
    files.remove(root / layout.record_path(segment))
    files.sync_dir(root / layout.SEGMENTS_DIR)


def release_claim(root: Path, claim: Claim) -> None:
    """Remove a claim whose segment is committed and whose sources are gone."""
    files.remove(root / layout.claim_path(claim.segment))


def publish_shape(
    root: Path, spec: StoreSpec, scratch: Path, *, known: int = 0, segments: int | None = None
) -> int:
    """Let Zarr readers see the committed rows: the dense prefix of the records.

    Of several writers that do this at once the last to rename may be the first to have looked, so each
    looks again when it is done.

    Parameters
    ----------
    root, spec, scratch
        As above.
    known : int
        So many segments, from the first on, are known to be committed.
    segments : int, optional
        Fewer segments, before they are taken back.

    Returns
    -------
    int
        The segments that the new shape covers.
    """
    while True:
        dense = dense_segments(root, known) if segments is None else segments
        rows = 0
        if dense:
            rows = (dense - 1) * spec.segment_rows + read_record(root, dense - 1, spec)[0].rows
        documents = [
            (root / layout.array_dir(array.name) / "zarr.json", zarr_metadata.array_json(spec, array, rows))
            for array in spec.arrays
        ]
        documents.append((root / layout.ARRAYS_DIR / "zarr.json", zarr_metadata.group_json(spec, rows)))
        if segments is not None:
            documents.reverse()  # shrinking: the group, which xarray believes, goes first
        for path, data in documents:
            files.replace(path, data, scratch=scratch)
        if segments is not None or dense_segments(root, known) == dense:
            return dense


def publish_manifest(root: Path, spec: StoreSpec, scratch: Path) -> Manifest:
    """Declare the store complete: every segment that is committed, and no other.

    Returns
    -------
    Manifest
        As published.

    Raises
    ------
    CorruptionError
        If the records have a gap, or a short segment before the last.
    """
    numbers = _numbers(root, "json")
    records = [read_record(root, number, spec) for number in numbers]
    if numbers != list(range(len(numbers))) or any(
        record.rows != spec.segment_rows for record, _ in records[:-1]
    ):
        raise CorruptionError(f"{root}: the segments are not dense, so the store cannot be complete")
    manifest = Manifest(
        uuid=spec.uuid,
        rows=sum(record.rows for record, _ in records),
        shard_bytes={
            array.name: tuple(record.arrays[array.name].size_bytes for record, _ in records)
            for array in spec.arrays
        },
        part_bytes=tuple(record.part.size_bytes for record, _ in records),
        records_crc32c=tuple(checksum for _, checksum in records),
    )
    files.replace(root / layout.MANIFEST_JSON, manifest.encode(), scratch=scratch)
    return manifest


def withdraw_manifest(root: Path) -> None:
    """Declare the store incomplete: durable on return."""
    files.remove(root / layout.MANIFEST_JSON)
    files.sync_dir(root)
