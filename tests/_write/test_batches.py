"""Batches — what `Writer.append` accepts, and what it refuses."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

import zarrow
from zarrow._write.batches import BatchChecker
from zarrow._write.declaration import Declaration
from zarrow.errors import BatchError, InvalidInputError

SCHEMA = pa.schema({"id": pa.int64(), "text": pa.string(), "score": pa.float32()})
ARRAYS = {"embed": ((4,), "float32"), "layers": ((2, 3), "float16")}


def _columns(rows: int = 3, start: int = 0) -> dict[str, pa.Array]:
    ids = list(range(start, start + rows))
    return {
        "id": pa.array(ids, pa.int64()),
        "text": pa.array([f"row {row}" for row in ids]),
        "score": pa.array(ids, pa.float32()),
    }


def _arrays(rows: int = 3, start: int = 0) -> dict[str, Any]:
    ids = np.arange(start, start + rows, dtype=np.float32)
    return {
        "embed": np.repeat(ids[:, None], 4, axis=1),
        "layers": np.full((rows, 2, 3), 0.5, np.float16),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.zarrow"


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zarrow.Writer]:
    """A writer that is handed one bad batch after the other."""
    path = tmp_path_factory.mktemp("patient") / "run.zarrow"
    with zarrow.Writer(path, schema=SCHEMA, arrays=ARRAYS, keys=["id"]) as writer:
        yield writer


@pytest.fixture
def writer(path: Path) -> Iterator[zarrow.Writer]:
    with zarrow.Writer(path, schema=SCHEMA, arrays=ARRAYS, keys=["id"]) as writer:
        yield writer


def _files(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()
    }


# What is wrong, and what the message says of it

NAN = float("nan")
Change = Callable[[], tuple[dict[str, Any], Mapping[str, Any], Any]]


def _bad(
    columns: Mapping[str, Any] | None = None, arrays: Mapping[str, Any] | None = None, index: Any = None
) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Return the arguments of an append of a good batch, changed."""
    return {**_columns(), **(columns or {})}, {**_arrays(), **(arrays or {})}, index


def _without(name: str) -> tuple[dict[str, Any], dict[str, Any], Any]:
    columns, arrays, _ = _bad()
    columns.pop(name, None)
    arrays.pop(name, None)
    return columns, arrays, None


