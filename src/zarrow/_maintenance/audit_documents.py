"""Audit of documents — the manifest, claims, records and Zarr's metadata, against one another.

The manifest is read first, then claims, then records: a claim that is released meanwhile has a record. The
records add up to the dense prefix that readers see; one that is missing from it, or follows it, is damage.

The ``zarr.json`` documents are derived from the records: they must have the values that the writer would
write, or left when it was killed between a record and its documents.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path

from zarrow._format import layout, zarr_metadata
from zarrow._format.array_spec import ArraySpec
from zarrow._format.checksum import crc32c
from zarrow._format.documents import MAX_DOCUMENT_BYTES
from zarrow._format.records import Claim, Manifest, Owner, SegmentRecord, check_record, max_manifest_bytes
from zarrow._format.spec import StoreSpec
from zarrow._format.zarr_metadata import comparable
from zarrow._maintenance.audit_names import MAX_STRAYS, NamesAudit
from zarrow._maintenance.findings import AuditLog, Finding, said_by
from zarrow._read import catalog
from zarrow._read.catalog import put_aside
from zarrow._read.visible import missing_records
from zarrow._storage.reading import Beneath
from zarrow.errors import CorruptionError

__all__ = ["DocumentsAudit", "audit_metadata", "read_document"]

_RECORD = re.compile(r"(\d{8})\.(json|claim)\Z")


def read_document(files: Beneath, found: AuditLog, path: str, limit_bytes: int) -> bytes:
    """Return a document's bytes, counted as checked."""
    data = files.read(path, limit_bytes)
    found.checked_files += 1
    found.read(len(data))
    return data


