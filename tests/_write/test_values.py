"""Values in, values out — every way in, every type, first batch or later: equal, or refused before a byte.

The property: a batch either comes back equal from the store, also after a pack and a repair, or it is refused
with the column's name, and the store is as it was.
"""

from __future__ import annotations

import datetime as dt
import decimal
import math
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zarrow
from zarrow.errors import BatchError, InvalidInputError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
SMALL = st.integers(-(2**7), 2**7 - 1)
EPOCH = dt.datetime(2000, 1, 1)
MOMENTS = st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1))
ZONED = st.datetimes(dt.datetime(1700, 1, 2), dt.datetime(2200, 1, 1), timezones=st.just(dt.UTC))
DAYS = st.dates(dt.date(1700, 1, 1), dt.date(2200, 1, 1))
TIMES = st.times()
SECONDS = MOMENTS.map(lambda moment: moment.replace(microsecond=0))
DECIMALS = st.decimals(-99, 99, places=2)
FLOAT32 = st.floats(width=32)
FLOAT16 = st.floats(width=16)

SCALARS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.bool_(), st.booleans()),
    (pa.int8(), SMALL),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.float16(), FLOAT16),
    (pa.float32(), FLOAT32),
    (pa.float64(), st.floats()),
    (pa.string(), TEXT),
    (pa.large_string(), TEXT),
    (pa.string_view(), TEXT),
    (pa.binary(), st.binary(max_size=5)),
    (pa.binary_view(), st.binary(max_size=5)),
    (pa.binary(3), st.binary(min_size=3, max_size=3)),
    (pa.decimal128(4, 2), DECIMALS),
    (pa.decimal256(40, 2), DECIMALS),
    (pa.date32(), DAYS),
    (pa.date64(), DAYS),
    (pa.time32("s"), TIMES.map(lambda time: time.replace(microsecond=0))),
    (pa.time64("us"), TIMES),
    (pa.timestamp("s"), SECONDS),
    (pa.timestamp("ms"), SECONDS),
    (pa.timestamp("us"), MOMENTS),
    (pa.timestamp("us", "UTC"), ZONED),
    (pa.timestamp("ns", "UTC"), ZONED),
    (pa.duration("us"), st.timedeltas(dt.timedelta(-1000), dt.timedelta(1000))),
    (pa.dictionary(pa.int8(), pa.string()), TEXT),
    (pa.dictionary(pa.int32(), pa.int64()), SMALL),
    (pa.dictionary(pa.int32(), pa.large_string()), TEXT),
    (pa.dictionary(pa.int16(), pa.large_binary()), st.binary(max_size=5)),
]


def _nested(
    inner: st.SearchStrategy[tuple[pa.DataType, st.SearchStrategy[Any]]],
) -> st.SearchStrategy[tuple[pa.DataType, st.SearchStrategy[Any]]]:
    def lists(one: tuple[pa.DataType, st.SearchStrategy[Any]]) -> tuple[pa.DataType, st.SearchStrategy[Any]]:
        return pa.list_(one[0]), st.lists(st.none() | one[1], max_size=3)

    def views(one: tuple[pa.DataType, st.SearchStrategy[Any]]) -> tuple[pa.DataType, st.SearchStrategy[Any]]:
        return pa.list_view(one[0]), st.lists(st.none() | one[1], max_size=3)

    def fixed(one: tuple[pa.DataType, st.SearchStrategy[Any]]) -> tuple[pa.DataType, st.SearchStrategy[Any]]:
        return pa.list_(one[0], 2), st.lists(st.none() | one[1], min_size=2, max_size=2)

    def structs(
        one: tuple[pa.DataType, st.SearchStrategy[Any]],
    ) -> tuple[pa.DataType, st.SearchStrategy[Any]]:
        fields = pa.struct([("a", one[0]), ("b", pa.int64())])
        return fields, st.fixed_dictionaries({"a": st.none() | one[1], "b": st.none() | SMALL})

    return st.one_of(inner.map(lists), inner.map(views), inner.map(fixed), inner.map(structs))


TYPES = st.recursive(st.sampled_from(SCALARS), _nested, max_leaves=3)


def _as_array(values: list[Any], kind: pa.DataType) -> Any:
    return pa.array(values, kind)


def _as_pandas(values: list[Any], kind: pa.DataType) -> Any:
    return pd.Series(pa.array(values, kind).to_pandas(), dtype=object)


