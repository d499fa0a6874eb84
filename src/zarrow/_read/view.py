"""View — the rows that a reader sees at one instant, those included that are not committed yet.

For a complete store this is what the manifest says. Of an incomplete one, opened with ``partial=True``, it
is

1. the dense prefix of committed segments;
2. segments that are committed behind a gap (another writer is about to commit the one in between, or a repair
   that was interrupted has set it aside);
3. the rows of open segments that count (`visible`), oldest segment first.

The rows of 2 and 3 have no final number yet. They are *live*, and come after the committed ones in the
order in which they would be packed if all writers stopped now.

No writer waits for a reader, so the store changes while it is read. `take_view` still finds each accepted
row exactly once, because of the order in which it looks (records, open segments, claims, records again) and
of a fact about writers: a claim stays until its open segments are gone. An open segment that vanished
meanwhile was committed, and a record that vanished was reopened, so `take_view` looks again. Later open
segments of a writer are read before its earlier ones, so that what is seen of a writer is a prefix of what
it wrote.

Full segments never change. A short last one may be taken back when rows are appended to a complete store,
so its files are opened at once and read from there, whatever happens to their names. `Guard` notices if the
whole store was replaced. Never writes, never locks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format import layout
from zarrow._format.checksum import crc32c
from zarrow._format.records import Claim, Identity, SegmentRecord
from zarrow._format.spec import StoreSpec, safe_rows
from zarrow._read import catalog, open_rows
from zarrow._read.catalog import Snapshot
from zarrow._read.open_rows import OpenRows
from zarrow._read.visible import lacking, lacking_error, visible_rows
from zarrow._storage.reading import File, Place, open_file, read_file, stamp_of
from zarrow.errors import CorruptionError, IncompleteStoreError, StoreChangedError

__all__ = ["Guard", "OpenPiece", "View", "take_view"]

_ATTEMPTS = 100
_DAMAGED_ATTEMPTS = 3
_PAUSE_S = 0.005


class Guard:
    """A check that the store at a path is still the one that was opened.

    Parameters
    ----------
    root : Path or RemotePath
        The store.
    """

    def __init__(self, root: Place) -> None:
        self._root = root
        self.identity = stamp_of(root, layout.STORE_JSON, keep=True)
        """Of the file that says what the store is, which `repair` replaces before it moves rows."""

    def holds(self) -> bool:
        """Tell whether it still is."""
        return stamp_of(self._root, layout.STORE_JSON) == self.identity

    def __call__(self) -> None:
        """Raise `StoreChangedError` if it is not any more."""
        if not self.holds():
            raise StoreChangedError(
                f"{self._root}: the store was replaced, repaired, moved or removed since it was opened: open "
                "it again"
            )


@dataclass(frozen=True, slots=True)
class OpenPiece:
    """Rows `start` to `stop` of an open segment.

    Parameters
    ----------
    rows : OpenRows
        The open segment.
    start, stop : int
        Which of its rows.
    files : dict of str to File
        Per array, the file that will be its shard.
    tails : dict of str to array
        Per compressed array, the rows of the unfinished chunk.
    """

    rows: OpenRows
    start: int
    stop: int
    files: dict[str, File]
    tails: dict[str, npt.NDArray[Any]]

    def batches(self, spec: StoreSpec) -> list[pa.RecordBatch]:
        """Return the table's rows, of the wire schema."""
        return self.rows.batches(spec, self.start, self.stop)


