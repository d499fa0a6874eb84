"""Codecs — what each costs in time and saves in bytes.

In each round every codec writes the same rows to a store of its own and reads them back; figures are
medians. The rows are random float32 (which no lossless codec shrinks by much), the same with bfloat16 values
(as a model in mixed precision yields), and scikit-learn's digits passed through a random linear layer with
ReLU (with zeros and repetitions, as in a hidden layer). Speeds count raw bytes; errors are differences from
the original rows.

    python3 tests/benchmarks/codecs.py --rows 100000
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import command, show_table

import zarrow


def bitround(bits: int) -> list[Any]:
    """Return bitround with this many bits of the mantissa, and a codec that compresses the zeros."""
    rounding = {"name": "numcodecs.bitround", "configuration": {"keepbits": bits}}
    return [rounding, "blosc-zstd-bitshuffle"]


CODECS: dict[str, Any] = {
    "none": None,
    "blosc-lz4-bitshuffle": "blosc-lz4-bitshuffle",
    "blosc-zstd-bitshuffle": "blosc-zstd-bitshuffle",
    "zstd": "zstd",
    "pcodec": "pcodec",
    "bitround(7) + zstd": bitround(7),
    "bitround(12) + zstd": bitround(12),
    "float16": None,
    "auto": "auto",
}


def normal(rows: int, width: int) -> np.ndarray:
    """Return random float32."""
    return np.random.default_rng(0).standard_normal((rows, width), np.float32)


def bf16(rows: int, width: int) -> np.ndarray:
    """Return random float32 with bfloat16 values."""
    return (normal(rows, width).view(np.uint32) & 0xFFFF0000).view(np.float32)


def hidden(rows: int, width: int) -> np.ndarray:
    """Return a hidden layer's outputs for handwritten digits."""
    from sklearn.datasets import load_digits

    pixels = load_digits().data.astype(np.float32) / 16
    weights = np.random.default_rng(0).standard_normal((64, width)).astype(np.float32) / 8
    outputs = np.maximum(pixels @ weights, 0)
    return outputs[np.random.default_rng(1).integers(0, len(outputs), rows)]


KINDS = {"float32": normal, "bf16-valued": bf16, "hidden layer": hidden}


def once(name: str, values: np.ndarray, folder: Path) -> dict[str, float]:
    """Write and read the rows once."""
    path = folder / "codec.zarrow"
    os.sync()
    start = time.perf_counter()
    with zarrow.Writer(path, codecs=CODECS[name]) as writer:
        for first in range(0, len(values), 256):
            batch = values[first : first + 256]
            batch = batch.astype(np.float16) if name == "float16" else batch
            writer.append(arrays={"e": batch}, copy=False)
        writer.finalize()
    write_s = time.perf_counter() - start
    store = zarrow.open(path)
    start = time.perf_counter()
    error = relative = 0.0
    read_s = 0.0
    cosine = 1.0
    for first in range(0, len(values), 8192):
        start = time.perf_counter()
        got = np.array(store["e"][first : first + 8192])
        read_s += time.perf_counter() - start
        want, got = values[first : first + 8192].astype("f8"), got.astype("f8")
        error = max(error, float(np.abs(got - want).max()))
        relative = max(relative, float((np.abs(got - want)[want != 0] / np.abs(want[want != 0])).max()))
        norms = np.linalg.norm(got, axis=1) * np.linalg.norm(want, axis=1)
        cosine = min(cosine, float(((got * want).sum(1)[norms > 0] / norms[norms > 0]).min()))
    size = sum(file.stat().st_size for file in path.glob("embeddings.zarr/e/c/**/*") if file.is_file())
    return {
        "bytes_ratio": size / values.nbytes,
        "write_mb_s": values.nbytes / write_s / 1e6,
        "read_mb_s": values.nbytes / read_s / 1e6,
        "max_error": error,
        "max_relative_error": relative,
        "min_cosine": min(cosine, 1.0),
    }


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CODECS, default=list(CODECS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(), help="directory on the disk to measure")
    options = parser.parse_args()
    results: dict[str, dict[str, dict[str, float]]] = {}
    for kind in options.kinds:
        values = KINDS[kind](options.rows, options.width)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in options.only}
        for number in range(options.repeat):
            for name in runs:
                with tempfile.TemporaryDirectory(prefix="codecs-", dir=options.folder) as folder:
                    runs[name].append(once(name, values, Path(folder)))
            print(f"{kind}: round {number + 1} of {options.repeat}", file=sys.stderr)
        results[kind] = {
            name: {figure: statistics.median(one[figure] for one in all_runs) for figure in all_runs[0]}
            for name, all_runs in runs.items()
        }
        print(f"\n{kind}: {options.rows:,} x {options.width}, medians of {options.repeat} rounds\n")
        head = ("codec", "bytes / raw", "write MB/s", "read MB/s", "max error", "max relative", "min cosine")
        rows = [
            (
                name,
                f"{one['bytes_ratio']:.2f}",
                f"{one['write_mb_s']:.0f}",
                f"{one['read_mb_s']:.0f}",
                f"{one['max_error']:.2g}",
                f"{one['max_relative_error']:.2g}",
                f"{one['min_cosine']:.7f}",
            )
            for name, one in results[kind].items()
        ]
        show_table(head, rows)
    if options.json:
        figures = {"options": vars(options), "medians": results}
        options.json.write_text(json.dumps(figures, default=str, indent=2))


if __name__ == "__main__":
    command(main)
