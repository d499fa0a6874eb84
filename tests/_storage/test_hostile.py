"""Hostile stores — made to do harm, with valid checksums, and opened, verified and written to without any.

Every case runs in a process of its own, with limits on memory and time, which reports the outcome of every
way of using the store.
"""

from __future__ import annotations

import gzip
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from _storage import hostile_use
from crash.workloads import scratch

import zarrow
from zarrow._format import frames, layout
from zarrow._format.checksum import crc32c
from zarrow._format.documents import decode_document, encode_document
from zarrow._format.pages import read_footer
from zarrow._format.records import PartFacts, ShardFacts
from zarrow._format.shard_index import encode_index, index_crc32c
from zarrow._read import catalog

MEMORY_BYTES = 192 << 20
"""By how much a process may grow; every bomb here is larger."""
BOMB_BYTES = 256 << 20
TIMEOUT_S = 60

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["_storage.hostile_use"])


def part_facts(data: bytes) -> PartFacts:
    """Return the facts that a record states about a part."""
    footer = read_footer(lambda offset, size: data[offset : offset + size], len(data))
    return PartFacts(size_bytes=len(data), crc32c=crc32c(data), footer_crc32c=crc32c(footer))


def try_all(store: Path, ways: Sequence[str] = hostile_use.WAYS) -> dict[str, Any]:
    """Use a store in several ways, in a process of its own, and return the outcome of each."""
    ours, theirs = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=hostile_use.use, args=(str(store), ways, theirs))
    process.start()
    theirs.close()
    try:
        assert ours.poll(TIMEOUT_S), "the process hangs"
        return dict(ours.recv())
    finally:
        process.kill()
        process.join()


def write(path: Path, *, finalize: bool, ragged: bool = False) -> None:
    """Write 13 rows in segments of 8, perhaps with two ragged arrays, one of them compressed."""
    codecs = {"z": "zstd", "tz": "zstd"} if ragged else {"z": "zstd"}
    with zarrow.Writer(path, keys=["id"], segment_rows=8, codecs=codecs) as writer:
        for start in range(0, 13, 4):
            n = min(4, 13 - start)
            vectors: dict[str, Any] = {"e": np.ones((n, 3), np.float32), "z": np.ones((n, 2), np.int16)}
            if ragged:
                counts = [3 * row % 5 for row in range(n)]
                tokens = np.ones((sum(counts), 2), np.float32)
                vectors["t"] = zarrow.Ragged(tokens, counts)
                vectors["tz"] = zarrow.Ragged(tokens.astype(np.int16), counts[::-1])
            writer.append({"id": np.arange(start, start + n), "q": [f"q{row}" for row in range(n)]}, vectors)
        if finalize:
            writer.finalize()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory in memory, so that the disk does not add to a case's time."""
    with scratch() as path:
        yield path


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store that is complete, one that is not."""
    directory = tmp_path_factory.mktemp("templates")
    write(directory / "complete.zarrow", finalize=True)
    write(directory / "open.zarrow", finalize=False)
    return directory


# Ways to do harm: each is given a store, and a directory outside it


def rewrite(path: Path, **changes: Any) -> None:
    """Change a document, and its checksum to match."""
    body = decode_document(path.read_bytes(), "")
    path.write_bytes(encode_document(body | changes))


def rewrite_spec(store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the store's specification."""
    path = store / "zarrow.json"
    body = decode_document(path.read_bytes(), "")
    change(body)
    path.write_bytes(encode_document(body))


def rewrite_array(store: Path, array: str, /, **changes: Any) -> None:
    """Change an array's specification."""

    def change(body: dict[str, Any]) -> None:
        next(one for one in body["arrays"] if one["name"] == array).update(changes)

    rewrite_spec(store, change)


def recommit(store: Path, number: int, **changes: Any) -> None:
    """Rewrite a segment's record, and the manifest to match."""
    record = replace(catalog.read_record(store, number, catalog.read_spec(store))[0], **changes)
    (store / layout.record_path(number)).write_bytes(record.encode())
    if (store / "manifest.json").exists():
        manifest = decode_document((store / "manifest.json").read_bytes(), "")
        manifest["records_crc32c"][number] = crc32c(record.encode())
        manifest["part_bytes"][number] = record.part.size_bytes
        for name, facts in record.arrays.items():
            manifest["shard_bytes"][name][number] = facts.size_bytes
        rewrite(store / "manifest.json", **manifest)


