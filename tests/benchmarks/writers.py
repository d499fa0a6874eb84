"""How fast, how smoothly and in how much memory are rows written, beside what users could pick instead?

Run it from the repository::

    python tests/benchmarks/writers.py                     # 400,000 x 768 float32 in batches of 256
    python tests/benchmarks/writers.py --memory            # peak memory at 100 k, 400 k and 1.6 M rows
    python tests/benchmarks/writers.py --only raw zarrow lance --repeat 7 --json out.json

Every contender runs in a process of its own, the contenders take turns, and the table shows medians; what
matters is the ratio to ``raw``: the same bytes by ``write`` and one final ``fdatasync``. A contender's own
process is warmed up by a short run. Each output is read back and compared, so nobody wins by losing rows.

Blocked time is what the caller waits in the call that hands a batch over. Memory is private and anonymous
(``RssAnon``), without the page cache, above what it was before the first row.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SURVIVES = {
    "raw": "whole rows; power cut: nothing before the end",
    "memmap": "rows, but not how many; power cut: nothing before the end",
    "zarrow": "every accepted row; power cut: every full segment",
    "zarrow-copy": "as zarrow",
    "zarrow-blosc": "as zarrow",
    "lance": "nothing before the end",
    "h5py": "perhaps a file that opens",
    "tensorstore": "chunks, but not which",
    "zarr-append": "rows and silent fill values",
    "parquet": "nothing before the end",
}


class Data:
    """Batches of vectors and identifiers, made before the clock runs; every batch is a fresh buffer."""

    def __init__(self, rows: int, width: int, batch_rows: int, kind: str) -> None:
        self.rows, self.width, self.batch_rows = rows, width, batch_rows
        rng = np.random.default_rng(0)
        pool = rng.standard_normal((16, batch_rows, width)).astype(np.float32)
        if kind == "bf16":
            pool = (pool.view(np.uint32) & 0xFFFF0000).view(np.float32)
        self.dtype = np.dtype(np.float16 if kind == "float16" else np.float32)
        self._pool = pool.astype(self.dtype)

    def vectors(self, start: int, stop: int) -> np.ndarray:
        return self._pool[start // self.batch_rows % len(self._pool)][: stop - start]

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for start in range(0, self.rows, self.batch_rows):
            stop = min(self.rows, start + self.batch_rows)
            ids = np.arange(start, stop)
            yield ids, (ids % 997 / 997).astype(np.float32), self.vectors(start, stop)

    def check(self, read: Callable[[int, int], np.ndarray]) -> None:
        step = self.batch_rows
        for start in {0, self.rows // 2 // step * step, (self.rows - 1) // step * step}:
            stop = min(self.rows, start + step)
            np.testing.assert_array_equal(read(start, stop), self.vectors(start, stop))


class Clock:
    """Times the calls that hand a batch over."""

    def __init__(self) -> None:
        self.blocked: list[float] = []

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
    mapped = lambda: np.memmap(path, data.dtype, "r", shape=(data.rows, data.width))  # noqa: E731
    return lambda: data.check(lambda start, stop: mapped()[start:stop])


def write_memmap(path: Path, data: Data, clock: Clock) -> Callable[[], None]:
    mapped = np.memmap(path, data.dtype, "w+", shape=(data.rows, data.width))
    start = 0
    for _, _, vectors in data.batches():
        with clock():
            mapped[start : start + len(vectors)] = vectors
        start += len(vectors)
    mapped.flush()
    return lambda: data.check(lambda start, stop: mapped[start:stop])


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
    return lambda: data.check(lambda start, stop: zarrow.open(path)["query_embed"][start:stop])


def write_lance(path: Path, data: Data, clock: Clock) -> Callable[[], None]:
    import lance
    import pyarrow as pa

    kind = pa.list_(pa.from_numpy_dtype(data.dtype), data.width)
    schema = pa.schema([("id", pa.int64()), ("prob", pa.float32()), ("query_embed", kind)])

    def batches() -> Iterator[pa.RecordBatch]:
        for ids, prob, vectors in data.batches():
            start = time.perf_counter()
            flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), data.width)
            yield pa.record_batch([pa.array(ids), pa.array(prob), flat], schema=schema)
            clock.blocked.append(time.perf_counter() - start)

    lance.write_dataset(batches(), path, schema=schema)

    def read(start: int, stop: int) -> np.ndarray:
        table = lance.dataset(path).take(list(range(start, stop)), columns=["query_embed"])
        flat = table["query_embed"].combine_chunks().flatten()
        return flat.to_numpy(zero_copy_only=False).reshape(-1, data.width)

    return lambda: data.check(read)


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
        file.flush()
    os.sync()
    return lambda: data.check(lambda start, stop: h5py.File(path)["e"][start:stop])


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
    return lambda: data.check(lambda start, stop: array[start:stop])


def write_parquet(path: Path, data: Data, clock: Clock) -> Callable[[], None]:
    """Write as EveryQuery 0.3.9 does: one row group per batch, vectors as fixed-size lists."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.list_(pa.from_numpy_dtype(data.dtype), data.width)
    schema = pa.schema([("id", pa.int64()), ("prob", pa.float32()), ("query_embed", kind)])
    with pq.ParquetWriter(path, schema) as writer:
        for ids, prob, vectors in data.batches():
            with clock():
                flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), data.width)
                writer.write_batch(pa.record_batch([pa.array(ids), pa.array(prob), flat], schema=schema))

    def read(start: int, stop: int) -> np.ndarray:
        group = pq.ParquetFile(path).read_row_group(start // data.batch_rows, ["query_embed"])
        flat = group["query_embed"].combine_chunks().flatten()
        return flat.to_numpy(zero_copy_only=False).reshape(-1, data.width)

    return lambda: data.check(read)


CONTENDERS: dict[str, Callable[..., Callable[[], None]]] = {
    "raw": write_raw,
    "memmap": write_memmap,
    "zarrow": write_zarrow,
    "zarrow-copy": lambda *args: write_zarrow(*args, copy=True),
    "zarrow-blosc": lambda *args: write_zarrow(*args, codecs="blosc-lz4-bitshuffle"),
    "lance": write_lance,
    "h5py": write_h5py,
    "tensorstore": write_tensorstore,
    "zarr-append": write_zarr_append,
    "parquet": write_parquet,
}


def private_bytes() -> int:
    """Return the private anonymous memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def touch_memory(size_bytes: int) -> None:
    """Have the page cache's memory at hand: a virtual machine gives freed memory back to its host.

    Touching that anew takes longer than the writing, and would be counted for whoever comes last.
    """
    np.ones(size_bytes, np.uint8)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run one contender in this process and return its figures."""
    write = CONTENDERS[options.contender]
    warm = Data(4 * options.batch_rows, options.width, options.batch_rows, options.kind)
    write(folder / "warm", warm, Clock())()
    data = Data(options.rows, options.width, options.batch_rows, options.kind)
    clock, peak, done = Clock(), [0], threading.Event()
    touch_memory(2 * data.rows * data.width * data.dtype.itemsize)
    before = private_bytes()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], private_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    used = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    check = write(folder / "store", data, clock)
    wall = time.perf_counter() - start
    now = resource.getrusage(resource.RUSAGE_SELF)
    done.set()
    watcher.join()
    check()
    blocked = sorted(clock.blocked)
    files = [file for file in (folder / "store").rglob("*") if file.is_file()]
    files = files or [folder / "store"]
    return {
        "wall_s": wall,
        "cpu_s": now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime,
        "memory_mb": peak[0] / 1e6,
        "p50_ms": blocked[len(blocked) // 2] * 1e3,
        "p99_ms": blocked[int(len(blocked) * 0.99)] * 1e3,
        "disk_ratio": sum(file.stat().st_blocks * 512 for file in files)
        / (data.rows * data.width * data.dtype.itemsize),
        "files": len(files),
    }


def run(options: argparse.Namespace, contender: str, rows: int) -> dict[str, Any]:
    """Run one contender in a process of its own."""
    folder = Path(options.folder) / f"zarrow-benchmark-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, __file__, "--contender", contender, "--rows", str(rows)]
    command += ["--width", str(options.width), "--batch-rows", str(options.batch_rows)]
    command += ["--kind", options.kind, "--folder", str(folder)]
    try:
        os.sync()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{contender} failed:\n{done.stderr}")
        return dict(json.loads(done.stdout))
    finally:
        shutil.rmtree(folder)


def medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in runs) for name in runs[0]}


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Let the contenders take turns and print a table."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.only}
    for turn in range(options.repeat):
        for name in runs:
            runs[name].append(run(options, name, options.rows))
        print(f"turn {turn + 1} of {options.repeat}", file=sys.stderr)
    results = {name: medians(all_runs) for name, all_runs in runs.items()}
    pairs = zip(*(runs[name] for name in runs), strict=True) if "raw" in runs else ()
    turns = [dict(zip(runs, turn, strict=True)) for turn in pairs]
    for name, result in results.items():
        ratios = [turn[name]["wall_s"] / turn["raw"]["wall_s"] for turn in turns]
        result["wall_ratio"] = statistics.median(ratios) if ratios else float("nan")
        cpu = [turn[name]["cpu_s"] / turn["raw"]["cpu_s"] for turn in turns]
        result["cpu_ratio"] = statistics.median(cpu) if cpu else float("nan")
    size = options.rows * options.width * Data(1, 1, 1, options.kind).dtype.itemsize
    print(f"{options.rows:,} x {options.width} {options.kind} ({size / 1e9:.2f} GB), batches of ", end="")
    print(f"{options.batch_rows}, medians of {options.repeat} turns, {os.cpu_count()} cores\n")
    head = ("writer", "wall s", "/ raw", "CPU / raw", "p50 ms", "p99 ms", "memory MB", "disk / raw", "files")
    print("| " + " | ".join(head) + " | survives a kill |\n" + "|---" * (len(head) + 1) + "|")
    for name, one in results.items():
        cells = (
            f"{one['wall_s']:.2f}",
            f"{one['wall_ratio']:.2f}",
            f"{one['cpu_ratio']:.2f}",
            f"{one['p50_ms']:.3f}",
            f"{one['p99_ms']:.2f}",
            f"{one['memory_mb']:.1f}",
            f"{one['disk_ratio']:.2f}",
            f"{one['files']:.0f}",
        )
        print(f"| {name} | " + " | ".join(cells) + f" | {SURVIVES[name]} |")
    return results


def growth(options: argparse.Namespace) -> dict[str, Any]:
    """Print how the peak memory of writing depends on the rows."""
    results = {}
    for rows in (100_000, 400_000, 1_600_000):
        runs = [run(options, "zarrow", rows) for _ in range(options.repeat)]
        results[rows] = medians(runs)
        print(f"{rows:>9,} rows: {results[rows]['memory_mb']:6.1f} MB private above start", flush=True)
    return results


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--batch-rows", type=int, default=256)
    parser.add_argument("--kind", choices=("float32", "float16", "bf16"), default="float32")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", default=".", help="on the disk to measure")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(measure(options, Path(options.folder))))
        return
    results = growth(options) if options.memory else compare(options)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
