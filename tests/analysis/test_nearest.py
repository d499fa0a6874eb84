"""Nearest neighbours — checked against brute force in float64."""

import numpy as np
import pyarrow.compute as pc
import pytest

import zarrow
from zarrow.analysis import nearest
from zarrow.errors import InvalidInputError, KeyNotFoundError, UnknownNameError

ROWS, WIDTH = 3000, 12


def write(path, vectors, **more):
    rows = len(vectors)
    with zarrow.Writer(path, keys=["id"], segment_rows=1024) as writer:
        for start in range(0, max(rows, 1), 700):
            here = slice(start, start + 700)
            writer.append(
                {"id": np.arange(rows)[here], "even": (np.arange(rows) % 2 == 0)[here]},
                {"e": vectors[here], **{name: values[here] for name, values in more.items()}},
            )
        writer.finalize()
    return zarrow.open(path)


def awkward(seed=0):
    """Vectors with copies all over, near copies, zeros, and rows that are not finite."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    vectors[rng.integers(0, ROWS, 600)] = vectors[rng.integers(0, 40, 600)]
    vectors[500:600] = vectors[5] * (1 + 1e-7 * rng.standard_normal((100, 1)).astype(np.float32))
    vectors[[50, 51, 2900]] = 0
    vectors[[60, 2999]] = np.nan
    vectors[61, 3] = np.inf
    return vectors


def brute(vectors, queries, k, metric, allowed=None, excluded=None):
    """Return what every pair's score in float64 says, ties by lower row."""
    vectors, queries = vectors.astype(np.float64), queries.astype(np.float64)
    finite = np.isfinite(vectors).all(axis=1)
    finite &= True if allowed is None else allowed
    rows, scores = [], []
    for place, query in enumerate(queries):
        with np.errstate(invalid="ignore"):
            if metric == "l2":
                values = -np.sqrt(np.einsum("ij,ij->i", query - vectors, query - vectors))
            else:
                values = np.einsum("ij,ij->i", np.broadcast_to(query, vectors.shape), vectors)
                if metric == "cosine":
                    norms = np.linalg.norm(query) * np.linalg.norm(vectors, axis=1)
                    values = np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)
        possible = finite.copy()
        if excluded is not None:
            possible[excluded[place]] = False
        candidates = np.flatnonzero(possible)
        order = candidates[np.lexsort((candidates, -values[candidates].round(13)))][:k]
        rows.append(order)
        scores.append(np.abs(values[order]) if metric == "l2" else values[order])
    return np.array(rows), np.array(scores)


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_equals_brute_force(tmp_path, metric, device, monkeypatch):
    """Rows, scores and ties equal those of scoring every pair, with numpy and with torch."""
    monkeypatch.setattr("zarrow.analysis._rows.blocks.BLOCK_BYTES", 200 * WIDTH * 4)
    vectors = awkward()
    store = write(tmp_path / "a.zarrow", vectors)
    queries = np.concatenate([vectors[:20], vectors[50:52], np.ones((3, WIDTH), np.float32)])
    found = nearest(store, queries, k=25, metric=metric, device=device)
    rows, scores = brute(vectors, queries, 25, metric)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-12, atol=1e-12)
    for ours, theirs, values in zip(found.rows, rows, found.scores, strict=True):
        # Copies whose scores differ in the 14th digit may stand in another order.
        apart = np.flatnonzero(np.abs(np.diff(values)) > 1e-12) + 1
        for one, other in zip(np.split(ours, apart)[:-1], np.split(theirs, apart)[:-1], strict=True):
            assert sorted(one) == sorted(other)


def test_of_equal_rows_the_lower_comes_first(tmp_path, monkeypatch):
    """Copies all over the store are returned in row order, in whatever blocks they are."""
    monkeypatch.setattr("zarrow.analysis._rows.blocks.BLOCK_BYTES", 64 * WIDTH * 4)
    rng = np.random.default_rng(0)
    kinds = rng.standard_normal((5, WIDTH)).astype(np.float32)
    kind = rng.integers(0, 5, ROWS)
    store = write(tmp_path / "a.zarrow", kinds[kind])
    for metric in ("cosine", "dot", "l2"):
        found = nearest(store, kinds, k=40, metric=metric)
        best = np.argmax(kinds @ kinds.T, axis=1) if metric == "dot" else np.arange(5)
        for query in range(5):
            assert found.rows[query].tolist() == np.flatnonzero(kind == best[query])[:40].tolist()


def test_rows_that_are_all_the_same(tmp_path):
    """Of identical rows the first ones win, and quickly, though all of them are candidates."""
    store = write(tmp_path / "a.zarrow", np.full((20_000, 8), 1.5, np.float16))
    found = nearest(store, np.random.default_rng(0).standard_normal((50, 8)), k=3)
    assert np.array_equal(found.rows, np.tile([0, 1, 2], (50, 1)))


def test_rows_far_from_the_origin(tmp_path):
    """Distances that differ by one are distinguished at a distance of a hundred thousand."""
    vectors = (np.random.default_rng(0).standard_normal((ROWS, WIDTH)) + 1e5).astype(np.float32)
    store = write(tmp_path / "a.zarrow", vectors)
    found = nearest(store, vectors[:30], k=8, metric="l2")
    rows, scores = brute(vectors, vectors[:30], 8, "l2")
    assert np.array_equal(found.rows, rows)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-12)


