"""SIGKILL of a predict — a real Lightning run, killed and resumed, equals an undisturbed one."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import zarrow
from crash.states import Tally
from crash.workloads import scratch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has loaded torch"),
]

ROWS = 600
WAYS = {"plain": {}, "zstd": {"codecs": "zstd"}, "batch": {"durability": "batch"}, "workers": {}}
"""Options of the callback; with "workers" the data loader forks two processes, which survive a kill."""

# Forks a run per command, so that torch and Lightning are imported only once.
SERVER = """
import os, sys, warnings
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("ignore")
from crash import test_sigkill_predict as this
this.warm_up()
for line in sys.stdin:
    child = os.fork()
    if not child:
        code = 1
        try:
            this.predict(*line.rstrip("\\n").split("\\t"))
            code = 0
        finally:
            os._exit(code)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def warm_up():
    """Import what a run needs and use it once; the threads of a parent do not exist in its forks."""
    import torch

    torch.set_num_threads(1)
    with scratch() as top:
        predict(str(top / "run.zarrow"), "plain", "40")


def predict(path, way, rows):
    """Predict the missing rows; a row's vectors depend on its batch, as in a model that pads."""
    import logging

    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader

    from zarrow.lightning import PredictionWriter

    class Model(LightningModule):
        def predict_step(self, batch):
            mean = torch.full_like(batch, float(batch.sum()))
            vectors = torch.stack([batch, mean, batch * mean, -batch], 1)
            return {
                "number": batch.long(),
                "mean": mean,
                "text": [f"t{x}" for x in batch.tolist()],
                "e": vectors,
            }

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    loader = DataLoader(torch.arange(float(rows)), batch_size=7, num_workers=2 * (way == "workers"))
    writer = PredictionWriter(path, resume=True, segment_rows=64, keys=["number"], **WAYS[way])
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[writer],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.predict(Model(), loader, return_predictions=False)


def content(path):
    """Return a complete store's rows in the dataset's order."""
    with zarrow.open(path) as store:
        table = store.table()
        order = np.argsort(table["sample_index"].to_numpy())
        return table.take(order).drop_columns(["row"]), np.asarray(store["e"][:])[order]


def check(path, undisturbed):
    """Check that a store is complete, sound, and equal to that of the undisturbed run."""
    report = zarrow.verify(path)
    assert report.ok, report.findings
    table, vectors = content(path)
    assert table.equals(undisturbed[0]), f"{table.num_rows} rows"
    assert np.array_equal(vectors, undisturbed[1])


def test_a_predict_killed_at_random_and_resumed_is_as_if_undisturbed(figures, profile):
    """After any number of SIGKILLs at any time, the resumed run has every row once."""
    rng = random.Random(21)
    tally = Tally()
    kills = resumed = 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(Path(__file__).parent.parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )

    def start(path, way):
        server.stdin.write(f"{path}\t{way}\t{ROWS}\n")
        server.stdin.flush()
        return int(server.stdout.readline())

    def ended():
        return int(server.stdout.readline())

    with server, scratch() as top:
        undisturbed, length_s = {}, {}
        for way in WAYS:
            start(top / way, way)
            started = time.monotonic()
            assert ended() == 0
            length_s[way] = time.monotonic() - started
            undisturbed[way] = content(top / way)
        for number in range(20 if profile == "ci" else 1_000):
            way = list(WAYS)[number % len(WAYS)]
            path = top / f"{number}.zarrow"
            for _ in range(rng.randint(1, 3)):
                child = start(path, way)
                time.sleep(rng.random() * length_s[way])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                if ended() == signal.SIGKILL:
                    kills += 1
                    with contextlib.suppress(zarrow.errors.NotFoundError):
                        resumed += 0 < zarrow.open(path, partial=True).num_rows < ROWS
            start(path, way)
            code = ended()
            tally.states += 1
            try:
                assert code == 0, f"the run that was not killed ended with {code}"
                check(path, undisturbed[way])
            except Exception as error:  # noqa: BLE001 - any exception makes the state bad
                tally.bad.append(f"run {number} ({way}): {error!r}")
            shutil.rmtree(path)
        server.stdin.close()
    figures(
        "random SIGKILL of a predict",
        runs=tally.states,
        kills=kills,
        in_the_middle=resumed,
        bad=len(tally.bad),
    )
    assert resumed > tally.states // 3, "most runs were killed before their first row, so this tests little"
    assert not tally.bad, "\n".join(tally.bad[:20])
