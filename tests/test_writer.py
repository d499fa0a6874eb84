"""Writer — appending, its promises about rows, and the modes in which a store can be opened."""

from __future__ import annotations

import contextlib
import errno
import itertools
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import tensorstore
import zarr

import zarrow
from zarrow._storage import files
from zarrow._write import directory, publishing, recovery
from zarrow.errors import (
    BatchError,
    IncompleteStoreError,
    InvalidInputError,
    NotAStoreError,
    SchemaMismatchError,
    StoreExistsError,
    StoreLockedError,
    WriteFailedError,
    WriterClosedError,
)

HIDDEN = 8
SEGMENT_ROWS = 64
OPTIONS: dict[str, Any] = {"keys": ["id"], "segment_rows": SEGMENT_ROWS}


def _batch(start: int, rows: int) -> tuple[dict[str, Any], dict[str, Any], npt.NDArray[np.int64]]:
    """Return rows that follow from their numbers, so that any reader's result can be checked."""
    ids = np.arange(start, start + rows)
    vectors = ids[:, None] * 1000.0 + np.arange(HIDDEN)
    columns = {"id": ids, "text": [f"row {row}" for row in ids]}
    return columns, {"embed": vectors.astype(np.float32)}, ids + 7


def _append(writer: zarrow.Writer, start: int, stop: int, step: int = 10) -> None:
    for first in range(start, stop, step):
        writer.append(*_batch(first, min(step, stop - first)))


def stock_readers(path: Path) -> tuple[pa.Table, zarr.Group, list[str]]:
    """Return what others see of a store: its table, its arrays, and what is left in ``open``."""
    table = ds.dataset(sorted((path / "table").glob("*.parquet"))).to_table()
    return table, zarr.open_group(path / "embeddings.zarr", mode="r"), os.listdir(path / "open")


def _check(path: Path, rows: int) -> None:
    """Check with stock readers and ours that a complete store has exactly rows 0 to `rows`."""
    columns, arrays, index = _batch(0, rows)
    table, group, left = stock_readers(path)
    assert table["row"].to_pylist() == list(range(rows))
    assert table["id"].to_pylist() == columns["id"].tolist()
    assert table["text"].to_pylist() == columns["text"]
    assert table["sample_index"].to_pylist() == index.tolist()
    assert np.array_equal(group["embed"][:], arrays["embed"])  # type: ignore[index]
    store = zarrow.open(path)
    assert (store.complete, store.num_rows) == (True, rows)
    assert np.array_equal(store["embed"][:], arrays["embed"])
    assert left == []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.zarrow"


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "LOCK_TIMEOUT_S", 0.2)


class Faulty(files.Calls):
    """System calls that fail, or wait, where a test requires it."""

    def __init__(self) -> None:
        self.broken: dict[str, int] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.counts: dict[str, int] = {}
        self.written: list[tuple[int, int]] = []

    def _called(self, name: str) -> None:
        error = self.broken.get(
            name
        )  # read before counting: a test that waits for the count may then repair the call
        self.counts[name] = self.counts.get(name, 0) + 1
        if error is not None:
            raise OSError(error, os.strerror(error))

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        self.gate.wait()
        self._called("pwrite")
        return super().pwrite(fd, data, offset)

    def fsync(self, fd: int) -> None:
        self._called("fsync")
        super().fsync(fd)

    def link(self, source: str, target: str) -> None:
        self._called("link")
        super().link(source, target)

    def mkdir(self, path: str) -> None:
        self._called("mkdir")
        super().mkdir(path)

    def rename(self, source: str, target: str) -> None:
        self._called("rename")
        super().rename(source, target)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Faulty:
    faulty = Faulty()
    monkeypatch.setattr(files, "calls", faulty)
    return faulty


# What a store holds


@pytest.mark.parametrize("rows", [1, SEGMENT_ROWS - 1, SEGMENT_ROWS, SEGMENT_ROWS + 1, 3 * SEGMENT_ROWS + 5])
@pytest.mark.parametrize("codecs", [None, "zstd"])
def test_what_was_appended_is_there(rows: int, codecs: str | None, path: Path) -> None:
    """A complete store has every row once, in order, for every reader."""
    with zarrow.Writer(path, codecs=codecs, **OPTIONS) as writer:
        _append(writer, 0, rows)
        writer.finalize()
    _check(path, rows)


def test_one_batch_may_span_segments(path: Path) -> None:
    """A batch larger than a segment is split, and can be read completely."""
    with zarrow.Writer(path, **OPTIONS) as writer:
        writer.append(*_batch(0, 5 * SEGMENT_ROWS + 3))
        writer.append(*_batch(5 * SEGMENT_ROWS + 3, 1))
        writer.finalize()
    _check(path, 5 * SEGMENT_ROWS + 4)


def test_arrays_of_any_shape_and_type(path: Path) -> None:
    """Several arrays of different row shape, type and codec live in one store."""
    rng = np.random.default_rng(0)
    arrays = {
        "query_embed": rng.random((100, 16), np.float32),
        "layers": rng.random((100, 3, 4)).astype(np.float16),
        "deep": rng.random((100, 2, 1, 3)),
        "tokens": rng.integers(-5, 5, (100, 7)),
        "bytes": rng.integers(0, 255, (100, 1), np.uint8),
        "mask": rng.random((100, 5)) > 0.5,
    }
    codecs = {"layers": "zstd", "tokens": "blosc", "mask": "crc32c"}
    with zarrow.Writer(path, segment_rows=32, codecs=codecs) as writer:
        for start in range(0, 100, 9):
            writer.append(None, {name: rows[start : start + 9] for name, rows in arrays.items()})
        writer.finalize()
    group = stock_readers(path)[1]
    assert set(group.array_keys()) == set(arrays)
    store = zarrow.open(path)
    for name, rows in arrays.items():
        for found in (store[name][:], group[name][:]):  # type: ignore[index]
            assert found.dtype == rows.dtype
            assert np.array_equal(found, rows)


def test_a_store_may_lack_arrays_or_columns(tmp_path: Path) -> None:
    """A store can have only columns, or only vectors."""
    with zarrow.Writer(tmp_path / "columns") as writer:
        writer.append({"id": [1, 2]})
        writer.finalize()
    with zarrow.Writer(tmp_path / "vectors") as writer:
        writer.append(None, {"e": np.ones((2, 3))})
        writer.finalize()
    assert zarrow.open(tmp_path / "columns").table()["id"].to_pylist() == [1, 2]
    assert zarrow.open(tmp_path / "vectors")["e"][:].shape == (2, 3)
    assert zarrow.open(tmp_path / "vectors").table().column_names == ["row", "sample_index"]


SCHEMA = pa.schema({"id": pa.int64(), "text": pa.string()})
ARRAYS = {"embed": (HIDDEN, "float32")}


