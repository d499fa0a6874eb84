"""Ragged — rows of 1 to 300 vectors, against raw files, numpy.memmap, Lance, DuckDB and torch.

Run it from the repository::

    python3 tests/benchmarks/ragged.py                                  # 1.2 GB of float16, 128 wide
    python3 tests/benchmarks/ragged.py --rows 4000 --repeat 3
    python3 tests/benchmarks/ragged.py --counts 1 --rows 10000000 --width 1

In each round every contender does its task once; the table has the median of each, and the ratio of zarrow to
the other: below 1, zarrow takes less time.

write    all rows in batches of 256, to a complete store; raw: vectors and counts to two files, then
         fdatasync; fixed: the same bytes as an array of one vector per row
row      2,000 single rows, one after the other, page cache warm; memmap: slices with known offsets
rows     1,000 random rows at once
scan     the sum of all vectors
maxsim   ten queries of 32 vectors against all rows; torch: the padded array in memory, in float32

With ``--counts N`` every row has N vectors, and there are no contenders: the table has the time of each step
of a store's life, and the most private memory (``RssAnon``) during it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from harness import command, show_table, versions

import zarrow
import zarrow.analysis
from zarrow.transfer import export

BATCH = 256
QUERIES, TOKENS = 10, 32


def seconds_of(task: Callable[[], object]) -> float:
    """Return how long a task takes."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def rows_of(rows: int, width: int, dtype: str) -> zarrow.Ragged:
    """Return rows of 1 to 300 vectors."""
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 301, rows)
    block = generator.standard_normal((1 << 16, width), np.float32).astype(dtype)
    values = np.concatenate([block] * -(-int(counts.sum()) // len(block)))[: counts.sum()]
    return zarrow.Ragged(values, counts)


def write_store(path: Path, given: zarrow.Ragged) -> None:
    """Write rows of any number of vectors."""
    with zarrow.Writer(path) as writer:
        for start in range(0, len(given), BATCH):
            here = given[start : start + BATCH]
            writer.append({"id": np.arange(start, start + len(here))}, {"t": here}, copy=False)
        writer.finalize()


def write_fixed(path: Path, given: zarrow.Ragged) -> None:
    """Write the same bytes, one vector per row."""
    step = int(given.counts.mean() * BATCH)
    with zarrow.Writer(path) as writer:
        for start in range(0, len(given.values), step):
            here = given.values[start : start + step]
            writer.append(None, {"t": here}, copy=False)
        writer.finalize()


def write_raw(path: Path, given: zarrow.Ragged) -> None:
    """Write vectors and counts to two files."""
    path.mkdir()
    for name, data in (("values", given.values), ("counts", given.counts)):
        with open(path / name, "wb", buffering=0) as file:
            view = memoryview(data).cast("B")
            for start in range(0, len(view), 8 << 20):
                file.write(view[start : start + (8 << 20)])
            os.fdatasync(file.fileno())


def padded_maxsim(padded: Any, mask: Any, queries: list[Any]) -> list[Any]:
    """Return the ten best rows of each query, by torch."""
    import torch

    best = []
    for query in queries:
        scores = torch.full((len(padded),), -torch.inf)
        for start in range(0, len(padded), 512):
            here = slice(start, start + 512)
            found = padded[here] @ query.T
            found[~mask[here]] = -torch.inf
            scores[here] = found.amax(dim=1).sum(dim=1)
        best.append(scores.topk(10).indices.tolist())
    return best


def tasks(top: Path, given: zarrow.Ragged, turn: int) -> dict[str, dict[str, Callable[[], object]]]:
    """Return what each contender does, by task."""
    store = zarrow.open(top / "read.zarrow")
    array = store["t"]
    generator = np.random.default_rng(turn)
    some = generator.integers(0, len(given), 2000)
    many = generator.choice(len(given), min(1000, len(given)), replace=False)
    mapped = np.memmap(top / "raw" / "values", given.dtype, "r").reshape(given.values.shape)
    offsets, counts = given.offsets, given.counts
    pairs = [(int(offsets[row]), int(counts[row])) for row in some]

    def gather() -> Any:
        return np.concatenate([mapped[offsets[row] : offsets[row + 1]] for row in many])

    found: dict[str, dict[str, Callable[[], object]]] = {
        "write": {
            "zarrow": lambda: write_store(top / f"z{turn}", given),
            "raw": lambda: write_raw(top / f"r{turn}", given),
            "fixed": lambda: write_fixed(top / f"f{turn}", given),
        },
        "row": {
            "zarrow": lambda: [array[row][-1, -1] for row in some],
            "memmap": lambda: [mapped[start : start + count][-1, -1] for start, count in pairs],
        },
        "rows": {"zarrow": lambda: array.take(many), "memmap": gather},
        "scan": {
            "zarrow": lambda: [vectors["t"].values.sum() for _, vectors in store.join(columns=["id"])],
            "memmap": lambda: [mapped[start : start + 65536].sum() for start in range(0, len(mapped), 65536)],
        },
    }
    if (top / "lists.lance").exists():
        import lance

        dataset = lance.dataset(str(top / "lists.lance"))
        found["rows"]["lance"] = lambda: dataset.take(many.tolist(), columns=["t"])
    if importlib.util.find_spec("duckdb") and given.dtype != np.float16:
        import duckdb

        names = ", ".join(map(str, many))
        found["rows"]["duckdb"] = lambda: (
            duckdb.sql(f"SELECT t FROM '{top / 'lists.parquet'}' WHERE id IN ({names})").arrow().read_all()
        )
    return found


def maxsim(top: Path, given: zarrow.Ragged) -> dict[str, Callable[[], object]]:
    """Return the search of either contender."""
    import torch

    store = zarrow.open(top / "read.zarrow")
    queries = [np.ascontiguousarray(given.values[at * 97 : at * 97 + TOKENS]) for at in range(QUERIES)]
    padded, mask = given.to_padded(return_mask=True)
    there = torch.from_numpy(padded.astype(np.float32)), torch.from_numpy(mask)
    asked = [torch.from_numpy(query.astype(np.float32)) for query in queries]
    return {
        "zarrow": lambda: zarrow.analysis.nearest(store, queries, metric="maxsim", k=10),
        "torch": lambda: padded_maxsim(*there, asked),
    }


def private_bytes() -> int:
    """Return the process' private memory, without the page cache."""
    with open("/proc/self/status") as status:
        return 1024 * int(next(line for line in status if line.startswith("RssAnon")).split()[1])


def life(path: Path, options: argparse.Namespace) -> list[list[str]]:
    """Return seconds and memory of each step of a store whose rows have equally many vectors."""
    rows, lines = options.rows, []
    done, peak = threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], private_bytes())

    def step(name: str, act: Callable[[], Any]) -> Any:
        peak[0] = private_bytes()
        start = time.perf_counter()
        found = act()
        lines.append(
            [name, f"{time.perf_counter() - start:.2f} s", f"{max(peak[0], private_bytes()) / 1e6:,.0f} MB"]
        )
        return found

    def write(writer: zarrow.Writer) -> None:
        for start in range(0, rows, options.batch):
            ids = np.arange(start, min(start + options.batch, rows))
            values = np.repeat(ids % 1000, options.counts)[:, None] + np.arange(options.width)
            tokens = zarrow.Ragged(values.astype(options.dtype), np.full(len(ids), options.counts))
            writer.append({"id": ids}, {"t": tokens})
        writer.flush()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with zarrow.Writer(path, keys=["id"]) as writer:
            step("write", lambda: write(writer))
            step("finalize", writer.finalize)
        array = step("open", lambda: zarrow.open(path)["t"])
        some = np.random.default_rng(0).integers(0, rows, 1_000_000)
        step("a first row", lambda: array[rows // 2])
        step("2,000 rows, one by one", lambda: [array[row] for row in some[:2000]])
        step("10^6 random rows", lambda: array.take(some))
        step("scan", lambda: [found["t"].values.sum() for _, found in zarrow.open(path).join(columns=["id"])])
        step("verify", lambda: zarrow.verify(path))
        report = step("verify, all values", lambda: zarrow.verify(path, level="full"))
    finally:
        done.set()
        watcher.join()
    assert report.ok
    assert np.array_equal(array.counts, np.full(rows, options.counts))
    return lines


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=32_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--search-rows", type=int, default=6_000, help="rows that torch has padded in memory")
    parser.add_argument("--counts", type=int, help="vectors of every row: show the steps of zarrow alone")
    parser.add_argument("--batch", type=int, default=10_000, help="rows per batch, with --counts")
    parser.add_argument("--json", type=Path, help="file for the seconds of every round")
    options = parser.parse_args()
    if options.counts:
        with tempfile.TemporaryDirectory(prefix="zarrow-") as name:
            lines = life(Path(name) / "s.zarrow", options)
        print(f"{options.rows:,} rows of {options.counts} × {options.width} {options.dtype}")
        show_table(["step", "time", "memory"], lines)
        return
    given = rows_of(options.rows, options.width, options.dtype)
    seconds: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="zarrow-") as name:
        top = Path(name)
        write_store(top / "read.zarrow", given)
        write_raw(top / "raw", given)
        store = zarrow.open(top / "read.zarrow")
        export(store, top / "lists.parquet")
        pq.read_metadata(top / "lists.parquet")
        if importlib.util.find_spec("lance"):
            export(store, top / "lists.lance")
        for turn in range(options.repeat):
            for task, contenders in tasks(top, given, turn).items():
                for contender, act in contenders.items():
                    if task != "write":
                        act()  # warm
                    seconds.setdefault((task, contender), []).append(seconds_of(act))
        small = given[: options.search_rows]
        (top / "read.zarrow").rename(top / "all.zarrow")
        write_store(top / "read.zarrow", small)
        for _ in range(options.repeat):
            for contender, act in maxsim(top, small).items():
                seconds.setdefault(("maxsim", contender), []).append(seconds_of(act))
    lines = []
    for (task, contender), found in seconds.items():
        own = statistics.median(seconds[task, "zarrow"])
        took = statistics.median(found)
        ratio = "" if contender == "zarrow" else f"{own / took:.2f}"
        lines.append([task, contender, f"{took * 1e3:,.1f} ms", ratio])
    if options.json is not None:
        options.json.write_text(json.dumps({"/".join(who): found for who, found in seconds.items()}))
    print(f"{len(given):,} rows, {len(given.values):,} vectors of {options.width} {options.dtype}")
    print(versions("numpy", "lance", "duckdb", "torch"))
    show_table(["task", "contender", "median", "zarrow / it"], lines)


if __name__ == "__main__":
    command(main)
