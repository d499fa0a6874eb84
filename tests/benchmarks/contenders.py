"""Contenders — the libraries that `writers.py` compares, each used as its own documentation recommends.

A contender writes all batches, times each call that hands one over with the clock, and returns a function
that reads the rows back and compares them.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["CONTENDERS", "PACKAGES", "SURVIVES", "Clock", "Data"]

SURVIVES = {
    "raw": "whole rows; synced at the end",
    "memmap": "rows, but not how many; synced at the end",
    "zarrow": "every accepted row; every full segment is synced",
    "zarrow-copy": "as zarrow",
    "zarrow-blosc": "as zarrow",
    "lance": "nothing before the end; never synced",
    "lance-wal": "nothing before the end; never synced",
    "lance-wal-durable": "every accepted row, through a MemWAL scanner; each batch is synced",
    "h5py": "possibly a readable file; never synced",
    "tensorstore": "chunks, but not which ones; each is synced",
    "zarr-append": "rows and silent fill values; never synced",
    "zarr-aligned": "rows, but not how many; never synced",
    "everyquery": "nothing before the end; never synced",
    "lance-append": "every 64 batches; never synced",
    "icechunk": "every 64 batches; never synced",
    "arrow-ipc": "whole batches, by reading until an error; never synced",
    "zarrow-2": "as zarrow",
    "zarrow-4": "as zarrow",
    "raw-thread": "whole rows; synced at the end",
    "blosc-alone": "nothing is written",
    "memcpy": "nothing is written",
    "nothing": "nothing is written",
}
"""What is left after a SIGKILL, and what is synced (according to strace) without ``--durable``."""

PACKAGES = {
    "lance": "lance",
    "lance-append": "lance",
    "lance-wal": "lance",
    "lance-wal-durable": "lance",
    "h5py": "h5py",
    "tensorstore": "tensorstore",
    "zarr-append": "zarr",
    "zarr-aligned": "zarr",
    "icechunk": "icechunk",
}
"""The package whose version a contender's figures depend on."""


