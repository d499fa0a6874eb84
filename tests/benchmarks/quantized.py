"""Quantized — an int8 array beside the same vectors in float32: bytes, time, and neighbours that remain.

Run it from the repository::

    python3 tests/benchmarks/quantized.py                         # 100,000 x 768
    python3 tests/benchmarks/quantized.py --rows 20000 --repeat 3

In each round either array does every task; the table has the best round of each, and the ratio of int8 to
float32. Vectors lie around 50 centres, so that their neighbours are not a matter of chance.

write    appending all rows, in batches of 2,000
gather   20,000 random rows, page cache warm
reused   the same into memory that is used again, as the torch loaders do
cold     2,000 random rows in order, after dropping the files from the page cache
nearest  the ten nearest rows of 100 rows, by cosine
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

import zarrow
import zarrow.analysis

KINDS: dict[str, dict[str, str]] = {"float32": {}, "int8": {"e": "int8"}}
BATCH = 2000


def vectors(rows: int, width: int) -> npt.NDArray[np.float32]:
    """Return rows around 50 centres."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((50, width), np.float32)
    return centres[rng.integers(0, 50, rows)] + rng.standard_normal((rows, width), np.float32)


def write(path: Path, given: npt.NDArray[np.float32], dtypes: dict[str, str]) -> None:
    """Write all rows in batches."""
    with zarrow.Writer(path, dtypes=dtypes) as writer:
        for start in range(0, len(given), BATCH):
            here = given[start : start + BATCH]
            writer.append({"id": np.arange(start, start + len(here))}, {"e": here})
        writer.finalize()


def drop(path: Path) -> None:
    """Drop a store's files from the page cache."""
    for file in path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure(
    path: Path, dtypes: dict[str, str], given: npt.NDArray[np.float32]
) -> tuple[dict[str, float], npt.NDArray[np.int64]]:
    """Return the seconds that each task takes, and the neighbours found."""
    rng = np.random.default_rng(1)
    many, few = rng.integers(0, len(given), 20_000), np.sort(rng.integers(0, len(given), 2_000))
    out = np.empty((len(many), given.shape[1]), np.float32)
    seconds, found = {}, {}
    seconds["write"] = seconds_of(lambda: write(path, given, dtypes))
    store = zarrow.open(path)
    store["e"].take(many)
    seconds["gather"] = seconds_of(lambda: store["e"].take(many))
    seconds["reused"] = seconds_of(lambda: store["e"].take(many, out=out))
    drop(path)
    seconds["cold"] = seconds_of(lambda: zarrow.open(path)["e"].take(few))
    search = partial(zarrow.analysis.nearest, store, np.arange(min(100, len(given))), array="e")
    seconds["nearest"] = seconds_of(lambda: found.update(rows=search().rows))
    return seconds, found["rows"]


def seconds_of(task: Callable[[], object]) -> float:
    """Return how long a task takes."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the seconds of every round")
    options = parser.parse_args()
    given = vectors(options.rows, options.width)
    rounds: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    near, size_bytes = {}, {}
    with tempfile.TemporaryDirectory(prefix="zarrow-") as top:
        for turn in range(options.repeat):
            for kind, dtypes in KINDS.items():
                path = Path(top) / f"{kind}-{turn}.zarrow"
                seconds, near[kind] = measure(path, dtypes, given)
                rounds[kind].append(seconds)
                store = zarrow.open(path)
                size_bytes[kind] = store["e"].stored_bytes + store.table_bytes
    one, other = size_bytes.values()
    print(f"{'':10}{'float32':>14}{'int8':>14}{'ratio':>8}")
    print(f"{'bytes':10}{one:>14,}{other:>14,}{other / one:>8.3f}")
    for task in rounds["int8"][0]:
        one, other = (min(seconds[task] for seconds in rounds[kind]) * 1e3 for kind in KINDS)
        print(f"{task:10}{one:>11.1f} ms{other:>11.1f} ms{other / one:>8.2f}")
    same = [len(np.intersect1d(*pair)) for pair in zip(*near.values(), strict=True)]
    if options.json is not None:
        options.json.write_text(json.dumps({"rows": len(given), "bytes": size_bytes, "rounds": rounds}))
    print(f"recall@10 {np.mean(same) / near['int8'].shape[1]:.3f}")


if __name__ == "__main__":
    main()
