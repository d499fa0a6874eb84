"""Keys — the index on disk: its exactness, and what happens to a stale or damaged one."""

import datetime
import decimal
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import xarray as xr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import zarrow
from zarrow._format import key_words, layout
from zarrow._format.records import Identity
from zarrow._read import keys as key_file
from zarrow._storage import files
from zarrow.errors import (
    CorruptionError,
    IncompleteStoreError,
    InvalidInputError,
    KeyNotFoundError,
    WriteFailedError,
)

ROWS = 3000


def write(path, table, keys, *, finalize=True, mode="x", step=700):
    with zarrow.Writer(path, keys=keys, segment_rows=1024, mode=mode) as writer:
        for start in range(0, table.num_rows, step):
            part = table.slice(start, step)
            vectors = np.arange(start, start + part.num_rows, dtype=np.float32)[:, None].repeat(2, 1)
            writer.append(part, {"embed": vectors})
        if finalize:
            writer.finalize()


def patients(rows=ROWS, first=0):
    number = np.arange(first, first + rows)
    return pa.table(
        {
            "subject_id": number // 10,
            "query": pa.array([f"code//{one % 10}" for one in number]).dictionary_encode(),
            "prob": number / rows,
        }
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A complete store with an index."""
    path = tmp_path_factory.mktemp("keys") / "run.zarrow"
    write(path, patients(), ["subject_id", "query"])
    zarrow.build_index(path)
    return path


@pytest.fixture
def path(whole, tmp_path):
    """A copy of the store that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "run.zarrow"))


def index_of(rows, columns, *, weak=None):
    """Write an index of columns to a file, and open it."""
    kinds = [column.type for column in columns]
    schema = pa.schema([(f"k{number}", kind) for number, kind in enumerate(kinds)] + [("row", pa.int64())])
    batches = [
        pa.record_batch(
            [
                *(column.slice(start, 500) for column in columns),
                pa.array(np.arange(start, min(start + 500, rows))),
            ],
            schema=schema,
        )
        for start in range(0, rows, 500)
    ]
    identity = Identity(uuid="0" * 32, rows=rows, records_crc32c=0)
    with open_temporary() as file, open_temporary() as spill:
        key_file.build(files.write, file.fileno(), spill.fileno(), batches, (identity, ()))
        return key_file.IndexFile(key_file.map_file(file.fileno(), "test"), kinds, "test")


def open_temporary():
    import tempfile

    return tempfile.TemporaryFile()


