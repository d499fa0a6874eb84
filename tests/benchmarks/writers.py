"""Writers — speed, smoothness and memory of writing rows, compared with the alternatives.

Run it from the repository::

    python3 tests/benchmarks/writers.py                     # 400,000 x 768 float32 in batches of 256
    python3 tests/benchmarks/writers.py --memory            # how memory grows with the rows (--sizes)
    python3 tests/benchmarks/writers.py --only raw zarrow lance --repeat 7 --json out.json --picture out.svg
    python3 tests/benchmarks/writers.py --durable           # sync every contender at the end
    python3 tests/benchmarks/writers.py --only nothing zarrow --step-ms 5    # with a model
    python3 tests/benchmarks/writers.py --only zarrow-2 zarrow zarrow-4      # several processes
    python3 tests/benchmarks/writers.py --only raw raw-thread zarrow blosc-alone zarrow-blosc   # the limits
    python3 tests/benchmarks/writers.py --only raw zarrow --width 64 --batch-rows 32 --kind float16

In each round every contender runs in a process of its own, warmed up by a short run, and the table shows
medians. What matters is the ratio to ``raw``: the same bytes by ``write`` and one final ``fdatasync`` (or,
without ``raw``, the ratio to the contender named first). Each output is read back and compared, so a
contender cannot win by losing rows.

Blocked time is the caller's wait in the call that hands over a batch. Memory is private and anonymous
(``RssAnon``), without the page cache, relative to the time before the first row.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from contenders import CONTENDERS, PACKAGES, SURVIVES, Clock, Data
from harness import command, put_table, show_table, versions

NOT_BY_DEFAULT = ("zarrow-2", "zarrow-4", "raw-thread", "blosc-alone", "memcpy", "nothing")


def private_bytes() -> int:
    """Return the private anonymous memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def touch_memory(size_bytes: int) -> None:
    """Claim the memory that the page cache will need: a virtual machine returns freed memory to its host.

    Getting it back takes longer than writing, and that time would be charged to the next contender.
    """
    np.ones(size_bytes, np.uint8)


