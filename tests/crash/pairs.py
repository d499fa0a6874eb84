"""Commands for pairs — each runs in a process of its own, and says how it ended."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import zarrow
from zarrow import transfer
from zarrow._storage import files
from zarrow._write import directory
from zarrow.errors import CorruptionError, StoreChangedError, ZarrowError

STREAM = 1_000
"""A row's identifier is its stream times this, plus its number in the stream."""
BASE, OPEN, APPENDED, REPLACED, IMPORTED, LATER = 0, 1, 10, 20, 30, 50
ROWS, PREDICTED, OPEN_ROWS, NEW_ROWS, LOST = 90, 40, 21, 40, range(32, 48)
OPTIONS: dict[str, Any] = {"keys": ["id"], "segment_rows": 16}
EXPORTS = {"parquet": "out.parquet", "npy": "out", "anndata": "out.zarr"}


def ids_of(stream: int, start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop, dtype=np.int64) + stream * STREAM


def vectors_of(ids: np.ndarray) -> np.ndarray:
    return (ids[:, None] * 4 + np.arange(4)).astype(np.float32)


def names_of(ids: np.ndarray) -> list[str]:
    return [f"s{number}" for number in ids.tolist()]


def check(ids: np.ndarray, vectors: np.ndarray, what: str) -> None:
    """Raise unless every row has its own vector, and is there once."""
    assert np.array_equal(vectors, vectors_of(ids)), f"{what}: another row's vectors"
    assert len(np.unique(ids)) == len(ids), f"{what}: a row is there twice"


def append(writer: zarrow.Writer, stream: int, start: int, stop: int) -> None:
    ids = ids_of(stream, start, stop)
    columns = {"id": ids, "s": pa.array(names_of(ids), pa.string())}
    writer.append(columns, {"e": vectors_of(ids)}, sample_index=10**6 - ids)


def make(top: Path, base: str) -> None:
    """Make the store that two commands are to work on, and what is the user's around it."""
    path = top / "run.zarrow"
    if base == "predict":
        with contextlib.suppress(RuntimeError):
            predict(top, fails_at=5)
    else:
        with zarrow.Writer(path, **OPTIONS) as writer:
            append(writer, BASE, 0, ROWS)
            writer.finalize()
        zarrow.add_array(path, "d", doubled(zarrow.open(path)))
        zarrow.build_index(path)
    if base == "open":
        with zarrow.Writer(path, mode="a") as writer:
            append(writer, OPEN, 0, OPEN_ROWS)
            writer.close()
    if base == "damaged":
        (path / "embeddings.zarr/e/c/2/0").unlink()
    (path / "notes.txt").write_text("the user's")
    (top / "other.txt").write_text("the user's")
    ids = ids_of(IMPORTED, 0, NEW_ROWS)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors_of(ids).reshape(-1)), 4)
    pq.write_table(pa.table({"id": ids, "s": names_of(ids), "e": lists}), top / "source.parquet")


def doubled(store: zarrow.Store) -> np.ndarray:
    return 2 * store.table(["id"])["id"].to_numpy()[:, None]


class Stopping(files.Calls):
    """Stops this process at one of its calls, so that another command has its turn."""

    def __init__(self, stop_at: int) -> None:
        self._counter = itertools.count(1)
        self.number = 0
        self.stop_at = stop_at

    def step(self) -> None:
        self.number = number = next(self._counter)  # in several threads
        if number == self.stop_at:
            os.kill(os.getpid(), signal.SIGSTOP)


def _wrap(name: str, real: Any) -> None:
    def method(self: Stopping, *args: Any) -> Any:
        self.step()
        return real(self, *args)

    setattr(Stopping, name, method)


for _name, _real in inspect.getmembers(files.Calls, inspect.isfunction):
    if not _name.startswith("_"):
        _wrap(_name, _real)


# The commands


