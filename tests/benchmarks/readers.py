"""Readers — speed of reading rows, compared with the alternatives.

Run it from the repository::

    python3 tests/benchmarks/readers.py                          # 400,000 x 768 float32
    python3 tests/benchmarks/readers.py --rows 50000 --only memmap zarrow lance --repeat 9 --json out.json

Every contender holds the same vectors and the same narrow columns: ``prob``, uniform in 0..1, and the key
``id``, a permutation. In each round every contender does every task, and the table shows medians in
milliseconds. What matters is the ratio to ``memmap``: one raw file of vectors under `numpy.memmap`, with the
column ``prob`` in a separate Parquet file. Tasks:

gather   1,000 random rows, page cache warm
between  the same, each time after other work on 64 MB, which empties the processor's caches
scan     the sum of every block of 8,192 rows, page cache warm
filter   the vectors of the rows with ``prob > 0.99``, page cache warm
cold     1,000 random rows in order, after dropping the files from the page cache
locate   the rows of 1,000 random keys, each contender with its index; relative to the first one that has keys
mean     the mean of all vectors: by numpy over the map, by xarray (``zarrow-reopened``: by dask)
nanmean  the same ignoring NaN, which is xarray's default (``skipna=True``)

Other promises have options of their own:

    python3 tests/benchmarks/readers.py --start     # time to import; to open, gather, filter 10,000 segments
    python3 tests/benchmarks/readers.py --memory    # peak memory of join, scan, locate, index, in two sizes
    python3 tests/benchmarks/readers.py --keys      # index and locate: 400,000 rows, 10 million, four columns

The results are compared, so a contender cannot win by reading the wrong rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from harness import command

import zarrow
from zarrow._format import layout
from zarrow._read import catalog
from zarrow._write import publishing

BLOCK = 8192
TASKS = ["gather", "between", "scan", "filter", "cold", "locate", "mean", "nanmean"]
SLOW = ("parquet", "h5py", "zarr", "zarrs")  # they take seconds per task, so two rounds are enough
THRESHOLD = 0.99
GATHERS = 10


class Data:
    """The vectors, a block at a time, and the narrow columns."""

    def __init__(self, rows: int, width: int) -> None:
        self.rows, self.width = rows, width
        self.prob = np.random.default_rng(1).random(rows).astype(np.float32)
        self.id = np.random.default_rng(3).permutation(rows)
        self._pool = np.random.default_rng(0).standard_normal((BLOCK, width)).astype(np.float32)

    def blocks(self) -> Any:
        for start in range(0, self.rows, BLOCK):
            block = self._pool[: min(BLOCK, self.rows - start)].copy()
            block[:, 0] = np.arange(start, start + len(block))
            yield start, block

    def means(self) -> np.ndarray:
        total = sum(block.sum(0, dtype=np.float64) for _, block in self.blocks())
        return total / self.rows


class Memmap:
    """A raw file of vectors, and a Parquet file of the column."""

    def __init__(self, folder: Path, data: Data) -> None:
        self.table, path = folder / "prob.parquet", folder / "vectors.raw"
        with path.open("wb") as file:
            for _, block in data.blocks():
                file.write(block.tobytes())
        pq.write_table(pa.table({"prob": data.prob}), self.table, row_group_size=32_768)
        self.vectors = np.memmap(path, np.float32, "r").reshape(data.rows, data.width)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return self.vectors[rows]

    def scan(self) -> float:
        return sum(
            self.vectors[start : start + BLOCK].sum() for start in range(0, self.vectors.shape[0], BLOCK)
        )

    def filter(self) -> np.ndarray:
        prob = pq.read_table(self.table, columns=["prob"])["prob"].to_numpy()
        return self.vectors[np.flatnonzero(prob > THRESHOLD)]

    def mean(self) -> np.ndarray:
        return self.vectors.mean(0)

    def nanmean(self) -> np.ndarray:
        return np.nanmean(self.vectors, 0)


class Sidecar:
    """Parquet for the vectors, too: a list per row, in a file of its own."""

    def __init__(self, folder: Path, data: Data) -> None:
        self.table, self.path = folder / "prob.parquet", folder / "vectors.parquet"
        self.width = data.width
        schema = pa.schema({"v": pa.list_(pa.float32(), data.width)})
        with pq.ParquetWriter(self.path, schema, use_dictionary=False, write_statistics=False) as writer:
            for _, block in data.blocks():
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), data.width)
                writer.write_table(pa.table([vectors], schema))
        pq.write_table(pa.table({"prob": data.prob}), self.table, row_group_size=32_768)

    def _blocks(self) -> Any:
        start = 0
        with pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                column = file.read_row_group(group)["v"].chunk(0)
                block = column.flatten().to_numpy().reshape(-1, self.width)
                yield start, block
                start += len(block)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), self.width), np.float32)
        for start, block in self._blocks():
            here = np.flatnonzero((rows >= start) & (rows < start + len(block)))
            found[here] = block[rows[here] - start]
        return found

    def scan(self) -> float:
        return sum(block.sum() for _, block in self._blocks())

    def filter(self) -> np.ndarray:
        prob = pq.read_table(self.table, columns=["prob"])["prob"].to_numpy()
        return self.gather(np.flatnonzero(prob > THRESHOLD))


class Zarrow:
    """This library, with uncompressed vectors."""

    codecs: Any = None

    def __init__(self, folder: Path, data: Data) -> None:
        with zarrow.Writer(folder / "s.zarrow", keys=["id"], codecs=self.codecs) as writer:
            for start, block in data.blocks():
                here = slice(start, start + len(block))
                writer.append({"prob": data.prob[here], "id": data.id[here]}, {"v": block})
            writer.finalize()
        zarrow.build_index(folder / "s.zarrow")
        self.store = zarrow.open(folder / "s.zarrow")

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return self.store["v"][rows]

    def scan(self) -> float:
        vectors = self.store["v"]
        return sum(vectors[start : start + BLOCK].sum() for start in range(0, len(vectors), BLOCK))

    def filter(self) -> np.ndarray:
        ((_, vectors),) = self.store.join(pc.field("prob") > THRESHOLD, [], ["v"], 1_000_000)
        return vectors["v"]

    def locate(self, keys: np.ndarray) -> np.ndarray:
        return self.store.locate(keys)

    def mean(self) -> np.ndarray:
        import xarray as xr

        return xr.open_dataset(self.store.path).v.mean("row", skipna=False).values

    def nanmean(self) -> np.ndarray:
        import xarray as xr

        return xr.open_dataset(self.store.path).v.mean("row").values


class ZarrowReopened(Zarrow):
    """This library, with the store reopened for every filter, so that nothing has been decoded yet."""

    gather: Any = None
    scan: Any = None
    locate: Any = None

    def filter(self) -> np.ndarray:
        self.store = zarrow.open(self.store.path)
        return super().filter()

    def mean(self) -> np.ndarray:
        """Compute with dask, one chunk per segment."""
        import xarray as xr

        return xr.open_dataset(self.store.path, chunks={}).v.mean("row", skipna=False).values

    def nanmean(self) -> np.ndarray:
        import xarray as xr

        return xr.open_dataset(self.store.path, chunks={}).v.mean("row").values


class ZarrowZstd(Zarrow):
    """This library, with compressed chunks."""

    codecs = "zstd"
    mean: Any = None
    nanmean: Any = None


class ZarrPython(Zarrow):
    """zarr-python, reading the store that this library wrote."""

    locate: Any = None  # has no keys
    mean: Any = None
    nanmean: Any = None

    def __init__(self, folder: Path, data: Data) -> None:
        super().__init__(folder, data)
        self.vectors = self.store["v"].zarr()

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return self.vectors.oindex[np.sort(rows)][np.argsort(np.argsort(rows))]

    def scan(self) -> float:
        return sum(
            self.vectors[start : start + BLOCK].sum() for start in range(0, self.vectors.shape[0], BLOCK)
        )

    def filter(self) -> np.ndarray:
        return self.gather(np.flatnonzero(self.store.table(["prob"])["prob"].to_numpy() > THRESHOLD))


class Zarrs(ZarrPython):
    """zarr-python with the codecs of zarrs, reading the store that this library wrote."""

    def __init__(self, folder: Path, data: Data) -> None:
        import zarr

        Zarrow.__init__(self, folder, data)
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            self.vectors = self.store["v"].zarr()


class TensorStore(ZarrPython):
    """TensorStore, reading the store that this library wrote."""

    def __init__(self, folder: Path, data: Data) -> None:
        import tensorstore as ts

        Zarrow.__init__(self, folder, data)
        path = str(folder / "s.zarrow/embeddings.zarr/v")
        self.vectors = ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}).result()

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return self.vectors[rows].read().result()

    def scan(self) -> float:
        rows = self.vectors.shape[0]
        return sum(
            self.vectors[start : min(rows, start + BLOCK)].read().result().sum()
            for start in range(0, rows, BLOCK)
        )


class H5py:
    """HDF5, with chunks of 256 rows."""

    def __init__(self, folder: Path, data: Data) -> None:
        import h5py

        shape = (data.rows, data.width)
        with h5py.File(folder / "v.h5", "w") as file:
            vectors = file.create_dataset("v", shape, "f4", chunks=(256, data.width))
            file["prob"] = data.prob
            for start, block in data.blocks():
                vectors[start : start + len(block)] = block
        self.file = h5py.File(folder / "v.h5")

    def gather(self, rows: np.ndarray) -> np.ndarray:
        unique, inverse = np.unique(rows, return_inverse=True)
        return self.file["v"][unique][inverse]

    def scan(self) -> float:
        vectors = self.file["v"]
        return sum(vectors[start : start + BLOCK].sum() for start in range(0, len(vectors), BLOCK))

    def filter(self) -> np.ndarray:
        return self.gather(np.flatnonzero(self.file["prob"][:] > THRESHOLD))


class Lance:
    """Lance, with vectors and columns in one dataset."""

    def __init__(self, folder: Path, data: Data) -> None:
        import lance

        schema = pa.schema({"prob": pa.float32(), "id": pa.int64(), "v": pa.list_(pa.float32(), data.width)})

        def batches() -> Any:
            for start, block in data.blocks():
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), data.width)
                narrow = [pa.array(column[start : start + len(block)]) for column in (data.prob, data.id)]
                yield pa.record_batch([*narrow, vectors], schema=schema)

        lance.write_dataset(batches(), str(folder / "v.lance"), schema, max_rows_per_file=data.rows)
        self.width = data.width
        self.dataset = lance.dataset(str(folder / "v.lance"))
        self.dataset.create_scalar_index("id", "BTREE")
        self.dataset = lance.dataset(str(folder / "v.lance"))

    def _vectors(self, column: Any) -> np.ndarray:
        chunks = [chunk.flatten().to_numpy().reshape(-1, self.width) for chunk in column.chunks]
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return self._vectors(self.dataset.take(rows, columns=["v"])["v"])

    def scan(self) -> float:
        batches = self.dataset.to_batches(columns=["v"], batch_size=BLOCK)
        return sum(batch["v"].flatten().to_numpy().sum() for batch in batches)

    def filter(self) -> np.ndarray:
        return self._vectors(self.dataset.to_table(columns=["v"], filter=f"prob > {THRESHOLD}")["v"])

    def locate(self, keys: np.ndarray) -> np.ndarray:
        wanted = ",".join(map(str, keys.tolist()))
        found = self.dataset.to_table(columns=["id"], filter=f"id IN ({wanted})", with_row_id=True)
        ids = found["id"].to_numpy()
        order = np.argsort(ids)  # with a single fragment, row ids are row numbers
        return found["_rowid"].to_numpy()[order[np.searchsorted(ids, keys, sorter=order)]]


class DuckDB:
    """DuckDB, with the indexed key and the row in a database file; for keys only."""

    def __init__(self, folder: Path, data: Data) -> None:
        import duckdb

        self.database = duckdb.connect(str(folder / "keys.duckdb"))
        self.database.register("given", pa.table({"id": data.id, "row": np.arange(data.rows)}))
        self.database.execute("CREATE TABLE keys AS FROM given")
        self.database.execute("CREATE UNIQUE INDEX by_id ON keys (id)")

    def locate(self, keys: np.ndarray) -> np.ndarray:
        self.database.register("wanted", pa.table({"id": keys, "place": np.arange(len(keys))}))
        found = self.database.execute(
            "SELECT place, row FROM wanted LEFT JOIN keys USING (id) ORDER BY place"
        )
        return found.fetchnumpy()["row"]


CONTENDERS: dict[str, Callable[[Path, Data], Any]] = {
    "memmap": Memmap,
    "zarrow": Zarrow,
    "zarrow-reopened": ZarrowReopened,
    "zarrow-zstd": ZarrowZstd,
    "lance": Lance,
    "duckdb": DuckDB,
    "h5py": H5py,
    "tensorstore": TensorStore,
    "zarr": ZarrPython,
    "zarrs": Zarrs,
    "parquet": Sidecar,
}


def drop_from_cache(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def compare(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    data = Data(options.rows, options.width)
    contenders = {}
    for name in options.only:
        (folder / name).mkdir()
        contenders[name] = CONTENDERS[name](folder / name, data)
        print(f"wrote {name}", file=sys.stderr)
    rng = np.random.default_rng(2)
    taken: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
    wanted = np.flatnonzero(data.prob > THRESHOLD)
    work = np.ones(8 << 20)
    means = data.means() if {"mean", "nanmean"} & {*options.tasks} else np.empty(0)
    for number in range(options.repeat + 1):  # the first round warms up
        for task in options.tasks:
            if task == "cold":
                continue
            for name, contender in contenders.items():
                method = getattr(contender, "gather" if task == "between" else task, None)
                if method is None or (name in SLOW and number > 1):
                    continue
                for _ in range(GATHERS if task in ("gather", "between", "locate") else 1):
                    rows = rng.integers(0, data.rows, 1000)
                    given = {"gather": [rows], "between": [rows], "locate": [data.id[rows]]}.get(task, [])
                    if task == "between":
                        np.sqrt(work, out=work)
                    start = time.perf_counter()
                    found = method(*given)
                    spent = time.perf_counter() - start
                    if task == "locate":
                        np.testing.assert_array_equal(found, rows)
                    elif task in ("mean", "nanmean"):
                        np.testing.assert_allclose(found[1:], means[1:], rtol=1e-3, atol=1e-5)
                    elif task != "scan":
                        np.testing.assert_array_equal(found[:, 0], wanted if task == "filter" else rows)
                    if number:
                        taken[name].setdefault(task, []).append(1000 * spent)
    for name, contender in contenders.items() if "cold" in options.tasks else ():
        for _ in range(3 if getattr(contender, "gather", None) is not None else 0):
            rows = np.sort(rng.choice(data.rows, min(1000, data.rows), replace=False))
            if name == "memmap":  # mapped pages are not dropped
                contender.vectors = np.memmap(folder / name / "vectors.raw", np.float32, "r")
                contender.vectors = contender.vectors.reshape(data.rows, data.width)
            elif isinstance(contender, Zarrow):
                contender.store = zarrow.open(contender.store.path)
                _ = contender.store["v"][:1]
            drop_from_cache(folder / name)
            start = time.perf_counter()
            found = contender.gather(rows)
            taken[name].setdefault("cold", []).append(1000 * (time.perf_counter() - start))
            np.testing.assert_array_equal(found[:, 0], rows)
    return {
        name: {task: statistics.median(times) for task, times in tasks.items()}
        for name, tasks in taken.items()
    }


# Other promises: time to start, memory, keys


def in_new_process(program: str, *arguments: object) -> dict[str, float]:
    """Run a program in a new process and return the JSON that it prints."""
    words = [sys.executable, "-c", program, *map(str, arguments)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


IMPORT = """
import json, os, time
start, cpu = time.perf_counter(), os.times().user
import zarrow
print(json.dumps({"wall": time.perf_counter() - start, "user": os.times().user - cpu}))
"""
OPEN = """
import json, sys, time
import zarrow, zarrow.store
start = time.perf_counter()
store = zarrow.open(sys.argv[1])
opened = time.perf_counter() - start
row = store["v"][len(store) - 1]
print(json.dumps({"open": opened, "first row": time.perf_counter() - start}))
"""
FILTER = """
import json, sys, time
import numpy as np, pyarrow.acero, pyarrow.compute as pc, pyarrow.dataset, pyarrow.parquet, zarrow
store = zarrow.open(sys.argv[1])
rows = np.random.default_rng(int(time.time_ns())).integers(0, len(store), 1000)
start = time.perf_counter()
store["v"][rows]
took = {"first gather of 1,000 rows": time.perf_counter() - start}
clustered = (pc.field("id") >= 64 * 5000) & (pc.field("id") < 64 * 5100)
spread = pc.field("u") > 0.25
for name, filter in (("filter, 1 % of a sorted column", clustered), ("filter, spread values", spread)):
    for attempt in ("first", "again"):
        start, cpu = time.perf_counter(), time.process_time()
        store.table(["id"], filter=filter)
        took[f"{name}, {attempt}"] = time.perf_counter() - start
        took[f"{name}, {attempt}, CPU"] = time.process_time() - cpu
