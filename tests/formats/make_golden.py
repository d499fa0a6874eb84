"""Golden stores — the test vectors of FORMAT.md: eight tiny stores, and what a reader finds in them.

``python tests/formats/make_golden.py`` writes them anew into ``tests/formats/golden/``, each with a JSON file
of the expected rows and damage, which this script has from the rows that it appends, not from a reader.
Identifiers and times are fixed, so a store changes only with the format or the library that writes Parquet.

A store's empty directories are not kept: git has none, and for a reader they are the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from crash.states import the_same_names

import zarrow
from zarrow._write import publishing

GOLDEN = Path(__file__).parent / "golden"
QUERIES = ["stroke", "", "séance"]


class Killed(BaseException):
    """A writer is dead from now on."""


class Then(datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz: object = None) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)


def row(number: int, shapes: dict[str, tuple[tuple[int, ...], str]]) -> dict[str, Any]:
    """Return a row as the expected JSON has it, without its position."""
    found: dict[str, Any] = {
        "id": number,
        "query": QUERIES[number % 3],
        "label": None if number % 4 == 3 else number % 2 == 0,
        "sample_index": 2 * number,
    }
    for name, (shape, dtype) in shapes.items():
        values = np.arange(np.prod(shape)).reshape(shape) + number
        found[name] = (values / 4 if dtype == "float32" else values).astype(dtype).tolist()
    return found


Shapes = dict[str, tuple[tuple[int, ...], str]]
PLAIN: Shapes = {"e": ((2,), "float32")}
PACKED: Shapes = {"p": ((2, 2), "int16"), "q": ((3,), "float32")}


def append(writer: zarrow.Writer, numbers: range, shapes: Shapes) -> None:
    """Append one batch: accepted on return."""
    rows = [row(number, shapes) for number in numbers]
    table = pa.table(
        {
            "id": pa.array([one["id"] for one in rows], pa.int64()),
            "query": pa.array([one["query"] for one in rows]).dictionary_encode(),
            "label": pa.array([one["label"] for one in rows], pa.bool_()),
        }
    )
    arrays = {name: np.array([one[name] for one in rows], dtype) for name, (_, dtype) in shapes.items()}
    writer.append(table, arrays, sample_index=[one["sample_index"] for one in rows])
    writer.flush()


def expected(
    numbers: list[int], shapes: Shapes, *, committed: int, complete: bool = False, damage: Any = ()
) -> dict[str, Any]:
    """Return what a reader finds."""
    rows = [{"row": place, **row(number, shapes)} for place, number in enumerate(numbers)]
    return {"complete": complete, "committed_rows": committed, "rows": rows, "damage": list(damage)}


def _writer(path: Path, **options: Any) -> zarrow.Writer:
    return zarrow.Writer(path, **{"segment_rows": 4, "keys": ["id", "query"], **options})


def _hash(row: dict[str, Any]) -> int:
    """Return the hash of a row's key, as section 13 has it."""
    mask = (1 << 64) - 1

    def step(before: int, word: int) -> int:
        mixed = ((before ^ word) + 0x9E3779B97F4A7C15) & mask
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
        return mixed ^ (mixed >> 31)

    text = row["query"].encode()
    word = step(0, len(text))
    for start in range(0, len(text), 8):
        word = step(word, int.from_bytes(text[start : start + 8].ljust(8, b"\0"), "little"))
    return step(step(0, row["id"]), word)


def complete(path: Path) -> dict[str, Any]:
    """Three segments, the last one short, and an index of keys."""
    with contextlib.closing(_writer(path)) as writer:
        append(writer, range(7), PLAIN)
        append(writer, range(7, 10), PLAIN)
        writer.finalize()
    zarrow.build_index(path)
    found = expected(list(range(10)), PLAIN, committed=10, complete=True)
    hashes = sorted((_hash(row), row["row"]) for row in found["rows"])
    index = [[f"{one:016x}", place, row(place, {})["id"], row(place, {})["query"]] for one, place in hashes]
    return found | {"index": index}