@pytest.mark.parametrize("declared", [True, False])
def test_no_rows_make_a_store(declared: bool, path: Path) -> None:
    """A run without predictions leaves a valid, complete store without rows."""
    options: dict[str, Any] = {"schema": SCHEMA, "arrays": ARRAYS, "keys": ["id"]} if declared else {}
    with zarrow.Writer(path, **options) as writer:
        writer.finalize()
    store = zarrow.open(path)
    assert store.num_rows == 0
    table = stock_readers(path)[0]
    assert table.num_rows == 0
    assert table.column_names == [*(SCHEMA.names if declared else []), "row", "sample_index"]
    group = stock_readers(path)[1]
    assert dict(group.arrays()).keys() == ({"embed"} if declared else set())
    if declared:
        assert group["embed"].shape == (0, HIDDEN)  # type: ignore[union-attr]
        kvstore = {"driver": "file", "path": str(path / "embeddings.zarr/embed")}
        assert tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result().shape == (0, HIDDEN)
        with zarrow.Writer(path, mode="a") as writer:
            _append(writer, 0, 5)
            writer.finalize()
        _check(path, 5)


def test_a_declared_store_is_there_at_once(path: Path) -> None:
    """If everything is declared, readers find the arrays before the first batch."""
    with zarrow.Writer(path, schema=SCHEMA, arrays=ARRAYS):
        assert stock_readers(path)[1]["embed"].shape == (0, HIDDEN)  # type: ignore[union-attr]
        assert zarrow.open(path, partial=True).num_rows == 0


BITS32 = np.array(
    [0x7FC00000, 0x7FC00001, 0xFFC12345, 0x7F800001, 0x7F800000, 0xFF800000, 0x80000000, 0, 1, 0x807FFFFF],
    np.uint32,
)
BITS64 = np.array(
    [0x7FF8000000000000, 0xFFF8DEADBEEF0001, 0x7FF0000000000000, 1 << 63, 1, 0] + [2] * 4, np.uint64
)
BITS16 = np.array([0x7E00, 0x7E01, 0xFC00, 0x7C00, 0x8000, 0, 1, 0x83FF, 0x7BFF, 0x7C01], np.uint16)


@pytest.mark.parametrize("codecs", [None, "crc32c", "zstd", "blosc", "pcodec"])
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
def test_every_bit_is_kept(codecs: str | None, path: Path) -> None:
    """NaN payloads, infinities, -0.0, denormals, odd texts, times and lists come back bit for bit."""
    arrays = {
        "single": np.repeat(BITS32.view(np.float32)[:, None], 3, axis=1),
        "double": np.repeat(BITS64.view(np.float64)[:, None], 3, axis=1),
        "half": np.repeat(BITS16.view(np.float16)[:, None], 3, axis=1),
    }
    texts = ["", " ", "\0", "\n", "é", "e\u0301", "😀", None, "NULL", "x" * 5000]
    table = pa.table(
        {
            "float": BITS32.view(np.float32),
            "float64": BITS64.view(np.float64),
            "float16": pa.array(BITS16.view(np.float16)),
            "text": texts,
            "code": pa.array(texts).dictionary_encode(),
            "zone": pa.array(
                [-(2**62), 2**62, None, 0, 1, -1, 2, 3, 4, 5], pa.timestamp("us", "Asia/Kolkata")
            ),
            "tags": pa.array([[], None, [None], ["", "a"], *[["x"]] * 6], pa.list_(pa.string())),
        }
    )
    with zarrow.Writer(path, codecs=codecs, segment_rows=4) as writer:
        for start in range(0, 10, 3):
            writer.append(
                table.slice(start, 3), {name: rows[start : start + 3] for name, rows in arrays.items()}
            )
        writer.finalize()
    group = stock_readers(path)[1]
    for name, rows in arrays.items():
        assert group[name][:].tobytes() == rows.tobytes()  # type: ignore[index,union-attr]
        assert zarrow.open(path)[name][:].tobytes() == rows.tobytes()
        if codecs != "pcodec" and path.exists():  # which cloud.in_bucket has elsewhere
            kvstore = {"driver": "file", "path": str(path / "embeddings.zarr" / name)}
            found = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result().read().result()
            assert found.tobytes() == rows.tobytes()
    found = stock_readers(path)[0]
    for name, bits in (("float", BITS32), ("float64", BITS64), ("float16", BITS16)):
        assert found[name].to_numpy().tobytes() == bits.tobytes()
    for name in ("text", "zone", "tags"):
        assert found[name].type == table[name].type
        assert found[name].combine_chunks().equals(table[name].combine_chunks())
    assert pa.types.is_dictionary(found["code"].type)
    assert found["code"].to_pylist() == texts


def test_the_caller_says_where_rows_come_from(path: Path) -> None:
    """The user's provenance is stored with what zarrow itself records about the run."""
    with zarrow.Writer(path, provenance={"model": "m", "steps": [1, None]}) as writer:
        writer.append({"id": [1]})
        assert writer.spec is not None
        assert writer.spec.provenance["model"] == "m"
        assert writer.spec.provenance["host"] == socket.gethostname()


# Counts


def test_three_counts_tell_what_is_safe(path: Path, calls: Faulty) -> None:
    """Queued, accepted and durable rows are counted separately, and flush advances the counts."""
    with zarrow.Writer(path, schema=SCHEMA, arrays=ARRAYS) as writer:
        calls.gate.clear()
        _append(writer, 0, 30)
        assert (writer.queued_rows, writer.accepted_rows, writer.durable_rows) == (30, 0, 0)
        calls.gate.set()
        writer.flush()
        assert (writer.queued_rows, writer.accepted_rows, writer.durable_rows) == (30, 30, 0)
        writer.flush(durable=True)
        assert (writer.queued_rows, writer.accepted_rows, writer.durable_rows) == (30, 30, 30)
        _append(writer, 30, 40)
        writer.flush()
        assert (writer.queued_rows, writer.accepted_rows, writer.durable_rows) == (40, 40, 30)
    assert writer.durable_rows == 40
    with zarrow.Writer(path, mode="a") as again:
        assert (again.queued_rows, again.accepted_rows, again.durable_rows) == (40, 40, 40)


def test_a_full_segment_is_durable(path: Path) -> None:
    """By default rows become durable with their segment."""
    with zarrow.Writer(path, **OPTIONS) as writer:
        _append(writer, 0, SEGMENT_ROWS + 10)
        _wait_for(lambda: writer.durable_rows == SEGMENT_ROWS)
        writer.flush()
        assert writer.accepted_rows == SEGMENT_ROWS + 10


@pytest.mark.parametrize(
    ("durability", "durable"),
    [("batch", 50), (zarrow.Durability(batches=1), 50), (zarrow.Durability(batches=3), 30)],
)
def test_durability_by_batches(durability: Any, durable: int, path: Path) -> None:
    """Rows become durable after the chosen number of batches."""
    with zarrow.Writer(path, durability=durability) as writer:
        for start in range(0, 50, 10):
            writer.append(*_batch(start, 10))
            writer.flush()
        assert (writer.accepted_rows, writer.durable_rows) == (50, durable)


