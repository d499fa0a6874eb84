"""Growth — what a store costs as its rows, its segments and its writing processes become more.

Run it from the repository::

    python3 tests/benchmarks/growth.py    # 10^5 to 10^7 rows, 10 to 10,000 segments, 1 to 4 processes
    python3 tests/benchmarks/growth.py --rows 100000000 --segments 60000 --processes    # the largest
    python3 tests/benchmarks/growth.py --picture growth.svg --json growth.json
    python3 tests/benchmarks/growth.py --guide examples/guides/performance.md    # write the table there

Every size is a store of its own, made and asked in new processes:

append    microseconds per row, in batches of 8,192 (of a segment if that is less), until all rows are durable
finalize  milliseconds, from there to a complete store
open      milliseconds, of a store that was opened before
filter    milliseconds to find and read one row in a thousand that lie together, by a key in order
gather    milliseconds for 1,000 random rows
index     microseconds per row to build the key index
locate    milliseconds for 1,000 random keys
memory    MB, not counting mapped files, at the most: of the process that writes, and of the one that reads

What grows with the rows alone is given per row: those columns must not rise. The others are answers of one
size: they may rise with the logarithm of the rows, and with the number of segments no more than their list.
"""

from __future__ import annotations

import argparse
import itertools
import json
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
import pyarrow.compute as pc
from harness import command, put_table, show_table, versions

import zarrow

ASKED = 1000
BATCH = 8192
COLUMNS = {
    "rows": "rows", "segments": "segments", "processes": "processes", "append_us": "append µs/row",
    "finalize_ms": "finalize ms", "open_ms": "open ms", "filter_ms": "filter ms", "gather_ms": "gather ms",
    "index_us": "index µs/row", "locate_ms": "locate ms", "write_mb": "writer MB", "read_mb": "reader MB",
}  # fmt: skip


