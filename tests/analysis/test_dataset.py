"""Analyses of an xarray Dataset — the same numbers as for a store with the same rows."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import xarray as xr

import zarrow
from zarrow.analysis import describe, nearest, pca, probe
from zarrow.errors import InvalidInputError, KeyNotFoundError, UnknownNameError

ROWS, WIDTH = 3000, 6
FACTS = ["column", "count", "nulls", "distinct", "mean", "std", "min", "median", "max", "type"]


def made(rows: np.ndarray) -> tuple[pa.Table, np.ndarray]:
    """Return a store of some of the rows: with nulls, NaNs, text and times."""
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((ROWS, WIDTH)) * 0.7 ** np.arange(WIDTH) + 2).astype(np.float32)
    vectors[[17, 1700]] = np.nan
    label = np.nan_to_num(vectors[:, 0] - 2) + rng.normal(size=ROWS) > 0
    every = np.arange(ROWS)
    table = pa.table(
        {
            "id": every,
            "subject_id": every // 6,
            "when": pa.array(every * 1_000_000, pa.timestamp("us", "UTC")),
            "query": [None if n % 7 == 0 else f"q{n % 3}" for n in range(ROWS)],
            "label": pa.array(label, mask=every % 11 == 0),
            "count": pa.array(every % 5, pa.int16(), mask=every % 13 == 0),
            "score": rng.random(ROWS),
        }
    )
    return table.take(pa.array(rows)), vectors[rows]


def write(path, rows=None):
    table, vectors = made(np.arange(ROWS) if rows is None else rows)
    with zarrow.Writer(path, keys=["id"], segment_rows=512) as writer:
        writer.append(table, {"e": vectors})
        writer.finalize()
    return zarrow.open(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write(tmp_path_factory.mktemp("all") / "run.zarrow")


def opened(store, how):
    if how == "lazy":
        return xr.open_dataset(store.path)
    if how == "memory":
        return xr.open_dataset(store.path).load()
    dataset = xr.open_dataset(store.path, chunks={})
    if how == "chunked along the vector, too":
        return dataset.chunk(row=700, e_dim=4)
    if how == "columns chunked otherwise":
        return dataset.assign(e=dataset.e.chunk(row=333))
    if how == "rows behind":
        return dataset.transpose()
    return dataset


HOW = ["dask", "lazy", "memory", "chunked along the vector, too", "columns chunked otherwise", "rows behind"]


def assert_same(store, dataset):
    """Compare all four analyses, with default and with all other arguments."""
    here, there = describe(store, by="query"), describe(dataset, by="query")
    assert there.rows == here.rows
    assert there.arrays.keys() == {"e"}
    ours, theirs = here.arrays["e"], there.arrays["e"]
    np.testing.assert_allclose(theirs.mean, ours.mean, rtol=1e-5)
    np.testing.assert_allclose(theirs.group_std, ours.group_std, rtol=1e-5)
    assert theirs.nonfinite_rows == ours.nonfinite_rows
    assert theirs.groups["query"].to_pylist() == ours.groups["query"].to_pylist()
    assert theirs.groups["rows"].equals(ours.groups["rows"])
    assert theirs.effective_rank == pytest.approx(ours.effective_rank, rel=1e-5)
    in_order = [("column", "ascending"), ("query", "ascending")]
    expected = here.columns.sort_by(in_order).select(FACTS)
    found = there.columns.sort_by(in_order).select(FACTS)
    for column, value in zip(expected, found, strict=True):
        if pa.types.is_floating(column.type):
            np.testing.assert_allclose(value.to_numpy(), column.to_numpy(), rtol=1e-9)
        else:
            assert value.to_pylist() == column.to_pylist()

    even = pc.field("count") == 2
    for filter in (None, even):
        ours, theirs = (pca(one, "e", 3, filter) for one in (store, dataset))
        assert (theirs.n_samples_, theirs.nonfinite_rows) == (ours.n_samples_, ours.nonfinite_rows)
        np.testing.assert_allclose(theirs.components_, ours.components_, atol=1e-5)
        np.testing.assert_allclose(theirs.explained_variance_, ours.explained_variance_, rtol=1e-5)
    rows, places = map(np.concatenate, zip(*theirs.project(dataset), strict=True))
    own_rows, own_places = map(np.concatenate, zip(*ours.project(store), strict=True))
    assert np.array_equal(rows, own_rows)
    np.testing.assert_allclose(places, own_places, atol=1e-4)

    for queries, filter in (([3, 40, -1], None), ([5, 6], even), (np.ones((1, WIDTH)), even)):
        ours, theirs = (nearest(one, queries, k=4, filter=filter) for one in (store, dataset))
        assert np.array_equal(theirs.rows, ours.rows)
        assert np.array_equal(theirs.scores, ours.scores)
        names = ["query_", "row", "score", "id", "query", "label", "when"]
        assert theirs.table(dataset).select(names).equals(ours.table(store).select(names))

    ours, theirs = (probe(one, "label", by="query", bootstrap=20, tolerance=1e-7) for one in (store, dataset))
    assert theirs.classes == ours.classes == [False, True]
    assert np.array_equal(theirs.test_rows, ours.test_rows)
    assert theirs.missing_labels == ours.missing_labels
    np.testing.assert_allclose(theirs.predictions, ours.predictions, atol=1e-4)
    assert theirs.overall["auroc"] == pytest.approx(ours.overall["auroc"], abs=1e-3)
    assert theirs.report["query"].to_pylist() == ours.report["query"].to_pylist()


@pytest.mark.parametrize("how", HOW)
def test_a_dataset_of_a_store(store, how):
    """A Dataset of a store gives the same numbers, however it is chunked, and unchunked."""
    assert_same(store, opened(store, how))


EVERY = np.arange(ROWS)
SELECTIONS = {
    "a slice": (slice(100, 2000), EVERY[100:2000]),
    "every third": (slice(None, None, 3), EVERY[::3]),
    "chosen": (EVERY[EVERY % 10 > 3], EVERY[EVERY % 10 > 3]),
}


@pytest.mark.parametrize(
    ("how", "selection"),
    [("dask", "a slice"), ("dask", "every third"), ("dask", "chosen"), ("lazy", "chosen")],
)
def test_a_selection_has_its_own_numbers(store, tmp_path, how, selection):
    """A selection is analysed like a store of these rows only; its rows are numbered from 0."""
    asked, rows = SELECTIONS[selection]
    dataset = opened(store, how).isel(row=asked)
    assert dataset.sizes["row"] == len(rows) < ROWS
    assert_same(write(tmp_path / "some.zarrow", rows), dataset)


def test_rows_that_where_keeps(store, tmp_path):
    """``where`` makes floats of all numbers; labels stay labels, and groups groups."""
    dataset = opened(store, "dask")
    chosen = np.flatnonzero(made(np.arange(ROWS))[0]["score"].to_numpy() > 0.4)
    kept = dataset.where((dataset.score > 0.4).compute(), drop=True)
    truth = write(tmp_path / "some.zarrow", chosen)
    assert probe(kept, "label").overall == pytest.approx(probe(truth, "label").overall, abs=1e-3)
    np.testing.assert_allclose(pca(kept).components_, pca(truth).components_, atol=1e-5)
    blanked = dataset.where((dataset.score > 0.4).compute())
    assert describe(blanked).arrays["e"].rows == ROWS
    assert pca(blanked).n_samples_ == pca(truth).n_samples_


def test_a_dataset_of_anything_else():
    """Arrays may be of any library with axes in any order; lazy ones are computed piece by piece."""
    dask_array = pytest.importorskip("dask.array")
    rng = np.random.default_rng(1)
    values = rng.standard_normal((500, 2, 3))
    seen = []

    def doubled(block):
        seen.append(len(block))
        return block * 2

    lazy = dask_array.from_array(values, chunks=(100, 1, 3)).map_blocks(doubled, dtype=float)
    dataset = xr.Dataset(
        {"x": (("row", "layer", "unit"), lazy), "y": ("row", values[:, 0, 0] > 0), "z": ("unit", [1, 2, 3])},
        coords={"row": np.arange(500) + 10_000, "patient": ("row", np.arange(500) // 5)},
    )
    found = describe(dataset)
    np.testing.assert_allclose(found.arrays["x"].mean, (values * 2).reshape(500, 6).mean(axis=0))
    assert found.columns["column"].to_pylist() == ["patient", "y"]
    assert max(seen) <= 100
    assert probe(dataset, "y", group="patient").overall["auroc"] > 0.9
    assert nearest(dataset, {"patient": [7]}, k=1).rows.tolist() == [[35]]
    assert pca(dataset.x, n_components=2).array == "x"


def test_rows_are_found_by_key(store):
    """Rows are found by the key columns of the store; of several with one key, the first."""
    dataset = opened(store, "dask").isel(row=slice(1000, None))
    assert nearest(dataset, {"id": [1005, 1003]}, k=1).rows.tolist() == [[5], [3]]
    with pytest.raises(KeyNotFoundError, match="id=7"):
        nearest(dataset, {"id": [1005, 7]}, k=1)


def test_an_empty_selection_is_described(store):
    """An empty selection is described, and has no components."""
    nothing = opened(store, "dask").isel(row=slice(0, 0))
    assert describe(nothing).rows == describe(nothing).arrays["e"].rows == 0
    with pytest.raises(InvalidInputError, match="at least two rows"):
        pca(nothing)


def test_progress_reaches_the_end(store):
    """Progress reaches the end, in rows of the Dataset."""
    seen = []
    pca(opened(store, "dask").isel(row=slice(0, 999)), progress=lambda *done: seen.append(done))
    assert seen[-1] == (999, 999)


def test_what_is_no_source_is_refused(store):
    """Anything else is refused, with what was given and what to do."""
    dataset = opened(store, "dask")
    with pytest.raises(InvalidInputError, match=r"dimension 'row', got .*'sample'.*rename\(sample='row'\)"):
        describe(dataset.rename(row="sample"))
    with pytest.raises(UnknownNameError, match="no array 'emb'; did you mean 'embed'"):
        pca(dataset.rename(e="embed"), "emb")
    with pytest.raises(UnknownNameError, match="no column 'labl'; did you mean 'label'"):
        probe(dataset, "labl")
    with pytest.raises(UnknownNameError, match="no column 'quer'; did you mean 'query'"):
        describe(dataset, by="quer")
    with pytest.raises(UnknownNameError, match="no column 'scor'; did you mean 'score'"):
        nearest(dataset, [1], filter=pc.field("scor") > 0)
    with pytest.raises(InvalidInputError, match="there are: none"):
        pca(dataset.drop_vars("e"))
    with pytest.raises(InvalidInputError, match="open the store"):
        nearest(dataset, [1], approximate=True)
    with pytest.raises(InvalidInputError, match=r"'label' is a column of type bool, .* neither 0 nor 1"):
        probe(dataset.assign(label=(dataset.label * 3).assign_attrs(dataset.label.attrs)), "label")
    with pytest.raises(InvalidInputError, match="drop_vars"):
        describe(dataset.assign(odd=dataset.score * 1j))
    with pytest.raises(InvalidInputError, match=r"zarrow.open\(path\), or an xarray Dataset, got str"):
        describe(str(store.path))


def test_importing_the_analyses_loads_no_xarray():
    """Importing the analyses loads neither xarray nor dask."""
    program = "import zarrow.analysis, sys; print({'xarray', 'dask', 'distributed'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "set()"
