"""Layout and spec — names, limits and default sizes of a store."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zarrow._format import layout
from zarrow._format.array_spec import (
    ZARR_DTYPES,
    ArraySpec,
    default_chunk_rows,
    default_segment_rows,
    is_power_of_two,
)
from zarrow._format.documents import encode_document
from zarrow._format.spec import StoreSpec
from zarrow.errors import CorruptionError, InvalidInputError, NotAStoreError

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


def test_a_spec_without_its_members_is_refused() -> None:
    """A spec without a member is damaged."""
    body = json.loads(SPEC.encode())
    del body["crc32c"]
    for member in set(body) - {"zarrow_format", "columns", "expected_rows"}:
        fewer = {name: value for name, value in body.items() if name != member}
        with pytest.raises(CorruptionError, match=member):
            StoreSpec.decode(encode_document(fewer), "here")


def test_a_newer_format_asks_for_an_upgrade() -> None:
    """The error for a later format names the formats that can be read."""
    with pytest.raises(NotAStoreError, match=r"reads format 1, got 2: upgrade zarrow"):
        StoreSpec.decode(encode_document({"zarrow_format": 2}), "here")


@pytest.mark.parametrize("name", ["a", "query_embed", "Layer-12", "_", "-", "9" * 64])
def test_a_portable_name_is_taken(name: str) -> None:
    """Letters, digits, underscore and hyphen, up to 64 of them, name an array."""
    assert layout.check_name(name, "an array") == name


@pytest.mark.parametrize(
    "name", ["", "a" * 65, ".", "..", "a/b", "../x", "a b", "a.b", "ä", "a\n", "a\0", "c:d", 5, None]
)
def test_any_other_name_is_refused(name: Any) -> None:
    """A name that could leave the store, or that a file system may not have, is refused by rule."""
    with pytest.raises(InvalidInputError, match=r"must be \[A-Za-z0-9_-\]\{1,64\}, got .*: rename it"):
        layout.check_name(name, "an array")


def test_names_sort_as_their_numbers() -> None:
    """Parts and records in name order are in row order."""
    numbers = [0, 9, 10, 99, 12_345, layout.MAX_SEGMENTS - 1]
    for path in (layout.part_path, layout.record_path, layout.claim_path):
        names = [path(number) for number in numbers]
        assert names == sorted(names)


def test_shards_lie_where_zarr_looks() -> None:
    """A shard's path is Zarr's default chunk key, one coordinate per axis."""
    assert layout.shard_path("e", 12, 1) == "embeddings.zarr/e/c/12/0"
    assert layout.shard_path("e", 12, 3) == "embeddings.zarr/e/c/12/0/0/0"


@given(row_bytes=st.integers(1, 1 << 28))
def test_default_sizes_fit(row_bytes: int) -> None:
    """A segment is whole chunks; except for giant rows a chunk has at most 1 MiB, a shard 96 MiB."""
    segment_rows = default_segment_rows(row_bytes)
    chunk_rows = default_chunk_rows(row_bytes, segment_rows)
    assert is_power_of_two(segment_rows)
    assert segment_rows >= layout.MIN_SEGMENT_ROWS
    assert segment_rows % chunk_rows == 0
    assert chunk_rows == 1 or chunk_rows * row_bytes <= layout.TARGET_CHUNK_BYTES
    assert segment_rows == layout.MIN_SEGMENT_ROWS or segment_rows * row_bytes <= layout.MAX_SHARD_BYTES


@pytest.mark.parametrize(("hidden", "rows"), [(8, 131_072), (64, 131_072), (768, 32_768), (16_384, 1024)])
def test_default_segment_of_the_usual_widths(hidden: int, rows: int) -> None:
    """Common vector widths give shards of 32 to 96 MiB; segments of narrow rows have 131,072 rows."""
    assert default_segment_rows(hidden * 4) == rows
    assert rows * hidden * 4 <= layout.MAX_SHARD_BYTES
    assert rows == 131_072 or rows * hidden * 4 >= 48 * layout.MEBIBYTE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../x"}, "rename it"),
        ({"row_shape": ()}, "at least one axis.*a column of the table"),
        ({"row_shape": (4, 0)}, r"each at least 1 long, got shape \(4, 0\)"),
        ({"row_shape": (-1,)}, "each at least 1 long"),
        ({"dtype": "complex64"}, "dtype must be one of bool, int8, .*got complex64: cast it"),
        ({"dtype": "bfloat16"}, "dtype must be one of"),
        ({"chunk_rows": 3}, "chunk_rows must be a power of two, got 3"),
        ({"chunk_rows": 0}, "chunk_rows must be a power of two, got 0"),
        ({"codecs": ()}, "codecs must be objects with a name, at least one"),
    ],
)
def test_an_array_spec_checks_itself(change: dict[str, Any], message: str) -> None:
    """An array that breaks a rule of the format cannot be described."""
    facts: dict[str, Any] = {"name": "e", "row_shape": (4,), "dtype": "float32", "chunk_rows": 4}
    with pytest.raises(InvalidInputError, match=message):
        ArraySpec(**{**facts, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segment_rows": 100}, "segment_rows must be a power of two, got 100"),
        ({"segment_rows": 4}, r"chunk_rows \(8\) must divide segment_rows \(4\)"),
        ({"schema": pa.schema({"row": pa.int64()}), "keys": ()}, "'row'.*rename it"),
        ({"schema": pa.schema({"sample_index": pa.int64()}), "keys": ()}, "sample_index="),
        ({"schema": pa.schema({"query_embed": pa.int64()}), "keys": ()}, "more than one column or array"),
        (
            {"schema": pa.schema([("a", pa.int64()), ("a", pa.int8())]), "keys": ()},
            "'a' is that of more than one column",
        ),
        ({"keys": ("no",)}, "key 'no' is not a column; the columns are .*'id'"),
        ({"keys": ("id", "id")}, "key 'id' is named twice in keys="),
    ],
)
def test_a_store_spec_checks_itself(change: dict[str, Any], message: str) -> None:
    """A store that breaks a rule of the format cannot be described."""
    facts: dict[str, Any] = {"uuid": SPEC.uuid, "segment_rows": 64, "schema": SPEC.schema, "arrays": (ARRAY,)}
    with pytest.raises(InvalidInputError, match=message):
        StoreSpec(**{**facts, **change})


def test_schemas_of_table_and_wire() -> None:
    """A part ends with the store's own columns; a frame has dictionaries decoded."""
    assert SPEC.table_schema.names == ["id", "größe", "code", "tags", "row", "sample_index"]
    assert SPEC.wire_schema.names == ["id", "größe", "code", "tags", "sample_index"]
    assert SPEC.wire_schema.field("code").type == pa.string()
    assert SPEC.table_schema.field("code").type == pa.dictionary(pa.int32(), pa.string())


@pytest.mark.parametrize("dtype", ZARR_DTYPES)
def test_dtypes_are_little_endian(dtype: str) -> None:
    """Whatever machine wrote them, values lie little-endian on disk."""
    spec = ArraySpec(name="e", row_shape=(3,), dtype=dtype, chunk_rows=1)
    assert spec.numpy_dtype.newbyteorder("<") == spec.numpy_dtype
    assert spec.row_bytes == 3 * np.dtype(dtype).itemsize
