"""Statistics of segments — a filter opens the parts that can match, and never loses a row by them."""

from __future__ import annotations

import contextlib
import decimal
import math
import operator
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import zarrow
from zarrow._format import trailers
from zarrow._format.records import Identity
from zarrow._format.statistics import MAGIC
from zarrow._read import part_files, pruning, segment_statistics

STATISTICS = "statistics.arrow"


@contextlib.contextmanager
def opened_parts() -> Iterator[list[str]]:
    """Collect the parts that are opened."""
    seen: list[str] = []
    real = part_files.open_file

    def see(root: Path, path: str, **options: Any) -> Any:
        seen.append(path)
        return real(root, path, **options)

    with mock.patch.object(part_files, "open_file", see):
        yield seen


def write(path: Path, rows: int = 600, **columns: Any) -> zarrow.Store:
    """Write a store of segments of 4 rows, clustered by ``id``."""
    with zarrow.Writer(path, segment_rows=4, mode="w") as writer:
        writer.append({"id": np.arange(rows), **columns})
        writer.finalize()
    return zarrow.open(path)


def ids(store: zarrow.Store, filter: pc.Expression) -> list[int]:
    return store.table(["id"], filter=filter)["id"].to_pylist()


def test_a_filter_opens_the_parts_that_can_match(tmp_path: Path) -> None:
    """Of 150 parts, those are opened whose values can pass; by scan, join and union, too."""
    values = np.where(np.arange(600) % 40 == 7, np.nan, np.arange(600)).astype(np.float32)
    texts = pa.array([f"{row:04}" + "x" * 300 for row in range(600)]).dictionary_encode()
    flags = pa.array([None if row < 300 else row < 308 for row in range(600)])
    store = write(tmp_path / "s.zarrow", value=values, text=texts, flag=flags)
    id, row = pc.field("id"), pc.field("row")
    for condition, right, most in (
        ((id >= 200) & (id < 210), range(200, 210), 3),
        (id.isin([0, 599]), [0, 599], 2),
        (id > 10**6, [], 0),
        ((row < 9) & (id > 7), [8], 1),
        (pc.field("value") > 593, range(594, 600), 2),
        (~(pc.field("value") <= 593), [*range(7, 594, 40), *range(594, 600)], 15 + 2),
        (pc.field("text") > "0597", range(597, 600), 1),
        (pc.field("flag") == True, range(300, 308), 2),  # noqa: E712 - an expression
        (pc.field("flag").is_null() & (id > 295), range(296, 300), 1),
    ):
        with opened_parts() as parts:
            assert ids(store, condition) == list(right), condition
        assert len(set(parts)) <= most, (condition, parts)
        assert [one for batch, _ in store.join(condition) for one in batch["id"].to_pylist()] == list(right)
    with opened_parts() as parts:
        both = zarrow.union({"a": store, "b": store})
        assert both.table(["id"], filter=id == 100).num_rows == 2
    assert len(parts) == 2
    with opened_parts() as parts:
        assert both.table(["id"], filter=(id == 100) & (pc.field("model") == "b"))["id"].to_pylist() == [100]
        assert both.table(["id"], filter=(row >= 600) & (id < 3))["id"].to_pylist() == [0, 1, 2]
    assert len(set(parts)) <= 2


def test_only_statistics_of_these_rows_are_used(tmp_path: Path) -> None:
    """Those of rows that the store had before an append are ignored; if they were not, rows would be lost."""
    path = tmp_path / "s.zarrow"
    write(path, 6)
    old = (path / STATISTICS).read_bytes()
    with zarrow.Writer(path, mode="a") as writer:
        writer.append({"id": [100]})
        writer.finalize()
    assert (path / STATISTICS).read_bytes() != old
    (path / STATISTICS).write_bytes(old)  # a backup that was put back

    def found() -> list[int]:
        return ids(zarrow.open(path), pc.field("id") > 50)

    assert found() == [100]
    report = zarrow.verify(path)
    assert [one.path for one in report.findings] == [STATISTICS]
    real = segment_statistics.decode_statistics

    def trusting(data: bytes, schema: pa.Schema, segments: int, _: Identity) -> Any:
        _, facts = trailers.without_trailer(np.frombuffer(data, np.uint8), MAGIC, "")
        return real(data, schema, segments, Identity(**facts["of"]))

    with mock.patch.object(segment_statistics, "decode_statistics", trusting):
        assert found() == []  # what the test is worth
    zarrow.repair(path)
    assert zarrow.verify(path).findings == ()
    assert found() == [100]


def flipped(data: bytes) -> Iterator[bytes]:
    for place in range(0, len(data), 11):
        yield data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]


def test_no_damage_loses_a_row(tmp_path: Path) -> None:
    """Whatever becomes of the file, filters find the same rows; `verify` sees it, `finalize` restores it."""
    path = tmp_path / "s.zarrow"
    write(path, 12)
    data = (path / STATISTICS).read_bytes()
    for damaged in (b"", b"x" * 99, data[:-1], data + b"x", bytes(len(data)), *flipped(data)):
        (path / STATISTICS).write_bytes(damaged)
        with zarrow.open(path) as store:
            assert ids(store, pc.field("id") > 9) == [10, 11]
        assert not zarrow.verify(path, "structure").ok
    (path / STATISTICS).unlink()
    assert ids(zarrow.open(path), pc.field("id") > 9) == [10, 11]
    zarrow.Writer(path, mode="a").finalize()
    assert (path / STATISTICS).read_bytes() == data