class TestLocate:
    def test_every_row_is_found_by_its_key(self, whole):
        """The keys of all rows lead to their rows, whatever their order."""
        store = zarrow.open(whole)
        order = np.random.default_rng(0).permutation(ROWS)
        assert store.locate(store.table().take(order)).tolist() == order.tolist()

    @pytest.mark.parametrize("kind", ["dict", "record batch", "polars", "pandas", "duckdb"])
    def test_keys_come_as_any_table(self, whole, kind):
        """A frame of any library can hold the keys, and columns that are not keys are ignored."""
        import duckdb
        import polars as pl

        store = zarrow.open(whole)
        table = store.table().slice(1000, 5)
        given = {
            "dict": lambda: {
                "query": table["query"].to_pylist(),
                "subject_id": table["subject_id"].to_numpy(),
            },
            "record batch": lambda: table.combine_chunks().to_batches()[0],
            "polars": lambda: pl.DataFrame(table.select(["query", "subject_id"])),
            "pandas": lambda: table.to_pandas(),
            "duckdb": lambda: duckdb.from_arrow(table),
        }[kind]()
        assert store.locate(given).tolist() == [1000, 1001, 1002, 1003, 1004]

    def test_one_key_column_needs_no_name(self, tmp_path):
        """With a single key column its values are enough: a list, an array or a series."""
        import pandas as pd
        import polars as pl

        write(tmp_path / "s", pa.table({"id": np.arange(100) * 3}), ["id"])
        store = zarrow.open(tmp_path / "s")
        for values in ([3, 4], np.array([3, 4]), pa.array([3, 4]), pa.chunked_array([[3], [4]])):
            assert store.locate(values, missing=-1).tolist() == [1, -1]
        assert store.locate(pd.Series([3, 4]), missing=-1).tolist() == [1, -1]
        assert store.locate(pl.Series([3, 4]), missing=-1).tolist() == [1, -1]
        assert store.locate([]).tolist() == []

    def test_a_missing_key(self, whole):
        """A missing key gives −1, or an error that names it."""
        store = zarrow.open(whole)
        keys = {"subject_id": [3, 10**6, 5, None], "query": ["code//7", "code//7", "none", "code//1"]}
        assert store.locate(keys, missing=-1).tolist() == [37, -1, -1, -1]
        with pytest.raises(
            KeyNotFoundError, match=r"3 of 4 keys have no row: subject_id=1000000, query='code//7'"
        ):
            store.locate(keys)

    def test_numbers_beyond_the_column(self, tmp_path):
        """A number that the column cannot hold is a missing key, even if its bits equal those of another."""
        write(tmp_path / "s", pa.table({"id": pa.array([-1, 5], pa.int8())}), ["id"])
        write(tmp_path / "u", pa.table({"id": pa.array([2**64 - 1, 5], pa.uint64())}), ["id"])
        signed, unsigned = zarrow.open(tmp_path / "s"), zarrow.open(tmp_path / "u")
        assert signed.locate(pa.array([2**64 - 1, 5], pa.uint64()), missing=-1).tolist() == [-1, 1]
        assert signed.locate([300, -1], missing=-1).tolist() == [-1, 0]
        assert unsigned.locate([-1, 5], missing=-1).tolist() == [-1, 1]
        assert unsigned.locate([2**64 - 1]).tolist() == [0]

    def test_floats(self, tmp_path):
        """0.0 finds −0.0 and NaN is never found; untyped numbers take the column's type, others are exact."""
        column = pa.array([0.1, -0.0, 7.0, float("inf")], pa.float32())
        write(tmp_path / "s", pa.table({"x": column}), ["x"])
        store = zarrow.open(tmp_path / "s")
        assert store.locate([0.1, 0.0, float("nan"), float("inf")], missing=-1).tolist() == [0, 1, -1, 3]
        assert store.locate(np.array([0.1, 0.0]), missing=-1).tolist() == [-1, 1]

    def test_times(self, tmp_path):
        """A time is found in any unit and zone, but a time without a zone never equals one with a zone."""
        moment = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)
        write(tmp_path / "s", pa.table({"t": pa.array([moment], pa.timestamp("us", "UTC"))}), ["t"])
        store = zarrow.open(tmp_path / "s")
        assert store.locate([moment]).tolist() == [0]
        assert store.locate(pa.array([moment], pa.timestamp("ns", "Europe/Zurich"))).tolist() == [0]
        with pytest.raises(InvalidInputError, match="key 't' is of type timestamp"):
            store.locate(np.array(["2026-01-01T12:00"], "datetime64[us]"))

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            (
                {"subject_id": [1]},
                "a key of this store has all of 'subject_id', 'query', got only 'subject_id'",
            ),
            ([1, 2], "the store's key columns ('subject_id', 'query'), got list"),
            ("code//1", "got str"),
            (7, "got int"),
            ({"subject_id": ["1"], "query": ["a"]}, "key 'subject_id' is of type int64, got string: cast it"),
            ({"subject_id": [1.0], "query": ["a"]}, "got double"),
            ({"subject_id": [True], "query": ["a"]}, "got bool"),
            ({"subject_id": [1], "query": [1]}, "the values of key 'query' must be of its type dictionary"),
            (
                {"subject_id": [1, 2], "query": ["a"]},
                "must be of equal length, got {'subject_id': 2, 'query': 1}",
            ),
            ({"subject_id": 1, "query": "a"}, "key 'subject_id'"),
        ],
        ids=repr,
    )
    def test_bad_keys(self, whole, keys, message):
        """Keys of other columns, types or lengths are refused by name."""
        with pytest.raises(InvalidInputError, match=re.escape(message)):
            zarrow.open(whole).locate(keys)

    def test_a_store_without_keys(self, tmp_path):
        """A store whose rows have no keys says so."""
        write(tmp_path / "s", pa.table({"id": [1]}), [])
        store = zarrow.open(tmp_path / "s")
        for call in (lambda: store.locate([1]), store.duplicated, lambda: zarrow.build_index(tmp_path / "s")):
            with pytest.raises(InvalidInputError, match="without keys="):
                call()

    def test_what_to_do_about_missing(self, whole):
        """An unknown value of missing= is refused."""
        with pytest.raises(InvalidInputError, match="missing must be -1 or 'raise'"):
            zarrow.open(whole).locate({"subject_id": [1], "query": ["a"]}, missing="ignore")

    def test_a_store_without_rows(self, tmp_path):
        """In a store without rows no key is found, with and without an index."""
        schema = pa.schema({"id": pa.string()})
        with zarrow.Writer(
            tmp_path / "s", schema=schema, arrays={"e": ((1,), "float32")}, keys=["id"]
        ) as writer:
            writer.finalize()
        assert zarrow.open(tmp_path / "s").locate(["a"], missing=-1).tolist() == [-1]
        zarrow.build_index(tmp_path / "s")
        assert zarrow.open(tmp_path / "s").locate(["a"], missing=-1).tolist() == [-1]
        assert zarrow.open(tmp_path / "s").duplicated().tolist() == []


