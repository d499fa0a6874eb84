"""Copies from a device — values reach the writer whole and in order although no step waits for their copies.

`Slow` stands for a GPU on machines without one: its copies are made when they are waited for, or when as many
steps have passed as it takes them, and until then there is garbage in their buffers. What works on it does
not read too early, does not write into what is being read, and lets go of nothing too soon.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

import zarrow
from zarrow import everyquery, lightning
from zarrow._format.quantized import quantize
from zarrow._predict import host_copies
from zarrow._predict.host_copies import CudaCopies, HostCopies
from zarrow.errors import BatchError, WriteFailedError

GARBAGE = 77


class Slow:
    """A device whose copies are made only when they are awaited."""

    def __init__(self) -> None:
        self.started: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
        self.waits = 0
        self.waits_of_the_model = 0
        self.under_way = 0
        self.most_under_way = 0

    def covers(self, tensor: torch.Tensor) -> bool:
        return True

    def start(self, tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], Callable[[], None]]:
        hosts = [torch.full_like(tensor, GARBAGE) for tensor in tensors]
        pairs = list(zip(hosts, tensors, strict=True))
        self.started.append(pairs)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)

        def wait() -> None:
            self.waits += 1
            self.waits_of_the_model += threading.current_thread() is threading.main_thread()
            self.under_way -= 1
            with torch.inference_mode():
                for host, tensor in pairs:
                    host.copy_(tensor)
            pairs.clear()

        return hosts, wait


def test_values_are_those_of_the_step_though_its_memory_is_used_again():
    """Writes of the next step into the same memory, or a view of it, do not reach this batch."""
    copies, buffer = HostCopies(device=Slow()), torch.zeros(4, 6)
    begun = []
    for step in range(5):
        buffer.fill_(step)
        begun.append(copies.begin({"whole": buffer, "view": buffer[:, 2], "half": buffer.bfloat16()}))
    buffer.fill_(-1)
    for step, batch in enumerate(begun):
        values = batch.get()
        assert values["whole"].tolist() == [[step] * 6] * 4
        assert values["view"].tolist() == [step] * 4
        assert (values["half"].dtype, values["half"][0, 0]) == (np.float32, step)
        assert all(array.flags.c_contiguous for array in values.values())


def test_memory_is_let_go_of_when_a_batch_is_done():
    """The device's memory of a batch is free when its copy is there, the host's when the writer is done."""
    slow = Slow()
    copies = HostCopies(device=slow)
    batch = copies.begin({"x": torch.zeros(4, 6)})
    host, device = map(weakref.ref, slow.started.pop()[0])
    values = batch.get()
    del batch
    gc.collect()
    assert device() is None
    assert values["x"].base is not None
    del values
    gc.collect()
    assert host() is None


@pytest.mark.parametrize("rows", [0, 3])
def test_a_cast_that_loses_a_value_is_told_by_row(rows):
    """Values that float16 cannot hold are found on the device; existing infinities are allowed."""
    copies = HostCopies({"x": "float16"}, Slow())
    values = torch.tensor([[1.0, torch.inf], [2.0, 3.0], [4.0, 99840.0]])[:rows]
    batch = copies.begin({"x": values})
    if rows:
        with pytest.raises(BatchError, match=r"'x': row 2 of the batch has a value that float16 cannot hold"):
            batch.get()
    else:
        assert batch.get()["x"].shape == (0, 2)
    assert copies.begin({"x": values[:2]}).get()["x"].dtype == np.float16


# Through the callbacks


class Model(LightningModule):
    """Returns the same memory in every step, as with CUDA graphs."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.memory = torch.zeros(8, 5)
        self._stop_at = stop_at

    def predict_step(self, batch: torch.Tensor, batch_idx: int) -> dict[str, Any]:
        if batch_idx == self._stop_at:
            raise KeyError("the model is to blame")
        held = self.memory[: len(batch)]
        held.copy_(batch[:, None] + torch.arange(5) / 8)
        return {"number": held[:, 0], "query_embed": held, "note": ["a"] * len(batch)}


