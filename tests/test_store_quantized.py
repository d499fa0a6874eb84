"""Quantized arrays — written from floats, read as floats, in a quarter of the bytes, wherever arrays go."""

import copy
import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
import xarray as xr
import zarr
from typer.testing import CliRunner

import zarrow
import zarrow.analysis
import zarrow.testing
import zarrow.torch
import zarrow.transfer
from zarrow import cli
from zarrow.errors import BatchError, InvalidInputError, NotAStoreError, SchemaMismatchError, UnknownNameError

ROWS, SHAPE = 700, (3, 8)
EVERY_THIRD = np.arange(ROWS) % 3 == 0


def vectors(rows=ROWS, seed=0):
    """Return rows of very different lengths, one of them zero."""
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(rows, *SHAPE)) * rng.lognormal(size=(rows, 1, 1), sigma=3)
    made[rows // 2] = 0
    return made.astype(np.float32)


def write(path, values, *, finalize=True, **options):
    """Write rows in batches of 50, quantized and as they are."""
    options = {"dtypes": {"embed": "int8"}, "segment_rows": 128, "keys": ["id"]} | options
    with zarrow.Writer(path, **options) as writer:
        for start in range(0, len(values), 50):
            here = values[start : start + 50]
            writer.append({"id": np.arange(start, start + len(here))}, {"embed": here, "exact": here})
        writer.finalize() if finalize else writer.close()
    return zarrow.open(path, partial=not finalize)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write(tmp_path_factory.mktemp("quantized") / "run.zarrow", vectors())


def expected(store):
    """Return the values by the format document, from what stock readers find."""
    integers = zarr.open_group(store.path / "embeddings.zarr")["embed"][:]
    scales = pa.concat_tables(map(pq.read_table, sorted((store.path / "table").iterdir())))["embed_scale"]
    return integers * scales.to_numpy()[:, None, None]


def test_floats_come_back_within_half_a_step(store):
    """`store[name]` is float32, near what was written; `stored` are the integers, `scales` their steps."""
    array, values = store["embed"], vectors()
    assert (array.dtype, array.shape) == (np.float32, values.shape)
    assert (array.stored.dtype, array.stored.shape) == (np.int8, values.shape)
    assert (np.abs(array[:] - values) <= array.scales[:, None, None] * 0.500001).all()
    np.testing.assert_array_equal(array[:], expected(store))
    assert not array[ROWS // 2].any()
    assert array.stored_bytes <= 0.27 * store["exact"].stored_bytes


@pytest.mark.parametrize(
    "index",
    [3, -1, slice(9, 300), slice(None, None, 7), [600, 3, 3], (slice(5, 9), 1), (..., 2), EVERY_THIRD],
    ids=str,
)  # fmt: skip
def test_rows_are_indexed_as_numpy_would(store, index):
    """Every index gives what it gives of the whole array."""
    index = tuple(index) if isinstance(index, tuple) else index
    np.testing.assert_array_equal(store["embed"][index], expected(store)[index])


def test_every_way_out_has_the_same_floats(store, tmp_path):
    """take, join, read into memory, union, xarray, torch and copies of the array agree."""
    whole, rows = expected(store), np.array([650, 2, 130, 2])
    array = store["embed"]
    np.testing.assert_array_equal(store.take(rows, arrays=["embed"])[1]["embed"], whole[rows])
    joined = np.concatenate([found["embed"] for _, found in store.join(arrays=["embed"], batch_size=60)])
    np.testing.assert_array_equal(joined, whole)
    out = np.empty((4, *SHAPE), np.float32)
    assert array.take(rows, out=out, check="crc") is out
    np.testing.assert_array_equal(out, whole[rows])
    np.testing.assert_array_equal(array.read(120, 124, out=out, check="crc"), whole[120:124])
    both = zarrow.union({"a": store, "b": store})["embed"]
    np.testing.assert_array_equal(both[690:710], np.concatenate([whole[690:], whole[:10]]))
    np.testing.assert_array_equal(np.asarray(array, np.float64), whole.astype(np.float64))
    np.testing.assert_array_equal(copy.deepcopy(array)[rows], whole[rows])
    np.testing.assert_array_equal(copy.deepcopy(array.stored)[rows], array.stored[rows])
    with xr.open_dataset(store.path, engine="zarrow", chunks={}) as dataset:
        np.testing.assert_array_equal(dataset["embed"].values, whole)
        np.testing.assert_array_equal(dataset["embed_scale"].values, array.scales)
    found = zarrow.torch.StoreDataset(store).__getitems__(list(rows)).batch
    assert found["embed"].dtype == torch.float32
    np.testing.assert_array_equal(found["embed"], whole[rows])
    with pytest.raises(ValueError, match="quantized and cannot be returned without a copy"):
        np.array(array, copy=False)


@pytest.mark.parametrize("format", ["parquet", "npy", "safetensors"])
def test_exports_have_floats(store, tmp_path, format):
    """An export has the values, and the scales as a column."""
    out = tmp_path / "out"
    zarrow.transfer.export(store, out, format)
    if format == "parquet":
        files = [out] if out.is_file() else sorted(out.rglob("*.parquet"))
        table = pa.concat_tables(map(pq.read_table, files))
        found = table["embed"].combine_chunks().to_numpy_ndarray()
    elif format == "npy":
        found = np.load(next(iter(tmp_path.rglob("embed_0.npy"))))
    else:
        files = [out] if out.is_file() else sorted(out.rglob("*.safetensors"))
        found = np.concatenate([safetensors.numpy.load_file(one)["embed"] for one in files])
    np.testing.assert_array_equal(found, expected(store))


def test_analysis_takes_the_floats(store):
    """nearest finds by the values that are read, and probe runs on them."""
    found = zarrow.analysis.nearest(store, [5, 200], array="embed", k=5, metric="l2")
    whole = expected(store).reshape(ROWS, -1)
    distances = np.linalg.norm(whole[[5, 200], None] - whole, axis=2)
    np.testing.assert_array_equal(found.rows, np.argsort(distances, axis=1, kind="stable")[:, :5])
    exact = zarrow.analysis.nearest(store, [5, 200], array="exact", k=5, metric="l2")
    assert [*map(set, found.rows.tolist())] == [*map(set, exact.rows.tolist())]
    probes = [zarrow.analysis.probe(store, "id", array=name, seed=1) for name in ("embed", "exact")]
    assert probes[0].test_rows.tolist() == probes[1].test_rows.tolist()
    np.testing.assert_allclose(probes[0].overall["rmse"], probes[1].overall["rmse"], rtol=0.02)
    assert probes[0].overall["rmse"] != probes[1].overall["rmse"]


def test_live_rows_are_read_with_their_scales(tmp_path):
    """Rows that are accepted but not committed are read as the others, and after a resumed run, too."""
    values = vectors()
    with write(tmp_path / "run.zarrow", values[:300], finalize=False) as found:
        assert found.num_rows == 300
        assert (np.abs(found["embed"][:] - values[:300]) <= found["embed"].scales[:, None, None] * 0.51).all()
        np.testing.assert_array_equal(found["embed"][[299, 0]], found["embed"][:][[299, 0]])
    with zarrow.Writer(tmp_path / "run.zarrow", mode="a", dtypes={"embed": "int8"}) as writer:
        writer.append({"id": np.arange(300, ROWS)}, {"embed": values[300:], "exact": values[300:]})
        writer.finalize()
    whole = write(tmp_path / "whole.zarrow", values)
    with zarrow.open(tmp_path / "run.zarrow") as found:
        np.testing.assert_array_equal(found["embed"][:], whole["embed"][:])
    assert zarrow.verify(tmp_path / "run.zarrow", "full").findings == ()


@pytest.mark.parametrize("codecs", [None, "zstd"])
def test_integers_and_scales_may_be_given(store, tmp_path, codecs):
    """A caller that quantizes appends integers and scales, which are stored as they are."""
    array = store["embed"]
    path = tmp_path / "run.zarrow"
    with zarrow.Writer(
        path, arrays={"embed": (SHAPE, "int8")}, dtypes={"embed": "int8"}, codecs=codecs
    ) as writer:
        writer.append({"id": np.arange(ROWS), "embed_scale": array.scales}, {"embed": array.stored[:]})
        writer.append({"id": [ROWS]}, {"embed": vectors()[:1].astype(np.float64)})
        writer.finalize()
    with zarrow.open(path) as found:
        np.testing.assert_array_equal(found["embed"][:], array[[*range(ROWS), 0]])


def test_bfloat16_and_widest_and_narrowest(tmp_path):
    """Any float is quantized: bfloat16, float64, one value a row, 8192 values a row, no rows."""
    for place, given in enumerate(
        [
            torch.randn(5, 4).bfloat16(),
            vectors(3).reshape(-1, 1),
            vectors(700).reshape(2, -1),
            np.empty((0, 3)),
        ]
    ):
        path = tmp_path / f"{place}.zarrow"
        with zarrow.Writer(path, dtypes={"e": "int8"}) as writer:
            writer.append({"id": np.arange(len(given))}, {"e": given})
            writer.finalize()
        wide = np.asarray(given.float() if place == 0 else given, np.float32)
        found = zarrow.open(path)["e"]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found[:], wide, atol=np.abs(wide).max(initial=0) / 250)


E5 = np.ones((5, 4), np.float32)
BAD = np.where(np.arange(20).reshape(5, 4) == 13, np.nan, E5)


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        ({}, BAD, "batch 1: array 'e': row 3 of the batch has nan, which cannot be quantized to int8"),
        ({}, np.where(np.isnan(BAD), np.inf, BAD), "row 3 of the batch has inf"),
        ({}, E5.astype(np.int64), "array 'e': expected dtype int8, got int64"),
        ({}, E5.astype(np.int8), "given as floats, or as int8 with the column 'e_scale', got int8 without"),
        ({"e_scale": np.ones(5, np.float32)}, E5, "got floats and that column"),
        ({"e_scale": np.array([1, 1, -1, 1, 1], np.float32)}, E5.astype(np.int8), "got -1.0 in row 2"),
        ({"e_scale": np.array([1, 1, 1, np.inf, 1], np.float32)}, E5.astype(np.int8), "got inf in row 3"),
        ({"e_scale": np.array([1, np.nan, 1, 1, 1], np.float32)}, E5.astype(np.int8), "got nan in row 1"),
        ({"e_scale": np.array([1, 0, 1, 1, 1], np.float32)}, E5.astype(np.int8), "got 0.0 in row 1"),
        ({"e_scale": np.ones(4, np.float32)}, E5.astype(np.int8), "must have one length"),
        ({"e_scale": np.ones(5)}, E5.astype(np.int8), "column 'e_scale': expected float, got double"),
        ({}, E5[:, :3], "expected shape (rows, 4), got (5, 3)"),
    ],
)
def test_a_bad_batch_is_refused_and_nothing_of_it_is_written(tmp_path, columns, given, message):
    """What cannot be quantized is named with batch, array and row; the rows before it stay."""
    with zarrow.Writer(tmp_path / "run.zarrow", dtypes={"e": "int8"}) as writer:
        writer.append({"id": range(5)}, {"e": E5})
        with pytest.raises(BatchError, match=re.escape(message)):
            writer.append({"id": range(5), **columns}, {"e": given})
        writer.finalize()
    assert zarrow.open(tmp_path / "run.zarrow").num_rows == 5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtypes": {"e": "float16"}}, InvalidInputError, "'e' can only be quantized to int8, got float16"),
        ({"dtypes": {"f": "int8"}}, InvalidInputError, "there is no array 'f'; the arrays are ['e']"),
        ({"dtypes": {"e": "int8"}, "arrays": {"e": ((4,), "int32")}}, InvalidInputError, "got int32: cast"),
        (
            {"dtypes": {"e": "int8"}, "schema": pa.schema({"id": pa.int64(), "e_scale": pa.int8()})},
            InvalidInputError,
            "are a column 'e_scale' of float, not nullable and no key, got int8",
        ),
        (
            {"dtypes": {"e": "int8"}, "keys": ["e_scale"]},
            InvalidInputError,
            "no key",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_declared_is_refused(tmp_path, options, error, message):
    """A dtype, array or column that quantization cannot use is named."""
    with (
        pytest.raises(error, match=re.escape(message)),
        zarrow.Writer(tmp_path / "a.zarrow", **options) as one,
    ):
        one.append({"id": range(5)}, {"e": E5})
    assert not (tmp_path / "a.zarrow/zarrow.json").exists()


def test_a_store_is_not_taken_for_another_kind(store, tmp_path):
    """A run that declares floats does not go on in a quantized store, nor the reverse."""
    shutil.copytree(store.path, path := tmp_path / "run.zarrow")
    arrays = {"embed": (SHAPE, "float32"), "exact": (SHAPE, "float32")}
    with pytest.raises(SchemaMismatchError, match="quantized int8"):
        zarrow.Writer(path, mode="a", arrays=arrays)
    with pytest.raises(SchemaMismatchError, match=r"dtypes: the store has \{'exact': 'float32'\}"):
        zarrow.Writer(path, mode="a", dtypes={"exact": "int8"})
    zarrow.Writer(path, mode="a", arrays=arrays, dtypes={"embed": "int8"}).close()


def test_readers_that_do_not_know_quantized_arrays_refuse(store, tmp_path, monkeypatch):
    """The store says that a reader must know them, so an older one does not show integers as values."""
    assert json.loads((store.path / "zarrow.json").read_text())["reader_features"] == ["quantized"]
    monkeypatch.setattr("zarrow._format.spec.READER_FEATURES", ())
    with pytest.raises(NotAStoreError, match="quantized"):
        zarrow.open(store.path)


def test_pack_keeps_every_integer(store, tmp_path):
    """Whatever else pack changes, integers and scales stay as they are, in place and sorted."""
    path, order = tmp_path / "packed.zarrow", np.arange(ROWS)[::-1]
    shutil.copytree(store.path, path)
    zarrow.pack(path, codecs="zstd", segment_rows=256)
    with zarrow.open(path) as found:
        np.testing.assert_array_equal(found["embed"].stored[:], store["embed"].stored[:])
        np.testing.assert_array_equal(found["embed"].scales, store["embed"].scales)
    scales = store["embed"].scales
    zarrow.pack(path, order="embed_scale")
    with zarrow.open(path) as found:
        order = np.argsort(scales, kind="stable")
        np.testing.assert_array_equal(found["embed"].stored[:], store["embed"].stored[:][order])


def test_pack_quantizes_and_takes_it_back(store, tmp_path):
    """Floats become what a quantizing writer writes; taken back, they are the values that were read."""
    path = tmp_path / "run.zarrow"
    zarrow.pack(store.path, path, dtypes={"embed": "float32", "exact": "int8"})
    with zarrow.open(path) as found:
        np.testing.assert_array_equal(found["embed"][:], store["embed"][:])
        np.testing.assert_array_equal(found["exact"][:], store["embed"][:])
        assert "embed_scale" not in found.schema.names
        size = (path / "embeddings.zarr").stat().st_mtime_ns
    zarrow.pack(path, dtypes={"exact": "int8"})
    assert (path / "embeddings.zarr").stat().st_mtime_ns == size  # nothing to do
    with pytest.raises(InvalidInputError, match=r"array 'embed': float16 cannot hold .* of row"):
        zarrow.pack(path, dtypes={"embed": "float16"})
    with pytest.raises(UnknownNameError, match="no array 'other'"):
        zarrow.pack(path, dtypes={"other": "int8"})
    with pytest.raises(InvalidInputError, match="or int8, got uint8"):
        zarrow.pack(path, dtypes={"embed": "uint8"})
    assert zarrow.verify(path, "full").findings == ()


def test_the_command_measures_what_quantizing_changes(tmp_path):
    """pack --dtypes prints errors and recall of the rows, and leaves a quantized store."""
    shutil.copytree(zarrow.testing.example_store().path, path := tmp_path / "run.zarrow")
    measured = zarrow.analysis.quantization_error(zarrow.open(path))
    done = CliRunner().invoke(cli.app, ["pack", str(path), "--dtypes", "query_embed=int8"])
    assert done.exit_code == 0, done.output
    assert f"recall@10         {measured.recall_at_10:.3f}" in done.output
    assert "5,000 rows" in done.output
    assert zarrow.open(path)["query_embed"].stored.dtype == np.int8
    wrong = CliRunner().invoke(cli.app, ["pack", str(path), "--dtypes", "query_embed"])
    assert wrong.exit_code == 2
    assert "NAME=DTYPE" in wrong.output


def test_measures_are_those_of_the_rows_read_back(store):
    """The measured error is what a store of the quantized values has."""
    found = zarrow.analysis.quantization_error(store, "exact")
    values, back = vectors().reshape(ROWS, -1), expected(store).reshape(ROWS, -1)
    assert found.rows == ROWS
    assert found.max_error == pytest.approx(np.abs(values - back).max())
    assert 0.97 < found.recall_at_10 < 1
    assert 0.999 < found.min_cosine <= found.mean_cosine <= 1
    same = zarrow.analysis.quantization_error(store, "embed")
    assert (same.relative_error < 1e-6, same.recall_at_10) == (True, 1.0)
    with pytest.raises(InvalidInputError, match="dtype"):
        zarrow.analysis.quantization_error(store, "exact", dtype="int4")


def test_verify_finds_a_scale_that_is_none(tmp_path, monkeypatch):
    """A scale that is not finite, which a faulty writer wrote, is found by a full audit."""
    faulty = lambda rows: (rows.astype(np.int8), rows[:, 0] * np.inf)  # noqa: E731
    monkeypatch.setattr("zarrow._write.batches.quantize", faulty)
    with zarrow.Writer(tmp_path / "a.zarrow", dtypes={"e": "int8"}) as writer:
        writer.append({"id": range(5)}, {"e": E5})
        writer.finalize()
    assert zarrow.verify(tmp_path / "a.zarrow").ok
    (finding,) = zarrow.verify(tmp_path / "a.zarrow", "full").findings
    assert "'e_scale' has a scale that is not finite" in finding.message
