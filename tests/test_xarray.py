"""xarray backend — compared with the same dataset in memory."""

import datetime
import json
import os
import pickle
import subprocess
import sys

import dask
import numpy as np
import pyarrow as pa
import pytest
import xarray as xr

import zarrow
from zarrow.errors import (
    IncompleteStoreError,
    InvalidInputError,
    StoreChangedError,
    StoreNotFoundError,
    UnknownNameError,
)

ROWS, SEGMENT_ROWS, HIDDEN = 2500, 512, 16
KEYS = ["id", "query"]


def frame(start, stop):
    """The rows of a synthetic run: table, arrays, and the variables expected from xarray."""
    row = np.arange(start, stop)
    missing = row % 7 == 0
    utc = np.datetime64("2026-01-01", "us") + row * np.timedelta64(1, "h")
    table = pa.table(
        {
            "id": row + 2**60,
            "query": pa.array([f"code//{number % 10}" for number in row]).dictionary_encode(),
            "prob": (row * 7919 % 1000 / 1000).astype(np.float32),
            "label": pa.array(row % 2 == 0, mask=missing),
            "count": pa.array(row % 100, pa.int16(), mask=missing),
            "time": pa.array(utc, pa.timestamp("us", "UTC")),
            "note": pa.array([None if gone else f"note {n}" for n, gone in zip(row, missing, strict=True)]),
            "codes": pa.array([[1, 2], [3, 4]] * (len(row) // 2), pa.list_(pa.int64())),
        }
    )
    lists = np.empty(len(row), object)
    for number in range(len(row)):
        lists[number] = [1, 2] if number % 2 == 0 else [3, 4]
    columns = {
        "id": row + 2**60,
        "query": np.array([f"code//{number % 10}" for number in row], object),
        "prob": table["prob"].to_numpy(),
        "label": np.where(missing, np.nan, row % 2 == 0).astype(np.float32),
        "count": np.where(missing, np.nan, row % 100).astype(np.float32),
        "time": utc,
        "note": np.array(table["note"].to_pylist(), object),
        "codes": lists,
        "sample_index": ROWS - row,
    }
    vectors = (row[:, None] + np.arange(HIDDEN) / HIDDEN).astype(np.float32)
    return table, {"embed": vectors, "layers": vectors.reshape(-1, 2, 8).astype(np.float16)}, columns


def write(path, *, finalize=True, rows=ROWS, **options):
    with zarrow.Writer(path, keys=KEYS, segment_rows=SEGMENT_ROWS, **options) as writer:
        for start in range(0, rows, 500):
            table, arrays, columns = frame(start, min(start + 500, rows))
            writer.append(table, arrays, sample_index=columns["sample_index"])
        if finalize:
            writer.finalize()


def same(ours, theirs):
    """Compare datasets; xarray compares no lists, and no objects that are missing in a dask array."""
    if "row" in theirs.dims:
        assert list(ours.codes.values) == list(theirs.codes.values)
    xr.testing.assert_equal(ours.drop_vars("codes").load(), theirs.drop_vars("codes"))


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    found = tmp_path_factory.mktemp("zstd") / "run.zarrow"
    write(found, codecs="zstd")
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    found = tmp_path_factory.mktemp("plain") / "run.zarrow"
    write(found)
    return found


@pytest.fixture(scope="module")
def truth():
    _, arrays, columns = frame(0, ROWS)
    variables = {name: ("row", values) for name, values in columns.items()}
    variables["embed"] = (("row", "embed_dim"), arrays["embed"])
    variables["layers"] = (("row", "layers_dim0", "layers_dim1"), arrays["layers"])
    return xr.Dataset(variables).set_coords(KEYS)


@pytest.fixture(params=["numpy", "dask", "zstd"])
def dataset(request, plain, compressed):
    path = compressed if request.param == "zstd" else plain
    with xr.open_dataset(path, chunks={} if request.param == "dask" else None) as found:
        yield found


class TestWhatThereIs:
    def test_a_dataset_equals_the_same_in_memory(self, dataset, truth):
        """Every array and column is there, with the values, dtypes and dimensions that were written."""
        same(dataset, truth)
        assert {name: v.dtype for name, v in dataset.variables.items()} == {
            name: v.dtype for name, v in truth.variables.items()
        }

    def test_xarray_takes_the_engine_by_itself(self, plain, monkeypatch):
        """A store is recognised by its content, given as str or Path and under any name."""
        assert xr.open_dataset(str(plain) + "/").sizes["row"] == ROWS
        link = plain.parent / "other-name"
        os.symlink(plain, link)
        assert xr.open_dataset(link).sizes["row"] == ROWS
        assert xr.open_dataset(plain, engine="zarrow").sizes["row"] == ROWS
        monkeypatch.chdir(plain.parent)
        assert xr.open_dataset("run.zarrow").sizes["row"] == ROWS

    def test_identifiers_are_coordinates_without_an_index(self, dataset):
        """The key columns are coordinates of every array, and none is loaded for an index."""
        assert set(dataset.embed.coords) == set(KEYS)
        assert not dataset.xindexes
        assert "row" not in dataset.variables

    def test_a_dataset_is_written_as_netcdf(self, plain, tmp_path):
        """What is opened is written as netCDF, also by the engine that xarray has without another library."""
        rows = xr.open_dataset(plain)[["embed", "time"]].reset_coords(drop=True).isel(row=slice(5)).load()
        rows.to_netcdf(tmp_path / "rows.nc", engine="scipy")
        again = xr.open_dataset(tmp_path / "rows.nc", engine="scipy")
        assert again.attrs == rows.attrs
        assert np.array_equal(again.embed, rows.embed)

    def test_attributes_say_where_the_rows_come_from(self, plain):
        """The store's identity, keys and provenance are attributes, and so is a time zone."""
        dataset, store = xr.open_dataset(plain), zarrow.open(plain)
        assert dataset.attrs["zarrow_uuid"] == store.uuid
        assert json.loads(dataset.attrs["zarrow_keys"]) == KEYS
        assert store.provenance["zarrow"] in dataset.attrs["provenance"]
        assert dataset.time.attrs == {"timezone": "UTC"}

    def test_nothing_is_read_at_opening(self, plain, tmp_path):
        """A dataset opens and prints even if all files with rows are gone."""
        copy = tmp_path / "run.zarrow"
        write(copy, rows=4 * SEGMENT_ROWS)
        for file in [*copy.glob("table/*.parquet"), *copy.glob("embeddings.zarr/*/c/**/*")]:
            if file.is_file():
                file.unlink()
        dataset = xr.open_dataset(copy, chunks={})
        assert "embed" in repr(dataset)
        assert dataset.sizes["row"] == 4 * SEGMENT_ROWS
        with pytest.raises(zarrow.errors.CorruptionError, match="segment 0"):
            dataset.prob[:10].load()

    def test_plain_vectors_are_the_mapped_files(self, plain):
        """Vectors of plain bytes are handed to numpy without a copy."""
        store = zarrow.open(plain)
        values = xr.open_dataset(plain).embed.values
        assert not values.flags.owndata
        assert not values.flags.writeable
        np.testing.assert_array_equal(values, store["embed"][:])

    def test_a_loaded_column_can_be_changed(self, plain):
        """Loaded columns can be written to."""
        prob = xr.open_dataset(plain).prob.load()
        prob[0] = 5
        assert prob[0] == 5

    def test_dropped_variables_are_not_there(self, plain):
        """drop_variables leaves columns and arrays out, keys included, and ignores other names."""
        dataset = xr.open_dataset(plain, drop_variables=["embed", "id", "nothing"])
        assert set(dataset.variables) == {
            "query", "prob", "label", "count", "time", "note", "codes", "sample_index", "layers",
        }  # fmt: skip
        assert "prob" not in xr.open_dataset(plain, drop_variables="prob")

    @pytest.mark.parametrize(
        "option", ["decode_times", "mask_and_scale", "decode_coords", "use_cftime", "decode_cf"]
    )
    def test_options_that_decode_find_nothing_to_do(self, plain, option):
        """Options that callers pass for any format change nothing: values are stored as what they are."""
        with xr.open_dataset(plain) as expected, xr.open_dataset(plain, **{option: False}) as found:
            assert found.drop_vars("codes").load().identical(expected.drop_vars("codes").load())

    def test_a_store_without_rows(self, tmp_path):
        """A store without rows is a dataset without rows, with dask too."""
        schema = pa.schema({"id": pa.int64()})
        with zarrow.Writer(tmp_path / "s", schema=schema, arrays={"embed": ((4,), "float32")}) as writer:
            writer.finalize()
        for chunks in (None, {}):
            dataset = xr.open_dataset(tmp_path / "s", chunks=chunks).load()
            assert dict(dataset.sizes) == {"row": 0, "embed_dim": 4}


class TestNulls:
    def test_a_fill_value_keeps_the_dtype(self, plain, truth):
        """fill_values replaces nulls, and the column keeps its dtype."""
        dataset = xr.open_dataset(plain, fill_values={"label": False, "count": -1, "note": "?"})
        assert (dataset.label.dtype, dataset["count"].dtype) == (np.bool_, np.int16)
        np.testing.assert_array_equal(dataset["count"], truth["count"].fillna(-1))
        assert dataset.note.values[:2].tolist() == ["?", "note 1"]

    def test_rows_without_a_sample_index_have_minus_one(self, tmp_path):
        """A store without sample_index values loads, with −1 for them."""
        with zarrow.Writer(tmp_path / "s") as writer:
            writer.append({"id": [1, 2]})
            writer.finalize()
        assert xr.open_dataset(tmp_path / "s").sample_index.values.tolist() == [-1, -1]

    def test_big_integers_are_refused_rather_than_rounded(self, tmp_path):
        """A nullable integer that a float cannot represent is an error with a remedy."""
        with zarrow.Writer(tmp_path / "s") as writer:
            writer.append(pa.table({"n": [None, 2**60 + 1]}))
            writer.finalize()
        with pytest.raises(InvalidInputError, match=r"'n'.*2\*\*53.*fill_values=\{'n': 0\}"):
            xr.open_dataset(tmp_path / "s").n.load()
        filled = xr.open_dataset(tmp_path / "s", fill_values={"n": 0})
        assert filled.n.values.tolist() == [0, 2**60 + 1]

    def test_other_types(self, tmp_path):
        """Dates, durations, binary, floats and structs come out as xarray's users expect them."""
        day = datetime.date(2026, 5, 17)
        table = pa.table(
            {
                "day": pa.array([day, None]),
                "ms": pa.array([day, None], pa.date64()),
                "naive": pa.array([datetime.datetime(2026, 5, 17), None], pa.timestamp("ns")),
                "wait": pa.array([datetime.timedelta(seconds=3), None], pa.duration("ms")),
                "raw": pa.array([b"ab", None]),
                "half": pa.array(np.array([1.5, 2.5], np.float16)),
                "single": pa.array([1.5, None], pa.float32()),
                "big": pa.array([1, 2], pa.uint64()),
                "pair": pa.array([{"a": 1}, None]),
            }
        )
        with zarrow.Writer(tmp_path / "s") as writer:
            writer.append(table)
            writer.finalize()
        found = xr.open_dataset(tmp_path / "s").load()
        for name, unit in (("day", "s"), ("ms", "s"), ("naive", "ns")):
            assert found[name].dtype == np.dtype(f"datetime64[{unit}]"), name
            assert found[name].values[0] == np.datetime64(day), name
            assert np.isnat(found[name].values[1]), name
        assert found.wait.values[0] == np.timedelta64(3, "s")
        assert found.raw.values.tolist() == [b"ab", None]
        assert (found.half.dtype, found.single.dtype, found.big.dtype) == (np.float16, np.float32, np.float64)
        assert np.isnan(found.single.values[1])
        assert found.pair.values.tolist() == [{"a": 1}, None]

    @pytest.mark.parametrize(
        ("fill_values", "error", "match"),
        [
            ({"counts": 1}, UnknownNameError, "did you mean 'count'"),
            ({"count": "many"}, InvalidInputError, "'count' must be a int16"),
            ({"count": 10**9}, InvalidInputError, "'count'"),
        ],
    )
    def test_a_wrong_fill_value_is_named_at_opening(self, plain, fill_values, error, match):
        """A fill value for an unknown column or of a wrong type is refused with a remedy."""
        with pytest.raises(error, match=match):
            xr.open_dataset(plain, fill_values=fill_values)


SELECTIONS = {
    "int": 7,
    "negative": -3,
    "slice": slice(400, 1100),
    "steps": slice(10, 2000, 13),
    "backwards": slice(2000, 10, -7),
    "empty": slice(5, 5),
    "array": np.array([2000, 3, 3, -1]),
    "mask": np.arange(ROWS) % 11 == 0,
    "none": np.array([], int),
}


class TestSelections:
    @pytest.mark.parametrize("rows", SELECTIONS.values(), ids=SELECTIONS)
    def test_rows(self, dataset, truth, rows):
        """Rows are selected by number, slice, array and mask as in memory."""
        same(dataset.isel(row=rows), truth.isel(row=rows))

    def test_other_axes(self, dataset, truth):
        """Axes of a row are selected too, alone and together with rows."""
        for picks in (
            {"embed_dim": 3},
            {"embed_dim": [5, 1], "row": slice(0, 2000, 3)},
            {"layers_dim1": slice(None, None, -2), "layers_dim0": 1, "row": [4, 2]},
            {"layers_dim0": [1, 0], "layers_dim1": [7, 0, 7]},
        ):
            same(dataset.isel(picks), truth.isel(picks))
        same(
            dataset.isel(row=slice(100, 1500)).isel(row=[5, 2]),
            truth.isel(row=slice(100, 1500)).isel(row=[5, 2]),
        )

    def test_points(self, dataset, truth):
        """Several axes are indexed point by point."""
        rows = xr.DataArray([2000, 3, 7], dims="point")
        axes = xr.DataArray([0, 5, 2], dims="point")
        picked = {"row": rows, "embed_dim": axes}
        xr.testing.assert_equal(dataset.embed.isel(picked), truth.embed.isel(picked))

    def test_out_of_range(self, plain):
        """A row out of range raises numpy's error."""
        with pytest.raises(IndexError):
            xr.open_dataset(plain).embed.isel(row=ROWS).load()

    def test_random_selections(self, plain, truth):
        """Any chain of selections from any variable gives the same as in memory."""
        rng = np.random.default_rng(0)
        dataset = xr.open_dataset(plain)
        for _ in range(40):
            ours, theirs = dataset, truth
            for _ in range(rng.integers(1, 3)):
                size = ours.sizes["row"]
                low, high = sorted(rng.integers(0, size + 1, 2).tolist())
                numbers = rng.integers(-size, size, rng.integers(1, 30)) if size else np.array([], int)
                step = int(rng.choice([-3, -1, 1, 2, 700]))
                chosen = [slice(low, high), slice(None, None, step), numbers][rng.integers(3)]
                axes = rng.integers(0, HIDDEN, 3) if ours.sizes["embed_dim"] == HIDDEN else [0]
                ours, theirs = (d.isel(row=chosen, embed_dim=axes) for d in (ours, theirs))
            xr.testing.assert_equal(ours[["embed", "prob", "note"]], theirs[["embed", "prob", "note"]])

    def test_a_single_list(self, dataset):
        """The list in a single row stays one value."""
        assert dataset.codes.isel(row=0).load().values[()] == [1, 2]


class TestComputing:
    def test_reductions(self, dataset, truth):
        """Sums, means, extremes and spreads over any axis are the same as in memory."""
        for reduce in ("mean", "sum", "max", "std", "count"):
            for dim in ("row", "embed_dim", None):
                ours, theirs = (getattr(d.embed, reduce)(dim) for d in (dataset, truth))
                xr.testing.assert_allclose(ours.drop_vars(KEYS, errors="ignore"),
                                           theirs.drop_vars(KEYS, errors="ignore"), rtol=1e-3)  # fmt: skip
        for name in ("label", "count", "prob"):
            xr.testing.assert_allclose(dataset[name].mean(), truth[name].mean())

    def test_where(self, dataset, truth):
        """The mean vector of rows selected by a column is the same as in memory."""
        ours, theirs = (d.embed.where(d.prob > 0.9).mean("row") for d in (dataset, truth))
        xr.testing.assert_allclose(ours, theirs, rtol=1e-3)
        ours, theirs = (d.layers.where(d.label == 1).max("row") for d in (dataset, truth))
        xr.testing.assert_allclose(ours, theirs)

    def test_means_skip_nan(self, tmp_path):
        """NaNs and infinities in vectors are treated as numpy's nanmean and nansum treat them."""
        vectors = np.arange(32, dtype=np.float32).reshape(8, 4)
        vectors[2, 1] = np.nan
        vectors[3, 2] = np.inf
        with zarrow.Writer(tmp_path / "s") as writer:
            writer.append({"id": range(8)}, {"embed": vectors})
            writer.finalize()
        embed = xr.open_dataset(tmp_path / "s").embed
        for dim, axis in (("row", 0), ("embed_dim", 1), (None, None)):
            np.testing.assert_array_equal(embed.mean(dim), np.nanmean(vectors, axis))
            np.testing.assert_array_equal(embed.sum(dim), np.nansum(vectors, axis))
        assert np.isnan(embed.mean("row", skipna=False)[1])

    def test_groups(self, dataset, truth):
        """Rows are grouped by a key."""
        ours, theirs = (d[["prob"]].load().groupby("query").mean() for d in (dataset, truth))
        xr.testing.assert_allclose(ours.drop_vars("id", errors="ignore"), theirs)

    def test_two_stores_are_concatenated(self, plain, truth):
        """Datasets of several stores can be concatenated."""
        both = xr.concat([xr.open_dataset(plain), xr.open_dataset(plain)], "row")
        xr.testing.assert_equal(both, xr.concat([truth, truth], "row"))


class TestKeys:
    @pytest.fixture(params=[None, {}])
    def keyed(self, plain, request):
        zarrow.build_index(plain)
        return xr.open_dataset(plain, key_index=True, chunks=request.param)

    def test_one_key(self, keyed, truth):
        """A key is one row: scalars, and vectors without the dimension of rows."""
        found = keyed.sel(id=int(truth.id[700]), query=str(truth["query"].values[700]))
        xr.testing.assert_equal(found.drop_vars("codes").load(), truth.isel(row=700).drop_vars("codes"))
        assert found.embed.dims == ("embed_dim",)
        assert not found.xindexes

    def test_several_keys(self, keyed, truth):
        """Parallel lists of keys give rows in order, with repetitions; a single value applies to all."""
        rows = [2000, 3, 3, 1024]
        asked = truth.isel(row=rows)
        found = keyed.sel(id=asked.id.values, query=list(asked["query"].values))
        same(found, asked)
        one = keyed.sel(id=truth.id.values[[5, 5]], query=str(truth["query"].values[5]))
        same(one, truth.isel(row=[5, 5]))

    def test_labels_with_dimensions(self, keyed, truth):
        """Labels that are DataArrays give the result their shape."""
        rows = xr.DataArray(np.arange(12).reshape(3, 4), dims=("patient", "visit"))
        found = keyed.prob.sel(
            id=xr.DataArray(truth.id.values[rows], dims=rows.dims),
            query=xr.DataArray(truth["query"].values[rows], dims=rows.dims),
        )
        assert found.dims == ("patient", "visit")
        np.testing.assert_array_equal(found.values, truth.prob.values[rows])

    def test_a_missing_key(self, keyed):
        """A missing key is a KeyError that names it."""
        with pytest.raises(KeyError, match=r"id=-7, query='none'"):
            keyed.sel(id=-7, query="none")
        with pytest.raises(KeyError, match="1 of 2 keys"):
            keyed.sel(id=[int(keyed.id[0]), -7], query=str(keyed["query"].values[0]))

    @pytest.mark.parametrize(
        ("labels", "options", "match"),
        [
            ({"id": 1}, {}, r"missing \['query'\]"),
            ({"id": slice(1, 3), "query": "a"}, {}, "keys have no order"),
            ({"id": [1, 2], "query": ["a", "b", "c"]}, {}, "as many values each"),
            ({"id": [[1, 2]], "query": "a"}, {}, "one value or a list"),
            ({"id": "one", "query": "a"}, {}, "id"),
            ({"id": 1, "query": "a"}, {"method": "nearest"}, "no method"),
        ],
    )
    def test_what_is_no_key(self, keyed, labels, options, match):
        """Selections that cannot name a row are refused with a reason."""
        with pytest.raises(ValueError, match=match):
            keyed.sel(labels, **options)

    def test_the_index_is_on_disk(self, plain, monkeypatch):
        """Neither look-ups nor opening read a key column."""
        zarrow.build_index(plain)
        monkeypatch.setattr("zarrow._read.columns.NarrowColumns.batches", None)
        dataset = xr.open_dataset(plain, key_index=True)
        assert dataset.sel(
            id=int(zarrow.open(plain).take([9], ["id"], [])[0]["id"][0].as_py()),
            query=str(dataset["query"].values[9]),
        ).sizes

    def test_worker_processes_look_up(self, keyed, truth):
        """A dask worker process finds rows by key in the dataset it was sent."""
        found = pickle.loads(pickle.dumps(keyed)).sel(id=truth.id.values[:3], query=truth["query"].values[:3])
        same(found, truth.isel(row=slice(3)))
        keys = {"id": truth.id.values[:600], "query": truth["query"].values[:600]}
        task = dask.delayed(lambda dataset: dataset.embed.sel(keys).mean("row").values)
        with dask.config.set(scheduler="processes", num_workers=1):
            mean = task(keyed).compute()
        np.testing.assert_allclose(mean, truth.embed[:600].mean("row"), rtol=1e-3)

    def test_what_goes_on_working(self, keyed, plain, truth):
        """With the index, datasets of one store align; renamed keys are found; selections have none."""
        again = xr.open_dataset(plain, key_index=True)
        np.testing.assert_array_equal((keyed.prob - again.prob).values, np.zeros(ROWS))
        renamed = keyed.rename(id="patient")
        key = {"patient": int(truth.id[3]), "query": str(truth["query"].values[3])}
        assert renamed.sel(key).prob == truth.prob[3]
        assert not keyed.isel(row=slice(5)).xindexes
        assert set(keyed.isel(embed_dim=0).xindexes) == set(KEYS)
        assert "KeyIndex" in repr(keyed.xindexes)

    def test_two_stores(self, keyed, plain):
        """An index belongs to one store: concatenation is refused with a remedy."""
        with pytest.raises(ValueError, match="without key_index"):
            xr.concat([keyed, keyed], "row")

    def test_without_keys(self, plain, tmp_path):
        """Without key columns key_index is refused."""
        with pytest.raises(InvalidInputError, match="keep these variables"):
            xr.open_dataset(plain, key_index=True, drop_variables="id")
        with zarrow.Writer(tmp_path / "s.zarrow") as writer:
            writer.append({"id": [1]})
            writer.finalize()
        with pytest.raises(InvalidInputError, match="the store has none"):
            xr.open_dataset(tmp_path / "s.zarrow", key_index=True)


class TestElsewhere:
    def test_dask_chunks_are_segments(self, plain):
        """chunks={} has one dask chunk per segment in every variable, and rows are whole."""
        dataset = xr.open_dataset(plain, chunks={})
        assert dataset.chunks["row"] == (512, 512, 512, 512, 452)
        assert dataset.chunks["embed_dim"] == (HIDDEN,)

    def test_a_dataset_is_pickled(self, dataset, truth):
        """An unpickled dataset shows the same rows."""
        same(pickle.loads(pickle.dumps(dataset)), truth)

    def test_a_pickle_of_another_store_is_refused(self, tmp_path):
        """A dataset whose store has changed raises an error instead of showing other rows."""
        path = tmp_path / "run.zarrow"
        write(path, rows=1000)
        pickled = pickle.dumps(xr.open_dataset(path))
        os.rename(path, tmp_path / "old")
        write(path, rows=1000)
        with pytest.raises(StoreChangedError, match="changed since it was pickled"):
            pickle.loads(pickled)

    def test_worker_processes_compute(self, plain, truth):
        """A new dask process can compute on the store's chunks."""
        dataset = xr.open_dataset(plain, chunks={})
        with dask.config.set(scheduler="processes", num_workers=1):
            found = dataset.embed.mean("row").compute()
        xr.testing.assert_allclose(found, truth.embed.mean("row"), rtol=1e-3)

    @pytest.mark.filterwarnings("ignore:.*dask array with dtype=object")  # from xarray, about strings
    def test_to_zarr_and_back(self, dataset, truth, tmp_path):
        """A dataset is saved as Zarr, strings and times included, and opened again by xarray."""
        dataset.drop_vars("codes").to_zarr(tmp_path / "z", zarr_format=3, consolidated=False)
        with xr.open_zarr(tmp_path / "z", consolidated=False) as found:
            wanted = truth.drop_vars("codes")
            assert set(found.coords) == set(KEYS)
            xr.testing.assert_equal(found.drop_vars("note"), wanted.drop_vars("note"))
            assert found.attrs == dataset.attrs


class TestIncompleteStores:
    def test_an_incomplete_store_is_refused_unless_asked_for(self, tmp_path, truth):
        """partial=True shows the accepted rows, in stored chunks; without it the store is refused."""
        path = tmp_path / "run.zarrow"
        write(path, finalize=False, rows=1300)
        with pytest.raises(IncompleteStoreError, match="partial=True"):
            xr.open_dataset(path)
        for chunks in (None, {}):
            dataset = xr.open_dataset(path, partial=True, chunks=chunks)
            same(dataset, truth.isel(row=slice(1300)))
            assert dataset.attrs["committed_rows"] <= 1300
        assert sum(dataset.chunks["row"]) == 1300

    def test_a_store_that_is_not_there(self, tmp_path):
        """A missing store is a FileNotFoundError that names it, not a guess at engines."""
        with pytest.raises(StoreNotFoundError, match=r"gone\.zarrow"):
            xr.open_dataset(tmp_path / "gone.zarrow")

    def test_a_closed_dataset_says_so(self, plain):
        """Reading after close is an error; loaded values stay."""
        dataset = xr.open_dataset(plain)
        loaded = dataset.embed.load()
        dataset.close()
        with pytest.raises(InvalidInputError, match="closed"):
            dataset.prob.load()
        assert loaded[3, 0] == 3


def test_without_xarray_the_extra_is_named():
    """Without xarray the error names the extra that adds it."""
    program = """
import sys
sys.modules["xarray"] = None
try:
    import zarrow.xarray
except ImportError as error:
    print(type(error).__name__, error)
"""
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert said.startswith("MissingExtraError")
    assert "pip install 'zarrow[xarray]'" in said
