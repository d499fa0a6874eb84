"""EveryQuery — its drop-in callback yields the files that EveryQuery's own writer writes, whatever happens.

The fast tests hand made-up predictions to the writer, by its hooks and by real trainers. The long one
(``-m long``) runs the real package: with this interpreter if it has ``everyquery``, else with the one that
``ZARROW_EVERYQUERY_PYTHON`` names, else with that of a virtual environment which it makes in pytest's cache
(a few minutes and two GB, once) and which later runs find there.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import types
import venv
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

import zarrow
from zarrow._predict.everyquery_tasks import tasks_crc32c
from zarrow.errors import (
    BatchError,
    ConflictError,
    IncompleteStoreError,
    InvalidInputError,
    StoreLockedError,
)
from zarrow.everyquery import StreamingPredictionWriter, export_predictions, identifiers, preset
from zarrow.lightning import PredictionWriter
from zarrow.transfer import _rows

ROOT = Path(__file__).parents[1]
HIDDEN = 4
LABELLED = ["subject_id", "prediction_time", "boolean_value", "query", "duration_days"]
PROBABILITIES = ["censor_prob", "occurs_prob"]
INCOMPLETE = pytest.mark.filterwarnings("ignore:.*is not written.*:UserWarning")
# Lightning's word for a run that has nothing left to predict.
NOTHING_LEFT = pytest.mark.filterwarnings("ignore:Total length of .* is zero:UserWarning")


def tasks(rows: int, *, label: bool = True) -> pl.DataFrame:
    """What EveryQuery's dataset keeps of its tasks."""
    frame = pl.DataFrame(
        {
            "subject_id": range(10, 10 + rows),
            "end_event_index": range(rows),
            "prediction_time": [datetime(2024, 1, 1) + timedelta(hours=i) for i in range(rows)],
            "query": ["ABC"[i % 3] for i in range(rows)],
            "duration_days": [30.0 * (1 + i % 3) for i in range(rows)],
            "boolean_value": [i % 2 == 1 for i in range(rows)],
            "occurs": [i % 3 == 0 for i in range(rows)],
        },
        schema_overrides={
            "subject_id": pl.Int64,
            "end_event_index": pl.UInt32,
            "prediction_time": pl.Datetime("us"),
            "query": pl.String,
            "duration_days": pl.Float32,
            "boolean_value": pl.Boolean,
            "occurs": pl.Boolean,
        },
    )
    return frame if label else frame.drop("boolean_value", "occurs")


