"""Stock readers — what readers without zarrow find in a store, complete or growing.

No reader here is ours: a store must be usable with only zarr-python, tensorstore, xarray, pyarrow, DuckDB or
Polars.
"""

from __future__ import annotations

import datetime as dt
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import tensorstore
import xarray as xr
import zarr

import zarrow
from zarrow.transfer import export

ROWS, SEGMENT_ROWS = 1000, 256
CODECS = [None, "crc32c", "blosc", "zstd", ["zstd", "crc32c"], {"name": "gzip"}]


def _predictions() -> tuple[pa.Table, dict[str, npt.NDArray[Any]], npt.NDArray[np.int64]]:
    """Return columns, vectors and sample indices as a model would yield them."""
    rng = np.random.default_rng(11)
    start = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    columns = pa.table(
        {
            "subject_id": rng.permutation(ROWS) * 3,
            "time": pa.array(
                [start + dt.timedelta(hours=row) for row in range(ROWS)], pa.timestamp("us", "UTC")
            ),
            "query": [f"code//{row % 7}" for row in range(ROWS)],
            "prob": rng.random(ROWS, np.float32),
            "label": [None if row % 3 == 0 else row % 2 == 0 for row in range(ROWS)],
            "tags": [[f"t{row % 4}"] * (row % 3) for row in range(ROWS)],
        }
    )
    arrays = {
        "query_embed": rng.standard_normal((ROWS, 24)).astype(np.float32),
        "layers": rng.standard_normal((ROWS, 2, 5)).astype(np.float16),
        "tokens": rng.integers(0, 50_000, (ROWS, 6), np.int32),
    }
    return columns, arrays, rng.permutation(ROWS)


