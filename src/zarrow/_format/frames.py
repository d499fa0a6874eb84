"""Frames — the records in the journal of an open segment, one per batch, found again whole or not at all.

A frame describes the part of a batch that lies in one segment. It is appended to ``table.frames`` after the
batch's row bytes were written, so a frame that is there vouches for them: it carries their crc32c, its own,
and the number of rows that were durable when it was written.

That number decides how a reader treats a frame that does not match its checksum (`scan`):

* normally the bytes after the last sound frame are a *torn tail*, a batch that was never accepted or, after a
  power cut, one that was never durable, and are dropped;
* if a later frame says that those rows were durable, the disk has changed them, and that is
  `CorruptionError`.

A payload is read when it is asked for.

``FORMAT.md`` has the layout. Nothing in a frame is used before its checksum was verified, least of all the
Arrow payload: a damaged one can crash the process that parses it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from zarrow._format.arrow import is_compressed
from zarrow._format.checksum import combine, crc32c
from zarrow._format.journal import Journal
from zarrow._format.layout import MAX_CHUNKS
from zarrow.errors import CorruptionError

__all__ = [
    "ArrayEntry",
    "Chunk",
    "Frame",
    "encode",
    "is_torn",
    "parse_payload",
    "scan",
    "scan_prefix",
    "scan_sound",
    "torn_rows",
]

MAGIC = b"ZARROWF1"
_HEAD = struct.Struct("<8sQ16sQQIIQ")
"""magic, frame size, store uuid, first row, durable rows, rows, arrays, payload size"""
_ENTRY = struct.Struct("<IIII")
"""per array: crc32c of the rows, crc32c of the tail, side of the tail, chunks that became full"""
_CHUNK = struct.Struct("<QI4x")
"""per chunk that became full: encoded size, its crc32c; padded to align what follows"""
_CRC = struct.Struct("<I")
_ALIGNMENT = 8
_MAX_FRAME_BYTES = 1 << 40
_MAX_ATTEMPTS = 16
"""How often, on average, a byte after the last sound frame is read in search of another."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """An encoded chunk of a compressed array's shard: its size in bytes and crc32c.

    The crc32c is that of the stored bytes, without the four of a ``crc32c`` codec at their end
    (`ArraySpec.own_crc_bytes`).
    """

    size_bytes: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class ArrayEntry:
    """The facts about one array in a frame.

    Parameters
    ----------
    rows_crc32c : int
        The crc32c of the batch's row bytes.
    tail_crc32c : int
        Compressed arrays: the crc32c of all rows of the unfinished chunk, which lie in a tail file.
    tail_side : int
        Which of the two tail files.
    chunks : tuple of Chunk
        The chunks that this batch completed.
    """

    rows_crc32c: int
    tail_crc32c: int = 0
    tail_side: int = 0
    chunks: tuple[Chunk, ...] = ()


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.

    Parameters
    ----------
    first_row : int
        The batch's first row, counted from the beginning of the open segment.
    rows : int
        Rows of the batch; 0 in a frame that only says how many rows are durable.
    durable_rows : int
        Rows of the open segment that were synced when the frame was written.
    arrays : tuple of ArrayEntry
        In the order of the store's spec.
    """

    first_row: int
    rows: int
    durable_rows: int
    arrays: tuple[ArrayEntry, ...]
    _journal: Journal = field(repr=False, compare=False)
    _place: tuple[int, int, int, int] = field(repr=False)

    @property
    def stop(self) -> int:
        """The row after the batch's last."""
        return self.first_row + self.rows

    @property
    def payload(self) -> pa.Buffer:
        """The table's rows: an encapsulated Arrow record batch message without its schema.

        It is read now, so the frame's checksum is verified once more.
        """
        offset, end, start, stop = self._place
        data = self._journal.view(offset, end - offset)
        if len(data) < end - offset or not _is_sound(self._journal, offset, end):
            raise CorruptionError("a frame has changed since the journal was scanned")
        return pa.py_buffer(data[start - offset : stop - offset])