@pytest.mark.parametrize("field", ["nulls", "nans", "min", "max"])
def test_verify_compares_the_statistics_with_the_rows(tmp_path: Path, field: str) -> None:
    """At the level full, statistics in a record that are not those of its rows are found."""
    real = zarrow._write.parts.column_statistics

    def wrong(table: pa.Table) -> Any:
        found = real(table)
        one = found["id"].to_json()
        one[field] = one["max" if field == "min" else "min"] if field in ("min", "max") else 1
        return {**found, "id": type(found["id"]).from_json(one)}

    with mock.patch("zarrow._write.parts.column_statistics", wrong):
        if field == "nans":
            write(tmp_path / "s.zarrow", id=np.arange(600.0))
        else:
            write(tmp_path / "s.zarrow")
    assert "id" in zarrow.verify(tmp_path / "s.zarrow", "full").findings[0].message


def test_what_arrow_can_hold_is_bounded_right(tmp_path: Path) -> None:
    """A filter at, below and above the least and largest value finds what a scan finds, for every type."""
    for kind, values in {
        pa.duration("us"): [5, -7, 0, None],
        pa.float16(): [0.5, -0.0, None, 3.0],
        pa.binary(): [b"\xff" * 99, b"\xff" * 80, b"", None],
        pa.string(): ["\U0010ffff" * 30, "\ud7ff" * 30, "a" * 63 + "é", "a" * 64],
        pa.decimal256(50, 3): [*map(decimal.Decimal, ("-1.5", "2.25", "0.001")), None],
        pa.time32("ms"): [0, 1, 86_399_999, None],
        pa.timestamp("ns", "Europe/Vienna"): [0, 1, -(2**62), 2**62],
        pa.uint64(): [2**64 - 1, 0, 1, 2**63],
    }.items():
        array = pa.array(values, kind)
        store = write(
            tmp_path / "s.zarrow",
            16,
            v=pa.concat_arrays([array.take(pa.array([one] * 4)) for one in range(4)]),
        )
        table = store.table()
        for value in array.drop_null():
            value = value.cast(pa.float32()) if pa.types.is_float16(kind) else value
            for compare in (operator.eq, operator.lt, operator.le, operator.gt, operator.ge, operator.ne):
                condition = compare(pc.field("v"), value)
                brute = pruning.Filter(condition, ["v"]).select(table)["id"].to_pylist()
                assert ids(store, condition) == brute, (kind, compare, value)


def put_back(path: Path, content: Callable[[bytes], bytes]) -> None:
    """Replace the table in the statistics of a store, with a checksum that matches."""
    data, facts = trailers.without_trailer(np.fromfile(path / STATISTICS, np.uint8), MAGIC, "")
    (path / STATISTICS).write_bytes(
        trailers.with_trailer(content(data.tobytes()), {"of": facts["of"]}, MAGIC)
    )


def test_what_a_writer_does_not_write_is_ignored(tmp_path: Path) -> None:
    """A file of another shape, whose checksum matches, is no answer to a filter."""
    path = tmp_path / "s.zarrow"
    write(path, 12)

    def compressed(data: bytes) -> bytes:
        table, sink = pa.ipc.open_stream(data).read_all(), pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(sink, table.schema, options=options) as stream:
            stream.write_table(table)
        return sink.getvalue().to_pybytes()

    def other(data: bytes) -> bytes:
        table, sink = (
            pa.table({"footer_crc32c": pa.array([1] * 3, pa.uint32()), "columns": [1] * 3}),
            pa.BufferOutputStream(),
        )
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return sink.getvalue().to_pybytes()

    kept = (path / STATISTICS).read_bytes()
    for content in (
        compressed,
        other,
        lambda data: b"",
        lambda data: data[:100],
        lambda data: b"\xff" * 4 + data[9:],
    ):
        (path / STATISTICS).write_bytes(kept)
        put_back(path, content)
        assert ids(zarrow.open(path), pc.field("id") > 9) == [10, 11]
        assert not zarrow.verify(path).ok


def test_copies_have_them(tmp_path: Path) -> None:
    """A copy, and a store that was packed, has statistics of its own rows."""
    write(tmp_path / "s.zarrow", 12, value=[math.nan] * 12)
    zarrow.copy(tmp_path / "s.zarrow", tmp_path / "t.zarrow")
    zarrow.pack(tmp_path / "s.zarrow", codecs="zstd")
    for name in ("s", "t"):
        path = tmp_path / f"{name}.zarrow"
        assert zarrow.verify(path, "full").findings == ()
        with opened_parts() as parts:
            assert ids(zarrow.open(path), pc.field("id") == 5) == [5]
        assert len(parts) == 1
    shutil.rmtree(tmp_path / "t.zarrow")
