"""Catalog — the committed segments of a store, from its commit records.

Segment N is there if and only if its record is, under ``segments/``. Readers see the dense prefix of
records (`read_snapshot`). A manifest, present if and only if the store is complete, saves them reading the
records.

A segment gets its number when it is sealed, not when it is opened. A *claim* is a small file that says
which rows of which open segments the segment will consist of. It is durable before any file is put into
place, so the claim of a dead writer can be finished by any other (`_write.recovery`), no number is lost for
good, and rows that a record covers are never taken again from the open segment that they came from.

The ``zarr.json`` documents are derived from the records, and written after them.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zarrow._format import layout
from zarrow._format.checksum import crc32c
from zarrow._format.records import Claim, Manifest, Owner, SegmentRecord, check_record, max_manifest_bytes
from zarrow._format.spec import StoreSpec
from zarrow._format.zarr_metadata import attributes_in
from zarrow._read.visible import missing_records
from zarrow._storage import reading
from zarrow._storage.cache import Cache
from zarrow._storage.reading import Place, RemotePath
from zarrow.errors import CorruptionError, NotAStoreError, StoreNotFoundError, did_you_mean

__all__ = [
    "Snapshot",
    "check_records",
    "claim_numbers",
    "decode_manifest",
    "has_record",
    "numbers_from",
    "part_numbers",
    "put_aside",
    "read_attributes",
    "read_claims",
    "read_manifest",
    "read_record",
    "read_records_for",
    "read_snapshot",
    "read_spec",
]

_RECORDS_BYTES = 8 << 20
_RECORD_BYTES, _CHUNK_BYTES, _COLUMN_BYTES = 2048, 64, 512
"""About what a record, each of its chunks and the statistics of a column take in memory. A snapshot keeps the
records used last, so that a scan of ten thousand segments does not keep ten thousand."""
_RECORD = re.compile(r"(\d{8})\.(json|claim)\Z")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The committed segments of one instant.

    Parameters
    ----------
    root : Path or RemotePath
        The store.
    spec : StoreSpec
        What the store is.
    rows : int
        Committed rows.
    segments : int
        Committed segments.
    manifest : Manifest or None
        None if the store is incomplete.
    """

    root: Place
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
        """Whether the store is complete."""
        return self.manifest is not None

    @property
    def expected_rows(self) -> int | None:
        """Rows that the store is, or was, to have in the end, if known."""
        return self.spec.expected_rows if self.manifest is None else self.manifest.expected_rows

    def segment_rows(self, segment: int) -> int:
        """Return the number of rows of a segment."""
        full = self.spec.segment_rows
        return min(full, self.rows - segment * full)

    def record(self, segment: int) -> SegmentRecord:
        """Return a segment's commit record; `CorruptionError` if it is not the one in this snapshot."""
        record = self._last.get(segment) or self._records.get(segment)
        if record is None:
            record, checksum = read_record(self.root, segment, self.spec)
            if record.rows != self.segment_rows(segment) or (
                self.manifest is not None and self.manifest.records_crc32c[segment] != checksum
            ):
                raise CorruptionError(
                    "not the record that this snapshot has", path=self.root / layout.record_path(segment)
                )
            if segment == self.segments - 1:
                self._last[segment] = record  # a writer may take it back
            else:
                chunks = sum(len(facts.chunks_crc32c) for facts in record.arrays.values())
                columns = len(record.part.statistics)
                self._records.put(
                    segment, record, _RECORD_BYTES + chunks * _CHUNK_BYTES + columns * _COLUMN_BYTES
                )
        return record


def read_record(root: Place, segment: int, spec: StoreSpec) -> tuple[SegmentRecord, int]:
    """Return a segment's commit record and the crc32c of its file."""
    path = f"{root}/{layout.record_path(segment)}"
    data = reading.read_file(root, layout.record_path(segment))
    record = SegmentRecord.decode(data, path)
    if record.segment != segment:
        raise CorruptionError(f"the record of segment {record.segment}", path=path)
    check_record(record, spec, path)
    return record, crc32c(data)


