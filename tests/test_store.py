"""Store — reading rows, columns and vectors, also while the store changes or is damaged."""

import datetime
import gc
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest

import zarrow
import zarrow.testing
from zarrow._format import layout
from zarrow._read.columns import NarrowColumns
from zarrow._storage import threads
from zarrow.errors import (
    CorruptionError,
    IncompleteStoreError,
    InvalidInputError,
    NotAStoreError,
    StoreChangedError,
    StoreNotFoundError,
    UnknownNameError,
)
from zarrow.testing import example_store

ROWS = 5000
SEGMENT_ROWS = 1024
HIDDEN = 16


def rows_of(start: int, stop: int) -> tuple[pa.Table, dict[str, np.ndarray]]:
    """The rows of a synthetic run, whose values all follow from the row number."""
    row = np.arange(start, stop)
    table = pa.table(
        {
            "id": row,
            "query": pa.array([None if number % 7 == 0 else f"code//{number % 10}" for number in row]),
            "prob": (row * 7919 % 1000 / 1000).astype(np.float32),
            "kind": pa.array([f"kind{number // 1500}" for number in row]).dictionary_encode(),
            "time": pa.array(
                [datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)] * len(row), pa.timestamp("us", "UTC")
            ),
        }
    )
    return table, {"embed": vectors_of(row), "layers": vectors_of(row).reshape(-1, 2, 8).astype(np.float16)}


def vectors_of(row: np.ndarray) -> np.ndarray:
    return (row[:, None] + np.arange(HIDDEN) / HIDDEN).astype(np.float32)


def append(writer: zarrow.Writer, start: int, stop: int, step: int = 300) -> None:
    for low in range(start, stop, step):
        high = min(stop, low + step)
        table, arrays = rows_of(low, high)
        writer.append(table, arrays, sample_index=1_000_000 - np.arange(low, high))


def write(path, rows: int = ROWS, *, finalize: bool = True, **options) -> None:
    with zarrow.Writer(path, keys=["id"], segment_rows=SEGMENT_ROWS, **options) as writer:
        append(writer, 0, rows)
        if finalize:
            writer.finalize()


CODECS = {"plain": None, "zstd": "zstd", "mixed": {"embed": None, "layers": "blosc"}}


@pytest.fixture(scope="module", params=CODECS)
def path(request, tmp_path_factory):
    found = tmp_path_factory.mktemp(request.param) / "run.zarrow"
    codecs = CODECS[request.param]
    write(found, codecs=codecs)
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    found = tmp_path_factory.mktemp("plain") / "run.zarrow"
    write(found)
    return found


@pytest.fixture
def store(path):
    return zarrow.open(path)


@pytest.fixture(scope="module")
def truth():
    return rows_of(0, ROWS)


class TestWhatThereIs:
    def test_a_store_says_what_it_holds(self, store, path):
        """Rows, columns, arrays, keys and state are available without reading data."""
        assert store.num_rows == len(store) == store.committed_rows == ROWS
        assert store.complete
        assert store.keys == ("id",)
        assert store.schema.names == ["id", "query", "prob", "kind", "time", "row", "sample_index"]
        assert list(store.arrays) == ["embed", "layers"]
        assert store.path == path
        assert len(store.uuid) == 32
        assert "zarrow" in store.provenance
        assert store.segments[0] == range(SEGMENT_ROWS)
        assert store.segments[-1] == range(4096, ROWS)
        assert store.table_bytes > 0
        assert "5,000 rows, complete" in repr(store)

    def test_an_array_says_what_it_is(self, store):
        """Shape and dtype are numpy's, chunks and codecs Zarr's."""
        array = store["layers"]
        assert array.shape == (ROWS, 2, 8)
        assert (array.ndim, array.size, len(array)) == (3, ROWS * 16, ROWS)
        assert array.row_shape == (2, 8)
        assert array.dtype == np.float16
        assert array.nbytes == ROWS * 32
        assert array.shards == (SEGMENT_ROWS, 2, 8)
        assert SEGMENT_ROWS % array.chunks[0] == 0
        assert array.codecs[0]["name"] == "bytes"
        assert array.stored_bytes > 0
        assert "layers" in repr(array)

    def test_the_zarr_array_is_the_same(self, store, truth):
        """zarr-python reads the same values."""
        np.testing.assert_array_equal(store["embed"].zarr()[:], truth[1]["embed"])

    def test_a_store_without_rows(self, tmp_path):
        """A store finalized without a batch has no rows and can be read."""
        schema = pa.schema({"id": pa.int64()})
        with zarrow.Writer(tmp_path / "s", schema=schema, arrays={"embed": ((4,), "float32")}) as writer:
            writer.finalize()
        store = zarrow.open(tmp_path / "s")
        assert store.num_rows == 0
        assert store.table().num_rows == 0
        assert store["embed"][:].shape == (0, 4)
        assert np.asarray(store["embed"]).shape == (0, 4)
        assert store["embed"][[]].shape == (0, 4)
        assert list(store) == []
        table, vectors = store.take([])
        assert table.num_rows == 0
        assert vectors["embed"].shape == (0, 4)
        assert store.to_polars().collect().height == 0
        assert store.sql("SELECT count(*) FROM predictions").fetchall() == [(0,)]
        with pytest.raises(IndexError):
            store["embed"][0]

    def test_a_store_without_arrays(self, tmp_path):
        """A store with only narrow columns can be read, and joins without vectors."""
        with zarrow.Writer(tmp_path / "s", segment_rows=64) as writer:
            writer.append({"id": np.arange(100)})
            writer.finalize()
        store = zarrow.open(tmp_path / "s")
        assert [(batch.num_rows, vectors) for batch, vectors in store.join(batch_size=80)] == [
            (80, {}),
            (20, {}),
        ]