def _as_arrow_pandas(values: list[Any], kind: pa.DataType) -> Any:
    return pd.Series(pa.array(values, kind), dtype=pd.ArrowDtype(kind))


def _as_polars(values: list[Any], kind: pa.DataType) -> Any:
    return pl.Series("c", pa.array(values, kind))


def _as_numpy(values: list[Any], kind: pa.DataType) -> Any:
    return pa.array(values, kind).to_numpy(zero_copy_only=False)


def _as_chunks(values: list[Any], kind: pa.DataType) -> Any:
    half = len(values) // 2
    return pa.chunked_array([pa.array(values[:half], kind), pa.array(values[half:], kind)])


def _as_slice(values: list[Any], kind: pa.DataType) -> Any:
    return pa.array([*values[:1], *values], kind).slice(min(len(values), 1))


WAYS: dict[str, Callable[[list[Any], pa.DataType], Any]] = {
    "list": lambda values, _: values,
    "tuple": lambda values, _: tuple(values),
    "objects": lambda values, _: np.array([*values, None], dtype=object)[:-1],
    "arrow": _as_array,
    "chunks": _as_chunks,
    "slice": _as_slice,
    "table": lambda values, kind: pa.table({"c": pa.array(values, kind)}),
    "numpy": _as_numpy,
    "pandas": _as_pandas,
    "pandas with Arrow types": _as_arrow_pandas,
    "polars": _as_polars,
    "polars frame": lambda values, kind: pl.DataFrame({"c": _as_polars(values, kind)}),
}


def _equal(value: Any, got: Any) -> bool:
    """Tell whether a value came back; NaN is NaN, and a date that numpy made a moment is its midnight."""
    if value is None or value is pd.NaT or value is pd.NA:
        return got is None
    if isinstance(value, dict):
        return isinstance(got, dict) and all(
            _equal(value.get(key), got.get(key)) for key in got.keys() | value.keys()
        )
    if isinstance(value, np.ndarray) and value.dtype.kind in "mM":
        value = value.astype(f"{value.dtype.kind}8[us]").tolist()
    if isinstance(value, list | tuple | np.ndarray):
        return isinstance(got, list) and len(value) == len(got) and all(map(_equal, value, got))
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return got is None or (isinstance(got, float) and math.isnan(got))
        return value == got and math.copysign(1, value) == math.copysign(1, got)
    if isinstance(value, dt.date) and isinstance(got, dt.datetime) and not isinstance(value, dt.datetime):
        return got == dt.datetime.combine(value, dt.time(), got.tzinfo)
    return bool(value == got)


def _names(error: InvalidInputError) -> bool:
    """Tell whether a message names the column."""
    return "'c'" in str(error)


def _handed_over(made: Any, values: list[Any]) -> list[Any]:
    """Return the values as their form has them: numpy has no null among integers, for instance."""
    column = made["c"]
    if isinstance(column, np.ndarray) and column.dtype.kind in "mM":
        column = column.astype(f"{column.dtype.kind}8[us]")
    if isinstance(column, np.ndarray) or (isinstance(column, pd.Series) and column.dtype == object):
        return list(column.tolist())
    return values


def _require(holds: bool, what: object) -> None:
    assert holds, what


def _make(way: str, values: list[Any], kind: pa.DataType) -> Any:
    """Return the values in the form of a way in, or None if that form cannot hold them."""
    try:
        made = WAYS[way](values, kind)
    except (
        pa.ArrowException,
        ValueError,
        TypeError,
        OverflowError,
        NotImplementedError,
        pl.exceptions.PanicException,
        pl.exceptions.PolarsError,
    ):
        return None
    return made if isinstance(made, pa.Table | pl.DataFrame) else {"c": made}


@pytest.mark.slow
def test_values_come_back_equal_or_are_refused(profile: str) -> None:
    """Whatever the type and the form: what is stored is what was handed over, in both batches."""

    @settings(
        max_examples=20_000 if profile == "long" else 400,
        suppress_health_check=list(HealthCheck),
        deadline=None,
    )
    @given(
        one=TYPES,
        ways=st.tuples(st.sampled_from(sorted(WAYS)), st.sampled_from(sorted(WAYS))),
        declared=st.booleans(),
        data=st.data(),
    )
    def holds(
        one: tuple[pa.DataType, st.SearchStrategy[Any]],
        ways: tuple[str, str],
        declared: bool,
        data: st.DataObject,
    ) -> None:
        kind, strategy = one
        batches = [
            data.draw(st.lists(st.none() | strategy, min_size=1, max_size=4), label=way) for way in ways
        ]
        _check(kind, ways, batches, declared=declared)

    holds()


