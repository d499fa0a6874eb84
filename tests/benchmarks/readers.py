"""How fast are rows read, beside what users could pick instead?

Run it from the repository::

    python tests/benchmarks/readers.py                          # 400,000 x 768 float32
    python tests/benchmarks/readers.py --rows 50000 --only memmap zarrow lance --repeat 9 --json out.json

Every contender holds the same vectors and the same narrow columns: ``prob``, uniform in 0..1, and the key
``id``, a permutation. The contenders
take turns, and the table shows medians in milliseconds; what matters is the ratio to ``memmap``: one raw
file of vectors under `numpy.memmap`, its column ``prob`` in a Parquet file beside it. Tasks:

gather   1,000 random rows, page cache warm
scan     the sum of every block of 8,192 rows, page cache warm
filter   the vectors of the rows with ``prob > 0.99``, page cache warm
cold     1,000 random rows in order, the files dropped from the page cache before
locate   the rows of 1,000 random keys, each contender with its index; beside the first that can, not memmap

What the contenders return is compared, so nobody wins by reading the wrong rows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
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

import zarrow

BLOCK = 8192
THRESHOLD = 0.99
GATHERS = 10


class Data:
    """Vectors, a block at a time, and their narrow column."""

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


class Memmap:
    """One raw file, and a Parquet file beside it."""

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


class Zarrow:
    """This library, vectors as they are."""

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


class ZarrowZstd(Zarrow):
    """This library, chunks compressed."""

    codecs = "zstd"


class ZarrPython(Zarrow):
    """zarr-python, over the store that this library wrote."""

    locate: Any = None  # has no keys

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


class TensorStore(ZarrPython):
    """TensorStore, over the store that this library wrote."""

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
    """HDF5, chunks of 256 rows."""

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
    """Lance, vectors and column in one dataset."""

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
        order = np.argsort(ids)  # a fragment's row ids are its rows, and there is one fragment
        return found["_rowid"].to_numpy()[order[np.searchsorted(ids, keys, sorter=order)]]


class DuckDB:
    """DuckDB, the key with its index and the row in a database file; keys only."""

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
    "zarrow-zstd": ZarrowZstd,
    "lance": Lance,
    "duckdb": DuckDB,
    "h5py": H5py,
    "tensorstore": TensorStore,
    "zarr": ZarrPython,
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
    for turn in range(options.repeat + 1):  # the first warms up
        for task in options.tasks:
            if task == "cold":
                continue
            for name, contender in contenders.items():
                if getattr(contender, task, None) is None:
                    continue
                for _ in range(GATHERS if task in ("gather", "locate") else 1):
                    rows = rng.integers(0, data.rows, 1000)
                    given = {"gather": [rows], "locate": [data.id[rows]]}.get(task, [])
                    start = time.perf_counter()
                    found = getattr(contender, task)(*given)
                    spent = time.perf_counter() - start
                    if task == "locate":
                        np.testing.assert_array_equal(found, rows)
                    elif task != "scan":
                        np.testing.assert_array_equal(found[:, 0], rows if task == "gather" else wanted)
                    if turn:
                        taken[name].setdefault(task, []).append(1000 * spent)
    for name, contender in contenders.items() if "cold" in options.tasks else ():
        for _ in range(3 if hasattr(contender, "gather") else 0):
            rows = np.sort(rng.choice(data.rows, min(1000, data.rows), replace=False))
            if name == "memmap":  # what is mapped is not dropped
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--tasks", nargs="+", default=["gather", "scan", "filter", "cold", "locate"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="readers-", dir=options.folder))
    try:
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
    main()
