"""Repair plan — what to set aside and what to rebuild, so that a store is sound.

`examine` audits the store and turns the findings into a plan of incidents, each of which becomes a directory
in quarantine; `repair_on_disk` and `repair_in_bucket` carry it out. Nothing is changed here.

Rows of what is set aside that can still be read and checked (`salvage`) stay in the store: they are copied to
an open segment that names what it repeats, and so does not count before that is gone (`_read.visible`). Of an
open segment whose rows are all sound only the owner is written again.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from zarrow._format import layout
from zarrow._format.documents import MAX_DOCUMENT_BYTES
from zarrow._format.records import Claim
from zarrow._format.spec import StoreSpec
from zarrow._maintenance import audit, salvage
from zarrow._maintenance.audit import Audited
from zarrow._maintenance.findings import Finding, Level, Progress, Report
from zarrow._maintenance.salvage import Salvage
from zarrow._read.catalog import put_aside
from zarrow._read.visible import lacking
from zarrow._storage.objects import ObjectPath
from zarrow._storage.reading import Beneath
from zarrow._write.quarantine import Aside, AsideInBucket, SetAside
from zarrow.errors import CorruptionError

__all__ = ["Plan", "examine"]

Incident = Aside | AsideInBucket

_LOCK = f"{layout.OPEN_DIR}/{layout.LOCK}"
_NEEDED = (layout.TABLE_DIR, layout.SEGMENTS_DIR, layout.OPEN_DIR)
_RESTORE = "restore it from a copy, since it never changes"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with a store.

    Parameters
    ----------
    spec : StoreSpec
        The store's declaration.
    incidents : tuple of Aside or AsideInBucket
        What to set aside, in this order.
    rebuilt : tuple of str
        Derived files to rebuild.
    copies : dict of int or str to (Salvage, int)
        By what is set aside, a segment's number or the name of an open segment, the rows to keep, and which
        of them are committed elsewhere: those before this one.
    disowned : tuple of str
        Open segments to give a new owner.
    stale : tuple of str
        Copies that an interrupted repair left, and that do not count yet.
    remains : tuple of int
        Segments that were taken back, of whose files only the owners of `disowned` say so.
    moved_rows : int
        Rows of sound segments that get new row numbers.
    """

    spec: StoreSpec
    incidents: tuple[Incident, ...]
    rebuilt: tuple[str, ...]
    copies: dict[int | str, tuple[Salvage, int]]
    disowned: tuple[str, ...]
    stale: tuple[str, ...]
    remains: tuple[int, ...]
    moved_rows: int

    @property
    def moves_rows(self) -> bool:
        """Whether rows go, or get other numbers."""
        rows = (layout.OPEN_DIR, layout.SEGMENTS_DIR)
        return bool(self.disowned) or any(
            one.facts.segment is not None or one.facts.path.startswith(rows) for one in self.incidents
        )


def examine(root: Path | ObjectPath, level: Level, progress: Progress | None) -> tuple[Report, Plan]:
    """Audit a store and return what has to be done.

    Parameters
    ----------
    root : Path or ObjectPath
        The store.
    level : {"checksums", "full"}
        How thoroughly to check.
    progress : callable of (int, int), optional
        Called with the bytes checked so far and the total.

    Returns
    -------
    Report, Plan
        The audit, and a plan; if the store is sound, one with nothing to move or rebuild.

    Raises
    ------
    StoreNotFoundError, NotAStoreError
        If there is no store.
    CorruptionError
        If ``zarrow.json`` or a directory is damaged, so that nothing can be repaired.
    PermissionError
        If something seems damaged only because this user may not read it.
    """
    audited = audit.audit(root, level, progress)
    if audited.spec is None:
        raise CorruptionError(
            f"{audited.report.findings[0].message}; {_RESTORE}", path=root / layout.STORE_JSON
        )
    if isinstance(root, Path):
        _require_readable(root, audited.report)
    return audited.report, _Planner(root, audited, audited.spec).plan()