@pytest.fixture(scope="module", params=CODECS, ids=str)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a complete store of 1000 rows, from batches that align with neither chunks nor segments."""
    path = tmp_path_factory.mktemp("stores") / "run.zarrow"
    columns, arrays, index = _predictions()
    options: dict[str, Any] = {"keys": ["subject_id", "time"], "segment_rows": SEGMENT_ROWS}
    with zarrow.Writer(path, codecs=request.param, **options) as writer:
        for first in range(0, ROWS, 37):
            rows = slice(first, first + 37)
            writer.append(
                columns.slice(first, 37), {name: array[rows] for name, array in arrays.items()}, index[rows]
            )
        writer.finalize()
    return path


def _by_zarr(path: Path) -> dict[str, Any]:
    group = zarr.open_group(path, mode="r")
    return {name: array[:] for name, array in group.arrays()}


def _by_zarr_unconsolidated(path: Path) -> dict[str, Any]:
    return {
        name: zarr.open_array(path / name, mode="r")[:]
        for name in zarr.open_group(path, mode="r", use_consolidated=False).array_keys()
    }


def _by_tensorstore(path: Path) -> dict[str, Any]:
    return {
        name: tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / name)}})
        .result()
        .read()
        .result()
        for name in ("query_embed", "layers", "tokens")
    }


def _by_xarray(path: Path) -> dict[str, Any]:
    with xr.open_zarr(path, chunks=None) as dataset:
        return {str(name): variable.load().values for name, variable in dataset.data_vars.items()}


def _by_dask(path: Path) -> dict[str, Any]:
    with xr.open_zarr(path) as dataset:
        return {str(name): variable.compute().values for name, variable in dataset.data_vars.items()}


@pytest.mark.parametrize("read", [_by_zarr, _by_zarr_unconsolidated, _by_tensorstore, _by_xarray, _by_dask])
def test_vectors_agree(read: Callable[[Path], dict[str, Any]], store: Path) -> None:
    """Every Zarr reader finds every array with the shape, type and values that were predicted."""
    _, arrays, _ = _predictions()
    found = read(store / "embeddings.zarr")
    assert found.keys() == arrays.keys()
    for name, rows in arrays.items():
        assert found[name].dtype == rows.dtype
        assert np.array_equal(found[name], rows)


def _by_arrow(path: Path) -> pa.Table:
    return ds.dataset(sorted(path.glob("*.parquet"))).to_table()


def _by_arrow_directory(path: Path) -> pa.Table:
    return ds.dataset(path).to_table()


def _by_duckdb(path: Path) -> pa.Table:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.sql(f"SELECT * FROM '{path}/*.parquet' ORDER BY row").to_arrow_table()


def _by_polars(path: Path) -> pa.Table:
    return pl.read_parquet(f"{path}/*.parquet").to_arrow()


def _by_lazy_polars(path: Path) -> pa.Table:
    return pl.scan_parquet(path).collect().to_arrow()


@pytest.mark.parametrize("read", [_by_arrow, _by_arrow_directory, _by_duckdb, _by_polars, _by_lazy_polars])
def test_columns_agree(read: Callable[[Path], pa.Table], store: Path) -> None:
    """Every Parquet reader finds every column, in row order, aligned with the vectors."""
    columns, _, index = _predictions()
    found = read(store / "table")
    assert found.column_names == [*columns.column_names, "row", "sample_index"]
    for name in columns.column_names:
        assert found[name].to_pylist() == columns[name].to_pylist()
    assert found["row"].to_pylist() == list(range(ROWS))
    assert found["sample_index"].to_pylist() == index.tolist()


def test_sql_finds_rows_and_zarr_their_vectors(store: Path) -> None:
    """A filter in SQL returns row numbers, with which any Zarr reader finds the vectors."""
    columns, arrays, _ = _predictions()
    where = "prob > 0.9 AND query = 'code//3'"
    with duckdb.connect() as connection:
        rows = [
            row
            for (row,) in connection.execute(
                f"SELECT row FROM '{store}/table/*.parquet' WHERE {where} ORDER BY row"
            ).fetchall()
        ]
    prob, query = columns["prob"].to_numpy(), columns["query"].to_pylist()
    assert rows == [row for row in range(ROWS) if prob[row] > 0.9 and query[row] == "code//3"]
    array = zarr.open_group(store / "embeddings.zarr", mode="r")["query_embed"]
    assert np.array_equal(array.oindex[rows], arrays["query_embed"][rows])  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    pyspark = pytest.importorskip("pyspark.sql")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    options = {"spark.ui.enabled": "false", "spark.driver.bindAddress": "127.0.0.1"}
    session = pyspark.SparkSession.builder.master("local[1]").config(map=options).getOrCreate()
    yield session
    session.stop()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Spark leaves sockets open
def test_spark_reads_the_table(spark: Any, tmp_path: Path) -> None:
    """Spark (pip install pyspark; needs Java) reads the parts as one table, as the README says."""
    with zarrow.Writer(tmp_path / "run.zarrow", segment_rows=SEGMENT_ROWS) as writer:
        columns, arrays, sample_index = _predictions()
        writer.append(columns.drop_columns("tags"), arrays, sample_index)
        writer.finalize()
    found = spark.read.parquet(str(tmp_path / "run.zarrow/table"))
    likely = found.where("prob > 0.9").orderBy("row").select("row").collect()
    assert [row["row"] for row in likely] == np.flatnonzero(columns["prob"].to_numpy() > 0.9).tolist()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_spark_reads_ragged_arrays(spark: Any, tmp_path: Path) -> None:
    """In a Parquet export, a row of a ragged array is a list of its vectors."""
    values = np.arange(40, dtype=np.float32).reshape(10, 4)
    with zarrow.Writer(tmp_path / "run.zarrow") as writer:
        writer.append({"id": range(4)}, {"tokens": zarrow.Ragged(values, [3, 0, 6, 1])})
        writer.finalize()
    export(tmp_path / "run.zarrow", tmp_path / "run.parquet")
    found = spark.read.parquet(str(tmp_path / "run.parquet")).orderBy("id").collect()
    assert [row["tokens"] for row in found] == [rows.tolist() for rows in np.split(values, [3, 3, 9])]
    assert [row["id"] for row in found] == [0, 1, 2, 3]


def test_opening_warns_of_nothing(store: Path) -> None:
    """No reader emits a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zarr.open_group(store / "embeddings.zarr", mode="r").tree()
        list(zarr.open_group(store / "embeddings.zarr", mode="r").members(max_depth=None))
        xr.open_zarr(store / "embeddings.zarr").close()
        xr.open_zarr(store / "embeddings.zarr", consolidated=False).close()
        xr.open_dataset(store / "embeddings.zarr", engine="zarr").close()
        ds.dataset(store / "table").to_table()


def test_axes_have_names(store: Path) -> None:
    """xarray aligns all arrays by row, and reads no index into memory."""
    with xr.open_zarr(store / "embeddings.zarr") as dataset:
        assert dict(dataset.sizes) == {
            "row": ROWS, "query_embed_dim": 24, "layers_dim0": 2, "layers_dim1": 5, "tokens_dim": 6,
        }  # fmt: skip
        assert not dataset.indexes
        assert dataset["query_embed"].chunksizes["row"] == (SEGMENT_ROWS,) * 3 + (ROWS - 3 * SEGMENT_ROWS,)


