"""Parts — the Parquet file of a segment."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import zarrow
from zarrow._format.checksum import crc32c
from zarrow._format.parts import to_table, to_wire
from zarrow._format.spec import StoreSpec
from zarrow._storage import files, reading
from zarrow._write import parts
from zarrow._write.declaration import kept_schema
from zarrow.errors import InvalidInputError

ROWS = 3000
UTC = dt.UTC
COLUMNS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "bool": (pa.bool_(), [True, False, None]),
    "int8": (pa.int8(), [-128, 127, None]),
    "uint16": (pa.uint16(), [0, 65535, None]),
    "uint64": (pa.uint64(), [0, 2**64 - 1, None]),
    "float16": (pa.float16(), [np.float16(1.5), None, np.float16(-0.0)]),
    "float32": (pa.float32(), [-0.0, float("inf"), None]),
    "float64": (pa.float64(), [5e-324, -1.0, None]),
    "decimal": (pa.decimal128(20, 3), [decimal.Decimal("1.234"), None, decimal.Decimal("-99.000")]),
    "string": (pa.string(), ["", "é", None]),
    "large_string": (pa.large_string(), ["", "é", None]),
    "binary": (pa.binary(), [b"", b"\0\xff", None]),
    "large_binary": (pa.large_binary(), [b"", b"\0\xff", None]),
    "fixed_binary": (pa.binary(4), [b"abcd", None, b"\0\0\0\0"]),
    "date32": (pa.date32(), [dt.date(1900, 1, 1), None, dt.date(2100, 1, 1)]),
    "date64": (pa.date64(), [dt.date(1900, 1, 1), None, dt.date(2100, 1, 1)]),
    "time32s": (pa.time32("s"), [dt.time(1, 2, 3), None, dt.time()]),
    "time64": (pa.time64("us"), [dt.time(1, 2, 3, 4), None, dt.time()]),
    "seconds": (pa.timestamp("s"), [dt.datetime(2020, 1, 2), None, dt.datetime(1960, 1, 2)]),
    "micro": (pa.timestamp("us"), [dt.datetime(2020, 1, 2, 3, 4, 5, 6), None, dt.datetime(1, 1, 1)]),
    "nano": (pa.timestamp("ns"), [2**62 + 1, None, -1]),
    "utc": (pa.timestamp("us", "UTC"), [dt.datetime(2020, 1, 2, tzinfo=UTC), None, None]),
    "zone": (pa.timestamp("ns", "Europe/Berlin"), [1, None, -1]),
    "duration": (pa.duration("ms"), [dt.timedelta(milliseconds=5), None, -dt.timedelta(days=1)]),
    "list": (pa.list_(pa.int64()), [[], [1, None], None]),
    "large_list": (pa.large_list(pa.string()), [[], ["", None], None]),
    "fixed_list": (pa.list_(pa.float32(), 2), [[1.0, 2.0], None, [-0.0, 0.0]]),
    "deep": (pa.list_(pa.list_(pa.struct({"a": pa.string()}))), [[], [[{"a": None}], None], None]),
    "struct": (pa.struct({"a": pa.int8(), "b": pa.list_(pa.string())}), [{"a": 1, "b": ["x"]}, None, None]),
    "map": (pa.map_(pa.string(), pa.int32()), [[("a", 1)], None, []]),
    "category": (pa.dictionary(pa.int8(), pa.string()), ["x", None, "y"]),
    "ordered": (pa.dictionary(pa.int16(), pa.large_string(), ordered=True), ["x", None, "y"]),
    "coded": (pa.dictionary(pa.uint32(), pa.int64()), [7, None, 8]),
    "view": (pa.string_view(), ["", "a string that is longer than twelve", None]),
    "binary_view": (pa.binary_view(), [b"", b"bytes that are longer than twelve", None]),
    "nothing": (pa.null(), [None, None, None]),
    "uuid": (pa.uuid(), [uuid.UUID(int=5).bytes, None, uuid.UUID(int=2**127).bytes]),
}


def _spec(schema: pa.Schema, keys: tuple[str, ...] = ()) -> StoreSpec:
    return StoreSpec(uuid="0" * 32, segment_rows=4096, schema=kept_schema(schema, keys), keys=keys)


def _batch(spec: StoreSpec, columns: dict[str, Any], rows: int) -> pa.RecordBatch:
    wire = spec.wire_schema
    index = pa.array(range(1000, 1000 + rows), pa.int64())
    values = [_wire(columns[name], wire.field(name).type) for name in wire.names[:-1]]
    return pa.RecordBatch.from_arrays([*values, index], schema=wire)


def _wire(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.ExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))
    return pa.array(values, kind)


def _usual(rows: int = ROWS) -> tuple[StoreSpec, dict[str, Any]]:
    rng = np.random.default_rng(3)
    columns = {
        "subject_id": list(range(7, 7 + rows)),
        "code": [f"code//{row % 5}" for row in range(rows)],
        "prob": rng.random(rows, np.float32),
        "split": [f"split {row % 3}" for row in range(rows)],
        "tags": [["a"] * (row % 3) for row in range(rows)],
    }
    schema = pa.schema(
        {
            "subject_id": pa.int64(),
            "code": pa.string(),
            "prob": pa.float32(),
            "split": pa.dictionary(pa.int8(), pa.string()),
            "tags": pa.list_(pa.string()),
        }
    )
    return _spec(schema, ("subject_id", "code")), columns


def _written(path: Path, rows: int = ROWS) -> StoreSpec:
    spec, columns = _usual(rows)
    table = to_table(spec, [_batch(spec, columns, rows)] if rows else [], 5000)
    facts = parts.write_part(path, spec, table)
    data = path.read_bytes()
    assert (facts.size_bytes, facts.crc32c) == (len(data), crc32c(data))
    return spec


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("part") / "part.parquet"
    _written(path)
    return path


def test_a_part_is_one_row_group(part: Path) -> None:
    """A part has one row group, compressed with zstd, and ends with row and sample index."""
    metadata = pq.read_metadata(part)
    assert (metadata.num_rows, metadata.num_row_groups) == (ROWS, 1)
    group = metadata.row_group(0)
    assert {group.column(number).compression for number in range(group.num_columns)} == {"ZSTD"}
    table = pq.read_table(part)
    assert table["row"].to_pylist() == list(range(5000, 5000 + ROWS))
    assert table["sample_index"].to_pylist() == list(range(1000, 1000 + ROWS))
    assert table.schema.names[-2:] == ["row", "sample_index"]


def test_only_strings_have_a_dictionary(part: Path) -> None:
    """Floats, which a dictionary would inflate, are written plainly; strings share theirs."""
    group = pq.read_metadata(part).row_group(0)
    encodings = {
        group.column(number).path_in_schema: group.column(number).encodings
        for number in range(group.num_columns)
    }
    with_dictionary = {name for name, found in encodings.items() if "RLE_DICTIONARY" in found}
    assert with_dictionary == {"code", "split"}
    assert "DELTA_BINARY_PACKED" in encodings["row"]
    assert "DELTA_BINARY_PACKED" in encodings["sample_index"]
    sizes = {
        group.column(number).path_in_schema: group.column(number).total_compressed_size
        for number in range(group.num_columns)
    }
    assert sizes["prob"] < ROWS * 4 * 1.02 + 200
    assert sizes["row"] < ROWS / 4


def test_readers_can_skip(part: Path) -> None:
    """Statistics and a page index are there for every column but nested ones and those with a NaN."""
    group, table = pq.read_metadata(part).row_group(0), pq.read_table(part)
    for number in range(group.num_columns):
        column = group.column(number)
        assert column.has_offset_index
        values = table.to_pydict().get(column.path_in_schema)
        there = values is not None and not any(value != value for value in values)
        assert (column.has_column_index, column.is_stats_set) == (there, there), column.path_in_schema
    assert group.column(0).statistics.min == 7
    assert group.column(0).statistics.max == 7 + ROWS - 1


@pytest.mark.skipif(not parts._has_bloom_filters(), reason="this pyarrow writes no bloom filters")
def test_keys_have_bloom_filters(part: Path) -> None:
    """A key that is not there is ruled out without reading the column; other columns pay for no filter."""
    probe = duckdb.connect()
    for column, absent, key in (
        ("code", "code//x", True),
        ("subject_id", 3 * ROWS, True),
        ("split", "no", False),
    ):
        ruled_out = probe.execute(
            f"SELECT bloom_filter_excludes FROM parquet_bloom_probe('{part}', '{column}', ?)", [absent]
        ).fetchall()
        assert ruled_out == [(key,)], column


def test_a_flipped_bit_is_seen_by_a_checking_reader(part: Path, tmp_path: Path) -> None:
    """A reader that verifies page checksums never returns a changed value."""
    data = part.read_bytes()
    expected = pq.read_table(part)
    caught = 0
    for place in range(4, len(data), 211):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        path = tmp_path / "damaged.parquet"
        path.write_bytes(damaged)
        try:
            found = pq.read_table(path, page_checksum_verification=True)
        except (OSError, pa.ArrowException):
            caught += 1
            continue
        # Indexes and footer are not covered by page checksums; the data, then, is untouched.
        assert found.equals(expected) or place > len(data) - 8192
    assert caught > 50


def test_the_schema_says_that_keys_are_never_null(part: Path) -> None:
    """Keys and row are required in Parquet; other columns are optional."""
    schema = pq.read_schema(part)
    assert [column.name for column in schema if not column.nullable] == ["subject_id", "code", "row"]


def test_polars_and_duckdb_read_a_part(part: Path) -> None:
    """Readers of other makes find the same rows."""
    expected = pq.read_table(part)
    assert pl.read_parquet(part)["prob"].to_list() == expected["prob"].to_pylist()
    found = duckdb.sql(f"SELECT split, tags FROM '{part}' ORDER BY row").fetchall()
    assert [row[0] for row in found] == expected["split"].to_pylist()
    assert [row[1] for row in found] == expected["tags"].to_pylist()


def test_a_part_without_rows_is_a_part(tmp_path: Path) -> None:
    """A store of no rows has a Parquet file with all columns."""
    spec = _written(tmp_path / "empty.parquet", 0)
    table = pq.read_table(tmp_path / "empty.parquet")
    assert table.num_rows == 0
    assert table.schema.names == spec.table_schema.names
    assert duckdb.sql(f"SELECT count(*) FROM '{tmp_path / 'empty.parquet'}'").fetchall() == [(0,)]


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("key", [False, True], ids=["column", "key"])
def test_every_type_comes_back(name: str, key: bool, tmp_path: Path) -> None:
    """A column of any type that Parquet holds comes back with its values, also as a key or a frame's."""
    kind, values = COLUMNS[name]
    if key:
        if pa.types.is_nested(kind) or pa.types.is_null(kind) or isinstance(kind, pa.BaseExtensionType):
            with pytest.raises(InvalidInputError, match="key 'c': a key must be a scalar type"):
                parts.check_columns(_spec(pa.schema([("c", kind)]), ("c",)))
            return
        values = [value for value in values if value is not None] * 2
    spec = _spec(pa.schema([("c", kind)]), ("c",) if key else ())
    if pa.types.is_fixed_size_list(kind) and int(pa.__version__.split(".")[0]) < 22:
        pytest.skip("this pyarrow reads no null list of fixed size, so check_columns refuses it")
    parts.check_columns(spec)
    batch = _batch(spec, {"c": values}, len(values))
    table = to_table(spec, [batch, batch], 0)
    assert table.schema == spec.table_schema
    path = tmp_path / "part.parquet"
    parts.write_part(path, spec, table)
    found = pq.read_table(path, schema=spec.table_schema)
    assert found.equals(table)
    back = to_wire(spec, path, reading.open_file(path.parent, path.name).read, "the part")
    assert back.equals(pa.Table.from_batches([batch, batch]))


