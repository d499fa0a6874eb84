"""Probe — checked against scikit-learn fitted to the same rows in memory."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn import metrics
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import zarrow
from zarrow.analysis import probe
from zarrow.errors import InvalidInputError, UnknownNameError

ROWS, WIDTH = 3000, 10


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Vectors far from the origin from which labels can be told, some of them null, a few not finite."""
    rng = np.random.default_rng(3)
    vectors = (rng.standard_normal((ROWS, WIDTH)) * np.arange(1, WIDTH + 1)).astype(np.float32) + 100
    vectors[:, 4] = 2.5
    z = (vectors - vectors.mean(axis=0)) @ rng.standard_normal((WIDTH, 3)) / 10
    number = z[:, 0] + rng.normal(size=ROWS) + 5000
    vectors[[7, 1500]] = np.nan
    missing = rng.random(ROWS) < 0.1
    columns = {
        "subject_id": np.arange(ROWS) // 10,
        "query": pa.array([f"q{n % 3}" for n in range(ROWS)]).dictionary_encode(),
        "label": pa.array(rng.random(ROWS) < 1 / (1 + np.exp(-z[:, 0])), mask=missing),
        "kind": pa.array(np.array(["a", "b", "c"])[(z + rng.gumbel(size=z.shape)).argmax(axis=1)]),
        "number": number,
        "one": np.ones(ROWS, np.int64),
        "none": pa.nulls(ROWS, pa.bool_()),
        "maybe": pa.array([None if n < 10 else n // 10 for n in range(ROWS)]),
    }
    path = tmp_path_factory.mktemp("probe") / "a.zarrow"
    with zarrow.Writer(path, segment_rows=1024) as writer:
        writer.append(pa.table(columns), {"e": vectors})
        writer.finalize()
    return zarrow.open(path), vectors, columns


def fitted(model, found, vectors, target):
    """Return scikit-learn's model of the rows that the probe was fitted to, and what it predicts."""
    pipeline = make_pipeline(StandardScaler(), model)
    pipeline.fit(vectors[found.train_rows].astype(np.float64), target[found.train_rows])
    return pipeline[-1], pipeline


@pytest.mark.parametrize("kept", [0, 1 << 30])
def test_logistic_equals_scikit_learn(made, monkeypatch, kept):
    """Weights and probabilities are those of the full batch, whether blocks are kept or read again."""
    monkeypatch.setattr("zarrow.analysis._rows.folds.KEPT_BYTES", kept)
    store, vectors, columns = made
    found = probe(store, "label", tolerance=1e-7, by="query")
    label = np.array(columns["label"].fill_null(False))
    model, pipeline = fitted(LogisticRegression(tol=1e-8, max_iter=1000), found, vectors, label)
    np.testing.assert_allclose(found.weights, model.coef_, atol=1e-4)
    np.testing.assert_allclose(found.intercept, model.intercept_, atol=1e-4)
    theirs = pipeline.predict_proba(vectors[found.test_rows].astype(np.float64))
    np.testing.assert_allclose(found.predictions, theirs, atol=1e-4)
    np.testing.assert_allclose(found.predict(vectors[found.test_rows]), found.predictions)
    assert found.classes == [False, True]
    assert found.converged
    wanted = metrics.roc_auc_score(label[found.test_rows], theirs[:, 1])
    assert found.overall["auroc"] == pytest.approx(wanted, abs=1e-3)
    assert found.overall["auroc_low"] < wanted < found.overall["auroc_high"]
    assert found.report["query"].to_pylist() == ["q0", "q1", "q2"]
    assert sum(found.report["rows"].to_pylist()) == len(found.test_rows)
    assert found.evaluations[True].roc_curve()[0][0] == 0


def test_multinomial_equals_scikit_learn(made):
    """With three classes, weights, probabilities, accuracy and AUROC equal scikit-learn's."""
    store, vectors, columns = made
    found = probe(store, "kind", tolerance=1e-7, by="query")
    kind = np.array(columns["kind"].to_pylist())
    _, pipeline = fitted(LogisticRegression(tol=1e-8, max_iter=1000), found, vectors, kind)
    theirs = pipeline.predict_proba(vectors[found.test_rows].astype(np.float64))
    np.testing.assert_allclose(found.predictions, theirs, atol=1e-4)
    target = kind[found.test_rows]
    assert found.overall["accuracy"] == pytest.approx(
        metrics.accuracy_score(target, pipeline.classes_[theirs.argmax(axis=1)]), abs=2e-3
    )
    assert found.overall["accuracy_low"] < found.overall["accuracy"] < found.overall["accuracy_high"]
    wanted = metrics.roc_auc_score(target, theirs, multi_class="ovr", average="macro")
    assert found.overall["auroc"] == pytest.approx(wanted, abs=1e-3)
    assert found.report.num_rows == 9
    assert found.report.to_pylist()[1] | {"query": "q0", "class": "b"} == found.report.to_pylist()[1]


def test_ridge_equals_scikit_learn(made):
    """For a label far from zero, weights, predictions and R² equal scikit-learn's."""
    store, vectors, columns = made
    found = probe(store, "number", regularization=3.0, by="query")
    model, pipeline = fitted(Ridge(alpha=3.0), found, vectors, columns["number"])
    assert found.kind == "ridge"
    np.testing.assert_allclose(found.weights[0], model.coef_, atol=1e-5)
    theirs = pipeline.predict(vectors[found.test_rows].astype(np.float64))
    np.testing.assert_allclose(found.predictions[:, 0], theirs, atol=1e-2)
    target = columns["number"][found.test_rows]
    assert found.overall["r2"] == pytest.approx(metrics.r2_score(target, theirs), abs=1e-4)
    assert found.overall["rmse"] == pytest.approx(metrics.root_mean_squared_error(target, theirs), rel=1e-4)
    assert found.overall["mae"] == pytest.approx(metrics.mean_absolute_error(target, theirs), rel=1e-4)
    assert found.overall["r2_low"] < found.overall["r2"] < found.overall["r2_high"]
    assert found.report.num_rows == 3


def test_no_group_is_on_both_sides(made):
    """Each patient is in training or in testing; the share is of groups; every labelled row is used."""
    store, _, columns = made
    found = probe(store, "label", test_fraction=0.3, bootstrap=0)
    subjects = columns["subject_id"]
    assert not set(subjects[found.train_rows]) & set(subjects[found.test_rows])
    assert len(set(subjects[found.test_rows])) == 90
    used = len(found.train_rows) + len(found.test_rows)
    assert used + found.missing_labels + found.nonfinite_rows == ROWS
    assert found.nonfinite_rows == 2
    assert found.missing_labels == columns["label"].null_count
    assert not np.array_equal(found.test_rows, probe(store, "label", seed=1, bootstrap=0).test_rows)


def test_a_filter_and_single_rows(made):
    """A filter selects rows, and ``group=None`` splits single rows."""
    store, _, _ = made
    found = probe(store, "label", group=None, filter=pc.field("query") == "q1", bootstrap=0)
    assert set(np.concatenate([found.train_rows, found.test_rows]) % 3) == {1}
    assert found.overall["auroc_low"] is None


def test_bad_input_is_refused(made):
    """Every refusal says the rule and the column."""
    store, _, _ = made
    with pytest.raises(UnknownNameError, match="no column 'labl'"):
        probe(store, "labl")
    with pytest.raises(UnknownNameError, match="no column 'patient'"):
        probe(store, "label", group="patient")
    with pytest.raises(InvalidInputError, match="all 3000 labels of column 'one' are 1"):
        probe(store, "one")
    with pytest.raises(InvalidInputError, match="no row has a label in column 'none'"):
        probe(store, "none")
    with pytest.raises(InvalidInputError, match="10 rows have no 'maybe'"):
        probe(store, "label", group="maybe")
    with pytest.raises(InvalidInputError, match="test_fraction"):
        probe(store, "label", test_fraction=1)
    with pytest.raises(InvalidInputError, match="at least two groups, but the labelled rows have 1"):
        probe(store, "label", filter=pc.field("subject_id") == 3)
    with pytest.raises(InvalidInputError, match="for training has the label"):
        probe(store, "subject_id", kind="logistic", filter=pc.field("subject_id") < 4)
    with pytest.raises(InvalidInputError, match="kind"):
        probe(store, "label", kind="forest")
    with pytest.raises(InvalidInputError, match="must hold numbers"):
        probe(store, "kind", kind="ridge")
    with pytest.raises(InvalidInputError, match=r"\(n, 10\)"):
        probe(store, "label", bootstrap=0).predict(np.ones((2, 3)))
