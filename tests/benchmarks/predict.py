"""Predict — the share of a model's throughput that storing its predictions costs.

Run it from the repository::

    python3 tests/benchmarks/predict.py                  # a step of about 8 ms, 768 float32 per row
    python3 tests/benchmarks/predict.py --step-ms 20 --batch-rows 256 --accelerator gpu
    python3 tests/benchmarks/predict.py --memory         # memory kept by 5,000,000 rows in tiny batches

A round runs Trainer.predict once in each of these ways:

* without a callback: the predictions are dropped;
* with a `BasePredictionWriter` that does nothing: Lightning's own cost of a callback;
* with one that hands the vectors to a thread, which only writes their bytes to a file: the cost of any writer
  that does not block the model, since the model shares this machine's memory and disk with it;
* with `PredictionWriter`.

The tables show the lower quartiles of many rounds: milliseconds per batch, milliseconds in the callback's
hook, milliseconds that a run takes in addition to its batches, and the share lost, which is the time that a
callback adds to a batch. There are two tables per batch size: one for vectors that the step returns
unchanged, which the writer keeps, and one for a view of a larger tensor, which it must copy. The stored rows
are read back and counted.

The model computes only matrix products, on one thread: other threads, and on a GPU the host, are free, as
with any model whose predictions are worth storing.

``--memory`` prints how much private memory (``RssAnon``) grows after the first tenth of the rows.
"""

from __future__ import annotations

import argparse
import logging
import math
import queue
import shutil
import statistics
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import command
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch.utils.data import DataLoader, Dataset

import zarrow
from zarrow.lightning import PredictionWriter

WIDTH = 768
WARM_UP = 5
"""Batches that are not counted: the first creates the store, and the writer checks the first few closely."""


class Indices(Dataset):
    """A dataset whose rows cost nothing to load."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> int:
        return index


class Model(LightningModule):
    """Computes a number of products per step, and returns a new tensor of vectors or a view of one."""

    def __init__(self, products: int, *, view: bool) -> None:
        super().__init__()
        self.products, self.view = products, view
        self.weights = torch.nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5)
        self.rows = torch.nn.Parameter(torch.randn(4096, WIDTH))
        self.begun_s: list[float] = []

    def predict_step(self, batch: torch.Tensor) -> dict[str, Any]:
        self.begun_s.append(time.perf_counter())
        vectors = self.rows[batch % 4096]
        for _ in range(self.products):
            vectors = (vectors @ self.weights).tanh()
        prob = vectors[:, 0].sigmoid()
        return {"occurs_prob": prob, "query_embed": vectors.repeat(1, 2)[:, :WIDTH] if self.view else vectors}


class Idle(BasePredictionWriter):
    """A callback that does nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__("batch")
        self.path = path

    def write_on_batch_end(self, *arguments: Any) -> None:
        pass


class Bytes(Idle):
    """A callback with a thread that writes the vectors' bytes to a file."""

    def setup(self, *arguments: Any, **named: Any) -> None:
        self.queue: queue.SimpleQueue[torch.Tensor | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.write)
        self.thread.start()

    def write(self) -> None:
        with self.path.open("wb", buffering=0) as file:
            while (vectors := self.queue.get()) is not None:
                file.write(vectors.contiguous().numpy())

    def write_on_batch_end(self, trainer: Any, module: Any, prediction: Any, *arguments: Any) -> None:
        self.queue.put(prediction["query_embed"])

    def teardown(self, *arguments: Any, **named: Any) -> None:
        self.queue.put(None)
        self.thread.join()
        self.path.unlink()


def timed(callback: type[BasePredictionWriter]) -> type[BasePredictionWriter]:
    """Return a subclass of the callback that records how long its hook takes."""

    class Timed(callback):
        hook_s: list[float]

        def setup(self, *arguments: Any, **named: Any) -> None:
            self.hook_s = []
            super().setup(*arguments, **named)

        def write_on_batch_end(self, *arguments: Any) -> None:
            started = time.perf_counter()
            super().write_on_batch_end(*arguments)
            self.hook_s.append(time.perf_counter() - started)

    return Timed


CALLBACKS = {
    "no callback": None,
    "empty callback": timed(Idle),
    "a thread writes bytes": timed(Bytes),
    "PredictionWriter": timed(PredictionWriter),
}


