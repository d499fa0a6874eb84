"""Analyses — their speed on a store, compared with the same computation on an array already in memory.

Run it from the repository::

    python3 tests/benchmarks/analysis.py                      # 1,000,000 x 768 float32: 3 GB, and 3 GB of RAM
    python3 tests/benchmarks/analysis.py --rows 100000 --only pca nearest --repeat 3 --json out.json

For each task one process runs zarrow on the store (page cache warm) and another one runs numpy, or torch
where that is faster, on an array loaded before the clock starts. The table shows the median of the
repetitions, the ratio, and the peak private memory of the process (anonymous pages, so without the page
cache), including Python and all libraries.

describe  mean, std, norms, NaNs, mean cosine and effective rank (in memory: no table, and no quantiles)
pca       50 components
nearest   the 10 nearest of 1,000 queries by cosine

Both results are compared, so neither side can win by computing something else.

``--recall`` builds an index of approximate neighbours instead. It prints the share of the 10 nearest that the
index finds for 1,000 queries it was not tuned on, and its time next to that of the exact search.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import command

QUERIES, K, COMPONENTS = 1000, 10, 50
BLOCK = 4096


def write(path: Path, rows: int, width: int) -> None:
    """Write the store, with more variance in some directions than in others."""
    import zarrow

    generator = np.random.default_rng(0)
    scale = (0.97 ** np.arange(width) + 0.05).astype(np.float32)
    with zarrow.Writer(path, keys=["id"]) as writer:
        for start in range(0, rows, BLOCK):
            count = min(BLOCK, rows - start)
            vectors = generator.standard_normal((count, width), np.float32) * scale + 0.1
            writer.append({"id": np.arange(start, start + count)}, {"e": vectors})
        writer.finalize()


# In memory


def numpy_describe(vectors: np.ndarray) -> list[float]:
    mean = vectors.mean(axis=0)
    std = vectors.std(axis=0)
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    bad = int(np.isnan(vectors).sum())
    directions = (1 / norms) @ vectors
    count = len(vectors)
    anisotropy = (directions @ directions - count) / (count * (count - 1))
    scatter = vectors.T @ vectors - count * np.outer(mean, mean)
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(scatter), 0))
    shares = singular[singular > 0] / singular.sum()
    rank = np.exp(-(shares * np.log(shares)).sum())
    return [float(one) for one in (mean[0], std[0], norms.mean(), bad, anisotropy, rank)]


def numpy_pca(vectors: np.ndarray) -> list[float]:
    mean = vectors.mean(axis=0)
    scatter = vectors.T @ vectors - len(vectors) * np.outer(mean, mean)
    values, _ = np.linalg.eigh(scatter.astype(np.float64) / (len(vectors) - 1))
    return [float(one) for one in values[::-1][:COMPONENTS]]


def torch_nearest(vectors: np.ndarray) -> list[float]:
    import torch

    data = torch.from_numpy(vectors)
    asked = torch.nn.functional.normalize(data[:QUERIES])
    best, rows = torch.empty(QUERIES, 0), torch.empty(QUERIES, 0, dtype=torch.int64)
    for start in range(0, len(vectors), BLOCK):
        block = torch.nn.functional.normalize(data[start : start + BLOCK])
        found, places = torch.topk(asked @ block.T, min(K, len(block)), dim=1)
        together, all_rows = torch.cat([best, found], 1), torch.cat([rows, places + start], 1)
        best, order = torch.topk(together, min(K, together.shape[1]), dim=1)
        rows = all_rows.gather(1, order)
    return [float(one) for one in rows[:, 1]]


# Over the store


def zarrow_describe(store: Any) -> list[float]:
    from zarrow.analysis import describe

    found = describe(store, columns=[]).arrays["e"]
    bad = found.nan_values
    return [
        float(one)
        for one in (found.mean[0], found.std[0], found.norm_mean, bad, found.anisotropy, found.effective_rank)
    ]


def zarrow_pca(store: Any) -> list[float]:
    from zarrow.analysis import pca

    return pca(store, n_components=COMPONENTS).explained_variance_.tolist()


def zarrow_nearest(store: Any) -> list[float]:
    from zarrow.analysis import nearest

    return nearest(store, np.arange(QUERIES), k=K).rows[:, 1].astype(float).tolist()


def measure_recall(path: Path) -> dict[str, float]:
    """Build an index of neighbours and compare its results with the exact search."""
    import zarrow
    from zarrow.analysis import build_neighbours, nearest

    figures: dict[str, float] = {}

    def timed(name: str, what: Any) -> Any:
        start_s = time.perf_counter()
        found = what()
        figures[f"{name} s"] = round(time.perf_counter() - start_s, 2)
        return found

    with zarrow.open(path) as store:
        made = timed("build", lambda: build_neighbours(store))
        asked = np.random.default_rng(7).integers(0, store.num_rows, QUERIES)
        found = timed("approximate", lambda: nearest(store, asked, k=K, approximate=True).rows)
        exact = timed("exact", lambda: nearest(store, asked, k=K).rows)
    shares = [len(np.intersect1d(one, other)) / K for one, other in zip(found, exact, strict=True)]
    return {"rows": made.rows, "recall": float(np.mean(shares)), "recall when made": made.recall, **figures}


TASKS = {
    "describe": (zarrow_describe, numpy_describe),
    "pca": (zarrow_pca, numpy_pca),
    "nearest": (zarrow_nearest, torch_nearest),
}


class Watch(threading.Thread):
    """Records the peak private memory of the process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0

    def run(self) -> None:
        while True:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    self.peak_bytes = max(self.peak_bytes, int(line.split()[1]) * 1024)
            time.sleep(0.01)