BAD: dict[str, tuple[Callable[[], tuple[Any, Any, Any]], list[str]]] = {
    "wrong hidden size": (
        lambda: _bad(arrays={"embed": np.ones((3, 5), np.float32)}),
        ["array 'embed'", "expected shape (rows, 4)", "got (3, 5)", "reshape it"],
    ),
    "wrong rank": (
        lambda: _bad(arrays={"layers": np.ones((3, 6), np.float16)}),
        ["array 'layers'", "expected shape (rows, 2, 3)", "got (3, 6)", "reshape it"],
    ),
    "no rows axis": (
        lambda: _bad(arrays={"embed": np.ones(4, np.float32)}),
        ["array 'embed'", "expected shape (rows, 4)", "got (4,)"],
    ),
    "wider dtype": (
        lambda: _bad(arrays={"embed": np.ones((3, 4), np.float64)}),
        ["array 'embed'", "expected dtype float32", "got float64", "cast it if"],
    ),
    "narrower dtype": (
        lambda: _bad(arrays={"embed": np.ones((3, 4), np.float16)}),
        ["array 'embed'", "expected dtype float32", "got float16"],
    ),
    "plain lists": (
        lambda: _bad(arrays={"embed": [[1, 2, 3, 4]] * 3}),
        ["array 'embed'", "expected dtype float32", "got int64"],
    ),
    "ragged lists": (
        lambda: _bad(arrays={"embed": [[1.0, 2.0], [1.0]]}),
        ["array 'embed'", "must be an array"],
    ),
    "objects": (
        lambda: _bad(arrays={"embed": np.array([[None] * 4] * 3)}),
        ["array 'embed'", "expected dtype float32", "got object"],
    ),
    "fewer vectors": (
        lambda: _bad(arrays=_arrays(2)),
        ["columns and arrays must have one length", "columns 3", "'embed': 2"],
    ),
    "one short array": (
        lambda: _bad(arrays={"embed": _arrays(2)["embed"]}),
        ["one length", "columns 3", "'embed': 2", "'layers': 3"],
    ),
    "one long column": (
        lambda: _bad({"id": pa.array(range(4))}),
        ["columns must have one length", "'id': 4", "'text': 3"],
    ),
    "index of another length": (lambda: _bad(index=[1, 2]), ["one length", "sample_index 2"]),
    "null key": (
        lambda: _bad({"id": pa.array([1, None, 3], pa.int64())}),
        ["key 'id'", "expected a value", "got null in row 1"],
    ),
    "column type": (
        lambda: _bad({"score": pa.array([1.0, 2.0, 3.0], pa.float64())}),
        ["column 'score'", "expected float", "got double", "cast it if"],
    ),
    "integers for floats": (
        lambda: _bad({"score": np.array([1, 2, 3])}),
        ["column 'score'", "expected float", "got int64"],
    ),
    "narrower integers": (
        lambda: _bad({"id": np.array([1, 2, 3], np.int32)}),
        ["column 'id'", "expected int64", "got int32"],
    ),
    "text for numbers": (
        lambda: _bad({"id": pa.array(["1", "2", "3"])}),
        ["column 'id'", "expected int64", "got string"],
    ),
    "numbers in a list of text": (lambda: _bad({"text": ["a", 3, "c"]}), ["column 'text'"]),
    "a text for a column": (lambda: _bad({"text": "abc"}), ["column 'text'", "one value per row"]),
    "a number for a column": (lambda: _bad({"score": 3.0}), ["column 'score'", "one value per row"]),
    "a matrix for a column": (
        lambda: _bad({"score": np.ones((3, 2), np.float32)}),
        ["column 'score'", "one value per row", "got shape (3, 2)", "pass it in arrays="],
    ),
    "long doubles": (lambda: _bad({"score": np.ones(3, np.longdouble)}), ["column 'score'"]),
    "missing column": (lambda: _without("text"), ["columns must be", "missing ['text']", "unknown []"]),
    "unknown column": (
        lambda: _bad({"texts": pa.array(["a"] * 3)}),
        ["columns must be", "missing []", "unknown ['texts']"],
    ),
    "missing array": (lambda: _without("layers"), ["arrays must be ['embed', 'layers']", "got ['embed']"]),
    "unknown array": (
        lambda: _bad(arrays={"more": np.ones((3, 2))}),
        ["arrays must be ['embed', 'layers']", "'more'"],
    ),
    "reserved row": (
        lambda: _bad({"row": pa.array([1, 2, 3])}),
        ["column 'row'", "reserved", "rename it"],
    ),
    "reserved index": (
        lambda: _bad({"sample_index": pa.array([1, 2, 3])}),
        ["column 'sample_index'", "reserved", "sample_index="],
    ),
    "no columns": (lambda: (None, _arrays(), None), ["missing ['id', 'text', 'score']"]),
    "no arrays": (lambda: (_columns(), None, None), ["arrays must be ['embed', 'layers']", "got []"]),
    "floating index": (lambda: _bad(index=[0.0, 1.0, 2.0]), ["sample_index must be one integer per row"]),
    "negative index": (lambda: _bad(index=[0, -1, 2]), ["sample_index must lie in 0..2**63-1", "got -1..2"]),
    "huge index": (lambda: _bad(index=np.array([0, 1, 2**63], np.uint64)), ["2**63-1"]),
    "matrix for an index": (lambda: _bad(index=np.ones((3, 1), int)), ["one integer per row", "(3, 1)"]),
    "index with a hole": (lambda: _bad(index=[0, None, 2]), ["one integer per row"]),
    "not a table": (lambda: ([1, 2, 3], _arrays(), None), ["pyarrow Table", "mapping", "got list"]),
    "a tensor for a table": (lambda: (torch.ones(3), _arrays(), None), ["pyarrow Table", "got Tensor"]),
    "the same column twice": (
        lambda: (
            pa.table([[1], ["a"], [1.0], [2.0]], ["id", "text", "score", "score"]),
            _arrays(1),
            None,
        ),
        ["column 'score'", "more than once", "rename one"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_batch_is_refused_and_nothing_has_happened(name: str, patient: zarrow.Writer) -> None:
    """What is wrong is said in full, nothing of the batch is written, and the writer goes on."""
    start = patient.queued_rows
    patient.append(_columns(start=start), _arrays(start=start))
    patient.flush()
    before, number = _files(patient.path), start // 3 + 1
    make, parts = BAD[name]
    table, arrays, index = make()
    with pytest.raises(BatchError) as caught:
        patient.append(table, arrays, index)
    message = str(caught.value)
    assert message.startswith(f"batch {number}: ")
    assert message.endswith("; nothing of it was written")
    for part in parts:
        assert part in message
    patient.flush()
    assert _files(patient.path) == before
    assert (patient.queued_rows, patient.accepted_rows) == (start + 3, start + 3)


def test_good_batches_between_bad_ones_are_all_there(writer: zarrow.Writer, path: Path) -> None:
    """A store whose writer refused batches has exactly those that it did not refuse."""
    for number, (make, _) in enumerate(BAD.values()):
        writer.append(_columns(2, 2 * number), _arrays(2, 2 * number))
        table, arrays, index = make()
        with pytest.raises(BatchError):
            writer.append(table, arrays, index)
    writer.finalize()
    store = zarrow.open(path)
    assert store.table(columns=["id"])["id"].to_pylist() == list(range(2 * len(BAD)))
    assert store["embed"][:][:, 0].tolist() == list(range(2 * len(BAD)))


# Wrong only beside a declaration: as first batches they say something else about the store.
CONSISTENT = {
    "wrong hidden size", "wrong rank", "wider dtype", "narrower dtype", "plain lists", "column type",
    "integers for floats", "narrower integers", "text for numbers", "missing column", "unknown column",
    "missing array", "unknown array", "no arrays",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in BAD if name not in CONSISTENT])
def test_a_bad_first_batch_makes_no_store(name: str, path: Path) -> None:
    """A batch that is wrong in itself does not become what the store is."""
    table, arrays, index = BAD[name][0]()
    with zarrow.Writer(path, keys=["id"]) as writer:
        with pytest.raises(InvalidInputError) as caught:
            writer.append(table, arrays, index)
        assert writer.spec is None
        assert not (path / "zarrow.json").exists()
        if isinstance(caught.value, BatchError):
            assert str(caught.value).startswith("batch 0: ")
        writer.append(_columns(), _arrays())
        writer.flush()
        assert writer.accepted_rows == 3


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_a_key_that_is_no_number_is_refused(kind: str, path: Path) -> None:
    """A NaN, which equals nothing, names no row."""
    with zarrow.Writer(path, keys=["time"]) as writer:
        writer.append({"time": np.array([1, 2], kind)})
        with pytest.raises(BatchError, match=r"batch 1: key 'time': expected a number, got NaN in row 2 of"):
            writer.append({"time": np.array([1, 2, NAN], kind)})


def test_a_column_declared_required_takes_no_null(path: Path) -> None:
    """A schema's own promise is kept, not only that of the keys."""
    schema = pa.schema([pa.field("id", pa.int64()), pa.field("label", pa.bool_(), nullable=False)])
    with zarrow.Writer(path, schema=schema, arrays={}) as writer:
        writer.append({"id": [1], "label": [True]})
        with pytest.raises(
            BatchError, match="'label', declared not nullable: expected a value, got null in row 1"
        ):
            writer.append({"id": [1, None], "label": [True, None]})


@pytest.mark.parametrize(
    ("columns", "arrays", "keys", "parts"),
    [
        ({"id": [1]}, {"../e": np.ones((1, 2))}, [], ["an array", "[A-Za-z0-9_-]{1,64}", "'../e'"]),
        ({"id": [1]}, {"e.f": np.ones((1, 2))}, [], ["'e.f'", "rename it"]),
        ({"row": [1]}, {}, [], ["'row'", "reserved", "rename it"]),
        ({"id": [1]}, {"sample_index": np.ones((1, 2))}, [], ["'sample_index'", "sample_index="]),
        ({"e": [1]}, {"e": np.ones((1, 2))}, [], ["'e'", "more than one column or array", "rename one"]),
        ({"id": [1]}, {"e": np.ones(1)}, [], ["array 'e'", "at least one axis", "a column of the table"]),
        ({"id": [1]}, {"e": np.ones((1, 0))}, [], ["array 'e'", "at least 1 long"]),
        ({"id": [1]}, {"e": np.ones((1, 2), complex)}, [], ["array 'e'", "dtype must be one", "complex128"]),
        ({"id": [1]}, {"e": np.array([["a"]])}, [], ["array 'e'", "dtype must be one of"]),
        ({"id": [1]}, {}, ["subject"], ["key 'subject' is not a column", "['id']"]),
        ({"id": [[1]]}, {}, ["id"], ["key 'id'", "scalar type"]),
        ({"id": [1], "label": [None]}, {}, [], ["column 'label'", "only nulls", "schema="]),
        ({"id": [None]}, {}, ["id"], ["'id'", "only nulls", "schema="]),
        ({"id": []}, {}, [], ["column 'id'", "schema="]),
        (None, None, [], ["got neither"]),
        ({}, {}, [], ["got neither"]),
    ],
)  # fmt: skip
def test_a_first_batch_that_cannot_be_a_store_is_refused(
    columns: Any, arrays: Any, keys: list[str], parts: list[str], path: Path
) -> None:
    """What no store can be is refused with the rule, before there is a store."""
    with zarrow.Writer(path, keys=keys) as writer:
        with pytest.raises(InvalidInputError) as caught:
            writer.append(columns, arrays)
        for part in parts:
            assert part in str(caught.value)
        assert writer.spec is None
    assert not (path / "zarrow.json").exists()


# What is taken

VIEWS = {"large_string": pa.large_string(), "string_view": pa.string_view(), "string": pa.string()}
VIEWS["dictionary"] = pa.dictionary(pa.int8(), pa.string())
VIEWS["large_dictionary"] = pa.dictionary(pa.uint32(), pa.large_string())


@pytest.mark.parametrize("first", VIEWS)
def test_text_is_text(first: str, path: Path) -> None:
    """Batches may hold text in any of Arrow's representations, whichever came first."""
    with zarrow.Writer(path) as writer:
        writer.append({"c": pa.array(["a", None]).cast(VIEWS[first])})
        for kind in VIEWS.values():
            writer.append({"c": pa.array(["", "é" * 20]).cast(kind)})
        writer.finalize()
    assert zarrow.open(path).table()["c"].to_pylist() == ["a", None, *["", "é" * 20] * len(VIEWS)]


def _frames() -> dict[str, Callable[[pa.Table], Any]]:
    return {
        "table": lambda table: table,
        "chunked table": lambda table: pa.concat_tables([table.slice(0, 1), table.slice(1)]),
        "record batch": lambda table: table.combine_chunks().to_batches()[0],
        "polars": pl.from_arrow,
        "pandas": lambda table: table.to_pandas(),
        "pandas with an index": lambda table: table.to_pandas().iloc[[1, 0, 2]].sort_values("id"),
        "pandas arrow types": lambda table: table.to_pandas(types_mapper=pd.ArrowDtype),
        "reordered": lambda table: table.select(["score", "text", "id"]),
        "dict of arrays": lambda table: {name: table[name] for name in table.column_names},
        "dict of numpy": lambda table: {
            "id": table["id"].to_numpy(),
            "text": table["text"].to_numpy(),
            "score": table["score"].to_numpy(),
        },
        "dict of big-endian": lambda table: {
            "id": table["id"].to_numpy().astype(">i8"),
            "text": table["text"].to_pylist(),
            "score": table["score"].to_numpy().astype(">f4"),
        },
        "dict of lists": lambda table: table.to_pydict(),
        "dict of tensors": lambda table: {
            "id": torch.tensor(table["id"].to_pylist()),
            "text": table["text"].to_pylist(),
            "score": torch.tensor(table["score"].to_pylist(), requires_grad=True),
        },
        "dict of polars": lambda table: pl.from_arrow(table).to_dict(),  # type: ignore[union-attr]
        "dict of pandas": lambda table: dict(table.to_pandas().items()),
    }


@pytest.mark.parametrize("first", _frames())
def test_any_frame_is_taken(first: str, path: Path) -> None:
    """Whatever library made a batch, its columns are what they are."""
    one, other = pa.table(_columns()), pa.table(_columns(3, 3))
    if first == "dict of lists":  # whose floats are doubles, if nobody says otherwise
        one, other = (table.cast(SCHEMA.set(2, pa.field("score", pa.float64()))) for table in (one, other))
    others = ["table", "polars", "pandas with an index", "dict of lists", "dict of numpy"]
    with zarrow.Writer(path, keys=["id"]) as writer:
        writer.append(_frames()[first](one))
        for second in others:
            writer.append(_frames()[second](other))
        writer.finalize()
    found = zarrow.open(path).table(columns=["id", "text", "score"])
    assert found.to_pydict() == pa.concat_tables([one] + [other] * len(others)).to_pydict()


def test_a_nan_is_a_number_but_to_pandas(path: Path) -> None:
    """NaN stays NaN from numpy, polars and lists, and is null from pandas, where it means missing."""
    values = np.array([1.0, NAN])
    with zarrow.Writer(path) as writer:
        for column in (values, torch.tensor(values), pl.Series(values), [1.0, NAN], pd.Series(values)):
            writer.append({"x": column})
        writer.append(pl.DataFrame({"x": values}))
        writer.append(pd.DataFrame({"x": values}))
        writer.finalize()
    found = zarrow.open(path).table()["x"]
    assert found.is_null().to_pylist()[1::2] == [False, False, False, False, True, False, True]


def test_an_index_with_a_name_is_a_column(path: Path) -> None:
    """The index of a pandas frame is kept if it has a name, and left out if it only counts rows."""
    frame = pd.DataFrame({"id": [3, 1, 2], "x": [0.5, 1.5, 2.5]})
    with zarrow.Writer(path) as writer:
        writer.append(frame.set_index("id"))
        writer.finalize()
    assert set(zarrow.open(path).schema.names) == {"id", "x", "row", "sample_index"}


def test_lists_take_the_type_that_the_store_has(path: Path) -> None:
    """Plain Python values, which have no width, are taken as the declared type if they fit it."""
    schema = pa.schema(
        {
            "a": pa.int8(),
            "b": pa.float32(),
            "t": pa.timestamp("us", "UTC"),
            "d": pa.dictionary(pa.int8(), pa.string()),
        }
    )
    now = dt.datetime(2020, 1, 2, tzinfo=dt.UTC)
    with zarrow.Writer(path, schema=schema, arrays={}) as writer:
        writer.append({"a": [1, None], "b": [0.5, None], "t": [now, None], "d": ["x", None]})
        for name, values in (("a", [1000]), ("a", [0.5]), ("b", ["x"]), ("t", ["x"])):
            good: dict[str, Any] = {"a": [1], "b": [0.5], "t": [now], "d": ["x"]}
            with pytest.raises(BatchError, match=f"column '{name}'"):
                writer.append({**good, name: values})
        writer.finalize()
    found = zarrow.open(path).table()
    assert found["a"].to_pylist() == [1, None]
    assert found["t"].type == pa.timestamp("us", "UTC")
    assert found["t"].to_pylist() == [now, None]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pa.timestamp("us"), pa.timestamp("ms")),
        (pa.timestamp("us", "UTC"), pa.timestamp("us")),
        (pa.timestamp("us", "UTC"), pa.timestamp("us", "Europe/Berlin")),
        (pa.int64(), pa.uint64()),
        (pa.float64(), pa.float32()),
        (pa.list_(pa.int64()), pa.list_(pa.int32())),
        (pa.string(), pa.binary()),
        (pa.date32(), pa.timestamp("us")),
        (pa.decimal128(5, 2), pa.decimal128(6, 2)),
        (pa.list_(pa.int64(), 2), pa.list_(pa.int64())),
    ],
)
def test_what_would_change_values_is_refused(first: pa.DataType, second: pa.DataType, path: Path) -> None:
    """A type that holds other values than the store's is never cast for the caller."""
    with zarrow.Writer(path) as writer:
        writer.append({"c": pa.nulls(2, first)})
        with pytest.raises(
            BatchError, match=re.escape(f"column 'c': expected {first}, got {second}: cast it")
        ):
            writer.append({"c": pa.nulls(2, second)})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pa.list_(pa.int64()), pa.large_list(pa.int64())),
        (pa.large_list(pa.string()), pa.list_(pa.string())),
        (pa.binary(), pa.large_binary()),
        (pa.int64(), pa.dictionary(pa.int8(), pa.int64())),
        (pa.dictionary(pa.int8(), pa.int64()), pa.int64()),
        (pa.int64(), pa.null()),
    ],
)
def test_what_keeps_values_is_taken(first: pa.DataType, second: pa.DataType, path: Path) -> None:
    """Another representation of the same values is none of the caller's business."""
    with zarrow.Writer(path) as writer:
        writer.append({"c": pa.nulls(2, first)})
        writer.append({"c": pa.nulls(2, second)})
        writer.finalize()
    assert zarrow.open(path).table()["c"].to_pylist() == [None] * 4