class DocumentsAudit:
    """The audit of a store's manifest, claims and records, and what they add up to.

    Parameters
    ----------
    files : Beneath
        The store's files.
    spec : StoreSpec
        The store's declaration.
    found : AuditLog
        Collects the findings.
    names : NamesAudit
        The store's directories.
    """

    def __init__(self, files: Beneath, spec: StoreSpec, found: AuditLog, names: NamesAudit) -> None:
        self.files = files
        self.spec = spec
        self.found = found
        self.manifest: Manifest | None = None
        self.damaged_manifest = False
        self.claims: dict[int, Claim | None] = {}  # None: damaged
        self.records: dict[int, SegmentRecord] = {}  # the sound ones
        self.doubled: set[int] = set()  # whose rows are in another one
        self.checksums: dict[int, int] = {}
        self.numbers: set[int] = set()  # of all records, sound or not
        self.dense = 0
        self.segments = 0
        self.rows = 0
        self._names = names

    def read(self, parts: Collection[int], owners: Collection[Owner]) -> None:
        """Read the documents, and count the committed segments and rows.

        Parameters
        ----------
        parts : collection of int
            The numbers of parts, listed before.
        owners : collection of Owner
            Of the open segments.
        """
        self._manifest()
        self._segments_dir()
        self._check_manifest()
        self._count(parts, owners)

    def _manifest(self) -> None:
        path = layout.MANIFEST_JSON
        try:
            records = len(self.files.names(layout.SEGMENTS_DIR))
            data = read_document(self.files, self.found, path, max_manifest_bytes(self.spec, records))
            self.manifest = catalog.decode_manifest(data, self.spec, path)
        except FileNotFoundError:
            return
        except CorruptionError as error:
            self.damaged_manifest = True
            self.found.damage(path, error)

    def _segments_dir(self) -> None:
        """Read claims, then records: a claim that is released meanwhile has a record."""
        names = self._names.list(layout.SEGMENTS_DIR)
        claims: list[int] = []
        records: list[int] = []
        strays: list[str] = []
        for name, kind in sorted(names.items()):
            match = _RECORD.match(name)
            if match is None or kind != "file":
                strays.append(name)
                if match is not None and match[2] == "json":
                    records.append(int(match[1]))
            else:
                (records if match[2] == "json" else claims).append(int(match[1]))
        for number in claims:
            self._claim(number)
        for number in records:
            self._record(number)
        self._names.add_strays(layout.SEGMENTS_DIR, names, strays)

    def _record(self, number: int) -> None:
        path = layout.record_path(number)
        self.numbers.add(number)
        try:
            data = read_document(self.files, self.found, path, MAX_DOCUMENT_BYTES)
            record = SegmentRecord.decode(data, path)
            if record.segment != number:
                raise CorruptionError(f"the record of segment {record.segment}")
            check_record(record, self.spec, path)
            self.checksums[number] = crc32c(data)
            self.records[number] = record
        except FileNotFoundError:
            self.numbers.discard(number)  # a writer has just reopened it
        except CorruptionError as error:
            self.damage(number, path, error)

    def _check_manifest(self) -> None:
        """Distrust a manifest that contradicts sound records: these are compared with their files, too."""
        manifest, full = self.manifest, self.spec.segment_rows
        if manifest is None:
            return
        for number, record in sorted(self.records.items()):
            if number < manifest.segments and manifest.records_crc32c[number] == self.checksums[number]:
                rows = min(full, manifest.rows - number * full)
                sizes = {name: facts.size_bytes for name, facts in record.arrays.items()}
                stated = {name: manifest.shard_bytes[name][number] for name in sizes}
                part = manifest.part_bytes[number]
                if (record.rows, sizes, record.part.size_bytes) == (rows, stated, part):
                    continue
            self.manifest, self.damaged_manifest = None, True
            message = f"contradicts the record of segment {number}: it is of another state of the store"
            self.found.damage(layout.MANIFEST_JSON, message)
            return

    def _claim(self, number: int) -> None:
        path = layout.claim_path(number)
        try:
            claim = Claim.decode(read_document(self.files, self.found, path, MAX_DOCUMENT_BYTES), path)
            if claim.segment != number:
                raise CorruptionError(f"the claim of segment {claim.segment}")
            self.claims[number] = claim
        except FileNotFoundError:
            return
        except CorruptionError as error:
            self.claims[number] = None
            self.found.damage(path, error, segment=number)

    def damage(self, number: int, path: str, error: object) -> None:
        """Add damage to a segment, with the rows that it should have."""
        full = self.spec.segment_rows
        stop = (number + 1) * full if self.manifest is None else min((number + 1) * full, self.manifest.rows)
        rows = (number * full, stop) if number * full < stop else None
        message = said_by(path, error)
        self.found.add(Finding(severity="damage", path=path, message=message, segment=number, rows=rows))

    def _count(self, parts: Collection[int], owners: Collection[Owner]) -> None:
        """Find the dense prefix, and which records are missing from it."""
        self.dense = next(
            (index for index, number in enumerate(sorted(self.numbers)) if index != number),
            len(self.numbers),
        )
        expected = self.dense if self.manifest is None else self.manifest.segments
        last = max([*self.numbers, expected - 1], default=-1)
        aside = put_aside(self.files.root)
        if self.manifest is None:
            missing = missing_records(self.numbers, parts, self.claims, aside, owners)
            for number in (aside - self.numbers).intersection(range(self.dense, last)):
                message = "set aside by an interrupted repair, so that later rows have no final number yet"
                self.found.defect(layout.record_path(number), message)
        else:
            missing = [number for number in range(self.dense, last + 1) if number not in self.numbers]
        self.segments = last + 1
        for number in missing[:MAX_STRAYS]:
            self.damage(number, layout.record_path(number), "missing")
        if len(missing) > MAX_STRAYS:
            self.found.damage(layout.SEGMENTS_DIR, f"and so on, up to segment {last}")
        for number in sorted(self.numbers):
            record = self.records.get(number)
            if record is not None and record.rows < self.spec.segment_rows and number + 1 in self.numbers:
                self.damage(
                    number, layout.record_path(number), f"only {record.rows} rows, but not the last segment"
                )
        final = self.records.get(self.dense - 1)
        self.rows = max(self.dense - 1, 0) * self.spec.segment_rows + (final.rows if final else 0)
        if self.dense and final is None:
            self.rows = self.dense * self.spec.segment_rows if self.manifest is None else self.manifest.rows

    @property
    def behind_gap(self) -> list[SegmentRecord]:
        """The sound records that are not in the dense prefix."""
        return [record for number, record in self.records.items() if number >= self.dense]

    def is_pending(self, number: int) -> bool:
        """Tell whether a killed writer may have left files under this segment number."""
        return number in self.claims or (self.manifest is None and number >= self.dense)


