"""Evaluate — checked against scikit-learn, and its bootstrap against a simple one."""

import functools
import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn import metrics
from sklearn.calibration import calibration_curve

import zarrow
from zarrow.analysis import evaluate
from zarrow.analysis._numbers import scores
from zarrow.analysis._numbers.draws import draw_rows
from zarrow.analysis._numbers.scores import Scores
from zarrow.analysis._pictures.curves import calibrate
from zarrow.analysis._questions import evaluate as evaluate_file
from zarrow.errors import InvalidInputError, UnknownNameError

ROWS = 3000


def write(path, table):
    with zarrow.Writer(path, segment_rows=1024) as writer:
        writer.append(table, {})
        writer.finalize()
    return zarrow.open(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Predictions with ties, censored rows, a group of one class and one without labels."""
    rng = np.random.default_rng(2)
    prob = (rng.integers(0, 40, ROWS) / 40).astype(np.float32)
    label = rng.random(ROWS) < prob * 0.6
    query = np.array([f"q{n % 5}" for n in range(ROWS)])
    censored = rng.random(ROWS) < 0.2
    censored[query == "q4"] = True
    label[query == "q3"] = True
    table = pa.table(
        {
            "subject_id": np.arange(ROWS) // 7,
            "query": pa.array(query).dictionary_encode(),
            "duration_days": pa.array((np.arange(ROWS) // 5 % 2 * 30).astype(np.float32)),
            "prob": prob,
            "label": pa.array(label, mask=censored),
            "number": pa.array(label.astype(np.float64), mask=censored),
        }
    )
    return write(tmp_path_factory.mktemp("evaluate") / "a.zarrow", table), prob, label, censored, query


def sklearn_ece(label, prob, bins=15):
    observed, predicted = calibration_curve(label, prob, n_bins=bins)
    places = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], prob)
    counts = np.bincount(places, minlength=bins)
    return float((np.abs(observed - predicted) * counts[counts > 0]).sum() / len(label))


def check(found, label, prob):
    label, prob = label.astype(bool), prob.astype(np.float64)
    assert found["labelled"] == len(label)
    assert found["positives"] == label.sum()
    assert found["prevalence"] == pytest.approx(label.mean())
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(label, prob), abs=1e-12)
    assert found["auprc"] == pytest.approx(metrics.average_precision_score(label, prob), abs=1e-12)
    assert found["brier"] == pytest.approx(metrics.brier_score_loss(label, prob), abs=1e-12)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(label, prob > 0.5))
    assert found["ece"] == pytest.approx(sklearn_ece(label, prob), abs=1e-12)
    for name in ("auroc", "auprc", "brier", "accuracy"):
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]


def test_equals_scikit_learn(made):
    """All metrics equal scikit-learn's, with ties and censored rows, overall and per group."""
    store, prob, label, censored, query = made
    found = evaluate(store, "prob", "label", by=["query"])
    check(found.overall, label[~censored], prob[~censored])
    assert found.missing_labels == censored.sum()
    groups = {one["query"]: one for one in found.table.to_pylist()}
    assert list(groups) == ["q0", "q1", "q2", "q3", "q4"]
    for name in ("q0", "q1", "q2"):
        chosen = (query == name) & ~censored
        check(groups[name], label[chosen], prob[chosen])
        assert groups[name]["rows"] == ROWS / 5


@pytest.mark.parametrize("unit", [None, "subject_id"])
@pytest.mark.parametrize("dtype", [pa.float32(), pa.float64()])
def test_rows_that_come_in_pieces_are_evaluated_as_one(made, dtype, unit, monkeypatch):
    """Where rows come in several batches, and ties in several pieces, every figure is the same."""
    approx = functools.partial(pytest.approx, rel=1e-12)
    table = made[0].table()
    place = table.schema.get_field_index("prob")
    table = table.set_column(place, "prob", table["prob"].cast(dtype))
    asked = {"by": ["query"], "bootstrap": 20 if unit else 0, "unit": unit}
    whole = evaluate(table, "prob", "label", **asked)
    monkeypatch.setattr(evaluate_file, "BATCH_ROWS", 11)
    monkeypatch.setattr(scores, "CHUNK", 5)
    pieces = evaluate(table, "prob", "label", **asked)
    for one, other in zip(
        [whole.overall, *whole.table.to_pylist()], [pieces.overall, *pieces.table.to_pylist()], strict=True
    ):
        assert one.keys() == other.keys()
        assert all(one[name] == other[name] or one[name] == approx(other[name]) for name in one)
    for one, other in zip(whole.roc_curve(), pieces.roc_curve(), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(whole.roc_curve("q1", 9), pieces.roc_curve("q1", 9), strict=True):
        np.testing.assert_array_equal(one, other)
    for column in whole.calibration_curve().column_names:
        one, other = (found.calibration_curve()[column].to_numpy() for found in (whole, pieces))
        np.testing.assert_allclose(one, other, rtol=1e-12)
    for name in ("predicted", "observed", "rows"):
        one, other = (getattr(calibrate(found.scores[-1]), name) for found in (whole, pieces))
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_what_is_not_defined_is_null(made):
    """A group of one class has no AUROC, one without labels has nothing; neither is NaN."""
    store, *_ = made
    found = evaluate(store, "prob", "label", by="query").table.to_pylist()
    assert found[3]["auroc"] is None
    assert found[3]["auroc_low"] is None
    assert found[3]["auprc"] == 1
    assert found[4]["labelled"] == 0
    assert found[4]["prevalence"] is None
    assert found[4]["brier"] is None
    assert not any(isinstance(v, float) and math.isnan(v) for one in found for v in one.values())


def test_curves_are_scikit_learns(made):
    """The ROC and the calibration curve of all rows and of a group equal scikit-learn's."""
    store, prob, label, censored, query = made
    found = evaluate(store, "prob", "label", by=["query", "duration_days"], bootstrap=0)
    fpr, tpr, thresholds = found.roc_curve()
    theirs = metrics.roc_curve(label[~censored], prob[~censored], drop_intermediate=False)
    for ours, other in zip((fpr, tpr, thresholds), theirs, strict=True):
        np.testing.assert_allclose(ours, other)
    assert len(found.roc_curve(max_points=10)[0]) == 10
    observed, predicted = calibration_curve(label[~censored], prob[~censored], n_bins=15)
    curve = found.calibration_curve()
    np.testing.assert_allclose(curve["observed"], observed)
    np.testing.assert_allclose(curve["mean_probability"], predicted)
    chosen = (query == "q1") & (np.arange(ROWS) // 5 % 2 == 1) & ~censored
    assert sum(found.calibration_curve(("q1", 30.0))["rows"].to_pylist()) == chosen.sum()
    with pytest.raises(InvalidInputError, match="no group 'q9'"):
        found.roc_curve("q9")
    with pytest.raises(InvalidInputError, match="both classes"):
        found.roc_curve({"query": "q3", "duration_days": 0.0})


def test_labels_may_be_zeros_and_ones(made):
    """Zeros and ones work like booleans, and NaN like null."""
    store, *_ = made
    assert evaluate(store, "prob", "number").overall == evaluate(store, "prob", "label").overall


def test_a_filter_chooses_rows(made):
    """Only rows that pass the filter count."""
    store, prob, label, censored, query = made
    found = evaluate(store, "prob", "label", filter=pc.field("query") == "q2")
    chosen = (query == "q2") & ~censored
    check(found.overall, label[chosen], prob[chosen])


def test_intervals_are_those_of_a_bootstrap(monkeypatch):
    """Intervals equal those of rows resampled by hand; intervals by unit are wider."""
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(60), 10)
    prob = np.repeat(rng.random(60), 10)
    label = np.repeat(rng.random(60) < 0.5, 10)
    drawn = []
    for _ in range(2000):
        rows = rng.integers(0, 600, 600)
        drawn.append(metrics.roc_auc_score(label[rows], prob[rows]))
    for at_a_time in (600, 64):
        monkeypatch.setattr(scores, "DRAWN_ROWS", at_a_time)
        low, high = Scores.of(label, prob).intervals(2000)["auroc"]
        np.testing.assert_allclose([low, high], np.quantile(drawn, [0.025, 0.975]), atol=0.006)
        wide = Scores.of(label, prob, unit).intervals(500)["auroc"]
        assert wide[1] - wide[0] > 2 * (high - low)


@pytest.mark.parametrize("rows", [1 << 15, 7])
def test_a_draw_is_scored_as_scikit_learn_weighs_rows(made, rows, monkeypatch):
    """A draw is scored like scikit-learn with the number of draws of a row as its weight."""
    _, prob, label, *_ = made
    monkeypatch.setattr(scores, "DRAWN_ROWS", rows)
    whole = Scores.of(label[:600], prob[:600])
    weights = np.concatenate(list(draw_rows(np.random.default_rng(5), 20, 600, min(rows, 600))), axis=1)
    found = whole.intervals(20, seed=5)
    truth, given = whole.label, whole.probability
    for name, score in {
        "auroc": metrics.roc_auc_score,
        "auprc": metrics.average_precision_score,
        "brier": metrics.brier_score_loss,
        "accuracy": lambda y, p, sample_weight: metrics.accuracy_score(
            y, p > 0.5, sample_weight=sample_weight
        ),
    }.items():
        drawn = [score(truth, given, sample_weight=weight) for weight in weights]
        np.testing.assert_allclose(found[name], np.quantile(drawn, [0.025, 0.975]), rtol=1e-9)


def test_intervals_by_unit_are_asked_for_by_name(made):
    """``unit=`` draws whole patients, and the same seed draws the same ones."""
    store, *_ = made
    one = evaluate(store, "prob", "label", unit="subject_id", by="query", seed=3)
    assert one.table.equals(evaluate(store, "prob", "label", unit="subject_id", by="query", seed=3).table)
    assert one.overall["auroc_low"] != evaluate(store, "prob", "label", seed=3).overall["auroc_low"]


def test_bad_input_is_refused(made, tmp_path):
    """Columns that are missing, or hold no labels or no probabilities, are refused."""
    store, *_ = made
    with pytest.raises(UnknownNameError, match="no column 'occurs'"):
        evaluate(store, "prob", "occurs")
    with pytest.raises(InvalidInputError, match="'query' is of type string"):
        evaluate(store, "prob", "query")
    with pytest.raises(InvalidInputError, match="'subject_id' has the value 2"):
        evaluate(store, "prob", "subject_id")
    with pytest.raises(InvalidInputError, match=r"0\.\.1.*'subject_id' has values from 0.0 to 428"):
        evaluate(store, "subject_id", "label")
    with pytest.raises(InvalidInputError, match="must hold numbers"):
        evaluate(store, "query", "label")


def test_missing_probabilities_are_counted(tmp_path):
    """NaN and null probabilities are counted and left out."""
    table = pa.table(
        {"p": [0.1, None, math.nan, 0.9, 0.4], "y": [False, True, True, True, None]},
    )
    found = evaluate(write(tmp_path / "a.zarrow", table), "p", "y")
    assert (found.missing_labels, found.missing_probabilities) == (1, 2)
    assert found.overall["labelled"] == 2
    assert found.overall["auroc"] == 1


def test_an_empty_store_has_no_metrics(tmp_path):
    """Without rows, counts are zero and metrics None."""
    table = pa.table(
        {"p": pa.array([], pa.float64()), "y": pa.array([], pa.bool_()), "q": pa.array([], pa.string())}
    )
    found = evaluate(write(tmp_path / "a.zarrow", table), "p", "y", by="q")
    assert found.overall["labelled"] == 0
    assert found.overall["auroc"] is None
    assert found.table.num_rows == 0


@pytest.mark.parametrize("rows", [100, 5000])
def test_the_interval_of_a_small_calibration_error_holds_it(rows):
    """The interval of a small calibration error contains it, though drawn rows look worse calibrated."""
    rng = np.random.default_rng(0)
    prob = rng.random(rows)
    found = evaluate(pa.table({"p": prob, "y": rng.random(rows) < prob}), "p", "y").overall
    assert 0 <= found["ece_low"] < found["ece"] < found["ece_high"]


def test_units_weighted_equally(made, monkeypatch):
    """With equal_units=True rows weigh as one part of their unit, in metrics and in draws of whole units."""
    monkeypatch.setattr(scores, "CHUNK", 700)
    monkeypatch.setattr(scores, "DRAWN_ROWS", 500)
    store, prob, label, censored, _ = made
    rows = np.flatnonzero(~censored)
    unit = (rows // 50) % 7 * (rows % 3)  # units of different size
    table = store.take(rows, arrays=[])[0].append_column("unit", pa.array(unit))
    weight = 1 / np.bincount(unit)[unit]
    found = evaluate(table, "prob", "label", unit="unit", equal_units=True, bootstrap=100).overall
    labels, scored = label[rows], prob[rows].astype(np.float64)
    weighted = {"sample_weight": weight}
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(labels, scored, **weighted), abs=1e-12)
    assert found["brier"] == pytest.approx(metrics.brier_score_loss(labels, scored, **weighted), abs=1e-12)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, scored > 0.5, **weighted))
    assert found["labelled"] == len(rows)
    assert found["auroc_low"] < found["auroc"] < found["auroc_high"]
    plain = evaluate(table, "prob", "label", unit="unit", bootstrap=100).overall
    assert plain["auroc"] == pytest.approx(metrics.roc_auc_score(labels, scored), abs=1e-12) != found["auroc"]


