"""Frames — batches in the journal of an open segment, whole, torn or damaged."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zarrow._format import frames
from zarrow._format.checksum import crc32c
from zarrow._format.frames import ArrayEntry, Chunk, Frame
from zarrow.errors import CorruptionError

UUID = bytes(range(16))
SCHEMA = pa.schema({"id": pa.int64(), "text": pa.string()})
ENTRIES = (ArrayEntry(7), ArrayEntry(2**32 - 1, 5, 1, (Chunk(2**40, 9), Chunk(0, 0))))
SEGMENT_ROWS = 1000


def _batch(first_row: int, rows: int) -> pa.RecordBatch:
    ids = list(range(first_row, first_row + rows))
    return pa.record_batch(
        {"id": ids, "text": [None if row % 5 == 0 else "é" * (row % 7) for row in ids]}, SCHEMA
    )


def _journal(counts: list[int], durable: list[int] | None = None) -> tuple[bytes, list[int]]:
    """Return a journal of batches with these numbers of rows, and the ends of its frames."""
    data, ends, row = b"", [], 0
    for number, count in enumerate(counts):
        payload = _batch(row, count).serialize() if count else b""
        data += frames.encode(UUID, row, count, durable[number] if durable else 0, ENTRIES, payload)
        ends.append(len(data))
        row += count
    return data, ends


def _scan(data: bytes, arrays: int = 2) -> frames.Scan:
    return frames.scan(frames.Journal.of(data), UUID, arrays, SEGMENT_ROWS, "the journal")


def _ids(found: tuple[Frame, ...]) -> list[int]:
    return [
        row for frame in found if frame.rows for row in frames.parse_payload(frame, SCHEMA)["id"].to_pylist()
    ]


def test_frames_come_back() -> None:
    """Appended batches are found again with all their facts."""
    data, ends = _journal([3, 1, 0, 40], [0, 0, 4, 4])
    found = _scan(data)
    assert found.ends == tuple(ends)
    assert [(frame.first_row, frame.rows, frame.durable_rows) for frame in found.frames] == [
        (0, 3, 0),
        (3, 1, 0),
        (4, 0, 4),
        (4, 40, 4),
    ]
    assert all(frame.arrays == ENTRIES for frame in found.frames)
    assert (found.rows, found.durable_rows, found.torn_bytes) == (44, 4, 0)
    assert frames.parse_payload(found.frames[3], SCHEMA).equals(_batch(4, 40))


def test_an_empty_journal_has_no_rows() -> None:
    """The empty journal of a new segment is sound."""
    found = _scan(b"")
    assert (found.frames, found.rows, found.durable_rows, found.torn_bytes) == ((), 0, 0, 0)


@given(
    counts=st.lists(st.integers(0, 9), max_size=6),
    entries=st.lists(
        st.builds(
            ArrayEntry,
            st.integers(0, 2**32 - 1),
            st.integers(0, 2**32 - 1),
            st.integers(0, 1),
            st.lists(st.builds(Chunk, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)), max_size=3).map(
                tuple
            ),
        ),
        max_size=3,
    ),
)
def test_any_frames_come_back(counts: list[int], entries: list[ArrayEntry]) -> None:
    """A frame's entries are read back for any number of arrays."""
    data, row = b"", 0
    for count in counts:
        data += frames.encode(UUID, row, count, row, entries, _batch(row, count).serialize())
        row += count
    assert len(data) % 8 == 0
    found = _scan(data, arrays=len(entries))
    assert [frame.rows for frame in found.frames] == counts
    assert all(frame.arrays == tuple(entries) for frame in found.frames)
    assert _ids(found.frames) == list(range(row))


@given(st.data())
def test_any_cut_leaves_an_exact_prefix(data: st.DataObject) -> None:
    """A journal cut anywhere holds exactly the batches that were whole before the cut."""
    journal, ends = _journal([2, 5, 1, 7])
    cut = data.draw(st.integers(0, len(journal)))
    found = _scan(journal[:cut])
    whole = [end for end in ends if end <= cut]
    assert found.ends == tuple(whole)
    assert _ids(found.frames) == list(range([0, 2, 7, 8, 15][len(whole)]))
    assert found.torn_bytes == cut - (whole[-1] if whole else 0)


@given(st.data())
def test_a_zeroed_tail_leaves_an_exact_prefix(data: st.DataObject) -> None:
    """Zeros where a power cut took the bytes are a torn tail, not rows."""
    journal, ends = _journal([2, 5, 1, 7])
    cut = data.draw(st.integers(0, len(journal)))
    extra = data.draw(st.sampled_from([0, 1, 8, 4096]))
    found = _scan(journal[:cut] + bytes(len(journal) - cut + extra))
    # A frame whose last bytes were zeros anyway is whole.
    whole = sum(journal[cut:end] == bytes(max(end - cut, 0)) for end in ends)
    assert len(found.frames) == whole
    assert _ids(found.frames) == list(range([0, 2, 7, 8, 15][whole]))


