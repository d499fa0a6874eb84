"""Open rows — the accepted rows of open segments, read without writing.

The journal's frames say which rows an open segment has; those count whose row bytes are in every array's
file with the checksum of their frame. Frames behind the first that fails are ignored, unless they were
durable: then it is damage. The same rows are found by a writer that recovers the segment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format import layout
from zarrow._format.array_spec import ArraySpec
from zarrow._format.bucket import HOLDER, Holder
from zarrow._format.documents import MAX_OWNER_BYTES
from zarrow._format.frames import Frame, may_hold_rows, parse_payload, scan, torn_rows
from zarrow._format.records import Owner
from zarrow._format.spec import StoreSpec
from zarrow._read import shard_rows
from zarrow._read.shard_rows import StoredChunks
from zarrow._read.visible import OpenSegmentFacts
from zarrow._storage.copies import local_copy
from zarrow._storage.reading import Place, RemotePath, map_file, open_file, read_file
from zarrow.errors import CorruptionError

__all__ = ["NO_FRAME", "OpenRows", "frame_counts", "read", "row_files", "slots"]

NO_FRAME = "begins with no sound frame, though the first one was durable: it was emptied or overwritten"


@dataclass(frozen=True, slots=True)
class OpenRows:
    """The accepted rows of an open segment.

    Parameters
    ----------
    path : Path
        Its directory.
    owner : Owner
        Who filled it.
    frames : tuple of Frame
        The accepted frames.
    size_bytes : int
        Where the last of them ends.
    unvouched : bool
        Whether there is more after their rows than one frame can be: lost in a power cut, or damage.
    vectors_of : mapping of int to sequence of int
        For each ragged array, by its place, the vectors of each frame.
    """

    path: Path
    owner: Owner
    frames: tuple[Frame, ...]
    size_bytes: int
    unvouched: bool = False
    vectors_of: Mapping[int, Sequence[int]] = field(default_factory=dict)

    @property
    def slot(self) -> str:
        """The open segment's name."""
        return self.path.name

    @property
    def rows(self) -> int:
        """The number of accepted rows."""
        return self.frames[-1].stop if self.frames else 0

    @property
    def durable_rows(self) -> int:
        """The number of rows known to be durable."""
        return max((frame.durable_rows for frame in self.frames), default=0)

    @property
    def facts(self) -> OpenSegmentFacts:
        """What decides which of its rows count."""
        return OpenSegmentFacts(self.slot, self.owner, self.rows, self.durable_rows)

    def batches(self, spec: StoreSpec, start: int = 0, stop: int | None = None) -> list[pa.RecordBatch]:
        """Return the table rows `start` to `stop`, of the wire schema."""
        stop = self.rows if stop is None else stop
        found = []
        for frame in self.frames:
            low, high = max(start, frame.first_row), min(stop, frame.stop)
            if low < high:
                batch = parse_payload(frame, spec.wire_schema)
                found.append(batch.slice(low - frame.first_row, high - low))
        return found

    def counts(self, array: int) -> Sequence[int]:
        """Return how many rows of an array each frame has; of a ragged one, vectors."""
        return self.vectors_of.get(array) or [frame.rows for frame in self.frames]

    def items(self, spec: StoreSpec, array: int, row: int) -> int:
        """Return where a row begins in the file of an array: its number, or that of its first vector."""
        extents = spec.extent_places.get(array)
        if extents is None or not row:
            return row
        if row == self.rows:
            return sum(self.counts(array))
        *_, (offset, count) = (block[-1] for block in self.vectors(spec, extents, row - 1, row))
        return int(offset + count)

    def vectors(self, spec: StoreSpec, array: int, start: int, stop: int) -> Iterator[npt.NDArray[Any]]:
        """Yield what lies from row `start` to `stop` of an array, a chunk at a time at most."""
        facts = spec.arrays[array]
        start, stop = self.items(spec, array, start), self.items(spec, array, stop)
        if facts.is_plain:
            yield from _blocks(self._rows_of(facts, stop), start, stop, facts.chunk_rows)
            return
        if start == stop:
            return
        chunks = [chunk for frame in self.frames for chunk in frame.arrays[array].chunks]
        rest = self.items(spec, array, self.rows) - len(chunks) * facts.chunk_rows
        tail = (
            shard_rows.read_tail(self.path, facts, self.frames[-1].arrays[array].tail_side, rest)
            if rest
            else None
        )
        stored = StoredChunks(open_file(self.path, layout.rows_name(facts.name)), facts, chunks, tail)
        for number in range(start // facts.chunk_rows, -(-stop // facts.chunk_rows)):
            first = number * facts.chunk_rows
            yield stored.decode(number)[max(start - first, 0) : stop - first]

    def _rows_of(self, array: ArraySpec, rows: int) -> npt.NDArray[Any]:
        """Return the first rows, or vectors, of an array of plain bytes, mapped."""
        shape = (rows, *array.row_shape)
        if not rows:
            return np.empty(shape, array.numpy_dtype)
        data = map_file(self.path, layout.rows_name(array.name))
        return data[: rows * array.row_bytes].view(array.numpy_dtype).reshape(shape)


def frame_counts(path: Path, spec: StoreSpec, array: int, frames: Sequence[Frame]) -> list[int]:
    """Return how many rows of an array each frame of an open segment has; of a ragged one, vectors.

    Those stop at the first frame whose extents are missing, or are not a run of vectors.
    """
    extents = spec.extent_places.get(array)
    counts = [frame.rows for frame in frames]
    if extents is None:
        return counts
    facts, rows = spec.arrays[extents], frames[-1].stop if frames else 0
    try:
        with open_file(path, layout.rows_name(facts.name)) as file:
            data = file.read(0, min(rows, file.size_bytes // facts.row_bytes) * facts.row_bytes)
    except FileNotFoundError:
        data = b""
    found = np.frombuffer(data, facts.numpy_dtype).reshape(-1, *facts.row_shape)
    most = spec.arrays[array].shard_rows(spec.segment_rows)
    good = (found >= 0).all(axis=1) & (found <= most).all(axis=1)
    ends = np.cumsum(np.where(good, found[:, 1], 0))
    good &= (found[:, 0] == ends - found[:, 1]) & (ends <= most)
    sound = len(found) if good.all() else int(np.argmin(good))
    vectors: list[int] = []
    for frame in frames:
        if frame.stop > sound:
            break
        vectors.append(int(found[frame.first_row : frame.stop, 1].sum()))
    return vectors


def _blocks(rows: npt.NDArray[Any], start: int, stop: int, size: int) -> Iterator[npt.NDArray[Any]]:
    for low in range(start, stop, size):
        yield rows[low : min(low + size, stop)]


def slots(root: Place) -> list[Path]:
    """Return the directories of the open segments, oldest first; of a bucket, copies of its tails."""
    if not isinstance(root, Path):
        return _tails(root)
    try:
        with os.scandir(root / layout.OPEN_DIR) as entries:
            names = [
                entry.name
                for entry in entries
                if layout.is_slot(entry.name) and entry.is_dir(follow_symlinks=False)
            ]
    except FileNotFoundError:
        return []
    return [root / layout.OPEN_DIR / name for name in sorted(names)]


def _tails(place: RemotePath) -> list[Path]:
    try:
        data = read_file(place, HOLDER)
    except FileNotFoundError:
        return []
    holder = Holder.decode(data, str(place / HOLDER))
    return [local_copy(place, layout.slot_dir(slot)) for slot in sorted(holder.tails)]


def read(path: Path, spec: StoreSpec) -> OpenRows | None:
    """Return the accepted rows of an open segment.

    Parameters
    ----------
    path : Path
        Its directory.
    spec : StoreSpec
        The store.

    Returns
    -------
    OpenRows or None
        None if it is gone, or its creation was never finished, so that it has no rows.

    Raises
    ------
    CorruptionError
        If rows that were durable are damaged, or a file is missing that an open segment with rows has.
    """
    try:
        data = read_file(path, layout.OWNER_JSON, limit_bytes=MAX_OWNER_BYTES)
        owner = Owner.decode(data, str(path / layout.OWNER_JSON))
        journal = open_file(path, layout.FRAMES).journal()
    except NotADirectoryError as error:
        raise CorruptionError("not a directory", path=path) from error
    except FileNotFoundError as error:
        # All its files are there, and durably so, before the first byte is written into any of them.
        if may_hold_rows(_bytes_of(path, layout.FRAMES), len(spec.arrays)) or any(
            _bytes_of(path, name) for name in row_files(spec)
        ):
            raise _missing(path, error.filename) from None
        return None
    found = scan(
        journal, bytes.fromhex(spec.uuid), len(spec.arrays), spec.segment_rows, str(path / layout.FRAMES)
    )
    checks, vectors = [], {}
    for index, array in enumerate(spec.arrays):
        entries = [frame.arrays[index] for frame in found.frames]
        counts = frame_counts(path, spec, index, found.frames)
        if array.is_ragged:
            vectors[index] = counts
        checks.append(shard_rows.sound_frames(path, array, entries[: len(counts)], counts))
    sound = len(found.frames)
    while sound and not all(check(sound) for check in checks):
        sound -= 1
    rows = found.frames[sound - 1].stop if sound else 0
    if found.rows:
        for name in row_files(spec):
            if not (path / name).exists() and path.exists():
                raise _missing(path, path / name)
    if found.durable_rows > rows:
        # The directory may have been sealed and removed while it was read.
        if not path.exists():
            return None
        raise CorruptionError(
            f"the row bytes of row {rows} of the open segment are damaged, "
            f"though {found.durable_rows} rows were durable",
            path=path,
        )
    if not found.frames:
        raise CorruptionError(NO_FRAME, path=path / layout.FRAMES)
    lost = torn_rows(journal, found.ends[-1]) if sound == len(found.frames) else None
    unvouched = rows < spec.segment_rows and any(
        _goes_on(path, spec, index, found.frames[:sound], lost) for index in range(len(spec.arrays))
    )
    end = found.ends[sound - 1] if sound else 0
    vectors = {index: counts[:sound] for index, counts in vectors.items()}
    return OpenRows(path, owner, found.frames[:sound], end, unvouched, vectors)


def _goes_on(path: Path, spec: StoreSpec, index: int, sound: Sequence[Frame], lost: int | None) -> bool:
    """Tell whether an array's file goes on after the rows of the sound frames (`shard_rows.is_unvouched`)."""
    array, rows = spec.arrays[index], sound[-1].stop if sound else 0
    if array.is_ragged:  # a row of it can be of any size: the file of its extents tells
        return False
    end = rows * array.row_bytes
    if not array.is_plain:
        end = sum(chunk.size_bytes for frame in sound for chunk in frame.arrays[index].chunks)
    name = layout.rows_name(array.name)
    if _bytes_of(path, name) <= end:
        return False
    limit = spec.frame_rows if lost is None else min(lost, spec.frame_rows)
    with open_file(path, name) as file:
        return shard_rows.is_unvouched(file, file.size_bytes, array, rows, end, limit, spec.segment_rows)


def row_files(spec: StoreSpec) -> Iterator[str]:
    """Yield the names of the files of an open segment that hold row bytes."""
    for array in spec.arrays:
        yield layout.rows_name(array.name)
        if not array.is_plain:
            yield from (layout.tail_name(array.name, side) for side in (0, 1))


def _bytes_of(path: Path, name: str) -> int:
    try:
        return os.stat(path / name, follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def _missing(path: Path, name: str | Path) -> CorruptionError:
    return CorruptionError(
        f"{Path(name).name} is missing, though the open segment has rows: 'zarrow repair' keeps what can "
        "still be read",
        path=path,
    )