def test_the_group_has_nothing_else(store: Path) -> None:
    """The Zarr group has metadata and one shard per segment and array; the table has only parts."""
    segments = -(-ROWS // SEGMENT_ROWS)
    group = store / "embeddings.zarr"
    found = sorted(str(path.relative_to(group)) for path in group.rglob("*") if path.is_file())
    expected = ["zarr.json"]
    for name, axes in (("query_embed", 1), ("layers", 2), ("tokens", 1)):
        expected.append(f"{name}/zarr.json")
        expected += [f"{name}/c/{number}" + "/0" * axes for number in range(segments)]
    assert found == sorted(expected)
    parts = sorted(path.name for path in (store / "table").iterdir())
    assert parts == [f"part-{number:08d}.parquet" for number in range(segments)]


# While it grows

GROW = """
import sys, numpy, zarrow
path, segments = sys.argv[1], int(sys.argv[2])
with zarrow.Writer(path, segment_rows=64, codecs=sys.argv[3] or None) as writer:
    for start in range(0, 64 * segments - 7, 19):
        ids = numpy.arange(start, min(start + 19, 64 * segments - 7))
        narrow = (ids[:, None] + numpy.arange(1, 9)).astype("float32")
        wide = (ids[:, None, None] + numpy.ones((1, 2, 300))).astype("float64")
        writer.append({"id": ids}, {"narrow": narrow, "wide": wide})
    writer.finalize()
"""


def _snapshots(path: Path, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Yield repeatedly until the writer is done, and once more."""
    group = path / "embeddings.zarr" / "zarr.json"
    deadline = time.monotonic() + 60
    while not group.exists():
        assert process.poll() in (None, 0)
        assert time.monotonic() < deadline
        time.sleep(0.002)
    while process.poll() is None:
        assert time.monotonic() < deadline
        yield
    yield


@pytest.mark.parametrize("codecs", ["", "zstd"])
def test_at_every_moment_readers_find_committed_rows_only(codecs: str, tmp_path: Path) -> None:
    """During a run, no Zarr reader finds a row without its values or without its table row."""
    path, segments = tmp_path / "run.zarrow", 25
    rows = 64 * segments - 7
    shapes = set()
    with subprocess.Popen([sys.executable, "-c", GROW, str(path), str(segments), codecs]) as process:
        for _ in _snapshots(path, process):
            group = zarr.open_group(path / "embeddings.zarr", mode="r")
            sizes = {name: array.shape[0] for name, array in group.arrays()}
            assert len(set(sizes.values())) == 1, "arrays of one group differ in length"
            size = sizes["narrow"]
            assert size % 64 == 0 or size == rows
            table = ds.dataset(sorted((path / "table").glob("*.parquet"))).to_table() if size else None
            if table is not None:
                assert table["row"].to_pylist() == list(range(table.num_rows))
                assert table.num_rows >= size
                # The newest rows are those that could be missing.
                for start in (max(0, size - 64), 0):
                    ids = np.arange(start, min(start + 64, size))
                    assert np.array_equal(group["narrow"][start : start + 64][:, 0], ids + 1)  # type: ignore[index]
                    assert np.array_equal(group["wide"][start : start + 64][:, 1, 299], ids + 1)  # type: ignore[index]
                    assert table["id"].slice(start, len(ids)).to_pylist() == ids.tolist()
            shapes.add(size)
        assert process.returncode == 0
    assert max(shapes) == rows
    assert len(shapes) > 3, "the run was over before it was looked at"


def test_a_snapshot_stays_what_it_was(tmp_path: Path) -> None:
    """An array opened early can read the rows it had until the end of the run."""
    path = tmp_path / "run.zarrow"
    rows = np.arange(300, dtype=np.float32)[:, None] * np.ones((1, 4), np.float32)
    with zarrow.Writer(path, segment_rows=64) as writer:
        writer.append(None, {"e": rows[:130]})
        writer.flush(durable=True)
        early = zarr.open_group(path / "embeddings.zarr", mode="r")["e"]
        assert early.shape == (128, 4)  # type: ignore[union-attr]
        writer.append(None, {"e": rows[130:]})
        writer.finalize()
    assert np.array_equal(early[:], rows[:128])  # type: ignore[index]
    assert zarr.open_group(path / "embeddings.zarr", mode="r")["e"].shape == (300, 4)  # type: ignore[union-attr]