def outputs(start: int, stop: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """What EveryQuery's predict_step returns; the embedding is a view of the whole hidden state."""
    rows = torch.arange(start, stop)
    state = torch.zeros(len(rows), 6, HIDDEN, dtype=dtype)
    state[:, 0] = rows[:, None] % 256 + torch.arange(HIDDEN) / 4
    return {
        "occurs_probs": (rows % 128 / 128).to(dtype),
        "censor_probs": (1 - rows % 128 / 128).to(dtype),
        "occurs": torch.zeros(len(rows), dtype=torch.int64),
        "censor": torch.zeros(len(rows), dtype=torch.bool),
        "query": torch.zeros(len(rows), dtype=torch.int64),
        "duration_days": torch.ones(len(rows)),
        "query_embed": state[:, 0, :],
    }


def files(folder: Path) -> tuple[Path, Path]:
    return folder / "predictions.parquet", folder / "predictions.embeddings.parquet"


def feed(writer: StreamingPredictionWriter, *edges: int, **options: Any) -> None:
    """Hand over batches of rows edges[i] to edges[i + 1], as Lightning would."""
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        writer.write_on_batch_end(
            trainer=None,
            pl_module=None,
            prediction=outputs(start, stop, **options),
            batch_indices=None,
            batch=None,
            batch_idx=number,
            dataloader_idx=0,
        )


def predict_all(folder: Path, frame: pl.DataFrame, *edges: int, **options: Any) -> StreamingPredictionWriter:
    writer = StreamingPredictionWriter(*one_two(folder, frame), **options)
    writer.setup(trainer=None, pl_module=None, stage="predict")
    feed(writer, *edges)
    writer.teardown(trainer=None, pl_module=None, stage="predict")
    return writer


def one_two(folder: Path, frame: pl.DataFrame) -> tuple[Any, ...]:
    """The constructor's arguments, by position."""
    predictions, embeddings = files(folder)
    return predictions, frame, embeddings, HIDDEN


def check_files(folder: Path, rows: int) -> None:
    """Compare both files with what was predicted."""
    predictions, embeddings = (pq.read_table(path) for path in files(folder))
    frame, expected = tasks(rows), outputs(0, rows)
    label = [
        None if censored else occurs for censored, occurs in frame.select("boolean_value", "occurs").rows()
    ]
    for table in (predictions, embeddings):
        for name in ("subject_id", "prediction_time", "query", "duration_days"):
            assert table[name].to_pylist() == frame[name].to_list()
        assert table["boolean_value"].to_pylist() == label
    for name in PROBABILITIES:
        assert np.array_equal(predictions[name].to_numpy(), expected[f"{name}s"].numpy())
    vectors = embeddings["embedding"].combine_chunks().flatten().to_numpy().reshape(rows, HIDDEN)
    assert np.array_equal(vectors, expected["query_embed"].numpy())


class Rows(Dataset):
    """Sample i is the number i."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> int:
        return index


class Model(LightningModule):
    """Predicts `outputs`; `at` is called with the first row of every batch."""

    def __init__(self, at: Any = None, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self._at = at
        self.seen: list[list[int]] = []

    def predict_step(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        if self._at is not None:
            self._at(int(batch[0]))
        self.seen.append(batch.tolist())
        return outputs(int(batch[0]), int(batch[-1]) + 1)


class Padding(Model):
    """Predicts vectors that depend on the rows in the same batch, as with padding."""

    def predict_step(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        prediction = super().predict_step(batch)
        return prediction | {"query_embed": prediction["query_embed"] * batch.sum()}


def trainer(*callbacks: Any, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def predict(folder: Path, rows: int, model: Model, batch_size: int = 8, **options: Any) -> Any:
    """Predict as EQ_predict does."""
    writer = StreamingPredictionWriter(*one_two(folder, tasks(rows)), **options)
    loader = DataLoader(Rows(rows), batch_size=batch_size, shuffle=False)
    trainer(writer).predict(model, dataloaders=loader, return_predictions=False)
    return writer


def stop_at(row: int) -> Any:
    def at(first: int) -> None:
        if first >= row:
            raise KeyError(first)

    return at


# The files


def test_files_have_the_schemas_of_everyquery(tmp_path: Path) -> None:
    """Columns, their order, types and nullability are those of EveryQuery's writer."""
    predict_all(tmp_path, tasks(3), 0, 3)
    predictions, embeddings = (pq.read_schema(path) for path in files(tmp_path))
    kinds = {
        "subject_id": pa.int64(),
        "prediction_time": pa.timestamp("us"),
        "boolean_value": pa.bool_(),
        "query": pa.large_string(),
        "duration_days": pa.float32(),
        "censor_prob": pa.float32(),
        "occurs_prob": pa.float32(),
        "embedding": pa.list_(pa.field("element", pa.float32()), HIDDEN),
    }
    ordered = ["subject_id", "prediction_time", "query", "duration_days", "boolean_value", "embedding"]
    for schema, names in ((predictions, [*LABELLED, *PROBABILITIES]), (embeddings, ordered)):
        assert schema.equals(pa.schema([(name, kinds[name]) for name in names]), check_metadata=True)
        assert schema.metadata is None


def test_rows_of_several_batches(tmp_path: Path) -> None:
    """Batches of different lengths get the tasks' identifiers, labels and their own vectors."""
    writer = predict_all(tmp_path, tasks(6), 0, 3, 5, 6)
    assert writer._offset == 6
    check_files(tmp_path, 6)


def test_a_label_is_null_where_censored() -> None:
    """The label is set only where it could be observed; unknown censoring counts as observed."""
    frame = tasks(4).with_columns(
        boolean_value=pl.Series([True, False, None, False]), occurs=pl.Series([True, True, True, False])
    )
    assert identifiers(frame)["boolean_value"].to_pylist() == [None, True, True, False]


def test_tasks_without_labels(tmp_path: Path) -> None:
    """Where the tasks have no label, neither file has the column."""
    predict_all(tmp_path, tasks(5, label=False), 0, 5)
    names = [pq.read_schema(path).names for path in files(tmp_path)]
    assert names[0] == ["subject_id", "prediction_time", "query", "duration_days", *PROBABILITIES]
    assert names[1] == ["subject_id", "prediction_time", "query", "duration_days", "embedding"]


def test_without_embeddings(tmp_path: Path) -> None:
    """Without a path for embeddings none are stored, and the prediction need not have them."""
    writer = StreamingPredictionWriter(tmp_path / "predictions.parquet", tasks(4))
    writer.setup(None, None, "predict")
    prediction = {name: outputs(0, 4)[name] for name in ("occurs_probs", "censor_probs")}
    writer.write_on_batch_end(None, None, prediction, None, None, 0)
    writer.close()
    assert pq.read_metadata(tmp_path / "predictions.parquet").num_rows == 4
    assert not zarrow.open(tmp_path / "predictions.zarrow").arrays
    assert {path.name for path in tmp_path.iterdir()} == {"predictions.parquet", "predictions.zarrow"}


def test_no_tasks(tmp_path: Path) -> None:
    """Zero tasks give two valid files of zero rows."""
    predict_all(tmp_path, tasks(0))
    for path in files(tmp_path):
        assert pq.read_table(path).num_rows == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precisions(tmp_path: Path, dtype: torch.dtype) -> None:
    """The files have float32 whatever the model's precision, and a view is copied."""
    writer = StreamingPredictionWriter(*one_two(tmp_path, tasks(8)))
    writer.setup(None, None, "predict")
    feed(writer, 0, 8, dtype=dtype)
    writer.close()
    check_files(tmp_path, 8)


def test_a_buffer_may_be_used_again(tmp_path: Path) -> None:
    """Changes that the caller makes to its tensors after the hook do not reach the files."""
    writer = StreamingPredictionWriter(*one_two(tmp_path, tasks(20)))
    writer.setup(None, None, "predict")
    buffer = torch.zeros(2, 6, HIDDEN)
    for number in range(10):
        prediction = outputs(2 * number, 2 * number + 2)
        buffer[:, 0] = prediction["query_embed"]
        writer.write_on_batch_end(None, None, prediction | {"query_embed": buffer[:, 0]}, None, None, number)
    writer.close()
    check_files(tmp_path, 20)


def test_a_pyarrow_table_of_tasks(tmp_path: Path) -> None:
    """The tasks may be a pyarrow table."""
    predict_all(tmp_path, tasks(6).to_arrow(), 0, 6)
    check_files(tmp_path, 6)


def test_row_groups_have_a_fixed_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups are as large as memory allows, whatever the batches were."""
    monkeypatch.setattr(_rows, "BATCH_BYTES", 8 * 4 * HIDDEN)
    monkeypatch.setattr(_rows, "MAX_BATCH_ROWS", 16)
    predict_all(tmp_path, tasks(25), *range(0, 26, 5))
    groups = [pq.ParquetFile(path).metadata for path in files(tmp_path)]
    sizes = [[group.row_group(i).num_rows for i in range(group.num_row_groups)] for group in groups]
    assert sizes == [[16, 9], [8, 8, 8, 1]]
    check_files(tmp_path, 25)


def test_polars_is_not_imported() -> None:
    """The edge imports neither polars nor EveryQuery."""
    code = "import sys, zarrow.everyquery; print([n for n in ('polars', 'every_query') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Killed and resumed


@INCOMPLETE
@NOTHING_LEFT
@pytest.mark.parametrize("stored", [1, 7, 8, 9, 24, 29, 30])
def test_resumed_runs_give_the_same_files(tmp_path: Path, stored: int) -> None:
    """Wherever a run ended, even within a batch, the next run predicts the rest."""
    writer = StreamingPredictionWriter(*one_two(tmp_path, tasks(30)))
    writer.setup(None, None, "predict")
    feed(writer, 0, stored)
    writer.close()
    assert files(tmp_path)[0].exists() == (stored == 30)
    model = Model()
    resumed = predict(tmp_path, 30, model)
    assert resumed._offset == 30
    check_files(tmp_path, 30)
    assert model.seen == [
        list(range(first, min(first + 8, 30))) for first in range(stored // 8 * 8, 30, 8)
    ] or (stored == 30 and not model.seen)


def test_an_exception_leaves_no_files_and_every_batch(tmp_path: Path) -> None:
    """A step that raises leaves no files but a store with the batches before, and the next run continues."""
    with pytest.raises(KeyError):
        predict(tmp_path, 30, Model(stop_at(16)))
    assert not any(path.exists() for path in files(tmp_path))
    with pytest.raises(IncompleteStoreError):
        zarrow.open(tmp_path / "predictions.zarrow")
    assert zarrow.open(tmp_path / "predictions.zarrow", partial=True).num_rows == 16
    model = Model()
    predict(tmp_path, 30, model)
    assert model.seen[0][0] == 16
    check_files(tmp_path, 30)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import test_everyquery as t

def at(first):
    if first >= 4000:
        os.kill(os.getpid(), signal.SIGKILL)

t.predict(Path(sys.argv[1]), 6000, t.Model(at))
"""


@pytest.mark.slow
def test_sigkill(tmp_path: Path) -> None:
    """After SIGKILL nearly all rows are there, and the next run completes the files."""
    arguments = [sys.executable, "-c", KILLED, str(tmp_path), str(ROOT / "tests")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not any(path.exists() for path in files(tmp_path))
    rows = zarrow.open(tmp_path / "predictions.zarrow", partial=True).num_rows
    assert 2000 < rows <= 4000
    model = Model()
    predict(tmp_path, 6000, model)
    assert model.seen[0][0] == rows // 8 * 8
    check_files(tmp_path, 6000)


@pytest.mark.slow
def test_sigterm(tmp_path: Path) -> None:
    """On SIGTERM the run ends with 143 after a batch, with the batches before in its store."""
    arguments = [
        sys.executable,
        "-c",
        KILLED.replace("SIGKILL", "SIGTERM"),
        str(tmp_path),
        str(ROOT / "tests"),
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert not any(path.exists() for path in files(tmp_path))
    assert zarrow.open(tmp_path / "predictions.zarrow", partial=True).num_rows == 4008
    predict(tmp_path, 6000, Model())
    check_files(tmp_path, 6000)


@INCOMPLETE
@pytest.mark.filterwarnings("ignore:Couldn't infer the batch indices:UserWarning")
def test_a_loader_that_cannot_be_shortened(tmp_path: Path) -> None:
    """If stored batches cannot be skipped, they are predicted again but not stored again."""

    class Loader:
        def __iter__(self) -> Any:
            return iter(DataLoader(Rows(30), batch_size=8))

    def predict_with(model: Model) -> None:
        writer = StreamingPredictionWriter(*one_two(tmp_path, tasks(30)))
        trainer(writer).predict(model, Loader(), return_predictions=False)

    with pytest.raises(KeyError):
        predict_with(Model(stop_at(16)))
    model = Model()
    predict_with(model)
    assert model.seen[0][0] == 0
    check_files(tmp_path, 30)


def test_a_shuffled_loader(tmp_path: Path) -> None:
    """Rows that are predicted in another order come out with their own identifiers, in the tasks' order."""
    writer = StreamingPredictionWriter(*one_two(tmp_path, tasks(30)))
    loader = DataLoader(Rows(30), batch_size=8, sampler=[*range(16, 30), *range(16)])
    model = Model()
    model.predict_step = lambda batch: {  # type: ignore[method-assign]
        name: values[batch] for name, values in outputs(0, 30).items()
    }
    trainer(writer).predict(model, loader, return_predictions=False)
    check_files(tmp_path, 30)


def test_another_batch_size(tmp_path: Path) -> None:
    """A run can be resumed with another batch size."""
    with pytest.raises(KeyError):
        predict(tmp_path, 30, Model(stop_at(16)))
    model = Model()
    predict(tmp_path, 30, model, batch_size=7)
    assert model.seen[0][0] == 14
    check_files(tmp_path, 30)


@NOTHING_LEFT
def test_a_complete_store_is_only_exported(tmp_path: Path) -> None:
    """If a run died between the store's end and the files', the next one predicts nothing."""
    predict(tmp_path, 30, Model())
    for path in files(tmp_path):
        path.unlink()
    model = Model()
    writer = predict(tmp_path, 30, model)
    assert (model.seen, writer._offset) == ([], 30)
    check_files(tmp_path, 30)


@INCOMPLETE
def test_fewer_batches_than_tasks(tmp_path: Path) -> None:
    """A run that its trainer cut short writes no file and says how many rows are missing."""
    writer = StreamingPredictionWriter(*one_two(tmp_path, tasks(30)))
    loader = DataLoader(Rows(30), batch_size=8)
    with pytest.warns(UserWarning, match=r"16 of 30 rows are safe; 14 of 30 rows are missing"):
        trainer(writer, limit_predict_batches=2).predict(Model(), loader, return_predictions=False)
    assert writer._offset == 16
    assert not files(tmp_path)[0].exists()
    predict(tmp_path, 30, Model())
    check_files(tmp_path, 30)


# EQ_predict passes a temporary name and renames the file


def test_names_that_end_in_tmp(tmp_path: Path) -> None:
    """The store is named after the final file, and close() leaves the file under the temporary name."""
    writer = StreamingPredictionWriter(tmp_path / "predictions.parquet.tmp", tasks(4))
    writer.setup(None, None, "predict")
    feed(writer, 0, 4)
    writer.close()
    writer.close()
    assert {path.name for path in tmp_path.iterdir()} == {"predictions.parquet.tmp", "predictions.zarrow"}


def test_overwriting(tmp_path: Path) -> None:
    """If the final file exists, EQ_predict runs with overwrite=true, so another model's store is replaced."""
    predictions, embeddings = (path.with_name(path.name + ".tmp") for path in files(tmp_path))
    loader = DataLoader(Rows(12), batch_size=8)
    for weight in (1.0, 2.0):
        writer = StreamingPredictionWriter(predictions, tasks(12), embeddings, HIDDEN)
        model = Model(weight=weight)
        trainer(writer).predict(model, loader, return_predictions=False)
        assert len(model.seen) == 2
        predictions.replace(files(tmp_path)[0])
        embeddings.replace(files(tmp_path)[1])
    check_files(tmp_path, 12)
    assert len(list(tmp_path.iterdir())) == 3


# What cannot be resumed


def test_another_model_is_refused(tmp_path: Path) -> None:
    """Rows of two models never meet in one store: the message names weights, path and remedy."""
    with pytest.raises(KeyError):
        predict(tmp_path, 30, Model(stop_at(16)))
    with pytest.raises(
        ConflictError, match=r"predictions.zarrow.*weights: the store has \'\w+\', now .*remove it"
    ):
        predict(tmp_path, 30, Model(weight=2.0))
    predict(tmp_path, 30, Model())
    check_files(tmp_path, 30)


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_overwriting_predicts_anew(tmp_path: Path, weight: float) -> None:
    """With overwrite=True every row is predicted, by any model; the old rows stay until then."""
    predict(tmp_path, 30, Model())
    with pytest.raises(KeyError):
        predict(tmp_path, 30, Model(stop_at(16), weight), overwrite=True)
    assert zarrow.open(tmp_path / "predictions.zarrow").num_rows == 30
    model = Model(weight=weight)
    writer = predict(tmp_path, 30, model, overwrite=True)
    assert (model.seen[0][0], sum(map(len, model.seen)), writer._offset) == (0, 30, 30)
    check_files(tmp_path, 30)
    assert not (tmp_path / "predictions.zarrow.incoming").exists()


@INCOMPLETE
def test_overwriting_without_a_batch(tmp_path: Path) -> None:
    """A smoke test of the configuration replaces nothing, and counts no row as its own."""
    predict(tmp_path, 30, Model())
    writer = StreamingPredictionWriter(*one_two(tmp_path, tasks(30)), overwrite=True)
    with pytest.warns(UserWarning, match="0 of 30 rows are safe"):
        trainer(writer, limit_predict_batches=0).predict(
            Model(), DataLoader(Rows(30), batch_size=8), return_predictions=False
        )
    assert writer._offset == 0
    assert zarrow.open(tmp_path / "predictions.zarrow").num_rows == 30


class Cut(Rows):
    """A dataset with a configuration, as EveryQuery's has."""

    def __init__(self, rows: int, max_seq_len: int) -> None:
        super().__init__(rows)
        self.config = types.SimpleNamespace(max_seq_len=max_seq_len)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    """Rows of a run with another max_seq_len are not reused, neither some nor all of them."""

    def run(max_seq_len: int, model: Model, **options: Any) -> None:
        writer = StreamingPredictionWriter(*one_two(tmp_path, tasks(30)), **options)
        loader = DataLoader(Cut(30, max_seq_len), batch_size=8)
        trainer(writer).predict(model, loader, return_predictions=False)

    with pytest.raises(KeyError):
        run(256, Model(stop_at(16)))
    with pytest.raises(ConflictError, match=r"config.max_seq_len: the store has 256, now 8.*overwrite=True"):
        run(8, Model())
    model = Model()
    run(8, model, overwrite=True)
    assert sum(map(len, model.seen)) == 30


@INCOMPLETE
def test_a_store_that_is_being_written_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overwriting waits for the store's lock, and gives up without touching it."""
    monkeypatch.setattr("zarrow._write.directory.LOCK_TIMEOUT_S", 0.1)
    writer = StreamingPredictionWriter(*one_two(tmp_path, tasks(10)))
    writer.setup(None, None, "predict")
    feed(writer, 0, 4)
    with pytest.raises(StoreLockedError):
        predict_all(tmp_path, tasks(9), overwrite=True)
    writer.close()
    predict_all(tmp_path, tasks(10), 0, 4, 10)
    check_files(tmp_path, 10)


@INCOMPLETE
@pytest.mark.parametrize(
    "other",
    [
        tasks(10).with_columns(query=pl.lit("Z")),
        tasks(10).with_columns(occurs=pl.lit(False)),
        tasks(9),
        tasks(10, label=False),
    ],
    ids=["query", "label", "rows", "no label"],
)
def test_other_tasks_are_refused(tmp_path: Path, other: pl.DataFrame) -> None:
    """A store of other tasks is not resumed, and left as it is; the message has both checksums."""
    writer = StreamingPredictionWriter(*one_two(tmp_path, tasks(10)))
    writer.setup(None, None, "predict")
    feed(writer, 0, 4)
    writer.close()
    with pytest.raises(ConflictError, match=r"tasks_crc32c: the store has '\w{8}', now '\w{8}'"):
        StreamingPredictionWriter(*one_two(tmp_path, other)).setup(None, None, "predict")
    with pytest.raises(ConflictError, match="arrays"):
        StreamingPredictionWriter(files(tmp_path)[0], tasks(10)).setup(None, None, "predict")
    predict_all(tmp_path, tasks(10), 0, 4, 10)
    check_files(tmp_path, 10)


@INCOMPLETE
def test_two_runs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second identical run is refused while the first is active."""
    monkeypatch.setattr("zarrow._write.directory.LOCK_TIMEOUT_S", 0.1)
    writer = StreamingPredictionWriter(*one_two(tmp_path, tasks(10)))
    writer.setup(None, None, "predict")
    with pytest.raises(StoreLockedError):
        StreamingPredictionWriter(*one_two(tmp_path, tasks(10))).setup(None, None, "predict")
    writer.close()


# Bad input


def test_frames_that_are_none() -> None:
    """A frame that lacks a column, has another type, or is none is refused at once."""
    with pytest.raises(InvalidInputError, match=r"missing \['query'\]"):
        StreamingPredictionWriter("p.parquet", tasks(3).drop("query"))
    with pytest.raises(InvalidInputError, match="polars DataFrame or a pyarrow Table, got list"):
        StreamingPredictionWriter("p.parquet", [1, 2])
    frame = tasks(1).with_columns(duration_days=pl.lit("long"))
    with pytest.raises(InvalidInputError, match="'duration_days' must be float"):
        identifiers(frame)
    with pytest.raises(InvalidInputError, match="requires hidden_size"):
        StreamingPredictionWriter("p.parquet", tasks(3), "e.parquet")


GOOD = outputs(3, 6)


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        ({"occurs_probs": GOOD["occurs_probs"]}, "lacks the entry 'censor_probs'"),
        (None, "got None"),
        (GOOD | {"censor_probs": torch.zeros(2)}, "expected 2 rows, as column 'censor_prob' has, got 3"),
        (GOOD | {"query_embed": torch.zeros(3, 5)}, r"expected shape \(rows, 4\), got \(3, 5\)"),
        (outputs(3, 7), "rows 3 to 7, but schema_df has only 6"),
    ],
    ids=["entry", "none", "lengths", "width", "rows"],
)
def test_batches_that_break_a_rule(tmp_path: Path, prediction: Any, message: str) -> None:
    """A batch that does not fit ends the run; the ones before it are kept, and the next run goes on."""
    writer = StreamingPredictionWriter(*one_two(tmp_path, tasks(6)))
    with pytest.raises(InvalidInputError, match="got a batch outside of a run"):
        feed(writer, 0, 3)
    writer.setup(None, None, "predict")
    feed(writer, 0, 3)

    def write() -> None:
        writer.write_on_batch_end(None, None, prediction, None, None, 1)
        writer.close()  # at the latest here

    with pytest.raises(BatchError, match=message):
        write()
    writer.close()
    assert not files(tmp_path)[0].exists()
    predict_all(tmp_path, tasks(6), 0, 0, 3, 6)
    check_files(tmp_path, 6)


def test_a_probability_may_have_an_axis_of_one(tmp_path: Path) -> None:
    """Probabilities of shape (rows, 1) and unknown entries are accepted, as EveryQuery's writer does."""
    writer = StreamingPredictionWriter(*one_two(tmp_path, tasks(6)))
    writer.setup(None, None, "predict")
    prediction = outputs(0, 6)
    prediction |= {name: prediction[name][:, None] for name in ("occurs_probs", "censor_probs")}
    writer.write_on_batch_end(None, None, prediction | {"attention": torch.ones(6, 2, 2)}, None, None, 0)
    writer.close()
    check_files(tmp_path, 6)


# Several ranks


RANKS = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import test_everyquery as t

folder, rows, stop, devices = Path(sys.argv[1]), *map(int, sys.argv[3:])
writer = t.StreamingPredictionWriter(*t.one_two(folder, t.tasks(rows)))
trainer = t.trainer(writer, devices=devices, strategy="ddp")
loader = t.DataLoader(t.Rows(rows), batch_size=8)
trainer.predict(t.Padding(t.stop_at(stop) if stop else None), loader, return_predictions=False)
assert writer._offset == rows
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("first", "second"), [(2, 2), (1, 2), (2, 1)])
def test_ranks(tmp_path: Path, first: int, second: int) -> None:
    """A run that died leaves no files, goes on with any number of ranks, and ends with every bit the same."""
    script = tmp_path / "script.py"
    script.write_text(RANKS)
    folder = tmp_path / "out"

    def run(stop: int, ranks: int) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            str(script),
            str(folder),
            str(ROOT / "tests"),
            "100",
            str(stop),
            str(ranks),
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run(48, first).returncode, "it should have died"
    assert not any(path.exists() for path in files(folder))
    assert 0 < zarrow.open(folder / "predictions.zarrow", partial=True).num_rows < 100
    done = run(0, second)
    assert done.returncode == 0, done.stderr
    predict(tmp_path / "undisturbed", 100, Padding())
    for ours, theirs in zip(files(folder), files(tmp_path / "undisturbed"), strict=True):
        assert pq.read_table(ours).equals(pq.read_table(theirs), check_metadata=True)


# The preset and the export


def test_the_preset(tmp_path: Path) -> None:
    """PredictionWriter with the preset writes a store that exports to the same files, in sample order."""
    path = tmp_path / "run.zarrow"
    writer = PredictionWriter(path, **preset(tasks(30)))
    loader = DataLoader(Rows(30), batch_size=8, sampler=[*range(8, 16), *range(8), *range(16, 30)])
    trainer(writer).predict(Model(), loader, return_predictions=False)
    assert zarrow.open(path).keys == ("subject_id", "prediction_time", "query", "duration_days")
    assert export_predictions(path, *files(tmp_path)) == 30
    check_files(tmp_path, 30)


def test_tasks_checksum() -> None:
    """The checksum of the tasks depends on their rows, and neither on chunks nor on other columns."""
    whole = tasks(70_000)
    parts = pl.concat([whole[:10], whole[10:]], rechunk=False).drop("end_event_index")
    assert tasks_crc32c(parts) == tasks_crc32c(whole)
    assert tasks_crc32c(whole[1:]) != tasks_crc32c(whole) != tasks_crc32c(whole.drop("occurs"))


@INCOMPLETE
def test_partial_exports(tmp_path: Path) -> None:
    """Rows of an incomplete store are exported only on request."""
    writer = StreamingPredictionWriter(*one_two(tmp_path, tasks(10)))
    writer.setup(None, None, "predict")
    feed(writer, 0, 4, 7)
    writer.close()
    with pytest.raises(IncompleteStoreError):
        export_predictions(writer.store_path, *files(tmp_path))
    assert export_predictions(writer.store_path, *files(tmp_path), partial=True) == 7
    check_files(tmp_path, 7)


def test_an_export_of_something_else(tmp_path: Path) -> None:
    """A store without the columns, or with an array that is not a list of vectors, is refused."""
    with zarrow.Writer(tmp_path / "other.zarrow") as writer:
        writer.append({"subject_id": [1]})
        writer.finalize()
    with pytest.raises(InvalidInputError, match="'prediction_time' of type timestamp"):
        export_predictions(tmp_path / "other.zarrow", *files(tmp_path))
    predict_all(tmp_path, tasks(3), 0, 3)
    with pytest.raises(zarrow.errors.UnknownNameError, match="query_embd"):
        export_predictions(tmp_path / "predictions.zarrow", *files(tmp_path), array="query_embd")


def test_a_failed_export_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the second file cannot be written, the first is unchanged, and no scratch file is left."""
    predict_all(tmp_path, tasks(3), 0, 3)
    before = [path.read_bytes() for path in files(tmp_path)]
    names = {path.name for path in tmp_path.iterdir()}
    calls = []

    def fail(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("zarrow._storage.files.sync", fail)
    with pytest.raises(OSError, match="No space left"):
        export_predictions(tmp_path / "predictions.zarrow", *files(tmp_path))
    assert [path.read_bytes() for path in files(tmp_path)] == before
    assert {path.name for path in tmp_path.iterdir()} == names


# The real package


@pytest.fixture(scope="session")
def everyquery_python(pytestconfig: pytest.Config) -> str:
    """A Python that has EveryQuery and this zarrow."""
    if importlib.util.find_spec("every_query") is not None:
        return sys.executable
    chosen = os.environ.get("ZARROW_EVERYQUERY_PYTHON")
    if chosen:
        return chosen
    folder = Path(str(pytestconfig.cache.mkdir("everyquery-venv")))  # type: ignore[union-attr]
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        packages = ["-e", str(ROOT), "everyquery==0.7.0", "meds-testing-helpers", "meds-evaluation"]
        install = [str(python), "-m", "pip", "install", "--quiet", *packages]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"everyquery==0.7.0 cannot be installed here: {done.stderr.strip()[-500:]}")
        (folder / "installed").touch()
    return str(python)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_real_everyquery(everyquery_python: str, tmp_path: Path) -> None:
    """EQ_predict's own main writes the same files with our writer, also if killed; EQ_evaluate agrees."""
    script = ROOT / "examples" / "everyquery" / "run.py"
    arguments = [everyquery_python, str(script), "--out", str(tmp_path), "--subjects", "100"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    reports = json.loads((tmp_path / "report.json").read_text())
    for report, folder in zip(reports.values(), (tmp_path, tmp_path / "multitask"), strict=True):
        assert report["differences"] == {"zarrow": [], "resumed": [], "ranks": []}
        assert report["files after SIGKILL"] == []
        assert 0 < report["rows after SIGKILL"] < report["rows"]
        assert report["same metrics"]
        assert report["meds"]["differ"] == []
        store = zarrow.open(folder / "resumed" / "predictions.zarrow")
        assert (store.num_rows, store.complete) == (report["rows"], True)
    assert reports["EQ_predict"]["meds"]["left out"] > 0
