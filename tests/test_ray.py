"""Ray — a dataset into a store by worker processes that die, and a store as a dataset."""

import doctest
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import zarrow

pytest.importorskip("ray", reason="needs Ray: pip install 'zarrow[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

ROWS = 6000
JOB = """
import os, signal, sys, time
import numpy as np, ray, ray.data
import zarrow.ray

path, how = sys.argv[1:]


class Dies(zarrow.ray.ZarrowDatasink):
    def write(self, blocks, ctx):
        written = super().write(blocks, ctx)
        try:
            os.close(os.open(path + ".died", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return written
        os.kill(os.getpid(), signal.SIGKILL)  # written, and Ray does not know


def predict(batch):
    time.sleep(1 if how == "slow" else 0)
    with open(path + ".seen", "a") as seen:
        seen.write("".join(f"{number}\\n" for number in batch["id"]))
    return {
        "id": batch["id"],
        "name": np.array([f"n{number}" for number in batch["id"]]),
        "v": np.repeat(batch["id"][:, None], 4, 1).astype("float32"),
    }


ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
rows = ray.data.range(6000, override_num_blocks=24)
rows = zarrow.ray.not_stored(rows, path, ["id"])
sink = Dies if how == "dies" else zarrow.ray.ZarrowDatasink
sink = sink(path, keys=["id"], resume=True, segment_rows=1024)
rows.map_batches(predict, batch_size=None).write_datasink(sink)
assert zarrow.ray.read(path, columns=["id"], arrays=["v"]).sum("id") == sum(range(6000))
"""


def start(path: Path, how: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", JOB, str(path), how]
    environment = os.environ | {
        "PYTHONPATH": str(Path(zarrow.__file__).parents[1]),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    return subprocess.Popen(
        words, env=environment, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )


def stored_in(path: Path) -> set[int]:
    try:
        with zarrow.open(path, partial=True) as store:
            return set(store.table(["id"])["id"].to_pylist())
    except zarrow.errors.NotFoundError:
        return set()


def check(path: Path) -> None:
    store = zarrow.open(path)
    table = store.table(["id", "name"])
    ids = table["id"].to_numpy()
    np.testing.assert_array_equal(np.sort(ids), np.arange(ROWS))
    np.testing.assert_array_equal(store["v"][:], np.repeat(ids[:, None], 4, 1))
    assert table["name"].to_pylist() == [f"n{number}" for number in ids]
    assert zarrow.verify(path).ok


def test_a_worker_that_dies_after_it_wrote(tmp_path: Path) -> None:
    """Ray repeats the task of a dead worker; its rows are in the store once."""
    with start(tmp_path / "run.zarrow", "dies") as job:
        _, errors = job.communicate(timeout=240)
    assert job.returncode == 0, errors
    assert (tmp_path / "run.zarrow.died").exists()
    check(tmp_path / "run.zarrow")


def test_a_job_that_is_killed_goes_on(tmp_path: Path) -> None:
    """After SIGKILL of the job, the same job predicts only what is missing, and every row is stored once."""
    path = tmp_path / "run.zarrow"
    with start(path, "slow") as job:
        while len(stored_in(path)) < 1000:
            assert job.poll() is None, job.stderr and job.stderr.read()
            time.sleep(0.1)
        job.send_signal(signal.SIGKILL)
    time.sleep(3)  # its workers notice
    stored = stored_in(path)
    assert 0 < len(stored) < ROWS
    (tmp_path / "run.zarrow.seen").unlink()
    with start(path, "again") as job:
        _, errors = job.communicate(timeout=240)
    assert job.returncode == 0, errors
    predicted = [int(line) for line in (tmp_path / "run.zarrow.seen").read_text().split()]
    assert sorted(predicted) == sorted(set(range(ROWS)) - stored)
    check(path)


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    """A sink without keys, or for a store that is there, says what to do."""
    import zarrow.ray

    with pytest.raises(zarrow.errors.InvalidInputError, match="keys must name the columns"):
        zarrow.ray.ZarrowDatasink(tmp_path / "run.zarrow", keys=[])
    (tmp_path / "run.zarrow").mkdir()
    with pytest.raises(zarrow.errors.StoreExistsError, match="resume=True goes on"):
        zarrow.ray.ZarrowDatasink(tmp_path / "run.zarrow", keys=["id"]).on_write_start()


def test_the_examples_run() -> None:
    """The examples in the docstrings are true."""
    import zarrow.ray

    failed, tried = doctest.testmod(zarrow.ray)
    assert (failed, tried > 6) == (0, True)