def _check(kind: pa.DataType, ways: tuple[str, str], batches: list[list[Any]], *, declared: bool) -> None:
    accepted: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/s.zarrow"
        try:
            writer = zarrow.Writer(path, schema=pa.schema({"c": kind}) if declared else None)
        except InvalidInputError as error:
            _require(_names(error), error)
            return
        with writer:
            for way, values in zip(ways, batches, strict=True):
                made = _make(way, values, kind)
                if made is None:
                    continue
                try:
                    writer.append(made)
                except InvalidInputError as error:
                    _require(_names(error), error)
                else:
                    accepted += _handed_over(made, values)
            if not accepted:
                return
            writer.finalize()
        stored = zarrow.open(path).table(["c"])["c"]
        got = stored.to_pylist()
        assert len(got) == len(accepted)
        for value, found in zip(accepted, got, strict=True):
            assert _equal(value, found), (kind, ways, value, found, stored.type)
        assert zarrow.verify(path, "full").ok
        zarrow.pack(path, segment_rows=1024, codecs=None)
        assert zarrow.repair(path).nothing_to_do
        packed = zarrow.open(path).table(["c"])["c"]
        assert packed.type == stored.type
        assert repr(packed.to_pylist()) == repr(got)  # so that NaN is NaN


@pytest.mark.parametrize("wrong", [0, None, b"c", ("a",), "\ud800"], ids=repr)
def test_names_are_text(wrong: Any, tmp_path: Any) -> None:
    """A column whose name is not text is refused, and the message says which."""
    with zarrow.Writer(tmp_path / "s.zarrow") as writer, pytest.raises(BatchError, match="name of a column"):
        writer.append({wrong: [1, 2]})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([{"top": "x"}], [{"top": "y", "second": "z"}]),
        ([[{"a": 1}]], [[{"a": 1, "b": 2}]]),
        ([[1, 2]], [[1.5]]),
        ([{"a": 1}], [{"a": 1.9}]),
        ([1], [decimal.Decimal("1.5")]),
        ([decimal.Decimal("1.5")], [decimal.Decimal("10.25")]),
        (["a"], [b"\xff"]),
        ([1], [True]),
        ([EPOCH.date()], [EPOCH.replace(hour=1)]),
    ],
)
def test_what_the_first_batch_s_type_cannot_hold_is_refused(first: Any, second: Any, tmp_path: Any) -> None:
    """A value that the column's type would cut, drop or change is refused; what was stored stays."""
    path = tmp_path / "s.zarrow"
    with zarrow.Writer(path) as writer:
        writer.append({"c": first})
        with pytest.raises(BatchError, match="column 'c'"):
            writer.append({"c": second})
        writer.finalize()
    assert zarrow.open(path).table(["c"])["c"].to_pylist() == first


@pytest.mark.parametrize(
    ("kind", "value"),
    [(pa.float32(), 1e300), (pa.float16(), 70000.0), (pa.list_(pa.float32()), [1e300])],
)
def test_no_float_becomes_infinite(kind: pa.DataType, value: Any, tmp_path: Any) -> None:
    """A finite float beyond the range of its column is refused."""
    schema = pa.schema({"c": kind})
    with (
        zarrow.Writer(tmp_path / "s.zarrow", schema=schema) as writer,
        pytest.raises(BatchError, match="cannot hold"),
    ):
        writer.append({"c": [value]})


@pytest.mark.parametrize("first", [[[], []], [{"a": None}], [None]], ids=repr)
def test_a_first_batch_that_tells_no_type_is_refused(first: Any, tmp_path: Any) -> None:
    """Values that fit many types freeze none of them; the next batch decides, or a schema."""
    with (
        zarrow.Writer(tmp_path / "s.zarrow") as writer,
        pytest.raises(BatchError, match="declare schema="),
    ):
        writer.append({"c": first})