def _require_readable(root: Path, report: Report) -> None:
    """Raise if a file that seems damaged is one that this user may not read."""
    for finding in report.findings:
        if finding.severity == "note":
            continue
        for place in (Path(finding.path), *Path(finding.path).parents):
            path = root / place
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                continue
            if not os.access(path, os.R_OK | os.X_OK * path.is_dir()):
                raise PermissionError(
                    f"{path}: this user may not read it, which is no damage: change its permissions, then "
                    "repair"
                )


class _Planner:
    def __init__(self, root: Path | ObjectPath, audited: Audited, spec: StoreSpec) -> None:
        self._root = root
        self._audited, self._records, self._slots = audited, audited.records, audited.slots
        self._spec = spec
        self._files = Beneath(root)
        self._gaps = {layout.record_path(number) for number in put_aside(root)}
        self._by_path: dict[str, list[Finding]] = defaultdict(list)
        self._by_segment: dict[int, list[Finding]] = defaultdict(list)
        self._copies: dict[int | str, tuple[Salvage, int]] = {}
        self._disowned: list[str] = []
        for finding in audited.report.findings:
            if finding.severity == "note":
                continue
            if finding.segment is not None and not finding.path.endswith(".claim"):
                self._by_segment[finding.segment].append(finding)
            else:
                self._by_path[_whole(finding.path)].append(finding)

    def plan(self) -> Plan:
        """Return what has to be done."""
        segments = [self._segment(number) for number in sorted(self._by_segment)]
        others: list[Incident] = []
        rebuilt: list[str] = []
        seen: set[str] = set()
        gone = {path for one in segments for path in one.files}
        for path, findings in self._by_path.items():
            if path in gone:
                continue
            parts = path.split("/")
            if path in _NEEDED or path.endswith("/c") or (path == _LOCK and self._is_odd(path)):
                raise CorruptionError(
                    f"{findings[0].message}: this cannot be repaired: look at it, then replace it by a copy",
                    path=self._root / path,
                )
            if self._is_derived(path):
                rebuilt.append(path)
                if self._is_odd(path):
                    others.append(self._stray(path, findings, len(others)))
            elif parts[0] == layout.OPEN_DIR and len(parts) > 1 and layout.is_slot(parts[1]):
                if self._is_cut_short(parts[1]):
                    rebuilt.append(path)
                elif parts[1] not in seen:
                    seen.add(parts[1])
                    others.extend(self._slot(parts[1]))
            elif path.endswith(".claim"):
                others.append(self._claim(path, findings))
            else:
                others.append(self._stray(path, findings, len(others)))
        # These only repeat what stands, or is to be set aside and copied again.
        stale = [
            slot for slot, facts in self._slots.items() if self._repeated_rows(slot) >= (facts.rows or 1)
        ]
        others.extend(self._claims_of(seen.difference(self._disowned)))
        self._disowned.extend(self._bereft(seen, {*seen, *stale}))
        # The manifest goes first: a store that lacks segments must not pass for complete.
        others.sort(key=lambda one: one.facts.path != layout.MANIFEST_JSON)
        first = [one for one in others if one.facts.path == layout.MANIFEST_JSON]
        incidents = (*first, *segments, *others[len(first) :])
        rebuilt.extend(f"{layout.slot_dir(slot)}/{layout.OWNER_JSON}" for slot in self._disowned)
        return Plan(
            self._spec,
            incidents,
            tuple(rebuilt),
            self._copies,
            tuple(self._disowned),
            tuple(stale),
            tuple(self._remains(self._disowned)),
            self._moved_rows(),
        )

    def _is_derived(self, path: str) -> bool:
        """Tell whether a file is rebuilt, or a gap closed, by what follows the moves."""
        is_metadata = path.startswith(f"{layout.ARRAYS_DIR}/") and path.endswith("/zarr.json")
        return is_metadata or path in self._gaps or path in (layout.KEY_INDEX, layout.STATISTICS, _LOCK)

    def _is_cut_short(self, slot: str) -> bool:
        """Tell whether an open segment has all its rows, so that only what follows them is cut off."""
        journal = f"{layout.slot_dir(slot)}/{layout.FRAMES}"
        mine = [path for path in self._by_path if path.startswith(layout.slot_dir(slot))]
        return mine == [journal] and all(one.severity == "defect" for one in self._by_path[journal])

    def _is_odd(self, path: str) -> bool:
        """Tell whether there is something other than a file at this path."""
        if not isinstance(self._root, Path):
            return False
        here = self._root / path
        return os.path.lexists(here) and (here.is_symlink() or not here.is_file())

    def _moved_rows(self) -> int:
        """Return the rows of the sound segments that will fill the gaps."""
        sound = [number for number in sorted(self._records) if number not in self._by_segment]
        moved = [number for number in sound if number >= len(sound)]
        kept = sum(left.rows for of, (left, _) in self._copies.items() if isinstance(of, int))
        return kept + sum(self._records[number].rows for number in moved)

    def _incident(
        self,
        path: str,
        name: str,
        moves: dict[str, str],
        findings: list[Finding],
        *,
        segment: int | None = None,
        rows: tuple[int, int] | None = None,
        kept_rows: int = 0,
        sample_index: tuple[int, ...] | None = None,
    ) -> Incident:
        reasons = tuple(dict.fromkeys(f"{finding.path}: {finding.message}" for finding in findings))
        facts = SetAside(
            path=path,
            segment=segment,
            rows=rows,
            kept_rows=kept_rows,
            sample_index=sample_index,
            reasons=reasons,
        )
        if isinstance(self._root, Path):
            return Aside(self._root, name, moves, facts)
        return AsideInBucket(self._root, name, moves, facts)

    def _segment(self, number: int) -> Incident:
        findings = self._by_segment[number]
        moves = self._files_of(number)
        moves[layout.record_path(number)] = "record.json"  # the last: see `repair`
        first = number * self._spec.segment_rows
        record = self._records.get(number)
        stop = first + (record.rows if record is not None else self._spec.segment_rows)
        known = [finding.rows[1] for finding in findings if finding.rows is not None]
        rows = (first, max(known) if record is None and known else stop)
        samples, kept = None, 0
        if record is not None:
            left = salvage.of_segment(self._files, self._spec, record)
            if number in self._audited.doubled or self._distrusted(findings):
                left.sound[:] = False
            open_too = salvage.in_open_segments(record, self._sound_slots())
            left.sound[:] |= open_too
            samples, kept = left.lost_samples() if left.table_is_sound else None, left.rows
            left.sound[:] &= ~open_too
            if left.rows:
                self._copies[number] = left, 0
        return self._incident(
            layout.record_path(number),
            f"{number:08d}",
            moves,
            findings,
            segment=number,
            rows=rows,
            kept_rows=kept,
            sample_index=samples,
        )

    def _files_of(self, number: int) -> dict[str, str]:
        """Return where the shards and the part of a segment are moved to."""
        moves = {array.shard_path(number): f"{array.name}.shard" for array in self._spec.arrays}
        for path in [*moves]:
            # A symbolic link on the way is moved itself.
            for parent in Path(path).parents:
                if isinstance(self._root, Path) and (self._root / parent).is_symlink():
                    moves[str(parent)] = moves.pop(path)
                    break
        return {**moves, layout.part_path(number): layout.PART}

    def _remains(self, slots: Iterable[str]) -> Iterator[int]:
        """Yield the segments that became these open segments, and whose files may still be there."""
        for slot in slots:
            of = self._slots[slot].owner.reopens if slot in self._slots else None
            if isinstance(of, tuple) and not self._files.exists(layout.record_path(of[0])):
                yield of[0]

    def _sound_slots(self) -> dict[str, int]:
        """Return the rows of the open segments of which nothing is damaged."""
        hit = {path.split("/")[1] for path in self._by_path if path.startswith(f"{layout.OPEN_DIR}/")}
        return {slot: facts.rows for slot, facts in self._slots.items() if slot not in hit}

    def _distrusted(self, findings: list[Finding]) -> bool:
        """Tell whether checksums do not help: the content of a part breaks the format, as written."""
        return any(one.path.startswith(layout.TABLE_DIR) for one in findings)

    def _slot(self, slot: str) -> Iterator[Incident]:
        path = layout.slot_dir(slot)
        findings = self._by_slot(slot)
        first = self._committed(slot)
        left = salvage.of_open_segment(self._files, self._spec, slot)
        owner = f"{path}/{layout.OWNER_JSON}"
        harmless = {one.path for one in findings} <= {path, owner} and not self._repeated_rows(slot)
        if harmless and left.sound.all() and len(left.sound) > first:
            self._disowned.append(slot)  # what its rows follow is unknown, or gone
            if owner in self._by_path:
                yield self._incident(owner, slot, {owner: layout.OWNER_JSON}, findings)
            return
        kept = int(left.sound[first:].sum())
        if kept:
            self._copies[slot] = left, first
        yield self._incident(
            path,
            slot,
            {old: new for number in self._remains([slot]) for old, new in self._files_of(number).items()}
            | {path: "open"},
            findings,
            rows=(first, max(first, len(left.sound))),
            kept_rows=kept,
            sample_index=left.lost_samples(first),
        )

    def _committed(self, slot: str) -> int:
        """Return how many of an open segment's first rows are committed, and so not lost with it."""
        sources = (one for record in self._records.values() for one in record.sources if one.slot == slot)
        return max([self._repeated_rows(slot), *(source.stop for source in sources)])

    def _repeated_rows(self, slot: str) -> int:
        """Return how many of an open segment's first rows repeat what still stands."""
        of, full = self._slots[slot].owner.reopens if slot in self._slots else None, self._spec.segment_rows
        if isinstance(of, str):
            return full if self._is_there(of) else 0
        if of is None or not self._files.exists(layout.record_path(of[0])):
            return 0
        if of[0] not in self._records:
            return full
        return self._records[of[0]].rows if self._audited.checksums[of[0]] == of[1] else 0

    def _is_there(self, slot: str) -> bool:
        """Tell whether there is an open segment of this name, or something of it."""
        if isinstance(self._root, Path):
            return self._files.exists(layout.slot_dir(slot))
        return slot in self._slots or bool(self._by_slot(slot))

    def _by_slot(self, slot: str) -> list[Finding]:
        path = layout.slot_dir(slot)
        found = (one for at, one in self._by_path.items() if at == path or at.startswith(f"{path}/"))
        return [finding for findings in found for finding in findings]

    def _bereft(self, hit: set[str], but: set[str]) -> Iterator[str]:
        """Yield open segments, `but` these, of sessions of which something is set aside or disowned."""
        gone = [self._records[number] for number in self._by_segment if number in self._records]
        sessions = {source.session for record in gone for source in record.sources}
        sessions |= {self._slots[slot].owner.session for slot in hit & self._slots.keys()}
        for slot, facts in self._slots.items():
            if slot not in but and facts.owner.session in sessions:
                yield slot

    def _claim(self, path: str, findings: list[Finding]) -> Incident:
        return self._incident(path, Path(path).stem, {path: "claim"}, findings)

    def _claims_of(self, slots: set[str]) -> Iterator[Incident]:
        """Yield the claims that cannot be fulfilled once all else, these open segments too, is set aside."""
        rows = {slot: facts.rows for slot, facts in self._slots.items() if slot not in slots}
        if not isinstance(self._root, Path):
            return  # in a bucket, the rows of a claim are in its writer's spool
        for name in self._files.names(layout.SEGMENTS_DIR):
            path = f"{layout.SEGMENTS_DIR}/{name}"
            if not name.endswith(".claim") or path in self._by_path:
                continue
            claim = Claim.decode(self._files.read(path, MAX_DOCUMENT_BYTES), path)
            lost = [source.slot for source in lacking(claim, rows)]
            stays = self._files.exists(layout.record_path(claim.segment))
            if lost and not (stays and claim.segment not in self._by_segment):
                message = f"claims rows of {', '.join(lost)}, which are damaged or missing"
                finding = Finding(severity="damage", path=path, message=message, segment=claim.segment)
                yield self._claim(path, [finding])

    def _stray(self, path: str, findings: list[Finding], number: int) -> Incident:
        name = "manifest" if path == layout.MANIFEST_JSON else f"stray-{number}"
        return self._incident(path, name, {path: Path(path).name}, findings)


def _whole(path: str) -> str:
    """Return what is set aside for a finding: a derived array as a whole, since half of one is useless.

    >>> _whole("derived/pca/embeddings.zarr/pca/c/0/0"), _whole("table/x")
    ('derived/pca', 'table/x')
    """
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] == layout.DERIVED_DIR else path
