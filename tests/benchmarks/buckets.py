"""Buckets — a store in a bucket, beside obstore itself, which gets the same bytes, and beside Lance.

    python3 tests/benchmarks/buckets.py                    # a minute
    python3 tests/benchmarks/buckets.py --rows 200000

The server (moto, S3) runs on this machine in a process of its own and is slower than any network, so only
ratios to obstore mean something: they say what zarrow adds to the requests. It reads the whole object for
every range. obstore puts files that are there, and scans into one array. Rounds are interleaved; medians.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import command, show_table


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port)
        with tempfile.TemporaryDirectory() as folder:
            _run(options, f"http://127.0.0.1:{port}", Path(folder))
    finally:
        server.kill()
        server.wait()


def _wait(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    sys.exit("the server did not start")


def _run(options: argparse.Namespace, endpoint: str, folder: Path) -> None:
    import boto3
    import lance
    import obstore
    import pyarrow as pa
    import pyarrow.compute as pc

    import zarrow

    keys = {"region": "us-east-1", "access_key_id": "me", "secret_access_key": "secret"}
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="me",
        aws_secret_access_key="secret",
    )
    client.create_bucket(Bucket="bench")
    there = {"endpoint": endpoint, "allow_http": True, **keys}
    raw = obstore.store.from_url(
        "s3://bench/raw", config={"endpoint": endpoint, **keys}, client_options={"allow_http": True}
    )
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((options.rows, options.width), np.float32)
    ids = np.arange(options.rows)
    with zarrow.Writer(folder / "run.zarrow") as writer:
        for start in range(0, options.rows, 256):
            here = slice(start, start + 256)
            writer.append({"id": ids[here], "p": ids[here] / options.rows}, {"e": vectors[here]})
        writer.finalize()
    files = [path for path in (folder / "run.zarrow").rglob("*") if path.is_file()]
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), options.width)
    table = pa.table({"id": ids, "p": ids / options.rows, "e": flat})
    lance_options = {
        "aws_endpoint": endpoint,
        "allow_http": "true",
        **{f"aws_{key}": value for key, value in keys.items()},
    }
    counts = {"obstore": 0, "zarrow": 0, "lance": 0}

    def put() -> None:
        counts["obstore"] += 1
        for path in files:
            obstore.put(raw, f"{counts['obstore']}/{path.relative_to(folder / 'run.zarrow')}", path)

    def copied() -> None:
        counts["zarrow"] += 1
        zarrow.copy(folder / "run.zarrow", f"s3://bench/z{counts['zarrow']}", storage_options=there)

    def lance_write() -> None:
        counts["lance"] += 1
        lance.write_dataset(table, f"s3://bench/l{counts['lance']}", storage_options=lance_options)

    for write in (put, copied, lance_write):
        write()
    store = zarrow.open("s3://bench/z1", storage_options=there)
    found = lance.dataset("s3://bench/l1", storage_options=lance_options)
    rows = np.sort(rng.choice(options.rows, 200, replace=False))
    segment, bytes_ = store.segment_rows, options.width * 4
    shards = [f"1/embeddings.zarr/e/c/{number}/0" for number in range(-(-options.rows // segment))]

    def ranges() -> None:
        for number, shard in enumerate(shards):
            starts = [int(row % segment) * bytes_ for row in rows[rows // segment == number]]
            if starts:
                obstore.get_ranges(
                    raw, shard, starts=starts, lengths=[bytes_] * len(starts), coalesce=64 << 10
                )

    def one_array() -> np.ndarray:
        out = np.empty((options.rows, options.width), np.float32)
        for number, shard in enumerate(shards):
            here = out[number * segment : (number + 1) * segment]
            found = np.frombuffer(obstore.get(raw, shard).bytes(), np.float32, here.size)
            here[:] = found.reshape(here.shape)
        return out

    def written() -> None:
        counts["zarrow"] += 1
        url = f"s3://bench/w{counts['zarrow']}"
        with zarrow.Writer(url, storage_options=there, spool=folder / "spool") as writer:
            for start in range(0, options.rows, 256):
                here = slice(start, start + 256)
                writer.append({"id": ids[here], "p": ids[here] / options.rows}, {"e": vectors[here]})
            writer.finalize()

    tops = int(options.rows * 0.99)
    work: dict[str, dict[str, Callable[[], Any]]] = {
        "write rows": {"obstore": put, "zarrow": written, "lance": lance_write},
        "copy, read back by zarrow": {"obstore": put, "zarrow": copied, "lance": lance_write},
        "open to first row": {
            "zarrow": lambda: zarrow.open("s3://bench/z1", storage_options=there)["e"][0],
            "lance": lambda: lance.dataset("s3://bench/l1", storage_options=lance_options).take([0]),
        },
        "200 rows": {
            "obstore": ranges,
            "zarrow": lambda: store["e"][rows],
            "lance": lambda: found.take(rows, columns=["e"]),
        },
        "scan": {
            "obstore": one_array,
            "zarrow": lambda: np.asarray(store["e"]),
            "lance": lambda: found.to_table(columns=["e"]),
        },
        "1 % by a filter": {
            "zarrow": lambda: [*store.join(pc.field("id") >= tops)],
            "lance": lambda: found.to_table(filter=f"id >= {tops}"),
        },
    }
    taken: dict[str, dict[str, list[float]]] = {
        what: {name: [] for name in how} for what, how in work.items()
    }
    for _ in range(options.repeat):
        for what, how in work.items():
            for name, run in how.items():
                begin = time.perf_counter()
                run()
                taken[what][name].append(time.perf_counter() - begin)
    assert np.array_equal(store["e"][rows], vectors[rows])
    lines = []
    for what, how in taken.items():
        medians = {name: statistics.median(seconds) for name, seconds in how.items()}
        base = medians.get("obstore")
        lines.append(
            [what]
            + [f"{1000 * medians[name]:.1f}" if name in medians else "–" for name in counts]
            + ["–" if base is None else f"{base / medians['zarrow']:.2f}"]
            + [f"{medians['lance'] / medians['zarrow']:.2f}"]
        )
    size = f"{options.rows:,} × {options.width} float32"
    show_table(
        [f"ms, {size}", "obstore", "zarrow", "Lance", "zarrow's speed / obstore's", "/ Lance's"], lines
    )


if __name__ == "__main__":
    command(main)
