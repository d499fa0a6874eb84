"""Bad ragged batches — each is named with batch, array and row, and nothing of it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

import zarrow
from zarrow.errors import BatchError, InvalidInputError, SchemaMismatchError
from zarrow.lightning import PredictionWriter

V = np.ones((3, 4), np.float32)
GOOD = zarrow.Ragged(V, [2, 1])


def lists(rows: Any, width: int | None = None) -> pa.Array:
    """Return Arrow lists of lists, of a fixed size if one is given."""
    inner = pa.list_(pa.float32()) if width is None else pa.list_(pa.float32(), width)
    return pa.array(rows, pa.list_(inner))


def jagged(*counts: int, width: int = 4) -> torch.Tensor:
    """Return a nested tensor."""
    return torch.nested.as_nested_tensor([torch.ones(count, width) for count in counts], layout=torch.jagged)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "another width": (
        lambda: zarrow.Ragged(V[:, :3], [2, 1]),
        r"expected shape \(vectors, 4\), got \(3, 3\)",
    ),
    "another rank": (
        lambda: zarrow.Ragged(V[..., None], [2, 1]),
        r"expected shape \(vectors, 4\), got \(3, 4, 1\)",
    ),
    "another dtype": (lambda: zarrow.Ragged(V.astype(float), [2, 1]), "expected dtype float32, got float64"),
    "integers": (lambda: zarrow.Ragged(V.astype("i4"), [2, 1]), "expected dtype float32, got int32"),
    "a width that changes": (lambda: [V[:2], V[:1, :3]], r"row 1: expected shape \(count, 4\), as row 0 has"),
    "a dtype that changes": (lambda: [V[:2], V[:1].astype(float)], "row 1: expected dtype float32, as row 0"),
    "a list of one vector per row": (lambda: [V[0], V[0]], r"got shape \(4,\) in row 0"),
    "None for a row": (lambda: [V[:2], None], "row 1: expected shape"),
    "None for a vector": (lambda: lists([[[1.0] * 4], [None]], 4), "row 1: a vector is null"),
    "null for a row": (lambda: lists([[[1.0] * 4], None], 4), "row 1 is null"),
    "Arrow of another width": (
        lambda: lists([[[1.0] * 3], []], 3),
        r"expected shape \(vectors, 4\), got \(1, 3\)",
    ),
    "Arrow widths that change": (lambda: lists([[[1.0] * 4], [[1.0] * 3]]), "row 1: got lists of 4 and of 3"),
    "Polars widths that change": (
        lambda: pl.Series([[[1.0] * 4], [[1.0] * 3]], dtype=pl.List(pl.List(pl.Float32))),
        "row 1: got lists of 4 and of 3",
    ),
    "chunks of another width": (
        lambda: pa.chunked_array([lists([[[1.0] * 4]]), lists([[[1.0] * 3]])]),
        "row 1: got lists of 4 and of 3",
    ),
    "awkward widths that change": (
        lambda: ak.Array([[[1.0, 2.0]], [[1.0]]]),
        "row 1: got lists of 2 and of 1",
    ),
    "a jagged tensor of another width": (lambda: jagged(2, 1, width=3), r"expected shape \(vectors, 4\)"),
    "one vector per row": (lambda: V[:2], r"got ndarray of shape \(2, 4\)"),
    "a padded array": (
        lambda: np.ones((2, 5, 4), np.float32),
        r"got ndarray of shape \(2, 5, 4\): .*from_padded",
    ),
    "a padded tensor": (lambda: torch.ones(2, 5, 4), r"got Tensor of shape \(2, 5, 4\): .*from_padded"),
    "nothing": (lambda: None, "got NoneType"),
    "text": (lambda: "abc", "got str"),
    "more rows": (lambda: zarrow.Ragged(V, [1, 1, 1]), "must have one length, got columns 2, {'t': 3}"),
    "fewer rows": (lambda: jagged(3), "must have one length, got columns 2, {'t': 1}"),
}


def _files(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zarrow.Writer]:
    """A writer that is handed one bad batch after the other."""
    with zarrow.Writer(tmp_path_factory.mktemp("patient") / "s.zarrow") as writer:
        writer.append({"id": [0, 1]}, {"t": GOOD})
        writer.flush()
        yield writer
        writer.finalize()
    assert zarrow.open(writer.path)["t"][:] == GOOD


@pytest.mark.parametrize("name", BAD)
def test_a_bad_batch_is_refused_and_nothing_has_happened(name: str, patient: zarrow.Writer) -> None:
    """Batch, array and row are named, and the store stays as it is."""
    make, message = BAD[name]
    before = _files(patient.path)
    with pytest.raises(BatchError, match=rf"^batch 1: .*'t'.*{message}|^batch 1: .*{message}") as caught:
        patient.append({"id": [2, 3]}, {"t": make()})
    assert "'t'" in str(caught.value)
    assert str(caught.value).endswith("; nothing of it was written")
    patient.flush()
    assert (_files(patient.path), patient.accepted_rows) == (before, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GOOD,
        lambda: [V[:2], V[:1]],
        lambda: np.array([V[:2], V[:1]], object),
        lambda: jagged(2, 1),
        lambda: GOOD.to_awkward(),
        lambda: GOOD.to_arrow(),
        lambda: pl.Series(GOOD.to_arrow()),
    ],
    ids=["Ragged", "list", "objects", "jagged", "awkward", "arrow", "polars"],
)
def test_ragged_where_the_store_has_fixed(make: Callable[[], Any], tmp_path: Path) -> None:
    """Every form is called what it is, and a first batch of it is ragged."""
    with zarrow.Writer(tmp_path / "fixed.zarrow") as writer:
        writer.append({"id": [0, 1]}, {"t": V[:2]})
        writer.flush()
        before = _files(writer.path)
        with pytest.raises(
            BatchError, match=r"^batch 1: array 't': expected rows of shape \(4,\), got rows of any"
        ):
            writer.append({"id": [2, 3]}, {"t": make()})
        writer.flush()
        assert _files(writer.path) == before
        writer.finalize()
    with zarrow.Writer(tmp_path / "ragged.zarrow") as writer:
        writer.append({"id": [0, 1]}, {"t": make()})
        writer.finalize()
    assert zarrow.open(tmp_path / "ragged.zarrow")["t"][:] == GOOD


def test_declarations_of_the_other_kind(tmp_path: Path) -> None:
    """A store is not continued as what it is not, and quantizing a ragged array is refused with a remedy."""
    with zarrow.Writer(tmp_path / "s.zarrow") as writer:
        writer.append({"id": [0, 1]}, {"t": GOOD})
        writer.finalize()
    for other in (((4,), "float32"), zarrow.ragged(5, "float32"), zarrow.ragged(4, "float16")):
        with pytest.raises(SchemaMismatchError, match=r"arrays: the store has .*RaggedArray"):
            zarrow.Writer(tmp_path / "s.zarrow", mode="a", arrays={"t": other})
    with zarrow.Writer(tmp_path / "q.zarrow", dtypes={"t": "int8"}) as writer:
        with pytest.raises(InvalidInputError, match=r"'t' has any number of vectors .* store it as float16"):
            writer.append({"id": [0, 1]}, {"t": GOOD})
        writer.discard()
    assert zarrow.open(tmp_path / "s.zarrow").num_rows == 2


@settings(max_examples=60)
@given(counts=st.lists(st.integers(-2, 5), max_size=5), vectors=st.integers(0, 8))
def test_counts_that_are_not_those_of_the_vectors(counts: list[int], vectors: int) -> None:
    """Counts are taken if they are 0 or more and sum to the vectors, and refused with their row if not."""
    values = np.zeros((vectors, 2))
    bad = [row for row, count in enumerate(counts) if not 0 <= count <= vectors]
    if bad or sum(counts) != vectors:
        message = (
            rf"got {counts[bad[0]]} in row {bad[0]}$" if bad else rf"sum to {sum(counts)} and {vectors} v"
        )
        with pytest.raises(InvalidInputError, match=message):
            zarrow.Ragged(values, counts)
    else:
        assert [len(row) for row in zarrow.Ragged(values, counts)] == counts


class _Tokens(LightningModule):
    """Predicts padded vectors, of which the second batch has something wrong beside them."""

    def __init__(self, wrong: Any) -> None:
        super().__init__()
        self.wrong = wrong

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return {"t": torch.ones(4, 6, 3), "beside": self.wrong if batch_idx else torch.full((4,), 2)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.tensor([1, -1, 2, 3]), r"lengths must lie in 0\.\.6 .*, got -1 in row 1"),
        (torch.tensor([1, 2, 7, 3]), r"lengths must lie in 0\.\.6 .*, got 7 in row 2"),
        (torch.tensor([1, 2, 3, torch.nan]), "lengths must be integers, got float32: nan in row 3"),
        (torch.tensor([1, 2, 3]), "lengths must be one per row of the 4, got 3"),
        (torch.ones(4, 5), r"the mask must have shape \(4, 6\), as the padded array, got \(4, 5\)"),
        (torch.ones(3, 6), r"the mask must have shape \(4, 6\), as the padded array, got \(3, 6\)"),
        (torch.ones(4, 6, 3), r"the mask must have shape \(4, 6\), as the padded array, got \(4, 6, 3\)"),
        (torch.full((4, 6), 2), "a mask has 0 and 1 only, got 2 in row 0"),
        (torch.full((4, 6), torch.nan), "a mask has 0 and 1 only, got nan in row 0"),
    ],
)
def test_what_a_prediction_says_wrong_of_its_padding(wrong: Any, message: str, tmp_path: Path) -> None:
    """Batch, array and row are named, and the batches before stay."""
    writer = PredictionWriter(tmp_path / "s.zarrow", ragged={"t": "beside"})
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    loader = DataLoader(TensorDataset(torch.arange(12.0)), batch_size=4)
    with pytest.raises(BatchError, match=rf"batch 1 .*: array 't' \(with 'beside'\): {message}"):
        Trainer(accelerator="cpu", callbacks=[writer], **quiet).predict(
            _Tokens(wrong), loader, return_predictions=False
        )
    with zarrow.open(tmp_path / "s.zarrow", partial=True) as store:
        assert store["t"].counts.tolist() == [2, 2, 2, 2]
