"""Flipped bits and `verify` — in every kind of file, in complete stores and in killed ones.

By default every bit of files up to 80 bytes is flipped, and one bit in every seventh byte of larger ones;
``--profile long`` flips every bit.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import zarrow
from zarrow._format import layout
from zarrow._read import catalog, open_rows
from zarrow.errors import ZarrowError

ALL_BITS_BYTES = 80

WRITE = """
import os, signal, sys
import numpy as np
import zarrow
from zarrow._format import array_spec

array_spec.TARGET_CHUNK_BYTES = array_spec.PAGE_BYTES = 64
array_spec.RAGGED_CHUNKS = 8
path, rows, end = sys.argv[1], int(sys.argv[2]), sys.argv[3]
values = np.random.default_rng(0)
writer = zarrow.Writer(path, keys=["id"], segment_rows=8, codecs={"z": "zstd"}, provenance={"host": "h"})
for start in range(0, rows, 3):
    n = min(3, rows - start)
    writer.append(
        {"id": np.arange(start, start + n), "q": [f"q{row % 3}" for row in range(start, start + n)]},
        {
            "e": values.random((n, 2), np.float32),
            "z": values.integers(0, 9, (n, 3)).astype("i2"),
            "t": zarrow.Ragged(values.random((n, 2), np.float32), [n, *[0] * (n - 1)]),
        },
        np.arange(start, start + n) * 2,
    )
if end == "finalize":
    writer.finalize()
elif end == "kill":
    writer.flush(durable=True)
    last = zarrow.Ragged(np.ones((1, 2), "f4"), [1])
    writer.append(
        {"id": [90], "q": ["last"]}, {"e": np.ones((1, 2), "f4"), "z": np.ones((1, 3), "i2"), "t": last}
    )
    writer.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module", params=["complete", "killed"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two segments; the killed one has an open segment with a row that is not durable."""
    path = tmp_path_factory.mktemp("flips") / f"{request.param}.zarrow"
    rows, end = ("11", "finalize") if request.param == "complete" else ("12", "kill")
    done = subprocess.run([sys.executable, "-c", WRITE, str(path), rows, end], check=False)
    assert done.returncode in (0, -9)
    return path


def unvouched(store: Path) -> dict[Path, int]:
    """Return how many leading bytes of each file of the open segments are covered by a frame."""
    spec = catalog.read_spec(store)
    counted = dict.fromkeys(store.glob("open/tmp-*"), 0)
    for slot in open_rows.slots(store):
        found = open_rows.read(slot, spec)
        if found is None:
            continue  # the next one, which was being created
        for index, array in enumerate(spec.arrays):
            rows = slot / layout.rows_name(array.name)
            if array.is_plain:
                counted[rows] = found.items(spec, index, found.rows) * array.row_bytes
                continue
            used = found.rows % array.chunk_rows
            side = found.frames[-1].arrays[index].tail_side if found.frames else 0
            counted[rows] = sum(c.size_bytes for f in found.frames for c in f.arrays[index].chunks)
            counted[slot / layout.tail_name(array.name, side)] = used * array.row_bytes
            counted[slot / layout.tail_name(array.name, 1 - side)] = 0
    return counted


def kind_of(path: Path) -> str:
    """Return the kind of a file, for the figures."""
    parts = path.parts
    if "c" in parts:
        return "shards"
    if parts[0] == "open":
        return "open/" + (path.suffix or path.name)
    return parts[0] if len(parts) == 1 else f"{parts[0]}/*{path.suffix}"


def flips(path: Path, counted: int, every: bool, small_bytes: int = ALL_BITS_BYTES) -> Iterator[int]:
    """Yield the numbers of the bits to flip: all of them, or of a larger file one in every seventh byte."""
    size = min(path.stat().st_size, counted)
    all_bits = every or size <= small_bytes
    for byte in range(0, size, 1 if all_bits else 7):
        bits = range(8) if all_bits else [byte * 5 % 8]
        yield from (byte * 8 + bit for bit in bits)


def check_flips(store: Path, tmp_path: Path, figures: Callable[..., None], *, every: bool) -> None:
    """Flip bits one at a time; verify must find each."""
    copy = tmp_path / "copy.zarrow"
    shutil.copytree(store, copy)
    before = zarrow.verify(copy)
    assert before.ok, before.findings
    limits = unvouched(copy)
    flipped: Counter[str] = Counter()
    left_out = 0
    missed = []
    for path in sorted(path for path in copy.rglob("*") if path.is_file()):
        relative = path.relative_to(copy)
        counted = limits.get(path, sys.maxsize)
        left_out += max(0, path.stat().st_size - counted)
        with path.open("r+b", buffering=0) as file:
            data = file.read()
            for bit in flips(path, counted, every):
                byte, mask = bit // 8, 1 << bit % 8
                file.seek(byte)
                file.write(bytes([data[byte] ^ mask]))
                report = zarrow.verify(copy)
                if report.ok or not report.counts["damage"] + report.counts["defect"]:
                    missed.append((str(relative), bit))
                file.seek(byte)
                file.write(data[byte : byte + 1])
                flipped[kind_of(relative)] += 1
    assert zarrow.verify(copy).findings == before.findings
    figures("bits flipped before verify", tried=flipped.total(), missed=len(missed))
    figures(f"bits flipped before verify, {store.stem}", **flipped, left_out_bytes=left_out)
    assert not missed


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_verify_finds_every_flipped_bit(
    store: Path, tmp_path: Path, profile: str, figures: Callable[..., None]
) -> None:
    """Every flipped bit of a small store is found, in any of its files."""
    check_flips(store, tmp_path, figures, every=profile == "long")


def read(path: Path) -> tuple[Any, ...]:
    """Read all rows of a complete store with checks, and look some up by key."""
    with zarrow.open(path) as opened:
        vectors = (opened.arrays[name] for name in ("e", "z"))
        checked = (array.read(0, len(array), check="crc").tolist() for array in vectors)
        tokens = opened["t"].read(0, len(opened), check="crc")
        return (
            opened.table(),
            *checked,
            tokens.values.tolist(),
            tokens.counts.tolist(),
            opened.locate({"id": [3, 10]}).tolist(),
        )


@pytest.mark.slow
@pytest.mark.parametrize("store", ["complete"], indirect=True)  # open segments are in `test_bits`
def test_no_flipped_bit_is_returned_by_a_checked_read(
    store: Path, tmp_path: Path, profile: str, figures: Callable[..., None]
) -> None:
    """A flipped bit of rows or keys raises a `ZarrowError` or changes nothing; documents: `test_bits`."""
    copy = Path(shutil.copytree(store, tmp_path / "copy.zarrow"))
    zarrow.build_index(copy)
    sound = read(copy)
    tried = refused = 0
    bad = []
    shards = [path for path in copy.rglob("c/**/0") if path.is_file()]
    files = [*shards, *copy.glob("index/*"), *copy.glob("table/*")]
    for path in files if profile == "long" else files[:-1]:  # the parts are similar
        data = path.read_bytes()
        for bit in flips(path, sys.maxsize, profile == "long", small_bytes=0):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            tried += 1
            try:
                if read(copy) != sound:
                    bad.append((path.name, bit, "wrong values"))
            except ZarrowError:
                refused += 1
            except Exception as error:  # noqa: BLE001 - no user would handle any other exception
                bad.append((path.name, bit, repr(error)))
        path.write_bytes(data)
    figures("bits flipped before a checked read", tried=tried, refused=refused, bad=len(bad))
    assert not bad, bad[:20]