class TestJoin:
    def test_rows_come_in_the_order_of_the_keys(self, whole):
        """A join by keys yields their rows and vectors, in their order, as often as they are given."""
        store = zarrow.open(whole)
        wanted = [2500, 3, 3, 2999, 1024]
        keys = store.table(["subject_id", "query"]).take(wanted)
        batches = list(store.join(keys=keys, columns=["row"], batch_size=2))
        assert [batch.num_rows for batch, _ in batches] == [2, 2, 1]
        assert [row for batch, _ in batches for row in batch["row"].to_pylist()] == wanted
        found = np.concatenate([vectors["embed"][:, 0] for _, vectors in batches])
        assert found.tolist() == [row % 700 + row // 700 * 700 for row in wanted]

    def test_a_missing_key_is_an_error_at_the_call(self, whole):
        """A join that would leave keys out is refused before anything is read."""
        with pytest.raises(KeyNotFoundError):
            zarrow.open(whole).join(keys={"subject_id": [-5], "query": ["x"]})

    def test_not_with_a_filter(self, whole):
        """Keys and a filter, or an order, are not mixed."""
        import pyarrow.compute as pc

        store = zarrow.open(whole)
        for other in ({"filter": pc.field("row") > 1}, {"order": "sample_index"}):
            with pytest.raises(InvalidInputError, match="not both"):
                store.join(keys={"subject_id": [1], "query": ["code//0"]}, **other)


class TestDuplicates:
    def test_the_first_row_is_found_and_the_others_reported(self, tmp_path):
        """For a duplicate key the first row is located, and the others are reported."""
        ids = np.random.default_rng(1).integers(0, 900, ROWS)
        write(tmp_path / "s", pa.table({"id": [f"p{one}" for one in ids]}), ["id"])
        store = zarrow.open(tmp_path / "s")
        _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        assert store.locate(store.table(["id"])).tolist() == first[inverse].tolist()
        assert store.duplicated().tolist() == sorted(set(range(ROWS)) - set(first.tolist()))

    def test_all_rows_alike(self, monkeypatch):
        """Many rows with a single key, more than fit into a run, are sorted and reported."""
        monkeypatch.setattr(key_file, "RUN_BYTES", 24 * 100)
        index = index_of(1500, [pa.array([7] * 1500)])
        assert index.find(key_words.encode([pa.array([7, 8])])).tolist() == [0, -1]
        assert index.repeated().tolist() == list(range(1, 1500))


def weaken(monkeypatch, bits):
    """Make nearly all keys collide."""
    strong = key_words.hash_keys
    monkeypatch.setattr(key_words, "hash_keys", lambda chain: strong(chain) & np.uint64((1 << bits) - 1))


class TestCollisions:
    @pytest.mark.parametrize("bits", [0, 1, 4])
    @pytest.mark.parametrize("run_bytes", [24 * 128, 1 << 20])
    def test_keys_of_one_hash_are_told_apart(self, monkeypatch, bits, run_bytes):
        """If hashes collide the keys themselves decide, in one run and in many."""
        weaken(monkeypatch, bits)
        monkeypatch.setattr(key_file, "RUN_BYTES", run_bytes)
        ids = np.random.default_rng(2).integers(0, 500, 1200)
        for column in (pa.array(ids), pa.array([f"a{one}" for one in ids])):
            index = index_of(len(ids), [column])
            _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
            assert index.find(key_words.encode([column])).tolist() == first[inverse].tolist()
            assert index.repeated().tolist() == sorted(set(range(1200)) - set(first.tolist()))
        assert index.find(key_words.encode([pa.array(["a", "", "a1x"])])).tolist() == [-1, -1, -1]

    def test_columns_do_not_run_together(self):
        """Keys whose concatenated columns are equal are still different keys."""
        one, other = pa.array(["ab", "a", ""]), pa.array(["c", "bc", "abc"])
        index = index_of(3, [one, other])
        assert index.find(key_words.encode([one, other])).tolist() == [0, 1, 2]
        assert index.repeated().tolist() == []


@pytest.mark.parametrize("run_bytes", [24 * 300, 1 << 24])
def test_runs_are_merged(monkeypatch, run_bytes):
    """Entries spilled in runs and merged equal entries sorted at once."""
    monkeypatch.setattr(key_file, "RUN_BYTES", run_bytes)
    ids = np.random.default_rng(3).permutation(5000)
    index = index_of(5000, [pa.array(ids)])
    assert index.find(key_words.encode([pa.array(np.arange(-5, 5005))])).tolist() == [
        *[-1] * 5,
        *np.argsort(ids).tolist(),
        *[-1] * 5,
    ]


VALUES = {
    pa.int8(): st.integers(-128, 127),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.bool_(): st.booleans(),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.float64(): st.floats(allow_nan=False),
    pa.string(): st.text(max_size=20),
    pa.large_string(): st.text(max_size=20),
    pa.string_view(): st.text(max_size=20),
    pa.binary(): st.binary(max_size=40),
    pa.binary(3): st.binary(min_size=3, max_size=3),
    pa.date32(): st.dates(datetime.date(1900, 1, 1)),
    pa.time64("us"): st.times(),
    pa.timestamp("us"): st.datetimes(datetime.datetime(1900, 1, 1)),
    pa.duration("us"): st.timedeltas(datetime.timedelta(-(10**4)), datetime.timedelta(10**4)),
    pa.decimal128(10, 2): st.integers(-(10**9), 10**9).map(lambda number: decimal.Decimal(number) / 100),
    pa.dictionary(pa.int32(), pa.string()): st.sampled_from(["stroke", "", "fracture"]),
}


@st.composite
def key_tables(draw):
    """Key columns, and for every row a tuple of Python values."""
    kinds = draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=3))
    rows = draw(st.lists(st.tuples(*(VALUES[kind] for kind in kinds)), min_size=1, max_size=30))
    columns = []
    for number, kind in enumerate(kinds):
        flat = kind.value_type if pa.types.is_dictionary(kind) else kind
        column = pa.array([row[number] for row in rows], flat)
        columns.append(column.dictionary_encode() if flat is not kind else column)
    return columns, rows


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@example(tables=([pa.array(["", "\0", "\0\0", ""])], [("",), ("\0",), ("\0\0",), ("",)]))
@given(tables=key_tables())
def test_keys_of_all_types(tables):
    """Keys are equal in the index exactly if their values are equal in Python."""
    columns, rows = tables
    half = (len(rows) + 1) // 2
    index = index_of(half, [column.slice(0, half) for column in columns])
    first: dict[object, int] = {}
    for place, row in enumerate(rows[:half]):
        first.setdefault(row, place)
    assert index.find(key_words.encode(columns)).tolist() == [first.get(row, -1) for row in rows]
    assert index.repeated().tolist() == [place for place in range(half) if first[rows[place]] != place]