def calibrate(step_ms: float, batch_rows: int, device: str) -> int:
    """Return the number of matrix products that makes a step take this long."""
    model = Model(8, view=False).to(device)
    batch = torch.arange(batch_rows, device=device)
    times = []
    with torch.inference_mode():
        for _ in range(12):
            started = time.perf_counter()
            model.predict_step(batch)["occurs_prob"].cpu()
            times.append(time.perf_counter() - started)
    return max(1, math.ceil(8 * step_ms / 1e3 / statistics.median(times)))


def predict(
    model: LightningModule, batches: int, batch_rows: int, accelerator: str, callback: Any = None
) -> float:
    """Return how many seconds a run takes."""
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        callbacks=callback,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(Indices(batches * batch_rows), batch_size=batch_rows)
    started = time.perf_counter()
    trainer.predict(model, loader, return_predictions=False)
    if accelerator == "gpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare(options: argparse.Namespace, store: Path, batch_rows: int, *, view: bool) -> None:
    """Print the cost of each callback."""
    device = "cuda" if options.accelerator == "gpu" else "cpu"
    model = Model(calibrate(options.step_ms, batch_rows, device), view=view)
    batch_ms: dict[str, list[float]] = {name: [] for name in CALLBACKS}
    hook_ms: dict[str, list[float]] = {name: [] for name in CALLBACKS}
    ends_ms: dict[str, list[float]] = {name: [] for name in CALLBACKS}
    for number in range(options.rounds + 1):
        batches = options.batches if number else 20
        for name, kind in CALLBACKS.items():
            callback = kind and kind(store)
            model.begun_s.clear()
            took = predict(model, batches, batch_rows, options.accelerator, callback)
            if number:  # the first round warms up
                ms = 1e3 * (model.begun_s[-1] - model.begun_s[WARM_UP]) / (batches - WARM_UP - 1)
                batch_ms[name].append(ms)
                hook_ms[name].append(1e3 * statistics.mean(callback.hook_s[WARM_UP:]) if callback else 0.0)
                ends_ms[name].append(1e3 * took - ms * batches)
        assert zarrow.open(store).num_rows == batches * batch_rows
        shutil.rmtree(store)
    what = "a view" if view else "unchanged"
    print(
        f"{f'{batch_rows} rows, {what}':24}{'ms per batch':>14}{'in the hook':>14}{'outside':>10}{'lost':>8}"
    )
    plain = quiet(batch_ms["no callback"])
    for name, times in batch_ms.items():
        print(
            f"{name:24}{quiet(times):14.2f}{quiet(hook_ms[name]):14.3f}{quiet(ends_ms[name]):10.0f}"
            f"{quiet(times) / plain - 1:8.1%}"
        )


def quiet(times: list[float]) -> float:
    """Return the lower quartile, because other work on the machine can only add time."""
    return float(np.quantile(times, 0.25))


class Tiny(LightningModule):
    """Returns small predictions immediately, and samples the memory now and then."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.early_bytes = self.late_bytes = 0

    def predict_step(self, batch: torch.Tensor, batch_idx: int) -> dict[str, Any]:
        done = int(batch[-1]) + 1
        if done <= self.rows // 10:
            self.early_bytes = private_bytes() if batch_idx % 500 == 0 else self.early_bytes
        elif batch_idx % 500 == 0 or done == self.rows:
            self.late_bytes = private_bytes()
        return {"x": batch, "v": torch.ones(len(batch), 4)}


def private_bytes() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("RssAnon")).split()[1])


def memory(folder: Path, rows: int, batch_rows: int) -> None:
    model = Tiny(rows)
    writer = PredictionWriter(folder / "s.zarrow")
    seconds = predict(model, rows // batch_rows, batch_rows, "cpu", writer)
    assert zarrow.open(folder / "s.zarrow").num_rows == rows
    grown = model.late_bytes - model.early_bytes
    print(
        f"{rows:,} rows in batches of {batch_rows}: {seconds:.0f} s, "
        f"{model.late_bytes / 2**20:.0f} MiB private"
    )
    print(f"growth {grown / 2**20:.1f} MiB: {grown / (0.9 * rows):.2f} bytes per row")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--step-ms", type=float, default=8.0)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--batch-rows", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--folder", type=Path, help="directory for the store; by default a temporary one")
    parser.add_argument("--memory", action="store_true", help="measure only the growth of memory")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.memory:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            memory(Path(folder), 5_000_000, 40)
        return
    top = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        print(f"{options.batches} batches, {WIDTH} float32 per row, {options.rounds} rounds")
        for batch_rows in options.batch_rows:
            for view in (False, True):
                compare(options, top / "s.zarrow", batch_rows, view=view)
    finally:
        shutil.rmtree(top)


if __name__ == "__main__":
    command(main)
