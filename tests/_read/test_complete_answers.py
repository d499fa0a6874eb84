"""Complete answers — whatever prunes, every engine finds the rows that brute force in memory finds.

The property: columns of every type that engines compare, in several small parts, with the values that
statistics get wrong (NaN, nulls, -0.0, empty and very long strings); and random conditions, which are
rendered for Arrow, DuckDB and Polars, and evaluated row by row in Python.
"""

from __future__ import annotations

import datetime as dt
import decimal
import math
import operator
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zarrow
from zarrow._format.arrow import computable_type, value_type
from zarrow._read import pruning

SEGMENT_ROWS = 4


class Text(str):
    """A text whose representation is short."""

    def __repr__(self) -> str:
        return f"{self[:1]!r} * {len(self)}"


class Bytes(bytes):
    """Bytes whose representation is short."""

    def __repr__(self) -> str:
        return f"{self[:1]!r} * {len(self)}"


LONG = Text("x" * 300)  # beyond the length that page indexes keep
HUGE = Text("ÿ" * 5000)  # beyond the length for which there are statistics
TEXTS = ["", "a", "b", "ab", "é", "\U0010ffff", "nan", LONG, Text(LONG + "a"), HUGE]
BYTES = [*(Bytes(text.encode()) for text in TEXTS), b"\x00", b"\xff\xfe"]
FLOATS = [math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0, 0.5, -1.0, 1.0, 2.0, 65504.0, 2.0**-24]
DAY, MOMENT = dt.date(2020, 2, 29), dt.datetime(2020, 2, 29, 23, 59, 59, 999000)
MOMENTS = [MOMENT + dt.timedelta(hours=hours) for hours in (-400_000, -1, 0, 1, 3000)]
DECIMALS = [decimal.Decimal(text) for text in ("-99.99", "-0.01", "0.00", "0.01", "1.50", "99.99")]

TYPES: list[tuple[pa.DataType, list[Any]]] = [
    (pa.bool_(), [False, True]),
    (pa.int8(), [-128, -1, 0, 1, 127]),
    (pa.uint8(), [0, 1, 127, 128, 255]),
    (pa.uint32(), [0, 1, 2**31, 2**32 - 1]),
    (pa.int64(), [-(2**63), -1, 0, 1, 2**53, 2**53 + 1, 2**63 - 1]),
    (pa.uint64(), [0, 1, 2**63 - 1, 2**63, 2**64 - 1]),
    (pa.float16(), FLOATS),
    (pa.float32(), FLOATS),
    (pa.float64(), [*FLOATS, 1e300, 0.1]),
    (pa.string(), TEXTS),
    (pa.large_string(), TEXTS),
    (pa.dictionary(pa.int32(), pa.string()), TEXTS),
    (pa.binary(), BYTES),
    (pa.decimal128(4, 2), DECIMALS),
    (pa.decimal128(12, 2), DECIMALS),
    (pa.decimal128(38, 2), DECIMALS),
    (pa.date32(), [DAY, dt.date(1969, 12, 31), dt.date(1700, 1, 1), dt.date(9999, 12, 31)]),
    (pa.timestamp("ms"), MOMENTS),
    (pa.timestamp("us"), MOMENTS),
    (pa.timestamp("ns"), MOMENTS),
    (pa.timestamp("us", "UTC"), [one.replace(tzinfo=dt.UTC) for one in MOMENTS]),
    (pa.timestamp("us", "America/New_York"), [one.replace(tzinfo=dt.UTC) for one in MOMENTS]),
    (pa.time64("us"), [one.time() for one in MOMENTS] + [dt.time(), dt.time(23, 59, 59, 999999)]),
]
SQL_TYPES = {
    "bool": "BOOLEAN", "int8": "TINYINT", "uint8": "UTINYINT", "uint32": "UINTEGER", "int64": "BIGINT",
    "uint64": "UBIGINT", "halffloat": "FLOAT", "float": "FLOAT", "double": "DOUBLE", "string": "VARCHAR",
    "binary": "BLOB", "date32[day]": "DATE", "timestamp[ms]": "TIMESTAMP", "timestamp[us]": "TIMESTAMP",
    "timestamp[ns]": "TIMESTAMP_NS", "time64[us]": "TIME",
}  # fmt: skip

Condition = tuple[Any, ...]
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt,
    ">=": operator.ge,
}  # fmt: skip