class TestTable:
    def test_all_of_it(self, store, truth):
        """The table equals the one written, and its rows are numbered."""
        table = store.table()
        assert table.schema.equals(store.schema)
        for name in truth[0].column_names:
            assert table[name].to_pylist() == truth[0][name].to_pylist()
        assert table["row"].to_pylist() == list(range(ROWS))
        assert table["sample_index"].to_pylist() == [1_000_000 - row for row in range(ROWS)]

    def test_columns_in_the_order_asked_for(self, store):
        """Columns come in the requested order."""
        assert store.table(["prob", "id"]).column_names == ["prob", "id"]

    @pytest.mark.parametrize(
        "filter",
        [
            pc.field("prob") > 0.99,
            (pc.field("query") == "code//3") & (pc.field("row") < 3000),
            pc.field("query").is_null(),
            pc.field("kind") == "kind1",
            pc.field("id").isin([1, 4999, 77, 100_000]),
            pc.field("row") == 4100,
            pc.field("id") < 0,
            pc.field(0) < 7,
            (pc.field("query") == "prob") | (pc.field(1) == "code//3"),
        ],
        ids=str,
    )
    def test_filters(self, store, truth, filter):
        """A filter yields the same rows as in memory, in order."""
        expected = truth[0].append_column("row", pa.array(np.arange(ROWS))).filter(filter)
        assert store.table(["id"], filter)["id"].to_pylist() == expected["id"].to_pylist()

    def test_a_stream(self, store):
        """A scan yields every row once, in order, in batches of the requested size."""
        batches = list(store.scan(["row"], batch_size=700))
        assert [batch.num_rows for batch in batches] == [700] * 7 + [100]
        assert np.concatenate([batch["row"].to_numpy() for batch in batches]).tolist() == list(range(ROWS))

    @pytest.mark.parametrize("columns", [[], ["prob"]])
    @pytest.mark.parametrize("filter", [None, pc.bit_wise_and(pc.field("row"), 1) == 1, pc.field("prob") > 5])
    def test_every_way_counts_the_same_rows(self, store, columns, filter):
        """Tables and streams have the right number of rows, even without columns."""
        count = store.table(["row"], filter).num_rows
        assert store.table(columns, filter).num_rows == count
        assert sum(batch.num_rows for batch in store.scan(columns, filter)) == count
        assert sum(batch.num_rows for batch, _ in store.join(filter, columns, [])) == count

    def test_a_filter_is_asked_again(self, store, truth):
        """Repeated and different filters give correct answers from columns that are already decoded."""
        table, _ = truth
        for low in [0.5, 0.5, 0.25]:
            found = store.table(["id", "query", "row"], pc.field("prob") > low)
            assert found["id"].to_pylist() == table.filter(pc.field("prob") > low)["id"].to_pylist()
            assert found["row"] == found["id"]

    def test_a_slow_reader_is_not_read_ahead_for(self, tmp_path):
        """For a slow reader only a few pieces of the table are in memory, not all of it."""
        rows, step = 4_000_000, 500_000
        with zarrow.Writer(tmp_path / "s.zarrow") as writer:
            for start in range(0, rows, step):
                writer.append({"id": np.arange(start, start + step), "prob": np.zeros(step)})
            writer.finalize()
        store = zarrow.open(tmp_path / "s.zarrow")
        before, most = pa.total_allocated_bytes(), 0
        for count, _ in enumerate(store.join(batch_size=10_000)):
            if count % 40 == 0:
                time.sleep(0.02)
            most = max(most, pa.total_allocated_bytes() - before)
        assert count == 399
        # Four columns of 8 bytes; of at most four threads each has a piece ahead, and the reader another.
        assert most < 6 * 131_072 * 32 < rows * 32 / 4

    def test_the_arrow_stream(self, store):
        """Any consumer of Arrow streams can read a store."""
        assert pa.table(store).num_rows == ROWS

    def test_polars(self, store, truth):
        """The lazy frame has the rows of the table."""
        pl = pytest.importorskip("polars")
        frame = store.to_polars().filter(pl.col("prob") > 0.9895).select("id", "query", "time").collect()
        expected = truth[0].filter(pc.field("prob") > 0.9895)
        assert frame["id"].to_list() == expected["id"].to_pylist()
        assert frame["query"].to_list() == expected["query"].to_pylist()
        assert frame["time"].to_list() == expected["time"].to_pylist()

    def test_sql_and_the_vectors_of_its_result(self, store):
        """SQL selects rows, and their vectors come in the order of the result."""
        result = store.sql(
            "SELECT row, id FROM predictions WHERE kind = 'kind2' AND row >= 4000 ORDER BY row DESC"
        )
        rows = np.arange(4499, 3999, -1)
        assert [row for row, _ in result.fetchall()] == rows.tolist()
        np.testing.assert_array_equal(store.vectors(result, ["embed"])["embed"], vectors_of(rows))
        for kind in (result.arrow, result.pl, result.df):
            found = kind()
            np.testing.assert_array_equal(store.vectors(found, ["embed"])["embed"], vectors_of(rows))

    @pytest.mark.parametrize("name", ["run[1]", "run?", "run*", "[!r]un1", "it's", "a::b", "%41", "{a,run1}"])
    def test_a_path_is_no_pattern(self, tmp_path, name):
        """Whatever a store's name holds, every engine reads this store, not one whose name matches."""
        for first, path in enumerate(["run1", "runx", name]):
            with zarrow.Writer(tmp_path / path, segment_rows=4) as writer:
                writer.append({"id": np.arange(8) + 100 * first})
                writer.finalize()
        store = zarrow.open(tmp_path / name)
        assert store.sql("SELECT min(id), count(*) FROM predictions").fetchall() == [(200, 8)]
        assert store.to_polars().collect()["id"].to_list() == list(range(200, 208))

    def test_a_path_that_engines_cannot_take(self, tmp_path):
        """A path that is no UTF-8 is read by the store, and refused in words where an engine gets it."""
        path = tmp_path / os.fsdecode(b"run\xff")
        with zarrow.Writer(path, segment_rows=4) as writer:
            writer.append({"id": np.arange(8)})
            writer.finalize()
        store = zarrow.open(path)
        assert store.table()["id"].to_pylist() == list(range(8))
        for ask in (lambda: store.sql("SELECT 1 FROM predictions"), store.to_polars):
            with pytest.raises(InvalidInputError, match="in UTF-8 only, and this one is not: rename it"):
                ask()

    def test_sql_counts_every_row(self, store):
        """No row is missing or doubled, whichever file it is in."""
        assert store.sql("SELECT count(*), count(DISTINCT row) FROM predictions").fetchall() == [(ROWS, ROWS)]

    def test_files_that_a_filter_on_rows_rules_out_are_not_opened(self, tmp_path):
        """A filter on row numbers reads only the parts with these rows, even if others are missing."""
        write(tmp_path / "s")
        (tmp_path / "s" / layout.part_path(1)).unlink()
        store = zarrow.open(tmp_path / "s")
        assert store.table(["id"], pc.field("row") < 1024).num_rows == 1024
        assert store.table(["id"], pc.field("row") >= 2048).num_rows == ROWS - 2048


