"""Workloads — the runs to be killed, and the checks of whatever they leave.

A row's content follows from its identifier, ``stream * STREAM + n``, where n counts the rows appended by one
writer (a stream). So every row can be checked by itself, and a stream's rows show whether they are an exact
prefix.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import google_crc32c
import numcodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from crash.disk import Recorder, Tree
from zarrow._format.ragged import Ragged, RaggedArray
from zarrow._read import catalog
from zarrow._read.open_rows import read, slots
from zarrow._storage import files
from zarrow.writer import Writer

STREAM = 1_000_000
_ZSTD = numcodecs.Zstd()
NAME = "run.zarrow"


class WrongStoreError(AssertionError):
    """A store broke an invariant."""


def require(truth: bool, message: str) -> None:
    """Raise `WrongStoreError` unless a condition is true."""
    if not truth:
        raise WrongStoreError(message)


def ids_of(stream: int, start: int, stop: int) -> np.ndarray:
    """Return the identifiers of rows `start` to `stop` of a stream."""
    return np.arange(start, stop, dtype=np.int64) + stream * STREAM


Arrays = Mapping[str, tuple[tuple[int, ...], str] | RaggedArray]


def vectors_of(arrays: Arrays, ids: np.ndarray) -> dict[str, Any]:
    """Return the vectors of these identifiers; of a ragged array, none to three of each."""
    made: dict[str, Any] = {}
    for name, array in arrays.items():
        if isinstance(array, RaggedArray):
            counts = ids % 4
            of_rows = (
                np.repeat(ids * 7, counts) + np.arange(counts.sum()) - np.repeat(np.cumsum(counts), counts)
            )
            values = vectors_of({name: (array.vector_shape, array.dtype)}, of_rows)[name]
            made[name] = Ragged(values, counts)
            continue
        shape, dtype = array
        grid = ids.reshape(-1, *[1] * len(shape)) * 31 + np.arange(np.prod(shape)).reshape(shape) + 1
        made[name] = (grid % 251 + 1).astype(dtype) if np.dtype(dtype).itemsize < 4 else grid.astype(dtype)
    return made


def names_of(ids: np.ndarray) -> list[str]:
    """Return the strings of these identifiers."""
    return [f"s{number}" for number in ids.tolist()]


def scales_of(ids: np.ndarray) -> np.ndarray:
    """Return the scales of quantized rows with these identifiers."""
    return (ids % 7 + 1).astype(np.float32)


def columns_of(workload: Workload, ids: np.ndarray) -> dict[str, Any]:
    """Return the columns of these identifiers, the scales of quantized arrays among them."""
    columns = {"id": ids, "s": pa.array(names_of(ids), pa.string())}  # an empty batch has types, too
    return columns | {f"{name}_scale": scales_of(ids) for name in workload.options.get("dtypes", ())}


@dataclass
class Run:
    """One recorded run, whose writers report their promises to the recorder."""

    path: Path
    workload: Workload
    recorder: Recorder
    counted: dict[int, int] = field(default_factory=dict)
    writers: dict[int, tuple[Any, int]] = field(default_factory=dict)

    def progress(self) -> dict[int, tuple[int, int]]:
        """Return accepted and durable rows per stream."""
        return {
            stream: (before + writer.accepted_rows, before + writer.durable_rows)
            for stream, (writer, before) in self.writers.items()
        }

    def open(self, stream: int = 0, **options: Any) -> Writer:
        """Open a writer whose promises the recorder notes."""
        writer = Writer(self.path, **{**self.workload.options, **options})
        # Rows of other streams that it counts are not part of its promise.
        self.writers[stream] = (writer, self.counted.get(stream, 0) - writer.accepted_rows)
        return writer

    def append(self, writer: Writer, rows: int, stream: int = 0) -> None:
        """Append the next rows of a stream."""
        start = self.counted.get(stream, 0)
        ids = ids_of(stream, start, start + rows)
        vectors = vectors_of(self.workload.arrays, ids)
        writer.append(columns_of(self.workload, ids), vectors, sample_index=ids)
        self.counted[stream] = start + rows

    def done(self, stream: int = 0) -> None:
        """Note the last promise of a writer that has been closed."""
        self.recorder.note()
        self.writers.pop(stream, None)


@dataclass(frozen=True)
class Workload:
    """A run to be killed."""

    name: str
    script: Callable[[Run], None]
    totals: dict[int, int]
    prepare: Callable[[Run], None] | None = None
    arrays: Arrays = field(default_factory=lambda: {"e": ((4,), "float32")})
    options: dict[str, Any] = field(default_factory=dict)
    chunk_bytes: int = 256
    pieces: int = 2  # open segments that are packed at once


def _small(run: Run) -> None:
    writer = run.open()
    for _ in range(10):
        run.append(writer, 16)
    writer.flush(durable=True)
    for _ in range(3):
        run.append(writer, 5)
    writer.close()
    run.done()


def _straddling(run: Run) -> None:
    writer = run.open()
    for rows in (37, 1, 50, 3, 100, 20, 7):
        run.append(writer, rows)
        if rows % 2:
            writer.flush()  # otherwise they might be written together
    writer.close()
    run.done()


def _many(run: Run) -> None:
    writer = run.open(durability="batch")
    for rows in (30, 30, 30, 50, 11):
        run.append(writer, rows)
    writer.flush()
    writer.close()
    run.done()


def _compressed(run: Run) -> None:
    writer = run.open()
    for rows in (10, 3):
        run.append(writer, rows)
    writer.flush(durable=True)
    for rows in (20, 20, 9, 40, 1, 30):  # the second batch uses the tail file that was made durable
        run.append(writer, rows)
        writer.flush()  # otherwise they might be written together
    writer.flush(durable=True)
    for rows in (3, 30, 5, 5, 9):
        run.append(writer, rows)
    writer.flush()
    writer.finalize()
    run.done()


def _ragged(run: Run) -> None:
    writer = run.open()
    run.append(writer, 13)
    writer.flush(durable=True)
    for rows in (9, 20, 2):
        run.append(writer, rows)
        writer.flush()  # otherwise they might be written together
    writer.finalize()
    run.done()
    writer = run.open()
    run.append(writer, 5)
    writer.close()
    run.done()


def _complete(run: Run) -> None:
    writer = run.open()
    for rows in (50, 60):
        run.append(writer, rows)
    writer.finalize()
    run.done()


def _reopen(run: Run) -> None:
    writer = run.open()
    run.append(writer, 30)
    writer.close()
    run.done()
    writer = run.open()
    run.append(writer, 7)
    writer.finalize()
    run.done()
    writer = run.open()
    run.append(writer, 5)
    writer.finalize()
    run.done()


def _tails(run: Run) -> None:
    writers = [run.open(stream, shared=True) for stream in range(3)]
    for stream, writer in enumerate(writers):
        for _ in range(3):
            run.append(writer, 11 + 5 * stream, stream)
            writer.flush()
    for stream, writer in enumerate(writers):
        writer.close()
        run.done(stream)


def _two_tails(run: Run) -> None:
    writers = [run.open(stream, shared=True) for stream in range(2)]
    for stream, writer in enumerate(writers):
        run.append(writer, 20, stream)
        writer.close()
        run.done(stream)


def _finalize(run: Run) -> None:
    run.open(0).finalize()
    run.done(0)


TWO: dict[str, Any] = {"e": ((4,), "float32"), "y": ((2, 3), "int16")}
TOKENS: dict[str, Any] = {"t": RaggedArray((4,), "float32"), "z": RaggedArray((2,), "int16")}
OPTIONS: dict[str, Any] = {"keys": ["id"], "segment_rows": 32, "mode": "a"}

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("small", _small, {0: 175}, options=OPTIONS | {"segment_rows": 64}),
        Workload("straddling", _straddling, {0: 218}, options=OPTIONS),
        Workload(
            "many arrays", _many, {0: 151}, arrays={"e": ((4,), "float32"), "q": ((2, 3), "int8")},
            options=OPTIONS | {"segment_rows": 64, "dtypes": {"q": "int8"}},
        ),
        Workload(
            "compressed", _compressed, {0: 185}, options=OPTIONS | {"segment_rows": 64, "codecs": "zstd"}
        ),
        Workload("ragged", _ragged, {0: 49}, arrays=TOKENS, options=OPTIONS | {"codecs": {"z": "zstd"}}),
        Workload("reopen and append", _reopen, {0: 152}, _complete, arrays=TWO, options=OPTIONS),
        Workload(
            "finalize", _finalize, {0: 33, 1: 48, 2: 63}, _tails, arrays=TWO,
            options=OPTIONS | {"segment_rows": 64, "codecs": {"y": "zstd"}},
        ),
        Workload(
            "finalize ragged", _finalize, {0: 20, 1: 20}, _two_tails, arrays={"t": TOKENS["t"]},
            options=OPTIONS,
        ),
    )
}  # fmt: skip


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Make a directory, in memory if possible, since tests have their own model of what is synced."""
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="zarrow-", dir=memory if os.access(memory, os.W_OK) else None)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def calls(recorder: Any) -> Iterator[Any]:
    """Replace the table of file system calls."""
    before, files.calls = files.calls, recorder
    try:
        yield recorder
    finally:
        files.calls = before