def _cast_to(kind: pa.DataType) -> tuple[pa.DataType | None, Any, Callable[[Any], Any]]:
    """Return a type that a column is cast to in a filter, Polars' name of it, and the cast of one value."""
    if pa.types.is_floating(kind):
        return pa.float64(), pl.Float64, float
    if pa.types.is_integer(kind):
        return pa.string(), pl.String, str
    if pa.types.is_timestamp(kind) and kind.tz is None:
        return pa.date32(), pl.Date, dt.datetime.date
    return None, None, repr


@st.composite
def _columns(draw: st.DrawFn) -> dict[str, tuple[pa.DataType, list[Any]]]:
    """Return columns of some types with few different values, of one length."""
    rows = draw(st.integers(1, 14))
    columns = {}
    for name in ("a", "b", "s.x")[: draw(st.integers(1, 3))]:
        kind, values = draw(st.sampled_from(TYPES))
        some = draw(st.lists(st.sampled_from([None, *values]), min_size=1, max_size=4))
        drawn = draw(st.lists(st.sampled_from(some), min_size=rows, max_size=rows))
        columns[name] = kind, sorted(drawn, key=repr) if draw(st.booleans()) else drawn
    return columns


def _leaves(columns: dict[str, tuple[pa.DataType, list[Any]]]) -> st.SearchStrategy[Condition]:
    """Return comparisons of columns with values of their own, and with ones near to them."""
    found: list[st.SearchStrategy[Condition]] = []
    for name, (kind, values) in columns.items():
        known = next(every for one, every in TYPES if one == kind)
        value = st.sampled_from([*(value for value in values if value is not None), *known])
        found += [
            st.tuples(st.just("compare"), st.just(name), st.sampled_from(sorted(COMPARE)), value),
            st.tuples(st.just("between"), st.just(name), value, value),
            st.tuples(st.just("null"), st.just(name)),
            st.tuples(st.just("in"), st.just(name), st.lists(value, min_size=1, max_size=3).map(tuple)),
        ]
        if pa.types.is_floating(kind):
            found.append(st.tuples(st.just("nan"), st.just(name)))
        to, _, cast = _cast_to(kind)
        if to is not None:
            op = st.sampled_from(sorted(COMPARE))
            found.append(st.tuples(st.just("cast"), st.just(name), op, value.map(cast)))
    rows = len(columns["a"][1])
    found.append(
        st.tuples(st.just("compare"), st.just("row"), st.sampled_from(sorted(COMPARE)), st.integers(-1, rows))
    )
    return st.one_of(found)


def _conditions(columns: dict[str, tuple[pa.DataType, list[Any]]]) -> st.SearchStrategy[Condition]:
    return st.recursive(
        _leaves(columns),
        lambda inner: st.one_of(
            st.tuples(st.just("not"), inner), st.tuples(st.sampled_from(["and", "or"]), inner, inner)
        ),
        max_leaves=3,
    )


# Brute force


def _passes(one: Condition, row: dict[str, Any], *, nan_is_largest: bool) -> Any:
    """Evaluate a condition for one row, by SQL's logic of three values."""
    what = one[0]
    if what == "not":
        inner = _passes(one[1], row, nan_is_largest=nan_is_largest)
        return None if inner is None else not inner
    if what in ("and", "or"):
        sides = [_passes(side, row, nan_is_largest=nan_is_largest) for side in one[1:]]
        if (what == "or") in sides:
            return what == "or"
        return None if None in sides else what == "and"
    value = row[one[1]]
    if what == "null":
        return value is None
    if value is None:
        return False if what == "in" and not nan_is_largest else None  # Arrow's is_in is never null
    if what == "nan":
        return math.isnan(value)
    if what == "in":
        return any(_compare("==", value, other, nan_is_largest or None) for other in one[2])
    if what == "between":
        low, high = (
            _compare(op, value, other, nan_is_largest)
            for op, other in zip((">=", "<="), one[2:], strict=True)
        )
        return low and high
    if what == "cast":
        value = value.date() if isinstance(value, dt.datetime) else type(one[3])(value)
    return _compare(one[2], value, one[3], nan_is_largest)


def _compare(op: str, left: Any, right: Any, nan_is_largest: bool | None) -> bool:
    """Compare two values; None as `nan_is_largest`: by bits, as Arrow's is_in has NaN and zero."""
    if isinstance(left, float) and nan_is_largest is not False:
        left, right = (_place(side, signed=nan_is_largest is None) for side in (left, right))
    return bool(COMPARE[op](left, right))


