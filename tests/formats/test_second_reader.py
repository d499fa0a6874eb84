"""The second reader agrees with zarrow on the golden stores and on what killed processes leave.

It was written from FORMAT.md alone, in another language and with other libraries for Zarr, Parquet and Arrow.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crash.disk import Recorder
from crash.states import State, Tally, kills, record_recovery
from crash.test_agreement import flips, some
from crash.workloads import (
    NAME,
    OPTIONS,
    TWO,
    WORKLOADS,
    Recording,
    Run,
    Workload,
    check_rows,
    record,
    scratch,
)
from formats.make_golden import GOLDEN, STORES
from formats.second_reader import SecondReader, install

import zarrow
from zarrow.errors import CorruptionError, NotAStoreError, StoreNotFoundError

STATES = {"ci": 5, "long": 1500}  # of each kind, for each workload
FEW = {"ci": 2, "long": 300}
RUNS, LOOKS = {"ci": 1, "long": 50}, 10


@pytest.fixture(scope="module")
def reader() -> Iterator[SecondReader]:
    reason = install()
    if reason:
        pytest.skip(reason)
    with SecondReader() as one:
        yield one


@pytest.mark.parametrize("name", [store.__name__ for store in STORES])
def test_it_reads_the_golden_stores(reader, name):
    """It finds the rows, the damage and the index that are expected."""
    expected = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    found = reader.read(GOLDEN / name)
    for key in ("complete", "committed_rows", "rows"):
        assert found[key] == expected[key]
    assert [{"path": one["path"]} for one in found["damage"]] == expected["damage"]
    assert found.get("index") == expected.get("index")


def product(path: Path) -> dict[str, Any] | None:
    """Return what zarrow finds in a store, in the form of the second reader; None if it refuses it."""
    try:
        with zarrow.open(path, partial=True) as store:
            arrays = {name: store[name].read(0, store.num_rows, check="crc") for name in store.arrays}
            rows = [
                row | {name: values[place].tolist() for name, values in arrays.items()}
                for place, row in enumerate(store.table().to_pylist())
            ]
            return {"complete": store.complete, "rows": rows}
    except (NotAStoreError, StoreNotFoundError):
        return {"error": "not a store"}
    except CorruptionError:
        return None


def compare(reader: SecondReader, state: State) -> str:
    """Check that both readers find the same rows, or both find damage; return which."""
    with scratch() as top:
        state.tree.put(top)
        theirs, ours = reader.read(top / NAME), product(top / NAME)
        if ours is None:
            assert theirs["damage"], "only zarrow refuses it"
            return "refused"
        assert not theirs["damage"], f"only the other one finds damage: {theirs['damage']}"
        assert {key: theirs.get(key, []) for key in ours} == ours
        return "shown" if ours.get("rows") else "empty"


def _shared(run: Run) -> None:
    """Three writers at once, whose segments are sealed in any order."""
    writers = [run.open(stream, shared=True) for stream in range(3)]
    for _ in range(5):
        for stream, writer in enumerate(writers):
            run.append(writer, 17 + 5 * stream, stream)
    for stream, writer in enumerate(writers):
        writer.close()
        run.done(stream)


def _damaged(run: Run) -> None:
    writer = run.open()
    for _ in range(5):
        run.append(writer, 40)
    writer.close()
    run.done()
    for name in ("segments/00000001.json", "embeddings.zarr/y/c/3/0/0"):
        file = run.path / name
        data = bytearray(file.read_bytes())
        data[20] ^= 1
        file.write_bytes(data)


def _repair(run: Run) -> None:
    zarrow.repair(run.path, finalize=True)


CASES = {
    **WORKLOADS,
    "shared writers": Workload(
        "shared writers",
        _shared,
        {0: 85, 1: 110, 2: 135},
        arrays=TWO,
        options=OPTIONS | {"codecs": {"y": "zstd"}},
    ),
    "repair": Workload("repair", _repair, {0: 200}, _damaged, arrays=TWO, options=OPTIONS),
}


def states(recording: Recording, profile: str, rng: random.Random) -> Iterator[State]:
    """Yield what processes leave that are killed at a call, within one, or in recovery; then some damage."""
    yield from some(kills(recording), STATES[profile], rng)
    if recording.workload.name != "repair":
        point = rng.randrange(len(recording.log))
        yield from some(kills(record_recovery(recording, point)[1]), FEW[profile], rng)
        yield from flips(recording, FEW[profile], rng)


@pytest.mark.slow
def test_it_reads_a_store_that_is_being_written(reader, figures, profile, tmp_path):
    """Each look at a store with two active writers shows what was accepted before it, once, and whole."""
    workload = CASES["shared writers"]
    looks, rows = 0, 0
    for turn in range(RUNS[profile]):
        path = tmp_path / str(turn)
        run = Run(path, workload, Recorder(tmp_path))
        durability = "batch" if turn % 2 else "segment"
        writers = [run.open(stream, shared=True, durability=durability) for stream in (0, 1)]
        stop = threading.Event()

        def write(run=run, writers=writers, stop=stop):
            while not stop.is_set() and run.counted.get(0, 0) < 2000:
                for stream, writer in enumerate(writers):
                    run.append(writer, 7 + 4 * stream, stream)
                    time.sleep(0.001)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            while not sum(writer.accepted_rows for writer in writers):
                time.sleep(0.001)
            for _ in range(LOOKS):
                time.sleep(0.01)
                before = [writer.accepted_rows for writer in writers]
                found = reader.read(path)
                looks += 1
                assert not found["damage"]
                ids = np.array([row["id"] for row in found["rows"]], np.int64)
                vectors = {
                    name: np.array([row[name] for row in found["rows"]], dtype).reshape(len(ids), *shape)
                    for name, (shape, dtype) in workload.arrays.items()
                }
                names = [row["s"] for row in found["rows"]]
                counts = check_rows(workload, ids, names, vectors, f"look {looks}")
                assert all(counts.get(stream, 0) >= accepted for stream, accepted in enumerate(before))
                rows += len(ids)
        finally:
            stop.set()
            thread.join()
            for writer in writers:
                writer.close()
    figures("looks at live runs, in Node", looks=looks, rows=rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_it_reads_what_killed_processes_leave(reader, name, figures, profile):
    """Both show the same rows of what writers, shared ones, recovery and repair leave, or refuse it."""
    rng, tally, found = random.Random(name), Tally(), []
    for state in states(record(CASES[name]), profile, rng):
        tally.states += 1
        tally.check(state, lambda state: found.append(compare(reader, state)))
    counts = {what: found.count(what) for what in ("shown", "empty", "refused")}
    figures("states of killed processes, read in Node", states=tally.states, **counts, bad=len(tally.bad))
    assert not tally.bad, "\n".join(tally.bad[:20])