@pytest.mark.parametrize(
    "make",
    [
        lambda rows: torch.tensor(rows),
        lambda rows: torch.tensor(rows, requires_grad=True) * 1,
        lambda rows: torch.nn.Parameter(torch.tensor(rows)),
        lambda rows: torch.tensor(rows.T.copy()).T,
        lambda rows: torch.tensor(np.repeat(rows, 2, axis=1))[:, ::2],
        lambda rows: torch.tensor(rows).unsqueeze(1).expand(-1, 3, -1)[:, 0],
        lambda rows: torch.tensor(rows).to(torch.bfloat16),
        lambda rows: rows.astype(ml_dtypes.bfloat16),
        lambda rows: rows.astype(">f4"),
        lambda rows: np.asfortranarray(rows),
        lambda rows: np.repeat(rows, 2, axis=1)[:, ::2],
        lambda rows: rows[::-1].copy()[::-1],
        lambda rows: pa.FixedSizeListArray.from_arrays(rows.reshape(-1), 4).to_numpy_ndarray(),
    ],
    ids=[
        "tensor", "grad", "parameter", "transposed", "strided", "expanded", "bfloat16", "ml_dtypes",
        "big-endian", "fortran", "strided array", "reversed", "arrow tensor",
    ],
)  # fmt: skip
@pytest.mark.parametrize("copy", [True, False])
def test_vectors_are_taken_from_anywhere(
    make: Callable[[Any], Any], copy: bool, path: Path, request: pytest.FixtureRequest
) -> None:
    """Tensors and arrays of any layout, byte order or graph are stored with their values."""
    if request.node.callspec.id.endswith("arrow tensor"):
        make = lambda rows: np.asarray(  # noqa: E731
            pa.FixedSizeListArray.from_arrays(rows.reshape(-1), 4).flatten()
        ).reshape(-1, 4)
    rows = (np.arange(20, dtype=np.float32) / 8).reshape(5, 4)  # exact in bfloat16 too
    with zarrow.Writer(path) as writer:
        writer.append(None, {"e": make(rows)}, copy=copy)
        writer.append(None, {"e": make(rows + 1)}, copy=copy)
        writer.finalize()
    found = zarrow.open(path)["e"][:]
    assert found.dtype == np.float32
    assert np.array_equal(found, np.concatenate([rows, rows + 1]))