def _place(value: float, *, signed: bool) -> tuple[bool, float, float]:
    sign = math.copysign(1, value) if signed and not value > 0 else 0.0
    return (True, 0.0, sign) if math.isnan(value) else (False, value, sign)


# Conditions of each engine


def _as_arrow(one: Condition, kinds: dict[str, pa.DataType]) -> pc.Expression:
    what = one[0]
    if what == "not":
        return ~_as_arrow(one[1], kinds)
    if what in ("and", "or"):
        left, right = (_as_arrow(side, kinds) for side in one[1:])
        return left & right if what == "and" else left | right
    field, kind = pc.field(*one[1].split(".")), computable_type(value_type(kinds[one[1]]))
    if what == "null":
        return field.is_null()
    if what == "nan":
        return field.is_nan()
    if what == "in":
        return field.isin(pa.array(one[2], kind))
    if what == "cast":
        to, _, _ = _cast_to(kind)
        return COMPARE[one[2]](field.cast(to), pa.scalar(one[3], to))
    values = [pa.scalar(value, kind) for value in one[2 if what == "between" else 3 :]]
    if what == "between":
        return (field >= values[0]) & (field <= values[1])
    return COMPARE[one[2]](field, values[0])


def _as_polars(one: Condition, kinds: dict[str, pa.DataType]) -> pl.Expr:
    what = one[0]
    if what == "not":
        return ~_as_polars(one[1], kinds)
    if what in ("and", "or"):
        left, right = (_as_polars(side, kinds) for side in one[1:])
        return left & right if what == "and" else left | right
    name, _, child = one[1].partition(".")
    column, kind = (pl.col(name).struct.field(child) if child else pl.col(name)), kinds[one[1]]
    if what == "null":
        return column.is_null()
    if what == "nan":
        return column.is_nan()
    if what == "cast":
        _, to, _ = _cast_to(kind)
        return COMPARE[one[2]](column.cast(to), pl.lit(one[3], to))
    values = pl.Series(pa.array(one[2] if what == "in" else one[2 if what == "between" else 3 :], kind))
    if what == "in":
        return column.is_in(values.implode())
    literals = [pl.lit(values[index], values.dtype) for index in range(len(values))]
    if what == "between":
        return column.is_between(literals[0], literals[1])
    return COMPARE[one[2]](column, literals[0])


def _as_sql(one: Condition, kinds: dict[str, pa.DataType]) -> str:
    what = one[0]
    if what == "not":
        return f"(NOT {_as_sql(one[1], kinds)})"
    if what in ("and", "or"):
        return f"({_as_sql(one[1], kinds)} {what} {_as_sql(one[2], kinds)})"
    name, kind = one[1], kinds[one[1]]
    if what == "null":
        return f"({name} IS NULL)"
    if what == "nan":
        return f"isnan({name})"
    if what == "in":
        return f"({name} IN ({', '.join(_literal(value, kind) for value in one[2])}))"
    if what == "between":
        return f"({name} BETWEEN {_literal(one[2], kind)} AND {_literal(one[3], kind)})"
    if what == "cast":
        to, _, _ = _cast_to(kind)
        return f"(CAST({name} AS {SQL_TYPES[str(to)]}) {one[2]} {_literal(one[3], to)})"
    return f"({name} {one[2]} {_literal(one[3], kind)})"


def _literal(value: Any, kind: pa.DataType) -> str:
    if isinstance(value, bytes):
        return "'" + "".join(f"\\x{byte:02x}" for byte in value) + "'::BLOB"
    if pa.types.is_decimal(kind):
        return f"'{value}'::DECIMAL({kind.precision}, {kind.scale})"
    if pa.types.is_timestamp(kind) and kind.tz:
        return f"'{value.isoformat()}'::TIMESTAMPTZ"
    named = str(kind).replace("large_", "") if not pa.types.is_dictionary(kind) else "string"
    text = str(value).replace("'", "''")
    return f"'{text}'::{SQL_TYPES[named]}"


# The property


def _write(path: Path, columns: dict[str, tuple[pa.DataType, list[Any]]], keys: list[str]) -> pa.Table:
    arrays = {name: pa.array(values, kind) for name, (kind, values) in columns.items()}
    if "s.x" in arrays:
        arrays["s"] = pa.StructArray.from_arrays([arrays.pop("s.x")], ["x"])
    table = pa.table(arrays)
    with zarrow.Writer(path, segment_rows=SEGMENT_ROWS, keys=keys) as writer:
        writer.append(table)
        writer.finalize()
    return table