def test_no_flipped_bit_gives_wrong_rows() -> None:
    """Any single flipped bit costs the rows from there on, and never changes one."""
    journal, ends = _journal([2, 3, 1])
    for bit in range(len(journal) * 8):
        damaged = bytearray(journal)
        damaged[bit // 8] ^= 1 << bit % 8
        hit = next(number for number, end in enumerate(ends) if bit // 8 < end)
        found = _scan(bytes(damaged))
        assert len(found.frames) == hit
        assert _ids(found.frames) == list(range([0, 2, 5][hit]))


def test_no_flipped_bit_in_durable_rows_goes_unnoticed() -> None:
    """Any single flipped bit in a frame that a later one calls durable is reported, not dropped."""
    journal, ends = _journal([2, 3, 1], [0, 0, 5])
    for bit in range(ends[1] * 8):
        damaged = bytearray(journal)
        damaged[bit // 8] ^= 1 << bit % 8
        row = 0 if bit // 8 < ends[0] else 2
        with pytest.raises(
            CorruptionError, match=rf"the journal: .*row {row} of .*though 5 rows were durable"
        ):
            _scan(bytes(damaged))


@pytest.mark.parametrize("last_says", [0, 2, 3, 5])
def test_rot_is_told_from_a_torn_tail(last_says: int) -> None:
    """A damaged frame in the middle is dropped with what follows, unless its rows were durable."""
    journal, ends = _journal([2, 3, 1], [0, 0, last_says])
    damaged = bytearray(journal)
    damaged[ends[0] + 20] ^= 1
    if last_says <= 2:
        found = _scan(bytes(damaged))
        assert found.rows == 2
        assert found.torn_bytes == len(journal) - ends[0]
    else:
        with pytest.raises(CorruptionError, match=rf"byte {ends[0]} \(row 2 .*{last_says} rows were durable"):
            _scan(bytes(damaged))


def test_rows_may_be_durable_and_gone_only_loudly() -> None:
    """A lost stretch before a frame that calls it durable is reported."""
    journal, ends = _journal([2, 3, 1], [0, 0, 5])
    for lost in (journal[ends[0] :], journal[: ends[0]] + journal[ends[1] :]):
        with pytest.raises(CorruptionError):
            _scan(lost)


@given(garbage=st.binary(max_size=300))
def test_garbage_holds_no_rows(garbage: bytes) -> None:
    """Bytes that are not a journal hold no rows, and raise no other error."""
    assert _scan(garbage).frames == ()
    assert _scan(frames.MAGIC + garbage).frames == ()


@given(st.data())
def test_garbage_after_the_frames_adds_no_rows(data: st.DataObject) -> None:
    """Bytes after the last frame are a torn tail."""
    journal, ends = _journal([2, 3])
    found = _scan(journal + data.draw(st.binary(max_size=200)))
    assert found.ends == tuple(ends)


def test_a_frame_of_another_store_does_not_count() -> None:
    """The journal of another store holds no rows of this one."""
    journal, _ = _journal([2, 3])
    assert frames.scan(frames.Journal.of(journal), bytes(16), 2, SEGMENT_ROWS, "here").frames == ()


def _signed(head: tuple[Any, ...], body: bytes = b"") -> bytes:
    data = frames._HEAD.pack(*head) + body
    return data + crc32c(data).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ((0, 0, 2, 3, 0), b""),  # an array too many
        ((0, 0, 2, 2, 0), b"\0" * 12 + b"\xff" * 20),  # more chunks than there is room for
        ((0, 0, 2, 2, 2**40), b"\0" * 32),  # a payload larger than the frame
        ((0, 0, 2**32 - 1, 2, 0), b"\0" * 32),  # more rows than a segment has
        ((3, 0, 2, 2, 0), b"\0" * 32),  # rows are missing before it
        ((0, 1, 2, 2, 0), b"\0" * 32),  # calls rows durable that come later
        ((2**64 - 1, 0, 2, 2, 0), b"\0" * 32),
    ],
    ids=["arrays", "chunks", "payload", "rows", "gap", "future", "overflow"],
)
def test_a_hostile_frame_is_refused(head: tuple[int, int, int, int, int], body: bytes) -> None:
    """A frame with a sound checksum that contradicts the store is reported, not followed."""
    first, durable, rows, arrays, payload = head
    size = frames._HEAD.size + len(body) + 4
    data = _signed((frames.MAGIC, size, UUID, first, durable, rows, arrays, payload), body)
    with pytest.raises(CorruptionError, match="the journal: "):
        _scan(data)


def test_a_payload_that_is_no_batch_is_refused() -> None:
    """A frame whose rows are no record batch, or another number, is reported."""
    for payload in (b"", b"\0" * 64, random.Random(1).randbytes(256), _batch(0, 3).serialize()):
        found = _scan(frames.encode(UUID, 0, 2, 0, ENTRIES, payload))
        with pytest.raises(CorruptionError, match="a frame"):
            frames.parse_payload(found.frames[0], SCHEMA)