def replace_part(store: Path, number: int, data: bytes) -> None:
    """Replace a part, and commit it."""
    (store / layout.part_path(number)).write_bytes(data)
    recommit(store, number, part=part_facts(data))


def replace_chunk(store: Path, number: int, chunk: bytes, index: bytes | None = None) -> None:
    """Replace the only chunk of a shard of ``z``, and commit it."""
    index = encode_index([len(chunk)], 1) if index is None else index
    (store / layout.shard_path("z", number, 1)).write_bytes(chunk + index)
    facts = ShardFacts(
        size_bytes=len(chunk) + len(index), chunks_crc32c=(crc32c(chunk),), index_crc32c=index_crc32c(index)
    )
    record, _ = catalog.read_record(store, number, catalog.read_spec(store))
    recommit(store, number, arrays={**record.arrays, "z": facts})


def slot_of(store: Path) -> Path:
    """Return the open segment that has rows."""
    return next(path.parent for path in store.glob("open/*/table.frames") if path.stat().st_size)


def reframe(store: Path, change: Callable[[bytearray], None]) -> None:
    """Change the first frame with rows of the journal and its checksum, and drop the frames after it."""
    path = slot_of(store) / "table.frames"
    data = path.read_bytes()
    start = data.index(b"ZARROWF1", 8)
    size = int.from_bytes(data[start + 8 : start + 16], "little")
    frame = bytearray(data[start : start + size - 4])
    change(frame)
    path.write_bytes(data[:start] + frame + crc32c(bytes(frame)).to_bytes(4, "little"))


def repay(store: Path, payload: bytes, rows: int) -> None:
    """Write a journal of one frame with this payload."""
    spec = catalog.read_spec(store)
    slot = slot_of(store)
    ones = crc32c((slot / "e.rows").read_bytes()[: rows * 12])
    tails = [path.read_bytes()[: rows * 4] for path in sorted(slot.glob("z.tail*"))]
    side = max(range(2), key=lambda number: len(tails[number]))
    entries = [
        frames.ArrayEntry(ones) if array.is_plain else frames.ArrayEntry(0, crc32c(tails[side]), side)
        for array in spec.arrays
    ]
    frame = frames.encode(bytes.fromhex(spec.uuid), 0, rows, 0, entries, payload)
    (slot / "table.frames").write_bytes(frame)


def link_out(name: str) -> Callable[[Path, Path], None]:
    """Move a file or directory out of the store, and leave a link to it."""

    def do(store: Path, outside: Path) -> None:
        found = [path for path in store.glob(name) if path.is_dir() or path.stat().st_size or "lock" in name]
        target = outside / found[0].name
        os.rename(found[0], target)
        found[0].symlink_to(target)

    return do


def pipe(name: str) -> Callable[[Path, Path], None]:
    """Replace a file by a pipe without a writer."""

    def do(store: Path, outside: Path) -> None:
        path = next(iter(store.glob(name)))
        path.unlink()
        os.mkfifo(path)

    return do


def plant(name: str) -> Callable[[Path, Path], None]:
    """Make a link to the outside where a writer is going to write."""

    def do(store: Path, outside: Path) -> None:
        path = store / name
        if path.is_dir():
            shutil.rmtree(path)
        path.symlink_to(outside)

    return do


def columns(q: pa.Array, rows: int = 8, **options: Any) -> bytes:
    """Return a part."""
    table = pa.table(
        {"id": np.arange(rows), "q": q, "row": np.arange(rows), "sample_index": pa.nulls(rows, pa.int64())},
    )
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("q", q.type),
            pa.field("row", pa.int64(), nullable=False),
            pa.field("sample_index", pa.int64()),
        ]
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table.cast(schema), sink, compression="zstd", **options)
    return bytes(sink.getvalue())


def long_string(store: Path, outside: Path) -> None:
    """One string that zstd compresses ten-thousandfold."""
    text = pa.array(["a" * (BOMB_BYTES - 1000), *"bcde"])
    replace_part(store, 1, columns(text, 5, use_dictionary=False))


def repeated_string(store: Path, outside: Path) -> None:
    """More rows than a segment has, all with the same string, stored once in the file."""
    text = pa.DictionaryArray.from_arrays(np.zeros(1 << 20, np.int32), ["a" * 4096])
    replace_part(store, 1, columns(text, 1 << 20, store_schema=False))