class Data:
    """Batches of identifiers and of vectors; the vectors are drawn before the clock starts."""

    def __init__(self, rows: int, width: int, batch_rows: int, kind: str, step_ms: float = 0) -> None:
        self.rows, self.width, self.batch_rows, self.step_s = rows, width, batch_rows, step_ms / 1e3
        self.kind = kind
        rng = np.random.default_rng(0)
        pool = rng.standard_normal((16, batch_rows, width)).astype(np.float32)
        if kind == "bf16":
            pool = (pool.view(np.uint32) & 0xFFFF0000).view(np.float32)
        self.dtype = np.dtype(np.float16 if kind == "float16" else np.float32)
        self._pool = pool.astype(self.dtype)

    def vectors(self, start: int, stop: int) -> np.ndarray:
        return self._pool[start // self.batch_rows % len(self._pool)][: stop - start]

    def batches(
        self, begin: int = 0, end: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for start in range(begin, self.rows if end is None else end, self.batch_rows):
            stop = min(self.rows, start + self.batch_rows)
            ids = np.arange(start, stop)
            if self.step_s:  # a model's step on a device, for which this thread waits
                time.sleep(self.step_s)
            yield ids, (ids % 997 / 997).astype(np.float32), self.vectors(start, stop)

    def check(self, read: Callable[[int, int], np.ndarray]) -> None:
        """Compare all rows with the expected ones, batch by batch, in order."""
        for start in range(0, self.rows, self.batch_rows):
            stop = min(self.rows, start + self.batch_rows)
            np.testing.assert_array_equal(read(start, stop), self.vectors(start, stop))


def slices(array: Any) -> Callable[[int, int], np.ndarray]:
    return lambda start, stop: array[start:stop]


class Clock:
    """Times the calls that hand over a batch."""

    def __init__(self) -> None:
        self.blocked: list[float] = []
        self.others_cpu_s: float | None = None  # of other processes that share the work, if any
        self.started = time.perf_counter()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.blocked.append(time.perf_counter() - start)


def write_raw(path: Path, data: Data, clock: Clock) -> Callable[[], None]:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    for _, _, vectors in data.batches():
        with clock():
            os.write(fd, vectors)
    os.fdatasync(fd)
    os.close(fd)
    shape = (data.rows, data.width)
    return lambda: data.check(slices(np.memmap(path, data.dtype, "r", shape=shape)))


def write_memmap(path: Path, data: Data, clock: Clock) -> Callable[[], None]:
    mapped = np.memmap(path, data.dtype, "w+", shape=(data.rows, data.width))
    start = 0
    for _, _, vectors in data.batches():
        with clock():
            mapped[start : start + len(vectors)] = vectors
        start += len(vectors)
    mapped.flush()
    return lambda: data.check(slices(np.memmap(path, data.dtype, "r", shape=(data.rows, data.width))))


def write_zarrow(
    path: Path, data: Data, clock: Clock, *, copy: bool = False, codecs: str | None = None
) -> Callable[[], None]:
    import zarrow

    with zarrow.Writer(path, keys=["id"], codecs=codecs) as writer:
        for ids, prob, vectors in data.batches():
            columns, arrays = {"id": ids, "prob": prob}, {"query_embed": vectors}
            with clock():
                writer.append(columns, arrays, ids, copy=copy)
        writer.finalize()
    return lambda: data.check(slices(zarrow.open(path)["query_embed"]))


def lists(data: Data) -> Any:
    """Return the Arrow schema of rows with their vectors as fixed-size lists."""
    import pyarrow as pa

    kind = pa.list_(pa.from_numpy_dtype(data.dtype), data.width)
    return pa.schema([("id", pa.int64()), ("prob", pa.float32()), ("query_embed", kind)])


def record_batch(ids: np.ndarray, prob: np.ndarray, vectors: np.ndarray, schema: Any) -> Any:
    import pyarrow as pa

    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    return pa.record_batch([pa.array(ids), pa.array(prob), flat], schema=schema)


def write_lance(
    path: Path, data: Data, clock: Clock, *, append_every: int | None = None
) -> Callable[[], None]:
    """Write one stream, or append every few batches: appended rows survive a kill."""
    import lance

    schema = lists(data)

    def batches() -> Iterator[Any]:
        for ids, prob, vectors in data.batches():
            start = time.perf_counter()
            yield record_batch(ids, prob, vectors, schema)
            clock.blocked.append(time.perf_counter() - start)

    if append_every is None:
        lance.write_dataset(batches(), path, schema=schema)
    else:
        rest = batches()
        while some := list(itertools.islice(rest, append_every)):
            with clock():
                lance.write_dataset(
                    iter(some), path, schema=schema, mode="append" if path.exists() else "create"
                )

    def check() -> None:
        dataset = lance.dataset(path)

        def read(start: int, stop: int) -> np.ndarray:
            table = dataset.take(list(range(start, stop)), columns=["query_embed"])
            flat = table["query_embed"].combine_chunks().flatten()
            return flat.to_numpy(zero_copy_only=False).reshape(-1, data.width)

        data.check(read)

    return check


def write_lance_wal(path: Path, data: Data, clock: Clock, *, durable: bool) -> Callable[[], None]:
    """Write to Lance's MemWAL; durable, each call waits for the log's next flush, 100 ms apart by default."""
    import lance
    import pyarrow as pa

    key = pa.field(
        "id", pa.int64(), False, {"lance-schema:unenforced-primary-key": "true"}
    )  # for its scanner
    schema, shard = lists(data).set(0, key), str(uuid.uuid4())
    dataset = lance.write_dataset(pa.table({name: [] for name in schema.names}, schema), path)
    dataset.initialize_mem_wal()
    with dataset.mem_wal_writer(shard, durable_write=durable) as writer:
        for ids, prob, vectors in data.batches():
            with clock():
                writer.put(pa.Table.from_batches([record_batch(ids, prob, vectors, schema)]))

    def check() -> None:
        with lance.dataset(path).mem_wal_writer(shard) as writer:
            table = writer.lsm_scanner().project(["id", "query_embed"]).to_table()
        order = np.argsort(table["id"].to_numpy())
        assert len(order) == data.rows
        flat = table["query_embed"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        data.check(lambda start, stop: flat.reshape(-1, data.width)[order[start:stop]])

    return check


def write_zarrow_shared(path: Path, data: Data, clock: Clock, *, writers: int) -> Callable[[], None]:
    """Let several processes each write a share of one store; the clock starts when all are ready."""
    import zarrow

    settings = (data.rows, data.width, data.batch_rows, data.kind, 1e3 * data.step_s)
    batches = -(-data.rows // data.batch_rows)
    bounds = [data.batch_rows * (batches * number // writers) for number in range(writers + 1)]
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(writers + 1, timeout=120)
    with ProcessPoolExecutor(writers, context, initializer=wait_for, initargs=(ready,)) as pool:
        shares = [pool.submit(share, path, settings, begin, end) for begin, end in itertools.pairwise(bounds)]
        ready.wait()
        clock.started = time.perf_counter()
        figures = [one.result() for one in shares]
        with zarrow.Writer(path, mode="a") as writer:
            writer.finalize()
    clock.blocked += [blocked for one, _ in figures for blocked in one]
    clock.others_cpu_s = sum(cpu_s for _, cpu_s in figures)

    def check() -> None:
        store = zarrow.open(path)
        rows = np.argsort(store.table(["id"])["id"].to_numpy())
        assert len(rows) == data.rows
        data.check(lambda start, stop: store["query_embed"][rows[start:stop]])

    return check


def wait_for(barrier: Any) -> None:
    global ready
    ready = barrier


def share(path: Path, settings: Any, begin: int, end: int) -> tuple[list[float], float]:
    """Write one process's share, and return the duration of each call and the CPU seconds."""
    import zarrow

    data, clock = Data(*settings), Clock()
    warm = Data(4 * data.batch_rows, data.width, data.batch_rows, data.kind)
    write_zarrow(path.with_name(f"warm-{os.getpid()}"), warm, Clock())
    with zarrow.Writer(path, mode="a", keys=["id"], shared=True) as writer:
        ready.wait()
        cpu_s = time.process_time()
        for ids, prob, vectors in data.batches(begin, end):
            columns, arrays = {"id": ids, "prob": prob}, {"query_embed": vectors}
            with clock():
                writer.append(columns, arrays, ids, copy=False)
    return clock.blocked, time.process_time() - cpu_s


def write_memcpy(path: Path, data: Data, clock: Clock) -> Callable[[], None]:
    """Copy every batch and keep none: the limit for any writer that must not keep the caller's memory."""
    for _, _, vectors in data.batches():
        with clock():
            vectors.copy()
    return lambda: None


def write_blosc_alone(path: Path, data: Data, clock: Clock) -> Callable[[], None]:
    """Compress what zarrow-blosc does, on all cores, and keep nothing: the limit that the codec sets."""
    from concurrent.futures import ThreadPoolExecutor

    from numcodecs import Blosc, blosc

    blosc.use_threads = False
    codec = Blosc("lz4", 5, Blosc.BITSHUFFLE)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting: deque[Any] = deque()
        for _, _, vectors in data.batches():
            with clock():
                if len(waiting) >= 16:
                    waiting.popleft().result()
                waiting.append(pool.submit(codec.encode, vectors))
        for one in waiting:
            one.result()
    return lambda: None


def write_raw_in_thread(path: Path, data: Data, clock: Clock) -> Callable[[], None]:
    """Write as raw does, from a second thread: the least that a writer costs which does not block."""
    from concurrent.futures import ThreadPoolExecutor

    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Any] = deque()
        for _, _, vectors in data.batches():
            with clock():
                if len(waiting) >= 16:
                    waiting.popleft().result()
                waiting.append(pool.submit(os.write, fd, vectors))
        for one in waiting:
            one.result()
    os.fdatasync(fd)
    os.close(fd)
    shape = (data.rows, data.width)
    return lambda: data.check(slices(np.memmap(path, data.dtype, "r", shape=shape)))


def write_nothing(path: Path, data: Data, clock: Clock) -> Callable[[], None]:
    for _ in data.batches():
        with clock():
            pass
    return lambda: None


def write_h5py(path: Path, data: Data, clock: Clock) -> Callable[[], None]:
    import h5py

    with h5py.File(path, "w") as file:
        array = file.create_dataset(
            "e", (0, data.width), data.dtype, maxshape=(None, data.width), chunks=(256, data.width)
        )
        ids_ = file.create_dataset("id", (0,), "i8", maxshape=(None,), chunks=(65536,))
        start = 0
        for ids, _, vectors in data.batches():
            with clock():
                stop = start + len(ids)
                array.resize(stop, 0)
                array[start:stop] = vectors
                ids_.resize(stop, 0)
                ids_[start:stop] = ids
            start = stop
    return lambda: data.check(slices(h5py.File(path)["e"]))


def write_tensorstore(path: Path, data: Data, clock: Clock) -> Callable[[], None]:
    import tensorstore as ts

    array = ts.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}},
        create=True,
        dtype=ts.dtype(data.dtype.name),
        shape=(data.rows, data.width),
        chunk_layout=ts.ChunkLayout(chunk_shape=(max(data.batch_rows, 256), data.width)),
    ).result()
    start, pending = 0, []
    for _, _, vectors in data.batches():
        with clock():
            pending.append(array[start : start + len(vectors)].write(vectors))
            if len(pending) > 40:
                pending.pop(0).result()
        start += len(vectors)
    for future in pending:
        future.result()
    return lambda: data.check(lambda start, stop: array[start:stop].read().result())


def write_zarr_append(path: Path, data: Data, clock: Clock) -> Callable[[], None]:
    import zarr

    array = zarr.create_array(
        path, shape=(0, data.width), chunks=(256, data.width), dtype=data.dtype, compressors=None
    )
    for _, _, vectors in data.batches():
        with clock():
            array.append(vectors)
    return lambda: data.check(slices(array))


def write_zarr_aligned(path: Path, data: Data, clock: Clock) -> Callable[[], None]:
    """Write whole chunks at a time into an array created with its final length."""
    import zarr

    array = zarr.create_array(
        path,
        shape=(data.rows, data.width),
        chunks=(data.batch_rows, data.width),
        dtype=data.dtype,
        compressors=None,
    )
    start = 0
    for _, _, vectors in data.batches():
        with clock():
            array[start : start + len(vectors)] = vectors
        start += len(vectors)
    return lambda: data.check(slices(array))


def write_icechunk(path: Path, data: Data, clock: Clock) -> Callable[[], None]:
    """Append to a Zarr array in a repository, with a commit every 64 batches."""
    import icechunk
    import zarr

    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(path)))
    session = repository.writable_session("main")
    chunks = (max(data.batch_rows, 256), data.width)
    array = zarr.create_array(
        session.store, name="e", shape=(0, data.width), chunks=chunks, dtype=data.dtype, compressors=None
    )
    for number, (_, _, vectors) in enumerate(data.batches(), start=1):
        with clock():
            array.append(vectors)
            if number % 64 == 0:
                session.commit(f"{number} batches")
                session = repository.writable_session("main")
                array = zarr.open_array(session.store, path="e")
    session.commit("the end")
    array = zarr.open_array(repository.readonly_session("main").store, path="e", mode="r")
    return lambda: data.check(slices(array))


