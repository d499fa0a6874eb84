"""PCA — checked against scikit-learn."""

import numpy as np
import pyarrow.compute as pc
import pytest
from sklearn.decomposition import PCA

import zarrow
from zarrow.analysis import pca
from zarrow.errors import InvalidInputError, UnknownNameError


def rows_with_spectrum(rows=3000, width=24, mean=0.0, seed=0):
    """Rows whose components have clearly different variances."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((width, width)))[0]
    return rng.standard_normal((rows, width)) * 0.8 ** np.arange(width) @ basis + mean


def write(path, arrays, columns=None):
    rows = len(next(iter(arrays.values())))
    columns = columns or {"id": np.arange(rows)}
    with zarrow.Writer(path, segment_rows=1024) as writer:
        for start in range(0, rows, 500):
            here = slice(start, start + 500)
            writer.append(
                {name: values[here] for name, values in columns.items()},
                {name: values[here] for name, values in arrays.items()},
            )
        writer.finalize()
    return zarrow.open(path)


@pytest.mark.parametrize("solver", ["covariance", "randomized"])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_equals_scikit_learn(tmp_path, solver, mean):
    """Components, variances and projections equal scikit-learn's to 1e-5, also far from the origin."""
    vectors = rows_with_spectrum(mean=mean).astype(np.float32)
    store = write(tmp_path / "a.zarrow", {"e": vectors})
    ours, theirs = pca(store, n_components=5, solver=solver), PCA(5).fit(vectors.astype(np.float64))
    np.testing.assert_allclose(ours.explained_variance_, theirs.explained_variance_, rtol=1e-5)
    np.testing.assert_allclose(ours.explained_variance_ratio_, theirs.explained_variance_ratio_, rtol=1e-5)
    np.testing.assert_allclose(ours.components_, theirs.components_, atol=1e-5)
    np.testing.assert_allclose(ours.mean_, theirs.mean_, rtol=1e-6, atol=1e-6)
    projected = np.concatenate([xy for _, xy in ours.project(store)])
    np.testing.assert_allclose(projected, theirs.transform(vectors), atol=2e-4 if mean else 1e-5)


def test_a_filter_chooses_rows_and_several_axes_are_one(tmp_path):
    """Only rows that pass the filter count; a row of 4 × 6 float16 is a vector of 24."""
    vectors = rows_with_spectrum().astype(np.float16)
    store = write(tmp_path / "a.zarrow", {"e": vectors.reshape(-1, 4, 6)})
    late = pc.field("id") >= 1500
    ours, theirs = pca(store, n_components=4, filter=late), PCA(4).fit(vectors[1500:].astype(np.float64))
    np.testing.assert_allclose(ours.explained_variance_, theirs.explained_variance_, rtol=1e-5)
    rows, xy = zip(*ours.project(store, filter=late), strict=True)
    assert np.concatenate(rows).tolist() == list(range(1500, 3000))
    np.testing.assert_allclose(np.concatenate(xy), theirs.transform(vectors[1500:]), atol=1e-4)


def test_rows_that_are_not_finite_are_left_out(tmp_path):
    """A row with a NaN is left out and counted."""
    vectors = rows_with_spectrum().astype(np.float32)
    vectors[[3, 700]] = np.nan
    vectors[2999, 5] = -np.inf
    store = write(tmp_path / "a.zarrow", {"e": vectors})
    ours = pca(store, n_components=3)
    theirs = PCA(3).fit(vectors[np.isfinite(vectors).all(axis=1)].astype(np.float64))
    assert ours.nonfinite_rows == 3
    assert ours.n_samples_ == 2997
    np.testing.assert_allclose(ours.explained_variance_, theirs.explained_variance_, rtol=1e-5)


def test_rows_that_do_not_vary_have_no_variance(tmp_path):
    """Constant rows give zeros, not NaN."""
    found = pca(write(tmp_path / "a.zarrow", {"e": np.full((10, 4), 3.0)}), n_components=2)
    assert found.explained_variance_.tolist() == [0, 0]
    assert found.explained_variance_ratio_.tolist() == [0, 0]


def test_progress_reaches_the_end(tmp_path):
    """Progress reaches the end even if few rows pass the filter."""
    store = write(tmp_path / "a.zarrow", {"e": rows_with_spectrum()})
    seen = []
    pca(store, n_components=2, filter=pc.field("id") < 10, progress=lambda *done: seen.append(done))
    assert seen[-1] == (3000, 3000)


def test_bad_input_is_refused(tmp_path):
    """Every refusal says the rule."""
    store = write(tmp_path / "a.zarrow", {"e": np.ones((3, 4), np.float32), "f": np.ones((3, 2))})
    with pytest.raises(InvalidInputError, match="there are: e, f"):
        pca(store)
    with pytest.raises(UnknownNameError, match="no array 'g'"):
        pca(store, "g")
    with pytest.raises(InvalidInputError, match=r"1\.\.4"):
        pca(store, "e", 5)
    with pytest.raises(InvalidInputError, match="at most the number of finite rows, 3, got 4"):
        pca(store, "e", 4)
    with pytest.raises(InvalidInputError, match="at least two rows"):
        pca(store, "e", filter=pc.field("id") == 1)
    with pytest.raises(InvalidInputError, match="solver"):
        pca(store, "e", solver="magic")
    found = pca(store, "e", 1)
    with pytest.raises(InvalidInputError, match=r"\(n, 4\)"):
        found.transform(np.ones((2, 3)))
    with pytest.raises(InvalidInputError, match="rows of 2 numbers"):
        found.project(store, "f")


def test_an_empty_store_is_refused(tmp_path):
    """A store without rows is refused."""
    with zarrow.Writer(tmp_path / "a.zarrow") as writer:
        writer.append({"id": np.arange(0)}, {"e": np.ones((0, 4), np.float32)})
        writer.finalize()
    with pytest.raises(InvalidInputError, match="at least two rows"):
        pca(zarrow.open(tmp_path / "a.zarrow"))
