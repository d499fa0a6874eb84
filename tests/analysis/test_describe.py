"""Describe — checked against numpy, scipy and pandas."""

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.metrics.pairwise import cosine_similarity

import zarrow
from zarrow.analysis import describe
from zarrow.analysis._numbers.sketch import Sketch
from zarrow.errors import InvalidInputError, UnknownNameError

ROWS = 2500


def write(path, arrays, columns, rows):
    with zarrow.Writer(path, segment_rows=1024) as writer:
        for start in range(0, rows, 300):
            here = slice(start, start + 300)
            writer.append(
                pa.table(columns).slice(start, 300), {name: values[here] for name, values in arrays.items()}
            )
        writer.finalize()
    return zarrow.open(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with NaN, infinities, zero rows, and dead and large dimensions."""
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((ROWS, 16)).astype(np.float32) + 0.5
    vectors[:, 3] = 7.25
    vectors[:, 5] = 1e4 + rng.standard_normal(ROWS)
    vectors[100:103] = 0
    vectors[10, 2] = np.nan
    vectors[11] = np.inf
    vectors[2000] = np.nan
    prob = rng.random(ROWS)
    prob[7] = np.nan
    columns = {
        "subject_id": np.arange(ROWS) // 5,
        "query": pa.array([None if n % 97 == 0 else f"q{n % 4}" for n in range(ROWS)]).dictionary_encode(),
        "label": pa.array([None if n % 10 == 0 else n % 3 == 0 for n in range(ROWS)]),
        "prob": prob,
        "time": pa.array(np.datetime64("2026-01-01", "us") + np.arange(ROWS), pa.timestamp("us", "UTC")),
        "codes": pa.array([[1, 2]] * ROWS),
    }
    arrays = {"e": vectors, "half": vectors[:, :8].reshape(ROWS, 2, 4).clip(-100, 100).astype(np.float16)}
    return write(tmp_path_factory.mktemp("describe") / "a.zarrow", arrays, columns, ROWS), arrays, columns


def test_arrays_are_those_of_numpy(made):
    """Mean, std, norms, effective rank and mean cosine of the finite rows equal numpy's."""
    store, arrays, _ = made
    for name, found in describe(store).arrays.items():
        values = arrays[name].reshape(ROWS, -1).astype(np.float64)
        finite = values[np.isfinite(values).all(axis=1)]
        assert found.rows == ROWS
        assert found.nonfinite_rows == ROWS - len(finite)
        assert found.nan_values == np.isnan(values).sum()
        assert found.infinite_values == np.isinf(values).sum()
        assert found.zero_rows == 3
        np.testing.assert_allclose(found.mean, finite.mean(axis=0), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found.std, finite.std(axis=0, ddof=1), rtol=1e-5, atol=1e-6)
        norms = np.linalg.norm(finite, axis=1)
        assert found.norm_mean == pytest.approx(norms.mean(), rel=1e-6)
        assert found.norm_std == pytest.approx(norms.std(ddof=1), rel=1e-5)
        for share in (0.05, 0.5, 0.99):
            assert found.norms.quantile(share) == pytest.approx(np.quantile(norms, share), rel=0.006)
        singular = np.linalg.svd(finite - finite.mean(axis=0), compute_uv=False)
        shares = singular[singular > 1e-3] / singular[singular > 1e-3].sum()
        assert found.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
        cosines = cosine_similarity(finite[norms > 0])
        count = len(cosines)
        assert found.anisotropy == pytest.approx((cosines.sum() - count) / count / (count - 1), abs=1e-6)
    assert describe(store).arrays["e"].dead_dimensions.tolist() == []  # three rows of zeros moved it


def test_dead_dimensions_are_found(tmp_path):
    """A dimension that is the same in all rows is dead, one that varies in the last digits is not."""
    vectors = np.full((1000, 3), 1e4, np.float32)
    vectors[:, 1] += np.random.default_rng(0).standard_normal(1000)
    found = describe(write(tmp_path / "a.zarrow", {"e": vectors}, {"id": np.arange(1000)}, 1000)).arrays["e"]
    assert found.dead_dimensions.tolist() == [0, 2]
    assert found.std[1] == pytest.approx(vectors[:, 1].astype(np.float64).std(ddof=1), rel=1e-6)
    assert found.effective_rank == pytest.approx(1)


def test_columns_are_those_of_pandas(made):
    """Counts, nulls and quantiles equal pandas'; NaN counts neither as a null nor as a number."""
    store, _, columns = made
    found = {one["column"]: one for one in describe(store, arrays=[]).columns.to_pylist()}
    assert list(found) == list(columns)
    prob = pd.Series(columns["prob"]).dropna()
    assert found["prob"]["count"] == ROWS
    assert found["prob"]["nonfinite"] == 1
    assert found["prob"]["mean"] == pytest.approx(prob.mean())
    assert found["prob"]["std"] == pytest.approx(prob.std())
    for name, share in {"min": 0, "q05": 0.05, "median": 0.5, "q95": 0.95, "max": 1}.items():
        assert found["prob"][name] == pytest.approx(prob.quantile(share))
    assert found["label"]["nulls"] == 250
    assert found["label"]["mean"] == pytest.approx(np.mean([n % 3 == 0 for n in range(ROWS) if n % 10]))
    assert found["query"]["nulls"] == len(range(0, ROWS, 97))
    assert found["query"]["mean"] is None
    assert found["time"]["min"] == 1767225600
    assert found["codes"]["count"] == ROWS


def test_groups_are_described_apart(made):
    """Every group is described as if it were alone; groups are in order, nulls last."""
    store, arrays, columns = made
    found = describe(store, arrays=["e"], by="query")
    groups = found.arrays["e"].groups
    assert groups["query"].to_pylist() == ["q0", "q1", "q2", "q3", None]
    query = np.array(columns["query"].to_pylist(), object)
    for number, one in enumerate(groups.to_pylist()):
        values = arrays["e"][query == one["query"]].astype(np.float64)
        finite = values[np.isfinite(values).all(axis=1)]
        assert one["rows"] == len(values)
        assert one["nonfinite_rows"] == len(values) - len(finite)
        np.testing.assert_allclose(found.arrays["e"].group_mean[number], finite.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(
            found.arrays["e"].group_std[number], finite.std(axis=0, ddof=1), rtol=1e-4, atol=1e-5
        )
        norms = np.linalg.norm(finite, axis=1)
        assert one["norm_mean"] == pytest.approx(norms.mean(), rel=1e-6)
        cosines = cosine_similarity(finite[norms > 0])
        count = len(cosines)
        assert one["anisotropy"] == pytest.approx((cosines.sum() - count) / count / (count - 1), abs=1e-5)
    probs = [one for one in found.columns.to_pylist() if one["column"] == "prob"]
    assert [one["query"] for one in probs] == ["q0", "q1", "q2", "q3", None]
    assert sum(one["count"] for one in probs) == ROWS


def test_groups_of_many_columns(made):
    """Groups may be combinations of columns, even with one row each."""
    store, _, _ = made
    found = describe(store, arrays=["e"], columns=[], by=["subject_id", "query"]).arrays["e"]
    assert found.groups["rows"].to_pylist().count(1) > 1000
    assert sum(found.groups["rows"].to_pylist()) == ROWS
    lonely = next(one for one in found.groups.to_pylist() if one["rows"] == 1)
    assert lonely["spread"] is None
    assert lonely["anisotropy"] is None


def test_nothing_need_be_described(made):
    """A store without columns and arrays to describe is no error."""
    found = describe(made[0], arrays=[], columns=[])
    assert (found.rows, found.arrays, found.columns.num_rows) == (ROWS, {}, 0)


def test_nothing_is_nan_without_rows(tmp_path):
    """An empty store, and one of NaN alone, are described with None."""
    for count in (0, 1, 3):
        rows = np.full((count, 4), np.nan if count > 1 else 2.0, np.float32)
        store = write(tmp_path / f"{count}.zarrow", {"e": rows}, {"id": np.arange(count)}, max(count, 1))
        found = describe(store, by="id").to_dict()
        assert found["arrays"]["e"]["effective_rank"] is None
        assert found["arrays"]["e"]["anisotropy"] is None
        assert found["arrays"]["e"]["norm_mean"] == (4.0 if count == 1 else None)
        assert not any(isinstance(v, float) and math.isnan(v) for v in found["arrays"]["e"].values())


def test_long_and_short_vectors_keep_their_norm(tmp_path):
    """Norms are right even if their squares overflow or vanish in float32."""
    vectors = np.array([[3e30, 4e30], [3e-30, 4e-30]], np.float32)
    found = describe(write(tmp_path / "a.zarrow", {"e": vectors}, {"id": [0, 1]}, 2)).arrays["e"]
    assert found.nonfinite_rows == 0
    assert found.zero_rows == 0
    assert found.norm_mean == pytest.approx(2.5e30)
    assert found.norms.quantile(0.4) == pytest.approx(5e-30, rel=0.01)


def test_bad_input_is_refused(made):
    """Unknown names, and groups whose means would not fit, are refused."""
    store, _, _ = made
    with pytest.raises(UnknownNameError, match="no array 'f'"):
        describe(store, arrays=["f"])
    with pytest.raises(UnknownNameError, match="no column 'f'"):
        describe(store, columns=["f"])
    with pytest.raises(UnknownNameError, match="no column 'f'"):
        describe(store, by="f")


def test_too_many_groups_are_refused(tmp_path):
    """Grouping by a key is refused: it would take more memory than the rows."""
    rows = 12_000
    store = write(
        tmp_path / "a.zarrow", {"e": np.ones((rows, 1000), np.float16)}, {"id": np.arange(rows)}, rows
    )
    with pytest.raises(InvalidInputError, match="12000 groups of 1000 dimensions"):
        describe(store, by="id")


def test_names_that_sql_has_no_word_for(tmp_path):
    """A column may have any name that a store takes, and be grouped by."""
    name = 'a "b"; --'
    with zarrow.Writer(tmp_path / "s") as writer:
        writer.append({name: [1, 1, 4], "v0": [1.0, 2.0, 3.0]})
        writer.finalize()
    store = zarrow.open(tmp_path / "s")
    assert describe(store).columns["column"].to_pylist() == [name, "v0"]
    grouped = describe(store, columns=["v0"], by=name).columns.to_pylist()
    assert [(one[name], one["mean"]) for one in grouped] == [(1, 1.5), (4, 3.0)]


def test_few_values_are_counted_exactly(tmp_path):
    """Distinct values are never more than values, and the smallest and largest norms are exact."""
    vectors = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    store = write(tmp_path / "a.zarrow", {"e": vectors}, {"id": [f"k{n}" for n in range(300)]}, 300)
    found = describe(store)
    assert found.columns["distinct"].to_pylist() == [300]
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    quantiles = found.arrays["e"].to_dict()["norm_quantiles"]
    assert (quantiles["0.0"], quantiles["1.0"]) == pytest.approx((norms.min(), norms.max()), rel=1e-6)
    constant = describe(
        write(tmp_path / "b.zarrow", {"e": np.ones((9, 4), np.float32)}, {"id": np.arange(9)}, 9)
    )
    assert set(constant.arrays["e"].to_dict()["norm_quantiles"].values()) == {2.0}


@pytest.mark.parametrize("zeros", [0, 40])
def test_a_histogram_of_norms_has_bins_of_one_width(zeros):
    """The bins of a histogram are equally wide, and their counts are close to numpy's."""
    norms = np.concatenate([np.zeros(zeros), np.random.default_rng(0).gamma(3, size=5000)])
    sketch = Sketch()
    sketch.add(norms)
    edges, counts = sketch.histogram(30)
    assert np.diff(edges) == pytest.approx(np.full(30, norms.max() / 30), rel=0.02)
    assert counts.sum() == len(norms)
    assert np.abs(counts - np.histogram(norms, edges)[0]).max() < 30