class Command:
    """What a command needs to know, and what it tells at once: a kill may follow."""

    def __init__(self, top: Path, number: int, seed: int) -> None:
        self.top, self.number = top, number
        self.path = top / "run.zarrow"
        self.random = random.Random(seed)
        self.said = top / f"result-{number}.json"
        self.facts: dict[str, Any] = {}

    def say(self, **facts: Any) -> None:
        self.facts |= facts
        self.said.with_suffix(".tmp").write_text(json.dumps(self.facts))
        os.replace(self.said.with_suffix(".tmp"), self.said)

    def append(self) -> None:
        with zarrow.Writer(self.path, mode="a") as writer:
            before, done = writer.accepted_rows, 0
            while done < NEW_ROWS:
                step = min(self.random.randint(1, 20), NEW_ROWS - done)
                append(writer, APPENDED + self.number, done, done + step)
                writer.flush()
                done += step
                self.say(accepted=writer.accepted_rows - before)
            writer.finalize(partial=True)

    def replace(self) -> None:
        with zarrow.Writer(self.path, mode="w", **OPTIONS) as writer:
            append(writer, REPLACED + self.number, 0, NEW_ROWS)
            writer.finalize()

    def import_(self) -> None:
        transfer.import_(self.top / "source.parquet", self.path, keys=["id"], overwrite=True)

    def finalize(self) -> None:
        with zarrow.Writer(self.path, mode="a") as writer:
            writer.finalize(partial=True)

    def predict(self) -> None:
        predict(self.top)

    def repair(self) -> None:
        zarrow.repair(self.path, finalize=self.random.random() < 0.5)

    def pack(self) -> None:
        zarrow.pack(self.path, codecs="zstd")

    def sort(self) -> None:
        zarrow.pack(self.path, order="sample_index")

    def pack_out(self) -> None:
        zarrow.pack(self.path, self.top / "packed.zarrow", codecs="zstd")

    def index(self) -> None:
        zarrow.build_index(self.path)

    def add(self) -> None:
        store = zarrow.open(self.path)
        zarrow.add_array(store, "a", doubled(store))

    def remove(self) -> None:
        zarrow.remove_array(self.path, "d")

    def map(self) -> None:
        from zarrow import analysis

        analysis.map_rows(zarrow.open(self.path), name="m")

    def export(self) -> None:
        kind = self.facts["kind"]
        store = zarrow.open(self.path, partial=True)
        transfer.export(store, self.top / EXPORTS[kind], kind, overwrite=True)

    def verify(self) -> None:
        report = zarrow.verify(self.path)
        self.say(damage=[str(one) for one in report.findings if one.severity == "damage"])

    def info(self) -> None:
        from zarrow.cli import app

        app(["info", str(self.path), "--json"], standalone_mode=False)

    def read(self) -> None:
        until, store = time.monotonic() + 0.1, zarrow.open(self.path, partial=True)
        while time.monotonic() < until:
            try:
                rows = np.array([self.random.randrange(len(store)) for _ in range(20)])
                table, vectors = store.take(np.unique(rows), check="crc")
                ids = table["id"].to_numpy()
                check(ids, vectors["e"], "take")
                assert np.array_equal(store.table(["id"])["id"].to_numpy()[store.locate(ids)], ids), "locate"
                for batch, found in store.join(check="crc"):
                    check(batch["id"].to_numpy(), found["e"], "join")
                for name in ("a", "d"):
                    if name in store.derived:
                        assert np.array_equal(store.derived[name][:], doubled(store)), f"{name}: other rows"
                if self.random.random() < 0.5:
                    store.refresh()
            except StoreChangedError:
                store = zarrow.open(self.path, partial=True)


COMMANDS = [name for name in vars(Command) if not name.startswith("_") and name not in ("say", "predict")]


def predict(top: Path, fails_at: int = -1) -> None:
    """Predict the rows of the base that are missing."""
    import logging

    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader

    from zarrow.lightning import PredictionWriter

    class Model(LightningModule):
        def predict_step(self, batch: Any, number: int) -> dict[str, Any]:
            if number == fails_at:
                raise RuntimeError
            ids = batch.numpy()
            return {"id": batch, "s": names_of(ids), "e": torch.from_numpy(vectors_of(ids))}

    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[PredictionWriter(top / "run.zarrow", resume=True, **OPTIONS)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.predict(Model(), DataLoader(torch.arange(ROWS), batch_size=8), return_predictions=False)


def run(top: Path, name: str, number: int, seed: int, kind: str, stop_at: int) -> None:
    """Run a command and write down how it ended."""
    command = Command(top, number, seed)
    command.say(began=time.monotonic(), kind=kind)
    files.calls = calls = Stopping(stop_at)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        getattr(command, name)()
        command.say(ended=time.monotonic(), calls=calls.number)
    except ZarrowError as error:
        damage = isinstance(error, CorruptionError)
        command.say(refused=f"{type(error).__name__}: {error}", damage=[str(error)] if damage else [])
    except BaseException:  # noqa: BLE001 - the test reads it
        command.say(failed=traceback.format_exc())


def serve(templates: Path, predicts: str) -> None:
    """Fork a process per line, so that everything is imported only once."""
    import warnings

    from zarrow import analysis  # noqa: F401
    from zarrow.cli import app  # noqa: F401
    from zarrow.transfer import _anndata, _npy, _parquet  # noqa: F401

    warnings.simplefilter("ignore")
    directory.LOCK_TIMEOUT_S = 1.0

    def forked(work: Any) -> int:
        child = os.fork()
        if not child:
            try:
                work()
            finally:
                os._exit(0)
        return child

    if predicts == "predict":
        import torch  # noqa: F401

        import zarrow.lightning  # noqa: F401

    for base in ("complete", "open", "damaged", *([predicts] if predicts else [])):
        (templates / base).mkdir()
        os.waitpid(forked(lambda base=base: make(templates / base, base)), 0)
    print("ready", flush=True)
    for line in sys.stdin:
        what, *given = line.split()
        if what == "wait":
            status = os.waitpid(int(given[0]), os.WUNTRACED)[1]
            print("stopped" if os.WIFSTOPPED(status) else status, flush=True)
        else:
            top, number, seed, kind = Path(given[0]), int(given[1]), int(given[2]), given[3]
            args = (top, what, number, seed, kind, int(given[4]))
            print(forked(lambda args=args: run(*args)), flush=True)