def compressed(path: Path) -> dict[str, Any]:
    """A committed segment, and an open one with a complete chunk and a tail."""
    codecs = {"p": ["zstd", "crc32c"], "q": "blosc"}
    with contextlib.closing(_writer(path, segment_rows=8, codecs=codecs)) as writer:
        for numbers in (range(3), range(3, 8), range(8, 11), range(11, 14)):
            append(writer, numbers, PACKED)
    return expected(list(range(14)), PACKED, committed=8)


def torn_tail(path: Path) -> dict[str, Any]:
    """An open segment whose last batch was being written when its writer was killed."""
    with contextlib.closing(_writer(path)) as writer:
        append(writer, range(2), PLAIN)
        writer.flush(durable=True)
        append(writer, range(2, 3), PLAIN)
    (frames,) = path.glob("open/*/table.frames")
    data = frames.read_bytes()
    last = data.rindex(b"ZARROWF1")
    if int.from_bytes(data[last + 48 : last + 52], "little") == 0:  # it only reports durable rows
        last = data.rindex(b"ZARROWF1", 0, last)
    frames.write_bytes(data[: last + 100])
    return expected([0, 1], PLAIN, committed=0)


def gap_with_claim(path: Path) -> dict[str, Any]:
    """Two writers: one was killed between claim and record of segment 0, the other has sealed segment 1."""
    first, second = _writer(path, shared=True), None
    with mock.patch.object(publishing, "commit", side_effect=Killed), contextlib.suppress(BaseException):
        append(first, range(100, 104), PLAIN)
        first.flush(durable=True)
    second = _writer(path, shared=True, mode="a")
    append(second, range(5), PLAIN)
    second.close()
    with contextlib.suppress(BaseException):
        first.close()
    return expected([0, 1, 2, 3, 100, 101, 102, 103, 4], PLAIN, committed=4)


def durable_damage(path: Path) -> dict[str, Any]:
    """A committed segment, and an open one in which a bit of a durable row has flipped."""
    with contextlib.closing(_writer(path)) as writer:
        append(writer, range(4), PLAIN)
        append(writer, range(4, 6), PLAIN)
        writer.flush(durable=True)
        append(writer, range(6, 7), PLAIN)
    (rows,) = path.glob("open/*/e.rows")
    data = bytearray(rows.read_bytes())
    data[9] ^= 16
    rows.write_bytes(data)
    damage = [{"path": f"open/{rows.parent.name}"}]
    return expected([0, 1, 2, 3], PLAIN, committed=4, damage=damage)


def quantized(path: Path) -> dict[str, Any]:
    """A quantized array, of a committed segment and an open one; row 2 is of zeros."""
    numbers, rows = list(range(6)), []
    with contextlib.closing(_writer(path, dtypes={"v": "int8"})) as writer:
        for number in numbers:
            values = np.array([[number - 2, 0.25 * (number - 2)]], np.float32)
            own = row(number, {})
            columns = {name: [own[name]] for name in ("id", "query", "label")}
            columns["query"] = pa.array(columns["query"]).dictionary_encode()
            columns["label"] = pa.array(columns["label"], pa.bool_())
            writer.append(columns, {"v": values}, sample_index=[own["sample_index"]])
            writer.flush()
            scale = np.float32(abs(number - 2)) / np.float32(127)
            steps = [127, 32] if number > 2 else [-127, -32] if number < 2 else [0, 0]
            found = [float(np.float32(step) * scale) for step in steps]
            rows.append({"row": number, **own, "v_scale": float(scale), "v": found})
    return expected([], {}, committed=4) | {"rows": rows}


