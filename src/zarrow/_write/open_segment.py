"""How does a batch become safe before its segment is full?

An open segment is a directory under ``open/``: the files that will become its shards, the journal of its
table rows, a lock, and a note of who fills it. Making the directory claims its name; names are taken from
the clock and never used twice. A batch is appended in this order:

1. row bytes into the shard files (`shards`);
2. its frame into ``table.frames`` (`_format.frames`).

With the frame written the rows are *accepted*: they survive the death of the process. The crash that the
order prevents: a frame that vouches for bytes which were never written. `OpenSegment.sync` makes them
*durable*, shards first and frames last, for the same reason.

`read` finds out what an open segment holds, for recovery, for live readers and for `verify`: the longest
prefix of frames whose row bytes are all there. It needs no disk space and no write permission.

Place: tier 3, between the engines and `seal`, `writer`, `store`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from zarrow._format import frames, layout
from zarrow._format.records import Owner, ShardFacts
from zarrow._format.spec import StoreSpec
from zarrow._read.open_rows import OpenRows
from zarrow._storage import files, reading
from zarrow._storage.lock import FileLock
from zarrow._write.batches import Batch, payload
from zarrow._write.shards import Shard, open_shard
from zarrow.errors import CorruptionError, StoreLockedError

__all__ = ["OpenSegment", "discard"]


class OpenSegment:
    """An open segment that this process fills.

    Use `create` or `adopt`.

    Parameters
    ----------
    path : Path
        Its directory, which exists.
    spec : StoreSpec
        The store.
    lock : FileLock
        Held.
    create : bool
        Whether its files must not be there yet.
    """

    def __init__(self, path: Path, spec: StoreSpec, lock: FileLock, *, create: bool) -> None:
        self.path = path
        self.spec = spec
        self.durable_rows = 0
        self._lock = lock
        self._uuid = bytes.fromhex(spec.uuid)
        self._rows = 0
        self._shards: list[Shard] = []
        self._frames_fd = -1
        try:
            for array in spec.arrays:
                self._shards.append(open_shard(path, array, spec.segment_rows, create=create))
            self._frames_fd = files.create(path / layout.FRAMES, exist_ok=not create)
        except BaseException:
            self.close()
            raise
        self._frames_bytes = 0

    @classmethod
    def create(cls, root: Path, spec: StoreSpec, owner: Owner) -> OpenSegment:
        """Claim a new open segment: its directory is durable on return, so that no row precedes it.

        Parameters
        ----------
        root : Path
            The store.
        spec : StoreSpec
            What the store is.
        owner : Owner
            Who will fill it.

        Returns
        -------
        OpenSegment
            Empty.
        """
        number = time.time_ns()
        while True:
            path = root / layout.slot_dir(f"{number:016x}")
            try:
                files.make_dir(path)
                break
            except FileExistsError:
                number += 1
        lock = FileLock(path / layout.LOCK)
        if not lock.acquire():
            raise StoreLockedError(f"{path}: another writer cleaned this open segment away as it was made")
        try:
            segment = cls(path, spec, lock, create=True)
        except BaseException:
            lock.release()
            raise
        try:
            files.publish(path / layout.OWNER_JSON, owner.encode(), scratch=path.parent)
            files.sync_dir(path.parent)
        except BaseException:
            segment.close()
            raise
        return segment

    @classmethod
    def build(cls, scratch: Path, spec: StoreSpec) -> OpenSegment:
        """Make an open segment that nobody sees until `enter` gives it its name.

        Parameters
        ----------
        scratch : Path
            The directory to make it in, which is not there yet.
        spec : StoreSpec
            What the store is.

        Returns
        -------
        OpenSegment
            Empty.
        """
        files.make_dir(scratch)
        lock = FileLock(scratch / layout.LOCK)
        lock.acquire()
        return cls(scratch, spec, lock, create=True)

    def enter(self, root: Path, owner: Owner) -> None:
        """Make an open segment that was built aside one of the store, with all its rows: durable on return.

        Parameters
        ----------
        root : Path
            The store.
        owner : Owner
            Who fills it.
        """
        self.sync()
        files.publish(self.path / layout.OWNER_JSON, owner.encode(), scratch=self.path)
        number = time.time_ns()
        while (root / layout.slot_dir(f"{number:016x}")).exists():
            number += 1
        path = root / layout.slot_dir(f"{number:016x}")
        files.rename(self.path, path)
        files.sync_dir(path.parent)
        self.path = path

    @classmethod
    def adopt(cls, found: OpenRows, spec: StoreSpec, owner: Owner, lock: FileLock) -> OpenSegment:
        """Go on filling an open segment whose writer is dead.

        Parameters
        ----------
        found : OpenRows
            What it holds, read while the lock was held.
        spec : StoreSpec
            The store.
        owner : Owner
            Who goes on.
        lock : FileLock
            Its lock, held; it is given up with the segment.

        Returns
        -------
        OpenSegment
            With the rows of `found`; bytes behind them are cut off.
        """
        segment = cls(found.path, spec, lock, create=False)
        try:
            counts = [frame.rows for frame in found.frames]
            for index, shard in enumerate(segment._shards):
                shard.restore([frame.arrays[index] for frame in found.frames], counts)
            segment._rows = found.rows
            segment.durable_rows = found.durable_rows
            segment._frames_bytes = found.size_bytes
            files.truncate(segment._frames_fd, found.size_bytes)
            files.replace(
                found.path / layout.OWNER_JSON,
                owner.encode(),
                scratch=found.path.parent,
            )
        except BaseException:
            segment.close()
            raise
        return segment

    @property
    def slot(self) -> str:
        """Its name."""
        return self.path.name

    @property
    def rows(self) -> int:
        """Accepted rows."""
        return self._rows

    @property
    def room(self) -> int:
        """Rows that it still takes."""
        return self.spec.segment_rows - self._rows

    def append(self, batches: Sequence[Batch]) -> None:
        """Append rows, in one frame: accepted on return.

        Parameters
        ----------
        batches : sequence of Batch
            At most `room` rows.

        Raises
        ------
        OSError
            If the operating system refuses; the segment must not be appended to again.
        """
        rows = sum(batch.rows for batch in batches)
        assert rows <= self.room
        if any(shard.needs_sync(rows) for shard in self._shards):
            self.sync()
        entries = [
            shard.append(*(batch.arrays[index] for batch in batches))
            for index, shard in enumerate(self._shards)
        ]
        self._write_frame(rows, entries, payload(batches))
        self._rows += rows

    def _write_frame(
        self, rows: int, entries: Sequence[frames.ArrayEntry], payload: pa.Buffer | bytes
    ) -> None:
        frame = frames.encode(self._uuid, self._rows, rows, self.durable_rows, entries, payload)
        files.write(self._frames_fd, frame, self._frames_bytes)
        self._frames_bytes += len(frame)

    @property
    def wants_writeback(self) -> bool:
        """Whether so much was written that the disk should be told."""
        return any(shard.wants_writeback for shard in self._shards)

    def start_writeback(self) -> None:
        """Have the kernel start to write rows out."""
        for shard in self._shards:
            shard.start_writeback()

    def sync(self) -> None:
        """Make all rows durable.

        A frame without rows then says so, lest rot in the last batch be taken for a torn tail; should a
        power cut take that frame, nothing is lost but the proof.
        """
        if self.durable_rows == self._rows:
            return
        for shard in self._shards:
            shard.sync()
        files.sync(self._frames_fd)
        self.durable_rows = self._rows
        for shard in self._shards:
            shard.frames_synced()
        nothing = [
            shard.append(np.empty((0, *shard.array.row_shape), shard.array.numpy_dtype))
            for shard in self._shards
        ]
        self._write_frame(0, nothing, b"")

    def seal_shards(self) -> dict[str, ShardFacts]:
        """Turn the files into shards, in place, and make them and the journal durable.

        Returns
        -------
        dict of str to ShardFacts
            For the record.
        """
        files.sync(self._frames_fd)
        return {shard.array.name: shard.seal() for shard in self._shards}

    def batches(self) -> list[pa.RecordBatch]:
        """Return the table's rows, of the wire schema, read back from the journal and checked."""
        path = self.path / layout.FRAMES
        found = frames.scan(
            pa.py_buffer(reading.read(path, limit_bytes=frames.MAX_FRAME_BYTES)),
            self._uuid,
            len(self.spec.arrays),
            self.spec.segment_rows,
            str(path),
        )
        if found.rows != self._rows:
            raise CorruptionError(f"{self._rows} rows were appended, {found.rows} came back", path=path)
        return [frames.parse_payload(frame, self.spec.wire_schema) for frame in found.frames if frame.rows]

    def close(self, *, keep_lock: bool = False) -> None:
        """Close the files and, unless it is kept, give the lock up; the rows stay."""
        for shard in self._shards:
            shard.close()
        if self._frames_fd >= 0:
            os.close(self._frames_fd)
            self._frames_fd = -1
        if not keep_lock:
            self._lock.release()


def discard(path: Path) -> None:
    """Remove an open segment that no longer counts: gone for readers at one instant, durably so on return.

    The power cuts that the sync prevents: the name comes back over files that are gone, which looks like
    rot; or it comes back when the claim that told its rows are committed is gone, and they count twice.
    """
    aside = files.scratch_name(path.parent)
    files.rename(path, aside)
    files.sync_dir(path.parent)
    files.remove_tree(aside)
