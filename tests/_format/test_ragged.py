"""Ragged values — every form in which rows of vectors come and go, and what is refused."""

import copy
import re
import warnings

import awkward as ak
import ml_dtypes
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import zarrow
from zarrow import Ragged
from zarrow.errors import InvalidInputError

DTYPES = ["bool", "int8", "int64", "uint8", "float16", "float32", "float64"]


@st.composite
def ragged_values(draw: st.DrawFn) -> Ragged:
    """Rows of 0 to 5 vectors of any width, NaN among them."""
    counts = draw(st.lists(st.integers(0, 5), max_size=8))
    shape = draw(st.sampled_from([(1,), (3,), (2, 3), (8192,)]))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    values = (rng.normal(size=(sum(counts), *shape)) * 50).astype(dtype)
    if values.size and dtype.kind == "f":
        values.flat[0] = np.nan
    return Ragged(values, np.array(counts, np.int64))


def _large(lists: pa.Array) -> pa.Array:
    return lists.cast(pa.large_list(lists.type.value_field))


def _sliced(lists: pa.Array) -> pa.Array:
    return pa.concat_arrays([lists, lists]).slice(len(lists))


def _gap(rows: Ragged) -> torch.Tensor:
    """Rows of a jagged tensor with unused vectors between them."""
    wide = [np.concatenate([row, np.zeros_like(row[:1], shape=(1, *row.shape[1:]))]) for row in rows]
    values = torch.from_numpy(np.concatenate(wide))
    ends = np.cumsum(rows.counts + 1)
    starts = torch.from_numpy(np.concatenate([[0], ends]))
    return torch.nested.nested_tensor_from_jagged(values, starts, lengths=torch.from_numpy(rows.counts))


FORMS = {
    "itself": lambda rows: rows,
    "list": Ragged.to_list,
    "jagged tensor": Ragged.to_torch,
    "awkward": Ragged.to_awkward,
    "arrow": Ragged.to_arrow,
    "large lists": lambda rows: _large(rows.to_arrow()),
    "a slice of lists": lambda rows: _sliced(rows.to_arrow()),
    "chunks": lambda rows: pa.chunked_array([rows[:1].to_arrow(), rows[1:1].to_arrow(), rows[1:].to_arrow()]),
    "polars": lambda rows: pl.from_arrow(rows.to_arrow()),
    "list views": lambda rows: pa.ListViewArray.from_arrays(
        pa.array(rows.offsets[:-1].astype(np.int32)),
        pa.array(rows.counts.astype(np.int32)),
        rows.to_arrow().values,
    ),
}
WITH_ROWS = {
    "tensors": lambda rows: [torch.from_numpy(row) for row in rows],
    "pandas": lambda rows: pd.Series(rows.to_list(), dtype=object),
    "strided nested tensor": lambda rows: torch.nested.nested_tensor(
        [torch.from_numpy(row) for row in rows], layout=torch.strided
    ),
    "jagged tensor with gaps": _gap,
}


@pytest.mark.parametrize("form", [*FORMS, *WITH_ROWS])
@given(rows=ragged_values())
def test_rows_come_back_from_every_form(form: str, rows: Ragged) -> None:
    """Rows that go out in one form come in from it with every vector in its place."""
    if not len(rows) and (form == "list" or form in WITH_ROWS):
        return  # no row says how wide a vector is
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors is in prototype")
        there = (FORMS | WITH_ROWS)[form](rows)
    assert Ragged.of(there) == rows


@given(rows=ragged_values(), seed=st.integers(0, 9), as_tensor=st.booleans(), as_numbers=st.booleans())
def test_valid_vectors_are_taken_from_any_pattern(
    rows: Ragged, seed: int, as_tensor: bool, as_numbers: bool
) -> None:
    """A mask may have holes; lengths take the vectors that come first in each row."""
    padded, mask = rows.to_padded(fill=1, return_mask=True)
    wrap = torch.from_numpy if as_tensor else np.asarray
    assert Ragged.from_padded(wrap(padded), mask=wrap(mask)) == rows
    assert Ragged.from_padded(wrap(padded), lengths=wrap(rows.counts)) == rows
    holes = mask & (np.random.default_rng(seed).random(mask.shape) < 0.5)
    found = Ragged.from_padded(wrap(padded), mask=wrap(holes.astype(np.int64) if as_numbers else holes))
    for row, vectors in enumerate(found):
        np.testing.assert_array_equal(vectors, padded[row][holes[row]])


