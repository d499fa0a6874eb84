"""Documents — every kind of JSON document that a store has, and its checksum."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zarrow._format.array_spec import ArraySpec
from zarrow._format.checksum import crc32c
from zarrow._format.documents import decode_document, encode_document
from zarrow._format.records import Claim, Manifest, Owner, PartFacts, SegmentRecord, ShardFacts, Source
from zarrow._format.spec import StoreSpec
from zarrow.errors import CorruptionError

SOURCE = Source(slot="0123456789abcdef", start=3, stop=40, session="ab" * 16, sequence=2)
ARRAY = ArraySpec(name="query_embed", row_shape=(2, 4), dtype="float16", chunk_rows=8)
SPEC = StoreSpec(
    uuid="ab" * 16,
    segment_rows=64,
    schema=pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("größe", pa.timestamp("us", "Europe/Berlin")),
            pa.field("code", pa.dictionary(pa.int32(), pa.string())),
            pa.field("tags", pa.list_(pa.string())),
        ]
    ),
    arrays=(ARRAY,),
    keys=("id",),
    provenance={"model": "é", "steps": [1, 2.5, None]},
)
DOCUMENTS: dict[str, Any] = {
    "spec": SPEC,
    "claim": Claim(segment=5, sources=(SOURCE,)),
    "record": SegmentRecord(
        segment=5,
        rows=37,
        arrays={
            "query_embed": ShardFacts(size_bytes=1024, chunks_crc32c=(1, 2**32 - 1), index_crc32c=0),
        },
        part=PartFacts(size_bytes=99, crc32c=17, footer_crc32c=18),
        sources=(SOURCE,),
    ),
    "manifest": Manifest(
        uuid="ab" * 16,
        rows=101,
        shard_bytes={"query_embed": (1024, 512)},
        part_bytes=(7, 8),
        records_crc32c=(1, 2),
    ),
    "owner": Owner(session="cd" * 16, sequence=1, host="h", pid=4, since="2026-01-01T00:00", reopens=(3, 5)),
}
documents = pytest.mark.parametrize("name", DOCUMENTS)


@documents
def test_a_document_comes_back(name: str) -> None:
    """Documents are read back as they were written."""
    document = DOCUMENTS[name]
    assert type(document).decode(document.encode(), "here") == document


@documents
def test_a_document_is_json_for_everybody(name: str) -> None:
    """Any JSON parser reads a document, whose last member is its checksum."""
    body = json.loads(DOCUMENTS[name].encode())
    assert list(body)[-1] == "crc32c"


@documents
def test_any_flipped_bit_is_noticed(name: str) -> None:
    """A document with any flipped bit is refused."""
    document = DOCUMENTS[name]
    data = document.encode()
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptionError, match=r"here: .*checksum"):
            type(document).decode(bytes(damaged), "here")


@documents
def test_any_cut_is_noticed(name: str) -> None:
    """A truncated or extended document is refused."""
    document = DOCUMENTS[name]
    data = document.encode()
    for stop in range(len(data)):
        with pytest.raises(CorruptionError):
            type(document).decode(data[:stop], "here")
    with pytest.raises(CorruptionError):
        type(document).decode(data + b"\n", "here")


@pytest.mark.parametrize("kind", [StoreSpec, Claim, SegmentRecord, Manifest, Owner])
@given(data=st.binary(max_size=200))
def test_garbage_is_no_document(kind: Any, data: bytes) -> None:
    """Bytes that are not a document raise `CorruptionError` and nothing else."""
    with pytest.raises(CorruptionError):
        kind.decode(data, "here")


@pytest.mark.parametrize("text", [b"", b'{"a":', b"[1", b'[{"a":1', b"\xff", b"[" * 100_000])
def test_a_checksum_over_nonsense_vouches_for_nothing(text: bytes) -> None:
    """Bytes with a sound checksum that are no JSON object are refused like damaged ones."""
    with pytest.raises(CorruptionError, match="here"):
        decode_document(text + b',"crc32c":"%08x"}\n' % crc32c(text), "here")


def test_a_key_that_no_index_can_hold_is_refused_where_the_store_is_opened() -> None:
    """A declaration whose key is no scalar breaks the format; nothing deeper has to cope with it."""
    spec = StoreSpec(uuid="0" * 32, segment_rows=8, schema=pa.schema([("u", pa.uuid())]), arrays=())
    body = decode_document(spec.encode(), "zarrow.json") | {"keys": ["u"]}
    with pytest.raises(CorruptionError, match="key 'u': a key must be a scalar type"):
        StoreSpec.decode(encode_document(body), "zarrow.json")