def encode(
    uuid: bytes,
    first_row: int,
    rows: int,
    durable_rows: int,
    arrays: Sequence[ArrayEntry],
    payload: pa.Buffer | bytes,
) -> bytes:
    """Return the bytes of a frame.

    Parameters
    ----------
    uuid : bytes
        The 16 bytes of the store's uuid.
    first_row, rows, durable_rows, arrays, payload
        As in `Frame`.

    Returns
    -------
    bytes
        A multiple of 8 long.
    """
    pieces = [b""]
    for entry in arrays:
        pieces.append(_ENTRY.pack(entry.rows_crc32c, entry.tail_crc32c, entry.tail_side, len(entry.chunks)))
        pieces.extend(_CHUNK.pack(chunk.size_bytes, chunk.crc32c) for chunk in entry.chunks)
    view = memoryview(payload)
    pieces.append(view)  # type: ignore[arg-type]
    size = _HEAD.size + sum(map(len, pieces)) + _CRC.size
    padding = -size % _ALIGNMENT
    pieces.append(bytes(padding))
    pieces[0] = _HEAD.pack(MAGIC, size + padding, uuid, first_row, durable_rows, rows, len(arrays), len(view))
    body = b"".join(pieces)
    return body + _CRC.pack(crc32c(body))


def _is_sound(journal: Journal, offset: int, end: int) -> bool:
    """Tell whether the bytes of a frame have the checksum at its end."""
    found = journal.crc32c(offset, end - _CRC.size)
    return journal.view(end - _CRC.size, _CRC.size) == _CRC.pack(found)


def _claimed_bytes(journal: Journal, offset: int, uuid: bytes) -> int:
    """Return the size of the frame that seems to begin at `offset`; 0 if none does."""
    head = journal.view(offset, _HEAD.size)
    if len(head) < _HEAD.size:
        return 0
    magic, size, owner, *_ = _HEAD.unpack(head)
    fits = _HEAD.size < size <= min(journal.size_bytes - offset, _MAX_FRAME_BYTES)
    return int(size) if magic == MAGIC and owner == uuid and fits else 0


def _decode(journal: Journal, offset: int, uuid: bytes, arrays: int) -> tuple[Frame, int] | None:
    """Return the frame at `offset` and its end, or None if there is no sound frame."""
    end = offset + _claimed_bytes(journal, offset, uuid)
    if end == offset or not _is_sound(journal, offset, end):
        return None
    # The checksum matches: whatever is inconsistent from here on was written so.
    *_, first_row, durable_rows, rows, count, payload_bytes = _HEAD.unpack(journal.view(offset, _HEAD.size))
    if count != arrays:
        raise CorruptionError(f"a frame for {count} arrays in a store of {arrays}")
    start = offset + _HEAD.size
    room = end - _CRC.size - start - payload_bytes
    if room < 0:
        raise CorruptionError("a frame is too short for its payload")
    view = journal.view(start, min(room, count * _ENTRY.size + MAX_CHUNKS * _CHUNK.size))
    position = 0
    entries = []
    for _ in range(count):
        if position + _ENTRY.size > len(view):
            raise CorruptionError("a frame is too short for its arrays")
        rows_crc, tail_crc, side, chunks = _ENTRY.unpack_from(view, position)
        position += _ENTRY.size
        stop = position + chunks * _CHUNK.size
        if stop > len(view):
            raise CorruptionError("a frame is too short for its chunks, or has more than a segment may")
        completed = tuple(Chunk(*facts) for facts in _CHUNK.iter_unpack(view[position:stop]))
        entries.append(ArrayEntry(rows_crc, tail_crc, side, completed))
        position = stop
    start += position
    place = (offset, end, start, start + payload_bytes)
    return Frame(first_row, rows, durable_rows, tuple(entries), journal, place), end


@dataclass(frozen=True, slots=True)
class Scan:
    """The content of a journal.

    Parameters
    ----------
    frames : tuple of Frame
        The sound frames, in order, without gaps.
    ends : tuple of int
        Where each of them ends, in bytes.
    torn_bytes : int
        Bytes after the last of them, which are ignored.
    """

    frames: tuple[Frame, ...]
    ends: tuple[int, ...]
    torn_bytes: int

    @property
    def rows(self) -> int:
        """The number of rows that the frames vouch for."""
        return self.frames[-1].stop if self.frames else 0

    @property
    def durable_rows(self) -> int:
        """The largest number of durable rows in any frame."""
        return max((frame.durable_rows for frame in self.frames), default=0)