@given(rows=ragged_values(), data=st.data())
def test_rows_are_indexed_as_a_list_of_them_would_be(rows: Ragged, data: st.DataObject) -> None:
    """A number, a slice, numbers in any order and a mask give what they give of a list."""
    plain = rows.to_list()
    some = data.draw(st.lists(st.integers(-len(rows), len(rows) - 1)) if len(rows) else st.just([]))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), bool)
    part = data.draw(st.slices(len(rows)))
    for index, wanted in [
        (some, [plain[row] for row in some]),
        (part, plain[part]),
        (mask, [one for one, chosen in zip(plain, mask, strict=True) if chosen]),
    ]:
        found = rows[index]
        assert (found.vector_shape, found.dtype, len(found)) == (rows.vector_shape, rows.dtype, len(wanted))
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
    for row in some:
        np.testing.assert_array_equal(rows[row], plain[row])


def test_flat_values_are_not_copied() -> None:
    """Arrow, awkward, jagged tensors, slices and single rows are views of the values."""
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    rows = Ragged(values, [4, 0, 2])
    there = [rows.to_torch(), rows.to_awkward(), rows.to_arrow(), rows[:2]]
    assert all(np.shares_memory(Ragged.of(one).values, values) for one in there)
    assert np.shares_memory(rows[2], values)


def test_other_tools_see_the_same_rows() -> None:
    """Awkward, Arrow and torch count and hold the same vectors."""
    rows = Ragged(np.arange(6, dtype=np.float32).reshape(3, 2), [2, 0, 1])
    lists = [one.tolist() for one in rows]
    assert rows.to_awkward().to_list() == rows.to_arrow().to_pylist() == lists
    assert [one.tolist() for one in rows.to_torch().unbind()] == lists
    assert ak.num(rows.to_awkward()).to_list() == [2, 0, 1]


@pytest.mark.parametrize(
    "values",
    [torch.ones(3, 2, dtype=torch.bfloat16), np.ones((3, 2), ml_dtypes.bfloat16)],
    ids=["torch", "ml_dtypes"],
)
def test_bfloat16_is_widened(values) -> None:
    """As everywhere in zarrow, bfloat16 becomes float32, by whatever way it comes."""
    assert Ragged(values, [1, 2]).dtype == np.float32
    assert Ragged.from_list([values, values[:1]]).dtype == np.float32
    assert Ragged.from_padded(values[None], lengths=[2]).dtype == np.float32


def test_a_jagged_bfloat16_tensor_is_widened() -> None:
    """A jagged tensor of bfloat16 that requires a gradient becomes float32."""
    values = torch.ones(3, 2, dtype=torch.bfloat16, requires_grad=True)
    rows = Ragged.of(torch.nested.nested_tensor_from_jagged(values, torch.tensor([0, 1, 3])))
    assert rows == Ragged(np.ones((3, 2), np.float32), [1, 2])


def test_many_rows_and_one_long_row() -> None:
    """A million rows of one vector and one row of a million are cut and padded alike."""
    values = np.arange(10**6, dtype=np.int32)[:, None]
    many, long = Ragged(values, np.ones(10**6, np.int64)), Ragged(values, [10**6])
    assert many[-1].item() == long[0][-1].item() == 10**6 - 1
    assert many.to_padded().shape == (10**6, 1, 1)
    assert many[::2].values[1].item() == 2


def test_equal_are_the_same_rows_of_one_dtype() -> None:
    """A copy, such as a worker process gets, is equal; other counts or another dtype are not."""
    rows = Ragged(np.ones((3, 2)), [1, 2])
    assert copy.deepcopy(rows) == rows
    assert rows != Ragged(np.ones((3, 2)), [2, 1])
    assert rows != Ragged(np.ones((3, 2), np.float32), [1, 2])


def test_it_does_not_pass_for_an_array() -> None:
    """Numpy makes no array of it, not even if all rows have as many vectors."""
    with pytest.raises(TypeError, match="to_padded"):
        np.asarray(Ragged(np.ones((4, 2)), [2, 2]))


