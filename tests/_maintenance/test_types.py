"""Types under maintenance — verify, pack and repair leave the values of every type as they were written."""

from __future__ import annotations

import datetime as dt
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from _write.test_values import SCALARS, SMALL, TEXT, TIMES, TYPES
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import zarrow
from zarrow._format.array_spec import ZARR_DTYPES

SEGMENT_ROWS = 8
UNSIGNED = st.integers(0, 2**8 - 1)
ALL: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    *SCALARS,
    *((kind, SMALL) for kind in (pa.int16(), pa.int32())),
    *((kind, UNSIGNED) for kind in (pa.uint8(), pa.uint16(), pa.uint32())),
    (pa.null(), st.none()),
    (pa.large_binary(), st.binary(max_size=5)),
    (pa.time32("ms"), TIMES.map(lambda time: time.replace(microsecond=1000))),
    (pa.time64("ns"), TIMES),
    (pa.timestamp("ns"), st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1))),
    (pa.timestamp("ms", "Europe/Berlin"), st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(2030, 1, 1))),
    *((pa.duration(unit), st.timedeltas(dt.timedelta(-9), dt.timedelta(9))) for unit in ("s", "ms", "ns")),
    (pa.large_list(pa.int8()), st.lists(SMALL, max_size=3)),
    (
        pa.map_(pa.string(), pa.int8()),
        st.lists(st.tuples(TEXT, SMALL), max_size=3, unique_by=lambda one: one[0]),
    ),
    (pa.uuid(), st.binary(min_size=16, max_size=16)),
    (pa.json_(), SMALL.map(str)),
    (pa.bool8(), st.sampled_from([0, 1])),
    (pa.fixed_shape_tensor(pa.int8(), [2]), st.lists(SMALL, min_size=2, max_size=2)),
]
"""The types of FORMAT.md's table that `SCALARS` leaves out."""


def array_of(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Return values of a type, of an extension type by way of its storage."""
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))
    return pa.array(values, kind, safe=False) if pa.types.is_duration(kind) else pa.array(values, kind)


def table_of(values: dict[str, tuple[pa.DataType, list[Any]]]) -> pa.Table:
    """Return 21 rows, in which the values of every column are repeated."""
    repeated = {name: [some[row % len(some)] for row in range(21)] for name, (_, some) in values.items()}
    return pa.table({name: array_of(repeated[name], kind) for name, (kind, _) in values.items()})


def vectors(count: int, dtype: str) -> np.ndarray:
    """Return vectors that differ by row, of 24 bytes or more."""
    rows = np.arange(count)[:, None] + np.arange(24)
    return (rows % 2 if dtype == "bool" else rows).astype(dtype)


def rows_of(table: pa.Table) -> list[str]:
    """Return every row as text."""
    return [repr(list(row.values())) for row in table.to_pylist()]


def read(path: Path) -> dict[int, str]:
    """Return every row by its sample_index, as text so that NaN is NaN; vectors are checked."""
    with zarrow.open(path) as store:
        table = store.table()
        samples = table["sample_index"].to_pylist()
        for name, array in store.arrays.items():
            expected = vectors(1000, array.dtype.name)[samples]
            np.testing.assert_array_equal(array.read(0, len(array), check="crc"), expected, err_msg=name)
        assert len(set(samples)) == len(samples)
        return dict(zip(samples, rows_of(table.drop_columns(["id", "row", "sample_index"])), strict=True))


def sound(path: Path) -> None:
    """Check that verify finds nothing, however thoroughly, that repair would do."""
    findings = [one for one in zarrow.verify(path, "full").findings if one.severity != "note"]
    assert not findings, findings
    assert zarrow.repair(path, level="full").nothing_to_do


def check(table: pa.Table, dtype: str, codecs: Any, flipped: int, *, late: bool) -> None:
    """Write, verify, pack, damage, repair, verify, read; damage before or, if `late`, after the end."""
    count = len(table)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "s.zarrow")
        schema = table.schema.append(pa.field("id", pa.int64()))
        with zarrow.Writer(
            path, schema=schema, segment_rows=SEGMENT_ROWS, codecs={"z": codecs}, keys=["id"]
        ) as writer:
            for start in range(0, count, 7):
                rows = slice(start, min(start + 7, count))
                ids = np.arange(count)[rows]
                batch = vectors(count, dtype)[rows]
                columns = table.slice(start, len(ids)).append_column("id", pa.array(ids))
                writer.append(columns, {"e": batch, "z": batch}, ids)
                writer.flush()
            if late:
                writer.finalize()
        if late:
            before = read(path)
            assert len(before) == count
            sound(path)
            zarrow.pack(path, order="sample_index", segment_rows=2 * SEGMENT_ROWS, codecs="zstd")
            assert read(path) == before
            sound(path)
            zarrow.pack(path, segment_rows=SEGMENT_ROWS, codecs={"e": None, "z": codecs})
        else:
            before = dict(enumerate(rows_of(table)))
        assert zarrow.verify(path, "full").ok
        name = "embeddings.zarr/e/c/1/0" if late or flipped % 2 else "open/*/e.rows"
        (file,) = [one for one in path.glob(name) if one.stat().st_size]
        data = bytearray(file.read_bytes())
        data[flipped % min(len(data), 5 * 24)] ^= 1
        file.write_bytes(data)
        done = zarrow.repair(path, level="full", finalize=True)
        (aside,) = done.set_aside
        assert 0 < len(done.sample_index) < SEGMENT_ROWS
        assert aside.rows is not None
        assert aside.rows[1] - aside.rows[0] - aside.kept_rows == len(done.sample_index)
        left = read(path)
        assert left == {row: value for row, value in before.items() if row not in done.sample_index}
        sound(path)


@pytest.mark.slow
def test_values_outlive_maintenance(profile: str) -> None:
    """Of every type, at any depth: sound is called sound, and a repair keeps what can be read and checked."""

    @settings(
        max_examples=5_000 if profile == "long" else 25,
        suppress_health_check=list(HealthCheck),
        deadline=None,
    )
    @given(
        one=st.sampled_from(ALL) | TYPES,
        dtype=st.sampled_from(sorted(ZARR_DTYPES)),
        codecs=st.sampled_from([None, "zstd", "crc32c"]),
        flipped=st.integers(0, 2**10),
        late=st.booleans(),
        data=st.data(),
    )
    def holds(
        one: tuple[pa.DataType, st.SearchStrategy[Any]],
        dtype: str,
        codecs: Any,
        flipped: int,
        late: bool,
        data: st.DataObject,
    ) -> None:
        kind, strategy = one
        values = data.draw(st.lists(st.none() | strategy, min_size=1, max_size=9))
        with mock.patch("zarrow._format.array_spec.TARGET_CHUNK_BYTES", 2 * 24 * ZARR_DTYPES[dtype].itemsize):
            check(table_of({"c": (kind, values)}), dtype, codecs, flipped, late=late)

    holds()


@pytest.mark.parametrize("late", [False, True])
def test_every_type_outlives_maintenance(late: bool) -> None:
    """The same, with a column of every type of the format's table."""

    @settings(
        max_examples=2,
        suppress_health_check=list(HealthCheck),
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
    )
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        values = {
            f"c{place}": (kind, [None, *data.draw(st.lists(strategy, min_size=4, max_size=9))])
            for place, (kind, strategy) in enumerate(ALL)
        }
        with mock.patch("zarrow._format.array_spec.TARGET_CHUNK_BYTES", 2 * 24 * 4):
            check(table_of(values), "float32", "zstd", 7, late=late)

    holds()
