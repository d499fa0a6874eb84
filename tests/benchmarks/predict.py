"""How much of a model's predict throughput does storing its predictions cost?

Run it from the repository::

    python tests/benchmarks/predict.py                  # a step of about 8 ms, 256 x 768 float32 per batch
    python tests/benchmarks/predict.py --step-ms 20 --batches 1000 --accelerator gpu
    python tests/benchmarks/predict.py --memory         # what 5,000,000 rows in tiny batches keep in memory

Trainer.predict runs in turns without a writer (the predictions are dropped) and with `PredictionWriter`; a
round is one of each, right one behind the other, and the table shows medians over the rounds. The share lost
is what the writer adds to a round's time without it. What is stored is read back and counted.

The model does nothing but matrix products, on one thread: other threads, and on a GPU the host, are free, as
they are where a model is worth storing predictions of.

``--memory`` prints by how much private memory (``RssAnon``) grows from the first tenth of the rows on.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

import zarrow
from zarrow.lightning import PredictionWriter

WIDTH = 768


class Indices(Dataset):
    """Rows that cost nothing to load."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> int:
        return index


class Model(LightningModule):
    """Takes so long per step, and returns a fresh vector per row."""

    def __init__(self, products: int) -> None:
        super().__init__()
        self.products = products
        self.weights = torch.nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5)
        self.rows = torch.nn.Parameter(torch.randn(4096, WIDTH))

    def predict_step(self, batch: torch.Tensor) -> dict[str, Any]:
        vectors = self.rows[batch % 4096]
        for _ in range(self.products):
            vectors = (vectors @ self.weights).tanh()
        return {"occurs_prob": vectors[:, 0].sigmoid(), "query_embed": vectors}


def calibrate(step_ms: float, batch_rows: int, device: str) -> int:
    """Return how many matrix products a step needs to take so long."""
    model = Model(8).to(device)
    batch = torch.arange(batch_rows, device=device)
    times = []
    with torch.inference_mode():
        for _ in range(12):
            started = time.perf_counter()
            model.predict_step(batch)["occurs_prob"].cpu()
            times.append(time.perf_counter() - started)
    return max(1, round(8 * step_ms / 1e3 / statistics.median(times)))


def predict(model: Model, batches: int, batch_rows: int, accelerator: str, store: Path | None) -> float:
    """Return the seconds that a run takes."""
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        callbacks=[] if store is None else [PredictionWriter(store)],
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


class Tiny(LightningModule):
    """Returns small predictions at once, and looks at the memory now and then."""

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
    seconds = predict(model, rows // batch_rows, batch_rows, "cpu", folder / "s.zarrow")
    assert zarrow.open(folder / "s.zarrow").num_rows == rows
    grown = model.late_bytes - model.early_bytes
    print(
        f"{rows:,} rows in batches of {batch_rows}: {seconds:.0f} s, "
        f"{model.late_bytes / 2**20:.0f} MiB private"
    )
    print(f"grown by {grown / 2**20:.1f} MiB: {grown / (0.9 * rows):.2f} bytes per row")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--step-ms", type=float, default=8.0)
    parser.add_argument("--batches", type=int, default=400)
    parser.add_argument("--batch-rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--folder", type=Path, help="where the store goes; a temporary directory by default")
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.memory:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            memory(Path(folder), 5_000_000, 40)
        return
    device = "cuda" if options.accelerator == "gpu" else "cpu"
    model = Model(calibrate(options.step_ms, options.batch_rows, device))
    rows = options.batches * options.batch_rows
    top = Path(tempfile.mkdtemp(dir=options.folder))
    without, with_writer, lost = [], [], []
    try:
        for number in range(options.rounds + 1):
            store = top / "s.zarrow"
            run = (model, options.batches if number else 20, options.batch_rows, options.accelerator)
            plain, written = predict(*run, None), predict(*run, store)
            if number:  # the first round warms up
                assert zarrow.open(store).num_rows == rows
                without.append(plain)
                with_writer.append(written)
                lost.append(written / plain - 1)
            shutil.rmtree(store)
    finally:
        shutil.rmtree(top)
    kind = f"{WIDTH} float32 in batches of {options.batch_rows}, {device}, {options.rounds} rounds"
    each = ", ".join(f"{one:.1%}" for one in lost)
    print(f"{rows:,} rows of {kind}")
    print(f"a step                 {statistics.median(without) / options.batches * 1e3:9.2f} ms")
    print(f"without a writer       {rows / statistics.median(without):9,.0f} rows/s")
    print(f"with PredictionWriter  {rows / statistics.median(with_writer):9,.0f} rows/s")
    print(f"lost                   {statistics.median(lost):9.1%}  (in the rounds: {each})")


if __name__ == "__main__":
    main()
