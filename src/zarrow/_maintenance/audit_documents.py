"""What do a store's documents say is committed, and do they agree?

The manifest is read first, then claims, then records: a claim that is released meanwhile has a record. What
the records add up to is the dense prefix that readers see; what is missing from it, or follows it, is damage.

Place: tier 3, used by `audit`. Reads only.
"""

from __future__ import annotations

import re

from zarrow._format import layout
from zarrow._format.checksum import crc32c
from zarrow._format.documents import MAX_DOCUMENT_BYTES
from zarrow._format.records import Claim, Manifest, SegmentRecord, check_record
from zarrow._format.spec import StoreSpec
from zarrow._maintenance.audit_names import MAX_STRAYS, Names
from zarrow._maintenance.findings import Finding, Findings, said_by
from zarrow._read import catalog
from zarrow._read.catalog import put_aside
from zarrow._storage.reading import Beneath
from zarrow.errors import CorruptionError

__all__ = ["Documents", "read_document"]

_RECORD = re.compile(r"(\d{8})\.(json|claim)\Z")


def read_document(files: Beneath, found: Findings, path: str, limit_bytes: int) -> bytes:
    """Return a document's bytes, counted as checked."""
    data = files.read(path, limit_bytes)
    found.checked_files += 1
    found.read(len(data))
    return data


class Documents:
    """The manifest, claims and records of a store, and what they add up to.

    Parameters
    ----------
    files : Beneath
        The store's.
    spec : StoreSpec
        What the store is.
    found : Findings
        Takes what is wrong.
    names : Names
        The store's directories.
    """

    def __init__(self, files: Beneath, spec: StoreSpec, found: Findings, names: Names) -> None:
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
