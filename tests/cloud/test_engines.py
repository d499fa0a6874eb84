"""DuckDB and Polars on a store in a bucket — they read the columns and parts that a query needs."""

import datetime
import decimal

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

import zarrow
from zarrow._read import remote_parts

ROWS, SEGMENT = 3_000, 256
NAN = float("nan")


def columns(ids: np.ndarray) -> dict:
    """Return columns of these rows, of many types; the numbers of a segment in the middle have NaN."""
    score = np.where((ids // SEGMENT == 5) & (ids % 7 == 0), NAN, ids / ROWS)
    return {
        "id": ids,
        "score": score,
        "noise": np.random.default_rng(0).random(ROWS)[ids],
        "query": pa.array([f"query {i % 5}" for i in ids]).dictionary_encode(),
        "maybe": pa.array([None if i % 3 else int(i) for i in ids]),
        "half": score.astype("f2"),
        "day": pa.array([datetime.date(2020, 1, 1) + datetime.timedelta(int(i)) for i in ids]),
        "price": pa.array([decimal.Decimal(int(i)) / 100 for i in ids], pa.decimal128(12, 2)),
        "many": pa.array([[int(i)] * (i % 3) for i in ids]),
    }


def write(target, finalize=True, **options) -> None:
    with zarrow.Writer(target, keys=["id"], segment_rows=SEGMENT, **options) as writer:
        for start in range(0, ROWS, 500):
            writer.append(columns(np.arange(start, start + 500)), {})
        writer.finalize() if finalize else writer.close()


@pytest.fixture
def stores(bucket, tmp_path, monkeypatch):
    """Return the same store in a bucket and on a disk."""
    monkeypatch.setenv("ZARROW_SPOOL", str(tmp_path / "spool"))
    write(bucket.url("run.zarrow"), storage_options=bucket.options)
    write(tmp_path / "run.zarrow")
    with zarrow.open(bucket.url("run.zarrow"), storage_options=bucket.options) as there:
        yield there, zarrow.open(tmp_path / "run.zarrow")


def parts_read(bucket) -> list[str]:
    return sorted({one.path.rpartition("/")[2] for one in bucket.requests if "/table/" in one.path})


def test_duckdb_opens_the_parts_that_can_match(bucket, stores):
    """A filter on a clustered column opens one part, with one request; also by row and by an `IN`."""
    there, _ = stores
    there.sql("SELECT count(*) FROM predictions").fetchall()
    for condition, parts in [("id = 700", 1), ("row BETWEEN 2000 AND 2040", 1), ("id IN (3, 1000)", 2)]:
        bucket.requests.clear()
        found = there.sql(f"SELECT query, id FROM predictions WHERE {condition} ORDER BY id").fetchall()
        assert found[0] == (f"query {found[0][1] % 5}", found[0][1])
        assert len(parts_read(bucket)) == parts, condition
        assert len(bucket.requests) <= 3 * parts


def test_polars_opens_the_parts_that_can_match(bucket, stores):
    """The same, and `head` reads no more than it shows."""
    there, _ = stores
    frame = there.to_polars()
    for condition, parts in [
        (pl.col("id") == 700, 1),
        (pl.col("row").is_between(2000, 2040), 1),
        (pl.col("day") < datetime.date(2020, 1, 3), 1),
        ((pl.col("id") < 10) | (pl.col("id") > 2995), 2),
    ]:
        bucket.requests.clear()
        found = frame.filter(condition).select("query", "id").collect()
        assert found["query"].to_list() == [f"query {one % 5}" for one in found["id"]]
        assert len(parts_read(bucket)) == parts, condition
    assert frame.head(3).collect()["id"].to_list() == [0, 1, 2]


SQL = [
    "score > 0.9",
    "score < 0.1",
    "NOT score <= 0.5",
    "score != 0.5",
    "maybe IS NULL AND id < 100",
    "maybe > 2900",
    "query = 'query 3' AND noise > 0.99",
    "half > 0.5",
    "price BETWEEN 1.00 AND 1.05",
    "day = DATE '2021-01-01'",
    "len(many) = 2 AND id < 9",
    "id IN (SELECT id + 1 FROM predictions WHERE noise > 0.999)",
]
EXPRESSIONS = [
    pl.col("score") > 0.9,
    pl.col("score") < 0.1,
    ~(pl.col("score") <= 0.5),
    pl.col("score").is_nan(),
    pl.col("maybe").is_null() & (pl.col("id") < 100),
    (pl.col("query") == "query 3") & (pl.col("noise") > 0.99),
    pl.col("price") > decimal.Decimal("29.90"),
    pl.col("many").list.len() == 2,
    pl.col("noise").rank() < 3,
]


def test_they_find_what_they_find_on_a_disk(stores):
    """With NaN, nulls, dictionaries, halves, decimals, dates and lists; also what Arrow has no words for."""
    for condition in SQL:
        query = f"SELECT * FROM predictions WHERE {condition} ORDER BY id"
        there, here = (store.sql(query).fetchall() for store in stores)
        assert there, condition
        assert repr(there) == repr(here), condition
    frames = [store.to_polars() for store in stores]
    for expression in EXPRESSIONS:
        there, here = (frame.filter(expression).sort("id").collect() for frame in frames)
        assert there.height, expression
        assert repr(there.rows()) == repr(here.rows()), expression
    with pytest.raises(Exception, match="no_such"):
        stores[0].sql("SELECT no_such FROM predictions").fetchall()


def test_columns_that_duckdb_reads_as_another_type(bucket, tmp_path, monkeypatch):
    """Of such a table, all is read: Arrow could not compare what its files say with what DuckDB asks."""
    monkeypatch.setenv("ZARROW_SPOOL", str(tmp_path / "spool"))
    with zarrow.Writer(bucket.url("run.zarrow"), storage_options=bucket.options) as writer:
        writer.append({"id": range(9), "took": pa.array(range(0, 9_000, 1_000), pa.duration("us"))}, {})
        writer.finalize()
    with zarrow.open(bucket.url("run.zarrow"), storage_options=bucket.options) as store:
        assert store.sql("SELECT id FROM predictions WHERE took > 7000").fetchall() == [(8,)]
        found = store.to_polars().filter(pl.col("took") > datetime.timedelta(milliseconds=7))
        assert found.collect()["id"].to_list() == [8]


def test_a_store_that_grows_is_read_with_its_tails(bucket, tmp_path, monkeypatch):
    """Rows of closed writers are found behind those of full segments, by both engines and in a union."""
    monkeypatch.setenv("ZARROW_SPOOL", str(tmp_path / "spool"))
    write(bucket.url("run.zarrow"), finalize=False, storage_options=bucket.options)
    with zarrow.open(bucket.url("run.zarrow"), storage_options=bucket.options, partial=True) as store:
        assert store.sql("SELECT count(*), sum(id) FROM predictions").fetchall() == [(ROWS, sum(range(ROWS)))]
        frame = store.to_polars()
        assert frame.filter(pl.col("id") > 2990).collect()["id"].to_list() == list(range(2991, ROWS))
        union = zarrow.union({"a": store, "b": store})
        assert union.sql("SELECT count(*) FROM predictions WHERE id = 7").fetchall() == [(2,)]


def test_nan_would_be_lost_without_care(stores, monkeypatch):
    """If statistics of columns with NaN were believed, Polars would find fewer rows than on a disk."""
    monkeypatch.setattr(remote_parts.KnownSegments, "without_nan", lambda known, _filter: known)
    there, here = (store.to_polars().filter(pl.col("score") > 0.99).collect() for store in stores)
    assert there.height < here.height
