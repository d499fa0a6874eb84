"""What do a store's documents say is committed, and do they agree?

The manifest is read first, then claims, then records: a claim that is released meanwhile has a record. What
the records add up to is the dense prefix that readers see; what is missing from it, or follows it, is damage.

Place: tier 3, used by `audit`. Reads only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial

from zarrow._format import layout, zarr_metadata
from zarrow._format.checksum import crc32c
from zarrow._format.documents import MAX_DOCUMENT_BYTES
from zarrow._format.records import Claim, Manifest, SegmentRecord, check_record
from zarrow._format.spec import StoreSpec
from zarrow._maintenance.audit_names import MAX_STRAYS, NamesAudit
from zarrow._maintenance.findings import AuditLog, Finding, said_by
from zarrow._read import catalog
from zarrow._read.catalog import put_aside
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
    """The manifest, claims and records of a store, and what they add up to.

    Parameters
    ----------
    files : Beneath
        The store's.
    spec : StoreSpec
        What the store is.
    found : AuditLog
        Takes what is wrong.
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
        self.records: dict[int, SegmentRecord] = {}  # those that can be believed
        self.numbers: set[int] = set()  # of all records
        self.dense = 0
        self.segments = 0
        self.rows = 0
        self._names = names

    def read(self) -> None:
        """Read the documents, and count."""
        self._manifest()
        self._segments_dir()
        self._count()

    def _manifest(self) -> None:
        path = layout.MANIFEST_JSON
        try:
            data = read_document(self.files, self.found, path, MAX_DOCUMENT_BYTES)
            self.manifest = catalog.decode_manifest(data, self.spec, path)
        except FileNotFoundError:
            return
        except CorruptionError as error:
            self.damaged_manifest = True
            self.found.damage(path, error)

    def _segments_dir(self) -> None:
        """Read records and claims, the claims first: one that is released meanwhile has a record."""
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
        self._names.tell(layout.SEGMENTS_DIR, names, strays)

    def _record(self, number: int) -> None:
        path = layout.record_path(number)
        self.numbers.add(number)
        try:
            data = read_document(self.files, self.found, path, MAX_DOCUMENT_BYTES)
            record = SegmentRecord.decode(data, path)
            if record.segment != number:
                raise CorruptionError(f"the record of segment {record.segment}")
            check_record(record, self.spec, path)
            self._against_manifest(record, crc32c(data))
            self.records[number] = record
        except FileNotFoundError:
            self.numbers.discard(number)  # a writer reopened it just now
        except CorruptionError as error:
            self.damage(number, path, error)

    def _against_manifest(self, record: SegmentRecord, checksum: int) -> None:
        manifest, number = self.manifest, record.segment
        if manifest is None:
            return
        if number >= manifest.segments:
            raise CorruptionError("a segment that the manifest does not have")
        if manifest.records_crc32c[number] != checksum:
            raise CorruptionError("not the record that the manifest was made of")
        rows = min(self.spec.segment_rows, manifest.rows - number * self.spec.segment_rows)
        if (
            record.rows != rows
            or record.part.size_bytes != manifest.part_bytes[number]
            or any(
                facts.size_bytes != manifest.shard_bytes[name][number]
                for name, facts in record.arrays.items()
            )
        ):
            raise CorruptionError("rows or sizes are not those of the manifest")

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
        """Take damage of a segment down, with the rows that it should have."""
        full = self.spec.segment_rows
        stop = (number + 1) * full if self.manifest is None else min((number + 1) * full, self.manifest.rows)
        rows = (number * full, stop) if number * full < stop else None
        message = said_by(path, error)
        self.found.add(Finding(severity="damage", path=path, message=message, segment=number, rows=rows))

    def _count(self) -> None:
        """Find the dense prefix, and what is missing from it."""
        self.dense = next(
            (index for index, number in enumerate(sorted(self.numbers)) if index != number),
            len(self.numbers),
        )
        expected = self.dense if self.manifest is None else self.manifest.segments
        last = max([*self.numbers, expected - 1], default=-1)
        aside = put_aside(self.files.root)
        self.segments = last + 1
        for number in range(self.dense, last + 1):
            if number in self.numbers:
                continue
            if number in self.claims and self.manifest is None:
                continue  # below
            if number in aside and self.manifest is None:
                message = (
                    "was put aside by a repair that was interrupted: later rows are hidden until the next"
                )
                self.found.defect(layout.record_path(number), message)
                continue
            self.damage(number, layout.record_path(number), "it is not there")
            if number - self.dense > MAX_STRAYS:
                self.found.damage(layout.SEGMENTS_DIR, f"and so on up to segment {last}")
                break
        for number in sorted(self.numbers):
            record = self.records.get(number)
            if record is not None and record.rows < self.spec.segment_rows and number + 1 in self.numbers:
                self.damage(number, layout.record_path(number), f"{record.rows} rows, but it is not the last")
        final = self.records.get(self.dense - 1)
        self.rows = max(self.dense - 1, 0) * self.spec.segment_rows + (final.rows if final else 0)
        if self.dense and final is None:
            self.rows = self.dense * self.spec.segment_rows if self.manifest is None else self.manifest.rows

    def is_pending(self, number: int) -> bool:
        """Tell whether a writer that was killed may have left files under this segment number."""
        return number in self.claims or (self.manifest is None and number >= self.dense)


# Zarr's metadata


def audit_metadata(documents: DocumentsAudit, reopened: list[int]) -> None:
    """Compare the documents; of the segments that are `reopened`, copies are open."""
    spec = documents.spec
    settled = max(documents.records, default=-1) + 1 == documents.dense and not documents.damaged_manifest
    stale = set() if documents.manifest is not None else _stale_rows(documents, reopened)
    derived: list[tuple[str, Callable[[int], bytes]]] = [
        (f"{layout.ARRAYS_DIR}/zarr.json", partial(zarr_metadata.group_json, spec)),
        *(
            (
                f"{layout.array_dir(array.name)}/zarr.json",
                partial(zarr_metadata.array_json, spec, array),
            )
            for array in spec.arrays
        ),
    ]
    for path, make in derived:
        expected = make(documents.rows)
        try:
            data = read_document(documents.files, documents.found, path, len(expected) + (1 << 16))
        except FileNotFoundError:
            documents.found.defect(path, "it is not there: Zarr readers find no array")
            continue
        except CorruptionError as error:
            documents.found.defect(path, error)
            continue
        if data == expected:
            continue
        if any(data == make(rows) for rows in stale):
            documents.found.note(path, "a writer has not yet told Zarr readers of its last segment")
        else:
            documents.found.defect(path, _difference(data, expected, settled))


def _stale_rows(documents: DocumentsAudit, reopened: list[int]) -> set[int]:
    """Return the lengths that a writer may leave in Zarr's metadata if it is killed.

    After it has committed a segment, whose claim still stands; or before it takes the last one back,
    whose copy is there.
    """
    committing = [number for number in (*documents.claims, *reopened) if number < documents.dense]
    first = min(committing, default=documents.dense)
    return {number * documents.spec.segment_rows for number in range(first, documents.dense)}


def _difference(data: bytes, expected: bytes, settled: bool) -> str:
    try:
        same = json.loads(data) == json.loads(expected)
    except (ValueError, RecursionError):
        return "damaged: it is no JSON"
    if same:
        return "the same metadata, but not as zarrow writes them"
    rule = "" if settled else ", as far as that can be told from damaged records"
    return f"not the metadata of the committed rows{rule}"
