"""Audit of open segments — whether their journals and row bytes are what their writers wrote.

This is stricter than recovery, which has to accept what a kill or a power cut leaves, and so drops a damaged
tail that no frame declares durable. An audit reports it, because the tail may hold accepted rows. After the
last sound frame, it distinguishes:

* the beginning of a frame that was being written, or zeros, which a power cut leaves: a note;
* anything else, such as a whole frame with a wrong checksum: damage.

Row bytes that a sound frame vouches for must be there, durable or not; and after them there are no more than
one frame can have.

The segment's writer may be active. Damage is reported only if the journal has not grown, and the segment has
not been removed, while it was checked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from zarrow._format import layout
from zarrow._format.array_spec import ArraySpec
from zarrow._format.documents import MAX_OWNER_BYTES
from zarrow._format.frames import Frame, is_torn, may_hold_rows, parse_payload, scan, scan_prefix, torn_rows
from zarrow._format.journal import Journal
from zarrow._format.records import Owner
from zarrow._format.spec import StoreSpec
from zarrow._maintenance.findings import AuditLog, Finding, said_by
from zarrow._read.open_rows import NO_FRAME, frame_counts, row_files
from zarrow._read.shard_rows import StoredChunks, is_unvouched
from zarrow._read.visible import OpenSegmentFacts
from zarrow._storage.reading import Beneath, File
from zarrow.errors import CorruptionError, ZarrowError

__all__ = ["audit_open_segment"]

_ATTEMPTS = 5


def audit_open_segment(
    files: Beneath, spec: StoreSpec, slot: str, found: AuditLog
) -> OpenSegmentFacts | None:
    """Check an open segment.

    Parameters
    ----------
    files : Beneath
        The store's files.
    spec : StoreSpec
        The store's declaration.
    slot : str
        The open segment's name.
    found : AuditLog
        Collects the findings.

    Returns
    -------
    OpenSegmentFacts or None
        None if it has been removed, its creation was never completed, or its owner is unknown.
    """
    for attempt in range(_ATTEMPTS):
        before = _journal_bytes(files, slot)
        audit = _OpenSegmentAudit(files, spec, slot, found.checksums, found.full)
        facts = audit.run()
        damaged = any(finding.severity == "damage" for finding in audit.findings)
        if isinstance(files.root, Path) and not files.exists(layout.slot_dir(slot)):
            return None  # it was sealed and removed
        if not damaged or attempt + 1 == _ATTEMPTS or _journal_bytes(files, slot) == before:
            break
    found.extend(audit.findings)
    found.checked_files += audit.checked_files
    found.read(audit.checked_bytes)
    return facts


def _journal_bytes(files: Beneath, slot: str) -> int:
    try:
        with files.open(f"{layout.slot_dir(slot)}/{layout.FRAMES}") as file:
            return file.size_bytes
    except (FileNotFoundError, CorruptionError):
        return -1


class _OpenSegmentAudit:
    """One audit of one open segment."""

    def __init__(self, files: Beneath, spec: StoreSpec, slot: str, checksums: bool, full: bool) -> None:
        self.findings: list[Finding] = []
        self.checked_files = 0
        self.checked_bytes = 0
        self._files = files
        self._spec = spec
        self._slot = slot
        self._checksums = checksums
        self._full = full
        self._lost_rows = spec.frame_rows  # of a frame that was being written, at most
        self._sizes: dict[str, int] = {}

    def _path(self, name: str) -> str:
        return f"{layout.slot_dir(self._slot)}/{name}"

    def _damage(self, name: str, error: object, rows: tuple[int, int] | None = None) -> None:
        path = self._path(name)
        message = said_by(path, error)
        self.findings.append(Finding(severity="damage", path=path, message=message, rows=rows))

    def _note(self, name: str, message: str) -> None:
        self.findings.append(Finding(severity="note", path=self._path(name), message=message))

    def run(self) -> OpenSegmentFacts | None:
        journal = Journal.of(b"")
        frames: Sequence[Frame] = ()
        for name in row_files(self._spec):  # before the journal, since a writer may go on
            missing = contextlib.suppress(FileNotFoundError, CorruptionError)
            with missing, self._files.open(self._path(name)) as file:
                self._sizes[name] = file.size_bytes
        try:
            with self._files.open(self._path(layout.FRAMES)) as file:
                journal = file.journal()
                self.checked_files += 1
                self.checked_bytes += journal.size_bytes
                frames = self._sound_frames(journal)
                for frame in frames if self._full else ():
                    self._table_rows(frame)
        except FileNotFoundError:
            if any(self._sizes.values()):  # which are written only once the journal's name is durable
                self._damage(layout.FRAMES, "missing, so the next writer will discard the rows")
            else:
                self._note(
                    "", "an open segment that is being created or removed, or was when its writer was killed"
                )
            return None
        except CorruptionError as error:
            self._damage(layout.FRAMES, error)
        owner = self._owner(journal)
        if owner is not None and not frames and all(one.severity != "damage" for one in self.findings):
            self._damage(layout.FRAMES, NO_FRAME)
        for index, array in enumerate(self._spec.arrays):
            self._rows_of(array, index, frames)
        rows = frames[-1].stop if frames else 0
        self._missing(rows)
        durable = max((frame.durable_rows for frame in frames), default=0)
        return None if owner is None else OpenSegmentFacts(self._slot, owner, rows, durable)

    def _missing(self, rows: int) -> None:
        """Report files that are missing: they are there before the first row is accepted."""
        for name in row_files(self._spec) if rows else ():
            if not self._files.exists(self._path(name)):
                self._damage(name, "missing", (0, rows))

    def _owner(self, journal: Journal) -> Owner | None:
        path = self._path(layout.OWNER_JSON)
        try:
            data = self._files.read(path, MAX_OWNER_BYTES)
            self.checked_files += 1
            self.checked_bytes += len(data)
            return Owner.decode(data, path)
        except FileNotFoundError:
            if may_hold_rows(journal.size_bytes, len(self._spec.arrays)) or any(self._sizes.values()):
                self._damage(layout.OWNER_JSON, "missing, so the next writer will discard the rows")
        except CorruptionError as error:
            self._damage(layout.OWNER_JSON, error)
        return None

    # The journal

    def _sound_frames(self, journal: Journal) -> Sequence[Frame]:
        """Return the sound frames, and report what follows them."""
        spec = self._spec
        uuid, arrays = bytes.fromhex(spec.uuid), len(spec.arrays)
        path = self._path(layout.FRAMES)
        try:
            found = scan(journal, uuid, arrays, spec.segment_rows, path)
        except CorruptionError as error:
            self._damage(layout.FRAMES, error)
            return scan_prefix(journal, uuid, arrays, spec.segment_rows).frames
        tail, start = found.torn_bytes, journal.size_bytes - found.torn_bytes
        after = f"{tail} bytes after the last sound frame"
        stated = torn_rows(journal, start)
        self._lost_rows = self._lost_rows if stated is None else min(self._lost_rows, stated)
        if tail and (is_torn(journal, start, uuid, arrays) or not journal.has_data(start)):
            self._note(layout.FRAMES, f"{after} are of one that was being written: no accepted rows")
        elif tail and (found.rows == spec.segment_rows or not may_hold_rows(tail, arrays)):
            message = f"{after} are damaged: they held no rows, only the number of durable ones"
            self.findings.append(Finding(severity="defect", path=path, message=message))
        elif tail:
            self._damage(
                layout.FRAMES,
                f"{after} are damaged: accepted rows of this open segment, from row {found.rows} on, are "
                "lost; none of them is known to have been durable",
                (found.rows, spec.segment_rows),
            )
        return found.frames

    def _table_rows(self, frame: Frame) -> None:
        rows = (frame.first_row, frame.stop)
        if not frame.rows:
            return
        try:
            batch = parse_payload(frame, self._spec.wire_schema)
            batch.validate(full=True)
            for column, values in zip(batch.schema, batch.columns, strict=True):
                if values.null_count and (not column.nullable or column.name in self._spec.keys):
                    raise CorruptionError(f"column {column.name!r} has nulls, but must not")
        except (CorruptionError, pa.ArrowException) as error:
            self._damage(layout.FRAMES, f"invalid despite a correct checksum: {error}", rows)

    # The row bytes

    def _rows_of(self, array: ArraySpec, index: int, frames: Sequence[Frame]) -> None:
        name = layout.rows_name(array.name)
        try:
            with self._files.open(self._path(name)) as file:
                self.checked_files += 1
                used = self._plain(array, index, frames, file) if array.is_plain else 0
                if not array.is_plain:
                    used = self._encoded(array, index, frames, file)
                rows, full = frames[-1].stop if frames else 0, self._spec.segment_rows
                size_bytes = min(self._sizes.get(name, 0), file.size_bytes)
                what = f"{file.size_bytes - used} bytes that belong to no frame"
                known = not array.is_ragged  # whose rows can be of any size: the file of its extents tells
                if (
                    known
                    and rows < full
                    and is_unvouched(file, size_bytes, array, rows, used, self._lost_rows, full)
                ):
                    self._damage(name, f"{what}, more than one can have: the journal has lost frames")
                elif file.size_bytes > used:
                    self._note(name, what)
        except FileNotFoundError:
            pass  # see `_missing`
        except ZarrowError as error:
            self._damage(name, error)

    def _plain(self, array: ArraySpec, index: int, frames: Sequence[Frame], file: File) -> int:
        name = layout.rows_name(array.name)
        end = 0
        for frame, count in zip(frames, self._counts(index, frames), strict=False):
            start, size = end, count * array.row_bytes
            end += size
            if start + size > file.size_bytes:
                self._damage(name, "ends before these rows do", (frame.first_row, frames[-1].stop))
                break
            if self._checksums:
                self.checked_bytes += size
                if file.crc32c(start, size) != frame.arrays[index].rows_crc32c:
                    self._damage(name, _lost(frame, frames), (frame.first_row, frame.stop))
        return end

    def _encoded(self, array: ArraySpec, index: int, frames: Sequence[Frame], file: File) -> int:
        """Check the complete chunks and the tail; return where the chunks end."""
        name = layout.rows_name(array.name)
        counts = self._counts(index, frames)
        total = sum(counts)
        chunks = [chunk for frame in frames for chunk in frame.arrays[index].chunks]
        stored = StoredChunks(file, array, chunks)
        for number, (chunk, end) in enumerate(zip(chunks, stored.ends, strict=True)):
            rows = _rows_between(frames, counts, number * array.chunk_rows, (number + 1) * array.chunk_rows)
            if not array.is_ragged:
                rows = (number * array.chunk_rows, min((number + 1) * array.chunk_rows, total))
            if chunk.size_bytes > array.max_stored_bytes or end > file.size_bytes:
                rows = (rows[0], frames[-1].stop)
                self._damage(name, f"chunk {number} of {chunk.size_bytes} bytes is missing", rows)
                return end - chunk.size_bytes
            if self._checksums:
                self.checked_bytes += chunk.size_bytes
                if not stored.holds(number):
                    self._damage(name, f"chunk {number} does not match its checksum", rows)
                elif self._full:
                    try:
                        stored.decode(number)
                    except CorruptionError as error:
                        self._damage(name, error, rows)
        offset = stored.ends[-1] if chunks else 0
        if len(chunks) != total // array.chunk_rows:
            self._damage(layout.FRAMES, f"{len(chunks)} chunks of array {array.name!r} for {total} rows")
            return offset
        self._tail(array, index, frames, total % array.chunk_rows, total)
        return offset

    def _counts(self, index: int, frames: Sequence[Frame]) -> Sequence[int]:
        """Return how many rows of an array each frame has; of a ragged one, vectors, as far as they tell."""
        return frame_counts(self._files.root / layout.slot_dir(self._slot), self._spec, index, frames)

    def _tail(self, array: ArraySpec, index: int, frames: Sequence[Frame], rows: int, total: int) -> None:
        if not rows:
            return
        entry, stop = frames[-1].arrays[index], frames[-1].stop
        lost = (stop - rows, stop)
        if array.is_ragged:
            lost = _rows_between(frames, self._counts(index, frames), total - rows, total)
        if entry.tail_side not in (0, 1):
            self._damage(
                layout.FRAMES,
                f"names tail file {entry.tail_side}, but there are only 0 and 1",
                lost,
            )
            return
        name = layout.tail_name(array.name, entry.tail_side)
        try:
            with self._files.open(self._path(name)) as file:
                self.checked_files += 1
                size = rows * array.row_bytes
                if file.size_bytes < size:
                    raise CorruptionError(
                        f"{file.size_bytes} bytes, too few for its {rows} rows of {size} bytes in all"
                    )
                self.checked_bytes += size
                if self._checksums and file.crc32c(0, size) != entry.tail_crc32c:
                    raise CorruptionError("its rows do not match their checksum")
        except FileNotFoundError:
            pass  # see `_missing`
        except CorruptionError as error:
            self._damage(name, error, lost)


def _rows_between(frames: Sequence[Frame], counts: Sequence[int], start: int, stop: int) -> tuple[int, int]:
    """Return the rows of the frames that have any of the vectors `start` to `stop`."""
    ends = np.cumsum(counts)
    first, last = np.searchsorted(ends, [start, stop - 1], "right").tolist()
    last = min(last, len(frames) - 1)
    return (frames[min(first, last)].first_row, frames[last].stop)


def _lost(frame: Frame, frames: Sequence[Frame]) -> str:
    durable = max(one.durable_rows for one in frames)
    if frame.first_row < durable:
        return "these rows were durable, but do not match their checksum"
    return "these rows do not match their checksum: damaged, unless they were lost in a power cut"
