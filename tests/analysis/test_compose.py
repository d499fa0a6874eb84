"""Compose — composite tasks, checked against Polars."""

import math

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import zarrow
from zarrow.analysis import compose, evaluate
from zarrow.errors import InvalidInputError, UnknownNameError

ROWS = 1200


def write(path, table):
    with zarrow.Writer(path, segment_rows=1024) as writer:
        writer.append(table, {})
        writer.finalize()
    return zarrow.open(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Four queries per subject and time, over two durations, some labels null."""
    rng = np.random.default_rng(0)
    numbers = np.arange(ROWS)
    table = pa.table(
        {
            "subject_id": numbers // 24,
            "prediction_time": pa.array(numbers // 8, pa.timestamp("us", "UTC")),
            "query": pa.array([f"q{n % 4}" for n in numbers]).dictionary_encode(),
            "duration_days": pa.array((numbers // 4 % 2 * 30.0).astype(np.float32)),
            "occurs_prob": rng.random(ROWS).astype(np.float32),
            "occurs": pa.array(rng.random(ROWS) < 0.2, mask=rng.random(ROWS) < 0.2),
            "number": np.where(rng.random(ROWS) < 0.2, math.nan, numbers % 2),
        }
    )
    return write(tmp_path_factory.mktemp("compose") / "a.zarrow", table), table


BY = ("subject_id", "prediction_time", "duration_days")


@pytest.mark.parametrize("how", ["max", "or", "sum", "mean"])
def test_equals_polars(made, how):
    """Probabilities and labels of every group equal Polars', ordered by key."""
    store, table = made
    p = pl.col("occurs_prob").cast(pl.Float64)
    joined = {"max": p.max(), "or": 1 - (1 - p).product(), "sum": p.sum(), "mean": p.mean()}[how]
    wanted = joined.alias("occurs_prob"), pl.col("occurs").any(ignore_nulls=False)
    frame = pl.from_arrow(table).group_by(BY).agg(*wanted).sort(BY)
    found = compose(store, how, by=BY, label="occurs")
    assert found.column_names == [*BY, "rows", "occurs_prob", "occurs"]
    np.testing.assert_allclose(found["occurs_prob"], frame["occurs_prob"].to_numpy(), rtol=1e-12)
    assert found["occurs"].to_pylist() == frame["occurs"].to_list()
    assert found["subject_id"].to_pylist() == frame["subject_id"].to_list()
    assert set(found["rows"].to_pylist()) == {4}


def test_composites_can_be_evaluated(made):
    """`evaluate` accepts the table as it is."""
    store, _ = made
    found = compose(store, "or", by=BY, label="occurs", filter=pc.field("query") != "q3")
    assert set(found["rows"].to_pylist()) == {3}
    evaluation = evaluate(found, "occurs_prob", "occurs", by="duration_days")
    assert evaluation.table.num_rows == 2
    assert evaluation.missing_labels == found["occurs"].null_count
    with pytest.raises(UnknownNameError, match="no column 'label'"):
        evaluate(found, "occurs_prob", "label")


def test_labels_may_be_numbers(made):
    """Labels may be zeros and ones, with NaN for unknown."""
    store, table = made
    found = compose(store, by=BY, label="number")["number"].to_pylist()
    numbers = table["number"].to_numpy().reshape(-1, 4)
    for label, four in zip(found, numbers, strict=True):
        assert label is (True if (four == 1).any() else None if np.isnan(four).any() else False)


def test_a_missing_probability_makes_the_composite_unknown(tmp_path):
    """A null or NaN makes the composite null: it might have been larger."""
    table = pa.table(
        {"subject_id": [1, 1, 2, 2, 3], "query": list("ababa"), "p": [0.5, None, 0.2, math.nan, 0.3]}
    )
    found = compose(write(tmp_path / "a.zarrow", table), by="subject_id", probability="p")
    assert found["p"].to_pylist() == [None, None, 0.3]


def test_bad_input_is_refused(made, tmp_path):
    """A query that occurs twice in a group is refused, and so are other bad columns."""
    store, _ = made
    with pytest.raises(InvalidInputError, match=r"a value of 'query' occurs more than once.*subject_id 0"):
        compose(store)
    with pytest.raises(InvalidInputError, match="how must be"):
        compose(store, "min")
    with pytest.raises(UnknownNameError, match="no column 'prob'"):
        compose(store, by=BY, probability="prob")
    with pytest.raises(InvalidInputError, match=r"in 0\.\.1.*subject_id"):
        compose(store, by=BY, probability="subject_id")
    with pytest.raises(InvalidInputError, match="must hold probabilities"):
        compose(store, by=BY, probability="query")
    with pytest.raises(InvalidInputError, match="labels must be yes or no"):
        compose(store, by=BY, label="subject_id")
    with pytest.raises(InvalidInputError, match="labels of yes and no"):
        compose(store, by=BY, label="query")
    with pytest.raises(InvalidInputError, match="by must name"):
        compose(store, by=[])


def test_an_empty_selection_is_an_empty_table(made):
    """If no rows pass the filter, the table is empty."""
    store, _ = made
    assert compose(store, by=BY, filter=pc.field("query") == "q9").num_rows == 0
