"""Compare — checked against scipy and the definitions, in memory."""

import math

import numpy as np
import pyarrow as pa
import pytest
from scipy.spatial import procrustes
from scipy.stats import ks_2samp
from sklearn.metrics.pairwise import cosine_similarity

import zarrow
from zarrow.analysis import compare
from zarrow.errors import InvalidInputError, UnknownNameError

ROWS, WIDTH = 1500, 8


def write(path, ids, vectors, prob=None, keys=("id",), **columns):
    table = {"id": ids, "prob": np.zeros(len(ids)) if prob is None else prob, **columns}
    with zarrow.Writer(path, keys=list(keys), segment_rows=1024) as writer:
        writer.append(pa.table(table), {"e": vectors}, sample_index=np.asarray(ids) * 3)
        writer.finalize()
    return zarrow.open(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two stores; the second is in another order, has other rows too, is rotated a little, and has NaN."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("compare")
    ids_a, ids_b = np.arange(ROWS), rng.permutation(np.arange(200, ROWS + 300))
    truth = rng.standard_normal((ROWS + 300, WIDTH)) * np.arange(1, WIDTH + 1) + 50
    turned = truth @ np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0] * 0.5 + rng.standard_normal(
        truth.shape
    )
    first, second = truth[ids_a].astype(np.float32), turned[ids_b].astype(np.float32)
    first[300] = np.nan
    prob = rng.random((2, ROWS + 300))
    query = [f"q{n % 3}" for n in ids_a]
    a = write(folder / "a.zarrow", ids_a, first, prob[0][ids_a], query=query)
    b = write(folder / "b.zarrow", ids_b, second, prob[1][ids_b])
    shared = np.array([n for n in range(200, ROWS) if n != 300])
    place = np.argsort(ids_b)
    return a, b, first[shared], second[place[shared - 200]], prob[:, shared], shared, prob


def test_equals_the_definitions(made):
    """CKA, Procrustes, cosines, drift and the shift of probabilities equal their definitions."""
    a, b, left, right, _, shared, prob = made
    found = compare(a, b, by="query", probability="prob")
    assert found.matched == ROWS - 200
    assert found.nonfinite_rows == 1
    assert found.only_a.tolist() == list(range(200))
    assert set(b.table(["id"])["id"].to_numpy()[found.only_b]) == set(range(ROWS, ROWS + 300))
    x, y = left - left.mean(axis=0, dtype=np.float64), right - right.mean(axis=0, dtype=np.float64)
    cka = np.linalg.norm(y.T @ x) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    assert found.cka == pytest.approx(cka, abs=1e-5)
    disparity = procrustes(left.astype(np.float64), right.astype(np.float64))[2]
    assert found.procrustes == pytest.approx(disparity, abs=1e-5)
    cosines = np.diagonal(cosine_similarity(left, right))
    assert found.cosine_mean == pytest.approx(cosines.mean(), abs=1e-5)
    assert found.cosine_min == pytest.approx(cosines.min(), abs=1e-5)
    for number, one in enumerate(found.dimensions.to_pylist()):
        pooled = math.sqrt((left[:, number].var(ddof=1) + right[:, number].var(ddof=1)) / 2)
        moved = right[:, number].mean() - left[:, number].mean()
        assert one["drift"] == pytest.approx(moved / pooled, rel=1e-4)
        correlation = np.corrcoef(left[:, number], right[:, number])[0, 1]
        assert one["correlation"] == pytest.approx(correlation, abs=1e-5)
    everyone = np.arange(200, ROWS)
    first, second = prob[0][everyone], prob[1][everyone]
    assert found.probability["mean_difference"] == pytest.approx((second - first).mean())
    assert found.probability["ks"] == pytest.approx(ks_2samp(first, second).statistic)
    groups = found.groups.to_pylist()
    assert [one["query"] for one in groups] == ["q0", "q1", "q2"]
    chosen = shared % 3 == 1
    moved = right[chosen].mean(axis=0) - left[chosen].mean(axis=0)
    assert groups[1]["drift"] == pytest.approx(np.linalg.norm(moved), rel=1e-5)
    assert groups[1]["cosine_mean"] == pytest.approx(cosines[chosen].mean(), abs=1e-5)
    chosen = everyone % 3 == 1
    assert groups[1]["probability_difference"] == pytest.approx((second - first)[chosen].mean())


