"""Late interaction and pooling — MaxSim and pooled vectors, against the plain definition."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
import pytest

import zarrow
import zarrow.analysis
import zarrow.testing
from zarrow.analysis._questions import late_interaction
from zarrow.errors import InvalidInputError

ROWS, WIDTH = 150, 8


@pytest.fixture(scope="module")
def tokens():
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 6, ROWS)
    counts[7] = 90
    return zarrow.Ragged(generator.standard_normal((counts.sum(), WIDTH)).astype("f4"), counts)


@pytest.fixture(scope="module", params=[None, "zstd"])
def store(request, tmp_path_factory, tokens):
    path = tmp_path_factory.mktemp("tokens") / "s.zarrow"
    with zarrow.Writer(path, keys=["id"], segment_rows=64, codecs=request.param) as writer:
        for start in range(0, ROWS, 17):
            here = slice(start, min(start + 17, ROWS))
            writer.append({"id": np.arange(ROWS)[here]}, {"t": tokens[here]})
        writer.finalize()
    return zarrow.open(path)


def _scores(tokens, query):
    return np.array([(query @ row.T).max(axis=1).sum() if len(row) else -np.inf for row in tokens])


def _best(scores, k):
    return np.lexsort((np.arange(len(scores)), -scores))[:k]


@pytest.mark.parametrize("block_bytes", [1, 300, 1 << 20])
def test_maxsim_is_the_definition(store, tokens, monkeypatch, block_bytes):
    monkeypatch.setattr(late_interaction, "BLOCK_BYTES", block_bytes)
    generator = np.random.default_rng(1)
    queries = [generator.standard_normal((count, WIDTH)).astype("f4") for count in (1, 4, 9)]
    found = zarrow.analysis.nearest(store, queries, metric="maxsim", k=12)
    for place, query in enumerate(queries):
        scores = _scores(tokens, query)
        assert found.rows[place].tolist() == _best(scores, 12).tolist()
        assert np.allclose(found.scores[place], scores[found.rows[place]], rtol=1e-5)


def test_forms_of_queries(store, tokens):
    query = tokens[3]
    one = zarrow.analysis.nearest(store, query, metric="maxsim", k=5)
    for form in ([query], zarrow.Ragged.of([query]), [3], 3, {"id": [3]}, np.arange(ROWS) == 3, slice(3, 4)):
        found = zarrow.analysis.nearest(store, form, metric="maxsim", k=5)
        assert found.rows.tolist() == one.rows.tolist()
    without = zarrow.analysis.nearest(store, [3], metric="maxsim", k=5, exclude_self=True)
    assert 3 not in without.rows
    few = zarrow.analysis.nearest(store, [3], metric="maxsim", k=50, filter=pc.field("id") < 10)
    assert sorted(few.rows[0].tolist()) == [row for row in range(10) if tokens.counts[row]]


def test_rows_that_are_not_finite_are_never_found(tmp_path, tokens):
    values = tokens.values.copy()
    values[tokens.offsets[7]] = np.nan
    with zarrow.Writer(tmp_path / "s") as writer:
        writer.append(None, {"t": zarrow.Ragged(values, tokens.counts)})
        writer.finalize()
    found = zarrow.analysis.nearest(zarrow.open(tmp_path / "s"), tokens[7], metric="maxsim", k=ROWS)
    assert found.rows.shape == (1, np.count_nonzero(tokens.counts) - 1)
    assert 7 not in found.rows


def test_wrong_questions_are_refused(store, tokens):
    empty = int(np.flatnonzero(tokens.counts == 0)[0])
    for queries, says in (
        (np.ones((2, WIDTH + 1), "f4"), "shape"),
        ([empty], "no vectors"),
        (np.full((1, WIDTH), np.nan, "f4"), "NaN"),
    ):
        with pytest.raises(InvalidInputError, match=says):
            zarrow.analysis.nearest(store, queries, metric="maxsim")
    with pytest.raises(InvalidInputError, match="pool"):
        zarrow.analysis.nearest(store, [1], array="t")
    with pytest.raises(InvalidInputError, match="another metric"):
        zarrow.analysis.nearest(zarrow.testing.example_store(), [1], array="query_embed", metric="maxsim")


@pytest.mark.parametrize("how", ["mean", "max", "first", "last"])
def test_pooled_vectors(tmp_path, tokens, how):
    with zarrow.Writer(tmp_path / "s", segment_rows=64) as writer:
        writer.append({"id": np.arange(ROWS)}, {"t": tokens})
        writer.finalize()
    name = zarrow.analysis.pool(zarrow.open(tmp_path / "s"), "t", how)
    found = zarrow.open(tmp_path / "s")[name]
    functions = {"mean": lambda row: row.mean(axis=0), "max": lambda row: row.max(axis=0)}
    functions |= {"first": lambda row: row[0], "last": lambda row: row[-1]}
    for row, vectors in enumerate(tokens):
        expected = functions[how](vectors) if len(vectors) else np.full(WIDTH, np.nan)
        assert np.allclose(found[row], expected, atol=1e-5, equal_nan=True)
    assert found.provenance["pooled_from"] == "t"