@pytest.fixture
def slow(monkeypatch) -> Slow:
    device = Slow()
    monkeypatch.setattr(host_copies, "CudaCopies", lambda: device)
    return device


def predict(path: Path, rows: int, model: Model | None = None, **options: Any) -> None:
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[lightning.PredictionWriter(path, **options)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(torch.arange(rows, dtype=torch.float32), batch_size=8)
    trainer.predict(model or Model(), loader, return_predictions=False)


def check(path: Path, rows: int, *, partial: bool = False) -> None:
    with zarrow.open(path, partial=partial) as store:
        table = store.table()
        assert table["sample_index"].to_pylist() == list(range(rows))
        assert table["number"].to_pylist() == list(range(rows))
        np.testing.assert_array_equal(store["query_embed"][:], np.arange(rows)[:, None] + np.arange(5) / 8)


def test_a_run_on_a_device_stores_every_row(tmp_path, slow):
    """Rows, their sample_index and vectors belong together, and the model waits for no copy."""
    predict(tmp_path / "s", 301)
    check(tmp_path / "s", 301)
    assert (slow.waits, slow.waits_of_the_model) == (38, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_device_quantizes_as_the_host_does(dtype):
    """Integers and scales that a device computes are those of `quantize`, to the last bit."""
    torch.manual_seed(0)
    values = (torch.randn(300, 5, 7, dtype=torch.float64) * torch.randn(300, 1, 1).exp() * 100).to(dtype)
    values[3], values[4] = 0, values[4] * 1e-42
    found = HostCopies({"x": "int8"}, Slow()).begin({"x": values, "y": values[:, 0, 0]}).get()
    integers, scales = quantize(values.to(max(dtype, torch.float32, key=lambda one: one.itemsize)).numpy())
    np.testing.assert_array_equal(found["x"], integers)
    np.testing.assert_array_equal(found["x_scale"], scales)
    assert HostCopies({"x": "int8"}, Slow()).begin({"x": values[:0]}).get()["x"].shape == (0, 5, 7)


def test_a_device_refuses_what_cannot_be_quantized():
    """A row with a NaN is named when the batch arrives, and a name that the scales need at once."""
    copies = HostCopies({"x": "int8"}, Slow())
    with pytest.raises(BatchError, match=r"'x': row 1 of the batch has a value that int8 cannot hold"):
        copies.begin({"x": torch.tensor([[1.0, 2.0], [3.0, torch.nan]])}).get()
    with pytest.raises(BatchError, match="'x_scale' is the name of the scales of 'x': rename it"):
        copies.begin({"x": torch.ones(2, 2), "x_scale": torch.ones(2)})


@pytest.mark.parametrize("device", ["host", "device"])
def test_a_run_quantizes_its_vectors(tmp_path, request, device):
    """A run stores integers and scales, whether the device computes them or the writer, and goes on."""
    if device == "device":
        request.getfixturevalue("slow")
    with pytest.raises(KeyError, match="to blame"):
        predict(tmp_path / "s", 301, Model(stop_at=20), dtypes={"query_embed": "int8"})
    predict(tmp_path / "s", 301, resume=True, dtypes={"query_embed": "int8"})
    with zarrow.open(tmp_path / "s") as store:
        wanted = (np.arange(301)[:, None] + np.arange(5) / 8).astype(np.float32)
        integers, scales = quantize(wanted)
        np.testing.assert_array_equal(store["query_embed"].stored[:], integers)
        np.testing.assert_array_equal(store["query_embed"].scales, scales)
        assert "query_embed_scale" in store.columns


def test_a_run_that_fails_keeps_the_batches_that_were_under_way(tmp_path, slow):
    """An error of the model loses no finished batch, and the run goes on behind them."""
    with pytest.raises(KeyError, match="to blame"):
        predict(tmp_path / "s", 301, Model(stop_at=20))
    check(tmp_path / "s", 160, partial=True)
    predict(tmp_path / "s", 301, resume=True)
    check(tmp_path / "s", 301)


def test_an_error_that_comes_late_names_its_batch(tmp_path, slow):
    """An error in a batch names that batch, not the one being predicted by then."""

    class Large(Model):
        def predict_step(self, batch: torch.Tensor, batch_idx: int) -> dict[str, Any]:
            return {"v": torch.full((len(batch), 2), 1e6 if batch_idx == 5 else 1.0)}

    with pytest.raises(BatchError, match=r"^in batch 5 of predict data loader 0.*row 0 .*float16"):
        predict(tmp_path / "s", 301, Large(), dtypes={"v": "float16"})
    assert zarrow.open(tmp_path / "s", partial=True).num_rows == 40


def test_a_disk_that_is_slower_than_the_model_holds_it_back(tmp_path, slow, monkeypatch):
    """No more batches are in memory than are under way and fit into the queue, however slow the disk is."""
    from zarrow._write.open_segment import OpenSegment

    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    append = OpenSegment.append
    start = slow.start

    def slowly(self: OpenSegment, batches: Any) -> None:
        time.sleep(0.002 * len(batches))
        append(self, batches)

    def counted(tensors: Sequence[torch.Tensor]) -> Any:
        nonlocal most
        hosts, wait = start(tensors)
        slow.started.clear()
        alive.extend(weakref.ref(host) for host in hosts if host.ndim == 2)
        most = max(most, sum(one() is not None for one in alive))
        return hosts, wait

    monkeypatch.setattr(OpenSegment, "append", slowly)
    monkeypatch.setattr(slow, "start", counted)
    predict(tmp_path / "s", 1600, queue_bytes=2000)  # a batch has about 400 bytes
    check(tmp_path / "s", 1600)
    assert len(alive) == 200
    assert 2 <= most <= 3


def test_a_full_disk_is_told_at_the_end_too(tmp_path, slow, monkeypatch):
    """A failure that shows while the last batches are handed over is raised, and the store can go on."""
    from zarrow._write.open_segment import OpenSegment

    append = OpenSegment.append

    def fail(self: OpenSegment, batches: Any) -> None:
        if self.rows + sum(batch.rows for batch in batches) > 296:
            raise OSError(28, "No space left on device")
        append(self, batches)

    monkeypatch.setattr(OpenSegment, "append", fail)
    with pytest.raises(WriteFailedError, match="No space left"):
        predict(tmp_path / "s", 301)
    monkeypatch.undo()
    predict(tmp_path / "s", 301, resume=True)
    check(tmp_path / "s", 301)


def test_everyquery_hands_its_batches_over_at_the_end(tmp_path, slow):
    """The drop-in writes the batches that are under way when it is closed."""
    tasks = pl.DataFrame(
        {
            "subject_id": range(50),
            "prediction_time": pl.Series([0] * 50, dtype=pl.Datetime("us")),
            "query": ["HR"] * 50,
            "duration_days": pl.Series([30.0] * 50, dtype=pl.Float32),
        }
    )
    writer = everyquery.StreamingPredictionWriter(tmp_path / "p.parquet", tasks)
    writer.setup(None, None, "predict")
    for start in range(0, 50, 5):
        probabilities = torch.arange(start, start + 5) / 64
        prediction = {"occurs_probs": probabilities, "censor_probs": 1 - probabilities}
        writer.write_on_batch_end(None, None, prediction, None, None, start // 5)
    writer.close()
    found = pl.read_parquet(tmp_path / "p.parquet")
    assert found["occurs_prob"].to_list() == [i / 64 for i in range(50)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu():
    """On a GPU, copies into pinned buffers run parallel to steps that reuse the memory."""
    copies, begun = HostCopies(device=CudaCopies()), []
    memory = torch.zeros(256, 1024, device="cuda")
    for step in range(50):
        memory.fill_(step)
        torch.cuda._sleep(1_000_000)
        batch = copies.begin({"whole": memory, "view": memory[:, 3], "half": memory.bfloat16()})
        assert batch.values["whole"].is_pinned()
        begun.append(batch)
    for step, batch in enumerate(begun):
        for array in batch.get().values():
            assert (array == step).all()
            assert array.dtype == np.float32
    too_large = HostCopies({"x": "float16"}).begin({"x": torch.full((2, 3), 1e6, device="cuda")})
    with pytest.raises(BatchError, match="float16 cannot hold"):
        too_large.get()