def test_durability_by_time(path: Path) -> None:
    """Rows become durable when the oldest reaches the chosen age, even if no batch follows."""
    with zarrow.Writer(path, durability=zarrow.Durability(seconds=0.2)) as writer:
        writer.append(*_batch(0, 10))
        writer.flush()
        _wait_for(lambda: writer.durable_rows == 10)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "r"},
        {"durability": "sometimes"},
        {"queue_bytes": 0},
        {"provenance": {"path": Path("x")}},
        {"provenance": {"loss": float("nan")}},
        {"provenance": {1: 2, "1": 3}},
        {"provenance": {"name": "\ud800"}},
    ],
    ids=[
        "mode",
        "durability",
        "queue",
        "provenance type",
        "provenance value",
        "provenance name",
        "provenance text",
    ],
)
def test_options_are_checked_at_once(options: dict[str, Any], path: Path) -> None:
    """An invalid option is refused before anything is created."""
    (name,) = options
    with pytest.raises(InvalidInputError, match=name):
        zarrow.Writer(path, **options)
    assert not path.exists()


@pytest.mark.parametrize("options", [{"batches": 0}, {"seconds": 0}, {"seconds": -1.0}, {"batches": -1}])
def test_durability_checks_itself(options: dict[str, Any]) -> None:
    """Durability after zero batches or zero seconds is refused."""
    with pytest.raises(InvalidInputError, match=f"{next(iter(options))} must be positive"):
        zarrow.Durability(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment_rows": 100}, "segment_rows must be a power of two, got 100"),
        ({"codecs": {"embeds": "zstd"}}, "'embeds'"),
        ({"keys": ["subject"]}, "key 'subject'"),
    ],
)
def test_a_declaration_is_checked_before_there_is_a_store(
    options: dict[str, Any], message: str, path: Path
) -> None:
    """Options that the first batch proves invalid are refused, and the writer can be closed."""
    with zarrow.Writer(path, **options) as writer, pytest.raises(InvalidInputError, match=message):
        writer.append(*_batch(0, 3))
    assert not (path / "zarrow.json").exists()


@pytest.mark.parametrize("dtype", ["float32", np.float32, np.dtype(">f4")], ids=str)
def test_a_type_may_be_declared_as_numpy_has_it(dtype: Any, path: Path) -> None:
    """An array's type is a name, a numpy type or a dtype; the store chooses the byte order."""
    with zarrow.Writer(path, schema=SCHEMA, arrays={"embed": ((HIDDEN,), dtype)}) as writer:
        _append(writer, 0, 5)
        writer.finalize()
    _check(path, 5)


# Backpressure


def test_a_slow_disk_slows_the_caller(path: Path, calls: Faulty) -> None:
    """Queued bytes never exceed the bound, and append waits for space."""
    rows, bound = 256, 64 << 10
    columns, arrays, _ = _batch(0, rows)
    with zarrow.Writer(path, schema=SCHEMA, arrays=ARRAYS, queue_bytes=bound) as writer:
        calls.gate.clear()
        done = threading.Event()

        def append_many() -> None:
            for _ in range(40):
                writer.append(columns, arrays)
            done.set()

        caller = threading.Thread(target=append_many)
        caller.start()
        try:
            assert not done.wait(0.5)
            waiting = writer.queued_rows - writer.accepted_rows
            assert 0 < waiting * HIDDEN * 4 <= bound
        finally:
            calls.gate.set()
            caller.join()
        writer.flush()
        assert writer.accepted_rows == 40 * rows


def test_a_batch_larger_than_the_queue_gets_through(path: Path) -> None:
    """The bound delays a large batch; it does not refuse it."""
    with zarrow.Writer(path, queue_bytes=10, **OPTIONS) as writer:
        _append(writer, 0, 200, step=50)
        writer.finalize()
    _check(path, 200)


# Modes


def test_the_default_touches_no_store(path: Path) -> None:
    """A second run with the same path is refused with both remedies, and the store is unchanged."""
    with zarrow.Writer(path, **OPTIONS) as writer:
        _append(writer, 0, 10)
        writer.finalize()
    with pytest.raises(StoreExistsError, match=r"mode='a' resumes.*mode='w' replaces") as caught:
        zarrow.Writer(path)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, FileExistsError)
    _check(path, 10)


def test_an_incomplete_store_is_not_overwritten_by_default(path: Path) -> None:
    """Starting an interrupted run again does not discard its rows."""
    with zarrow.Writer(path, **OPTIONS) as writer:
        _append(writer, 0, 10)
    with pytest.raises(StoreExistsError):
        zarrow.Writer(path)
    with zarrow.Writer(path, mode="a") as writer:
        assert writer.accepted_rows == 10


@pytest.mark.parametrize("mode", ["x", "w", "a"])
def test_every_mode_creates_what_is_not_there(mode: Any, path: Path) -> None:
    """At an unused path or in an empty directory, every mode creates a store."""
    path.mkdir()
    with zarrow.Writer(path, mode=mode, **OPTIONS) as writer:
        _append(writer, 0, 10)
        writer.finalize()
    _check(path, 10)
    assert os.listdir(path.parent) == [path.name]


def test_replacing_keeps_the_old_store_until_the_new_one_is_complete(path: Path) -> None:
    """Readers find the old, complete store until the new one replaces it in one step."""
    with zarrow.Writer(path, **OPTIONS) as writer:
        _append(writer, 0, 100)
        writer.finalize()
    with zarrow.Writer(path, mode="w", **OPTIONS) as writer:
        _append(writer, 0, 70)
        writer.flush(durable=True)
        _check(path, 100)
        writer.finalize()
        _check(path, 70)
    assert os.listdir(path.parent) == [path.name]


def test_replacing_may_change_everything(path: Path) -> None:
    """The new store need not have the old one's columns, arrays or codecs."""
    with zarrow.Writer(path) as writer:
        writer.append({"x": ["a"]}, {"other": np.ones((1, 3))})
        writer.finalize()
    with zarrow.Writer(path, mode="w", codecs="zstd", **OPTIONS) as writer:
        _append(writer, 0, 70)
        writer.finalize()
    _check(path, 70)


def test_an_abandoned_replacement_leaves_the_old_store(path: Path) -> None:
    """A replacement closed before finalizing changes nothing, and the next one starts from scratch."""
    with zarrow.Writer(path, **OPTIONS) as writer:
        _append(writer, 0, 100)
        writer.finalize()
    with zarrow.Writer(path, mode="w", **OPTIONS) as writer:
        _append(writer, 5, 90)
    _check(path, 100)
    with zarrow.Writer(path, mode="w", **OPTIONS) as writer:
        assert writer.accepted_rows == 0
        _append(writer, 0, 70)
        writer.finalize()
    _check(path, 70)
    assert os.listdir(path.parent) == [path.name]


def test_a_store_that_replaces_another_is_as_private(path: Path) -> None:
    """Who could not read the old store cannot read the new one, at any time, nor a packed copy."""
    with zarrow.Writer(path, **OPTIONS) as writer:
        _append(writer, 0, 70)
        writer.finalize()
    path.chmod(0o710)
    modes = []
    with zarrow.Writer(path, mode="w", **OPTIONS) as writer:
        modes.append(writer.grows_at.stat().st_mode)
        _append(writer, 0, 70)
        writer.finalize()
    modes.append(path.stat().st_mode)
    zarrow.pack(path, order="id")
    zarrow.pack(path, path.with_name("packed"), order="id")
    modes += [path.stat().st_mode, path.with_name("packed").stat().st_mode]
    assert [oct(mode & 0o777) for mode in modes] == ["0o710"] * 4


