"""Does everything that a store says of itself agree?

Three levels, each with those before it:

1. *structure*: documents, sizes, shard indexes, Zarr metadata, journals; reads little of the rows;
2. *checksums*: every byte that was written down. Finds every flipped bit;
3. *full*: decodes pages and chunks. Finds what a faulty or hostile writer wrote with sound checksums.

Nothing is used before its checksum holds, and the files are not trusted to be files (`_beneath`).

Writers may be at work. So open segments are looked at first, then claims, then records, since rows move in
this direction; and where something is wrong and the store has changed meanwhile, it is looked at again. What
was committed stays as it is, and is read last.

Place: tier 3, used by `verify` and `repair`; orders what the other audits do. Reads only.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from zarrow import _catalog, _zarr_metadata, layout
from zarrow._audit_index import audit_index, index_size
from zarrow._audit_names import MAX_STRAYS, Names
from zarrow._audit_open import MAX_OWNER_BYTES, OpenFacts, audit_slot
from zarrow._audit_segment import audit_segment, record_bytes
from zarrow._beneath import Beneath
from zarrow._catalog import Snapshot
from zarrow._checksum import crc32c
from zarrow._codecs import ChunkCodec
from zarrow._files import MAX_DOCUMENT_BYTES
from zarrow._findings import Finding, Findings, Level, Progress, Report
from zarrow._origin import derived_names, origin, said_origin
from zarrow._quarantine import put_aside
from zarrow._records import Claim, Manifest, Owner, SegmentRecord, Source, check_record
from zarrow.errors import CorruptionError, InvalidInputError, NotFoundError
from zarrow.layout import StoreSpec

__all__ = ["Audited", "audit"]

_ATTEMPTS = 10
_RECORD = re.compile(r"(\d{8})\.(json|claim)\Z")


@dataclass(frozen=True, slots=True)
class Audited:
    """An audit's report, and what a repair wants to know beside it.

    Parameters
    ----------
    report : Report
        What `verify` returns.
    spec : StoreSpec or None
        What the store is; None if that is damaged.
    records : dict of int to SegmentRecord
        The records that can be believed.
    damaged : frozenset of int
        The segments of which something is damaged.
    segments : int
        How many segments there should be: those of the manifest, or up to the last that has a record.
    """

    report: Report
    spec: StoreSpec | None
    records: dict[int, SegmentRecord]
    damaged: frozenset[int]
    segments: int


def audit(root: Path, level: Level, progress: Progress | None = None, *, derived: bool = True) -> Audited:
    """Look at a store, and at its derived arrays, which have none of their own.

    Raises
    ------
    StoreNotFoundError, NotAStoreError
        If there is none.
    """
    found = Findings(level)
    try:
        spec = _catalog.read_spec(root)
        for array in spec.arrays:
            ChunkCodec(array)
    except (CorruptionError, InvalidInputError) as error:
        message = str(error).removeprefix(f"{root / layout.STORE_JSON}: ")
        found.damage(layout.STORE_JSON, f"{message}; nothing else can be judged without it")
        report = Report(path=str(root), level=level, findings=found.sorted())
        return Audited(report, None, {}, frozenset(), 0)
    for _ in range(_ATTEMPTS):
        found = Findings(level, progress)
        one = _Audit(Beneath(root), spec, found)
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
        complete=one.manifest is not None,
        rows=one.rows,
        segments=one.dense,
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
    return Audited(report, spec, one.records, damaged, one.segments)


@dataclass
class _Audit:
    """One look at one store, and what it found so far."""

    files: Beneath
    spec: StoreSpec
    found: Findings
    manifest: Manifest | None = None
    dense: int = 0
    rows: int = 0
    open_rows: int = 0
    _damaged_manifest: bool = False
    _slots: dict[str, OpenFacts] = field(default_factory=dict)
    records: dict[int, SegmentRecord] = field(default_factory=dict)
    segments: int = 0
    _numbers: set[int] = field(default_factory=set)
    _claims: dict[int, Claim | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._names = Names(self.files, self.spec, self.found)

    def run(self) -> None:
        """Look at everything; open segments first, since their rows may be committed meanwhile."""
        self._open()
        self._manifest()
        self._segments_dir()
        self._count()
        self._sources()
        self._zarr_metadata()
        self._names.audit(self._numbers, self._is_pending)

    def run_segments(self) -> None:
        """Look at the files of all committed segments, then at the index of their keys."""
        self.found.total_bytes = sum(map(record_bytes, self.records.values())) + index_size(self.files)
        for record in self.records.values():
            audit_segment(self.files, self.spec, record, self.found)
        records = [record for _, record in sorted(self.records.items())]
        audit_index(self.files, self.spec, self.manifest, records, self.found)

    def run_derived(self, level: Level) -> None:
        """Look at the derived arrays. The store's rows do not depend on them: what is wrong is a defect."""
        names = self._names.list(layout.DERIVED_DIR)
        known = set(derived_names(self.files.root))
        locks = {f"{name}{layout.LOCK_SUFFIX}" for name in known}
        unfinished = {name for name in names if name.removesuffix(layout.INCOMING_SUFFIX) in known} - known
        strays = [one for one in names if one not in known | unfinished | locks]
        self._names.tell(layout.DERIVED_DIR, names, strays)
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
        for finding in one.report.findings:
            self.found.add(
                Finding(
                    severity="note" if finding.severity == "note" else "defect",
                    path=f"{path}/{finding.path}".rstrip("/"),
                    message=f"{finding.message} (of a derived array: make it anew)",
                )
            )
        self.found.checked_files += one.report.checked_files
        self.found.read(one.report.checked_bytes)
        if one.spec is not None and not one.report.complete:
            self.found.note(path, "an unfinished derived array; readers ignore it")
        elif one.spec is not None and self.manifest is not None:
            mine = origin(Snapshot(self.files.root, self.spec, self.rows, self.segments, self.manifest))
            if said_origin(one.spec) != mine:
                self.found.note(path, "derived from other rows than these; readers ignore it")

    def pulse(self) -> object:
        """Return something that changes when a writer does something."""
        names = self.files.names(layout.SEGMENTS_DIR), self.files.names(layout.OPEN_DIR)
        return names, self.files.exists(layout.MANIFEST_JSON)

    # Documents

    def _document(self, path: str, limit_bytes: int) -> bytes:
        data = self.files.read(path, limit_bytes)
        self.found.checked_files += 1
        self.found.read(len(data))
        return data

    def _manifest(self) -> None:
        path = layout.MANIFEST_JSON
        try:
            self.files.open(path).__exit__()
            self.manifest = _catalog.read_manifest(self.files.root, self.spec)
            self.found.checked_files += 1
        except FileNotFoundError:
            return
        except CorruptionError as error:
            self._damaged_manifest = True
            self.found.damage(path, _of(self.files.root / path, error))

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
        self._numbers.add(number)
        try:
            data = self._document(path, MAX_DOCUMENT_BYTES)
            record = SegmentRecord.decode(data, path)
            if record.segment != number:
                raise CorruptionError(f"the record of segment {record.segment}")
            check_record(record, self.spec, path)
            self._against_manifest(record, crc32c(data))
            self.records[number] = record
        except FileNotFoundError:
            self._numbers.discard(number)  # a writer reopened it just now
        except CorruptionError as error:
            self._damage(number, path, error)

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
            claim = Claim.decode(self._document(path, MAX_DOCUMENT_BYTES), path)
            if claim.segment != number:
                raise CorruptionError(f"the claim of segment {claim.segment}")
            self._claims[number] = claim
        except FileNotFoundError:
            return
        except CorruptionError as error:
            self._claims[number] = None
            self.found.damage(path, _of(path, error), segment=number)

    def _damage(self, number: int, path: str, error: object) -> None:
        full = self.spec.segment_rows
        stop = (number + 1) * full if self.manifest is None else min((number + 1) * full, self.manifest.rows)
        rows = (number * full, stop) if number * full < stop else None
        message = _of(path, error)
        self.found.add(Finding(severity="damage", path=path, message=message, segment=number, rows=rows))

    # What the records add up to

    def _count(self) -> None:
        """Find the dense prefix, and what is missing from it."""
        self.dense = next(
            (index for index, number in enumerate(sorted(self._numbers)) if index != number),
            len(self._numbers),
        )
        expected = self.dense if self.manifest is None else self.manifest.segments
        last = max([*self._numbers, expected - 1], default=-1)
        aside = put_aside(self.files.root)
        self.segments = last + 1
        for number in range(self.dense, last + 1):
            if number in self._numbers:
                continue
            if number in self._claims and self.manifest is None:
                continue  # below
            if number in aside and self.manifest is None:
                message = (
                    "was put aside by a repair that was interrupted: later rows are hidden until the next"
                )
                self.found.defect(layout.record_path(number), message)
                continue
            self._damage(number, layout.record_path(number), "it is not there")
            if number - self.dense > MAX_STRAYS:
                self.found.damage(layout.SEGMENTS_DIR, f"and so on up to segment {last}")
                break
        for number in sorted(self._numbers):
            record = self.records.get(number)
            if record is not None and record.rows < self.spec.segment_rows and number + 1 in self._numbers:
                self._damage(
                    number, layout.record_path(number), f"{record.rows} rows, but it is not the last"
                )
        final = self.records.get(self.dense - 1)
        self.rows = max(self.dense - 1, 0) * self.spec.segment_rows + (final.rows if final else 0)
        if self.dense and final is None:
            self.rows = self.dense * self.spec.segment_rows if self.manifest is None else self.manifest.rows

    def _sources(self) -> None:
        """Compare claims, records and open segments: every accepted row counts exactly once."""
        used: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
        for record in self.records.values():
            for source in record.sources:
                used[source.slot].append((source.start, source.stop, record.segment))
        for slot, pieces in used.items():
            pieces.sort()
            for (_, stop, one), (start, _, other) in itertools.pairwise(pieces):
                if start < stop:
                    path = layout.record_path(other)
                    self._damage(other, path, f"rows of {slot} that segment {one} has too")
        for number, claim in self._claims.items():
            if claim is not None:
                self._check_claim(number, claim)
        for slot, facts in self._slots.items():
            self._check_slot(facts, used.get(slot, []))
        self._check_order()

    def _check_claim(self, number: int, claim: Claim) -> None:
        path = layout.claim_path(number)
        if number in self._numbers:
            self.found.note(path, "the segment is committed; its writer has not cleaned up", segment=number)
            return
        lacking = [source for source in claim.sources if not self._has(source)]
        if lacking and not self.files.exists(layout.record_path(number)):
            names = ", ".join(f"{source.slot} up to {source.stop}" for source in lacking)
            self.found.damage(path, f"claims rows that are not there: of {names}", segment=number)
        elif self.manifest is not None:
            self.found.damage(path, "a claim of a segment that a complete store lacks", segment=number)
        else:
            self.found.note(path, f"{claim.rows} rows are about to be committed", segment=number)

    def _has(self, source: Source) -> bool:
        facts = self._slots.get(source.slot)
        return facts is not None and source.stop <= facts.rows

    def _check_slot(self, facts: OpenFacts, used: Iterable[tuple[int, int, int]]) -> None:
        path = layout.slot_dir(facts.slot)
        committed = sum(stop - start for start, stop, _ in used)
        reopens = None if facts.owner is None else facts.owner.reopens
        if reopens is not None and reopens in self._numbers:
            self.found.note(path, f"a copy of segment {reopens} that does not count (yet)")
            return
        rows = facts.rows - min(committed, facts.rows)
        self.open_rows += rows
        if committed:
            self.found.note(path, "its rows are being committed; its writer has not cleaned up")
        elif rows and self.manifest is not None:
            self.found.damage(path, f"{rows} rows in an open segment of a complete store")

    def _check_order(self) -> None:
        """Tell of rows that recovery would drop, because rows before them are gone."""
        sessions: dict[str, list[OpenFacts]] = defaultdict(list)
        for facts in self._slots.values():
            if facts.owner is not None and facts.owner.reopens is None:
                sessions[facts.owner.session].append(facts)
        for group in sessions.values():
            group.sort(key=lambda facts: facts.owner.sequence if facts.owner else 0)
            for before, after in itertools.pairwise(group):
                if before.rows < self.spec.segment_rows and after.rows:
                    self.found.damage(
                        layout.slot_dir(after.slot),
                        f"{after.rows} rows, though {before.slot}, which its writer filled before, has only "
                        f"{before.rows}: unless a power cut took rows, some were damaged",
                    )

    # Open segments

    def _open(self) -> None:
        names = self._names.list(layout.OPEN_DIR)
        strays = []
        # The newest first: if rows are in one, then the one that its writer filled before was full by then.
        for name, kind in sorted(names.items(), reverse=True):
            if kind == "directory" and layout.is_slot(name):
                facts = audit_slot(self.files, self.spec, name, self.found)
                if facts is not None:
                    self._slots[name] = facts
                self._slot_lock(name)
            elif name == layout.LOCK and kind == "file":
                self._lock()
            elif name.startswith(layout.SCRATCH_PREFIX) and kind in ("file", "directory"):
                self.found.note(f"{layout.OPEN_DIR}/{name}", "a scratch file, which the next writer removes")
            else:
                strays.append(name)
        self._names.tell(layout.OPEN_DIR, names, strays)

    def _lock(self) -> None:
        path = f"{layout.OPEN_DIR}/{layout.LOCK}"
        try:
            data = self._document(path, MAX_OWNER_BYTES)
            if data:
                Owner.decode(data, path)
        except FileNotFoundError:
            return
        except CorruptionError as error:
            self.found.defect(path, f"it does not say who wrote last: {_of(path, error)}")

    def _slot_lock(self, slot: str) -> None:
        self._names.audit_slot(slot)
        path = layout.slot_dir(slot)
        try:
            with self.files.open(f"{path}/{layout.LOCK}") as file:
                if file.size_bytes:
                    self.found.defect(f"{path}/{layout.LOCK}", "it is not empty")
        except (FileNotFoundError, CorruptionError):
            pass

    # Zarr metadata

    def _zarr_metadata(self) -> None:
        spec = self.spec
        settled = max(self.records, default=-1) + 1 == self.dense and not self._damaged_manifest
        stale = set() if self.manifest is not None else self._stale_rows()
        documents: list[tuple[str, Callable[[int], bytes]]] = [
            (f"{layout.ARRAYS_DIR}/zarr.json", partial(_zarr_metadata.group_json, spec)),
            *(
                (
                    f"{layout.array_dir(array.name)}/zarr.json",
                    partial(_zarr_metadata.array_json, spec, array),
                )
                for array in spec.arrays
            ),
        ]
        for path, make in documents:
            expected = make(self.rows)
            try:
                data = self._document(path, len(expected) + (1 << 16))
            except FileNotFoundError:
                self.found.defect(path, "it is not there: Zarr readers find no array")
                continue
            except CorruptionError as error:
                self.found.defect(path, _of(path, error))
                continue
            if data == expected:
                continue
            if any(data == make(rows) for rows in stale):
                self.found.note(path, "a writer has not yet told Zarr readers of its last segment")
            else:
                self.found.defect(path, _difference(data, expected, settled))

    def _stale_rows(self) -> set[int]:
        """Return the lengths that a writer may leave in Zarr's metadata if it is killed.

        After it has committed a segment, whose claim still stands; or before it takes the last one back,
        whose copy is there.
        """
        reopened = [
            facts.owner.reopens
            for facts in self._slots.values()
            if facts.owner is not None and facts.owner.reopens is not None
        ]
        committing = [number for number in (*self._claims, *reopened) if number < self.dense]
        first = min(committing, default=self.dense)
        return {number * self.spec.segment_rows for number in range(first, self.dense)}

    def _is_pending(self, number: int) -> bool:
        """Tell whether a writer that was killed may have left files under this segment number."""
        return number in self._claims or (self.manifest is None and number >= self.dense)


def _of(path: str | Path, error: object) -> str:
    """Return what an error says, without the path that the finding names anyway."""
    message = str(error)
    return message.removeprefix(f"{path}: ")


def _difference(data: bytes, expected: bytes, settled: bool) -> str:
    try:
        same = json.loads(data) == json.loads(expected)
    except (ValueError, RecursionError):
        return "damaged: it is no JSON"
    if same:
        return "the same metadata, but not as zarrow writes them"
    rule = "" if settled else ", as far as that can be told from damaged records"
    return f"not the metadata of the committed rows{rule}"
