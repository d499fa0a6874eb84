"""All benchmarks — run one after the other; tables on the screen, figures and a picture in a folder.

From the repository, with ``pip install -c constraints.txt '.[bench]'``::

    python3 tests/benchmarks --out results            # more than an hour, and 10 GB of disk while it runs
    python3 tests/benchmarks --out results --quick    # minutes: few rows, one round, to check that it runs

Each part is a script with more options (``python3 tests/benchmarks/writers.py --help``). Ratios within one
run on one machine are meaningful, seconds are not; do not use the machine for anything else meanwhile.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from harness import command

HERE = Path(__file__).parent
NARROW = ["--width", "64"]
PARTS: dict[str, list[str]] = {
    "writers": ["writers.py"],
    "writers, all synced at the end": ["writers.py", "--durable", "--picture", "{out}/writers.svg"],
    "writers, small batches": ["writers.py", "--batch-rows", "32", "--only", "raw", "zarrow", "lance"],
    "writers, large batches": ["writers.py", "--batch-rows", "2048", "--only", "raw", "zarrow", "lance"],
    "writers, narrow": ["writers.py", *NARROW, "--only", "raw", "zarrow", "lance"],
    "writers, wide": ["writers.py", "--width", "4096", "--rows", "80000", "--only", "raw", "zarrow", "lance"],
    "ragged": ["ragged.py"],
    "writers, float16": ["writers.py", "--kind", "float16", "--only", "raw", "zarrow", "zarrow-blosc"],
    "writers, bf16 values": ["writers.py", "--kind", "bf16", "--only", "raw", "zarrow", "zarrow-blosc"],
    "writers, with a model": ["writers.py", "--step-ms", "5", "--only", "nothing", "zarrow", "zarrow-copy"],
    "several processes": ["writers.py", "--rows", "800000", "--only", "zarrow", "zarrow-2", "zarrow-4"],
    "memory while writing": ["writers.py", "--memory", "--repeat", "1"],
    "memory while writing, narrow": [
        *("writers.py", "--memory", *NARROW, "--repeat", "1", "--sizes", "100000", "1000000", "10000000")
    ],
    "readers": ["readers.py"],
    "loaders": ["loaders.py"],
    "memory while reading": ["readers.py", "--memory"],
    "codecs": ["codecs.py"],
    "analysis": ["analysis.py"],
    "quantized": ["quantized.py"],
    "predict": ["predict.py"],
    "growth": ["growth.py", "--picture", "{out}/growth.svg"],
    "memory of predict": ["predict.py", "--memory"],
}


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("benchmark-results"), help="directory for the figures"
    )
    parser.add_argument("--quick", action="store_true", help="few rows, one round")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in options.only:
        script, *arguments = [word.format(out=options.out) for word in PARTS[name]]
        words = [sys.executable, str(HERE / script), *arguments]
        if script == "predict.py":
            words += ["--batches", "40", "--rounds", "1"] if options.quick else []
        else:
            words += ["--json", str(options.out / f"{name.replace(', ', '-').replace(' ', '-')}.json")]
        if options.quick and script != "predict.py":
            words += ["--rows", "20000", "--repeat", "1"]
            words += ["--sizes", "10000", "20000"] if "--sizes" in words or "memory while w" in name else []
        print(f"\n== {name}: {' '.join(words[1:])}\n", flush=True)
        if subprocess.run(words, check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    command(main)