def _may_be_key(name: str, values: list[Any]) -> bool:
    return "." not in name and not any(value is None or value != value for value in values)


def _rows(found: Any) -> list[int]:
    return sorted(found["row"].to_list() if isinstance(found, pl.DataFrame) else found["row"].to_pylist())


def _engines(store: zarrow.Store) -> dict[str, Callable[[Condition, dict[str, pa.DataType]], list[int]]]:
    """Return a function per engine that finds the rows for which a condition is true."""
    parts = f"{store.path}/table/*.parquet"
    dataset = ds.dataset(f"{store.path}/table", format="parquet")
    plain = {"dataset": lambda one, kinds: _rows(dataset.to_table(["row"], filter=_as_arrow(one, kinds)))}
    return {
        **({} if "halffloat" in str(store.schema) else plain),  # Arrow itself cannot compare float16
        "table": lambda one, kinds: _rows(store.table(["row"], filter=_as_arrow(one, kinds))),
        "join": lambda one, kinds: [
            row for batch, _ in store.join(_as_arrow(one, kinds)) for row in batch["row"].to_pylist()
        ],
        "sql": lambda one, kinds: _fetched(
            store.sql(f"SELECT row FROM predictions WHERE {_as_sql(one, kinds)}")
        ),
        "duckdb": lambda one, kinds: _fetched(
            CONNECTION.sql(f"SELECT row FROM '{parts}' WHERE {_as_sql(one, kinds)}")
        ),
        "to_polars": lambda one, kinds: _rows(store.to_polars().filter(_as_polars(one, kinds)).collect()),
        "polars": lambda one, kinds: _rows(pl.scan_parquet(parts).filter(_as_polars(one, kinds)).collect()),
    }


def _fetched(relation: duckdb.DuckDBPyRelation) -> list[int]:
    return sorted(row for (row,) in relation.fetchall())


IEEE = ("table", "join", "dataset")
"""The engines for which no comparison with NaN is true; for the others, NaN is NaN and above all numbers."""
CONNECTION = duckdb.connect()


@pytest.mark.slow
def test_every_engine_finds_the_rows_that_brute_force_finds(
    profile: str, figures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random conditions on random columns: rows by engine are those of Python, row by row."""
    tried = 0
    monkeypatch.setattr(pruning, "_LEAST_GROUP", 2)  # so that groups of segments are asked, too

    @settings(
        max_examples=3000 if profile == "long" else 30,
        suppress_health_check=list(HealthCheck),
        deadline=None,
    )
    @given(columns=_columns(), keyed=st.booleans(), data=st.data())
    def holds(columns: dict[str, tuple[pa.DataType, list[Any]]], keyed: bool, data: st.DataObject) -> None:
        nonlocal tried
        keys = [name for name, (_, values) in columns.items() if keyed and _may_be_key(name, values)]
        with tempfile.TemporaryDirectory() as folder:
            table = _write(Path(folder) / "s.zarrow", columns, keys)
            kinds = {**{name: kind for name, (kind, _) in columns.items()}, "row": pa.int64()}
            rows = [
                {**{name: values[row] for name, (_, values) in columns.items()}, "row": row}
                for row in range(table.num_rows)
            ]
            store = zarrow.open(Path(folder) / "s.zarrow")
            for one in data.draw(st.lists(_conditions(columns), min_size=8, max_size=8)):
                tried += 1
                for engine, find in _engines(store).items():
                    if engine == "dataset" and re.search(r"\bnan\b", str(one)):
                        continue  # by a NaN, Arrow itself rules out rows that pass
                    right = [
                        row["row"] for row in rows if _passes(one, row, nan_is_largest=engine not in IEEE)
                    ]
                    assert find(one, kinds) == right, (engine, one)

    holds()
    figures("conditions on random columns, in seven engines", tried=tried, bad=0)


def test_a_filter_that_compares_with_nan_loses_no_row(tmp_path: Path) -> None:
    """Nothing is less than NaN, and so all rows are not: also those of a segment that has statistics."""
    store = zarrow.open(_stored(tmp_path / "s.zarrow"))
    for condition in (~(pc.field("a") <= math.nan), ~(pc.field("row") < math.nan), pc.field("a") != math.nan):
        assert store.table(["row"], filter=condition).num_rows == 8


def _stored(path: Path) -> Path:
    _write(path, {"a": (pa.float64(), [float(row) for row in range(8)])}, [])
    return path