def scan(journal: Journal, uuid: bytes, arrays: int, segment_rows: int, path: str) -> Scan:
    """Read a journal up to its torn tail.

    Parameters
    ----------
    journal : Journal
        The journal.
    uuid : bytes
        The 16 bytes of the store's uuid.
    arrays : int
        The number of the store's arrays.
    segment_rows : int
        Rows of a full segment.
    path : str
        For messages.

    Returns
    -------
    Scan
        The sound frames; their payloads are read from `journal` when they are asked for.

    Raises
    ------
    CorruptionError
        If a frame whose rows were durable is damaged, or if frames contradict each other.
    """
    found, broken = _scan(journal, uuid, arrays, segment_rows)
    try:
        if broken is not None:
            raise broken
        offset = journal.size_bytes - found.torn_bytes
        for later in _resync(journal, offset + 1, uuid, arrays):
            if later.durable_rows > found.rows:
                raise CorruptionError(
                    f"the frame at byte {offset} (row {found.rows} of the open segment) is damaged, "
                    f"though {later.durable_rows} rows were durable"
                )
    except CorruptionError as error:
        raise CorruptionError(error.reason, path=path) from None
    return found


def scan_prefix(journal: Journal, uuid: bytes, arrays: int, segment_rows: int) -> Scan:
    """Return the frames before the first that is not sound, whatever follows.

    For audits, which report on the rest themselves; use `scan` for everything else.
    """
    return _scan(journal, uuid, arrays, segment_rows)[0]


def scan_sound(journal: Journal, uuid: bytes, arrays: int, segment_rows: int) -> Scan:
    """Return all frames that are sound and follow one another, also behind damaged ones; for repairs."""
    found, _ = _scan(journal, uuid, arrays, segment_rows)
    frames = list(found.frames)
    start = journal.size_bytes - found.torn_bytes
    try:
        for frame in _resync(journal, start + 1, uuid, arrays):
            if frame.first_row >= (frames[-1].stop if frames else 0) and frame.stop <= segment_rows:
                frames.append(frame)
    except CorruptionError:
        pass  # frames that contradict themselves end it
    return Scan(tuple(frames), found.ends, found.torn_bytes)


def _scan(
    journal: Journal, uuid: bytes, arrays: int, segment_rows: int
) -> tuple[Scan, CorruptionError | None]:
    """Return the frames before the first that is not sound, and an error if that one's checksum matches."""
    frames: list[Frame] = []
    ends: list[int] = []
    offset = rows = chunks = 0
    broken = None
    try:
        while (found := _decode(journal, offset, uuid, arrays)) is not None:
            frame, end = found
            chunks += sum(len(entry.chunks) for entry in frame.arrays)
            if frame.first_row != rows or frame.stop > segment_rows or frame.durable_rows > rows:
                raise CorruptionError(
                    f"a frame of rows {frame.first_row} to {frame.stop}, {frame.durable_rows} durable, "
                    f"follows {rows} rows in a segment of {segment_rows}"
                )
            if chunks > MAX_CHUNKS:
                raise CorruptionError(
                    f"{chunks} chunks are more than the {MAX_CHUNKS} that a segment may have"
                )
            offset, rows = end, frame.stop
            frames.append(frame)
            ends.append(offset)
    except CorruptionError as error:
        broken = error
    return Scan(tuple(frames), tuple(ends), journal.size_bytes - offset), broken


def may_hold_rows(tail_bytes: int, arrays: int) -> bool:
    """Tell whether damaged bytes are long enough to contain a frame with rows.

    >>> len(encode(bytes(16), 0, 0, 0, (), b"")), may_hold_rows(72, 0), may_hold_rows(80, 0)
    (72, False, True)
    """
    without_rows = _HEAD.size + arrays * _ENTRY.size + _CRC.size
    return tail_bytes > without_rows + -without_rows % _ALIGNMENT