def run_one(task: str, side: int, path: str, repeat: int) -> None:
    """Run a task in this process and print its time and memory."""
    import zarrow

    store: Any = zarrow.open(path)
    if side:
        store = np.asarray(store["e"]).copy()
    else:  # read it once, so that it is as warm as the array in memory
        for start in range(0, len(store["e"]), BLOCK):
            store["e"][start : start + BLOCK].max()
    watch = Watch()
    watch.start()
    seconds = []
    for _ in range(repeat):
        start_s = time.perf_counter()
        found = TASKS[task][side](store)
        seconds.append(time.perf_counter() - start_s)
    print(json.dumps({"s": statistics.median(seconds), "peak_mb": watch.peak_bytes / 1e6, "found": found}))


def main() -> None:
    """Run the tasks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--store", type=Path, help="keep the store here, and reuse it if it exists")
    parser.add_argument(
        "--recall", action="store_true", help="measure only the recall of approximate neighbours"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        task, side, path, repeat = options.one
        run_one(task, int(side), path, int(repeat))
        return
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        path = options.store or Path(folder) / "bench.zarrow"
        if not path.exists():
            write(path, options.rows, options.width)
        if options.recall:
            print(json.dumps(measure_recall(path)))
            return
        for task in options.only:
            sides = []
            for side in (0, 1):
                words = [sys.executable, __file__, "--one", task, str(side), str(path), str(options.repeat)]
                output = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
                sides.append(json.loads(output))
            ours, theirs = sides
            found, wanted = np.array(ours.pop("found")), np.array(theirs.pop("found"))
            same = (
                bool((found == wanted).mean() > 0.999)  # near ties are ties in float32
                if task == "nearest"
                else bool(np.allclose(found, wanted, rtol=2e-3, atol=1e-4))
            )
            figures[task] = {"zarrow": ours, "in memory": theirs, "same": same}
            print(
                f"{task:9} zarrow {ours['s']:6.2f} s, {ours['peak_mb']:5.0f} MB   "
                f"in memory {theirs['s']:6.2f} s   relative speed {theirs['s'] / ours['s']:.2f}   "
                f"same result: {same}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    command(main)