def anonymous_mb() -> float:
    """Return the memory of this process that is no file's, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return 0.0


def write(path: Path, start: int, stop: int, segment_rows: int, width: int, shared: bool) -> dict[str, float]:
    """Write the rows of one process; return its memory, and when it began and ended."""
    values = np.random.default_rng(0).standard_normal((BATCH, width)).astype(np.float32)
    most, begun = 0.0, time.monotonic()
    with zarrow.Writer(path, keys=["id"], segment_rows=segment_rows, shared=shared, mode="a") as writer:
        step = min(BATCH, segment_rows)
        for number, first in enumerate(range(start, stop, step)):
            here = np.arange(first, min(first + step, stop))
            writer.append({"id": here, "score": here % 97 / 97}, {"v": values[: len(here)]})
            if number % 64 == 0:
                most = max(most, anonymous_mb())
    return {"mb": max(most, anonymous_mb()), "begun": begun, "ended": time.monotonic()}


def median_ms(task: Callable[[], object], times: int) -> float:
    """Return the median time of a task that was done once before."""
    task()
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        task()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds) * 1e3


def read(path: Path, rows: int, repeat: int) -> dict[str, float]:
    """Ask a store, and return how long that took and the memory at the end."""
    found = {"open_ms": median_ms(lambda: zarrow.open(path), repeat)}
    store = zarrow.open(path)
    random = np.random.default_rng(1)
    low = rows // 2
    few = (pc.field("id") >= low) & (pc.field("id") < low + max(rows // 1000, 1))
    some = random.integers(0, rows, ASKED)
    assert store.table(["id"], few).num_rows == max(rows // 1000, 1)
    found["filter_ms"] = median_ms(lambda: store.table(["id"], few), repeat)
    found["gather_ms"] = median_ms(lambda: store["v"].take(some), repeat)
    begun = time.perf_counter()
    zarrow.build_index(path)
    found["index_us"] = (time.perf_counter() - begun) / rows * 1e6
    store = zarrow.open(path)
    assert (store.take(store.locate({"id": some}), ["id"], [])[0]["id"].to_numpy() == some).all()
    found["locate_ms"] = median_ms(lambda: store.locate({"id": some}), repeat)
    return found | {"read_mb": anonymous_mb()}


def start_step(path: Path, *words: object) -> subprocess.Popen[str]:
    """Start a step in a new process."""
    command = [sys.executable, __file__, "--step", str(path), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result_of(process: subprocess.Popen[str]) -> dict[str, float]:
    """Return what a step printed."""
    out, errors = process.communicate()
    if process.returncode:
        raise SystemExit(errors)
    found: dict[str, float] = json.loads(out)
    return found


def measure(top: Path, rows: int, segments: int, processes: int, width: int, repeat: int) -> dict[str, Any]:
    """Make a store of a size, ask it, remove it, and return the figures."""
    path = top / "s.zarrow"
    segment_rows = 1 << max(round(np.log2(rows / segments)), 0)
    bounds = np.linspace(0, rows, processes + 1).astype(int).tolist()
    writers = [
        start_step(path, "write", start, stop, segment_rows, width, int(processes > 1))
        for start, stop in itertools.pairwise(bounds)
    ]
    written = list(map(result_of, writers))
    seconds = max(one["ended"] for one in written) - min(one["begun"] for one in written)
    found: dict[str, Any] = {"rows": rows, "segments": -(-rows // segment_rows), "processes": processes}
    found["append_us"] = seconds / rows * 1e6
    found["write_mb"] = max(one["mb"] for one in written)
    found |= result_of(start_step(path, "finalize")) | result_of(start_step(path, "read", rows, repeat))
    shutil.rmtree(path)
    return found


def step(path: Path, what: str, *numbers: str) -> dict[str, float]:
    """Do one step of a measurement, in this process."""
    if what == "write":
        start, stop, segment_rows, width, shared = map(int, numbers)
        return write(path, start, stop, segment_rows, width, bool(shared))
    if what == "read":
        return read(path, *map(int, numbers))
    begun = time.perf_counter()
    with zarrow.Writer(path, mode="a") as writer:
        writer.finalize()
    return {"finalize_ms": (time.perf_counter() - begun) * 1e3}


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Draw all figures over rows and over segments, relative to the smallest store."""
    from matplotlib.figure import Figure

    figure = Figure((10, 4.5), layout="constrained")
    for axes, over in zip(figure.subplots(1, 2, sharey=True), ("rows", "segments"), strict=True):
        line = [one for one in found if one["series"] == over]
        for name, label in COLUMNS.items():
            if name in ("rows", "segments", "processes") or not line:
                continue
            axes.plot(
                [one[over] for one in line],
                [one[name] / max(line[0][name], 1e-9) for one in line],
                marker="o", label=label,
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel=over, title=f"more {over}")
        axes.grid(visible=True, alpha=0.3)
    figure.axes[0].set_ylabel("relative to the smallest store")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path)


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[10**5, 10**6, 10**7])
    parser.add_argument("--segments", type=int, nargs="*", default=[10, 100, 1000, 10_000])
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--rows-of", type=int, help="rows of the stores of --segments and --processes")
    parser.add_argument("--repeat", type=int, default=5, help="of which a reader's figure is the median")
    parser.add_argument("--folder", type=Path, help="where the stores are made")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--guide", type=Path, help="a document with a place for the table")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(step(Path(options.step[0]), *options.step[1:])))
        return
    rows_of = options.rows_of or min(max(options.rows, default=2_000_000), 2_000_000)
    sizes = [
        *(("rows", rows, 100, 1) for rows in options.rows),
        *(("segments", rows_of, segments, 1) for segments in options.segments if 8 * segments <= rows_of),
        *(("processes", rows_of, 100, processes) for processes in options.processes),
    ]
    found = []
    with tempfile.TemporaryDirectory(prefix="zarrow-", dir=options.folder) as name:
        for series, rows, segments, processes in sizes:
            print(f"{series}: {rows:,} rows, {segments:,} segments, {processes}", file=sys.stderr)
            size = rows, segments, processes, options.width, options.repeat
            found.append({"series": series, **measure(Path(name), *size)})
    lines = [
        [f"{one[name]:,}" if isinstance(one[name], int) else f"{one[name]:,.2f}" for name in COLUMNS]
        for one in found
    ]
    title = f"{options.width} float32 per row; {versions('zarrow', 'numpy', 'pyarrow')}"
    print(title)
    show_table(list(COLUMNS.values()), lines)
    if options.json is not None:
        options.json.write_text(json.dumps(found))
    if options.picture is not None:
        draw(found, options.picture)
    if options.guide is not None:
        put_table(options.guide, "growth", title, list(COLUMNS.values()), lines)


if __name__ == "__main__":
    command(main)