@dataclass(frozen=True, slots=True)
class View:
    """The rows of one instant.

    Parameters
    ----------
    snapshot : Snapshot
        The committed ones.
    guard : Guard
        To check files that are opened later.
    last_files : dict of str to File
        The files of a short last segment: per array its shard, under ``""`` its part.
    behind_gap : tuple of SegmentRecord
        Committed segments that are not in the dense prefix.
    open_pieces : tuple of OpenPiece
        Rows that are accepted but not committed.
    """

    snapshot: Snapshot
    guard: Guard
    last_files: dict[str, File] = field(default_factory=dict)
    behind_gap: tuple[SegmentRecord, ...] = ()
    open_pieces: tuple[OpenPiece, ...] = ()

    @property
    def spec(self) -> StoreSpec:
        """What the store is."""
        return self.snapshot.spec

    @property
    def rows(self) -> int:
        """Rows, live ones included."""
        live = self.live_ranges() if self.behind_gap or self.open_pieces else ()
        return self.snapshot.rows + sum(map(len, live))

    @property
    def identity(self) -> Identity:
        """What tells these rows from any others."""
        if self.snapshot.manifest is not None:
            return self.snapshot.manifest.identity
        # Records before the last one change only by a repair, which the guard notices.
        last = [self.record(self.snapshot.segments - 1)] if self.snapshot.segments else []
        live = [(piece.rows.slot, piece.start, piece.stop) for piece in self.open_pieces]
        told = b"".join(record.encode() for record in (*last, *self.behind_gap)) + repr(live).encode()
        return Identity(uuid=self.spec.uuid, rows=self.rows, records_crc32c=crc32c(told))

    def live_ranges(self) -> list[range]:
        """Return the (provisional) rows of each segment behind the gap and of each open piece."""
        ranges = []
        start = self.snapshot.rows
        counts = [record.rows for record in self.behind_gap]
        for count in counts + [piece.stop - piece.start for piece in self.open_pieces]:
            ranges.append(range(start, start + count))
            start += count
        return ranges

    def segment_ranges(self) -> list[range]:
        """Return the rows of each committed segment of the dense prefix."""
        full, rows = self.spec.segment_rows, self.snapshot.rows
        return [
            range(number * full, min(rows, (number + 1) * full)) for number in range(self.snapshot.segments)
        ]

    def record(self, segment: int) -> SegmentRecord:
        """Return a segment's commit record.

        Raises
        ------
        StoreChangedError
            If the store was replaced meanwhile, so that the records are another store's.
        CorruptionError
            If the record is missing or damaged.
        """
        try:
            return self.snapshot.record(segment)
        except FileNotFoundError as error:
            self.guard()
            path = self.snapshot.root / layout.record_path(segment)
            raise CorruptionError(
                f"missing, though the store has rows of segment {segment}", path=path
            ) from error
        except CorruptionError:
            self.guard()
            raise

    def is_short_last(self, segment: int) -> bool:
        """Tell whether a segment is the last one, and short, so that it may be taken back."""
        return segment == self.snapshot.segments - 1 and bool(self.last_files)


def take_view(root: Place, *, partial: bool) -> View:
    """Return the rows of this instant.

    Parameters
    ----------
    root : Path or RemotePath
        The store.
    partial : bool
        Whether to accept an incomplete store.

    Returns
    -------
    View
        Of committed rows, and of live ones if the store is incomplete.

    Raises
    ------
    StoreNotFoundError, NotAStoreError
        If there is no store.
    IncompleteStoreError
        If it is incomplete and `partial` is False.
    CorruptionError
        If it is damaged.
    StoreChangedError
        If it changes faster than it can be read.
    """
    seen: dict[str, OpenPiece] = {}
    damaged = 0
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_S)
        try:
            view = _look(root, seen)
        except (_GoneError, FileNotFoundError) as error:
            if isinstance(error, FileNotFoundError):
                if not (root / layout.STORE_JSON).exists():
                    raise  # there is no store
                damaged += _is_damage(root, error)
                if damaged >= _DAMAGED_ATTEMPTS:
                    raise CorruptionError(
                        "missing, though the store is complete", path=error.filename
                    ) from error
            continue
        except CorruptionError:
            # A live segment may have been read while its bytes changed. Damage stays, this does not.
            damaged += 1
            if damaged >= _DAMAGED_ATTEMPTS:
                raise
            seen.clear()
            continue
        if view is None:
            continue
        if not view.snapshot.complete and not partial:
            expected = view.snapshot.expected_rows
            rows = safe_rows(view.rows, expected)
            spools = "" if isinstance(root, Path) else ", besides those in the spools of its writers"
            finalize = "zarrow finalize --partial" if (expected or 0) > view.rows else "zarrow finalize"
            raise IncompleteStoreError(
                f"{root}: the store is incomplete: {rows}{spools}: resume its run (mode='a', resume=True), "
                f"complete it with '{finalize}', or open it with partial=True"
            )
        return view
    raise StoreChangedError(f"{root}: the store changes faster than it can be read: try again")


def _is_damage(root: Place, error: FileNotFoundError) -> bool:
    """Tell whether a missing file means damage: of a complete store, the manifest is removed first."""
    return error.filename is not None and (root / layout.MANIFEST_JSON).exists()


class _GoneError(Exception):
    """An open segment vanished while it was read."""


