"""Predict runs into a bucket — killed, told to stop, resumed here and on other machines, on several ranks."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from cloud.servers import SECRET
from cloud.test_upload_faults import _act

import zarrow
from zarrow.errors import IncompleteStoreError

pytestmark = pytest.mark.slow

ROWS = 70
LAUNCHED: list[subprocess.Popen] = []
PREDICT = """
    import sys, time
    import pyarrow as pa, torch
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader, TensorDataset
    from zarrow.lightning import PredictionWriter

    class Model(LightningModule):
        def predict_step(self, batch):
            time.sleep(SLEEP)
            return {"prob": batch[0].mean(1), "query_embed": batch[0] * 2}

    SLEEP = 0

    def run(target, options, ranks=1):
        writer = PredictionWriter(
            target, identifiers=pa.table({"id": range(70)}), keys=["id"], segment_rows=16, resume=True,
            storage_options=options,
        )
        quiet = {f"enable_{what}": False for what in ("checkpointing", "progress_bar", "model_summary")}
        strategy = "ddp" if ranks > 1 else "auto"
        trainer = Trainer(
            accelerator="cpu", devices=ranks, strategy=strategy, callbacks=[writer], logger=False, **quiet
        )
        data = torch.arange(70.0)[:, None].repeat(1, 4)
        trainer.predict(Model(), DataLoader(TensorDataset(data), batch_size=3), return_predictions=False)
"""


@pytest.fixture(autouse=True)
def spool(tmp_path, monkeypatch) -> Path:
    """Return the directory of the spools."""
    monkeypatch.setenv("ZARROW_SPOOL", str(tmp_path / "spool"))
    return tmp_path / "spool"


def launch(path: Path, bucket, ranks: int = 1, sleep_s: float = 0.0) -> subprocess.Popen:
    """Start a run in a process of its own, which starts the other ranks."""
    code = f"{textwrap.dedent(PREDICT)}\nSLEEP = {sleep_s}\n"
    path.write_text(f"{code}run({bucket.url('run.zarrow')!r}, {bucket.options!r}, {ranks})\n")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("LOCAL_RANK", None)
    command = [sys.executable, "-W", "ignore", str(path)]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    LAUNCHED.append(process)
    return process


@pytest.fixture(autouse=True)
def ended():
    """End what a test that fails has launched."""
    yield
    while LAUNCHED:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(LAUNCHED[-1].pid, signal.SIGKILL)
        LAUNCHED.pop().wait()


def killed_at(bucket, path: Path, request: str, ranks: int) -> None:
    """Start a run, which is killed with all its ranks at the first request of this path."""
    counted = itertools.count()

    def kill(environ, start_response, app):
        if request in environ["PATH_INFO"] and next(counted) == 0:
            _act(environ, app)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise ConnectionResetError
        return app(environ, start_response)

    bucket.fault = kill
    process = launch(path, bucket, ranks)
    assert process.wait(250) == -signal.SIGKILL
    bucket.fault = None
    with pytest.raises(IncompleteStoreError):
        zarrow.open(bucket.url("run.zarrow"), storage_options=bucket.options)


def resume(bucket) -> None:
    """Go on in this process."""
    made: dict = {}
    exec(textwrap.dedent(PREDICT), made)
    made["run"](bucket.url("run.zarrow"), bucket.options)


def check(bucket) -> None:
    store = zarrow.open(bucket.url("run.zarrow"), storage_options=bucket.options)
    table = store.table()
    assert sorted(table["id"].to_pylist()) == list(range(ROWS))
    assert table["sample_index"].to_pylist() == table["id"].to_pylist()
    assert (store["query_embed"][:, 0] == table["id"].to_numpy() * 2).all()
    assert zarrow.verify(store.path).ok
    assert SECRET not in repr(store.provenance)


@pytest.mark.parametrize(
    "same_machine",
    [pytest.param(True, id="its spool"), pytest.param(False, id="another machine", marks=pytest.mark.long)],
)
def test_a_killed_run_goes_on(bucket, tmp_path, monkeypatch, same_machine):
    """Lightning predicts into a bucket, is killed at a request, and predicts the rest, there or elsewhere."""
    killed_at(bucket, tmp_path / "predict.py", "c/2/0", 1)
    if not same_machine:
        monkeypatch.setenv("ZARROW_SPOOL", str(tmp_path / "elsewhere"))
    resume(bucket)
    check(bucket)


@pytest.mark.parametrize(
    ("at", "ranks", "same_machine"),
    [
        pytest.param("c/1/0", 2, True, id="on two again"),
        pytest.param("c/1/0", 2, False, id="on two elsewhere", marks=pytest.mark.long),
        pytest.param("segments/00000001.claim", 1, True, id="on one", marks=pytest.mark.long),
        pytest.param("segments/00000000.json", 3, True, id="on three", marks=pytest.mark.long),
        pytest.param("statistics", 2, True, id="at the end", marks=pytest.mark.long),
    ],
)
def test_a_killed_run_on_two_ranks_goes_on(bucket, tmp_path, monkeypatch, at, ranks, same_machine):
    """Every row is there once, whatever the number of ranks then, with the spools of the dead or without."""
    killed_at(bucket, tmp_path / "predict.py", at, 2)
    if not same_machine:
        monkeypatch.setenv("ZARROW_SPOOL", str(tmp_path / "elsewhere"))
    assert launch(tmp_path / "again.py", bucket, ranks).wait(250) == 0
    check(bucket)


def test_sigterm_puts_all_rows_into_the_bucket(bucket, tmp_path, spool):
    """The process exits with 143 and leaves nothing in its spool; others see the rows, and go on."""
    process = launch(tmp_path / "predict.py", bucket, sleep_s=0.2)
    deadline = time.monotonic() + 200
    while not any(
        one.path.endswith(f"{bucket.name}/run.zarrow/segments/00000001.json") for one in bucket.requests
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) == 143
    assert not list(spool.iterdir())
    with zarrow.open(bucket.url("run.zarrow"), storage_options=bucket.options, partial=True) as store:
        stored = store.table(["id"])["id"].to_pylist()
        assert stored == list(range(len(stored)))
        assert len(stored) > store._view.snapshot.rows >= 32
    resume(bucket)
    check(bucket)