def read_attributes(root: Place, directory: str) -> dict[str, Any]:
    """Return the attributes that other programs gave to a Zarr array, or to the group; none if damaged."""
    try:
        return attributes_in(reading.read_file(root, f"{directory}/zarr.json"))
    except (CorruptionError, FileNotFoundError, NotADirectoryError):
        return {}


def read_spec(root: Place) -> StoreSpec:
    """Return what the store at `root` is.

    Raises
    ------
    StoreNotFoundError
        If nothing is there.
    NotAStoreError
        If something else is there.
    """
    try:
        data = reading.read_file(root, layout.STORE_JSON)
    except FileNotFoundError:
        if isinstance(root, Path) and os.path.lexists(root):
            raise NotAStoreError(
                f"{root}: not a zarrow store: it has no {layout.STORE_JSON} (nor has a run that was killed "
                "before its first batch: give the path to a writer, or remove it)"
            ) from None
        raise StoreNotFoundError(f"{root}: there is no store at this path{_siblings_like(root)}") from None
    except NotADirectoryError:
        raise NotAStoreError(f"{root}: not a zarrow store: a store is a directory") from None
    return StoreSpec.decode(data, f"{root}/{layout.STORE_JSON}")


def _siblings_like(root: Place) -> str:
    """Return the names next to a path that are like its own, for the end of a message."""
    if not isinstance(root, Path):
        return ""
    try:
        with os.scandir(root.parent) as entries:
            return did_you_mean(root.name, [one.name for one in itertools.islice(entries, 1000)])
    except OSError:
        return ""


def read_manifest(root: Place, spec: StoreSpec) -> Manifest | None:
    """Return the manifest if the store is complete; one that is older than the records does not count."""
    try:
        with reading.open_file(root, layout.MANIFEST_JSON, whole=True) as file:
            segments = 0 if file.size_bytes <= max_manifest_bytes(spec, 0) else len(segment_numbers(root))
            data = file.content(max_manifest_bytes(spec, segments))
    except FileNotFoundError:
        return None
    manifest = decode_manifest(data, spec, f"{root}/{layout.MANIFEST_JSON}")
    return None if has_record(root, manifest.segments) else manifest


def decode_manifest(data: bytes, spec: StoreSpec, path: str) -> Manifest:
    """Return the manifest that a file holds; `CorruptionError` if it is damaged, or not of this store."""
    manifest = Manifest.decode(data, path)
    full, segments = spec.segment_rows, manifest.segments
    names = {array.name for array in spec.arrays}
    if (
        manifest.uuid != spec.uuid
        or not (segments - 1) * full <= manifest.rows <= segments * full
        or (segments > 1 and manifest.rows == (segments - 1) * full)
        or set(manifest.shard_bytes) != names
        or set(manifest.vectors) != {array.name for array in spec.ragged}
        or any(
            len(facts) != segments
            for facts in (*manifest.shard_bytes.values(), *manifest.vectors.values(), manifest.part_bytes)
        )
    ):
        raise CorruptionError(f"does not fit the store's {layout.STORE_JSON}", path=path)
    return manifest


def _numbers(root: Place, suffix: str) -> list[int]:
    """Return the numbers of all records or claims, in order."""
    found = (_RECORD.match(name) for name in reading.names_in(root, layout.SEGMENTS_DIR))
    return sorted(int(match[1]) for match in found if match and match[2] == suffix)


def segment_numbers(root: Place) -> list[int]:
    """Return the numbers of all records, in order."""
    return _numbers(root, "json")


def claim_numbers(root: Place) -> list[int]:
    """Return the numbers of all claims, in order."""
    return _numbers(root, "claim")