def is_torn(journal: Journal, offset: int, uuid: bytes, arrays: int) -> bool:
    """Tell whether the bytes after the last sound frame are the beginning of one that was being written.

    They are not if they are a frame that was whole before it was damaged: one that is all there, one that is
    sound but for its size field, or one that sound frames follow.

    >>> frame = encode(bytes(16), 0, 1, 0, (), b"x")
    >>> [is_torn(Journal.of(data), 0, bytes(16), 0) for data in (frame[:-1], frame[:-1] + b"X")]
    [True, False]
    """
    head, tail_bytes = bytes(journal.view(offset, _HEAD.size)), journal.size_bytes - offset
    start = (MAGIC + head[8:16].ljust(8) + uuid)[: len(head)]
    if not head or head[: len(start)] != start:
        return False
    if tail_bytes < 16:
        return True
    size = int.from_bytes(head[8:16], "little")
    if size <= tail_bytes or size % _ALIGNMENT or size > _MAX_FRAME_BYTES:
        return False
    actual = _size_by_content(journal, offset)
    if actual is not None and actual <= tail_bytes:
        end, mended = offset + actual - _CRC.size, crc32c(head[:8] + actual.to_bytes(8, "little"))
        found = combine(mended, journal.crc32c(offset + 16, end), actual - _CRC.size - 16)
        if journal.view(end, _CRC.size) == _CRC.pack(found):
            return False
    try:
        return next(_resync(journal, offset + 1, uuid, arrays), None) is None
    except CorruptionError:
        return False


def torn_rows(journal: Journal, offset: int) -> int | None:
    """Return how many rows a torn frame was to have, as its beginning says; None if that is not there."""
    if journal.size_bytes - offset < _HEAD.size or journal.view(offset, len(MAGIC)) != MAGIC:
        return None
    return int(_HEAD.unpack(journal.view(offset, _HEAD.size))[5])


def _size_by_content(journal: Journal, offset: int) -> int | None:
    """Return the size that a frame must have according to its content, if its entries are all there."""
    if journal.size_bytes - offset < _HEAD.size:
        return None
    *_, count, payload_bytes = _HEAD.unpack(journal.view(offset, _HEAD.size))
    position = _HEAD.size
    for _ in range(count):
        entry = journal.view(offset + position, _ENTRY.size)
        if len(entry) < _ENTRY.size:
            return None
        position += _ENTRY.size + _ENTRY.unpack(entry)[3] * _CHUNK.size
    size = int(position + payload_bytes + _CRC.size)
    return size + -size % _ALIGNMENT


def _resync(journal: Journal, offset: int, uuid: bytes, arrays: int) -> Iterator[Frame]:
    """Yield the sound frames after a damaged one; frames begin at multiples of 8."""
    magic = np.frombuffer(MAGIC, "<u8")[0]
    left = _MAX_ATTEMPTS * (journal.size_bytes - offset)
    for start, block in journal.blocks(offset + -offset % _ALIGNMENT, journal.size_bytes):
        words = np.frombuffer(block[: len(block) // _ALIGNMENT * _ALIGNMENT], "<u8")
        for index in np.flatnonzero(words == magic).tolist():
            place = start + index * _ALIGNMENT
            left -= _claimed_bytes(journal, place, uuid)
            if left < 0:
                raise CorruptionError("more frames begin in the journal than it can have")
            found = _decode(journal, place, uuid, arrays)
            if found is not None:
                yield found[0]


def parse_payload(frame: Frame, wire_schema: pa.Schema) -> pa.RecordBatch:
    """Return a frame's rows of the table.

    Parameters
    ----------
    frame : Frame
        A frame of `scan`, so that its checksum was verified.
    wire_schema : pyarrow.Schema
        The schema that the payload was written with.

    Returns
    -------
    pyarrow.RecordBatch
        The rows, pointing into the frame's buffer.

    Raises
    ------
    CorruptionError
        If their number is not that of the frame, or if they break Arrow's rules: a store may be hostile.
    """
    try:
        message = pa.ipc.read_message(frame.payload)
        if message.type != "record batch" or is_compressed(message.metadata):
            raise CorruptionError("a frame's payload must be an uncompressed record batch")
        batch = pa.ipc.read_record_batch(message, wire_schema)
        batch.validate(full=True)
    except (pa.ArrowException, EOFError, OSError) as error:
        raise CorruptionError(f"a frame's payload is not a record batch: {error}") from error
    if batch.num_rows != frame.rows:
        raise CorruptionError(f"a frame of {frame.rows} rows has a payload of {batch.num_rows}")
    return batch