def test_neighbourhoods_are_those_of_all_matched_rows(made):
    """The overlap is that of brute force over the rows that both stores have."""
    a, b, left, right, *_ = made
    found = compare(a, b, sample=100_000, k=7)
    neighbours = []
    for vectors in (left, right):
        cosines = cosine_similarity(vectors.astype(np.float64))
        np.fill_diagonal(cosines, -2)
        neighbours.append(np.argsort(-cosines, axis=1)[:, :7])
    shared = [len(set(one) & set(other)) for one, other in zip(*neighbours, strict=True)]
    assert found.neighbour_overlap == pytest.approx(np.mean(shared) / 7, abs=1e-3)
    assert found.sampled == len(left)
    assert compare(a, b, sample=0).neighbour_overlap is None


def test_a_rotated_scaled_copy_is_alike(tmp_path):
    """CKA and Procrustes ignore rotation and scale; a store is entirely similar to itself."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((500, 6)).astype(np.float32)
    turned = vectors @ np.linalg.qr(rng.standard_normal((6, 6)))[0] * 7 + 3
    a = write(tmp_path / "a.zarrow", np.arange(500), vectors)
    b = write(tmp_path / "b.zarrow", np.arange(500), turned.astype(np.float32))
    found = compare(a, b)
    assert found.cka == pytest.approx(1, abs=1e-5)
    assert found.procrustes == pytest.approx(0, abs=1e-5)
    assert compare(a, a).cosine_min == pytest.approx(1)


def test_rows_may_be_matched_otherwise(made):
    """Rows may be matched by row number and by ``sample_index``."""
    a, b, *_ = made
    assert compare(a, b, on="sample_index", sample=0).cka == pytest.approx(compare(a, b, sample=0).cka)
    found = compare(a, b, on="row", sample=0)
    assert (found.matched, len(found.only_a), len(found.only_b)) == (ROWS, 0, 100)


def test_other_widths_have_some_measures(made, tmp_path):
    """CKA, Procrustes and neighbours are defined between widths; cosines and drift are not."""
    a, *_ = made
    rng = np.random.default_rng(1)
    narrow = write(tmp_path / "n.zarrow", np.arange(ROWS), rng.standard_normal((ROWS, 3)).astype(np.float32))
    found = compare(a, narrow, by="query")
    assert 0 <= found.cka < 0.1
    assert 0.9 < found.procrustes <= 1
    assert found.neighbour_overlap < 0.1
    assert found.cosine_mean is None
    assert found.dimensions is None
    assert found.groups.column_names == ["query", "rows"]


def test_stores_that_share_nothing(made, tmp_path):
    """Stores with no rows in common have no measures: None, not NaN."""
    a, *_ = made
    other = write(tmp_path / "o.zarrow", np.arange(5000, 5010), np.ones((10, WIDTH), np.float32))
    found = compare(a, other, by="query", probability="prob")
    assert (found.matched, len(found.only_a), len(found.only_b)) == (0, ROWS, 10)
    assert found.cka is found.procrustes is found.neighbour_overlap is found.cosine_mean is None
    assert found.probability["ks"] is None
    constant = compare(other, other)
    assert constant.cka is None
    assert constant.cosine_mean == pytest.approx(1)
    assert constant.dimensions["drift"].null_count == WIDTH


def test_bad_input_is_refused(made, tmp_path):
    """Keys that are missing, of other types, or shared by several rows are refused."""
    a, b, *_ = made
    vectors = np.ones((4, WIDTH), np.float32)
    with pytest.raises(InvalidInputError, match=r"key columns of .*b.zarrow \(id\)"):
        compare(a, b, on="query")
    with pytest.raises(InvalidInputError, match="none"):
        compare(a, write(tmp_path / "k.zarrow", [1, 2, 3, 4], vectors, keys=()))
    with zarrow.Writer(tmp_path / "s.zarrow", keys=["id"]) as writer:
        writer.append({"id": ["1", "2", "3", "4"]}, {"e": vectors})
        writer.finalize()
    with pytest.raises(InvalidInputError, match="'id' is of type string"):
        compare(a, zarrow.open(tmp_path / "s.zarrow"))
    twice = write(tmp_path / "d.zarrow", [1, 2, 2, 4], vectors)
    with pytest.raises(InvalidInputError, match=r"d\.zarrow: 1 rows repeat"):
        compare(a, twice)
    with pytest.raises(InvalidInputError, match=r"d\.zarrow: some rows repeat"):
        compare(twice, a)
    with pytest.raises(UnknownNameError, match="no array 'f'"):
        compare(a, b, array=("e", "f"))
    with pytest.raises(UnknownNameError, match="no column 'p'"):
        compare(a, b, probability="p")
    with pytest.raises(InvalidInputError, match="must hold numbers"):
        compare(a, a, probability="query")