def numbers_from(root: RemotePath, first: int) -> tuple[set[int], set[int]]:
    """Return the numbers of the records and of the claims in a bucket, from the first one on."""
    found = [_RECORD.match(name) for name in root.list(layout.SEGMENTS_DIR, after=f"{first:08d}")]
    records, claims = (
        {int(match[1]) for match in found if match and match[2] == kind} for kind in ("json", "claim")
    )
    return records, claims


def dense_segments(root: Place, known: int = 0) -> int:
    """Return the number of records before the first gap.

    A writer gives the number that it knows of: listing all names for every segment would take ever longer.
    """
    if known:
        return next(number for number in itertools.count(known) if not has_record(root, number))
    numbers = _numbers(root, "json")
    return next((index for index, number in enumerate(numbers) if index != number), len(numbers))


def read_snapshot(root: Place) -> Snapshot:
    """Return the committed segments of this instant.

    Parameters
    ----------
    root : Path or RemotePath
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
        reading.require_own_dirs(root, f"{name}/x")
    for array in spec.arrays:
        reading.require_own_dirs(root, f"{layout.array_dir(array.name)}/c/x")
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


def read_claims(root: Place) -> list[Claim]:
    """Return the claims that exist, by segment."""
    claims = []
    for number in claim_numbers(root):
        path = layout.claim_path(number)
        try:
            claims.append(Claim.decode(reading.read_file(root, path), f"{root}/{path}"))
        except FileNotFoundError:
            continue  # its segment was committed just now
    return claims


def has_record(root: Place, segment: int) -> bool:
    """Tell whether a segment is committed."""
    return reading.exists(root, layout.record_path(segment))


def part_numbers(root: Place) -> list[int]:
    """Return the numbers of all parts, of committed segments or not."""
    try:
        reading.require_own_dirs(root, f"{layout.TABLE_DIR}/x")
        names = reading.names_in(root, layout.TABLE_DIR)
    except CorruptionError:  # which `read_snapshot` and audits report
        return []
    return [int(match[1]) for match in map(_PART.match, names) if match]


def check_records(
    root: Place, records: Collection[int], parts: Collection[int], owners: Collection[Owner]
) -> None:
    """Raise `CorruptionError` if a record is missing (`visible.missing_records`)."""
    if missing_records(records, parts):
        # Claims are listed after parts and records: one that was released by now has a record.
        claims, aside = claim_numbers(root), put_aside(root)
        for number in missing_records(records, parts, claims, aside, owners):
            if not has_record(root, number):
                raise CorruptionError(
                    "the record is missing, though there are later ones, or files of its segment: "
                    "'zarrow repair' sets what is left of the segment aside",
                    path=root / layout.record_path(number),
                )


def read_records_for(
    root: Place, spec: StoreSpec, numbers: Iterable[int], owners: Iterable[Owner]
) -> list[tuple[SegmentRecord, int]]:
    """Return the records that may have rows of these owners' open segments, each with its crc32c.

    And those that an open segment may be a copy of: after an open segment has got another owner, that number
    may be lower than `from_segment`. Once a repair has set segments aside, rows move to lower numbers, so
    that each record may have some.
    """
    owners = [*owners]
    first = min((one.from_segment for one in owners), default=layout.MAX_SEGMENTS)
    first = 0 if put_aside(root) else first
    reopened = {one.reopens[0] for one in owners if isinstance(one.reopens, tuple)}
    wanted = (number for number in numbers if number >= first or number in reopened)
    return [read_record(root, number, spec) for number in wanted]


_PART = re.compile(r"part-(\d{8})\.parquet\Z")
_PUT_ASIDE = re.compile(r"(\d{8})-\d+\Z")


def put_aside(root: Place) -> set[int]:
    """Return the numbers of all segments that were ever put aside."""
    try:
        names = reading.names_in(root, layout.QUARANTINE_DIR)
    except NotADirectoryError:
        return set()
    return {int(match[1]) for name in names if (match := _PUT_ASIDE.match(name))}