def test_a_store_replaced_keeps_what_is_not_its_own(path: Path) -> None:
    """A user's file, and what repair set aside, outlive the store; a killed run a successor without rows."""
    for rows in (70, 100):
        with zarrow.Writer(path, mode="w", **OPTIONS) as writer:
            _append(writer, 0, rows)
            writer.finalize()
        (path / "notes.txt").write_text("mine")
        (path / "quarantine").mkdir(exist_ok=True)
    with zarrow.Writer(path, mode="w", **OPTIONS) as killed:
        _append(killed, 0, 90)
    zarrow.Writer(path, mode="w", **OPTIONS).close()  # it had no row, so it replaces none
    assert zarrow.open(killed.grows_at, partial=True).num_rows == 90
    with zarrow.Writer(path, mode="w", **OPTIONS) as writer:
        _append(writer, 0, 80)
        writer.finalize()
    assert (path / "notes.txt").read_text() == "mine"
    assert (path / "quarantine").is_dir()
    (path / "notes.txt").unlink()
    (path / "quarantine").rmdir()
    _check(path, 80)


def test_a_store_whose_old_one_was_removed_takes_its_place(path: Path) -> None:
    """A store that was to replace another one is put in place, too, if that one is gone by then."""
    for mode in ("x", "w"):
        writer = zarrow.Writer(path, mode=mode, **OPTIONS)  # type: ignore[arg-type]
        _append(writer, 0, 80)
        if mode == "w":
            shutil.rmtree(path)
        writer.finalize()
    _check(path, 80)


def test_a_store_with_a_writer_at_work_is_not_replaced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store with an active writer is not replaced, neither at the start nor at the end."""
    monkeypatch.setattr("zarrow._write.directory.LOCK_TIMEOUT_S", 0.1)
    with zarrow.Writer(path, **OPTIONS) as old:
        _append(old, 0, 10)
        with pytest.raises(StoreLockedError, match=r"run\.zarrow: a Writer of this process has it open"):
            zarrow.Writer(path, mode="w", **OPTIONS)
    new = zarrow.Writer(path, mode="w", **OPTIONS)
    _append(new, 0, 70)
    with zarrow.Writer(path, mode="a") as old:
        with pytest.raises(StoreLockedError, match=r"move .*run\.zarrow\.incoming there yourself"):
            new.finalize()
        _append(old, 10, 20)
        old.finalize()
    _check(path, 20)
    _check(path.with_name("run.zarrow.incoming"), 70)


def test_a_forked_child_does_not_keep_the_store_of_a_dead_writer(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forked data loader workers that outlive their writer do not keep the store locked."""
    code = """
import os, signal, sys, time
import numpy as np, zarrow
writer = zarrow.Writer(sys.argv[1])
writer.append({"id": [1, 2]}, {"embed": np.ones((2, 4), "f4")})
writer.flush()
child = os.fork()
if not child:
    os.close(1)
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, check=False)
    child = int(done.stdout)
    try:
        os.kill(child, 0)  # it is alive
        monkeypatch.setattr("zarrow._write.directory.LOCK_TIMEOUT_S", 0.0)
        with zarrow.Writer(path, mode="a") as writer:
            assert writer.accepted_rows == 2
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_leaves_the_writer_its_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child process that ends, or tries to write, does not disturb the parent's writer."""
    monkeypatch.setattr("zarrow._write.directory.LOCK_TIMEOUT_S", 0.0)
    with zarrow.Writer(path, **OPTIONS) as writer:
        _append(writer, 0, 10)
        writer.flush()
        child = multiprocessing.get_context("fork").Process(target=_meddle_in_child, args=(path, writer))
        child.start()
        child.join()
        assert child.exitcode == 7, "the child could write to a store that its parent writes"
        with pytest.raises(StoreLockedError):
            zarrow.Writer(path, mode="a")
        _append(writer, 10, 70)
        writer.finalize()
    _check(path, 70)


def _meddle_in_child(path: Path, writer: zarrow.Writer) -> None:
    with pytest.raises(WriterClosedError, match="forked from its own"):
        _append(writer, 10, 20)
    writer.close()
    try:
        zarrow.Writer(path, mode="a")
    except StoreLockedError:
        os._exit(7)


def test_a_link_to_a_store_is_followed(path: Path) -> None:
    """A symbolic link to a store can be used to resume or replace it."""
    with zarrow.Writer(path, **OPTIONS) as writer:
        _append(writer, 0, 10)
        writer.finalize()
    latest = path.with_name("latest")
    latest.symlink_to(path.name)
    with zarrow.Writer(latest, mode="a") as writer:
        _append(writer, 10, 20)
        writer.finalize()
    _check(path, 20)
    with zarrow.Writer(latest, mode="w", **OPTIONS) as writer:
        _append(writer, 0, 5)
        writer.finalize()
    assert latest.is_symlink()
    _check(latest, 5)
    _check(path, 5)


def test_appending_resumes_what_was_closed(path: Path) -> None:
    """Closing loses nothing: the next writer continues with exactly the next row."""
    for start, stop in ((0, 30), (30, 64), (64, 64), (64, 200)):
        with zarrow.Writer(path, mode="a", **OPTIONS) as writer:
            assert writer.accepted_rows == writer.durable_rows == start
            _append(writer, start, stop)
    with zarrow.Writer(path, mode="a") as writer:
        writer.finalize()
    _check(path, 200)


@pytest.mark.parametrize("rows", [10, SEGMENT_ROWS, SEGMENT_ROWS + 10])
@pytest.mark.parametrize("codecs", [None, "zstd"])
def test_appending_extends_what_was_complete(rows: int, codecs: str | None, path: Path) -> None:
    """The first row that is appended to a complete store makes it incomplete until it is finalized again."""
    with zarrow.Writer(path, codecs=codecs, **OPTIONS) as writer:
        _append(writer, 0, rows)
        writer.finalize()
    with zarrow.Writer(path, mode="a") as writer:
        assert writer.accepted_rows == rows
        assert zarrow.open(path).num_rows == rows
        _append(writer, rows, rows + 33)
        writer.flush()
        with pytest.raises(IncompleteStoreError):
            zarrow.open(path)
    with zarrow.Writer(path, mode="a") as writer:
        assert writer.accepted_rows == rows + 33
        _append(writer, rows + 33, rows + 150)
        writer.finalize()
    _check(path, rows + 150)
    with zarrow.Writer(path, mode="a") as writer:
        writer.finalize()
    _check(path, rows + 150)


@pytest.mark.parametrize("finalize", [False, True])
def test_a_store_to_which_nothing_is_appended_stays_what_it_is(path: Path, finalize: bool) -> None:
    """A writer that appends no row changes no record, so that indexes and derived arrays still hold."""
    with zarrow.Writer(path, **OPTIONS) as writer:
        _append(writer, 0, SEGMENT_ROWS + 10)
        writer.finalize()
    files = [one for one in path.rglob("*") if one.is_file() and one.name != "lock"]
    before = [one.read_bytes() for one in files]
    with zarrow.Writer(path, mode="a") as writer:
        writer.append(*_batch(0, 0))
        if finalize:
            writer.finalize()
    assert before == [one.read_bytes() for one in files]
    assert zarrow.open(path).num_rows == SEGMENT_ROWS + 10


# The end


