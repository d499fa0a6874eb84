"""The second reader agrees with zarrow on the golden stores and on what killed processes leave.

It was written from FORMAT.md alone, in another language and with other libraries for Zarr, Parquet and Arrow.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import random
import shutil
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from crash.disk import Recorder
from crash.states import State, Tally, kills, record_recovery
from crash.test_agreement import flips, some
from crash.workloads import (
    NAME,
    OPTIONS,
    TOKENS,
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
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
FLIPS = {"ci": 40, "long": 5_000}
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


def as_json(value: pa.Scalar) -> Any:
    """Return a value as the second reader prints it."""
    kind = value.type
    if not value.is_valid:
        return None
    if isinstance(value, pa.ExtensionScalar):
        return as_json(value.value)
    if pa.types.is_dictionary(kind):
        return as_json(pa.scalar(value.as_py(), kind.value_type))
    if pa.types.is_temporal(kind):
        found = value.value
    elif pa.types.is_decimal(kind):
        return str(int(value.as_py().scaleb(kind.scale)))
    elif pa.types.is_map(kind):
        return [[as_json(one["key"]), as_json(one["value"])] for one in value.values]
    elif pa.types.is_struct(kind):
        return {field.name: as_json(value[field.name]) for field in kind}
    elif pa.types.is_nested(kind):
        return [as_json(one) for one in value.values]
    else:
        found = value.as_py()
    if isinstance(found, bytes):
        return found.hex()
    if isinstance(found, float) and not math.isfinite(found):
        return "NaN" if math.isnan(found) else "Infinity" if found > 0 else "-Infinity"
    return str(found) if type(found) is int and abs(found) > 2**53 - 1 else found


VALUES: dict[pa.DataType, list[Any]] = {
    pa.bool_(): [True, False],
    pa.int8(): [-128, 127],
    pa.uint8(): [0, 255],
    pa.int16(): [-(2**15), 7],
    pa.uint16(): [2**16 - 1, 7],
    pa.int32(): [-(2**31), 7],
    pa.uint32(): [2**32 - 1, 7],
    pa.int64(): [-(2**63), 2**53 + 1],
    pa.uint64(): [2**64 - 1, 7],
    pa.float16(): [-0.5, math.inf],
    pa.float32(): [0.1, math.nan],
    pa.float64(): [0.1, -math.inf],
    pa.null(): [None, None],
    pa.string(): ["", "séance\0"],
    pa.large_string(): ["", "séance"],
    pa.binary(): [b"", b"\xff\0"],
    pa.large_binary(): [b"", b"\xff\0"],
    pa.binary(3): [b"\xff\0\x01", b"abc"],
    pa.dictionary(pa.int32(), pa.string()): ["b", "a"],
    pa.decimal128(5, 2): [Decimal("-123.45"), Decimal("0.01")],
    pa.decimal256(40, 0): [Decimal(-(10**39)), Decimal(1)],
    pa.date32(): [dt.date(1900, 1, 1), dt.date(2200, 1, 1)],
    pa.time32("ms"): [dt.time(0, 0, 1), dt.time(23, 59, 59, 999000)],
    pa.time64("us"): [dt.time(0, 0, 1), dt.time(23, 59, 59, 999999)],
    pa.time64("ns"): [dt.time(0, 0, 1), dt.time(23, 59, 59, 999999)],
    pa.timestamp("ms"): [dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1, 1, 1, 1, 1000)],
    pa.timestamp("us", "Europe/Paris"): [dt.datetime(1900, 1, 1, tzinfo=dt.UTC), EPOCH],
    pa.timestamp("ns", "UTC"): [dt.datetime(1900, 1, 1, tzinfo=dt.UTC), EPOCH],
    pa.duration("s"): [dt.timedelta(days=-1), dt.timedelta(seconds=1)],
    pa.duration("ns"): [dt.timedelta(days=-1), dt.timedelta(seconds=1)],
    pa.uuid(): [bytes(16), b"\xff" * 16],
    pa.list_(pa.int64()): [[], [1, None]],
    pa.large_list(pa.string()): [["a"], [None, ""]],
    pa.list_(pa.float32(), 2): [[1.0, 2.0], [None, 3.0]],
    pa.list_(pa.timestamp("us")): [[dt.datetime(1900, 1, 1)], []],
    pa.list_(pa.list_(pa.decimal128(9, 1))): [[[Decimal("1.5")], []], [[]]],
    pa.struct({"a": pa.int32(), "b": pa.list_(pa.binary())}): [{"a": 1, "b": [b"x"]}, {"a": None, "b": []}],
    pa.list_(pa.struct({"t": pa.date32()})): [[{"t": dt.date(2000, 1, 1)}, {"t": None}], []],
    pa.map_(pa.string(), pa.duration("ms")): [[("k", dt.timedelta(1)), ("l", None)], []],
}
"""Two values of each type of the table in section 5.1."""


@pytest.mark.parametrize("null", [False, True])
def test_it_reads_every_type(reader, tmp_path, null):
    """Values of every type that a column may have are equal in frames and in parts, read by either."""
    rows = [0, 1, *([None] if null else [])]
    columns = {
        f"c{place}": pa.array([None if row is None else values[row] for row in rows], kind)
        for place, (kind, values) in enumerate(VALUES.items())
    }
    path = tmp_path / "store"
    with zarrow.Writer(path, schema=pa.table(columns).schema) as writer:
        writer.append(pa.table(columns))
    expected = [{name: as_json(column[row]) for name, column in columns.items()} for row in range(len(rows))]
    for _ in ("frames", "part"):
        found = reader.read(path)
        assert not found["damage"]
        assert [{name: row[name] for name in columns} for row in found["rows"]] == expected
        zarrow.Writer(path, mode="a").finalize()
    assert found["complete"]


def product(path: Path) -> dict[str, Any] | None:
    """Return what zarrow finds in a store, in the form of the second reader; None if it refuses it."""
    try:
        with zarrow.open(path, partial=True) as store:
            names = [*store.arrays, *store.ragged]
            arrays = {name: store[name].read(0, store.num_rows, check="crc") for name in names}
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


def _damaged(run: Run, names: tuple[str, ...]) -> None:
    writer = run.open()
    for _ in range(5):
        run.append(writer, 40)
    writer.close()
    run.done()
    for file in [one for name in names for one in run.path.glob(name)]:
        data = bytearray(file.read_bytes())
        data[20] ^= 1
        file.write_bytes(data)


def _repair(run: Run) -> None:
    zarrow.repair(run.path, finalize=True)


REPAIRS = {
    "repair of segments": ("segments/00000001.json", "embeddings.zarr/y/c/3/0/0"),
    "repair of an open segment": ("open/*/y.rows",),
    "repair of both": ("table/part-00000000.parquet", "open/*/e.rows"),
    "repair of ragged arrays": ("embeddings.zarr/t/c/1/0/0", "embeddings.zarr/z_extent/c/3/0"),
}


CASES = {
    **WORKLOADS,
    "shared writers": Workload(
        "shared writers",
        _shared,
        {0: 85, 1: 110, 2: 135},
        arrays=TWO,
        options=OPTIONS | {"codecs": {"y": "zstd"}},
    ),
    **{
        name: Workload(
            name,
            _repair,
            {0: 200},
            partial(_damaged, names=damaged),
            arrays=TOKENS if "ragged" in name else TWO,
            options=OPTIONS,
        )
        for name, damaged in REPAIRS.items()
    },
}


def states(recording: Recording, profile: str, rng: random.Random) -> Iterator[State]:
    """Yield what processes leave that are killed at a call, within one, or in recovery; then some damage."""
    yield from some(kills(recording), STATES[profile], rng)
    if recording.workload.name not in REPAIRS:
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
                    name: np.array([row[name] for row in found["rows"]]).reshape(len(ids), *shape)
                    for name, (shape, _) in workload.arrays.items()
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


@pytest.mark.slow
@pytest.mark.parametrize("golden", ["compressed", "ragged_open"])
def test_it_finds_the_damage_that_verify_finds(reader, golden, figures, profile, tmp_path):
    """A bit flipped anywhere in a complete store is found by both, or by neither because it says the same."""
    rng = random.Random("flips")
    path = Path(shutil.copytree(GOLDEN / golden, tmp_path / "store"))
    zarrow.Writer(path, mode="a").finalize()
    files = [file for file in path.rglob("*") if file.is_file() and file.stat().st_size]
    found = []
    for file in rng.choices(files, k=FLIPS[profile]):
        data = file.read_bytes()
        bit = rng.randrange(8 * len(data))
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        theirs = reader.read(path)
        ok = zarrow.verify(path).ok
        assert bool(theirs.get("error") or theirs["damage"]) != ok, f"bit {bit} of {file}: {theirs['damage']}"
        found.append(not ok)
        file.write_bytes(data)
    assert reader.read(path)["damage"] == []
    figures("flipped bits, in Node", flips=len(found), found=sum(found))


def test_a_manifest_older_than_the_records_does_not_count(reader, tmp_path):
    """With a record that it does not list, a store is incomplete, for both readers."""
    path = tmp_path / "s.zarrow"
    with zarrow.Writer(path, segment_rows=8) as writer:
        writer.append({"id": np.arange(16)}, {"e": np.zeros((16, 2), np.float32)})
        writer.finalize()
    manifest = (path / "manifest.json").read_bytes()
    with zarrow.Writer(path, mode="a") as writer:
        writer.append({"id": np.arange(16, 24)}, {"e": np.zeros((8, 2), np.float32)})
    (path / "manifest.json").write_bytes(manifest)  # as a copy of a live store may have it
    assert not zarrow.open(path, partial=True).complete
    assert len(zarrow.open(path, partial=True)) == 24
    found = reader.read(path)
    assert not found["complete"]
    assert found["committed_rows"] == 24