def test_bfloat16_is_narrowed_only_where_asked_for(path: Path) -> None:
    """Where float16 is declared, bfloat16 is rounded to it, and what is beyond its range is refused."""
    with zarrow.Writer(path, arrays={"e": ((2,), "float16")}) as writer:
        writer.append(None, {"e": torch.tensor([[1.5, -0.0], [NAN, -float("inf")]], dtype=torch.bfloat16)})
        with pytest.raises(BatchError, match=r"array 'e'.*float16.*1e\+30.*declare float32"):
            writer.append(None, {"e": torch.tensor([[1e30, 0.0]], dtype=torch.bfloat16)})
        with pytest.raises(BatchError, match="expected dtype float16, got float32"):
            writer.append(None, {"e": torch.ones(1, 2)})
        writer.finalize()
    found = zarrow.open(path)["e"][:]
    assert found.tobytes() == np.array([[1.5, -0.0], [NAN, -np.inf]], np.float16).tobytes()


def test_a_buffer_may_be_used_again_after_append(path: Path) -> None:
    """By default nothing that the caller handed over is looked at after append has returned."""
    rows = np.ones((64, 4), np.float32)
    ids = np.arange(64)
    index = np.arange(64)
    with zarrow.Writer(path) as writer:
        for number in range(20):
            rows[:], ids[:], index[:] = number, number, number
            writer.append({"id": ids}, {"e": rows}, index)
        rows[:], ids[:], index[:] = -1, -1, 5
        writer.finalize()
    store = zarrow.open(path)
    expected = np.repeat(np.arange(20), 64)
    assert np.array_equal(store["e"][:][:, 2], expected)
    table = store.table()
    assert np.array_equal(table["id"].to_numpy(), expected)
    assert np.array_equal(table["sample_index"].to_numpy(), expected)


