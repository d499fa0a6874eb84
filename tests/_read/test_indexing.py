"""Indexing — a store's array answers every index as numpy's array does, or refuses it with an IndexError."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import zarrow

SHAPE = (11, 3, 2)
TRUTH = np.arange(66, dtype=np.float32).reshape(SHAPE)


@pytest.fixture(scope="module", params=[None, "zstd"], ids=str)
def array(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> zarrow.StoreArray:
    """Return an array of two full segments and a short one, of plain and of compressed bytes."""
    path = tmp_path_factory.mktemp("indexing") / "s.zarrow"
    with zarrow.Writer(path, segment_rows=4, codecs=request.param) as writer:
        writer.append(None, {"v": TRUTH})
        writer.finalize()
    return zarrow.open(path)["v"]


def _axis(length: int) -> st.SearchStrategy[Any]:
    numbers = hnp.arrays(
        np.int64, hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3),
        elements=st.integers(-length - 1, length),
    )  # fmt: skip
    few = hnp.arrays(np.int8, st.integers(1, 3), elements=st.integers(-length, length - 1))
    masks = hnp.arrays(np.bool_, st.sampled_from([length, length, length + 1]))
    return st.one_of(
        st.slices(length), st.integers(-length - 1, length), numbers, few, few.map(list), masks,
        masks.map(list), st.sampled_from([1.5, "a", np.array([0.5])]),
    )  # fmt: skip


@st.composite
def _indices(draw: st.DrawFn) -> Any:
    axes = draw(st.integers(0, 4))
    keys = [draw(_axis(SHAPE[min(axis, 2)])) for axis in range(axes)]
    if draw(st.booleans()):
        keys.insert(draw(st.integers(0, len(keys))), Ellipsis)
    for _ in range(draw(st.integers(0, 2))):
        keys.insert(draw(st.integers(0, len(keys))), None)
    if draw(st.integers(0, 5)) == 0:
        keys = [draw(hnp.arrays(np.bool_, SHAPE[: draw(st.integers(1, 3))])), *keys[:1]]
    return keys[0] if len(keys) == 1 and draw(st.booleans()) else tuple(keys)


def _answer(array: Any, index: Any) -> Any:
    try:
        return array[index]
    except IndexError as error:
        return error


@given(index=st.one_of(hnp.basic_indices(SHAPE, allow_newaxis=True), _indices()))
def _equals_numpy(array: zarrow.StoreArray, index: Any) -> None:
    right, found = _answer(TRUTH, index), _answer(array, index)
    if isinstance(right, IndexError):
        assert isinstance(found, IndexError), (index, found)
    else:
        assert not isinstance(found, IndexError), found
        assert found.shape == right.shape
        assert found.dtype == right.dtype
        assert isinstance(found, np.generic) == isinstance(right, np.generic)
        np.testing.assert_array_equal(found, right)


def test_every_index_answers_as_numpy_s_does(array: zarrow.StoreArray) -> None:
    """Slices, numbers, arrays, masks, None and an ellipsis, mixed: same values, shape and axis order."""
    _equals_numpy(array)


ROWS = [3, 0, 10]
FORMS: dict[str, Any] = {
    "list": ROWS,
    "tuple": (3, 0, 10),
    "numpy": np.array(ROWS),
    "narrow": np.array(ROWS, np.uint8),
    "numpy scalars": [np.int16(3), np.int64(0), 10],
    "tensor": torch.tensor(ROWS),
    "tensors": [torch.tensor(3), torch.tensor(0), torch.tensor(10)],
    "arrow": pa.array(ROWS),
    "chunks": pa.chunked_array([[3], [0, 10]]),
    "polars": pl.Series(ROWS),
    "pandas": pd.Series(ROWS, index=[7, 8, 9]),
    "nullable pandas": pd.Series(ROWS, dtype="Int64"),
    "negative": torch.tensor([3, -11, -1]),
}
MASKS: dict[str, Any] = {
    "numpy": np.arange(11) % 2 == 0,
    "list": [row % 2 == 0 for row in range(11)],
    "tensor": torch.arange(11) % 2 == 0,
    "arrow": pa.array([row % 2 == 0 for row in range(11)]),
    "polars": pl.Series([row % 2 == 0 for row in range(11)]),
    "pandas": pd.Series([row % 2 == 0 for row in range(11)]),
    "slice": slice(None, None, 2),
    "range": range(0, 11, 2),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> zarrow.Store:
    """Return a store of the same rows, with a key that counts down."""
    path = tmp_path_factory.mktemp("rows") / "s.zarrow"
    with zarrow.Writer(path, segment_rows=4, keys=["id"]) as writer:
        writer.append({"id": np.arange(11, dtype=np.int32)[::-1].copy()}, {"v": TRUTH})
        writer.finalize()
    return zarrow.open(path)


@pytest.mark.parametrize("form", [*FORMS, *(f"mask as {name}" for name in MASKS)])
def test_rows_are_taken_in_every_form(form: str, store: zarrow.Store) -> None:
    """Indexing, take, vectors, and a torch dataset take row numbers and masks in every form."""
    from zarrow.analysis import nearest
    from zarrow.torch import StoreDataset

    rows = FORMS.get(form, MASKS.get(form.removeprefix("mask as ")) if form not in FORMS else None)
    right = TRUTH[ROWS] if form in FORMS else TRUTH[::2]
    if form != "tuple":  # which numpy takes for an index per axis
        np.testing.assert_array_equal(store["v"][rows], right)
    np.testing.assert_array_equal(store["v"].take(rows), right)
    table, vectors = store.take(rows)
    np.testing.assert_array_equal(vectors["v"], right)
    assert table["id"].to_pylist() == [10 - int(one) for one in right[:, 0, 0] // 6]
    np.testing.assert_array_equal(store.vectors(rows)["v"], right)
    assert nearest(store, rows, k=1, metric="l2").rows[:, 0].tolist() == [
        int(one) for one in right[:, 0, 0] // 6
    ]
    if form in FORMS:
        batch = StoreDataset(store).__getitems__(rows)
        assert torch.stack([row["v"] for row in batch]).tolist() == right.tolist()


@pytest.mark.parametrize(
    "bad", [pa.array([1, None]), [0.5], pl.Series([1, None]), torch.tensor([1.0]), "ab", {1}]
)
def test_rows_that_are_none_are_refused(bad: Any, store: zarrow.Store) -> None:
    """A null, a fraction, a text and a set are no rows, and no row is guessed from them."""
    for take in (store["v"].__getitem__, store["v"].take, store.take, store.vectors):
        with pytest.raises(IndexError):
            take(bad)


@pytest.mark.parametrize("form", FORMS)
def test_keys_are_found_in_every_form(form: str, store: zarrow.Store) -> None:
    """A single key is looked up in every form of its values, alone and by name."""
    if form == "negative":
        assert store.locate(FORMS[form], missing=-1).tolist() == [7, -1, -1]
        return
    for keys in (FORMS[form], {"id": FORMS[form]}):
        assert store.locate(keys).tolist() == [7, 10, 0]


@pytest.mark.parametrize("found", [
    pa.table({"row": ROWS}), pl.DataFrame({"row": ROWS}), pd.DataFrame({"row": ROWS}),
    pd.DataFrame({"x": ROWS}, index=pd.Index(ROWS, name="row")), {"row": torch.tensor(ROWS)},
    pa.table({"row": ROWS}).to_reader(),
], ids=["arrow", "polars", "pandas", "pandas index", "mapping", "stream"])  # fmt: skip
def test_tables_of_rows_are_taken_in_every_form(found: Any, store: zarrow.Store) -> None:
    """What a query found is a table or frame of any library, or a mapping, with a column row."""
    np.testing.assert_array_equal(store.vectors(found)["v"], TRUTH[ROWS])


@pytest.mark.parametrize("form", [
    lambda rows: rows.tolist(), np.asarray, lambda rows: torch.tensor(rows, requires_grad=True),
    lambda rows: torch.tensor(rows).bfloat16(), lambda rows: pa.array(list(rows.reshape(2, 6))),
    lambda rows: pl.Series(rows.reshape(2, 6)), lambda rows: [torch.tensor(row) for row in rows],
], ids=["list", "numpy", "requires grad", "bfloat16", "arrow", "polars", "tensors"])  # fmt: skip
def test_vectors_are_taken_in_every_form(form: Any, store: zarrow.Store) -> None:
    """Queries, vectors to transform, and those of a derived array are taken as append takes them."""
    from zarrow.analysis import nearest, pca

    vectors = form(TRUTH[[2, 5]])
    assert nearest(store, vectors, k=1, metric="l2").rows.tolist() == [[2], [5]]
    model = pca(store, n_components=2)
    np.testing.assert_allclose(model.transform(vectors), model.transform(TRUTH[[2, 5]]), rtol=1e-4)


def test_a_derived_array_is_taken_in_every_form(store: zarrow.Store) -> None:
    """A whole array, or blocks of it, of any library."""
    rows = TRUTH.reshape(11, 6)
    tensor, blocks = torch.tensor(rows, requires_grad=True), iter([rows[:5], rows[5:]])
    for number, form in enumerate([tensor, pl.Series(rows), pa.array(list(rows)), blocks]):
        zarrow.add_array(store.path, f"d{number}", form)
        np.testing.assert_array_equal(zarrow.open(store.path)[f"d{number}"][:], rows)