def sync(path: Path) -> None:
    """Make files durable."""
    for file in [path, *path.rglob("*")]:
        if file.exists():
            fd = os.open(file, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run one contender in this process and return its figures."""
    write = CONTENDERS[options.contender]
    warm = Data(4 * options.batch_rows, options.width, options.batch_rows, options.kind)
    write(folder / "warm", warm, Clock())()
    data = Data(options.rows, options.width, options.batch_rows, options.kind, options.step_ms)
    peak, done = [0], threading.Event()
    touch_memory(2 * data.rows * data.width * data.dtype.itemsize)
    before = private_bytes()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], private_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    used = resource.getrusage(resource.RUSAGE_SELF)
    clock = Clock()
    check = write(folder / "store", data, clock)
    if options.durable:
        sync(folder / "store")
    wall = time.perf_counter() - clock.started
    now = resource.getrusage(resource.RUSAGE_SELF)
    done.set()
    watcher.join()
    check()
    blocked = sorted(clock.blocked)
    files = [file for file in (folder / "store").rglob("*") if file.is_file()]
    files = files or [file for file in [folder / "store"] if file.exists()]
    return {
        "wall_s": wall,
        "cpu_s": now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime + (clock.others_cpu_s or 0),
        "memory_mb": peak[0] / 1e6 if clock.others_cpu_s is None else None,  # in other processes
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
    words = [sys.executable, __file__, "--contender", contender, "--rows", str(rows)]
    words += ["--width", str(options.width), "--batch-rows", str(options.batch_rows)]
    words += ["--kind", options.kind, "--folder", str(folder), "--step-ms", str(options.step_ms)]
    if options.durable:
        words.append("--durable")
    try:
        os.sync()
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{contender}: {done.stderr.strip()}")
        return dict(json.loads(done.stdout.splitlines()[-1]))  # icechunk prints a banner
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: None if first is None else statistics.median(one[name] for one in runs)
        for name, first in runs[0].items()
    }


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Run the contenders round by round and print a table."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.only}
    for number in range(options.repeat):
        for name in runs:
            runs[name].append(run(options, name, options.rows))
        print(f"round {number + 1} of {options.repeat}", file=sys.stderr)
    results = {name: medians(all_runs) for name, all_runs in runs.items()}
    base = "raw" if "raw" in runs else options.only[0]
    for name, result in results.items():
        rounds = list(zip(runs[name], runs[base], strict=True))
        result["wall_ratio"] = statistics.median(one["wall_s"] / other["wall_s"] for one, other in rounds)
        result["cpu_ratio"] = statistics.median(one["cpu_s"] / other["cpu_s"] for one, other in rounds)
    size = options.rows * options.width * Data(1, 1, 1, options.kind).dtype.itemsize
    used = versions("zarrow", "numpy", "pyarrow", *(PACKAGES[name] for name in results if name in PACKAGES))
    title = f"{options.rows:,} x {options.width} {options.kind} ({size / 1e9:.2f} GB), batches of "
    title += f"{options.batch_rows}, medians of {options.repeat} rounds, {os.cpu_count()} cores; {used}"
    print(f"{title}\n")
    head = ["writer", "wall s", f"/ {base}", f"CPU / {base}", "p50 ms", "p99 ms", "memory MB", "disk / raw"]
    head.append("files")
    rows = []
    for name, one in results.items():
        survives = SURVIVES[name]
        rows.append(
            (
                name,
                f"{one['wall_s']:.2f}",
                f"{one['wall_ratio']:.2f}",
                f"{one['cpu_ratio']:.2f}",
                f"{one['p50_ms']:.3f}",
                f"{one['p99_ms']:.2f}",
                "–" if one["memory_mb"] is None else f"{one['memory_mb']:.1f}",
                f"{one['disk_ratio']:.2f}",
                f"{one['files']:.0f}",
                survives.replace("never synced", "synced at the end") if options.durable else survives,
            )
        )
    head.append("left after a kill; synced")
    show_table(head, rows)
    if options.guide:
        put_table(options.guide, "writers", title, head, rows)
    return results


def growth(options: argparse.Namespace) -> dict[str, Any]:
    """Print how the peak memory of writing depends on the number of rows."""
    results = {}
    for rows in options.sizes:
        runs = [run(options, "zarrow", rows) for _ in range(options.repeat)]
        results[rows] = medians(runs)
        print(
            f"{rows:>9,} rows: {results[rows]['memory_mb']:6.1f} MB private memory above the start",
            flush=True,
        )
    return results


def draw(results: dict[str, Any], path: Path, *, durable: bool) -> None:
    """Draw a bar chart of the times."""
    import matplotlib.pyplot as plt

    names = sorted(results, key=lambda name: -results[name]["wall_ratio"])
    figure, axes = plt.subplots(figsize=(7, 0.32 * len(names) + 1), layout="constrained")
    colours = ["#0072b2" if name.startswith("zarrow") else "#999999" for name in names]
    bars = axes.barh(names, [results[name]["wall_ratio"] for name in names], color=colours)
    axes.bar_label(bars, fmt="%.2g", padding=3)
    axes.set_xscale("log")
    axes.set_xlim(right=2 * max(results[name]["wall_ratio"] for name in names))
    axes.xaxis.set_major_formatter("{x:g}")
    synced = ", all synced at the end" if durable else ""
    axes.set_xlabel(f"time to write, relative to the raw bytes with fdatasync{synced}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--batch-rows", type=int, default=256)
    parser.add_argument("--kind", choices=("float32", "float16", "bf16"), default="float32")
    parser.add_argument("--step-ms", type=float, default=0, help="duration of a model's step per batch")
    parser.add_argument(
        "--durable", action="store_true", help="sync contenders that do not sync by themselves"
    )
    parser.add_argument("--repeat", type=int, default=5)
    default = [name for name in CONTENDERS if name not in NOT_BY_DEFAULT]
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=default)
    parser.add_argument(
        "--memory", action="store_true", help="measure only how peak memory grows over --sizes"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 400_000, 1_600_000])
    parser.add_argument("--picture", type=Path, help="file for a bar chart of the times")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--guide", type=Path, help="file in whose place for it the table is put")
    parser.add_argument("--folder", default=".", help="directory on the disk to measure")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(measure(options, Path(options.folder))))
        return
    results = growth(options) if options.memory else compare(options)
    if options.json:
        figures = {"options": vars(options), "versions": versions(*PACKAGES.values()), "medians": results}
        options.json.write_text(json.dumps(figures, default=str, indent=2))
    if options.picture and not options.memory:
        draw(results, options.picture, durable=options.durable)


if __name__ == "__main__":
    command(main)
