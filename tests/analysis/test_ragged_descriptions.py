"""Ragged arrays described — their vectors, and how many of them rows have, wherever a user looks."""

import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

import zarrow
from zarrow import analysis
from zarrow.analysis.report import report
from zarrow.cli import app
from zarrow.errors import InvalidInputError

ROWS = 120


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 8, ROWS)
    counts[3:5] = 0, 200
    values = rng.standard_normal((counts.sum(), 6)).astype("f4") + 1
    values[10, 2], values[20] = np.nan, 0
    return zarrow.Ragged(values, counts)


@pytest.fixture(scope="module")
def path(tmp_path_factory, tokens):
    path = tmp_path_factory.mktemp("tokens") / "s.zarrow"
    with zarrow.Writer(path, keys=["id"], segment_rows=32) as writer:
        columns = {"id": np.arange(ROWS), "kind": np.array(["even", "odd"])[np.arange(ROWS) % 2]}
        writer.append(columns, {"t": tokens})
        writer.finalize()
    return path


@pytest.mark.parametrize("block_bytes", [1, 2000, 8 << 20])
def test_the_vectors_are_described(path, tokens, monkeypatch, block_bytes):
    """Every statistic is that of all vectors put one behind the other, however they are read."""
    monkeypatch.setattr("zarrow.analysis._rows.blocks.BLOCK_BYTES", block_bytes)
    found = analysis.describe(zarrow.open(path)).arrays["t"]
    finite = tokens.values[np.isfinite(tokens.values).all(axis=1)].astype(float)
    assert (found.rows, found.nonfinite_rows, found.nan_values) == (len(tokens.values), 1, 1)
    assert (found.zero_rows, found.row_shape) == (1, (6,))
    assert np.allclose(found.mean, finite.mean(axis=0))
    assert np.allclose(found.std, finite.std(axis=0, ddof=1))
    assert np.isclose(found.norm_mean, np.linalg.norm(finite, axis=1).mean())
    counts = found.vectors
    assert (counts.rows, counts.vectors, counts.min, counts.max) == (ROWS, len(tokens.values), 0, 200)
    assert counts.rows_without == np.count_nonzero(tokens.counts == 0)
    assert counts.median == np.sort(tokens.counts)[ROWS // 2 - 1]


def test_groups_and_unions(path, tokens):
    """Vectors are grouped by the columns of their rows, in one store or several."""
    view = zarrow.union({"a": zarrow.open(path), "b": zarrow.open(path)})
    found = analysis.describe(view, ["t"], by=["model", "kind"]).arrays["t"]
    assert found.vectors.rows == 2 * ROWS
    lines = {(one["model"], one["kind"]): one for one in found.groups.to_pylist()}
    for kind, rows in (("even", slice(0, None, 2)), ("odd", slice(1, None, 2))):
        own = tokens[rows].values
        assert lines["a", kind]["rows"] == lines["b", kind]["rows"] == len(own)
        norms = np.linalg.norm(own[np.isfinite(own).all(axis=1)].astype(float), axis=1)
        assert np.isclose(lines["b", kind]["norm_mean"], norms.mean())


@pytest.mark.parametrize("rows", [0, 2])
def test_nothing_to_describe(tmp_path, rows):
    """A store without rows, and one whose rows have no vectors, are described."""
    with zarrow.Writer(tmp_path / "s") as writer:
        counts = [0] * rows
        writer.append({"id": np.arange(rows)}, {"t": zarrow.Ragged(np.empty((0, 4), "f2"), counts)})
        writer.finalize()
    found = analysis.describe(zarrow.open(tmp_path / "s")).arrays["t"]
    assert (found.rows, found.norm_mean, found.vectors.rows) == (0, None, rows)
    assert found.vectors.min == (0 if rows else None)
    assert CliRunner().invoke(app, ["info", str(tmp_path / "s")]).exit_code == 0
    report(zarrow.open(tmp_path / "s"), tmp_path / "report.html")


def test_commands(path, tokens):
    """describe, info and schema say how many vectors rows have, in words and as JSON."""

    def run(*words):
        result = CliRunner().invoke(app, [*words, str(path)], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.output

    total, median = len(tokens.values), np.sort(tokens.counts)[ROWS // 2 - 1]
    spread = f"0 to 200 per row, median {median}"
    said = run("describe")
    assert f"{total} vectors in 120 rows: {spread}" in " ".join(said.split())
    assert "120 × any × 6 float32" in said
    assert re.search("vectors with NaN or infinity +1", said)
    assert json.loads(run("describe", "--json"))["arrays"]["t"]["vectors"]["max"] == 200
    assert f"vectors: t {total}: {spread}" in run("info")
    facts = json.loads(run("info", "--json"))["arrays"]["t"]
    assert facts["vectors_per_row"] == {"min": 0, "median": median, "max": 200}
    assert facts["raw_bytes"] == tokens.values.nbytes
    assert "120 × any × 6 float32" in run("schema")


def test_the_report(path, tokens, tmp_path):
    """The report of a store that has a ragged array alone says and draws how many vectors rows have."""
    report(zarrow.open(path), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert f"t: {len(tokens.values)} vectors in 120 rows: 0 to 200 per row" in page
    assert "any × 6 float32" in page
    assert "Vectors per row of t" in page


def test_other_analyses_ask_for_one_vector_per_row(path):
    """What needs one vector per row says how to get it."""
    store = zarrow.open(path)
    for ask in (lambda: analysis.pca(store, "t"), lambda: analysis.probe(store, "kind", array="t")):
        with pytest.raises(InvalidInputError, match="pool them first"):
            ask()