INDICES = [
    0,
    -1,
    4999,
    np.int32(17),
    slice(None),
    slice(10, 20),
    slice(1000, 1100),
    slice(-5, None),
    slice(None, None, 7),
    slice(4990, 10, -333),
    slice(20, 10),
    slice(4000, 9999),
    [],
    [3, 1, 3, -1],
    np.array([1023, 1024, 4095, 4096, 0]),
    np.array([5, -5], np.int16),
    np.array([7], np.uint64),
    np.arange(ROWS) % 1000 == 3,
    pa.array([5, 6]),
    range(3, 30, 9),
    Ellipsis,
    (slice(10, 20),),
    (5, slice(0, 1)),
    (slice(5, 9), 1),
    ([4, 2], slice(1, 2)),
    (slice(1020, 1030), slice(None), slice(2, 5)),
    (slice(1020, 1030), Ellipsis, 3),
    (Ellipsis, 3),
    (Ellipsis, 1, slice(None, None, 2)),
]


class TestArray:
    @pytest.mark.parametrize("name", ["embed", "layers"])
    @pytest.mark.parametrize("index", INDICES, ids=lambda index: repr(index).partition(" object at ")[0])
    def test_indexes_as_numpy_does(self, store, truth, name, index):
        """Indexing gives the same result as numpy on the array in memory."""
        if name == "embed" and isinstance(index, tuple) and len(index) > 2:
            index = index[:2]
        given = np.asarray(index) if isinstance(index, pa.Array | range) else index
        given = np.asarray(given, np.int64) if isinstance(given, list) and not given else given
        expected = truth[1][name][given]
        found = store[name][index]
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype

    @pytest.mark.parametrize(
        "index",
        [ROWS, -ROWS - 1, [0, ROWS], [-ROWS - 1], [True, False], "embed", 1.5, [0.5], True],
        ids=repr,
    )
    def test_refuses_what_numpy_refuses(self, store, index):
        """A row out of range, or an index that is not a row, is an IndexError."""
        with pytest.raises(IndexError):
            store["embed"][index]

    def test_too_many_axes(self, store):
        """Too many indices are refused, as in numpy."""
        with pytest.raises(IndexError, match="2-dimensional"):
            store["embed"][0, 0, 0]

    def test_the_message_is_numpys(self, store):
        """An index out of range is reported in numpy's words."""
        with pytest.raises(IndexError, match="index 5000 is out of bounds for axis 0 with size 5000"):
            store["embed"][[1, 5000]]

    def test_as_numpy_array(self, store, truth):
        """numpy, and libraries built on it, accept the array as a whole."""
        np.testing.assert_array_equal(np.asarray(store["embed"]), truth[1]["embed"])
        np.testing.assert_array_equal(np.mean(store["embed"], axis=0), truth[1]["embed"].mean(axis=0))
        assert np.asarray(store["embed"], np.float64).dtype == np.float64
        assert np.array(store["embed"]).flags.writeable

    def test_plain_rows_are_not_copied(self, plain):
        """The whole array, a slice and a row are views of one memory, and cannot be written to."""
        array = zarrow.open(plain)["embed"]
        whole = np.asarray(array, copy=False)
        assert not whole.flags.owndata
        assert not whole.flags.writeable
        for part in (array[:], array[1000:3000], array[17], array[::5], array[4999:10:-1]):
            assert np.shares_memory(part, whole)
        assert not np.shares_memory(np.array(array), whole)

    def test_a_copy_that_was_forbidden_is_an_error(self, tmp_path, plain):
        """If the array is unavailable without a copy, an error says so."""
        write(tmp_path / "s", 100, codecs="zstd")
        with pytest.raises(ValueError, match="without a copy"):
            np.asarray(zarrow.open(tmp_path / "s")["embed"], copy=False)
        with pytest.raises(ValueError, match="without a copy"):
            np.asarray(zarrow.open(plain)["embed"], np.float64, copy=False)

    @pytest.mark.parametrize("check", [None, "crc"])
    def test_into_a_buffer(self, store, truth, check):
        """Reads fill a given buffer, and refuse one that does not fit."""
        array = store["embed"]
        out = np.empty((30, HIDDEN), np.float32)
        assert array.read(1010, 1040, out=out, check=check) is out
        np.testing.assert_array_equal(out, truth[1]["embed"][1010:1040])
        rows = np.arange(4999, 4969, -1)
        assert array.take(rows, out=out, check=check) is out
        np.testing.assert_array_equal(out, truth[1]["embed"][rows])
        for wrong in (np.empty((29, HIDDEN), np.float32), np.empty((30, HIDDEN))):
            with pytest.raises(InvalidInputError, match="shape"):
                array.take(rows, out=wrong)
            with pytest.raises(InvalidInputError, match="shape"):
                array.read(0, 30, out=wrong)

    def test_a_range_that_is_not_there(self, store):
        """Ranges out of bounds are not silently shortened."""
        with pytest.raises(IndexError):
            store["embed"].read(4990, 5001)

    def test_threads_share_a_store(self, store, truth):
        """Several threads can read the same array at once."""
        rows = [np.random.default_rng(seed).integers(0, ROWS, 500) for seed in range(8)]
        with ThreadPoolExecutor(8) as pool:
            for wanted, found in zip(rows, pool.map(store["layers"].take, rows), strict=True):
                np.testing.assert_array_equal(found, truth[1]["layers"][wanted])

    def test_a_forked_process_reads_on(self, store, truth):
        """Data loader workers inherit an open store, without its threads."""
        if sys.version_info >= (3, 12):
            pytest.skip("forking a process that has threads is deprecated")
        rows = np.random.default_rng(0).integers(0, ROWS, 2000)
        store["layers"].take(rows)
        threads._forget_pool()
        child = os.fork()
        if not child:
            good = False
            try:
                good = np.array_equal(store["layers"].take(rows[::-1]), truth[1]["layers"][rows[::-1]])
            finally:
                os._exit(0 if good else 1)
        assert os.waitpid(child, 0)[1] == 0


