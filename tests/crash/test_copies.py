"""Copies of live stores — one that is copied while it is written is refused, or a sound prefix, or whole."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import zarrow
from zarrow.errors import ZarrowError

COPIES = {"ci": 4, "long": 100}
"""Of each way of copying and kind of run."""

STREAM = 1_000_000
OPTIONS = {"segment_rows": 16, "keys": ["id"], "codecs": {"z": "zstd"}}


def vectors(ids: np.ndarray) -> np.ndarray:
    """Return the vectors that follow from identifiers."""
    return np.add.outer(ids * 7, np.arange(6)).astype("f4")


class Run:
    """Threads that write a store as fast as they can: each of them a writer of its own, of rows in order."""

    def __init__(self, path: Path, writers: int, seed: int) -> None:
        self.path = path
        self.stopped = False
        shared = {"shared": True} if writers > 1 else {}
        schema, arrays = pa.schema({"id": pa.int64()}), dict.fromkeys("ez", (6, "float32"))
        zarrow.Writer(path, schema=schema, arrays=arrays, **OPTIONS).close()
        self._threads = [
            threading.Thread(target=self._write, args=(number, seed, shared)) for number in range(writers)
        ]
        for thread in self._threads:
            thread.start()

    def _batch(self, number: int, start: int, stop: int):
        ids = np.arange(start, stop) + number * STREAM
        return pa.table({"id": ids}), {"e": vectors(ids), "z": vectors(ids)}, ids

    def _write(self, number: int, seed: int, shared: dict[str, bool]) -> None:
        rng, rows = random.Random(f"{seed}, {number}"), 0
        while not self.stopped:
            durability = rng.choice(["segment", "batch"])
            with contextlib.closing(
                zarrow.Writer(self.path, mode="a", durability=durability, **shared)
            ) as writer:
                for _ in range(rng.randrange(1, 60)):
                    count = rng.randrange(1, 12)
                    writer.append(*self._batch(number, rows, rows + count))
                    rows += count
                    if rng.random() < 0.3:
                        writer.flush(durable=rng.random() < 0.3)
                    if self.stopped:
                        break
                if not shared and rng.random() < 0.3:
                    writer.finalize()
            if shared:  # those of a shared store are opened once: only one that is alone may recover it
                while not self.stopped:
                    time.sleep(0.01)

    def stop(self) -> None:
        """End the writers."""
        self.stopped = True
        for thread in self._threads:
            thread.join()


def run(*command: str) -> None:
    """Run a command, which may complain of files that vanish or change."""
    subprocess.run(command, capture_output=True, check=False)


def cp(source: Path, target: Path) -> None:
    """Copy with cp."""
    run("cp", "-r", str(source), str(target))


def tar(source: Path, target: Path) -> None:
    """Copy with tar."""
    target.mkdir()
    run("sh", "-c", f"tar -C {source} -cf - . | tar -C {target} -xf -")


def rsync(source: Path, target: Path) -> None:
    """Copy with rsync, twice: the second time, it brings what is new and removes nothing."""
    run("rsync", "-a", f"{source}/", f"{target}/")
    run("rsync", "-a", f"{source}/", f"{target}/")


def walk(source: Path, target: Path, order: Callable[[list[str]], list[str]] = sorted) -> None:
    """Copy file by file, each directory listed when it is entered."""
    target.mkdir()
    for name in order(os.listdir(source)):
        with contextlib.suppress(FileNotFoundError):
            if (source / name).is_dir():
                walk(source / name, target / name, order)
            else:
                shutil.copyfile(source / name, target / name)


def shuffled(source: Path, target: Path) -> None:
    """Copy in any order."""
    walk(source, target, lambda names: random.sample(sorted(names), len(names)))


def backwards(source: Path, target: Path) -> None:
    """Copy in the reverse order."""
    walk(source, target, lambda names: sorted(names, reverse=True))


WAYS = [cp, tar, walk, backwards, shuffled, *([rsync] if shutil.which("rsync") else [])]


def rows_of(path: Path, *, gaps: bool = False) -> dict[int, int]:
    """Return how many rows of each writer a store shows, after checking that they are its first ones.

    With `gaps`, which a repair leaves and names, only that none is there twice.
    """
    with zarrow.open(path, partial=True) as store:
        ids = store.table()["id"].to_numpy()
        for name in ("e", "z"):
            found = store[name].read(0, len(ids), check="crc")
            assert np.array_equal(found, vectors(ids)), f"wrong vectors of {name}"
    counts = {}
    for number in np.unique(ids // STREAM).tolist():
        mine = np.sort(ids[ids // STREAM == number]) - number * STREAM
        assert len(np.unique(mine)) == len(mine), f"doubled rows: {mine.tolist()}"
        assert gaps or np.array_equal(mine, np.arange(len(mine))), f"a gap: {mine.tolist()}"
        counts[number] = len(mine)
    return counts


def shows(path: Path) -> dict[int, int] | None:
    """Return what a reader shows of a copy; None if it refuses it."""
    try:
        return rows_of(path)
    except ZarrowError:
        return None


def judge(path: Path) -> tuple[bool, bool]:
    """Check a copy; tell whether it is shown, and whether a writer goes on with it."""
    before = shows(path)
    report = zarrow.verify(path)
    assert before is not None or not report.ok, "refused, but verify finds nothing"
    if report.ok:
        assert report.rows + report.open_rows == sum(before.values()), "verify counts other rows"
    try:
        with contextlib.closing(zarrow.Writer(path, mode="a")) as writer:
            writer.finalize()
    except ZarrowError:
        after = None
    else:
        after = shows(path)
        assert before is None or after == before, f"{before} before, {after} after"
    zarrow.repair(path)
    assert zarrow.verify(path).ok
    rows_of(path, gaps=True)
    return before is not None, after is not None


def copies(way: Callable[[Path, Path], None], writers: int, count: int, top: Path) -> Iterator[Path]:
    """Yield copies of stores that are being written."""
    live, made = top / "live", top / "copy"
    for number in range(count):
        run = Run(live, writers, number)
        try:
            time.sleep(0.05 + 0.4 * random.Random(number).random())
            way(live, made)
        finally:
            run.stop()
        if (made / "zarrow.json").exists():
            yield made
        shutil.rmtree(live)
        shutil.rmtree(made)


@pytest.mark.parametrize("writers", [1, 3])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_copy_of_a_store_that_is_written(way, writers, tmp_path, profile, figures):
    """No copy doubles a row or has a gap that nobody notices, whoever reads, continues or repairs it."""
    shown = continued = count = 0
    for path in copies(way, writers, COPIES[profile], tmp_path):
        read, went_on = judge(path)
        count, shown, continued = count + 1, shown + read, continued + went_on
    figures(f"copies by {way.__name__}", copies=count, shown=shown, continued=continued)