print(json.dumps(took))
"""


def start(folder: Path) -> None:
    """Print the time to import zarrow, to open a store of 10,000 segments, and to read some of its rows."""
    path, segments = folder / "s.zarrow", 10_000
    with zarrow.Writer(path, segment_rows=64) as writer:
        spread = np.linspace(0, 1, 128)
        writer.append({"id": np.arange(128), "u": spread}, {"v": np.ones((128, 16), np.float32)})
        writer.finalize()
    # The other segments are links to the first one: writing them all would take ten minutes.
    spec = catalog.read_spec(path)
    record, _ = catalog.read_record(path, 0, spec)
    for number in range(2, segments):
        for name in (layout.part_path, lambda number: layout.shard_path("v", number, 1)):
            (path / name(number)).parent.mkdir(parents=True, exist_ok=True)
            os.link(path / name(0), path / name(number))
        # Their statistics are those of a sorted column, so that a filter opens as many parts as it would.
        bounds = {"low": 64 * number, "high": 64 * number + 63}
        id = dataclasses.replace(
            record.part.statistics["id"], **{side: at.to_bytes(8, "little") for side, at in bounds.items()}
        )
        part = dataclasses.replace(record.part, statistics={**record.part.statistics, "id": id})
        copy = dataclasses.replace(record, segment=number, part=part)
        (path / layout.record_path(number)).write_bytes(copy.encode())
    publishing.publish_manifest(path, spec, None, path / layout.OPEN_DIR)
    for program, arguments in ((IMPORT, ()), (OPEN, (path,)), (FILTER, (path,))):
        runs = [in_new_process(program, *arguments) for _ in range(6 if program is FILTER else 11)][1:]
        for name in runs[0]:
            times = sorted(1000 * run[name] for run in runs)
            print(
                f"{'import' if program is IMPORT else '10,000 segments'}, {name:42}"
                f" median {times[len(times) // 2]:7.1f} ms, minimum {times[0]:7.1f} ms"
            )


PEAK = """
import json, sys, threading, time
import numpy as np, pyarrow.compute as pc, pyarrow.parquet, pyarrow.dataset, zarrow
path, what = sys.argv[1:]
store = zarrow.open(path)
seen, done = [], threading.Event()

