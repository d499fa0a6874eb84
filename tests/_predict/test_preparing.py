"""Preparing — one thread makes batches of the store out of predictions, and calls the writer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

import zarrow
from zarrow._predict.preparing import Preparing
from zarrow.errors import BatchError, InvalidInputError, WriteFailedError
from zarrow.lightning import PredictionWriter


class Model(LightningModule):
    def __init__(self, step: Any) -> None:
        super().__init__()
        self.step = step
        self.batches = 0

    def predict_step(self, batch: torch.Tensor, batch_idx: int) -> dict[str, Any]:
        self.batches += 1
        return self.step(batch)


def predict(path: Path, step: Any, rows: int = 400, **options: Any) -> Model:
    model = Model(step)
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[PredictionWriter(path, **options)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.predict(model, DataLoader(torch.arange(rows), batch_size=4), return_predictions=False)
    return model


@pytest.mark.parametrize("kind", [list, np.array, pl.Series, "nested"])
def test_values_that_the_model_changes_later_are_stored_as_they_were(tmp_path, kind):
    """A list, array or series reused by every step reaches the store as each step left it."""
    held: Any = [[0], [0], [0], [0]] if kind == "nested" else kind([0, 0, 0, 0])

    def step(batch: torch.Tensor) -> dict[str, Any]:
        for row, number in enumerate(batch.tolist()):
            if kind == "nested":
                held[row][0] = number
            else:
                held[row] = number
        return {"x": held, "v": batch[:, None].float()}

    predict(tmp_path / "s", step)
    found = zarrow.open(tmp_path / "s").table()["x"].to_pylist()
    assert found == ([[number] for number in range(400)] if kind == "nested" else list(range(400)))


def test_the_first_batch_is_waited_for(tmp_path):
    """An error common to all batches ends the run at the first one."""

    def step(batch: torch.Tensor) -> dict[str, Any]:
        steps.append(1)
        return {"row": batch, "v": batch[:, None].float()}

    steps: list[int] = []
    with pytest.raises(InvalidInputError, match="'row'") as caught:
        predict(tmp_path / "s", step)
    assert caught.value.__notes__ == ["in batch 0 of predict data loader 0 (DataLoader) over a Tensor"]
    assert len(steps) == 1


def test_an_error_ends_the_run_though_the_model_goes_on(tmp_path):
    """An error in the thread is raised by the next hook, and the batches before it are stored."""

    def step(batch: torch.Tensor) -> dict[str, Any]:
        assert batch[0] < 4000, "the model was not stopped"
        return {"v": torch.ones(len(batch), 3 if batch[0] == 20 else 2)}

    with pytest.raises(BatchError, match=r"in batch 5 of .*: batch 5: array 'v': expected shape"):
        predict(tmp_path / "s", step, rows=1_000_000)
    assert zarrow.open(tmp_path / "s", partial=True).num_rows == 20


def test_a_disk_that_refuses_ends_the_run(tmp_path, monkeypatch):
    """A failure of the writer is raised unchanged by a later hook, with the rows that are safe."""
    from zarrow._write.open_segment import OpenSegment

    append = OpenSegment.append

    def fail(self: OpenSegment, batches: Any) -> None:
        if self.rows >= 8:
            raise OSError(28, "No space left on device")
        append(self, batches)

    monkeypatch.setattr(OpenSegment, "append", fail)
    with pytest.raises(WriteFailedError, match="No space left") as caught:
        predict(tmp_path / "s", lambda batch: {"v": batch[:, None].float()}, rows=1_000_000)
    assert zarrow.open(tmp_path / "s", partial=True).num_rows == caught.value.accepted_rows


def test_an_error_of_another_library_names_the_batch(tmp_path):
    """Exceptions of pyarrow or the operating system are raised with a note that names the batch."""
    identifiers = pa.table({"id": range(400)})
    identifiers_path = tmp_path / "ids.parquet"
    pl.from_arrow(identifiers).write_parquet(identifiers_path)

    def step(batch: torch.Tensor) -> dict[str, Any]:
        identifiers_path.unlink(missing_ok=True)
        return {"v": batch[:, None].float()}

    with pytest.raises(FileNotFoundError) as caught:
        predict(tmp_path / "s", step, identifiers=identifiers_path)
    assert caught.value.__notes__[0].startswith("in batch 0 of predict data loader 0")


def test_identifiers_are_looked_for_before_the_batch_is_gone(tmp_path):
    """A callable gets each batch with its sample_index before the next step."""
    seen = []

    def find(batch: torch.Tensor, sample_index: np.ndarray) -> pa.Table:
        seen.append((len(steps), sample_index.tolist()))
        return pa.table({"id": batch.numpy()})

    def step(batch: torch.Tensor) -> dict[str, Any]:
        steps.append(1)
        return {"v": batch[:, None].float()}

    steps: list[int] = []
    predict(tmp_path / "s", step, identifiers=find)
    assert seen == [(n + 1, list(range(4 * n, 4 * n + 4))) for n in range(100)]
    assert zarrow.open(tmp_path / "s").table()["id"].to_pylist() == list(range(400))


def test_memory_has_one_bound(tmp_path, monkeypatch):
    """Batches waiting to be prepared and those waiting for the disk are bounded together by queue_bytes."""
    from zarrow._write.open_segment import OpenSegment

    append, queued = OpenSegment.append, []

    def look(self: OpenSegment, batches: Any) -> None:
        thread = threads[0]
        queued.append(thread._put_bytes - thread._done_bytes)
        append(self, batches)

    def noted(self: Preparing, *arguments: Any, **options: Any) -> None:
        threads.append(self)
        init(self, *arguments, **options)

    threads: list[Preparing] = []
    init = Preparing.__init__
    monkeypatch.setattr(Preparing, "__init__", noted)
    monkeypatch.setattr(OpenSegment, "append", look)
    predict(tmp_path / "s", lambda batch: {"v": torch.ones(len(batch), 4096)}, queue_bytes=500_000)
    assert min(queued) >= 65_536  # a batch counts until it is accepted
    assert max(queued) <= 500_000


def test_a_run_without_its_end_loses_no_batch(tmp_path):
    """Batches handed over are accepted even if the interpreter ends without Lightning's last hooks."""
    code = f"""
import os, sys, torch, zarrow
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader
from zarrow.lightning import PredictionWriter
class Model(LightningModule):
    def predict_step(self, batch):
        return {{"v": batch[:, None].float()}}
class Forgetful(PredictionWriter):
    def on_exception(self, *arguments): pass
    def teardown(self, *arguments, **named): pass
writer = Forgetful({str(tmp_path / "s")!r})
trainer = Trainer(accelerator="cpu", callbacks=[writer], logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False)
trainer.predict(Model(), DataLoader(torch.arange(40), batch_size=4), return_predictions=False)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True)
    assert zarrow.open(tmp_path / "s", partial=True).num_rows == 40


@pytest.mark.filterwarnings("ignore:Couldn't infer the batch indices:UserWarning")
def test_a_complete_store_takes_no_further_row(tmp_path):
    """A stream that has grown since its store was completed is refused, with the first row of it."""

    class Stream(torch.utils.data.IterableDataset):
        rows = 10

        def __iter__(self) -> Any:
            return iter(torch.arange(self.rows))

    def run() -> None:
        trainer = Trainer(
            accelerator="cpu",
            callbacks=[PredictionWriter(tmp_path / "s", resume=True)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        model = Model(lambda batch: {"v": batch[:, None].float()})
        trainer.predict(model, DataLoader(Stream(), batch_size=4), return_predictions=False)

    run()
    run()
    Stream.rows = 12
    with pytest.raises(
        BatchError, match="the store was completed with 10 rows of this loader, without sample_index 10"
    ):
        run()
    assert zarrow.open(tmp_path / "s").num_rows == 10