def write_arrow_ipc(path: Path, data: Data, clock: Clock) -> Callable[[], None]:
    """Write an Arrow IPC stream, one record batch per batch."""
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, lists(data)) as writer:
        for ids, prob, vectors in data.batches():
            with clock():
                writer.write_batch(record_batch(ids, prob, vectors, lists(data)))

    def check() -> None:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:

            def read(start: int, stop: int) -> np.ndarray:
                batch = reader.read_next_batch()
                return batch["query_embed"].flatten().to_numpy(zero_copy_only=False).reshape(-1, data.width)

            data.check(read)

    return check


def write_everyquery(path: Path, data: Data, clock: Clock) -> Callable[[], None]:
    """Write as EveryQuery's writer does: a row group per batch, vectors as lists in a second file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.list_(pa.from_numpy_dtype(data.dtype), data.width)
    narrow = pa.schema([("id", pa.int64()), ("prob", pa.float32())])
    wide = pa.schema([("id", pa.int64()), ("query_embed", kind)])
    path.mkdir()
    with (
        pq.ParquetWriter(path / "predictions.parquet", narrow) as table,
        pq.ParquetWriter(path / "embeddings.parquet", wide) as sibling,
    ):
        for ids, prob, vectors in data.batches():
            with clock():
                table.write_batch(pa.record_batch([pa.array(ids), pa.array(prob)], schema=narrow))
                flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), data.width)
                sibling.write_batch(pa.record_batch([pa.array(ids), flat], schema=wide))

    def check() -> None:
        file = pq.ParquetFile(path / "embeddings.parquet")

        def read(start: int, stop: int) -> np.ndarray:
            group = file.read_row_group(start // data.batch_rows, ["query_embed"])
            flat = group["query_embed"].combine_chunks().flatten()
            return flat.to_numpy(zero_copy_only=False).reshape(-1, data.width)

        data.check(read)

    return check


CONTENDERS: dict[str, Callable[..., Callable[[], None]]] = {
    "raw": write_raw,
    "memmap": write_memmap,
    "zarrow": write_zarrow,
    "zarrow-copy": lambda *args: write_zarrow(*args, copy=True),
    "zarrow-blosc": lambda *args: write_zarrow(*args, codecs="blosc-lz4-bitshuffle"),
    "lance": write_lance,
    "lance-wal": lambda *args: write_lance_wal(*args, durable=False),
    "lance-wal-durable": lambda *args: write_lance_wal(*args, durable=True),
    "h5py": write_h5py,
    "tensorstore": write_tensorstore,
    "zarr-append": write_zarr_append,
    "zarr-aligned": write_zarr_aligned,
    "everyquery": write_everyquery,
    "lance-append": lambda *args: write_lance(*args, append_every=64),
    "icechunk": write_icechunk,
    "arrow-ipc": write_arrow_ipc,
    "zarrow-2": lambda *args: write_zarrow_shared(*args, writers=2),
    "zarrow-4": lambda *args: write_zarrow_shared(*args, writers=4),
    "raw-thread": write_raw_in_thread,
    "blosc-alone": write_blosc_alone,
    "memcpy": write_memcpy,
    "nothing": write_nothing,
}