def test_a_dictionary_may_grow_beyond_its_first_type(tmp_path: Path) -> None:
    """A segment may see more categories than the index type of its first batch could count."""
    spec = _spec(pa.schema({"c": pa.dictionary(pa.int8(), pa.string())}))
    values = [f"category {row}" for row in range(1000)]
    table = to_table(spec, [_batch(spec, {"c": values}, 1000)], 0)
    parts.write_part(tmp_path / "part.parquet", spec, table)
    found = pq.read_table(tmp_path / "part.parquet")["c"]
    assert pa.types.is_dictionary(found.type)
    assert found.to_pylist() == values


@pytest.mark.parametrize(
    "kind", [pa.month_day_nano_interval(), pa.struct([]), pa.dense_union([pa.field("a", pa.int8())])]
)
def test_what_parquet_cannot_hold_is_refused_at_once(kind: pa.DataType) -> None:
    """A type without a Parquet form is refused by name, before any row is taken."""
    with pytest.raises(InvalidInputError, match=r"column 'c': .*cast it"):
        parts.check_columns(_spec(pa.schema([("c", kind)])))


def test_a_null_that_this_pyarrow_cannot_read_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a null list of fixed size cannot be read back, a column that may have one is refused."""
    pair = pa.list_(pa.float32(), 2)
    fine = [
        pa.field("c", pair, nullable=False),
        pa.field("c", pa.list_(pa.float32())),
        pa.field("c", pa.list_(pa.field("item", pair, nullable=False))),
    ]
    poison = [
        pa.field("c", pair),
        pa.field("c", pa.list_(pair)),
        pa.field("c", pa.struct([pa.field("a", pair, nullable=False)])),
    ]
    for works in (True, False):
        monkeypatch.setattr(parts, "_reads_null_lists", lambda works=works: works)
        for field in fine + poison * works:
            parts.check_columns(_spec(pa.schema([field])))
    for field in poison:
        with pytest.raises(InvalidInputError, match=r"column 'c': pyarrow .*declare the column not nullable"):
            parts.check_columns(_spec(pa.schema([field])))


def test_a_dictionary_within_a_list_is_kept_as_its_values(tmp_path: Path) -> None:
    """A nested dictionary, which Parquet does not give back, is decoded; its values come back equal."""
    values = pa.array([["a", "b"], None, ["a"]], pa.list_(pa.dictionary(pa.int8(), pa.string())))
    with zarrow.Writer(tmp_path / "s.zarrow") as writer:
        writer.append({"c": values})
        writer.finalize()
    assert zarrow.open(tmp_path / "s.zarrow").table(["c"])["c"].to_pylist() == values.to_pylist()


class _ShortWrites(files.Calls):
    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        return super().pwrite(fd, data[: max(1, len(data) // 3)], offset)


def test_short_writes_lose_nothing(part: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that writes less than it is asked to is asked again, until all is out."""
    monkeypatch.setattr(files, "calls", _ShortWrites())
    _written(tmp_path / "part.parquet")
    assert pq.read_table(tmp_path / "part.parquet").equals(pq.read_table(part))


class _Full(files.Calls):
    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        raise OSError(28, "No space left on device")


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the file system comes out of Parquet's writer as what it is."""
    monkeypatch.setattr(files, "calls", _Full())
    with pytest.raises(OSError, match="No space left") as caught:
        _written(tmp_path / "part.parquet")
    assert caught.value.errno == 28


@pytest.mark.parametrize(
    "values",
    [
        [b"a" * 100_000 + b"%d" % row for row in range(300)],
        ["a" * (20 << 20)],
        [[0.0] * 30_000] * 75,
        ["a" * 250_000] * 300,
        [[{"text": "a" * 250_000}]] * 300,
    ],
    ids=["binary", "one string", "lists", "a string again and again", "within lists"],
)
def test_large_constants_are_no_attack(values: list[Any], tmp_path: Path) -> None:
    """What zstd compresses more than a reader allows is stored so that readers allow it."""
    path = tmp_path / "run.zarrow"
    with zarrow.Writer(path, segment_rows=512) as writer:
        writer.append({"c": values}, {})
        writer.finalize()
    assert zarrow.verify(path, "full").ok
    assert zarrow.open(path).table(["c"])["c"].to_pylist() == values
