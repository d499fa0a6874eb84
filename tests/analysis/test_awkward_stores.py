"""Awkward stores — all NaN, all zero or without labels: an answer or an error, never a silent NaN."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import zarrow
from zarrow.analysis import compare, compose, describe, evaluate, map_rows, nearest, pca, probe
from zarrow.analysis.report import report
from zarrow.errors import InvalidInputError, UnknownNameError
from zarrow.store import Store

ROWS, WIDTH = 50, 4


def write(path: Path, vectors: np.ndarray) -> Store:
    rows = np.arange(ROWS)
    with zarrow.Writer(path, keys=["id"]) as writer:
        writer.append(
            {"id": rows, "subject_id": rows, "label": rows % 2 == 0}, {"e": vectors.astype(np.float32)}
        )
        writer.finalize()
    return zarrow.open(path)


@pytest.fixture
def sound(tmp_path: Path) -> Store:
    return write(tmp_path / "sound.zarrow", np.random.default_rng(0).standard_normal((ROWS, WIDTH)))


@pytest.fixture
def nothing(tmp_path: Path) -> Store:
    return write(tmp_path / "nan.zarrow", np.full((ROWS, WIDTH), np.nan))


@pytest.fixture
def zero(tmp_path: Path) -> Store:
    return write(tmp_path / "zero.zarrow", np.zeros((ROWS, WIDTH)))


def test_rows_that_are_all_nan(nothing: Store, sound: Store, tmp_path: Path) -> None:
    """Rows of NaN are counted and left out; what then has no rows is null, or refused with the reason."""
    assert describe(nothing).arrays["e"].nonfinite_rows == ROWS
    assert describe(nothing).arrays["e"].norm_mean is None
    assert nearest(nothing, np.ones((1, WIDTH)), k=3).rows.shape == (1, 0)
    found = compare(nothing, sound)
    assert (found.matched, found.nonfinite_rows) == (ROWS, ROWS)
    assert found.cka is found.cosine_mean is found.procrustes is None
    for refused in (pca, map_rows):
        with pytest.raises(InvalidInputError, match="at least two rows without NaN and infinity"):
            refused(nothing)
    with pytest.raises(InvalidInputError, match="no row for training has a finite vector in array 'e'"):
        probe(nothing, "label")
    report(nothing, tmp_path / "page.html")
    assert f"{ROWS} rows of vectors hold NaN or infinity" in (tmp_path / "page.html").read_text()


def test_rows_that_are_all_zero(zero: Store, sound: Store) -> None:
    """A zero vector has the cosine 0 with everything, and a probe learns nothing from it."""
    for store, query in ((zero, np.ones((1, WIDTH))), (sound, np.zeros((1, WIDTH)))):
        found = nearest(store, query, k=3)
        assert found.rows.tolist() == [[0, 1, 2]]
        assert found.scores.tolist() == [[0, 0, 0]]
    assert compare(zero, sound).cosine_mean == 0
    assert compare(zero, sound).cka is None
    told = probe(zero, "label", bootstrap=0).overall
    assert told["auroc"] == 0.5
    assert not any(isinstance(one, float) and math.isnan(one) for one in told.values())


def test_stores_without_labels(sound: Store, tmp_path: Path) -> None:
    """A store without labels cannot be evaluated, which the error says; its page has no evaluation."""
    with pytest.raises(UnknownNameError, match="no column 'occurs_prob'"):
        evaluate(sound, "occurs_prob", "label")
    with pytest.raises(UnknownNameError, match="no column 'boolean_value'"):
        probe(sound, "boolean_value")
    report(sound, tmp_path / "page.html")
    assert "AUROC" not in (tmp_path / "page.html").read_text()


@pytest.fixture
def named(tmp_path: Path) -> Store:
    """A store whose columns are named like the measures of groups, and one with lists."""
    rows = np.arange(60)
    columns = {"subject_id": rows, "rows": rows % 3, "class": rows % 2, "list": pa.array([[1]] * 60)}
    columns |= {"label": rows % 2 == 0, "three": rows // 2 % 3, "p": rows / 60}
    with zarrow.Writer(tmp_path / "named.zarrow", keys=["subject_id"]) as writer:
        writer.append(columns, {"e": np.random.default_rng(0).integers(-9, 9, (60, 4)).astype(np.int8)})
        writer.finalize()
    return zarrow.open(tmp_path / "named.zarrow")


def test_groups_keep_their_keys_whatever_these_are_called(named: Store) -> None:
    """A key column named like a measure gets a trailing underscore, so that neither is lost."""
    tables = [
        describe(named, by="rows").arrays["e"].groups,
        evaluate(named, "p", "label", by="rows").table,
        probe(named, "label", by="rows", test_fraction=0.5).report,
        compare(named, named, by="rows").groups,
    ]
    for table in tables:
        assert table["rows_"].to_pylist() == [0, 1, 2]
        assert table.column_names.count("rows") == 1
    assert sum(tables[1]["rows"].to_pylist()) == 60
    found = probe(named, "three", by="class", test_fraction=0.5).report
    assert set(zip(found["class_"].to_pylist(), found["class"].to_pylist(), strict=True)) == {
        (one, other) for one in range(2) for other in range(3)
    }
    composed = compose(named, over="subject_id", by="rows", probability="p")
    assert (composed["rows_"].to_pylist(), composed["rows"].to_pylist()) == ([0, 1, 2], [20, 20, 20])
    facts = describe(named, by=["class", "class"], columns=["p"]).columns
    assert facts["class"].to_pylist() == [0, 1]


def test_columns_that_cannot_be_grouped_or_told(named: Store) -> None:
    """Lists are refused as groups and as labels, and the message says so."""
    for asked in (
        lambda: describe(named, by="list"),
        lambda: evaluate(named, "p", "label", by="list"),
        lambda: probe(named, "label", by="list"),
        lambda: probe(named, "label", group="list"),
        lambda: compare(named, named, by="list"),
        lambda: probe(named, "list"),
    ):
        with pytest.raises(InvalidInputError, match="of type list"):
            asked()


def test_vectors_of_integers_are_vectors(named: Store) -> None:
    """The rows of an integer array can be used as queries without a cast."""
    assert nearest(named, named["e"][7:9], k=1, metric="l2").scores.tolist() == [[0.0], [0.0]]


def test_a_path_is_no_store(named: Store) -> None:
    """A function that takes a store says so when it gets a path."""
    path = str(named.path)
    for asked in (
        lambda: evaluate(path, "p", "label"),
        lambda: compose(path),
        lambda: compare(named, path),
    ):
        with pytest.raises(InvalidInputError, match=r"as returned by zarrow.open\(path\), got str"):
            asked()