def test_censoring(made):
    """The AUROC of censoring is over all rows, whether they have a label or not; null where all are alike."""
    store, prob, _, censored, query = made
    found = evaluate(store, "prob", "label", by="query", censoring="prob", bootstrap=0)
    expected = metrics.roc_auc_score(censored, prob)
    assert found.overall["censor_auroc"] == pytest.approx(expected, abs=1e-12)
    here = query == "q1"
    of_each = dict(zip(*(found.table[name].to_pylist() for name in ("query", "censor_auroc")), strict=True))
    assert of_each["q1"] == pytest.approx(metrics.roc_auc_score(censored[here], prob[here]), abs=1e-12)
    assert of_each["q4"] is None


def everyquery_interval(label, score, rng):
    """What EQ_evaluate_multitask of EveryQuery 0.7.0 computes."""
    values, place = np.unique(score, return_inverse=True)
    cells = np.concatenate([np.bincount(place[one], minlength=len(values)) for one in (label, ~label)])
    counts = rng.multinomial(len(label), cells / len(label), size=1000)
    yes, no = counts[:, : len(values)], counts[:, len(values) :]
    tied = yes + no
    midrank = np.cumsum(tied, axis=1) - tied + (tied + 1.0) / 2.0
    n_yes, n_no = yes.sum(axis=1), no.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = ((yes * midrank).sum(axis=1) - n_yes * (n_yes + 1.0) / 2.0) / (n_yes * n_no)
    tail = (1.0 - 0.95) / 2.0 * 100.0
    return tuple(np.nanpercentile(found, [tail, 100.0 - tail]).tolist())