def _look(root: Place, seen: dict[str, OpenPiece]) -> View | None:
    """Return a view, or None if the store changed meanwhile; `seen` keeps open segments between attempts."""
    guard = Guard(root)
    snapshot = catalog.read_snapshot(root)
    last_files = _open_last(snapshot)
    behind_gap: tuple[SegmentRecord, ...] = ()
    pieces: tuple[OpenPiece, ...] = ()
    if not snapshot.complete:
        parts = catalog.part_numbers(root)
        before = catalog.segment_numbers(root)
        paths = open_rows.slots(root)
        for path in reversed(paths):  # the latest of each writer first
            if path.name not in seen and (slot := _read_slot(path, snapshot.spec)) is not None:
                seen[path.name] = slot
        slots = [seen[path.name] for path in paths if path.name in seen]
        claims = catalog.read_claims(root)
        if not all(slot.rows.path.exists() for slot in slots):
            return None
        numbers = catalog.segment_numbers(root)
        if not set(before) <= set(numbers):
            return None  # the rows of a segment were taken back into an open one
        owners = [slot.rows.owner for slot in slots]
        catalog.check_records(root, numbers, parts, owners)
        if isinstance(root, Path):  # rows of a bucket's claims are in the spools of their writers
            _check_claims(root, snapshot.spec, claims, slots)
        behind_gap = tuple(
            catalog.read_record(root, number, snapshot.spec)[0]
            for number in numbers
            if number >= snapshot.segments
        )
        records = catalog.read_records_for(root, snapshot.spec, numbers, owners)
        pieces = tuple(_pieces(root, slots, records, snapshot.spec.segment_rows))
    if last_files and not _still_last(snapshot):
        return None
    # From a bucket, the guard's stamp came with the bytes that say what the store is.
    if (isinstance(root, Path) or not snapshot.complete) and not guard.holds():
        return None
    return View(snapshot, guard, last_files, behind_gap, pieces)


def _check_claims(root: Path, spec: StoreSpec, claims: list[Claim], slots: list[OpenPiece]) -> None:
    """Raise `CorruptionError` if rows that are about to be committed are not there."""
    rows = {slot.rows.slot: slot.rows.rows for slot in slots}
    for claim in claims:
        for source in lacking(claim, rows):
            # It may have been opened or filled since it was read, or have been committed and removed.
            found = open_rows.read(root / layout.slot_dir(source.slot), spec)
            now = {} if found is None else {source.slot: found.rows}
            if lacking(claim, {**rows, **now}) and not catalog.has_record(root, claim.segment):
                raise lacking_error(claim, source, {**rows, **now}, root)


def _pieces(
    root: Place,
    slots: list[OpenPiece],
    records: list[tuple[SegmentRecord, int]],
    full: int,
) -> Iterable[OpenPiece]:
    """Yield the rows of open segments that count."""
    found = visible_rows([slot.rows.facts for slot in slots], records, full)
    found.check(root)
    by_name = {slot.rows.slot: slot for slot in slots}
    for name, ranges in found.ranges.items():
        for rows in ranges:
            yield replace(by_name[name], start=rows.start, stop=rows.stop)


def _open_last(snapshot: Snapshot) -> dict[str, File]:
    """Open the files of the last segment if it is short; in a bucket segments are never taken back."""
    last = snapshot.segments - 1
    if (
        last < 0
        or not isinstance(snapshot.root, Path)
        or snapshot.segment_rows(last) == snapshot.spec.segment_rows
    ):
        return {}
    snapshot.record(last)  # is kept, for it may be taken back too
    root = snapshot.root
    files = {"": layout.part_path(last)}
    if snapshot.segment_rows(last):
        for array in snapshot.spec.arrays:
            files[array.name] = array.shard_path(last)
    opened = {}
    for name, path in files.items():
        try:
            opened[name] = open_file(root, path)
        except FileNotFoundError:
            if _still_last(snapshot):
                continue  # damage, an error when its rows are read
            raise
    return opened


def _still_last(snapshot: Snapshot) -> bool:
    """Tell whether the short last segment was not taken back yet."""
    last = snapshot.segments - 1
    try:
        if snapshot.manifest is not None:  # which has the record's checksum
            data = read_file(snapshot.root, layout.record_path(last))
            return crc32c(data) == snapshot.manifest.records_crc32c[last]
        return catalog.read_record(snapshot.root, last, snapshot.spec)[0] == snapshot.record(last)
    except FileNotFoundError:
        return False


def _read_slot(path: Path, spec: StoreSpec) -> OpenPiece | None:
    """Read an open segment and open its files; None if its creation was never finished."""
    found = open_rows.read(path, spec)
    if found is None:
        if not path.exists():
            raise _GoneError
        return None
    files, tails = {}, {}
    try:
        for index, array in enumerate(spec.arrays if found.rows else ()):
            files[array.name] = open_file(path, layout.rows_name(array.name))
            used = found.items(spec, index, found.rows) % array.chunk_rows
            if not array.is_plain and used:
                entry = found.frames[-1].arrays[index]
                tail = open_file(path, layout.tail_name(array.name, entry.tail_side))
                size_bytes = used * array.row_bytes
                # Its writer uses the file again two chunks on.
                if (
                    tail.size_bytes < size_bytes
                    or crc32c(data := tail.read(0, size_bytes)) != entry.tail_crc32c
                ):
                    raise _GoneError
                tails[array.name] = np.frombuffer(data, array.numpy_dtype).reshape(used, *array.row_shape)
    except FileNotFoundError as error:
        if path.exists():  # it is renamed as a whole before it is removed
            raise CorruptionError("missing, though the open segment has rows", path=error.filename) from error
        raise _GoneError from None
    return OpenPiece(found, 0, found.rows, files, tails)
