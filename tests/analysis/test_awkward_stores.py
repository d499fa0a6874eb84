"""Do analyses answer or refuse rows all NaN or all zero, and stores without labels, without a silent NaN?"""

import math
from pathlib import Path

import numpy as np
import pytest

import zarrow
from zarrow.analysis import compare, describe, evaluate, map_rows, nearest, pca, probe
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
    """They are counted and left out; what then has no rows is null, or refused with the reason."""
    assert describe(nothing).arrays["e"].nonfinite_rows == ROWS
    assert describe(nothing).arrays["e"].norm_mean is None
    assert nearest(nothing, np.ones((1, WIDTH)), k=3).rows.shape == (1, 0)
    found = compare(nothing, sound)
    assert (found.matched, found.nonfinite_rows) == (ROWS, ROWS)
    assert found.cka is found.cosine_mean is found.procrustes is None
    for refused in (pca, map_rows):
        with pytest.raises(InvalidInputError, match="at least two rows without NaN and infinity"):
            refused(nothing)
    with pytest.raises(InvalidInputError, match="no row to train on has a finite vector in array 'e'"):
        probe(nothing, "label")
    report(nothing, tmp_path / "page.html")
    assert f"{ROWS} rows of vectors hold NaN or infinity" in (tmp_path / "page.html").read_text()


def test_rows_that_are_all_zero(zero: Store, sound: Store) -> None:
    """A zero vector has the cosine 0 with everything, and tells a probe nothing."""
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
    """There is nothing to evaluate, and that is said; the page is made without it."""
    with pytest.raises(UnknownNameError, match="no column 'occurs_prob'"):
        evaluate(sound, "occurs_prob", "label")
    with pytest.raises(UnknownNameError, match="no column 'boolean_value'"):
        probe(sound, "boolean_value")
    report(sound, tmp_path / "page.html")
    assert "AUROC" not in (tmp_path / "page.html").read_text()