def test_asking_by_row_key_and_vector_is_the_same(tmp_path):
    """Row numbers (also negative), keys and vectors of several axes give the same result."""
    vectors = awkward()[:, :12].reshape(ROWS, 3, 4).clip(-9, 9).astype(np.float16)
    store = write(tmp_path / "a.zarrow", vectors)
    by_row = nearest(store, [7, -2], k=4)
    by_key = nearest(store, {"id": [7, 2998]}, k=4)
    by_vector = nearest(store, vectors[[7, 2998]], k=4)
    assert np.array_equal(by_row.rows, by_key.rows)
    assert np.array_equal(by_row.rows, by_vector.rows)
    assert by_row.query_rows.tolist() == by_key.query_rows.tolist() == [7, 2998]
    assert by_vector.query_rows is None
    assert nearest(store, vectors[7].reshape(-1)).rows.shape == (1, 10)


def test_a_filter_and_exclude_self(tmp_path):
    """Only rows that pass the filter are found, and a row can be kept from finding itself."""
    vectors = awkward()
    store = write(tmp_path / "a.zarrow", vectors)
    asked = np.array([0, 1, 700, 701])
    found = nearest(store, asked, k=6, filter=pc.field("even"), exclude_self=True)
    _, scores = brute(vectors, vectors[asked], 6, "cosine", np.arange(ROWS) % 2 == 0, asked)
    np.testing.assert_allclose(found.scores, scores, atol=1e-12)
    assert not (found.rows % 2).any()
    assert 0 not in found.rows[0]


def test_fewer_rows_than_asked_for(tmp_path):
    """Fewer columns are returned; where queries differ, −1 and the worst score fill them."""
    vectors = np.eye(4, dtype=np.float32)
    store = write(tmp_path / "a.zarrow", vectors)
    assert nearest(store, [0], k=100).rows.tolist() == [[0, 1, 2, 3]]
    found = nearest(store, [0, 1], k=4, filter=pc.field("even"), exclude_self=True)
    assert found.rows.tolist() == [[2, -1], [0, 2]]
    assert found.scores[0, 1] == -np.inf
    assert found.table(store, ["id"]).to_pylist()[-1] == {
        "query": 1,
        "rank": 2,
        "row": 2,
        "score": 0,
        "id": 2,
    }
    assert nearest(store, [0], filter=pc.field("id") > 10).rows.shape == (1, 0)


def test_an_empty_store_has_no_neighbours(tmp_path):
    """An empty store has no neighbours, which is no error."""
    store = write(tmp_path / "a.zarrow", np.ones((0, 4), np.float32))
    assert nearest(store, np.ones((2, 4))).rows.shape == (2, 0)


def test_what_is_found_comes_with_columns(tmp_path):
    """The table has a line per neighbour, with the columns of its row."""
    store = write(tmp_path / "a.zarrow", awkward())
    table = nearest(store, [3, 4], k=2).table(store)
    assert table.column_names == ["query", "rank", "row", "score", "id", "even", "sample_index"]
    assert table["id"].to_pylist() == table["row"].to_pylist()


def test_bad_input_is_refused(tmp_path):
    """Every refusal says the rule."""
    vectors = awkward()
    store = write(tmp_path / "a.zarrow", vectors, f=vectors[:, :2])
    with pytest.raises(InvalidInputError, match="there are: e, f"):
        nearest(store, [1])
    with pytest.raises(InvalidInputError, match=r"shape \(q, 12\).*got \(2, 5\)"):
        nearest(store, np.ones((2, 5)), array="e")
    with pytest.raises(InvalidInputError, match="query 1 has a NaN"):
        nearest(store, np.array([[1.0, 2.0], [np.nan, 1.0]]), array="f")
    with pytest.raises(InvalidInputError, match="row 60 has a NaN"):
        nearest(store, [60], array="e")
    with pytest.raises(IndexError, match="index 3000 is out of bounds"):
        nearest(store, [3000], array="e")
    with pytest.raises(KeyNotFoundError, match="id=9999"):
        nearest(store, {"id": [9999]}, array="e")
    with pytest.raises(InvalidInputError, match="k must be"):
        nearest(store, [1], array="e", k=0)
    with pytest.raises(InvalidInputError, match="metric"):
        nearest(store, [1], array="e", metric="hamming")
    with pytest.raises(InvalidInputError, match="exclude_self"):
        nearest(store, vectors[:1], array="e", exclude_self=True)
    with pytest.raises(InvalidInputError, match="queries must be vectors"):
        nearest(store, ["a"], array="e")
    with pytest.raises(InvalidInputError, match="device"):
        nearest(store, [1], array="e", device="abacus")
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        with pytest.raises(InvalidInputError, match="that this machine has"):
            nearest(store, [1], array="e", device="cuda")
    with pytest.raises(UnknownNameError):
        nearest(store, [1], array="e", filter=pc.field("nope") > 1)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_lengths_whose_squares_float32_does_not_hold(tmp_path, metric, scale):
    """Rows and their order are right even where products overflow or vanish."""
    vectors = np.random.default_rng(0).standard_normal((200, WIDTH)).astype(np.float32) * np.float32(scale)
    store = write(tmp_path / "a.zarrow", vectors)
    found = nearest(store, [3, 150], k=5, metric=metric)
    plain = vectors.astype(np.float64) / scale
    assert found.rows.tolist() == brute(plain, plain[[3, 150]], 5, metric)[0].tolist()
    if metric != "cosine":
        with pytest.raises(InvalidInputError, match="must be shorter than"):
            nearest(store, np.full((1, WIDTH), 1e200), metric=metric)
