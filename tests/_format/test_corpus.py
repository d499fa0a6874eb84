"""Fuzzing the decoders — malformed frames, documents, shard indexes and key tables, none of them trusted.

`CORPUS` holds pieces of stores, sound ones and ones that are hard to reject. Hypothesis mutates them: it
flips bits, cuts, inserts and splices, and then often recomputes the checksum, so that the code behind it is
reached. For any input a decoder raises a `ZarrowError` or returns what the bytes support: never another
exception, never more data than it was given.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zarrow._format import frames, key_tables, shard_index
from zarrow._format.array_spec import ArraySpec
from zarrow._format.checksum import crc32c
from zarrow._format.documents import encode_document
from zarrow._format.records import Claim, Identity, Manifest, Owner, SegmentRecord
from zarrow._format.spec import StoreSpec
from zarrow.errors import ZarrowError

UUID = bytes(range(16))
SCHEMA = pa.schema({"id": pa.int64(), "text": pa.string(), "sample_index": pa.int64()})
SEGMENT_ROWS = 64
ARRAY = ArraySpec(
    name="e", row_shape=(4,), dtype="int8", chunk_rows=16, codecs=({"name": "bytes"}, {"name": "crc32c"})
)


def _frame(first: int, rows: int, durable: int = 0) -> bytes:
    batch = pa.record_batch([range(rows), ["é"] * rows, [None] * rows], SCHEMA)
    payload = batch.serialize() if rows else b""
    return bytes(frames.encode(UUID, first, rows, durable, (frames.ArrayEntry(7),), payload))


FRAMES = (
    _frame(0, 3),
    _frame(0, 3) + _frame(3, 0, 3) + _frame(3, 5),
    _frame(0, 0),
    _frame(0, 3)[:-1],
    _frame(0, 3) + bytes(64),
    _frame(0, 3) + b"ZARROWF1" + (2**63).to_bytes(8, "little") + bytes(48),
    b"ZARROWF1" * 20,
)
DOCUMENTS = tuple(
    encode_document(body)
    for body in (
        {"segment": 1, "sources": [["0" * 16, 0, 5, "a", 0]]},
        {"segment": 0, "rows": 1, "arrays": {"e": {"size_bytes": 4, "index_crc32c": 1, "chunks_crc32c": [1]}},
         "part": {"size_bytes": 1, "crc32c": 2}, "sources": []},
        {"uuid": "0" * 32, "rows": 3, "shard_bytes": {"e": [1]}, "part_bytes": [2], "records_crc32c": [3]},
        {"session": "0" * 32, "sequence": 0, "host": "h", "pid": 1, "since": "now",
         "from_segment": 0, "reopens": [3, 5]},
        {"zarrow_format": 1, "uuid": "0" * 32, "segment_rows": 1024, "arrays": [], "arrow_schema": "AAAA",
         "columns": [], "keys": [], "provenance": {}},
        {"zarrow_format": 1, "uuid": [], "segment_rows": -1, "arrays": [{"name": "../x"}], "keys": {}},
        {"segment": 10**400, "sources": [[None, 1e308, True]]},
    )
)  # fmt: skip
INDEXES = (
    shard_index.encode_index([10, 20], 4),
    shard_index.encode_index([], 1),
    np.full((2, 2), 2**63, "<u8").tobytes()
    + crc32c(np.full((2, 2), 2**63, "<u8").tobytes()).to_bytes(4, "little"),
    b"",
    bytes(3),
)
TABLES = tuple(
    key_tables.encode_tables(
        Identity(uuid="0" * 32, rows=rows, records_crc32c=1), (("id", "int64"),),
        24 * rows, 0, [0] * blocks, [0] * blocks, [],
    )
    for rows, blocks in ((0, 0), (1, 1), (300, 2))
)  # fmt: skip
CORPUS = {"frames": FRAMES, "documents": DOCUMENTS, "indexes": INDEXES, "tables": TABLES}


def resign_frame(data: bytes) -> bytes:
    """Recompute the checksum of the first frame, taking all the bytes as its size."""
    size = len(data) // 8 * 8
    body = data[:8] + size.to_bytes(8, "little") + UUID + data[32 : size - 4]
    return body + crc32c(body).to_bytes(4, "little") if size >= 64 else data


def resign_document(data: bytes) -> bytes:
    """Recompute the checksum of a document."""
    text = re.sub(rb',"crc32c":"[0-9a-f]{8}"\}\n\Z', b"", data)
    return text + b',"crc32c":"%08x"}\n' % crc32c(text)


def resign_index(data: bytes) -> bytes:
    """Recompute the checksum of a shard index."""
    return data[:-4] + crc32c(data[:-4]).to_bytes(4, "little")


def decode_frames(data: bytes) -> None:
    """Scan a journal, and decode the frames that are found valid."""
    found = frames.scan(frames.Journal.of(data), UUID, 1, SEGMENT_ROWS, "here")
    assert sum(frame.rows for frame in found.frames) <= SEGMENT_ROWS
    assert all(end <= len(data) for end in found.ends)
    for frame in found.frames:
        if frame.rows:
            batch = frames.parse_payload(frame, SCHEMA)
            assert batch.num_rows == frame.rows
            assert batch.nbytes <= len(data)
            batch.to_pylist()


def decode_documents(data: bytes) -> None:
    """Decode a document as every kind of document."""
    for kind in (Claim, SegmentRecord, Manifest, Owner, StoreSpec):
        try:
            kind.decode(data, "here")  # type: ignore[attr-defined]
        except ZarrowError:
            continue


def decode_index(data: bytes) -> None:
    """Read the shard index of a shard of two chunks in 30 bytes."""
    assert sum(shard_index.decode_index(data, ARRAY, 2, 30, "here")) == 30


def decode_tables(data: bytes) -> None:
    """Read the tables that follow the entries of a key index."""

    def read(start: int, size: int) -> Any:
        assert 0 <= start <= start + size <= len(data)
        return np.frombuffer(data, np.uint8)[start : start + size]

    found = key_tables.read_tables(read, len(data), [pa.int64()], "here")
    assert found.entries_bytes + found.heap_bytes <= len(data)


KINDS: dict[str, Any] = {
    "frames": (decode_frames, resign_frame),
    "documents": (decode_documents, resign_document),
    "indexes": (decode_index, resign_index),
    "tables": (decode_tables, lambda data: data),
}


@st.composite
def mutated(draw: st.DrawFn, kind: str) -> bytes:
    """Return a piece of the corpus after some mutations, often with a valid checksum."""
    data = bytearray(draw(st.sampled_from(CORPUS[kind])))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(("flip", "set", "cut", "insert", "splice")))
        if how == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "set":
            width = draw(st.sampled_from((1, 4, 8)))
            number = draw(st.sampled_from((0, 1, 2**7, 2**31, 2**32 - 1, 2**63, 2**64 - 1)))
            data[at : at + width] = number.to_bytes(8, "little")[:width]
        elif how == "cut":
            del data[at : at + draw(st.integers(1, 64))]
        elif how == "insert":
            data[at:at] = draw(st.binary(max_size=16))
        else:
            data[at:] = draw(st.sampled_from(CORPUS[kind]))[at:]
    return KINDS[kind][1](bytes(data)) if draw(st.booleans()) else bytes(data)


def attempt(kind: str, data: bytes) -> None:
    """Decode: a `ZarrowError` is fine, any other exception is not."""
    with contextlib.suppress(ZarrowError):
        KINDS[kind][0](data)


@pytest.mark.parametrize("kind", KINDS)
def test_the_corpus_is_decoded_or_rejected(kind: str) -> None:
    """Every piece is decoded or rejected, as it is and with a valid checksum."""
    for piece in CORPUS[kind]:
        attempt(kind, piece)
        attempt(kind, KINDS[kind][1](piece))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_mutants_of_the_corpus_are_decoded_or_rejected(kind: str, profile: str) -> None:
    """A decoder rejects a mutated piece with a `ZarrowError`, or returns what its bytes support."""

    @settings(max_examples=1_000 if profile == "ci" else 100_000, deadline=None, derandomize=profile == "ci")
    @given(data=mutated(kind))
    def fuzz(data: bytes) -> None:
        attempt(kind, data)

    fuzz()