# Zarr's metadata


def audit_metadata(documents: DocumentsAudit, owners: Iterable[Owner]) -> None:
    """Compare Zarr's metadata with the records; some open segments are copies of committed ones."""
    reopened = [one.reopens[0] for one in owners if isinstance(one.reopens, tuple)]
    spec = documents.spec
    settled = max(documents.records, default=-1) + 1 == documents.dense and not documents.damaged_manifest
    stale = set() if documents.manifest is not None else _stale_rows(documents, reopened)
    derived: list[tuple[str, Callable[[int, dict[str, int]], bytes]]] = [
        (
            f"{layout.ARRAYS_DIR}/zarr.json",
            lambda rows, widths: zarr_metadata.group_json(spec, rows, widths=widths),
        ),
        *(
            (
                f"{layout.array_dir(array.name)}/zarr.json",
                partial(_array_json, spec, array),
            )
            for array in spec.arrays
        ),
    ]
    for path, make in derived:
        try:
            data = read_document(documents.files, documents.found, path, MAX_DOCUMENT_BYTES)
        except FileNotFoundError:
            documents.found.defect(path, "missing: Zarr readers find no array")
            continue
        except CorruptionError as error:
            documents.found.defect(path, error)
            continue
        try:
            found, consolidated = comparable(data)
        except ValueError:
            documents.found.defect(path, "damaged: not JSON")
            continue

        fits = {
            rows: found == expected and consolidated in ({}, arrays)
            for rows in (documents.rows, *stale)
            for expected, arrays in (comparable(make(rows, _widths(documents, rows))),)
        }
        if fits[documents.rows]:
            continue
        if any(fits.values()):
            documents.found.note(path, "without the last segment: its writer was about to add it")
        else:
            rule = "" if settled else ", as far as damaged records show"
            shapes = {
                str(one.get("shape"))
                for one in (found, *consolidated.get("metadata", {}).values())
                if "shape" in one and one["shape"][:1] != [documents.rows]
            }
            seen = f": it says shape {' and '.join(sorted(shapes))}"[:200] if shapes else ""
            documents.found.defect(
                path,
                f"not the metadata of the {documents.rows:,} committed rows{rule}{seen}: another program may "
                "have changed it, and 'zarrow repair' writes it again",
            )


def _array_json(spec: StoreSpec, array: ArraySpec, rows: int, widths: dict[str, int]) -> bytes:
    return zarr_metadata.array_json(spec, array, rows, width=widths.get(array.name, 0))


def _widths(documents: DocumentsAudit, rows: int) -> dict[str, int]:
    """Return the most vectors of a segment, for each ragged array, as Zarr's metadata must state them."""
    full = documents.spec.segment_rows
    shown = [one for number, one in documents.records.items() if number * full < rows]
    return {
        array.name: max((one.items(array) for one in shown), default=0) for array in documents.spec.ragged
    }


def _stale_rows(documents: DocumentsAudit, reopened: list[int]) -> set[int]:
    """Return the lengths that a killed writer may leave in Zarr's metadata.

    It was killed after it had committed a segment, whose claim is still there; or before it took back the
    last segment, of which it had made a copy. In a bucket, writers leave that to the end.
    """
    committing = [number for number in (*documents.claims, *reopened) if number < documents.dense]
    first = min(committing, default=documents.dense)
    if documents.manifest is None and not isinstance(documents.files.root, Path):
        first = 0
    return {number * documents.spec.segment_rows for number in range(first, documents.dense)}
