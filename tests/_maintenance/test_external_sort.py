"""External sort — the order is that of Arrow's own sort, whatever the columns hold."""

import datetime
import math
import random
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zarrow._maintenance import external_sort
from zarrow.errors import InvalidInputError

TEXT = ["", "a", "a\0", "a\0b", "aa", "b", "Z", "\u00e9", "e\u0301", "\uffff", "\U0001f600"]
FLOATS = [-math.inf, -1.5, -1e-45, 0.0, 1e-45, 1.5, math.inf, math.nan]
BYTES = [b"", b"\0", b"\0\0", b"\x01", b"a", b"a\0", b"\xfe", b"\xff"]
TIMES = [-(2**62), -1, 0, 1, 2**62]
IN_ORDER = {
    pa.bool_(): [False, True],
    pa.int8(): [-128, 0, 127],
    pa.uint64(): [0, 1, 2**63, 2**64 - 1],
    pa.float32(): FLOATS,
    pa.float64(): [*FLOATS[:3], -5e-324, 0.0, 5e-324, *FLOATS[4:]],
    pa.decimal128(38, 4): [
        Decimal(-10) ** 33,
        Decimal("-1.0001"),
        Decimal(-1),
        Decimal(0),
        Decimal(10) ** 33,
    ],
    pa.string(): sorted(TEXT, key=str.encode),
    pa.large_string(): sorted(TEXT, key=str.encode),
    pa.binary(): BYTES,
    pa.large_binary(): BYTES,
    pa.binary(2): [b"\0\0", b"\0\1", b"bb", b"\xff\0"],
    pa.date32(): [datetime.date(1960, 1, 1), datetime.date(2020, 1, 1)],
    pa.date64(): [datetime.date(1960, 1, 1), datetime.date(2020, 1, 1)],
    pa.time32("s"): [0, 1, 86_399],
    pa.time64("ns"): [0, 1, 2, 86_399_999_999_999],
    pa.timestamp("s"): TIMES[1:4],
    pa.timestamp("ns"): TIMES,
    pa.timestamp("us", "Europe/Berlin"): TIMES,
    pa.duration("ns"): TIMES,
}


def in_order(rows, by, tmp_path):
    """Return the numbers of a table's rows as the external sort orders them."""
    numbers = external_sort.sort(rows, by, tmp_path)
    return list(range(len(rows))) if numbers is None else numbers.tolist()


def numbered(columns):
    """Return a table whose rows have numbers."""
    table = pa.table(columns)
    return table.append_column("row", pa.array(range(len(table)), pa.int64()))


@pytest.mark.parametrize("kind", IN_ORDER, ids=str)
def test_values_of_every_type_are_ordered_and_equal_ones_stay(kind, tmp_path):
    """Numbers ascend, text and bytes are compared by bytes, then come NaN, then nulls, at any offset."""
    ranks = [rank for rank in range(len(IN_ORDER[kind]) + 1) for _ in range(3)]
    random.Random(0).shuffle(ranks)
    values = pa.array([*IN_ORDER[kind], None], kind).take(pa.array(ranks))
    table = numbered({"x": pa.chunked_array([values[:5], values.slice(5)])})
    expected = sorted(range(len(ranks)), key=ranks.__getitem__)
    assert in_order(table, ["x"], tmp_path) == expected
    assert pc.sort_indices(table, [("x", "ascending")]).to_pylist() == expected


def test_zeros_are_equal_and_so_are_all_nans(tmp_path):
    """The sign of a zero, or of a NaN, moves no row."""
    values = [math.nan, 0.0, -math.nan, -0.0, math.nan, 0.0, -0.0]
    assert in_order(numbered({"x": values}), ["x"], tmp_path) == [1, 3, 5, 6, 0, 2, 4]


def test_a_column_of_nulls_only_moves_no_row(tmp_path):
    """Rows that are all null in a column are equal, and keep their order."""
    external_sort.check_sortable(pa.schema({"x": pa.null()}), ["x"])
    assert in_order(numbered({"x": pa.nulls(3)}), ["x"], tmp_path) == [0, 1, 2]


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.int8()), pa.struct({"a": pa.int8()}), pa.float16(), pa.decimal256(50, 2), pa.uuid()],
    ids=str,
)
def test_types_without_an_order_are_refused(kind):
    """A column that DuckDB cannot hold, or that has no order, is not sorted by."""
    with pytest.raises(InvalidInputError, match="rows cannot be sorted by 'x', which is"):
        external_sort.check_sortable(pa.schema({"x": kind}), ["x"])


numbers = st.one_of(
    st.none(), st.floats(width=32), st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan])
)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(numbers, st.one_of(st.none(), st.text(max_size=3))), max_size=60), st.integers(1, 9)
)
def test_sorting_by_several_columns_equals_arrows_sort(tmp_path_factory, rows, batch_rows):
    """Batches of any size give what pyarrow's own sort of the whole table gives, row for row."""
    schema = pa.schema({"number": pa.float32(), "word": pa.string(), "row": pa.int64()})
    table = pa.Table.from_pylist(
        [{"number": n, "word": w, "row": i} for i, (n, w) in enumerate(rows)], schema=schema
    )
    scratch = tmp_path_factory.getbasetemp()
    spooled = external_sort.spool(table.to_batches(max_chunksize=batch_rows), schema, scratch)
    found = in_order(spooled, ["number", "word"], scratch)
    expected = table.sort_by([(name, "ascending") for name in schema.names])
    assert found == expected["row"].to_pylist()
    if found:
        taken = external_sort.take(spooled, np.array(found))
        assert [str(row) for row in taken.to_pylist()] == [str(row) for row in expected.to_pylist()]


def test_what_does_not_fit_goes_to_disk_and_is_removed(tmp_path, monkeypatch):
    """More keys than DuckDB's memory holds are sorted, and its scratch directory is gone afterwards."""
    monkeypatch.setattr(external_sort, "MEMORY_LIMITS", ("24MB",))
    keys = np.random.default_rng(0).integers(0, 1 << 60, 2_000_000)
    rows = pa.table({"x": keys, "row": np.arange(len(keys))})
    found = external_sort.sort(rows, ["x"], tmp_path)
    np.testing.assert_array_equal(found, np.argsort(keys, kind="stable"))
    assert list(tmp_path.iterdir()) == []


def test_what_duckdb_cannot_do_in_little_memory_it_does_in_more(tmp_path, monkeypatch):
    """A sort that fails in the first limit is done in the second."""
    monkeypatch.setattr(external_sort, "MEMORY_LIMITS", ("1kB", "80%"))
    assert in_order(numbered({"x": [3, 1, 2]}), ["x"], tmp_path) == [1, 2, 0]