def test_leaving_the_block_does_not_finalize(path: Path) -> None:
    """A store is incomplete until its writer finalizes it, and leaving the block without that warns."""
    words = r"without finalize\(\).*100 of 1,234 rows are safe.*mode='a'"
    with (
        pytest.warns(UserWarning, match=words),
        zarrow.Writer(path, expected_rows=1234, **OPTIONS) as writer,
    ):
        _append(writer, 0, 100)
    with pytest.raises(IncompleteStoreError, match="partial=True"):
        zarrow.open(path)
    assert zarrow.open(path, partial=True).num_rows == 100


def test_who_says_how_the_block_ends_is_not_warned(path: Path) -> None:
    """After close(), of shared writers, and after an exception there is no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with zarrow.Writer(path, **OPTIONS) as writer:
            _append(writer, 0, 10)
            writer.close()
        with zarrow.Writer(path, mode="a", shared=True) as writer:
            _append(writer, 10, 20)
        with contextlib.suppress(KeyError), zarrow.Writer(path, mode="a") as writer:
            raise KeyError


@pytest.mark.parametrize("shared", [False, True])
def test_fewer_rows_than_expected_ask_for_partial(path: Path, shared: bool) -> None:
    """finalize() says how many rows there are and goes on; partial=True records both numbers."""
    with zarrow.Writer(path, expected_rows=300, mode="a", shared=shared, **OPTIONS) as writer:
        _append(writer, 0, 100)
        with pytest.raises(IncompleteStoreError, match=r"100 of 300 rows .* 200, .*partial=True"):
            writer.finalize()
        if not shared:
            _append(writer, 100, 200)
            writer.finalize(partial=True)
    with zarrow.Writer(path, mode="a", shared=shared) as writer:
        rows = writer.accepted_rows
        _append(writer, rows, 250)
        writer.finalize(partial=True)
    with zarrow.open(path) as store:
        assert (store.num_rows, store.expected_rows) == (250, 300)
        assert "250 of 300 rows, finalized without the others" in repr(store)
    with zarrow.Writer(path, mode="a", expected_rows=260) as writer:
        _append(writer, 250, 260)
        writer.finalize()
    with zarrow.open(path) as store:
        assert "260 rows, complete" in repr(store)
    zarrow.pack(path, segment_rows=128)
    assert zarrow.open(path).expected_rows == 260
    assert zarrow.verify(path, "full").ok
    for wrong in (-1, 2.5, True, "10"):
        with pytest.raises(InvalidInputError, match="expected_rows must be a number of rows"):
            zarrow.Writer(path.with_name("wrong"), expected_rows=wrong)  # type: ignore[arg-type]


def test_an_exception_in_the_block_is_not_hidden(path: Path) -> None:
    """An exception in the with block is raised unchanged, and every batch before it is kept."""

    def run() -> None:
        with zarrow.Writer(path, **OPTIONS) as writer:
            _append(writer, 0, 50)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    with zarrow.Writer(path, mode="a") as writer:
        assert writer.accepted_rows == 50


def test_ending_twice_does_no_harm(path: Path) -> None:
    """Finalize and close may be called again, in any order."""
    with zarrow.Writer(path, **OPTIONS) as writer:
        _append(writer, 0, 10)
        writer.finalize()
        writer.finalize()
        writer.close()
        writer.close()
        writer.finalize()
    _check(path, 10)


@pytest.mark.parametrize("finalized", [True, False])
def test_a_writer_that_ended_takes_no_more(finalized: bool, path: Path) -> None:
    """A writer says whether it was closed or finalized, and how to continue."""
    writer = zarrow.Writer(path, **OPTIONS)
    writer.append(*_batch(0, 10))
    writer.finalize() if finalized else writer.close()
    ends: list[Callable[[], None]] = [lambda: writer.append(*_batch(10, 1)), writer.flush]
    for end in ends if finalized else [*ends, writer.finalize]:
        with pytest.raises(
            WriterClosedError, match=rf"was {'finalized' if finalized else 'closed'}.*mode='a'"
        ):
            end()
    assert writer.accepted_rows == 10


def test_nothing_stays_open(path: Path) -> None:
    """A closed writer leaves no threads or open files."""
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for mode in ("x", "a", "a", "w"):
        with zarrow.Writer(path, mode=mode, **OPTIONS) as writer:  # type: ignore[arg-type]
            _append(writer, writer.accepted_rows, 150)
            if mode == "w":
                writer.finalize()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors


# Obstacles


def _make_file(path: Path) -> None:
    path.write_text("precious")


def _make_directory(path: Path) -> None:
    path.mkdir()
    (path / "precious").write_text("precious")


def _make_other_open(path: Path) -> None:
    (path / "open").mkdir(parents=True)
    (path / "open/precious").write_text("precious")


def _make_zarr(path: Path) -> None:
    zarr.create_group(path)


@pytest.mark.parametrize("mode", ["x", "w", "a"])
@pytest.mark.parametrize("make", [_make_file, _make_directory, _make_other_open, _make_zarr])
def test_what_is_no_store_is_left_alone(mode: Any, make: Callable[[Path], None], path: Path) -> None:
    """No mode touches a path that is not a store."""
    make(path)
    before = {name: name.read_bytes() for name in path.rglob("*") if name.is_file()}
    with pytest.raises(
        NotAStoreError, match=r"expected a zarrow store or nothing, got something else: choose another path"
    ) as caught:
        zarrow.Writer(path, mode=mode)
    assert str(path) in str(caught.value)
    assert {name: name.read_bytes() for name in path.rglob("*") if name.is_file()} == before


def test_what_lies_where_the_new_store_would_grow_is_left_alone(path: Path) -> None:
    """A replacement is refused if its temporary name is taken."""
    with zarrow.Writer(path) as writer:
        writer.append({"id": [1]})
    _make_directory(path.with_name("run.zarrow.incoming"))
    with pytest.raises(NotAStoreError, match=r"run\.zarrow\.incoming: the new store would grow here"):
        zarrow.Writer(path, mode="w")
    assert (path.with_name("run.zarrow.incoming") / "precious").read_text() == "precious"


def test_a_missing_parent_is_told_at_once(tmp_path: Path) -> None:
    """A typo in the path fails when the writer is opened, not after an hour."""
    with pytest.raises(WriteFailedError, match="no such directory: create it") as caught:
        zarrow.Writer(tmp_path / "no" / "run.zarrow")
    assert caught.value.errno == errno.ENOENT
    assert isinstance(caught.value, OSError)
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteFailedError, match="no such directory"):
        zarrow.Writer(tmp_path / "file" / "run.zarrow")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_parent_that_cannot_be_written_is_told_at_once(number: int, path: Path, calls: Faulty) -> None:
    """A read-only, forbidden or full directory fails when the writer is opened, with the reason."""
    calls.broken["mkdir"] = number
    with pytest.raises(WriteFailedError, match=r"cannot write a store here: ") as caught:
        zarrow.Writer(path)
    assert caught.value.errno == number
    assert os.strerror(number) in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_permissions_are_respected(tmp_path: Path) -> None:
    """A directory without write permission is reported at once."""
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(WriteFailedError, match="Permission denied"):
            zarrow.Writer(tmp_path / "run.zarrow")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (
            {"schema": pa.schema({"id": pa.int32(), "text": pa.string()})},
            ["columns", "id: int32", "id: int64"],
        ),
        ({"schema": pa.schema({"id": pa.int64()})}, ["columns", "text: string"]),
        ({"arrays": {"embed": ((9,), "float32")}}, ["arrays", "(9,)", "(8,)"]),
        ({"arrays": {"embed": ((8,), "float16")}}, ["arrays", "float16", "float32"]),
        ({"arrays": {"other": ((8,), "float32")}}, ["arrays", "other", "embed"]),
        ({"keys": ["text"]}, ["keys", "('text',)", "('id',)"]),
        ({"segment_rows": 128}, ["segment_rows", "128", "64"]),
        ({"codecs": "zstd"}, ["codecs of 'embed'", "zstd"]),
        ({"segment_rows": 128, "keys": ["text"]}, ["segment_rows", "keys"]),
    ],
)
def test_a_schema_that_differs_when_resuming_is_refused(
    options: dict[str, Any], parts: list[str], path: Path
) -> None:
    """A resumed run that declares a different store is refused with the differences, and nothing changes."""
    with zarrow.Writer(path, **OPTIONS) as writer:
        _append(writer, 0, 70)
    with pytest.raises(SchemaMismatchError) as caught:
        zarrow.Writer(path, mode="a", **options)
    for part in [*parts, "the store has", "declare what the store has"]:
        assert part in str(caught.value)
    with zarrow.Writer(path, mode="a", schema=SCHEMA, arrays=ARRAYS, **OPTIONS) as writer:
        _append(writer, 70, 80)
        writer.finalize()
    _check(path, 80)


def test_a_batch_that_differs_when_resuming_is_refused(path: Path) -> None:
    """A resumed run without declarations is checked against the store, batch by batch."""
    with zarrow.Writer(path, **OPTIONS) as writer:
        _append(writer, 0, 70)
    with zarrow.Writer(path, mode="a") as writer:
        columns, arrays, index = _batch(70, 10)
        with pytest.raises(BatchError, match=r"batch 0: array 'embed': expected dtype float32, got float64"):
            writer.append(columns, {"embed": arrays["embed"].astype(float)}, index)
        writer.append(columns, arrays, index)
        writer.finalize()
    _check(path, 80)


# Other writers


HOLD = """
import sys, time, zarrow
with zarrow.Writer(sys.argv[1], mode="a", shared=sys.argv[2] == "shared") as writer:
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def _holder(path: Path, kind: str) -> Iterator[subprocess.Popen[bytes]]:
    """Hold a store in another process."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.stdin.close()
            process.wait()


@pytest.mark.usefixtures("no_patience")
def test_a_store_that_is_being_written_names_its_writer(path: Path) -> None:
    """A second writer is refused with the host and process of the first, and a remedy."""
    with _holder(path, "alone") as process:
        for mode, shared in (("a", False), ("a", True), ("x", False), ("w", False)):
            with pytest.raises(StoreLockedError) as caught:
                zarrow.Writer(path, mode=mode, shared=shared)  # type: ignore[arg-type]
            message = str(caught.value)
            for part in (str(path), f"process {process.pid}", socket.gethostname(), "shared=True"):
                assert part in message
    with zarrow.Writer(path, mode="a"):
        pass


@pytest.mark.usefixtures("no_patience")
def test_a_lock_ends_with_its_process(path: Path) -> None:
    """A killed writer does not block others."""
    with _holder(path, "alone") as process:
        process.kill()
        process.wait()
    with zarrow.Writer(path, mode="a"):
        pass


@pytest.mark.usefixtures("no_patience")
def test_shared_writers_make_one_store(path: Path) -> None:
    """Shared writers append to one store, and the last of them completes it."""
    options: dict[str, Any] = {"mode": "a", "shared": True, **OPTIONS}
    with zarrow.Writer(path, **options) as one, zarrow.Writer(path, **options) as other:
        with pytest.raises(StoreLockedError):
            zarrow.Writer(path, mode="a")
        for start in range(0, 150, 10):
            (one, other)[start // 10 % 2].append(*_batch(start, 10))
        one.flush()
        with pytest.raises(StoreLockedError, match="other writers are still active"):
            one.finalize()
        other.finalize()
    store = zarrow.open(path)
    table = store.table()
    ids = table["id"].to_numpy()
    assert sorted(ids.tolist()) == list(range(150))
    assert np.array_equal(store["embed"][:], _batch(0, 150)[1]["embed"][ids])
    assert np.array_equal(table["sample_index"].to_numpy(), ids + 7)
    # Each writer's rows are in its own order.
    for number in (0, 1):
        mine = ids[ids // 10 % 2 == number]
        assert mine.tolist() == sorted(mine.tolist())


# Faults


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_an_error_in_the_background_surfaces_at_the_next_call(number: int, path: Path, calls: Faulty) -> None:
    """A failed write is raised by the next call and by close, with the rows that are safe."""
    writer = zarrow.Writer(path, **OPTIONS)
    _append(writer, 0, 20)
    writer.flush(durable=True)
    _append(writer, 20, 30)
    writer.flush()
    calls.broken["pwrite"] = number
    _append(writer, 30, 40)
    _wait_for(lambda: writer._appender.error is not None)
    ends: list[Callable[[], None]] = [
        lambda: writer.append(*_batch(40, 1)), writer.flush, writer.finalize, writer.close,
    ]  # fmt: skip
    for end in ends:
        with pytest.raises(WriteFailedError) as caught:
            end()
        assert caught.value.errno == number
        assert (caught.value.accepted_rows, caught.value.durable_rows) == (30, 20)
        for part in (str(path), os.strerror(number), "30 rows", "20 of them durable", "mode='a'"):
            assert part in str(caught.value)
    writer.close()
    calls.broken.clear()
    with zarrow.Writer(path, mode="a") as again:
        assert again.accepted_rows == 30
        _append(again, 30, 100)
        again.finalize()
    _check(path, 100)


@pytest.mark.parametrize("call", ["fsync", "link", "rename"])
def test_an_error_while_sealing_surfaces(call: str, path: Path, calls: Faulty) -> None:
    """A failure to seal a segment is raised by finalize at the latest, and nothing is lost."""

    def run() -> None:
        with zarrow.Writer(path, **OPTIONS) as writer:
            _append(writer, 0, SEGMENT_ROWS - 4)
            writer.flush()
            calls.broken[call] = errno.EIO
            _append(writer, SEGMENT_ROWS - 4, SEGMENT_ROWS)
            writer.finalize()

    with pytest.raises(WriteFailedError) as caught:
        run()
    assert caught.value.accepted_rows == SEGMENT_ROWS
    assert caught.value.durable_rows == 0
    calls.broken.clear()
    with zarrow.Writer(path, mode="a") as again:
        assert again.accepted_rows == SEGMENT_ROWS
        _append(again, SEGMENT_ROWS, 100)
        again.finalize()
    _check(path, 100)


def test_an_fsync_that_failed_once_is_not_believed_later(path: Path, calls: Faulty) -> None:
    """A transient error still fails the run, because the kernel may have dropped the bytes."""

    def run() -> None:
        with zarrow.Writer(path, **OPTIONS) as writer:
            _append(writer, 0, SEGMENT_ROWS - 4)
            writer.flush()
            # A failure in the next open segment would lose no row.
            _wait_for(lambda: len(list(path.glob("open/*/owner.json"))) == 2)
            calls.broken["fsync"] = errno.EIO
            before = calls.counts.get("fsync", 0)
            _append(writer, SEGMENT_ROWS - 4, SEGMENT_ROWS)
            _wait_for(lambda: calls.counts.get("fsync", 0) > before)
            calls.broken.clear()
            writer.finalize()

    with pytest.raises(WriteFailedError):
        run()
    with pytest.raises(IncompleteStoreError):
        zarrow.open(path)


def test_an_error_lets_waiting_callers_go(path: Path, calls: Faulty) -> None:
    """A caller waiting for space gets the error instead of waiting forever."""
    columns, arrays, _ = _batch(0, 256)

    def run() -> None:
        with zarrow.Writer(path, schema=SCHEMA, arrays=ARRAYS, queue_bytes=64 << 10) as writer:
            calls.gate.clear()
            calls.broken["pwrite"] = errno.ENOSPC
            threading.Timer(0.3, calls.gate.set).start()
            for _ in range(100):
                writer.append(columns, arrays)

    with pytest.raises(WriteFailedError, match="No space left"):
        run()


def test_an_error_of_the_block_is_not_hidden_by_one_of_the_writer(path: Path, calls: Faulty) -> None:
    """If both the block and the disk fail, the block's exception is raised."""

    def run() -> None:
        with zarrow.Writer(path, **OPTIONS) as writer:
            _append(writer, 0, 20)
            calls.broken["pwrite"] = errno.EIO
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()


