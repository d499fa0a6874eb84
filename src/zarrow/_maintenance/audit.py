"""Audit — everything that a store says about itself, compared.

There are three levels, each including the ones before it:

1. *structure*: documents, sizes, shard indexes, Zarr metadata, journals; reads few of the rows;
2. *checksums*: every byte that was written. Finds every flipped bit;
3. *full*: decodes pages and chunks. Finds what a faulty or hostile writer wrote with correct checksums.

Nothing is used before its checksum has been verified, and paths are not assumed to be regular files
(`_storage.reading`).

Writers may be active. Rows move from open segments to claims to records, so they are checked in this order;
if a problem was found and the store has changed meanwhile, they are checked again. Committed segments do not
change, and are read last.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from zarrow._format import layout
from zarrow._format.bucket import HOLDER, Holder
from zarrow._format.codecs import ChunkCodec
from zarrow._format.documents import MAX_DOCUMENT_BYTES
from zarrow._format.records import Owner, SegmentRecord, max_manifest_bytes
from zarrow._format.spec import StoreSpec
from zarrow._maintenance.audit_documents import DocumentsAudit, audit_metadata, read_document
from zarrow._maintenance.audit_index import audit_index, index_size
from zarrow._maintenance.audit_names import NamesAudit
from zarrow._maintenance.audit_open_segments import audit_open_segment
from zarrow._maintenance.audit_segment import audit_segment, record_bytes
from zarrow._maintenance.audit_sources import audit_sources
from zarrow._maintenance.audit_statistics import audit_statistics
from zarrow._maintenance.findings import AuditLog, Finding, Level, Progress, Report, said_by
from zarrow._read import catalog
from zarrow._read.derived_arrays import derived_names, is_of
from zarrow._read.visible import OpenSegmentFacts
from zarrow._storage.reading import Beneath, Place
from zarrow.errors import CorruptionError, InvalidInputError, NotFoundError

__all__ = ["Audited", "audit"]

_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class Audited:
    """An audit's report, and what else a repair needs to know.

    Parameters
    ----------
    report : Report
        What `verify` returns.
    spec : StoreSpec or None
        The store's declaration; None if that is damaged.
    records : dict of int to SegmentRecord
        The sound records.
    damaged : frozenset of int
        The damaged segments.
    checksums : dict of int to int
        The crc32c of their files.
    doubled : frozenset of int
        Segments whose rows are in another one, too.
    slots : dict of str to OpenSegmentFacts
        The open segments whose owner is known.
    """

    report: Report
    spec: StoreSpec | None
    records: dict[int, SegmentRecord]
    checksums: dict[int, int]
    damaged: frozenset[int]
    doubled: frozenset[int]
    slots: dict[str, OpenSegmentFacts]


def audit(root: Place, level: Level, progress: Progress | None = None, *, derived: bool = True) -> Audited:
    """Check a store and its derived arrays, which have no derived arrays of their own.

    Raises
    ------
    StoreNotFoundError, NotAStoreError
        If there is no store.
    """
    found = AuditLog(level)
    if not isinstance(root, Path):
        with contextlib.suppress(FileNotFoundError):
            root.fetch(layout.STORE_JSON)  # raises if there is no such bucket, which is no damage
    try:
        spec = catalog.read_spec(root)
        for array in spec.arrays:
            ChunkCodec(array)
    except (CorruptionError, InvalidInputError) as error:
        message = said_by(root / layout.STORE_JSON, error)
        found.damage(layout.STORE_JSON, f"{message}; nothing else can be checked without it")
        report = Report(path=str(root), level=level, findings=found.sorted())
        return Audited(report, None, {}, {}, frozenset(), frozenset(), {})
    for _ in range(_ATTEMPTS):
        found = AuditLog(level, progress)
        one = _StoreAudit(Beneath(root), spec, found)
        before = one.pulse()
        one.run()
        if found.ok or one.pulse() == before:
            break
    one.run_segments()
    if derived:
        one.run_derived(level)
    report = Report(
        path=str(root),
        level=level,
        complete=one.documents.manifest is not None,
        rows=one.documents.rows + sum(record.rows for record in one.documents.behind_gap),
        segments=one.documents.dense + len(one.documents.behind_gap),
        open_rows=one.open_rows,
        checked_files=found.checked_files,
        checked_bytes=found.checked_bytes,
        findings=found.sorted(),
    )
    damaged = frozenset(
        finding.segment
        for finding in report.findings
        if finding.severity == "damage" and finding.segment is not None
    )
    documents = one.documents
    doubled = frozenset(documents.doubled)
    return Audited(
        report,
        spec,
        documents.records,
        documents.checksums,
        damaged,
        doubled,
        one.slots,
    )


class _StoreAudit:
    """One audit of one store, and its findings so far."""

    def __init__(self, files: Beneath, spec: StoreSpec, found: AuditLog) -> None:
        self.files = files
        self.spec = spec
        self.found = found
        self.open_rows = 0
        self._names = NamesAudit(files, spec, found)
        self.documents = DocumentsAudit(files, spec, found, self._names)
        self.slots: dict[str, OpenSegmentFacts] = {}

    def run(self) -> None:
        """Check all but committed segments; open ones first, since their rows may be committed meanwhile."""
        parts = catalog.part_numbers(self.files.root)
        self._open()
        owners = [facts.owner for facts in self.slots.values()]
        self.documents.read(parts, owners)
        self.open_rows = audit_sources(self.documents, self.slots)
        audit_metadata(self.documents, owners)
        audit_statistics(self.documents)
        self._names.audit(self.documents.numbers, self.documents.is_pending)

    def run_segments(self) -> None:
        """Check the files of all committed segments, then the key index."""
        records = self.documents.records
        self.found.total_bytes = sum(map(record_bytes, records.values())) + index_size(self.files)
        for record in records.values():
            audit_segment(self.files, self.spec, record, self.found)
        in_order = [record for _, record in sorted(records.items())]
        audit_index(self.files, self.spec, self.documents.manifest, in_order, self.found)

    def run_derived(self, level: Level) -> None:
        """Check the derived arrays. The store's rows do not depend on them, so any damage is a defect."""
        names = self._names.list(layout.DERIVED_DIR)
        known = set(derived_names(self.files.root))
        locks = {f"{name}{layout.LOCK_SUFFIX}" for name in known}
        unfinished = {name for name in names if name.removesuffix(layout.INCOMING_SUFFIX) in known} - known
        strays = [one for one in names if one not in known | unfinished | locks]
        self._names.add_strays(layout.DERIVED_DIR, names, strays)
        for name in sorted(unfinished):
            self.found.note(f"{layout.DERIVED_DIR}/{name}", "an unfinished derived array; readers ignore it")
        for name in sorted(known):
            self._derived(f"{layout.DERIVED_DIR}/{name}", level)

    def _derived(self, path: str, level: Level) -> None:
        try:
            one = audit(self.files.root / path, level, derived=False)
        except NotFoundError:
            self.found.note(path, "an unfinished derived array; readers ignore it")
            return
        if one.spec is not None and not self.files.exists(f"{path}/{layout.MANIFEST_JSON}"):
            self.found.note(path, "an unfinished derived array; readers ignore it")
            return
        for finding in one.report.findings:
            self.found.add(
                Finding(
                    severity="note" if finding.severity == "note" else "defect",
                    path=f"{path}/{finding.path}".rstrip("/"),
                    message=f"{finding.message} (in a derived array: compute it again)",
                )
            )
        self.found.checked_files += one.report.checked_files
        self.found.read(one.report.checked_bytes)
        if one.spec is not None and (now := self.documents.manifest) and not is_of(one.spec, now.identity):
            self.found.note(path, "derived from other rows than the store has now; readers ignore it")

    def pulse(self) -> object:
        """Return a value that changes when a writer commits or opens a segment, or completes the store."""
        names = self.files.names(layout.SEGMENTS_DIR), self.files.names(layout.OPEN_DIR)
        try:
            limit_bytes = max_manifest_bytes(self.spec, len(names[0]))
            return names, self.files.read(layout.MANIFEST_JSON, limit_bytes)
        except (FileNotFoundError, CorruptionError):
            return names, None

    # Open segments

    def _open(self) -> None:
        names = self._names.list(layout.OPEN_DIR)
        counted = None if isinstance(self.files.root, Path) else self._tails()
        strays = []
        # The newest first: if it has rows, then the one that its writer filled before was full by then.
        for name, kind in sorted(names.items(), reverse=True):
            if kind == "directory" and layout.is_slot(name):
                if counted is not None and name not in counted:
                    message = "a tail that is being put here or removed, or was when its writer was killed"
                    self.found.note(f"{layout.OPEN_DIR}/{name}", message)
                    continue
                facts = audit_open_segment(self.files, self.spec, name, self.found)
                if facts is not None:
                    self.slots[name] = facts
                self._slot_lock(name)
            elif name == layout.LOCK and kind == "file":
                self._lock()
            elif name.startswith(layout.SCRATCH_PREFIX) and kind in ("file", "directory"):
                self.found.note(f"{layout.OPEN_DIR}/{name}", "a scratch file, which the next writer removes")
            else:
                strays.append(name)
        self._names.add_strays(layout.OPEN_DIR, names, strays)

    def _tails(self) -> Collection[str]:
        """Return the open segments that count in a bucket."""
        try:
            return Holder.decode(self.files.read(HOLDER, MAX_DOCUMENT_BYTES), HOLDER).tails
        except (FileNotFoundError, CorruptionError):  # which `_lock` reports
            return ()

    def _lock(self) -> None:
        path = f"{layout.OPEN_DIR}/{layout.LOCK}"
        try:
            data = read_document(self.files, self.found, path, MAX_DOCUMENT_BYTES)
            if data:
                Owner.decode(data, path)
        except FileNotFoundError:
            return
        except CorruptionError as error:
            self.found.defect(path, f"does not say which process wrote last: {said_by(path, error)}")

    def _slot_lock(self, slot: str) -> None:
        self._names.audit_slot(slot)
        path = layout.slot_dir(slot)
        try:
            with self.files.open(f"{path}/{layout.LOCK}") as file:
                if file.size_bytes:
                    self.found.defect(f"{path}/{layout.LOCK}", "not empty")
        except (FileNotFoundError, CorruptionError):
            pass