@contextlib.contextmanager
def small_chunks(workload: Workload) -> Iterator[None]:
    """Give segments of a few rows several chunks, and pack a few open segments in several steps."""
    small = {
        "TARGET_CHUNK_BYTES": workload.chunk_bytes,
        "PAGE_BYTES": workload.chunk_bytes,
        "RAGGED_CHUNKS": 16,
    }
    with (
        mock.patch.multiple("zarrow._format.array_spec", **small),
        mock.patch("zarrow._write.recovery.MAX_PIECES", workload.pieces),
    ):
        yield


@dataclass
class Recording:
    """A run: the states before and after, its calls, and the rows promised at the start and the end."""

    workload: Workload
    base: Tree
    log: list[Any]
    promise: dict[int, tuple[int, int]]
    base_promise: dict[int, tuple[int, int]]
    end: Tree


def record(workload: Workload, make: Callable[[Path], Recorder] = Recorder) -> Recording:
    """Run a workload undisturbed and record its calls."""
    with scratch() as top, small_chunks(workload):
        recorder = make(top)
        recorder.fsync_s = 0.005
        run = Run(top / NAME, workload, recorder)
        if workload.prepare is not None:
            workload.prepare(run)
        base = Tree.take(top)
        begun = {stream: (rows, rows) for stream, rows in run.counted.items()}
        recorder.promise = begun
        recorder.progress = run.progress
        with calls(recorder):
            workload.script(run)
        recorder.note()
        return Recording(workload, base, recorder.log, recorder.promise, begun, Tree.take(top))