def anonymous():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])

def watch():
    # Only anonymous memory counts: mapped files belong to the page cache, which can be dropped.
    while not done.wait(0.002):
        seen.append(anonymous())

before = anonymous()
threading.Thread(target=watch).start()
if what == "join":
    for batch, vectors in store.join(pc.field("prob") > 0.5):
        pass
elif what == "scan":
    for batch in store.scan():
        pass
elif what == "locate":
    rng = np.random.default_rng(0)
    for _ in range(100):
        store.locate(rng.integers(0, len(store), 10_000))
elif what == "index":
    zarrow.build_index(path)
done.set()
print(json.dumps({"MB": (max(seen) - before) / 1000}))
"""


def memory(folder: Path, least: int) -> dict[str, dict[int, float]]:
    """Print the peak memory of ways to read, above that of an open store, for two numbers of rows."""
    sizes, step = (least, 4 * least), min(least, 100_000)
    for rows in sizes:
        with zarrow.Writer(folder / f"{rows}.zarrow", keys=["id"], segment_rows=32_768) as writer:
            for first in range(0, rows, step):
                numbers = np.arange(first, min(first + step, rows))
                prob = np.random.default_rng(first).random(len(numbers), np.float32)
                writer.append({"id": numbers, "prob": prob}, {"v": np.ones((len(numbers), 32), np.float32)})
            writer.finalize()
    figures = {}
    for what in ("index", "join", "scan", "locate"):
        found = [in_new_process(PEAK, folder / f"{rows}.zarrow", what)["MB"] for rows in sizes]
        peaks = ", ".join(f"{rows:,} rows {peak:6.1f} MB" for rows, peak in zip(sizes, found, strict=True))
        print(f"{what:8} {peaks}")
        figures[what] = dict(zip(sizes, found, strict=True))
    return figures


def _key_table(rows: int, *, four: bool) -> pa.Table:
    """Return a table of keys: a permutation, or EveryQuery's four columns."""
    ids = np.random.default_rng(3).permutation(rows)
    if not four:
        return pa.table({"id": ids})
    columns = {
        "subject_id": pa.array(ids // 20),
        "prediction_time": pa.array(np.datetime64("2020-01-01", "us") + (ids % 20) // 5),
        "query": pa.array([f"code//{number}" for number in range(5)]).take(pa.array(ids % 5)),
        "duration_days": pa.array((ids % 3).astype("f8") * 30),
    }
    return pa.table(columns)


def key_sizes(folder: Path) -> None:
    """Print how long indexing all keys, and locating 1,000 of them, takes in stores of two sizes."""
    medians = []
    for rows, four in ((400_000, False), (10_000_000, False), (400_000, True)):
        path, keys = folder / f"{rows}-{four}.zarrow", _key_table(rows, four=four)
        with zarrow.Writer(path, keys=keys.column_names) as writer:
            for first in range(0, rows, 100_000):
                writer.append(keys.slice(first, 100_000))
            writer.finalize()
        began, used = time.perf_counter(), time.process_time()
        zarrow.build_index(path)
        built, used = time.perf_counter() - began, time.process_time() - used
        began = time.perf_counter()
        np.sort(np.random.default_rng(1).integers(0, 2**63, rows))  # what any sorted index needs at least
        sorting = time.perf_counter() - began
        store, rng, times = zarrow.open(path), np.random.default_rng(2), []
        for _ in range(300):
            wanted = rng.integers(0, rows, 1000)
            asked = keys.take(wanted)
            began = time.perf_counter()
            found = store.locate(asked)
            times.append(1000 * (time.perf_counter() - began))
            np.testing.assert_array_equal(found, wanted)
        medians.append(statistics.median(times[100:]))
        print(
            f"{rows:12,} rows, {len(keys.column_names)} columns: index {built:5.2f} s ({used:5.2f} s of CPU; "
            f"numpy draws and sorts as many numbers in {sorting:4.2f} s); locate: first {times[0]:6.2f} ms, "
            f"first ten {statistics.median(times[:10]):6.2f}, then {medians[-1]:6.2f}"
        )
    print(
        f"10 million rows / 400,000: {medians[1] / medians[0]:.2f}; four columns / one: "
        f"{medians[2] / medians[0]:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--start", action="store_true", help="measure only import and open")
    parser.add_argument(
        "--memory", action="store_true", help="measure only peak memory, with 5 and 20 times --rows"
    )
    parser.add_argument("--keys", action="store_true", help="measure only locate, with two numbers of rows")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(), help="directory on the disk to measure")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="readers-", dir=options.folder))
    try:
        if options.memory:
            peaks = memory(folder, 5 * options.rows)
            if options.json:
                options.json.write_text(json.dumps({"options": vars(options), "MB": peaks}, default=str))
        if options.start or options.memory or options.keys:
            for chosen, show in ((options.start, start), (options.keys, key_sizes)):
                if chosen:
                    show(folder)
            return
        found = compare(options, folder)
    finally:
        shutil.rmtree(folder)
    reference = {task: next(one[task] for one in found.values() if task in one) for task in options.tasks}
    print(f"{'':12}" + "".join(f"{task:>22}" for task in reference))
    for name, tasks in found.items():
        cells = (
            f"{tasks[task]:10.2f} ms{tasks[task] / reference[task]:7.2f} x" if task in tasks else "–"
            for task in reference
        )
        print(f"{name:12}" + "".join(f"{cell:>22}" for cell in cells))
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options), "ms": found}, default=str, indent=1))


if __name__ == "__main__":
    command(main)