def test_masked_and_null_vectors_are_refused(tmp_path: Any) -> None:
    """Vectors are never null: a mask is not dropped, and a null does not become a number."""
    masked = np.ma.masked_array([[1.0, -9999.0], [3.0, 4.0]], mask=[[0, 1], [0, 0]])
    with zarrow.Writer(tmp_path / "s.zarrow") as writer:
        for bad in (masked, pa.array([[1.0, None]]), pa.array([[1.0], None]), [[1.0], [2.0, 3.0]]):
            with pytest.raises(BatchError, match="array 'v'"):
                writer.append(None, {"v": bad})
        writer.append(None, {"v": np.ma.masked_array([[1.0, 2.0]])})
        writer.finalize()
    assert zarrow.open(tmp_path / "s.zarrow")["v"][:].tolist() == [[1.0, 2.0]]


def test_vectors_come_in_every_form(tmp_path: Any) -> None:
    """Lists of Arrow and Polars, sparse matrices, tensors and lists of tensors are vectors."""
    import scipy.sparse
    import torch

    rows = [[1.0, 2.0], [3.0, 4.0]]
    forms = [
        pa.array(rows, pa.list_(pa.float64(), 2)),
        pa.array(rows),
        pa.chunked_array([rows[:1], rows[1:]]),
        pl.Series(rows),
        pl.Series(rows, dtype=pl.Array(pl.Float64, 2)),
        scipy.sparse.csr_matrix(rows),
        torch.tensor(rows, dtype=torch.float64, requires_grad=True),
        [torch.tensor(row, dtype=torch.float64, requires_grad=True) for row in rows],
        pd.DataFrame(rows),
        rows,
    ]
    with zarrow.Writer(tmp_path / "s.zarrow") as writer:
        for form in forms:
            writer.append(None, {"v": form})
        writer.finalize()
    assert zarrow.open(tmp_path / "s.zarrow")["v"][:].tolist() == rows * len(forms)


def test_objects_of_polars_are_refused(tmp_path: Any) -> None:
    """A Polars column of Python objects would be stored as memory addresses."""
    frame = pl.DataFrame({"id": [1, 2], "subject": pl.Series([object(), object()], dtype=pl.Object)})
    with zarrow.Writer(tmp_path / "s.zarrow") as writer:
        for bad in (frame, {"subject": frame["subject"]}):
            with pytest.raises(BatchError, match=r"'subject'.*cast it to String or Binary"):
                writer.append(bad)


def test_the_named_index_of_a_frame_is_a_column(tmp_path: Any) -> None:
    """A pandas index that has a name is stored, also one that is a range; one without a name is not."""
    frame = pd.DataFrame({"x": [1, 2]}, index=pd.RangeIndex(10, 12, name="id"))
    with zarrow.Writer(tmp_path / "s.zarrow") as writer:
        writer.append(frame)
        writer.finalize()
    assert zarrow.open(tmp_path / "s.zarrow").table(["id", "x"]).to_pydict() == {"id": [10, 11], "x": [1, 2]}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([1, 2], [1.5], r"column 'c': expected int64, got 1.5 in row 0: declare schema= with float64"),
        (
            [decimal.Decimal("1.5")],
            [decimal.Decimal("10.25")],
            r"column 'c': expected decimal128\(2, 1\), got Decimal\('10.25'\) in row 0: .*declare schema=",
        ),
    ],
)
def test_a_refused_value_names_the_remedy(first: Any, second: Any, message: str, tmp_path: Any) -> None:
    """What does not fit the type that the first batch made is refused with the type to declare."""
    with zarrow.Writer(tmp_path / "s") as writer:
        writer.append({"c": first})
        with pytest.raises(InvalidInputError, match=message):
            writer.append({"c": second})
        writer.finalize()
    assert zarrow.open(tmp_path / "s").table()["c"].to_pylist() == first


def _of_bytes(*texts: bytes) -> pa.Array:
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(texts))]
    return pa.Array.from_buffers(pa.string(), len(texts), buffers)


@pytest.mark.parametrize(
    "values",
    [
        _of_bytes(b"fine", b"\xff"),
        pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), _of_bytes(b"fine", b"\xc3(")),
        pa.array([0, 86_400 * 10**9], pa.int64()).view(pa.time64("ns")),
        pa.ExtensionArray.from_storage(pa.json_(), pa.array(["1", "{bad"])),
        pa.ExtensionArray.from_storage(pa.json_(), pa.array(["[]", "NaN"])),
    ],
    ids=["text", "text in lists", "time of day", "JSON", "JSON of NaN"],
)
def test_arrow_arrays_that_are_not_valid_are_refused(values: pa.Array, tmp_path: Any) -> None:
    """What Arrow itself does not look at, and no reader would take from a frame, is refused with its row."""
    path = tmp_path / "run.zarrow"
    with zarrow.Writer(path) as writer:
        with pytest.raises(BatchError, match="column 'c': the value in row 1"):
            writer.append({"c": values})
        writer.append({"c": values.slice(0, 1)})
        writer.finalize()
    assert zarrow.open(path).table(["c"])["c"].to_pylist() == values.slice(0, 1).to_pylist()


