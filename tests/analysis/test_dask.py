"""Analyses on a dask cluster — of a store or a Dataset, with the same numbers as in one process."""

import os

import dask
import numpy as np
import pyarrow as pa
import pytest
import xarray as xr
from distributed import Client, LocalCluster

import zarrow
from zarrow.analysis import compare, describe, nearest, pca, probe

ROWS = 4000

pytestmark = [
    pytest.mark.slow,
    # Advice and farewells of distributed's.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            local_directory=str(tmp_path_factory.mktemp("dask")),
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((ROWS, 12)) * 0.8 ** np.arange(12) + 3).astype(np.float32)
    vectors[17] = np.nan
    path = tmp_path_factory.mktemp("store") / "a.zarrow"
    with zarrow.Writer(path, keys=["id"], segment_rows=512 * 2) as writer:
        writer.append(
            pa.table(
                {
                    "id": np.arange(ROWS),
                    "subject_id": np.arange(ROWS) // 8,
                    "query": [f"q{n % 3}" for n in range(ROWS)],
                    "label": np.nan_to_num(vectors[:, 0] - 3) + rng.normal(size=ROWS) > 0,
                }
            ),
            {"e": vectors},
        )
        writer.finalize()
    return zarrow.open(path)


@pytest.fixture(params=["store", "Dataset", "Dataset on the cluster", "Dataset in memory"])
def asked(request, client, store):
    """Return data to analyse, and arguments that name the cluster; a Dataset of dask arrays needs none."""
    if request.param == "store":
        return store, {"client": client}
    if request.param == "Dataset in memory":
        return xr.open_dataset(store.path).load(), {"client": client}
    dataset = xr.open_dataset(store.path, chunks={})
    return (dataset if request.param == "Dataset" else dataset.chunk(row=700).persist()), {}


def test_describe(asked, store):
    """Means, norms, ranks and groups are the same on a cluster."""
    given, options = asked
    here, there = describe(store, by="query").arrays["e"], describe(given, by="query", **options).arrays["e"]
    np.testing.assert_allclose(there.mean, here.mean, rtol=1e-6)
    np.testing.assert_allclose(there.std, here.std, rtol=1e-6)
    np.testing.assert_allclose(there.group_mean, here.group_mean, rtol=1e-6)
    assert there.nonfinite_rows == here.nonfinite_rows == 1
    assert there.effective_rank == pytest.approx(here.effective_rank, rel=1e-6)
    assert there.anisotropy == pytest.approx(here.anisotropy, rel=1e-6)
    assert np.array_equal(there.norms.counts, here.norms.counts)


@pytest.mark.parametrize("solver", ["covariance", "randomized"])
def test_pca(asked, store, solver):
    """Components and variances are the same on a cluster, and progress reaches the end."""
    given, options = asked
    seen = []
    here = pca(store, n_components=3, solver=solver)
    there = pca(given, n_components=3, solver=solver, progress=lambda *done: seen.append(done), **options)
    np.testing.assert_allclose(there.explained_variance_, here.explained_variance_, rtol=1e-6)
    np.testing.assert_allclose(there.components_, here.components_, atol=1e-5)
    assert seen[-1] == (ROWS, ROWS)


def test_nearest(asked, store):
    """A cluster finds the same rows, in the same order, with the same scores."""
    given, options = asked
    here, there = nearest(store, np.arange(20, 60), k=9), nearest(given, np.arange(20, 60), k=9, **options)
    assert np.array_equal(there.rows, here.rows)
    assert np.array_equal(there.scores, here.scores)


def test_probe(asked, store):
    """A cluster fits the same weights and returns the same report."""
    given, options = asked
    here = probe(store, "label", by="query", tolerance=1e-7)
    there = probe(given, "label", by="query", tolerance=1e-7, **options)
    np.testing.assert_allclose(there.weights, here.weights, atol=1e-4)
    np.testing.assert_allclose(there.predictions, here.predictions, atol=1e-4)
    assert np.array_equal(there.test_rows, here.test_rows)
    assert there.overall["auroc"] == pytest.approx(here.overall["auroc"], abs=1e-3)
    assert there.nonfinite_rows == here.nonfinite_rows == 1


def test_the_workers_do_it(client, store):
    """Pieces of a Dataset are computed by the processes of the cluster only."""
    dataset = xr.open_dataset(store.path, chunks={})
    where = dataset.e.data.map_blocks(lambda block: np.full_like(block, os.getpid()), dtype=np.float64)
    found = describe(dataset.assign(e=(dataset.e.dims, where)), columns=[]).arrays["e"]
    workers = client.run(os.getpid).values()
    assert min(workers) <= found.mean[0] <= max(workers)
    assert os.getpid() not in (found.norms.quantile(0.0), found.norms.quantile(1.0))
    with dask.config.set(scheduler="threads"):
        found = describe(dataset.assign(e=(dataset.e.dims, where)), columns=[]).arrays["e"]
    assert found.mean[0] == os.getpid()


def test_compare(client, store):
    """Measures and neighbours of pairs of rows are the same on a cluster."""
    here, there = (compare(store, store, by="query", sample=50, client=one) for one in (None, client))
    assert there.cka == pytest.approx(here.cka)
    assert there.neighbour_overlap == here.neighbour_overlap == 1