def test_an_array_that_is_given_away_is_not_copied() -> None:
    """With copy=False a contiguous array of the store's type is queued as it is."""
    spec = Declaration(None, None, (), None, None).infer(None, {"e": np.ones((2, 4), np.float32)})
    reader = BatchChecker(spec)
    rows = np.ones((2, 4), np.float32)
    given, kept = (
        reader.check(None, {"e": rows}, None, copy=copy, number=0).arrays[0] for copy in (False, True)
    )
    assert np.shares_memory(given, rows)
    assert not np.shares_memory(kept, rows)


def test_batches_without_rows_are_nothing(writer: zarrow.Writer, path: Path) -> None:
    """An empty batch is a batch: it adds no row, and no fault."""
    writer.append(_columns(0), _arrays(0), [])
    writer.append(_columns(2), _arrays(2), [4, 5])
    writer.append(SCHEMA.empty_table(), _arrays(0))
    writer.finalize()
    assert zarrow.open(path).table()["sample_index"].to_pylist() == [4, 5]


def test_sample_index_may_be_a_tensor_or_missing(writer: zarrow.Writer, path: Path) -> None:
    """Where rows come from is kept where it is known, and null where it is not."""
    writer.append(_columns(2), _arrays(2), torch.tensor([9, 8]))
    writer.append(_columns(1), _arrays(1))
    writer.append(_columns(1), _arrays(1), np.array([2**63 - 1], np.uint64))
    writer.finalize()
    assert zarrow.open(path).table()["sample_index"].to_pylist() == [9, 8, None, 2**63 - 1]