V = np.ones((3, 2), np.float32)
P = np.ones((2, 4, 3), np.float32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ragged(V, [1, 1]), "2 counts that sum to 2 and 3 vectors"),
        (lambda: Ragged(V, [1, 4]), "counts must lie in 0..3 (the number of vectors), got 4 in row 1"),
        (lambda: Ragged(V, [4, -1]), "got 4 in row 0"),
        (lambda: Ragged(V, [1, 3, -1]), "got -1 in row 2"),
        (lambda: Ragged(V, np.array([3, 2**63], np.uint64)), "got 9223372036854775808 in row 1"),
        (lambda: Ragged(V, [1.0, 2.0]), "counts must be integers, got float64: 1.0 in row 0"),
        (lambda: Ragged(V, [1, None, 2]), "None in row 1"),
        (lambda: Ragged(V, pa.array([1, None, 2])), "got null in row 1"),
        (lambda: Ragged(V, [[3]]), "one integer per row, got shape (1, 1)"),
        (lambda: Ragged(V[0], [2]), "got (2,)"),
        (lambda: Ragged(np.ones((3, 0)), [3]), "got (3, 0)"),
        (lambda: Ragged(np.array([["a"]]), [1]), "vectors must be numbers, got <U1"),
        (lambda: Ragged.from_padded(P), "either mask= or lengths="),
        (lambda: Ragged.from_padded(P, mask=np.ones((2, 4)), lengths=[1, 1]), "needs either mask= or"),
        (lambda: Ragged.from_padded(P, mask=np.ones((2, 3))), "mask must have shape (2, 4)"),
        (lambda: Ragged.from_padded(P, mask=np.eye(2, 4) * 2), "got 2.0 in row 0"),
        (lambda: Ragged.from_padded(P, mask=[[1] * 4, [0, np.nan, 0, 0]]), "got nan in row 1"),
        (lambda: Ragged.from_padded(P, lengths=[1, 5]), "0..4 (the second axis of the padded array), got 5"),
        (lambda: Ragged.from_padded(P, lengths=[1, np.nan]), "lengths must be integers, got float64: nan"),
        (lambda: Ragged.from_padded(P, lengths=[1, np.nan]), "in row 1"),
        (lambda: Ragged.from_padded(P, lengths=[1]), "one per row of the 2, got 1"),
        (lambda: Ragged.from_padded(V, lengths=[1, 1, 1]), "(rows, longest, *vector_shape), got (3, 2)"),
        (lambda: Ragged.from_list([]), "got no rows"),
        (lambda: Ragged.from_list([[], []]), "got shape (0,) in row 0"),
        (lambda: Ragged.from_list([V, V[:, :1]]), "(count, 2), as row 0 has, got (3, 1)"),
        (lambda: Ragged.from_list([[], V, V[0]]), "row 2: expected shape (count, 2), as row 1 has, got (2,)"),
        (lambda: Ragged.from_list([V, V.astype(int)]), "row 1: expected dtype float32, as row 0 has"),
        (lambda: Ragged.from_list([V, np.ma.masked_equal(V, 1)]), "row 1: must be an array: a value is mask"),
        (lambda: Ragged.of(P), "got ndarray of shape (2, 4, 3): Ragged.from_padded takes"),
        (lambda: Ragged.of(torch.from_numpy(P)), "got Tensor of shape (2, 4, 3)"),
        (lambda: Ragged.of(pa.array([[[1.0]], None])), "row 1 is null: a row without vectors is"),
        (lambda: Ragged.of(pa.chunked_array([[[[1.0]]], [[[2.0]], None]])), "row 2 is null"),
        (lambda: Ragged.of(pa.array([[], [[1.0]], [[2.0], None]])), "row 2: a vector is null"),
        (lambda: Ragged.of(pa.array([[[1.0, 2.0]], [[1.0, None]]])), "row 1: a value within a vector"),
        (lambda: Ragged.of(pa.array([[[1.0]], [], [[1.0], [1.0, 2.0]]])), "row 2: got lists of 1 and of 2"),
        (lambda: Ragged.of(pa.array([[["a"]]])), "row 0: vectors hold numbers, got string"),
        (lambda: Ragged.of(pa.array([[], []], pa.list_(pa.list_(pa.int8())))), "need lists of a fixed size"),
        (lambda: Ragged.of(pa.array([1.0])), "must be lists of lists of numbers, got double"),
        (lambda: Ragged.of(ak.Array([[[1, 2]], None])), "row 1 is null"),
        (lambda: Ragged.of(pl.Series([object()], dtype=pl.Object)), "Python objects"),
        (lambda: Ragged.of(None), "got NoneType"),
        (lambda: zarrow.ragged((), "float32"), "at least one axis"),
        (lambda: zarrow.ragged((128, 0), "float32"), "got shape (128, 0)"),
    ],
)  # fmt: skip
def test_what_breaks_a_rule_is_named(make, message: str) -> None:
    """An error names the rule and the row."""
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("rows", [2, -3, None, 1.0, True, "a", [[0, 1]], [True]])
def test_a_wrong_index_is_an_index_error(rows: object) -> None:
    """What numbers no rows is refused as numpy refuses it."""
    with pytest.raises(IndexError):
        Ragged(np.ones((2, 1)), [1, 1])[rows]


def test_a_declaration_is_a_value() -> None:
    """A width and a dtype may be given in any way that has the same meaning."""
    assert (
        zarrow.ragged(128, torch.float16) == zarrow.ragged([128], np.float16) == zarrow.ragged((128,), "<f2")
    )