# Checks


def _streams(ids: np.ndarray) -> dict[int, np.ndarray]:
    return {int(stream): ids[ids // STREAM == stream] % STREAM for stream in np.unique(ids // STREAM)}


def check_rows(
    workload: Workload, ids: np.ndarray, names: list[str], vectors: Mapping[str, np.ndarray], what: str
) -> dict[int, int]:
    """Check rows against their identifiers; return the number of rows of each stream."""
    require(names == names_of(ids), f"{what}: table columns disagree")
    for name, expected in vectors_of(workload.arrays, ids).items():
        got = vectors[name]
        if isinstance(expected, Ragged):
            require(got == expected, f"{what}: {name!r} is wrong")
            continue
        require(got.shape == expected.shape, f"{what}: {name!r} has shape {got.shape}, table {len(ids)} rows")
        if expected.dtype == np.int8 != got.dtype:  # quantized, and read as the floats
            expected = expected * scales_of(ids).reshape(-1, *[1] * (expected.ndim - 1))
        wrong = np.flatnonzero((got != expected).any(axis=tuple(range(1, got.ndim))))
        require(not wrong.size, f"{what}: {name!r} is wrong in rows {wrong[:5]} of {len(ids)}")
    counts = {}
    for stream, numbers in _streams(ids).items():
        require(
            np.array_equal(numbers, np.arange(len(numbers))),
            f"{what}: stream {stream} is no exact prefix: {len(numbers)} rows, {numbers[:3]}…{numbers[-3:]}",
        )
        counts[stream] = len(numbers)
    return counts


@lru_cache(maxsize=4096)
def _decode_part(data: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Decode the columns row, sample_index, id and s of a part; thousands of states share a part."""
    with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as parquet:
        part = parquet.read(use_threads=False)
    row, sample_index, ids = (part[name].to_numpy() for name in ("row", "sample_index", "id"))
    return row, sample_index, ids, part["s"].to_pylist()


def read_table(path: Path, segments: int) -> tuple[np.ndarray, list[str]]:
    """Read the first parts of a store with pyarrow."""
    ids: list[np.ndarray] = []
    names: list[str] = []
    rows = 0
    for segment in range(segments):
        data = (path / f"table/part-{segment:08d}.parquet").read_bytes()
        row, sample_index, part_ids, part_names = _decode_part(data)
        require(np.array_equal(row, np.arange(rows, rows + len(row))), f"part {segment}: row column")
        require(np.array_equal(sample_index, part_ids), f"part {segment}: sample_index")
        rows += len(row)
        ids.append(part_ids)
        names.extend(part_names)
    return np.concatenate([np.empty(0, np.int64), *ids]), names


def read_arrays(path: Path, workload: Workload) -> dict[str, np.ndarray] | None:
    """Read all arrays with zarr; None if there is no group yet."""
    if not (path / "embeddings.zarr/zarr.json").exists():
        return None
    group = zarr.open_group(path / "embeddings.zarr", mode="r")
    found = {}
    for name, array in workload.arrays.items():
        found[name] = np.asarray(group[name][:])
        if isinstance(array, RaggedArray):
            rows = group[name].attrs["zarrow"]["segment_rows"]
            found[name] = rows_in(
                found[name], np.asarray(group[f"{name}_extent"][:]), rows, found[name].shape[2:]
            )
    return found


def rows_in(
    segments: Sequence[np.ndarray], extents: np.ndarray, segment_rows: int, shape: Sequence[int]
) -> Ragged:
    """Return the rows of a ragged array, from the vectors of each segment and where its rows lie."""
    pieces = [
        segments[row // segment_rows][offset : offset + count]
        for row, (offset, count) in enumerate(extents.tolist())
    ]
    require([len(piece) for piece in pieces] == extents[:, 1].tolist(), "vectors are missing")
    nothing = np.empty((0, *shape), segments.dtype if isinstance(segments, np.ndarray) else segments[0].dtype)
    return Ragged(np.concatenate([nothing, *pieces]), extents[:, 1])


@lru_cache(maxsize=8192)
def _decode_shard(
    shard: bytes, rows: int, chunks: int, chunk_shape: tuple[int, ...], dtype: str, compressed: bool
) -> np.ndarray:
    """Decode the first rows of a shard; thousands of states share a shard."""
    index = shard[len(shard) - 16 * chunks - 4 :]
    require(google_crc32c.value(index[:-4]) == int.from_bytes(index[-4:], "little"), "shard index")
    places = np.frombuffer(index[:-4], "<u8").reshape(-1, 2)[: -(-rows // chunk_shape[0])]
    pieces = []
    for offset, size in places.tolist():
        require(offset + size <= len(shard), f"a chunk at {offset} of {size} bytes")
        data = shard[offset : offset + size]
        data = _ZSTD.decode(data) if compressed else data
        pieces.append(np.frombuffer(data, dtype).reshape(chunk_shape))
    return np.concatenate(pieces)[:rows]


def decode_arrays(path: Path, workload: Workload) -> dict[str, np.ndarray] | None:
    """Read all arrays according to the Zarr specification, ten times faster than with zarr."""
    try:
        group = json.loads((path / "embeddings.zarr/zarr.json").read_bytes())
    except FileNotFoundError:
        return None
    arrays: dict[str, Any] = {}
    of_all = group["consolidated_metadata"]["metadata"]
    for name, metadata in sorted(
        of_all.items(), key=lambda one: "extents" in one[1]["attributes"].get("zarrow", {})
    ):
        if "extents" in (own := metadata["attributes"].get("zarrow", {})):
            extents = arrays.pop(own["extents"])
            arrays[name] = _decode_ragged(path, name, metadata, extents, own["segment_rows"])
            continue
        rows, *shape = metadata["shape"]
        segment_rows = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
        sharding = metadata["codecs"][0]["configuration"]
        chunk_rows, codecs = sharding["chunk_shape"][0], [codec["name"] for codec in sharding["codecs"]]
        require(codecs in (["bytes"], ["bytes", "zstd"]), f"codecs {codecs}")
        pieces = [np.empty((0, *shape), metadata["data_type"])]
        for segment in range(-(-rows // segment_rows)):
            shard = (path / f"embeddings.zarr/{name}/c/{segment}" / "/".join("0" * len(shape))).read_bytes()
            left, chunks = min(segment_rows, rows - segment * segment_rows), segment_rows // chunk_rows
            chunk_shape, dtype = (chunk_rows, *shape), metadata["data_type"]
            pieces.append(_decode_shard(shard, left, chunks, chunk_shape, dtype, "zstd" in codecs))
        arrays[name] = np.concatenate(pieces)
    return arrays


def _decode_ragged(path: Path, name: str, metadata: Any, extents: np.ndarray, segment_rows: int) -> Ragged:
    """Read a ragged array according to the Zarr specification."""
    _, width, *shape = metadata["shape"]
    _, room, *_ = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    sharding, dtype = metadata["codecs"][0]["configuration"], metadata["data_type"]
    chunk, codecs = sharding["chunk_shape"][1], [codec["name"] for codec in sharding["codecs"]]
    segments = []
    for segment in range(-(-len(extents) // segment_rows)):
        shard = (path / f"embeddings.zarr/{name}/c/{segment}/0" / "/".join("0" * len(shape))).read_bytes()
        here = extents[segment * segment_rows : (segment + 1) * segment_rows]
        vectors = int(here.sum(axis=1).max(initial=0))
        require(vectors <= width, f"{vectors} vectors in a segment, of at most {width} by its shape")
        decoded = np.empty((0, *shape), dtype)
        if vectors:
            decoded = _decode_shard(shard, vectors, room // chunk, (chunk, *shape), dtype, "zstd" in codecs)
        segments.append(decoded)
    return rows_in(segments or [np.empty((0, *shape), dtype)], extents, segment_rows, shape)


def _uncommitted(path: Path) -> list[str]:
    """Return the open segments that count: those with an owner that are no copy of a committed one."""
    owners = {
        file.parent.name: json.loads(file.read_bytes()) for file in path.glob("open/[0-9a-f]*/owner.json")
    }
    records = [[int(one.stem), google_crc32c.value(one.read_bytes())] for one in path.glob("segments/*.json")]
    return [slot for slot, owner in owners.items() if owner["reopens"] not in records]


def check_plain_readers(path: Path, workload: Workload, *, stock: bool = True) -> int:
    """Check that stock readers see only committed rows of a store that was not recovered."""
    if not (path / "zarrow.json").exists():
        require(not (path / "embeddings.zarr/zarr.json").exists(), "a Zarr group without a store")
        return 0
    # The records themselves decide here, not the code under test.
    records = sorted((path / "segments").glob("*.json")) if (path / "segments").exists() else []
    dense = 0
    while dense < len(records) and records[dense].name == f"{dense:08d}.json":
        dense += 1
    rows = sum(json.loads(record.read_bytes())["rows"] for record in records[:dense])
    snapshot = catalog.read_snapshot(path)
    if (path / "manifest.json").exists():
        require(snapshot.complete and dense == len(records), "a manifest and a gap")
        require(not _uncommitted(path), "a manifest, and open segments that it does not cover")
        require(
            json.loads((path / "manifest.json").read_bytes())["rows"] == rows, "manifest and records disagree"
        )
    require(snapshot.rows == rows, f"the snapshot has {snapshot.rows} rows, the records {rows}")
    ids, names = read_table(path, dense)
    require(len(ids) == rows, f"the parts have {len(ids)} rows, the records {rows}")
    arrays = read_arrays(path, workload) if stock else decode_arrays(path, workload)
    if arrays is None:
        return 0
    metadata = json.loads((path / "embeddings.zarr/zarr.json").read_bytes())["consolidated_metadata"][
        "metadata"
    ]
    extents = {f"{name}_extent" for name, one in workload.arrays.items() if isinstance(one, RaggedArray)}
    require(metadata.keys() == {*workload.arrays, *extents}, "the group lists other arrays")
    lengths = {len(array) for array in arrays.values()}
    require(max(lengths) <= rows, f"Zarr shows {max(lengths)} rows, {rows} are committed")
    for name, array in arrays.items():
        expected = vectors_of({name: workload.arrays[name]}, ids[: len(array)])[name]
        same = array == expected if isinstance(expected, Ragged) else np.array_equal(array, expected)
        require(same, f"Zarr shows wrong rows of {name!r}")
    require(names == names_of(ids), "the table is wrong")
    return rows


def check_complete(
    path: Path, workload: Workload, what: str, *, stock: bool = True, tidy: bool = True
) -> dict[int, int]:
    """Check a finalized store with stock readers; return the number of rows of each stream.

    Unless `tidy`, there may be scratch files and claims whose removal was undone by a power cut.
    """
    parts = sorted(os.listdir(path / "table"))
    require(parts == [f"part-{index:08d}.parquet" for index in range(len(parts))], f"{what}: parts {parts}")
    require((path / "manifest.json").exists(), f"{what}: no manifest")
    left = [name for name in os.listdir(path / "open") if name != "lock"]
    left = left if tidy else [name for name in left if not name.startswith("tmp-")]
    require(not left, f"{what}: open/ has {left}")
    claims = [name for name in os.listdir(path / "segments") if name.endswith(".claim")]
    require(not (tidy and claims), f"{what}: {claims} left")
    ids, names = read_table(path, len(parts))
    arrays = read_arrays(path, workload) if stock else decode_arrays(path, workload)
    require(arrays is not None, f"{what}: no Zarr group")
    return check_rows(workload, ids, names, arrays, what)


def check_promise(
    counts: Mapping[int, int], promise: Mapping[int, int], totals: Mapping[int, int], what: str
) -> None:
    """Check that all promised rows are there, and no row that was never appended."""
    for stream, rows in promise.items():
        require(
            counts.get(stream, 0) >= rows, f"{what}: stream {stream}: {counts.get(stream, 0)} of {rows} rows"
        )
    for stream, rows in counts.items():
        require(
            rows <= totals.get(stream, 0),
            f"{what}: stream {stream}: {rows} rows, {totals.get(stream, 0)} appended",
        )


def open_rows(path: Path) -> int:
    """Return the accepted rows of a store's open segments."""
    spec = catalog.read_spec(path)
    found = [read(slot, spec) for slot in slots(path)]
    return sum(one.rows for one in found if one is not None)


def recover_and_check(
    path: Path, workload: Workload, promise: Mapping[int, int], *, twice: bool
) -> dict[int, int]:
    """Recover a store, resume and finish the run, and check that the result is that of an undisturbed one.

    Returns
    -------
    dict
        Rows of each stream after recovery.
    """
    with small_chunks(workload):
        counts = {}
        if len(workload.totals) > 1:
            Writer(path, **workload.options).finalize()
            counts = check_complete(path, workload, "finalized")
            check_promise(counts, promise, workload.totals, "finalized")
        writer = Writer(path, **workload.options)
        rows = writer.accepted_rows
        if len(workload.totals) == 1:
            counts = dict.fromkeys(workload.totals, rows)
            check_promise(counts, promise, workload.totals, "recovered")
        require(rows == sum(counts.values()), f"{rows} rows after recovery, {counts} before")
        if twice:
            writer.close()
            writer = Writer(path, **workload.options)
            require(
                writer.accepted_rows == rows,
                f"{writer.accepted_rows} rows after a second recovery, {rows} before",
            )
        for stream, total in workload.totals.items():
            have = counts.get(stream, 0)
            if have < total:
                ids = ids_of(stream, have, total)
                arrays = vectors_of(workload.arrays, ids)
                writer.append(columns_of(workload, ids), arrays, sample_index=ids)
        writer.finalize()
        final = check_complete(path, workload, "resumed")
        wanted = {stream: total for stream, total in workload.totals.items() if total}
        require(final == wanted, f"resumed to {final}, undisturbed {wanted}")
        return counts


def finish_and_check(path: Path, workload: Workload, promise: Mapping[int, int]) -> dict[int, int]:
    """Finalize a store without resuming the run, and check its content.

    Returns
    -------
    dict
        Rows of each stream.
    """
    with small_chunks(workload):
        writer = Writer(path, **workload.options)
        rows = writer.accepted_rows
        if writer.spec is None:
            writer.close()
            check_promise({}, promise, workload.totals, "no store")
            return {}
        writer.finalize()
    counts = check_complete(path, workload, "finalized", stock=False)
    check_promise(counts, promise, workload.totals, "finalized")
    require(rows == sum(counts.values()), f"{rows} rows recovered, {counts} finalized")
    return counts


def check_state(tree: Tree, workload: Workload, promise: Mapping[int, int], *, thorough: bool = True) -> None:
    """Check everything that must hold for what a crash left.

    Parameters
    ----------
    tree : Tree
        What the crash left.
    workload : Workload
        The run.
    promise : dict
        How many rows of every stream must be there.
    thorough : bool
        Whether to read with zarr itself, recover twice, and resume the run and finish it.
    """
    with scratch() as top:
        tree.put(top)
        path = top / NAME
        if path.exists():
            check_plain_readers(path, workload, stock=thorough)
        if thorough:
            recover_and_check(path, workload, promise, twice=True)
        else:
            finish_and_check(path, workload, promise)