class TestTakeAndJoin:
    @pytest.mark.parametrize(
        "rows", [[], [0], [4999, 0, 4999, -1, 1024, 1023], list(range(1000, 1100))], ids=len
    )
    def test_take(self, store, truth, rows):
        """Rows come in the given order, from the table and from arrays."""
        table, vectors = store.take(rows)
        expected = np.array(rows, np.int64) % ROWS
        assert table["row"].to_pylist() == expected.tolist()
        for name in ("query", "kind", "prob"):
            assert table[name].to_pylist() == truth[0][name].take(pa.array(expected)).to_pylist()
        assert table.schema.equals(store.schema)
        for name, found in vectors.items():
            np.testing.assert_array_equal(found, truth[1][name][expected])

    def test_take_of_some(self, store):
        """Only the named columns and arrays are returned."""
        table, vectors = store.take([3, 1], ["id"], ["layers"])
        assert table.column_names == ["id"]
        assert list(vectors) == ["layers"]
        table, vectors = store.take([3, 1], [], [])
        assert table.num_columns == 0
        assert vectors == {}

    def test_take_by_mask(self, store):
        """A mask over all rows selects the rows that are set."""
        table, _ = store.take(np.arange(ROWS) > 4990)
        assert table["id"].to_pylist() == list(range(4991, ROWS))

    @pytest.mark.parametrize("batch_size", [None, 1, 333, 1024, 100_000])
    def test_join_of_all(self, store, truth, batch_size):
        """Every row comes once, in order, with its vectors."""
        seen = 0
        if batch_size == 1:
            filter = pc.field("row") < 50
            expected = 50
        else:
            filter, expected = None, ROWS
        for batch, vectors in store.join(filter, batch_size=batch_size, check="crc"):
            stop = seen + batch.num_rows
            assert batch["row"].to_pylist() == list(range(seen, stop))
            np.testing.assert_array_equal(vectors["embed"], truth[1]["embed"][seen:stop])
            np.testing.assert_array_equal(vectors["layers"], truth[1]["layers"][seen:stop])
            assert batch_size is None or batch.num_rows == batch_size or stop == expected
            seen = stop
        assert seen == expected

    def test_iteration(self, store):
        """Iterating over a store joins all of it."""
        assert sum(batch.num_rows for batch, _ in store) == ROWS

    @pytest.mark.parametrize(
        "filter", [pc.field("prob") > 0.99, pc.field("id") < 0, pc.field("row") > 4000], ids=str
    )
    def test_join_of_some(self, store, filter):
        """The rows that match a filter come in full batches with their own vectors."""
        ids = store.table(["id"], filter)["id"].to_pylist()
        found = list(store.join(filter, ["id", "kind"], ["embed"], 20))
        assert [batch["id"].to_pylist() for batch, _ in found] == [
            ids[start : start + 20] for start in range(0, len(ids), 20)
        ]
        for batch, vectors in found:
            assert batch.schema.names == ["id", "kind"]
            np.testing.assert_array_equal(vectors["embed"], vectors_of(batch["id"].to_numpy()))

    def test_join_without_columns(self, store):
        """Vectors can be streamed without columns."""
        batch, vectors = next(iter(store.join(columns=[], batch_size=10)))
        assert batch.num_columns == 0
        assert len(vectors["embed"]) == 10

    def test_rows_that_lie_together_are_not_copied(self, plain):
        """A batch of consecutive rows is mapped from the files without a copy."""
        store = zarrow.open(plain)
        whole = np.asarray(store["embed"])
        for _, vectors in store.join(pc.field("row") >= 500, arrays=["embed"], batch_size=777):
            assert np.shares_memory(vectors["embed"], whole)

    def test_join_in_the_order_of_the_dataset(self, store):
        """Rows can be read in the order of the predicted samples."""
        filter = pc.field("prob") > 0.5
        ids = store.table(["id"], filter)["id"].to_pylist()[::-1]
        found = []
        for batch, vectors in store.join(filter, ["id"], ["embed"], 100, order="sample_index"):
            np.testing.assert_array_equal(vectors["embed"], vectors_of(batch["id"].to_numpy()))
            found += batch["id"].to_pylist()
        assert found == ids
        assert store.in_sample_order().tolist() == list(range(ROWS))[::-1]

    def test_without_sample_indices_there_is_no_such_order(self, tmp_path):
        """Rows appended without a sample_index cannot be read in its order."""
        with zarrow.Writer(tmp_path / "s") as writer:
            writer.append({"id": [1, 2]})
            writer.finalize()
        with pytest.raises(InvalidInputError, match="sample_index="):
            list(zarrow.open(tmp_path / "s").join(order="sample_index"))

    def test_dictionaries_that_differ_between_segments(self, store):
        """New categories in later segments do not confuse batches that span segments."""
        kinds = [
            kind for batch, _ in store.join(batch_size=1300, arrays=[]) for kind in batch["kind"].to_pylist()
        ]
        assert kinds == [f"kind{row // 1500}" for row in range(ROWS)]


def line(call) -> str:
    """Name a test's case by its line."""
    return f"line{call.__code__.co_firstlineno}"


class TestBadInput:
    @pytest.mark.parametrize(
        "call",
        [
            lambda store: store["embeds"],
            lambda store: store.join(arrays=["embeds"]),
            lambda store: store.take([0], arrays=["embeds"]),
            lambda store: store.vectors([0], ["embeds"]),
        ],
        ids=line,
    )
    def test_an_unknown_array(self, store, call):
        """The message suggests similar names."""
        with pytest.raises(UnknownNameError, match="did you mean 'embed'"):
            call(store)

    @pytest.mark.parametrize(
        "call",
        [
            lambda store: store.table(["probs"]),
            lambda store: store.table(filter=pc.field("probs") > 1),
            lambda store: store.scan(["probs"]),
            lambda store: store.scan(filter=pc.field("probs") > 1),
            lambda store: store.join(columns=["probs"]),
            lambda store: store.join(pc.field("probs") > 1),
            lambda store: store.take([0], ["probs"]),
        ],
        ids=line,
    )
    def test_an_unknown_column(self, store, call):
        """The message suggests similar names, at the call rather than at the first batch."""
        with pytest.raises(UnknownNameError, match="did you mean 'prob'"):
            call(store)

    def test_a_column_is_no_array(self, store):
        """Using a column as an array gives an error that says so."""
        with pytest.raises(UnknownNameError, match="is a column of the table"):
            store["prob"]

    @pytest.mark.parametrize(
        "filter",
        ["prob > 0.9", lambda row: True, [("prob", ">", 0.9)], True],
        ids=["text", "call", "list", "bool"],
    )
    def test_a_filter_that_is_none(self, store, filter):
        """The message shows an example of a filter."""
        with pytest.raises(InvalidInputError, match=r"pyarrow\.compute\.field"):
            store.join(filter)

    @pytest.mark.parametrize(
        "filter", [pc.field("prob") > "x", pc.field("query") + 1, pc.field("prob") + 1], ids=str
    )
    def test_a_filter_of_the_wrong_type(self, store, filter):
        """A filter with incompatible types, or that is not a condition, is refused at the call."""
        with pytest.raises(InvalidInputError, match="filter"):
            store.join(filter)

    @pytest.mark.parametrize("rows", [[5000], [-5001], ["a"], [0.5], [[1]], [True]], ids=repr)
    def test_rows_that_are_not_there(self, store, rows):
        """Rows out of range, or not rows at all, are IndexErrors before anything is read."""
        with pytest.raises(IndexError):
            store.take(rows)

    @pytest.mark.parametrize(
        "call",
        [
            lambda store: store.join(batch_size=0),
            lambda store: store.scan(batch_size=-1),
            lambda store: store.join(batch_size="8"),
            lambda store: store.join(columns="id"),
            lambda store: store.join(arrays="embed"),
            lambda store: store.join(order="id"),
            lambda store: store["embed"].take([0], check="md5"),
            lambda store: store.vectors(pa.table({"x": [1]})),
        ],
        ids=line,
    )
    def test_options_that_are_none(self, store, call):
        """Options are checked at the call."""
        with pytest.raises((InvalidInputError, UnknownNameError)):
            call(store)

    def test_no_store(self, tmp_path):
        """A missing path and a path that is not a store give different errors."""
        with pytest.raises(StoreNotFoundError):
            zarrow.open(tmp_path / "none")
        with pytest.raises(NotAStoreError):
            zarrow.open(tmp_path)
        (tmp_path / "file").write_text("x")
        with pytest.raises(NotAStoreError):
            zarrow.open(tmp_path / "file")

    def test_an_incomplete_store(self, tmp_path):
        """A store that was never finalized does not open as a complete one."""
        write(tmp_path / "s", finalize=False)
        with pytest.raises(IncompleteStoreError, match=r"5,000 rows are safe.*partial=True"):
            zarrow.open(tmp_path / "s")

    def test_a_store_with_fewer_rows_than_expected(self, tmp_path):
        """The message names the command that completes it, which plain `finalize` would refuse."""
        with zarrow.Writer(tmp_path / "s", expected_rows=3) as writer:
            writer.append({"id": [1]}, {"v": np.ones((1, 2), np.float32)})
            writer.close()
        with pytest.raises(IncompleteStoreError, match=r"1 of 3 rows are safe.*'zarrow finalize --partial'"):
            zarrow.open(tmp_path / "s")

    def test_a_closed_store(self, plain):
        """A closed store says so; arrays obtained from it remain valid."""
        with zarrow.open(plain) as store:
            rows = store["embed"][:]
            reader = store.scan(["id"])
        with pytest.raises(InvalidInputError, match="closed"):
            store.num_rows  # noqa: B018
        assert "closed" in repr(store)
        assert rows[17, 0] == 17
        assert reader.read_all().num_rows == ROWS