CATEGORY = pa.dictionary(pa.int8(), pa.string())
RECORD = pa.struct([("a", CATEGORY)])


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (RECORD, [None]),
        (RECORD, [None, {"a": "x"}, None]),
        (pa.struct([("b", RECORD)]), [None, {"b": None}]),
        (pa.struct([("b", pa.list_(CATEGORY, 2))]), [None]),
        (pa.list_(RECORD), [[None], None, []]),
        (pa.large_list(RECORD), [[None], None, []]),
        (pa.list_(RECORD, 2), [None, [None, None]]),
        (pa.map_(pa.string(), RECORD), [[("k", None)], None, []]),
        (pa.map_(pa.string(), CATEGORY), [None, [("k", None)]]),
    ],
    ids=str,
)
def test_what_arrow_leaves_under_a_null_does_not_count(kind: pa.DataType, values: Any, tmp_path: Any) -> None:
    """Its builders put indices there into dictionaries without values, and its validation refuses them."""
    with zarrow.Writer(tmp_path / "run.zarrow") as writer:
        writer.append({"c": pa.array(values, kind), "id": range(len(values))})
        writer.finalize()
    assert zarrow.verify(tmp_path / "run.zarrow", "full").ok
    assert zarrow.open(tmp_path / "run.zarrow").table()["c"].to_pylist() == pa.array(values, kind).to_pylist()


def test_arrays_of_pandas_keep_their_nulls_and_types(tmp_path: Any) -> None:
    """Categories, nullable numbers and times are stored as they are, as arrays and within a frame."""
    given = {
        "order": pd.Categorical(["lo", "hi", None], categories=["lo", "mid", "hi"], ordered=True),
        "number": pd.Categorical([1, None, 2]),
        "half": pd.arrays.FloatingArray(np.array([1, np.nan, 3], "f4"), np.array([False, False, True])),
        "day": pd.DatetimeIndex(["2020-01-01", None, "2020-01-03"], tz="Europe/Berlin"),
    }
    for name, columns in ({"arrays": given, "frame": pd.DataFrame(given)}).items():
        with zarrow.Writer(tmp_path / name, segment_rows=4) as writer:
            writer.append(columns)
            writer.finalize()
        assert zarrow.verify(tmp_path / name, "full").ok
        table = zarrow.open(tmp_path / name).table()
        assert table["order"].to_pylist() == ["lo", "hi", None]
        assert table["number"].to_pylist() == [1, None, 2]
        assert table.schema.field("half").type == pa.float32()
        assert repr(table["half"].to_pylist()) == "[1.0, nan, None]"
        assert table["day"].null_count == 1


def test_columns_with_dots_beside_structs(tmp_path: Any) -> None:
    """Parquet calls a column "a.b" as it calls the field of a struct; each is read all the same."""
    columns = {"a.b": [1, 2], "a": [{"b": 3, "c": 4}, None], "x": ["p", "q"], "x.y": ["r", "s"]}
    with zarrow.Writer(tmp_path / "run.zarrow") as writer:
        writer.append(columns)
        writer.finalize()
    store = zarrow.open(tmp_path / "run.zarrow")
    for names in (["a"], ["a.b"], ["x"], ["x.y"], ["x.y", "a"]):
        assert store.table(names).to_pydict() == {name: columns[name] for name in names}


def test_engines_get_what_they_know(tmp_path: Any) -> None:
    """Tensors of float16 reach DuckDB, and a time zone that Polars does not know is no panic."""
    halves = pa.array([[1, 2]], pa.list_(pa.float16(), 2))
    columns = {
        "tensor": pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float16(), [2]), halves),
        "when": pa.array([0], pa.timestamp("us", "+05:30")),
    }
    with zarrow.Writer(tmp_path / "run.zarrow") as writer:
        writer.append(columns)
        writer.finalize()
    store = zarrow.open(tmp_path / "run.zarrow")
    assert [*store.sql("SELECT tensor FROM predictions").fetchall()[0][0]] == [1, 2]
    with pytest.raises(InvalidInputError, match="column 'when': Polars has no timestamp"):
        store.to_polars()