# Death


RUN = """
import sys, numpy, zarrow
path, mode, stop = sys.argv[1], sys.argv[2], int(sys.argv[3])
writer = zarrow.Writer(path, mode=mode, keys=["id"], segment_rows=64)
start = writer.accepted_rows
print(start, flush=True)
for first in range(start, stop, 10):
    ids = numpy.arange(first, min(first + 10, stop))
    vectors = (ids[:, None] * 1000.0 + numpy.arange(8)).astype("float32")
    writer.append({"id": ids, "text": [f"row {row}" for row in ids]}, {"embed": vectors}, ids + 7)
if mode != "x":
    writer.flush()
    print(writer.accepted_rows, flush=True)
    sys.stdin.read()
"""


def _run_and_kill(path: Path, mode: str, stop: int) -> tuple[int, int]:
    """Write rows up to `stop` in another process, kill it, and return its first row and the rows accepted."""
    with subprocess.Popen(
        [sys.executable, "-c", RUN, str(path), mode, str(stop)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        start, accepted = (int(process.stdout.readline()) for _ in range(2))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    return start, accepted


def test_a_killed_run_goes_on_at_exactly_the_next_row(path: Path) -> None:
    """Accepted rows survive SIGKILL, any number of times, and none is there twice."""
    at = 0
    for stop in (30, 150):
        start, accepted = _run_and_kill(path, "a", stop)
        assert start == at
        assert accepted == stop
        at = accepted
    assert zarrow.open(path, partial=True).num_rows == at
    with zarrow.Writer(path, mode="a") as writer:
        assert writer.accepted_rows == at
        _append(writer, at, at + 50)
        writer.finalize()
    _check(path, at + 50)


def test_a_killed_replacement_leaves_the_old_store(path: Path) -> None:
    """A killed replacement changes nothing, and the next one starts from scratch."""
    with zarrow.Writer(path, **OPTIONS) as writer:
        _append(writer, 0, 100)
        writer.finalize()
    _run_and_kill(path, "w", 150)
    _check(path, 100)
    with zarrow.Writer(path, mode="w", **OPTIONS) as writer:
        assert writer.accepted_rows == 0
        _append(writer, 0, 70)
        writer.finalize()
    _check(path, 70)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("exists", [False, True])
def test_a_writer_without_a_batch_leaves_nothing(path: Path, exists: bool) -> None:
    """A store that never began leaves what was at its path, so that the next try finds nothing in its way."""
    if exists:
        path.mkdir()
    with pytest.raises(InvalidInputError, match="typo"), zarrow.Writer(path, keys=["typo"]) as writer:
        writer.append({"id": [1]}, {"e": np.ones((1, 2), np.float32)})
    assert (list(path.iterdir()) if exists else path.exists()) == ([] if exists else False)


@pytest.mark.parametrize("mode", ["x", "w", "a"])
def test_what_a_writer_has_begun_can_be_discarded(path: Path, mode: str) -> None:
    """Discarding removes what the writer began, not a store that was there before."""
    batch = {"id": [1]}, {"e": np.ones((1, 2), np.float32)}
    if mode != "x":
        with zarrow.Writer(path) as writer:
            writer.append(*batch)
            writer.finalize()
    writer = zarrow.Writer(path, mode=mode)
    writer.append(*batch)
    with pytest.raises(InvalidInputError, match="stays") if mode == "a" else contextlib.nullcontext():
        writer.discard()
    writer.discard()
    assert [one.name for one in path.parent.iterdir()] == ([] if mode == "x" else [path.name])
    if mode != "x":
        assert zarrow.open(path, partial=True).num_rows == (2 if mode == "a" else 1)


def test_a_run_killed_before_its_first_batch_left_nothing(path: Path) -> None:
    """A writer killed before its first batch does not block others, in any mode."""
    with _holder(path, "alone") as process:
        process.kill()
        process.wait()
    with zarrow.Writer(path, **OPTIONS) as writer:
        _append(writer, 0, 10)
        writer.finalize()
    _check(path, 10)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_lost_writer_lets_go(path: Path) -> None:
    """A writer that nothing refers to loses no row, releases its store and ends its threads."""
    writer = zarrow.Writer(path, **OPTIONS)
    _append(writer, 0, 100)
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("zarrow-appender")]
    held = [writer]
    del writer
    with pytest.warns(ResourceWarning, match=r"run\.zarrow: a Writer was lost without close"):
        held.clear()
    with zarrow.Writer(path, mode="a") as writer:
        assert writer.accepted_rows == 100
        assert writer.durable_rows == 100
        writer.finalize()
    _check(path, 100)
    for thread in ours:
        thread.join(10)
        assert not thread.is_alive()


def test_a_writer_lost_in_its_own_thread_or_in_a_forked_child(path: Path) -> None:
    """The collector may run on any thread; a forked child's copy of a lost writer touches nothing."""
    writer = zarrow.Writer(path, **OPTIONS)
    _append(writer, 0, 70)
    writer.flush()
    held, appender = [writer], writer._appender
    del writer
    child = multiprocessing.get_context("fork").Process(target=held.clear)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert held[0].accepted_rows == 70
    with pytest.warns(ResourceWarning, match="was lost"):
        appender.call(held.clear)
    appender.join()
    with zarrow.Writer(path, mode="a") as writer:
        assert writer.accepted_rows == 70


def test_a_writer_lost_at_the_very_end(path: Path) -> None:
    """What a writer has queued when it is lost is written before the interpreter ends."""
    lost = RUN + "del writer, ids, vectors"
    subprocess.run([sys.executable, "-c", lost, str(path), "x", "2000"], check=True)
    with zarrow.Writer(path, mode="a") as writer:
        assert writer.accepted_rows == 2000


def test_who_holds_the_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message about the lock says whether this process, another one, or one unknown holds it."""
    monkeypatch.setattr("zarrow._write.directory.LOCK_TIMEOUT_S", 0.1)
    with (
        zarrow.Writer(path, **OPTIONS),
        pytest.raises(StoreLockedError, match=r"a Writer of this process has it open: close\(\) that one"),
    ):
        zarrow.Writer(path, mode="a")
    with _holder(path, "shared") as first, _holder(path, "shared") as second:
        with pytest.raises(StoreLockedError, match=rf"process {first.pid} on .* is writing this store"):
            zarrow.Writer(path, mode="a")
        first.kill()
        first.wait()
        with pytest.raises(
            StoreLockedError, match=rf"the one that opened it, process {first.pid} .* has ended"
        ):
            zarrow.Writer(path, mode="a")
        second.kill()


@pytest.mark.parametrize("step", [0, -(10**9)])
def test_a_clock_that_stands_still_or_runs_backwards(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Rows keep their order, and open segments names of their own, whatever the clock says."""
    now = itertools.count(1_800_000_000_000_000_000, step)
    monkeypatch.setattr("time.time_ns", lambda: next(now))
    for start in (0, 100, 200):  # sessions, each of several segments
        with zarrow.Writer(path, mode="a", **OPTIONS) as writer:
            _append(writer, start, start + 100)
            writer.flush()
            assert zarrow.open(path, partial=True).table()["id"].to_pylist() == list(range(start + 100))
            if start == 200:
                writer.finalize()
    _check(path, 300)
    assert zarrow.verify(path).ok


def test_a_forgotten_writer_is_closed_at_exit(path: Path) -> None:
    """A program that ends without closing its writer loses no queued rows."""
    subprocess.run([sys.executable, "-c", RUN, str(path), "x", "200"], check=True)
    with zarrow.Writer(path, mode="a") as writer:
        assert writer.accepted_rows == 200
        writer.finalize()
    _check(path, 200)


def _wait_for(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.mark.parametrize("mode", ["x", "w"])
def test_one_of_two_that_begin_a_store_at_once_wins_whole(path: Path, mode: Any) -> None:
    """A writer that waited for another one to make the store is refused, or replaces it."""

    def second() -> None:
        with zarrow.Writer(path, mode=mode, **OPTIONS) as writer:
            _append(writer, 100, 120)
            writer.finalize()

    with ThreadPoolExecutor(1) as thread, zarrow.Writer(path, mode=mode, **OPTIONS) as writer:
        done = thread.submit(second)
        time.sleep(0.2)
        _append(writer, 0, 70)
        writer.finalize()
        assert isinstance(done.exception(timeout=60), StoreExistsError if mode == "x" else type(None))
    assert zarrow.open(path).table(["id"])["id"].to_pylist() == [
        *(range(70) if mode == "x" else range(100, 120))
    ]
    assert os.listdir(path.parent) == [path.name]


def test_a_manifest_that_is_older_than_the_records_does_not_count(path: Path) -> None:
    """Rows behind an old manifest that was put back are seen, and the store can be completed again."""
    with zarrow.Writer(path, **OPTIONS) as writer:
        _append(writer, 0, 2 * SEGMENT_ROWS)
        writer.finalize()
    old = (path / "manifest.json").read_bytes()
    with zarrow.Writer(path, mode="a") as writer:
        _append(writer, 2 * SEGMENT_ROWS, 3 * SEGMENT_ROWS)
        writer.finalize()
    (path / "manifest.json").write_bytes(old)
    with pytest.raises(IncompleteStoreError, match="192 rows"):
        zarrow.open(path)
    assert not zarrow.verify(path).ok
    zarrow.repair(path, finalize=True)
    assert zarrow.open(path).num_rows == 3 * SEGMENT_ROWS


def test_files_of_the_user_are_in_place_whenever_a_replacement_dies(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notes and folders in a store's directory are there right after the exchange, links as links."""

    class Dies(files.Calls):
        def exchange(self, one: str, other: str) -> bool:
            assert super().exchange(one, other)
            raise KeyboardInterrupt

    for mode in ("x", "w"):
        writer = zarrow.Writer(path, mode=mode, **OPTIONS)  # type: ignore[arg-type]
        _append(writer, 0, 10)
        if mode == "x":
            writer.finalize()
            (path / "quarantine/stray-0").mkdir(parents=True)
            (path / "quarantine/stray-0/file").write_text("only copy")
            (path / "notes").symlink_to("nowhere")
        else:
            monkeypatch.setattr(files, "calls", Dies())
            with pytest.raises(KeyboardInterrupt):
                writer.finalize()
    monkeypatch.undo()
    assert (path / "quarantine/stray-0/file").read_text() == "only copy"
    assert os.readlink(path / "notes") == "nowhere"
    assert zarrow.open(path).complete


def test_a_file_system_without_hard_links(path: Path, calls: Faulty) -> None:
    """Where files cannot have two names, a writer says so, and leaves nothing."""
    calls.broken["link"] = errno.EPERM
    writer = zarrow.Writer(path)
    with pytest.raises(WriteFailedError, match=r"hard links.*are not possible here: write to another file"):
        writer.append({"id": [1]})
    writer.close()
    assert not path.exists()


@pytest.mark.parametrize("full", [4, 64])
def test_more_open_segments_than_a_claim_can_name_are_packed_in_steps(tmp_path, monkeypatch, full):
    """Rows of any number of writers that ended early become dense segments."""
    path = tmp_path / "s.zarrow"
    with contextlib.ExitStack() as stack:
        for number in range(11):
            writer = zarrow.Writer(path, mode="a", shared=True, segment_rows=full)
            stack.callback(writer.close)
            writer.append({"id": [number] * (1 + number % 3)})
            writer.flush()
    monkeypatch.setattr(recovery, "MAX_PIECES", 3)
    with zarrow.Writer(path, mode="a") as writer:
        writer.finalize()
    assert zarrow.verify(path, "full").ok
    ids = zarrow.open(path).table(["id"])["id"].to_pylist()
    assert sorted(ids) == sorted(number for number in range(11) for _ in range(1 + number % 3))


def test_too_many_open_segments_for_one_record_are_refused(tmp_path, monkeypatch):
    """Rows of more writers than a record can name are not packed into a segment that no reader would take."""
    path = tmp_path / "s.zarrow"
    with contextlib.ExitStack() as stack:
        for number in range(9):
            writer = zarrow.Writer(path, mode="a", shared=True, segment_rows=64)
            stack.callback(writer.close)
            writer.append({"id": [number]})
            writer.flush()
    monkeypatch.setattr(publishing, "MAX_CLAIM_BYTES", 500)
    said = "of rows from 9 open segments does not fit"
    with (
        contextlib.closing(zarrow.Writer(path, mode="a")) as writer,
        pytest.raises(InvalidInputError, match=said),
    ):
        writer.finalize()
    assert len(zarrow.open(path, partial=True)) == 9
    monkeypatch.undo()
    with zarrow.Writer(path, mode="a") as writer:
        writer.finalize()
    assert len(zarrow.open(path)) == 9