def flip(path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


class TestDamage:
    @pytest.fixture(params=[None, "zstd"], ids=["plain", "zstd"])
    def damaged(self, request, tmp_path):
        """A store with a flipped bit in the shard of segment 1."""
        write(tmp_path / "s", codecs=request.param)
        flip(tmp_path / "s" / layout.shard_path("embed", 1, 1), 40)
        return zarrow.open(tmp_path / "s")

    def test_a_checked_read_finds_a_flipped_bit(self, damaged):
        """A checked read finds a flipped bit and names segment and rows; others can be read."""
        array = damaged["embed"]
        for read in (
            lambda: array.read(1000, 1100, check="crc"),
            lambda: array.take([0, 1030], check="crc"),
            lambda: damaged.take([1030], check="crc"),
            lambda: list(damaged.join(check="crc")),
        ):
            with pytest.raises(CorruptionError, match=r"c/1/0.*rows 1024 to"):
                read()
        rows = np.r_[0:1024, 2048:ROWS]
        np.testing.assert_array_equal(array.take(rows, check="crc"), vectors_of(rows))
        for batch, vectors in damaged.join(pc.field("row") >= 2048, check="crc"):
            np.testing.assert_array_equal(vectors["embed"], vectors_of(batch["row"].to_numpy()))

    def test_a_compressed_chunk_is_always_checked(self, tmp_path):
        """Compressed chunks are checked before they are decoded."""
        write(tmp_path / "s", codecs="blosc")
        flip(tmp_path / "s" / layout.shard_path("embed", 1, 1), 40)
        with pytest.raises(CorruptionError, match="rows 1024 to"):
            zarrow.open(tmp_path / "s")["embed"][1030]

    def test_the_shard_index_of_a_compressed_array(self, tmp_path):
        """A damaged shard index is found before it is used."""
        write(tmp_path / "s", codecs="zstd")
        shard = tmp_path / "s" / layout.shard_path("embed", 2, 1)
        flip(shard, shard.stat().st_size - 10)
        array = zarrow.open(tmp_path / "s")["embed"]
        with pytest.raises(CorruptionError, match="shard index"):
            array[2048]
        np.testing.assert_array_equal(array[:2048], vectors_of(np.arange(2048)))

    @pytest.mark.parametrize("codecs", [None, "zstd"])
    def test_a_truncated_shard_in_the_middle_of_a_scan(self, tmp_path, codecs):
        """A scan stops at a truncated shard, names it, and can continue after it."""
        write(tmp_path / "s", codecs=codecs)
        os.truncate(tmp_path / "s" / layout.shard_path("embed", 2, 1), 1000)
        store = zarrow.open(tmp_path / "s")
        seen = 0
        with pytest.raises(CorruptionError, match=r"segment 2"):  # noqa: PT012
            for batch, _ in store.join(batch_size=512):
                seen += batch.num_rows
        assert seen == 2048
        assert sum(batch.num_rows for batch, _ in store.join(pc.field("row") >= 3072)) == ROWS - 3072

    @pytest.mark.parametrize("what", ["flip", "truncate", "remove"])
    def test_a_damaged_part(self, tmp_path, what):
        """A damaged part is named with its segment and rows, and the others can be read."""
        write(tmp_path / "s")
        part = tmp_path / "s" / layout.part_path(1)
        store = zarrow.open(tmp_path / "s")
        if what == "flip":
            flip(part, 100)
        elif what == "truncate":
            os.truncate(part, 300)
        else:
            part.unlink()
        for read in (
            store.table,
            lambda: list(store.scan()),
            lambda: list(store.join()),
            lambda: store.take([1500]),
        ):
            with pytest.raises(
                CorruptionError, match=r"part-00000001\.parquet.*segment 1 \(rows 1024 to 2048\)"
            ):
                read()
        with pytest.raises(CorruptionError, match="segment 1"):
            store.scan().read_all()
        assert store.table(["id"], pc.field("row") >= 2048).num_rows == ROWS - 2048
        assert store.take([5, 4000])[0]["id"].to_pylist() == [5, 4000]

    @pytest.mark.parametrize("what", ["truncate", "remove", "pipe", "swap"])
    def test_no_reader_of_parts_takes_or_waits_for_what_is_none(self, tmp_path, what):
        """SQL, Polars and our own reader refuse a part that is another file, a pipe or missing."""
        write(tmp_path / "s")
        part, other = (tmp_path / "s" / layout.part_path(number) for number in (1, 0))
        assert part.stat().st_size != other.stat().st_size
        if what == "truncate":
            os.truncate(part, 300)
        else:
            part.rename(tmp_path / "aside")
        if what == "pipe":
            os.mkfifo(part)
        if what == "swap":
            other.rename(part)
            (tmp_path / "aside").rename(other)
        store = zarrow.open(tmp_path / "s")
        for read in (store.table, store.to_polars, lambda: store.sql("SELECT * FROM predictions")):
            with pytest.raises(CorruptionError, match=r"part-0000000[01]\.parquet: "):
                read()

    def test_a_missing_last_shard(self, tmp_path):
        """A short last segment without its files affects only its own rows."""
        write(tmp_path / "s")
        (tmp_path / "s" / layout.shard_path("embed", 4, 1)).unlink()
        (tmp_path / "s" / layout.part_path(4)).unlink()
        store = zarrow.open(tmp_path / "s")
        with pytest.raises(CorruptionError, match="segment 4"):
            store["embed"][4500]
        with pytest.raises(CorruptionError, match="segment 4"):
            store.table()
        assert store["embed"][4000][0] == 4000

    def test_a_missing_record(self, tmp_path):
        """A complete store without the record of its last segment is damaged."""
        write(tmp_path / "s")
        (tmp_path / "s" / layout.record_path(4)).unlink()
        with pytest.raises(CorruptionError, match=r"00000004\.json"):
            zarrow.open(tmp_path / "s")

    def test_a_missing_record_of_another_segment(self, tmp_path):
        """Reading rows whose record is lost names the record; other rows can be read."""
        write(tmp_path / "s", codecs="zstd")
        (tmp_path / "s" / layout.record_path(1)).unlink()
        store = zarrow.open(tmp_path / "s")
        for read in (store.table, lambda: store["embed"][1500], lambda: store.take([1500])):
            with pytest.raises(CorruptionError, match=r"00000001\.json: missing"):
                read()
        assert store["embed"][2048][0] == 2048

    def test_a_missing_file_of_an_open_segment(self, tmp_path):
        """A store without a file that live rows need is reported as damaged, not as changed."""
        write(tmp_path / "s", 300, finalize=False, codecs="zstd")
        rows = next((tmp_path / "s").glob("open/*/embed.rows"))
        rows.unlink()
        with pytest.raises(CorruptionError, match=r"embed\.rows"):
            zarrow.open(tmp_path / "s", partial=True)


class TestSnapshot:
    @pytest.mark.parametrize("codecs", [None, "zstd"])
    def test_appending_does_not_disturb_a_reader(self, tmp_path, codecs):
        """A store extended while it is open still shows the same rows, including the last ones."""
        path = tmp_path / "s"
        write(path, 4500, codecs=codecs)
        store = zarrow.open(path)
        with zarrow.Writer(path, mode="a") as writer:
            append(writer, 4500, ROWS)
            writer.finalize()
        rows = np.arange(4500)
        np.testing.assert_array_equal(store["embed"][:], vectors_of(rows))
        assert store.table(["id"])["id"].to_pylist() == rows.tolist()
        assert store.take([4499])[0]["id"].to_pylist() == [4499]
        assert store.sql("SELECT max(row), count(*) FROM predictions").fetchall() == [(4499, 4500)]
        assert store.to_polars().collect().height == 4500
        assert store.num_rows == 4500
        assert store.refresh()
        assert store.num_rows == ROWS
        np.testing.assert_array_equal(store["embed"][:], vectors_of(np.arange(ROWS)))
        assert store.table(["id"])["id"].to_pylist() == list(range(ROWS))
        assert not store.refresh()

    @pytest.mark.parametrize("codecs", [None, "zstd"])
    def test_a_replaced_store_is_not_mixed_with_the_old_one(self, tmp_path, codecs):
        """A store replaced while it is open says so, and never shows rows of the new one."""
        path = tmp_path / "s"
        write(path, codecs=codecs)
        store = zarrow.open(path)
        seen = store["embed"][:1000]
        with zarrow.Writer(path, mode="w", keys=["id"], segment_rows=SEGMENT_ROWS) as writer:
            append(writer, 20_000, 20_000 + ROWS)
            writer.finalize()
        np.testing.assert_array_equal(seen, vectors_of(np.arange(1000)))
        for read in (
            lambda: store["embed"][2000:3000],
            lambda: store["embed"].read(2000, 3000, check="crc"),
            lambda: store.table(["id"]),
            lambda: list(store.join()),
            lambda: store.take([3000]),
            store.refresh,
            store.require_unchanged,
        ):
            with pytest.raises(StoreChangedError, match="open it again"):
                read()
        assert zarrow.open(path).table(["id"])["id"][0].as_py() == 20_000

    def test_a_removed_store(self, tmp_path):
        """A store that was deleted says so."""
        write(tmp_path / "s")
        store = zarrow.open(tmp_path / "s")
        os.rename(tmp_path / "s", tmp_path / "t")
        with pytest.raises(StoreChangedError):
            store["embed"][0]
        with pytest.raises(StoreChangedError):
            store.table()

    def test_pickles(self, store, truth):
        """Unpickled stores and arrays have the same rows."""
        again = pickle.loads(pickle.dumps(store))
        assert again.uuid == store.uuid
        array = pickle.loads(pickle.dumps(store["embed"]))
        np.testing.assert_array_equal(array[::100], truth[1]["embed"][::100])

    def test_a_pickle_of_a_store_that_changed(self, tmp_path):
        """A pickle never silently refers to other rows."""
        write(tmp_path / "s")
        pickled = pickle.dumps(zarrow.open(tmp_path / "s"))
        write(tmp_path / "s", mode="w")
        with pytest.raises(StoreChangedError, match="pickled"):
            pickle.loads(pickled)

    def test_reading_writes_nothing(self, plain):
        """No kind of read changes the store's directory."""

        def look():
            return sorted(
                (found.as_posix(), found.stat().st_mtime_ns, found.stat().st_size)
                for found in plain.rglob("*")
            )

        before = look()
        store = zarrow.open(plain)
        list(store.join(pc.field("prob") > 0.9))
        store.take([1])
        store.sql("SELECT 1 FROM predictions").fetchall()
        assert look() == before


class TestLive:
    @pytest.mark.parametrize("codecs", [None, "zstd"])
    @pytest.mark.parametrize("rows", [0, 1, 300, 1024, 1500, 5000])
    def test_shows_what_was_accepted(self, tmp_path, codecs, rows):
        """A partial view shows the accepted rows of an active writer, committed or not."""
        with zarrow.Writer(tmp_path / "s", segment_rows=SEGMENT_ROWS, keys=["id"], codecs=codecs) as writer:
            append(writer, 0, 5)
            append(writer, 5, 5 + rows)
            writer.flush()
            store = zarrow.open(tmp_path / "s", partial=True)
            count = rows + 5
            assert not store.complete
            assert store.num_rows == count
            assert store.committed_rows <= count
            numbers = np.arange(count)
            assert store.table()["id"].to_pylist() == numbers.tolist()
            assert store.table()["row"].to_pylist() == numbers.tolist()
            np.testing.assert_array_equal(store["embed"][:], vectors_of(numbers))
            np.testing.assert_array_equal(store["embed"].read(0, count, check="crc"), vectors_of(numbers))
            some = np.random.default_rng(0).integers(0, count, 50)
            table, vectors = store.take(some, check="crc")
            assert table["id"].to_pylist() == some.tolist()
            np.testing.assert_array_equal(vectors["embed"], vectors_of(some))
            assert sum(batch.num_rows for batch, _ in store.join(batch_size=100)) == count
            assert store.to_polars().collect()["id"].to_list() == numbers.tolist()
            assert store.sql("SELECT count(DISTINCT id) FROM predictions").fetchall() == [(count,)]
            assert store.in_sample_order().tolist() == numbers[::-1].tolist()
            assert len(pa.table(store)) == count
            writer.finalize()
        # The view still shows that instant, although the open segment is gone.
        np.testing.assert_array_equal(store["embed"][:], vectors_of(numbers))
        assert store.refresh() or rows == 0
        assert store.complete

    def test_a_call_sees_one_snapshot(self, tmp_path, monkeypatch):
        """Columns and vectors of one call are of the same rows, even if another thread refreshes."""
        path = tmp_path / "s"
        with (
            zarrow.Writer(path, segment_rows=1024, shared=True) as first,
            zarrow.Writer(path, mode="a", shared=True) as second,
        ):
            for writer, ids in ((first, range(5)), (second, range(100, 105))):
                writer.append({"id": list(ids)}, {"e": np.array([[float(one)] for one in ids], np.float32)})
                writer.flush()
            store = zarrow.open(path, partial=True)
            first.append({"id": [5, 6]}, {"e": np.array([[5.0], [6.0]], np.float32)})
            first.flush()
            take = NarrowColumns.take

            def slow(columns, *arguments):
                found = take(columns, *arguments)
                assert store.refresh()  # rows of `second` have other numbers now
                monkeypatch.undo()
                return found

            monkeypatch.setattr(NarrowColumns, "take", slow)
            table, vectors = store.take(np.arange(10))
            assert len(store) == 12
            assert vectors["e"][:, 0].tolist() == table["id"].to_pylist() == [*range(5), *range(100, 105)]

    def test_refresh_moves_on(self, tmp_path):
        """A refresh shows newly accepted rows, and finally that the store is complete."""
        with zarrow.Writer(tmp_path / "s", segment_rows=SEGMENT_ROWS) as writer:
            append(writer, 0, 100)
            writer.flush()
            store = zarrow.open(tmp_path / "s", partial=True)
            array = store["embed"]
            append(writer, 100, 3000)
            writer.flush(durable=True)  # also until the full segment is committed, which a refresh would see
            assert store.num_rows == 100
            assert store.refresh()
            assert store.num_rows == 3000
            assert len(array) == 100
            np.testing.assert_array_equal(array[:], vectors_of(np.arange(100)))
            assert not store.refresh()
            writer.finalize()
        assert store.refresh()
        assert store.complete

    def test_a_flipped_bit_in_live_rows(self, tmp_path):
        """A checked read of uncommitted rows finds a flipped bit."""
        with zarrow.Writer(tmp_path / "s", segment_rows=SEGMENT_ROWS) as writer:
            append(writer, 0, 300)
            writer.flush()  # otherwise both would be in one frame
            append(writer, 300, 500)
            writer.flush()
            store = zarrow.open(tmp_path / "s", partial=True)
            (rows,) = (tmp_path / "s" / "open").glob("*/embed.rows")
            flip(rows, 400 * HIDDEN * 4)
            assert len(store["embed"].read(0, 300, check="crc")) == 300
            with pytest.raises(CorruptionError, match="rows 300 to 500"):
                store["embed"].read(0, 500, check="crc")
            with pytest.raises(CorruptionError, match="rows 300 to 500"):
                store["embed"].take([450], check="crc")

    def test_an_interrupted_run(self, tmp_path):
        """Every accepted row of a killed process is shown."""
        code = (
            "import os, sys; sys.path[:0] = sys.argv[2:]\n"
            "import zarrow; from test_store import append\n"
            "writer = zarrow.Writer(sys.argv[1], segment_rows=1024)\n"
            "append(writer, 0, 2500); writer.flush(); os._exit(1)"
        )
        source = os.path.dirname(os.path.dirname(zarrow.__file__))
        arguments = [tmp_path / "s", source, os.path.dirname(__file__)]
        assert subprocess.run([sys.executable, "-c", code, *arguments], check=False).returncode == 1
        store = zarrow.open(tmp_path / "s", partial=True)
        assert store.num_rows == 2500
        assert store.segments[-1] == range(2048, 2500)
        np.testing.assert_array_equal(store["embed"][:], vectors_of(np.arange(2500)))

    def test_several_writers(self, tmp_path):
        """The rows of all open segments are shown, each once, oldest segment first."""
        writers = [
            zarrow.Writer(tmp_path / "s", mode="a", shared=True, segment_rows=SEGMENT_ROWS) for _ in range(3)
        ]
        for number, writer in enumerate(writers):
            append(writer, number * 10_000, number * 10_000 + 1300)
            writer.flush()
        store = zarrow.open(tmp_path / "s", partial=True)
        ids = store.table(["id"])["id"].to_numpy()
        assert sorted(ids) == sorted(
            np.concatenate([np.arange(1300) + number * 10_000 for number in range(3)])
        )
        np.testing.assert_array_equal(store["embed"][:], vectors_of(ids))
        np.testing.assert_array_equal(store["layers"][::-1], rows_of_ids(ids)[::-1])
        for writer in writers:
            writer.close()
        store.refresh()
        assert store.num_rows == 3900

    @pytest.mark.parametrize("codecs", [None, "zstd"])
    def test_a_view_is_of_one_instant_whatever_writers_do(self, tmp_path, codecs):
        """With writers at full speed every view has each accepted row once, as a prefix per writer."""
        path = tmp_path / "s"
        schema = pa.schema({"id": pa.int64()})
        stop = threading.Event()
        accepted = [0, 0, 0]

        def fill(number: int) -> None:
            with zarrow.Writer(
                path,
                mode="a",
                shared=True,
                segment_rows=64,
                schema=schema,
                arrays={"embed": (HIDDEN, "float32")},
                codecs=codecs,
            ) as writer:
                while not stop.is_set() and accepted[number] < 20_000:
                    ids = accepted[number] + np.arange(37) + number * 1_000_000
                    writer.append({"id": ids}, {"embed": vectors_of(ids)})
                    writer.flush()
                    accepted[number] += 37

        with ThreadPoolExecutor(3) as pool:
            running = [pool.submit(fill, number) for number in range(3)]
            try:
                views = 0
                while views < 40 or not all(accepted):
                    try:
                        before = list(accepted)
                        store = zarrow.open(path, partial=True)
                    except (StoreNotFoundError, NotAStoreError):
                        continue
                    ids = store.table(["id"])["id"].to_numpy()
                    np.testing.assert_array_equal(store["embed"][:], vectors_of(ids))
                    for number in range(3):
                        mine = ids[ids // 1_000_000 == number] - number * 1_000_000
                        assert sorted(mine) == list(range(len(mine)))
                        assert len(mine) >= before[number]
                    views += 1
                    if all(task.done() for task in running):
                        break
            finally:
                stop.set()
            for task in running:
                task.result()

    def test_reopening_a_complete_store(self, tmp_path):
        """Rows of a segment that a writer reopens are shown once at every moment."""
        path = tmp_path / "s"
        write(path, 1500)
        with zarrow.Writer(path, mode="a") as writer:
            store = zarrow.open(path, partial=True)
            assert store.table(["id"])["id"].to_pylist() == list(range(1500))
            append(writer, 1500, 1700)
            writer.flush()
            store.refresh()
            assert store.table(["id"])["id"].to_pylist() == list(range(1700))
            np.testing.assert_array_equal(store["embed"][:], vectors_of(np.arange(1700)))


def rows_of_ids(ids: np.ndarray) -> np.ndarray:
    return vectors_of(ids).reshape(-1, 2, 8).astype(np.float16)


class TestCost:
    def test_a_large_store_opens_as_a_small_one_does(self, tmp_path, monkeypatch):
        """Opening reads only the store's documents, and nothing per segment."""
        opened = []
        system_open = os.open
        monkeypatch.setattr(
            os, "open", lambda path, *rest, **kw: opened.append(path) or system_open(path, *rest, **kw)
        )
        counts = []
        for rows in (64, 64 * 30):
            with zarrow.Writer(tmp_path / str(rows), segment_rows=64) as writer:
                append(writer, 0, rows, 64)
                writer.finalize()
            opened.clear()
            zarrow.open(tmp_path / str(rows))
            counts.append(len(opened))
        assert counts == [2, 2]

    def test_records_are_not_kept_for_ever(self, tmp_path, monkeypatch):
        """The memory that a snapshot keeps for records does not grow with the segments."""
        monkeypatch.setattr("zarrow._read.catalog._RECORD_BYTES", 1 << 20)  # so that eight records exceed it
        with zarrow.Writer(tmp_path / "s", segment_rows=64) as writer:
            append(writer, 0, 64 * 30, 64)
            writer.finalize()
        store = zarrow.open(tmp_path / "s")
        np.testing.assert_array_equal(
            store["embed"].read(0, 64 * 30, check="crc"), vectors_of(np.arange(64 * 30))
        )
        kept = store._contents.view.snapshot._records
        assert sum(kept.get(number) is not None for number in range(30)) <= 8

    def test_files_do_not_stay_open(self, plain):
        """A store that was read and dropped leaves no open files or maps."""
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        store = zarrow.open(plain)
        list(store.join())
        store.take([1, 4999])
        del store
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before
        with open("/proc/self/maps") as maps:
            assert str(plain) not in maps.read()

    def test_a_stock_reader_sees_the_same(self, store, path):
        """The plain Parquet dataset has the same rows in the same order."""
        assert ds.dataset(path / "table").to_table(columns=["id"]) == store.table(["id"])


def test_a_flipped_bit_in_a_footer_hides_no_row(tmp_path):
    """A part's statistics decide which parts a filter reads, so they are checked before use."""
    path = tmp_path / "s.zarrow"
    with zarrow.Writer(path, keys=["id"], segment_rows=16) as writer:
        for first in range(0, 64, 16):
            writer.append({"id": np.arange(first, first + 16)}, {"e": np.ones((16, 2), np.float32)})
        writer.finalize()
    part = path / "table/part-00000001.parquet"
    data = part.read_bytes()
    size = 8 + int.from_bytes(data[-8:-4], "little")
    refused = 0
    for place in range(len(data) - size, len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        part.write_bytes(flipped)
        with zarrow.open(path) as store:
            with pytest.raises(CorruptionError, match=r"part of segment 1 \(rows 16 to 32\) is damaged"):
                store.table(["id"], filter=pc.field("id") == 20)
            assert store.table(["id"], filter=pc.field("row") >= 32).num_rows == 32
        refused += 1
    assert refused > 200
    part.write_bytes(data)
    assert zarrow.open(path).table(["id"], filter=pc.field("id") == 20).num_rows == 1


def test_what_a_session_guesses() -> None:
    """Names of arrays and columns are in a store, completed and shown; a few rows and frames are at hand."""
    store = zarrow.testing.example_store()
    assert "query_embed" in store
    assert "subject_id" in store
    assert "no" not in store
    assert 3 not in store
    assert store.columns == store.schema.names
    assert "query_embed" in store._ipython_key_completions_()
    assert store.head(3).num_rows == 3
    assert store.head(10**9).num_rows == len(store)
    frame = store.to_pandas(["query", "row"], pc.field("row") < 4)
    assert frame["row"].tolist() == [0, 1, 2, 3]
    html = store._repr_html_()
    assert "query_embed" in html
    assert "5,000 rows, complete" in html


@pytest.mark.parametrize("engine", ["sql", "polars", "table"])
def test_vectors_of_rows_that_a_query_found_in_a_packed_store(tmp_path, engine):
    """A query that was made before a pack, and run after it, does not lead to vectors of other rows."""
    example_store(tmp_path / "run.zarrow")
    store = zarrow.open(tmp_path / "run.zarrow")
    assert store.vectors([0])["query_embed"].shape == (1, 8)  # mapped: it stays readable
    queries = {
        "sql": lambda: store.sql("SELECT row FROM predictions LIMIT 3"),
        "polars": lambda: store.to_polars().select("row").head(3).collect(),
        "table": lambda: store.table(["row"]),
    }
    found = queries[engine]()
    zarrow.pack(store.path, order="sample_index")
    with pytest.raises(StoreChangedError):
        store.vectors(found)
    with pytest.raises(StoreChangedError):
        store.sql("SELECT row FROM predictions")
    assert store.vectors([0])["query_embed"].shape == (1, 8)
