"""FORMAT.md — enough to read a store: a reader written from it alone finds the same rows as zarrow.

The reader is the class `MiniReader`, which uses the standard library, pyarrow and numpy. Section numbers are
those of the document. It checks every checksum, with a CRC32C of its own.
"""

import base64
import json
import re
import struct
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import zarrow
from zarrow._format.array_spec import ArraySpec
from zarrow._format.spec import StoreSpec
from zarrow._format.zarr_metadata import array_json, group_json

# --- The mini reader: nothing of zarrow from here ... --------------------------------------------------

_TABLE = []
for _byte in range(256):
    for _ in range(8):
        _byte = _byte >> 1 ^ (0x82F63B78 if _byte & 1 else 0)
    _TABLE.append(_byte)


def crc32c(data: bytes) -> int:
    """Section 2."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


class DamagedError(Exception):
    """A checksum does not match, or a file does not conform to the document."""


def believe(condition: bool, what: object) -> None:
    if not condition:
        raise DamagedError(str(what))


def document(path: Path) -> dict[str, Any]:
    """Section 4."""
    data = path.read_bytes()
    tail = data[-22:]
    believe(tail[:11] == b',"crc32c":"' and tail[19:] == b'"}\n', path)
    believe(crc32c(data[:-22]) == int(tail[11:19], 16), path)
    body: dict[str, Any] = json.loads(data)
    return body


class MiniReader:
    """A reader as section 1 describes it, for stores without damage."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.spec = document(root / "zarrow.json")
        believe(self.spec["zarrow_format"] == 1, "zarrow_format")
        self.full = self.spec["segment_rows"]
        message = pa.py_buffer(base64.b64decode(self.spec["arrow_schema"]))
        self.schema = pa.ipc.read_schema(message)
        self.complete = (root / "manifest.json").exists()
        self.records = list(self._records())
        self.rows = sum(record["rows"] for record in self.records)
        if self.complete:
            self._check_manifest(document(root / "manifest.json"))

    def _records(self) -> Iterator[dict[str, Any]]:
        """Section 1.2: the committed segments."""
        for number in count():
            path = self.root / f"segments/{number:08d}.json"
            if not path.exists():
                return
            record = document(path)
            believe(record["segment"] == number, path)
            yield record

    def _check_manifest(self, manifest: dict[str, Any]) -> None:
        """Section 8.3."""
        believe(manifest["uuid"] == self.spec["uuid"], "uuid")
        believe(manifest["rows"] == self.rows, "rows")
        paths = [self.root / f"segments/{number:08d}.json" for number in range(len(self.records))]
        believe(manifest["records_crc32c"] == [crc32c(path.read_bytes()) for path in paths], "records")
        believe(manifest["part_bytes"] == [record["part"]["size_bytes"] for record in self.records], "parts")
        for array in self.spec["arrays"]:
            sizes = [record["arrays"][array["name"]]["size_bytes"] for record in self.records]
            believe(manifest["shard_bytes"][array["name"]] == sizes, array["name"])

    def table(self) -> pa.Table:
        """Section 7: committed rows."""
        parts = []
        for record in self.records:
            data = (self.root / f"table/part-{record['segment']:08d}.parquet").read_bytes()
            believe(len(data) == record["part"]["size_bytes"], record)
            believe(crc32c(data) == record["part"]["crc32c"], record)
            footer = data[-8 - int.from_bytes(data[-8:-4], "little") :]
            believe(crc32c(footer) == record["part"]["footer_crc32c"], record)
            part = pq.read_table(pa.BufferReader(data))
            believe(part.num_rows == record["rows"], record)
            first = record["segment"] * self.full
            believe(part["row"].to_pylist() == list(range(first, first + part.num_rows)), "row")
            parts.append(part)
        return pa.concat_tables(parts)

    def _chunk_crc32c(self, array: dict[str, Any], stored: bytes) -> int:
        """Section 8.1: of the bytes before the checksum that the codec `crc32c` appends."""
        return crc32c(stored[:-4] if array["codecs"][-1]["name"] == "crc32c" else stored)

    def _decode(self, array: dict[str, Any], stored: bytes) -> np.ndarray:
        """Sections 5.2 and 6: one chunk."""
        shape = (array["chunk_rows"], *array["row_shape"])
        dtype = np.dtype(array["dtype"]).newbyteorder("<")
        size = int(np.prod(shape)) * dtype.itemsize
        for codec in reversed(array["codecs"]):
            if codec["name"] == "zstd":
                stored = pa.decompress(stored, decompressed_size=size, codec="zstd", asbytes=True)
            elif codec["name"] == "crc32c":
                believe(crc32c(stored[:-4]) == int.from_bytes(stored[-4:], "little"), "chunk")
                stored = stored[:-4]
            else:
                believe(codec["name"] == "bytes", codec)
        return np.frombuffer(stored, dtype).reshape(shape)

    def array(self, name: str) -> np.ndarray:
        """Section 6: committed rows."""
        array = next(array for array in self.spec["arrays"] if array["name"] == name)
        axes = len(array["row_shape"])
        pieces = [np.empty((0, *array["row_shape"]), array["dtype"])]
        for record in self.records:
            facts = record["arrays"][name]
            path = self.root / f"embeddings.zarr/{name}/c/{record['segment']}{'/0' * axes}"
            if not record["rows"]:
                believe(facts["size_bytes"] == 0 and not path.exists(), path)
                continue
            shard = path.read_bytes()
            believe(len(shard) == facts["size_bytes"], path)
            chunks = self.full // array["chunk_rows"]
            index = shard[-(16 * chunks + 4) :]
            believe(crc32c(index[:-4]) == facts["index_crc32c"], path)
            believe(crc32c(index[:-4]) == int.from_bytes(index[-4:], "little"), path)
            places = np.frombuffer(index[:-4], "<u8").reshape(chunks, 2)
            used = -(-record["rows"] // array["chunk_rows"])
            believe(len(facts["chunks_crc32c"]) == used, path)
            believe(bool((places[used:] == 2**64 - 1).all()), path)
            rows, end = [], 0
            for (offset, size), checksum in zip(places[:used].tolist(), facts["chunks_crc32c"], strict=True):
                believe(offset == end, "chunks lie directly behind each other")
                end = offset + size
                stored = shard[offset:end]
                believe(self._chunk_crc32c(array, stored) == checksum, path)
                rows.append(self._decode(array, stored))
            segment = np.concatenate(rows)
            believe(not segment[record["rows"] :].any(), "padding")
            pieces.append(segment[: record["rows"]])
        return np.concatenate(pieces)

    # Section 9

    def live(self) -> list[tuple[pa.Table, dict[str, np.ndarray]]]:
        """Section 1.5: the rows of open segments, oldest first."""
        found = []
        for path in sorted((self.root / "open").iterdir()):
            if len(path.name) == 16 and (path / "owner.json").exists() and (path / "table.frames").exists():
                owner = document(path / "owner.json")
                sources = [source for record in self.records for source in record["sources"]]
                believe(owner["reopens"] is None, "not in these tests")
                believe(path.name not in {slot for slot, *_ in sources}, "not in these tests")
                found.append(self._open_segment(path))
        return found

    def _frames(self, data: bytes) -> Iterator[tuple[int, int, list[Any], bytes]]:
        """Section 9.2."""
        offset = rows = 0
        while len(data) - offset >= 68:
            head = struct.unpack_from("<8sQ16sQQIIQ", data, offset)
            magic, size, uuid, first, durable, batch_rows, arrays, payload_bytes = head
            frame = data[offset : offset + size]
            if magic != b"ZARROWF1" or uuid.hex() != self.spec["uuid"] or size % 8 or len(frame) != size:
                return
            if crc32c(frame[:-4]) != int.from_bytes(frame[-4:], "little"):
                return
            believe(first == rows and durable <= rows and arrays == len(self.spec["arrays"]), "frame")
            place, entries = 64, []
            for _ in range(arrays):
                rows_crc, tail_crc, side, chunks = struct.unpack_from("<IIII", frame, place)
                place += 16
                done = [struct.unpack_from("<QI", frame, place + 16 * index) for index in range(chunks)]
                place += 16 * chunks
                entries.append((rows_crc, tail_crc, side, done))
            yield first, batch_rows, entries, frame[place : place + payload_bytes]
            rows += batch_rows
            offset += size

    def _open_segment(self, path: Path) -> tuple[pa.Table, dict[str, np.ndarray]]:
        """Section 9.4; the only damage in these tests is a torn tail of frames."""
        fields = [
            field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
            for field in self.schema
        ]
        wire = pa.schema([*fields, pa.field("sample_index", pa.int64())])
        frames = list(self._frames((path / "table.frames").read_bytes()))
        batches = [
            pa.ipc.read_record_batch(pa.py_buffer(payload), wire) for _, rows, _, payload in frames if rows
        ]
        table = pa.Table.from_batches(batches, wire)
        total = sum(rows for _, rows, _, _ in frames)
        believe(table.num_rows == total, path)
        arrays = {}
        for place, array in enumerate(self.spec["arrays"]):
            entries = [entries[place] for _, _, entries, _ in frames]
            arrays[array["name"]] = self._open_rows(path, array, total, entries)
            start = 0
            for (_, rows, _, _), (rows_crc, _, _, _) in zip(frames, entries, strict=True):
                batch = arrays[array["name"]][start : start + rows]
                believe(crc32c(batch.tobytes()) == rows_crc, path)
                start += rows
        return table, arrays

    def _open_rows(self, path: Path, array: dict[str, Any], rows: int, entries: list[Any]) -> np.ndarray:
        """Section 9.3."""
        data = (path / f"{array['name']}.rows").read_bytes()
        dtype = np.dtype(array["dtype"]).newbyteorder("<")
        shape, row_bytes = array["row_shape"], int(np.prod(array["row_shape"])) * dtype.itemsize
        if [codec["name"] for codec in array["codecs"]] == ["bytes"]:
            return np.frombuffer(data[: rows * row_bytes], dtype).reshape(rows, *shape)
        pieces, offset = [np.empty((0, *shape), dtype)], 0
        for _, _, _, done in entries:
            for size, checksum in done:
                believe(self._chunk_crc32c(array, data[offset : offset + size]) == checksum, path)
                pieces.append(self._decode(array, data[offset : offset + size]))
                offset += size
        left = rows % array["chunk_rows"]
        if left:
            _, tail_crc, side, _ = entries[-1]
            tail = (path / f"{array['name']}.tail{side}").read_bytes()[: left * row_bytes]
            believe(crc32c(tail) == tail_crc, path)
            pieces.append(np.frombuffer(tail, dtype).reshape(left, *shape))
        return np.concatenate(pieces)


# --- ... to here ---------------------------------------------------------------------------------------

SEGMENT_ROWS = 128
SHAPES: dict[str, tuple[int, ...]] = {"plain": (4096,), "packed": (2, 2048), "small": (3,)}
CODECS = {"packed": ["zstd", "crc32c"]}


def batch(start: int, stop: int) -> tuple[pa.Table, dict[str, np.ndarray], np.ndarray]:
    rows = np.arange(start, stop)
    table = pa.table(
        {
            "id": rows,
            "query": pa.array([f"q{row % 7}" for row in rows]).dictionary_encode(),
            "label": pa.array([None if row % 5 == 0 else bool(row % 2) for row in rows]),
            "codes": pa.array([[int(row)] * (row % 3) for row in rows], pa.list_(pa.int32())),
        }
    )
    arrays = {
        "plain": np.add.outer(rows * 4096, np.arange(4096)).astype(np.float32),
        "packed": np.add.outer(rows // 3, np.arange(4096) // 64).reshape(-1, 2, 2048).astype(np.float32),
        "small": np.add.outer(rows, np.arange(3)).astype(np.int16),
    }
    return table, arrays, rows * 2


def write(path: Path, rows: int, *, finalize: bool) -> None:
    with zarrow.Writer(path, keys=["id"], segment_rows=SEGMENT_ROWS, codecs=CODECS) as writer:
        for start in range(0, rows, 50):
            writer.append(*batch(start, min(start + 50, rows)))
        if finalize:
            writer.finalize()


def assert_rows(table: pa.Table, arrays: dict[str, np.ndarray], start: int, stop: int) -> None:
    columns, vectors, index = batch(start, stop)
    assert table.select(columns.column_names).to_pylist() == columns.to_pylist()
    assert table["sample_index"].to_pylist() == index.tolist()
    for name, expected in vectors.items():
        assert arrays[name].dtype == expected.dtype
        np.testing.assert_array_equal(arrays[name], expected)


def test_crc32c_is_the_one_of_the_document() -> None:
    """The test vector of section 2 holds."""
    assert crc32c(b"123456789") == 0xE3069283


def test_a_complete_store(tmp_path: Path) -> None:
    """The document's reader finds all rows of a complete store, and so does zarrow."""
    path = tmp_path / "run.zarrow"
    write(path, 300, finalize=True)
    mini, store = MiniReader(path), zarrow.open(path)
    assert mini.complete
    assert mini.rows == store.num_rows == 300
    assert mini.live() == []
    assert [array["chunk_rows"] for array in mini.spec["arrays"]] == [64, 64, 128]
    table, arrays = mini.table(), {name: mini.array(name) for name in SHAPES}
    assert_rows(table, arrays, 0, 300)
    assert table.schema == store.table().schema
    assert table.to_pylist() == store.table().to_pylist()
    for name, values in arrays.items():
        np.testing.assert_array_equal(values, np.asarray(store[name]))


@pytest.mark.parametrize("torn", [b"", b"ZARROWF1" + bytes(100), b"\x00" * 500])
def test_a_store_that_was_not_finalized(tmp_path: Path, torn: bytes) -> None:
    """It finds the committed and accepted rows of a run that died, whatever follows the last frame."""
    path = tmp_path / "run.zarrow"
    write(path, 300, finalize=False)
    (frames,) = path.glob("open/*/table.frames")
    frames.write_bytes(frames.read_bytes() + torn)
    mini = MiniReader(path)
    assert not mini.complete
    assert mini.rows == 256
    assert_rows(mini.table(), {name: mini.array(name) for name in SHAPES}, 0, 256)
    ((table, arrays),) = mini.live()
    assert_rows(table, arrays, 256, 300)
    assert zarrow.open(path, partial=True).num_rows == 300


def test_open_rows_of_unfinished_and_finished_chunks(tmp_path: Path) -> None:
    """It finds the rows of an open segment in chunks and in either tail file."""
    for rows in (40, 64, 100, 127):
        path = tmp_path / f"{rows}.zarrow"
        write(path, rows, finalize=False)
        ((table, arrays),) = MiniReader(path).live()
        assert_rows(table, arrays, 0, rows)


def test_a_store_without_rows(tmp_path: Path) -> None:
    """It reads a complete store without rows, which has a part and no shards."""
    path = tmp_path / "none.zarrow"
    shapes = {name: (shape, "float32") for name, shape in SHAPES.items()}
    with zarrow.Writer(path, schema=pa.schema({"id": pa.int64()}), arrays=shapes) as writer:
        writer.finalize()
    mini = MiniReader(path)
    assert (mini.complete, mini.rows, mini.table().num_rows) == (True, 0, 0)
    assert {name: mini.array(name).shape for name in SHAPES} == {name: (0, *SHAPES[name]) for name in SHAPES}


@pytest.mark.parametrize(
    "name",
    [
        "zarrow.json",
        "manifest.json",
        "segments/00000001.json",
        "table/part-00000001.parquet",
        "embeddings.zarr/plain/c/1/0",
        "embeddings.zarr/packed/c/1/0/0",
    ],
)
def test_damage_is_seen(tmp_path: Path, name: str) -> None:
    """The checksums of the document reveal a flipped bit in the middle of any file."""
    path = tmp_path / "run.zarrow"
    write(path, 200, finalize=True)
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 4
    (path / name).write_bytes(data)

    def read() -> None:
        mini = MiniReader(path)
        mini.table()
        for array in SHAPES:
            mini.array(array)

    with pytest.raises(DamagedError):
        read()


def test_the_document_names_what_the_code_writes(tmp_path: Path) -> None:
    """FORMAT.md describes every member of every JSON document, and every file of a store."""
    text = DOCUMENT.read_text(encoding="utf-8")
    path = tmp_path / "run.zarrow"
    write(path, 300, finalize=False)
    members = json_members(path)
    zarrow.Writer(path, mode="a").finalize()
    members |= json_members(path)
    assert {"zarrow_format", "sources", "records_crc32c", "reopens"} < members
    assert [
        member for member in sorted(members) if f"`{member}" not in text and f'"{member}"' not in text
    ] == []


DOCUMENT = Path(zarrow.__file__).parent / "FORMAT.md"


def test_every_section_that_is_referred_to_exists() -> None:
    """References to sections, in the document, the code and the tests, name sections of the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    sections = set(re.findall(r"^##+ (\d+(?:\.\d+)?)\.? ", text, re.MULTILINE))
    assert {"1", "1.2", "9.4", "17"} < sections
    text = re.sub(r"RFC \d+,? section [\d.]+", "", text)
    named = set(re.findall(r"\bsections? (\d+(?:\.\d+)?)", text)) | set(re.findall(r"\((\d+\.\d+)", text))
    for file in [*DOCUMENT.parent.rglob("*.py"), *Path(__file__).parent.glob("**/*.py")]:
        code = re.sub(r"\s+", " ", file.read_text(encoding="utf-8"))
        named |= set(re.findall(r"FORMAT\.md`*,? \(?sections? (\d+(?:\.\d+)?)", code))
    named |= set(re.findall(r'"""Sections? (\d+(?:\.\d+)?)', Path(__file__).read_text(encoding="utf-8")))
    assert named - sections == set()


def test_the_zarr_metadata_of_the_document_is_what_is_written() -> None:
    """The document's examples of zarr.json have the values that the code writes."""
    group, array = map(json.loads, re.findall(r"```json\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL))
    one = ArraySpec(name="A", row_shape=(768,), dtype="float32", chunk_rows=256)
    spec = StoreSpec(uuid="0" * 32, segment_rows=32768, schema=pa.schema([]), arrays=(one,))
    assert json.loads(array_json(spec, one, 100_000)) == array
    group["attributes"]["zarrow"]["uuid"] = spec.uuid
    group["consolidated_metadata"]["metadata"] = {"A": array}
    assert json.loads(group_json(spec, 100_000)) == group


def json_members(path: Path) -> set[str]:
    return {member for file in path.rglob("*.json") if file.name != "zarr.json" for member in document(file)}