def _append_ragged(writer: zarrow.Writer, numbers: range) -> None:
    """Append one batch: row n has n mod 4 vectors in `t`, and (n + 1) mod 3 in `z`, which is compressed."""
    rows = [_ragged_row(number) for number in numbers]
    table = pa.table(
        {
            "id": pa.array([one["id"] for one in rows], pa.int64()),
            "query": pa.array([one["query"] for one in rows]).dictionary_encode(),
            "label": pa.array([one["label"] for one in rows], pa.bool_()),
        }
    )
    arrays: dict[str, Any] = {
        name: zarrow.Ragged(
            np.array([vector for one in rows for vector in one[name]], dtype).reshape(-1, width),
            [len(one[name]) for one in rows],
        )
        for name, (width, dtype) in RAGGED.items()
    }
    arrays["v"] = np.array([one["v"] for one in rows], np.float32)
    writer.append(table, arrays, sample_index=[one["sample_index"] for one in rows])
    writer.flush()


RAGGED = {"t": (2, "float32"), "z": (3, "int16")}


def _ragged_row(number: int) -> dict[str, Any]:
    found = row(number, {})
    for name, count in (("t", number % 4), ("z", (number + 1) % 3)):
        width, dtype = RAGGED[name]
        values = np.arange(count * width).reshape(count, width) + 10 * number
        found[name] = (values / 4 if dtype == "float32" else values).astype(dtype).tolist()
    counts = {f"{name}_count": len(found[name]) for name in RAGGED}
    return found | counts | {"v_scale": 1.0, "v": [127.0 * (-1) ** number, float(number)]}


def _ragged_writer(path: Path) -> zarrow.Writer:
    return _writer(path, codecs={"z": "zstd"}, dtypes={"v": "int8"})


def ragged(path: Path) -> dict[str, Any]:
    """Two ragged arrays, one of them compressed, and a quantized one; of three segments, one is short."""
    with contextlib.closing(_ragged_writer(path)) as writer:
        for numbers in (range(3), range(3, 8), range(8, 9)):
            _append_ragged(writer, numbers)
        writer.finalize()
    found = expected([], {}, committed=9, complete=True)
    return found | {"rows": [{"row": number, **_ragged_row(number)} for number in range(9)]}


def ragged_open(path: Path) -> dict[str, Any]:
    """The same arrays, in a committed segment and in an open one."""
    with contextlib.closing(_ragged_writer(path)) as writer:
        for numbers in (range(3), range(3, 6), range(6, 7)):
            _append_ragged(writer, numbers)
    found = expected([], {}, committed=4)
    return found | {"rows": [{"row": number, **_ragged_row(number)} for number in range(7)]}


STORES = (
    complete,
    compressed,
    torn_tail,
    gap_with_claim,
    durable_damage,
    quantized,
    ragged,
    ragged_open,
)


@contextlib.contextmanager
def _fixed() -> Iterator[None]:
    with (
        the_same_names(),
        mock.patch("zarrow._write.directory.datetime", Then),
        mock.patch("zarrow._write.directory.this_host", return_value="host"),
        mock.patch("zarrow._write.declaration.this_host", return_value="host"),
        mock.patch("zarrow._write.declaration.datetime", Then),
        mock.patch("platform.python_version", return_value="3"),
        mock.patch("os.getpid", return_value=1),
        mock.patch.multiple("zarrow._format.array_spec", TARGET_CHUNK_BYTES=32, RAGGED_CHUNKS=16),
    ):
        yield


def make(folder: Path) -> None:
    """Write all stores, and the JSON of what a reader finds in them."""
    for store in STORES:
        name = store.__name__
        with tempfile.TemporaryDirectory() as top, _fixed():
            path = Path(top) / "store"
            found = store(path)
            shutil.rmtree(folder / name, ignore_errors=True)
            shutil.copytree(path, folder / name)
        text = json.dumps({"about": " ".join((store.__doc__ or "").split()), **found}, ensure_ascii=False)
        text = text.replace('"rows": [{', '"rows": [\n  {').replace('}, {"row"', '},\n  {"row"')
        (folder / f"{name}.json").write_text(text.replace('}], "damage"', '}\n], "damage"') + "\n")
    for left in sorted(folder.rglob("*"), reverse=True):
        if left.is_dir() and not os.listdir(left):
            left.rmdir()


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    make(GOLDEN)