def test_the_hash_is_that_of_the_format_document():
    """The formulas of FORMAT.md, implemented directly, give the stored hashes."""
    mask = (1 << 64) - 1

    def step(before, word):
        mixed = ((before ^ word) + 0x9E3779B97F4A7C15) & mask
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
        return mixed ^ (mixed >> 31)

    def word(value):
        found = step(0, len(value))
        for start in range(0, len(value), 8):
            found = step(found, int.from_bytes(value[start : start + 8].ljust(8, b"\0"), "little"))
        return found

    texts = ["", "b", "12345678", "a longer one, of 25 bytes"]
    keys = key_words.encode([pa.array([7, -1, 0, 1]), pa.array(texts)])
    expected = [
        step(step(0, number & mask), word(text.encode()))
        for number, text in zip([7, -1, 0, 1], texts, strict=True)
    ]
    assert keys.hashes.tolist() == expected
    document = (Path(zarrow.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
    for columns in ([[0]], [[1]], [["b"]], [[7], ["code//stroke"]]):
        assert f"`0x{key_words.encode([pa.array(one) for one in columns]).hashes[0]:016x}`" in document


class TestWhoseIndex:
    def test_readers_never_write(self, tmp_path):
        """Locating without an index does not change the store, and works in read-only directories."""
        write(tmp_path / "s", patients(), ["subject_id", "query"])
        before = sorted(tmp_path.rglob("*"))
        store = zarrow.open(tmp_path / "s")
        assert store.locate({"subject_id": [3], "query": ["code//7"]}).tolist() == [37]
        assert sorted(tmp_path.rglob("*")) == before

    def test_the_store_s_index_is_used(self, path, monkeypatch):
        """If the store has a valid index, none is built."""
        monkeypatch.setattr(key_file, "build", None)
        assert zarrow.open(path).locate({"subject_id": [3], "query": ["code//7"]}).tolist() == [37]

    def test_rows_appended_later_are_found(self, path):
        """An index built before rows were appended is ignored."""
        write(path, patients(500, ROWS), ["subject_id", "query"], mode="a")
        store = zarrow.open(path)
        assert store.locate(store.table()).tolist() == list(range(ROWS + 500))
        zarrow.build_index(path)
        assert zarrow.open(path).locate(store.table()).tolist() == list(range(ROWS + 500))

    def test_another_store_s_index(self, path, tmp_path):
        """The index of another store with as many rows is ignored."""
        other = tmp_path / "other.zarrow"
        write(other, patients(ROWS, 10_000), ["subject_id", "query"])
        (other / "index").mkdir()
        shutil.copy(path / layout.KEY_INDEX, other / layout.KEY_INDEX)
        store = zarrow.open(other)
        assert store.locate(store.table()).tolist() == list(range(ROWS))
        assert store.locate({"subject_id": [3], "query": ["code//7"]}, missing=-1).tolist() == [-1]

    def test_live_rows(self, tmp_path):
        """Uncommitted rows are found too, and rows accepted later after a refresh."""
        table = patients()
        with zarrow.Writer(tmp_path / "s", keys=["subject_id", "query"], segment_rows=1024) as writer:
            for start in (0, 1000):
                writer.append(table.slice(start, 1000), {"embed": np.zeros((1000, 2), np.float32)})
            writer.flush()
            store = zarrow.open(tmp_path / "s", partial=True)
            assert store.locate(table, missing=-1).tolist() == [*range(2000), *[-1] * 1000]
            writer.append(table.slice(2000), {"embed": np.zeros((1000, 2), np.float32)})
            writer.flush()
            assert store.locate(table.slice(2500, 1), missing=-1).tolist() == [-1]
            assert store.refresh()
            assert store.locate(table).tolist() == list(range(ROWS))
            with pytest.raises(IncompleteStoreError):
                zarrow.build_index(tmp_path / "s")


class TestDamage:
    def test_every_byte_counts(self, tmp_path):
        """Any changed or missing byte of an index is reported, and never leads to a wrong answer."""
        write(
            tmp_path / "s",
            pa.table({"id": np.arange(40), "q": [f"code//{n % 7}" for n in range(40)]}),
            ["id", "q"],
        )
        zarrow.build_index(tmp_path / "s")
        file = tmp_path / "s" / layout.KEY_INDEX
        data = file.read_bytes()
        store = zarrow.open(tmp_path / "s")
        keys = store.table(["id", "q"])
        for place in range(len(data)):
            file.unlink()
            file.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
            with pytest.raises(CorruptionError, match=r"keys\.index"):
                zarrow.open(tmp_path / "s").locate(keys)
        for size in range(0, len(data), 7):
            file.unlink()
            file.write_bytes(data[:size])
            with pytest.raises(CorruptionError, match=r"keys\.index"):
                zarrow.open(tmp_path / "s").duplicated()
        zarrow.build_index(tmp_path / "s")
        assert file.read_bytes() == data
        assert zarrow.open(tmp_path / "s").locate(keys).tolist() == list(range(40))

    def test_a_damaged_block_is_told_when_it_is_touched(self, path):
        """Damage elsewhere does not prevent finding other keys; the error names a remedy that works."""
        file = path / layout.KEY_INDEX
        with file.open("r+b") as opened:
            opened.seek(10)
            opened.write(b"\xff\xff\xff")
        store = zarrow.open(path)
        table = store.table()
        outcomes = []
        for place in range(0, ROWS, 50):
            try:
                outcomes.append(store.locate(table.slice(place, 1)).tolist() == [place])
            except CorruptionError:
                outcomes.append(None)
        assert None in outcomes
        assert True in outcomes
        assert False not in outcomes
        with pytest.raises(CorruptionError, match="remove it, or make it again with build_index"):
            store.locate(table)
        zarrow.build_index(path)
        assert zarrow.open(path).locate(table).tolist() == list(range(ROWS))

    def test_a_part_that_is_damaged(self, tmp_path):
        """No index is built from a damaged table."""
        write(tmp_path / "s", patients(), ["subject_id", "query"])
        part = tmp_path / "s" / layout.part_path(1)
        data = bytearray(part.read_bytes())
        data[20] ^= 255
        part.write_bytes(data)
        with pytest.raises(CorruptionError, match="part-00000001"):
            zarrow.build_index(tmp_path / "s")
        assert not (tmp_path / "s" / layout.KEY_INDEX).exists()

    def test_a_link_in_its_place(self, path, tmp_path):
        """An index must be a file in the store: links are not followed."""
        (path / layout.KEY_INDEX).rename(tmp_path / "elsewhere")
        (path / layout.KEY_INDEX).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(CorruptionError, match="link"):
            zarrow.open(path).locate({"subject_id": [3], "query": ["code//7"]})

    def test_a_disk_that_refuses(self, path, monkeypatch):
        """If the index cannot be written, the old one stays and no other file is left."""
        from zarrow._storage import files

        def refuse(fd, data, offset):
            raise OSError(28, "No space left on device")

        before = (path / layout.KEY_INDEX).read_bytes()
        monkeypatch.setattr(files.calls, "pwrite", refuse)
        with pytest.raises(WriteFailedError, match="the store is as it was"):
            zarrow.build_index(path)
        assert (path / layout.KEY_INDEX).read_bytes() == before
        assert [one for one in (path / "open").iterdir() if one.name.startswith("tmp-")] == []


MEMORY = """
import sys, resource
import numpy as np
import zarrow

def private():
    status = open("/proc/self/status")
    return int(next(line for line in status if line.startswith("RssAnon")).split()[1]) / 1024

path, rows = sys.argv[1], int(sys.argv[2])
store = zarrow.open(path)
zarrow.build_index(path)
built = private()
for seed in range(20):
    wanted = np.random.default_rng(seed).integers(0, rows, 1000)
    assert (store.locate({"id": wanted * 3}) == wanted).all()
print(private() - built, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's count of private memory")
def test_memory_does_not_grow_with_the_rows(tmp_path):
    """An index of four times as many rows is built and searched in hardly more memory."""
    peaks = {}
    for rows in (1_000_000, 4_000_000):
        path = tmp_path / f"{rows}.zarrow"
        with zarrow.Writer(path, keys=["id"]) as writer:
            for start in range(0, rows, 50_000):
                writer.append({"id": np.arange(start, start + 50_000) * 3})
            writer.finalize()
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(path), str(rows)], capture_output=True, text=True, check=True
        )
        grown, peaks[rows] = map(float, done.stdout.split())
        assert grown < 20
    file = (tmp_path / "4000000.zarrow" / layout.KEY_INDEX).stat().st_size / 2**20
    assert file > 90
    assert (
        peaks[4_000_000] - peaks[1_000_000] < file + 40
    )  # mapped pages count as resident until they are reclaimed


MOMENT = datetime.datetime(2020, 1, 1, 1, 2, 3)
MOMENTS = [MOMENT, MOMENT - datetime.timedelta(days=20_000)]
ZONED = [moment.replace(tzinfo=datetime.UTC) for moment in MOMENTS]
DECIMALS = [decimal.Decimal("1.50"), decimal.Decimal("-2.50")]
KEY_TYPES: list[tuple[pa.DataType, list[Any]]] = [
    (pa.bool_(), [True, False]),
    (pa.int8(), [1, -2]),
    (pa.uint64(), [2**64 - 1, 0]),
    (pa.float16(), [1.5, -0.0]),
    (pa.float64(), [0.1, -0.0]),
    (pa.string(), ["a", ""]),
    (pa.large_binary(), [b"a", b""]),
    (pa.binary(3), [b"abc", b"abx"]),
    (pa.decimal128(4, 2), DECIMALS),
    (pa.date32(), [moment.date() for moment in MOMENTS]),
    (pa.date64(), [moment.date() for moment in MOMENTS]),
    (pa.time64("us"), [MOMENT.time(), datetime.time()]),
    (pa.timestamp("s"), MOMENTS),
    (pa.timestamp("ns"), MOMENTS),
    (pa.timestamp("us", "UTC"), ZONED),
    (pa.timestamp("us", "America/New_York"), ZONED),
    (pa.duration("us"), [datetime.timedelta(1), datetime.timedelta(2)]),
    (pa.dictionary(pa.int32(), pa.string()), ["a", "b"]),
]


@pytest.mark.parametrize(
    ("kind", "values"), KEY_TYPES, ids=lambda one: str(one) if isinstance(one, pa.DataType) else ""
)
def test_keys_of_every_type_are_found(kind: pa.DataType, values: list[Any], tmp_path: Path) -> None:
    """A type that the store takes as a key is found by values, tables, frames, labels, and in SQL."""
    with zarrow.Writer(tmp_path / "s.zarrow", segment_rows=2, keys=["k"]) as writer:
        writer.append({"k": pa.array(values, kind)})
        writer.finalize()
    store = zarrow.open(tmp_path / "s.zarrow")
    table = store.table(["k"])
    for keys in (values, pa.array(values, kind), table, pl.from_arrow(table), table.to_pandas()):
        assert store.locate(keys).tolist() == [0, 1]
    dataset = xr.open_dataset(store.path, key_index=True)
    for place in (0, 1):
        assert dataset.sel(k=dataset.k.values[[1 - place, place]]).k.values[1] == dataset.k.values[place]
    zarrow.build_index(store.path)
    assert zarrow.open(store.path).locate(pa.array(values, kind)).tolist() == [0, 1]
    for row in (0, 1):
        query = f"SELECT row FROM predictions WHERE k = (SELECT k FROM predictions WHERE row = {row})"
        assert store.sql(query).fetchall() == [(row,)]


@pytest.mark.parametrize("values", [[[1], [2]], [{"x": 1}, {"x": 2}], [None, None], [1, None]], ids=repr)
def test_what_is_no_key_is_refused_before_the_first_byte(values: list[Any], tmp_path: Path) -> None:
    """Lists, structs and nulls are refused as keys by the batch that has them."""
    with (
        zarrow.Writer(tmp_path / "s.zarrow", keys=["k"]) as writer,
        pytest.raises(InvalidInputError, match="'k'"),
    ):
        writer.append({"k": values})


def test_hashes_that_are_alike_but_for_their_last_bits_are_sorted():
    """Entries of one hash stay in the order of their rows, whatever bits tell the hashes apart."""
    random = np.random.default_rng(0)
    for bits in (2, 10, 64):
        hashes = random.integers(0, 1 << bits, 5000, dtype=np.uint64, endpoint=bits < 64)
        entries = np.stack([hashes, np.arange(5000, dtype=np.uint64)], axis=1).astype("<u8")
        found = key_file._sorted([entries[:2000], entries[2000:]])
        np.testing.assert_array_equal(found, entries[np.argsort(hashes, kind="stable")])