def repeating(**options: Any) -> Callable[[Path, Path], None]:
    """Make a store of as many rows as its record says, all with the same long string."""

    def do(store: Path, outside: Path) -> None:
        shutil.rmtree(store)
        rows = 4096
        with zarrow.Writer(store, keys=["id"], segment_rows=2 * rows, codecs={"z": "zstd"}) as writer:
            vectors = {"e": np.ones((rows, 3), np.float32), "z": np.ones((rows, 2), np.int16)}
            writer.append({"id": np.arange(rows), "q": ["q"] * rows}, vectors)
            writer.finalize()
        text = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), ["a" * (1 << 20)])
        if "column_encoding" in options:  # where a page holds its longest value
            text = pa.array(["a" * (BOMB_BYTES // rows)] * rows)
        replace_part(store, 0, columns(text, rows, store_schema=False, **options))

    return do


def zstd(size: int) -> bytes:
    """Return a small zstd frame that decompresses to this many zeros."""
    return bytes(numcodecs.Zstd().encode(bytes(size)))


def compressed_payload(store: Path, outside: Path) -> None:
    """A record batch with compressed buffers that claim to be large."""
    spec = catalog.read_spec(store)
    rows = 5
    text = pa.array(["a" * (BOMB_BYTES // 8), *"bcde"])
    batch = pa.record_batch([np.arange(rows), text, pa.nulls(rows, pa.int64())], schema=spec.wire_schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write_batch(batch)
    source = pa.BufferReader(sink.getvalue())
    pa.ipc.read_message(source)
    repay(store, pa.ipc.read_message(source).serialize().to_pybytes(), rows)


def wild_offsets(store: Path, outside: Path) -> None:
    """A record batch whose strings start far beyond its end."""
    spec = catalog.read_spec(store)
    columns = [pa.array(range(5)), pa.array(list("abcde")), pa.nulls(5, pa.int64())]
    payload = pa.RecordBatch.from_arrays(columns, schema=spec.wire_schema).serialize().to_pybytes()
    offsets = np.arange(6, dtype="<i4").tobytes()
    assert payload.count(offsets) == 1
    repay(store, payload.replace(offsets, np.arange(1 << 30, (1 << 30) + 6, dtype="<i4").tobytes()), 5)


def pad(name: str, extra: bytes) -> Callable[[Path, Path], None]:
    """Give a document a member more."""

    def do(store: Path, outside: Path) -> None:
        path = next(iter(store.glob(name)))
        text = path.read_bytes()[: -len(b',"crc32c":"00000000"}\n')] + b',"more":' + extra
        path.write_bytes(text + b',"crc32c":"%08x"}\n' % crc32c(text))

    return do


LISTS = b"[" + b"[]," * (2 << 20) + b"[]]"
OBJECTS = b"[" + b'{"":0},' * (1 << 20) + b"0]"
NUMBERS = b"[" + b"1000," * (12 << 20) + b"0]"
TWICE = b'1,"more":2'


class Harm:
    """An object that creates a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path / "unpickled"),)


def pickled(codecs: list[dict[str, Any]]) -> Callable[[Path, Path], None]:
    """Name a codec that unpickles, and store a pickle for it."""

    def do(store: Path, outside: Path) -> None:
        replace_chunk(store, 0, pickle.dumps(Harm(outside)))
        rewrite_array(store, "z", codecs=codecs)

    return do


def shard_index(offset: int, size: int) -> Callable[[Path, Path], None]:
    """Let the shard index point elsewhere, with a valid checksum."""

    def do(store: Path, outside: Path) -> None:
        entries = np.array([[offset, size]], "<u8").tobytes()
        replace_chunk(store, 0, zstd(32), entries + crc32c(entries).to_bytes(4, "little"))

    return do


def put(start: int, value: int, width: int) -> Callable[[Path, Path], None]:
    """Write a number into the first frame."""

    def do(store: Path, outside: Path) -> None:
        reframe(
            store,
            lambda frame: frame.__setitem__(slice(start, start + width), value.to_bytes(width, "little")),
        )

    return do


def grow_sparse(name: str) -> Callable[[Path, Path], None]:
    """Grow a file to many GiB without using disk space."""

    def do(store: Path, outside: Path) -> None:
        os.truncate(next(iter(store.glob(name))), 64 << 30)

    return do


def far_byte(store: Path, outside: Path) -> None:
    """A byte many GiB behind the last frame, and nothing between."""
    with (slot_of(store) / "table.frames").open("r+b") as file:
        file.seek(64 << 30)
        file.write(b"x")


def nest(store: Path, outside: Path) -> None:
    """JSON nested deeper than any stack."""
    text = b'{"a":' + b"[" * 1_000_000
    (store / "zarrow.json").write_bytes(text + b',"crc32c":"%08x"}\n' % crc32c(text))


BLOSC_BOMB = (
    bytes([2, 1, 0x21, 4])
    + BOMB_BYTES.to_bytes(4, "little")
    + bytes([0, 0, 4, 0])
    + (64).to_bytes(4, "little")
    + bytes(48)
)
BLOSC = {
    "name": "blosc",
    "configuration": {"cname": "lz4", "clevel": 5, "shuffle": "noshuffle", "blocksize": 0, "typesize": 2},
}
BYTES = {"name": "bytes", "configuration": {"endian": "little"}}


def bomb(chunk: Callable[[], bytes], *codecs: dict[str, Any]) -> Callable[[Path, Path], None]:
    """Store a chunk that decompresses to far more than its size."""

    def do(store: Path, outside: Path) -> None:
        replace_chunk(store, 0, chunk())
        if codecs:
            rewrite_array(store, "z", codecs=[BYTES, *codecs])

    return do


Harmful = Callable[[Path, Path], None]

COMPLETE: dict[str, Harmful] = {
    "array name leads out": lambda s, o: rewrite_array(s, "e", name="../../outside/x"),
    "array name is absolute": lambda s, o: rewrite_array(s, "e", name=str(o / "x")),
    "record names arrays that lead out": lambda s, o: rewrite(
        s / "segments/00000000.json",
        arrays={"../../outside/x": {"size_bytes": 1, "index_crc32c": 0, "chunks_crc32c": [0]}},
    ),
    "sources lead out": lambda s, o: rewrite(
        s / "segments/00000001.json", sources=[["../../x", 0, 5, "a", 0]]
    ),
    "rows of 2**62 bytes": lambda s, o: rewrite_array(s, "e", row_shape=[2**31 - 1, 2**31 - 1]),
    "rows of many axes": lambda s, o: rewrite_array(s, "e", row_shape=[1] * 1000),
    "chunks of 2**40 rows": lambda s, o: rewrite_spec(
        s, lambda body: (body.update(segment_rows=2**40), body["arrays"][0].update(chunk_rows=2**40))
    ),
    "2**31 chunks": lambda s, o: rewrite_spec(
        s, lambda body: (body.update(segment_rows=2**31), body["arrays"][0].update(chunk_rows=1))
    ),
    "manifest of 10**15 rows": lambda s, o: rewrite(s / "manifest.json", rows=10**15),
    "manifest of rows in text": lambda s, o: rewrite(s / "manifest.json", rows="13"),
    "manifest of more segments": lambda s, o: rewrite(
        s / "manifest.json",
        rows=800,
        part_bytes=[9] * 100,
        records_crc32c=[1] * 100,
        shard_bytes={"e": [9] * 100, "z": [9] * 100},
    ),
    "record of 10**15 rows": lambda s, o: recommit(s, 1, rows=10**15),
    "record of negative sizes": lambda s, o: rewrite(
        s / "segments/00000001.json", part={"size_bytes": -1, "crc32c": 0}
    ),
    "uuid is no uuid": lambda s, o: rewrite_spec(s, lambda body: body.update(uuid="../" * 9)),
    "schema is garbage": lambda s, o: rewrite_spec(s, lambda body: body.update(arrow_schema="AAAA" * 99)),
    "keys are numbers": lambda s, o: rewrite_spec(s, lambda body: body.update(keys=[7])),
    "nested JSON": nest,
    "zarrow.json of lists": pad("zarrow.json", LISTS),
    "zarrow.json of objects": pad("zarrow.json", OBJECTS),
    "zarrow.json of 60 MiB": pad("zarrow.json", NUMBERS),
    "zarrow.json says something twice": pad("zarrow.json", TWICE),
    "zarrow.json says NaN": pad("zarrow.json", b"NaN"),
    "manifest of lists": pad("manifest.json", LISTS),
    "manifest of 60 MiB": pad("manifest.json", NUMBERS),
    "record of lists": pad("segments/00000001.json", LISTS),
    "record of 60 MiB": pad("segments/00000001.json", NUMBERS),
    "zarrow.json of 64 GiB": grow_sparse("zarrow.json"),
    "manifest of 64 GiB": grow_sparse("manifest.json"),
    "record of 64 GiB": grow_sparse("segments/00000001.json"),
    "statistics of 64 GiB": grow_sparse("statistics.arrow"),
    "statistics of 60 MiB": pad("statistics.arrow", NUMBERS),
    "part of 64 GiB": grow_sparse("table/part-00000001.parquet"),
    "shard of 64 GiB": grow_sparse("embeddings.zarr/e/c/1/0"),
    "codec pickle": pickled([{"name": "numcodecs.pickle", "configuration": {}}]),
    "codec pickle as option": pickled(
        [BYTES, {"name": "zstd", "configuration": {"id": "pickle", "protocol": 5}}]
    ),
    "codec of options that are no options": pickled(
        [BYTES, {"name": "zstd", "configuration": {"level": [[]]}}]
    ),
    "codec is no object": lambda s, o: rewrite_array(s, "z", codecs=["zstd", 7]),
    "zstd bomb": bomb(lambda: zstd(BOMB_BYTES)),
    "zstd bomb in a second frame": bomb(lambda: zstd(32) + zstd(BOMB_BYTES)),
    "gzip bomb": bomb(
        lambda: gzip.compress(bytes(BOMB_BYTES), 1), {"name": "gzip", "configuration": {"level": 1}}
    ),
    "blosc bomb": bomb(lambda: BLOSC_BOMB, BLOSC),
    "shard index points behind the file": shard_index(1 << 40, 20),
    "shard index of huge chunks": shard_index(0, 1 << 62),
    "shard index that wraps": shard_index(2**64 - 8, 20),
    "part of one long string": long_string,
    "part of many rows": repeated_string,
    "part of one string in every row": repeating(),
    "part of values like those before": repeating(
        use_dictionary=False, column_encoding={"q": "DELTA_BYTE_ARRAY"}
    ),
    "part is garbage": lambda s, o: replace_part(s, 0, b"PAR1" + bytes(range(256)) * 9 + b"\xff\xff\0\0PAR1"),
    "part without end": lambda s, o: replace_part(s, 1, b"PAR1"),
    "part of other columns": lambda s, o: replace_part(s, 1, columns(pa.array(["x"] * 5), 5)[:-9] + b"PAR1"),
    "linked shard": link_out("embeddings.zarr/e/c/0/0"),
    "linked last shard": link_out("embeddings.zarr/e/c/1/0"),
    "linked shard directory": link_out("embeddings.zarr/e/c/1"),
    "linked array": link_out("embeddings.zarr/e"),
    "linked part": link_out("table/part-00000001.parquet"),
    "linked table": link_out("table"),
    "linked records": link_out("segments"),
    "linked record": link_out("segments/00000001.json"),
    "linked manifest": link_out("manifest.json"),
    "link for the statistics": link_out("statistics.arrow"),
    "linked zarrow.json": link_out("zarrow.json"),
    "link for zarr.json": link_out("embeddings.zarr/zarr.json"),
    "planted link for open segments": plant("open"),
    "planted link for a shard": plant("embeddings.zarr/e/c/2"),
    "pipe for a shard": pipe("embeddings.zarr/e/c/1/0"),
    "pipe for a part": pipe("table/part-00000001.parquet"),
    "pipe for a record": pipe("segments/00000001.json"),
    "pipe for the manifest": pipe("manifest.json"),
    "pipe for the statistics": pipe("statistics.arrow"),
    "pipe for zarrow.json": pipe("zarrow.json"),
    "pipe for zarr.json": pipe("embeddings.zarr/zarr.json"),
}
OPEN: dict[str, Harmful] = {
    "frame without end": put(8, 2**63, 8),
    "frame of 2**32 arrays": put(52, 2**32 - 1, 4),
    "frame of many rows": put(48, 2**32 - 1, 4),
    "frame of far rows": put(32, 2**63, 8),
    "frame of rows that were never written": put(40, 2**63, 8),
    "frame of 2**32 chunks": put(64 + 12, 2**32 - 1, 4),
    "frame of a large payload": put(56, 2**63, 8),
    "tail of a third side": put(64 + 16 + 8, 2, 4),
    "payload is garbage": lambda s, o: repay(s, os.urandom(200), 5),
    "payload is a schema": lambda s, o: repay(s, pa.schema({"a": pa.int64()}).serialize().to_pybytes(), 5),
    "payload that inflates": compressed_payload,
    "payload that points elsewhere": wild_offsets,
    "journal of 64 GiB": grow_sparse("open/*/table.frames"),
    "journal of 64 GiB and a byte": far_byte,
    "rows of 64 GiB": grow_sparse("open/*/e.rows"),
    "owner reopens text": lambda s, o: rewrite(slot_of(s) / "owner.json", reopens="../../x"),
    "owner of lists": pad("open/*/owner.json", LISTS),
    "owner of text for numbers": lambda s, o: rewrite(slot_of(s) / "owner.json", sequence="x", pid=[]),
    "claim leads out": lambda s, o: (
        (s / "segments/00000001.claim").write_bytes(
            encode_document({"segment": 1, "sources": [["../../outside/xxx", 0, 5, "a", 0]]})
        )
        and None
    ),
    "claim of many rows": lambda s, o: (
        (s / "segments/00000001.claim").write_bytes(
            encode_document({"segment": 1, "sources": [[slot_of(s).name, 0, 10**15, "a", 0]]})
        )
        and None
    ),
    "linked rows": link_out("open/*/e.rows"),
    "linked journal": link_out("open/*/table.frames"),
    "linked owner": link_out("open/*/owner.json"),
    "linked lock": link_out("open/lock"),
    "linked open segment": lambda s, o: link_out(f"open/{slot_of(s).name}")(s, o),
    "planted link for the next shard": plant("embeddings.zarr/e/c/1"),
    "planted link for the next part": plant("table/part-00000001.parquet"),
    "planted link for the next record": plant("segments/00000001.json"),
    "planted link for scratch": plant("open/tmp-x"),
    "planted link for shards": plant("embeddings.zarr/z/c"),
    "pipe for rows": pipe("open/*/e.rows"),
    "pipe for the journal": pipe("open/*/table.frames"),
    "pipe for an owner": pipe("open/*/owner.json"),
    "pipe for a lock": pipe("open/*/lock"),
    "pipe for the store's lock": pipe("open/lock"),
}
HARMLESS = {
    "planted link for scratch",  # which is removed, not followed
    "planted link for the next record",  # which could not have been committed
    "frame without end",  # torn
    "linked open segment",  # which is not an open segment, so its rows are absent
    "journal of 64 GiB",  # of which all but the first bytes are a hole
    "rows of 64 GiB",  # of which only those covered by frames count
    "linked lock",  # which readers do not read
    "linked owner",
}
"""Cases without damage: `verify` may call the store sound."""


def contents(directory: Path) -> dict[str, bytes]:
    """Return the files below a directory and their contents, without following links."""
    found = {}
    for path in sorted(directory.rglob("*")):
        large = path.is_file() and path.stat().st_size > 1 << 20
        found[str(path.relative_to(directory))] = b"" if large or not path.is_file() else path.read_bytes()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "case"),
    [*(("complete", case) for case in COMPLETE), *(("open", case) for case in OPEN)],
    ids=lambda value: str(value).replace(" ", "-"),
)
def test_a_hostile_store_does_no_harm(
    templates: Path, directory: Path, template: str, case: str, figures: Callable[..., None]
) -> None:
    """It is refused with a named error or found by verify, within bounds; nothing outside is touched."""
    store, outside = directory / "s.zarrow", directory / "outside"
    shutil.copytree(templates / f"{template}.zarrow", store)
    outside.mkdir()
    {"complete": COMPLETE, "open": OPEN}[template][case](store, outside)
    before = contents(outside)
    ended = try_all(store)
    assert contents(outside) == before
    assert ended.pop("grown_bytes") < MEMORY_BYTES
    assert not {how: end for how, end in ended.items() if end.startswith("BAD")}
    assert ended["verify"] != "sound" or case in HARMLESS
    if case.startswith("linked"):
        assert ended["open"] != "read"
        assert ended["partial"] != "read" or case in HARMLESS
    figures("hostile stores", tried=1)


def test_the_cases_differ_from_a_sound_store_in_their_harm_only(templates: Path, directory: Path) -> None:
    """The same stores, unharmed, can be read, verified and written to."""
    for template in ("complete", "open"):
        store = Path(shutil.copytree(templates / f"{template}.zarrow", directory / f"{template}.zarrow"))
        ended = try_all(store)
        assert (ended["verify"], ended["partial"], ended["write"]) == ("sound", "read", "written")