def test_intervals_of_everyquery(monkeypatch):
    """With draws="cells" intervals equal EQ_evaluate_multitask's to the last bit, in its order of tasks."""
    monkeypatch.setattr(scores, "DRAWN", 5000)
    rng = np.random.default_rng(3)
    tasks = [
        f'{{"durations": [{days}], "prior_answers": [{prior}]}}'
        for days in (30, 7)
        for prior in ("null", "true")
    ]
    rows = 400
    of = np.arange(rows) % 4
    label, prob = rng.random(rows) < 0.4, (rng.integers(0, 50, rows) / 50).astype(np.float32)
    label[of == 1] = True
    table = pa.table({"task": [tasks[one] for one in of], "prob": prob, "label": label})
    found = evaluate(table, "prob", "label", by="task", bootstrap=1000, draws="cells").table.to_pylist()
    generator = np.random.default_rng(0)
    for number in (2, 3, 0):  # 7 days before 30, null before true; of one class there is no draw
        one = next(line for line in found if line["task"] == tasks[number])
        here = of == number
        expected = everyquery_interval(label[here], prob[here].astype(np.float64), generator)
        assert (one["auroc_low"], one["auroc_high"]) == expected
        assert one["brier_low"] is None
    assert next(line for line in found if line["task"] == tasks[1])["auroc_low"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"equal_units": True}, "name their column with unit="),
        ({"draws": "cells", "unit": "subject_id"}, "choose one"),
        ({"draws": "cell"}, "'rows' or 'cells'"),
        ({"censoring": "censor"}, "censor"),
    ],
)
def test_options_that_do_not_fit(made, options, message):
    """Options that need another, or exclude each other, are refused with the rule."""
    with pytest.raises((InvalidInputError, UnknownNameError), match=message):
        evaluate(made[0], "prob", "label", **options)
