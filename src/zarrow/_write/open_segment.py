"""Open segment — rows on their way to a shard, journalled so that a killed process loses none.

An open segment is a directory under ``open/``: the files that will become its shards, the journal of its
table rows, a lock, and a note of its owner. Creating the directory claims its name; names are taken from
the clock and never used twice. A batch is appended in this order:

1. row bytes to the shard files (`shards`);
2. its frame to ``table.frames`` (`_format.frames`).

Once the frame is written the rows are *accepted*: they survive the death of the process. The order prevents
a crash that leaves a frame for bytes that were never written. `OpenSegment.sync` makes the rows *durable*,
shards first and frames last, for the same reason. `_read.open_rows` reads what a crash leaves: the longest
prefix of frames whose row bytes are all there.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from zarrow._format import frames, layout
from zarrow._format.layout import MAX_FRAME_ROW_BYTES
from zarrow._format.records import Owner, ShardFacts
from zarrow._format.spec import StoreSpec
from zarrow._read.open_rows import OpenRows
from zarrow._storage import files, reading
from zarrow._storage.lock import FileLock
from zarrow._write.batches import CheckedBatch, payload, split
from zarrow._write.shards import Shard, open_shard
from zarrow.errors import CorruptionError, InvalidInputError, StoreLockedError

__all__ = ["OpenSegment", "discard", "new_slot"]

_JOURNAL_BYTES = 16 << 20
"""Up to this size, the journal of a segment is read at once when its part is written."""


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
    owner : Owner
        The writer that fills it.
    create : bool
        Whether its files must not be there yet.
    """

    def __init__(self, path: Path, spec: StoreSpec, lock: FileLock, owner: Owner, *, create: bool) -> None:
        self.path = path
        self.owner = owner
        self.spec = spec
        self.durable_rows = 0
        self._lock = lock
        self._uuid = bytes.fromhex(spec.uuid)
        self._rows = 0
        self._shards: list[Shard] = []
        self._places = spec.extent_places
        self._frames_fd = -1
        try:
            for array in spec.arrays:
                self._shards.append(open_shard(path, array, spec.segment_rows, create=create))
            self._frames_fd = files.create(path / layout.FRAMES, exist_ok=not create)
            self._frames_bytes = 0
            if create:
                # Durable before the owner is: a journal that begins with no sound frame was damaged.
                self._write_mark()
                files.sync(self._frames_fd)
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, root: Path, spec: StoreSpec, owner: Owner, after: str = "") -> OpenSegment:
        """Claim a new open segment; its directory is durable on return, before any row in it is.

        Parameters
        ----------
        root : Path
            The store.
        spec : StoreSpec
            The store's spec.
        owner : Owner
            The writer that fills it.
        after : str
            The name of the writer's last one: the new one's sorts behind it, wherever the clock went.

        Returns
        -------
        OpenSegment
            Empty.
        """
        number = _new_number(after)
        while True:
            path = root / layout.slot_dir(f"{number:016x}")
            try:
                files.make_dir(path)
                break
            except FileExistsError:
                number += 1
        lock = FileLock(path / layout.LOCK)
        if not lock.acquire():
            raise StoreLockedError(f"{path}: another writer removed this open segment while it was created")
        try:
            segment = cls(path, spec, lock, owner, create=True)
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
    def build(cls, scratch: Path, spec: StoreSpec, owner: Owner) -> OpenSegment:
        """Create an open segment that is invisible until `enter` gives it its name.

        Parameters
        ----------
        scratch : Path
            Its directory until then, which does not exist yet.
        spec : StoreSpec
            The store's spec.
        owner : Owner
            The writer that fills it.

        Returns
        -------
        OpenSegment
            Empty.
        """
        files.make_dir(scratch)
        lock = FileLock(scratch / layout.LOCK)
        lock.acquire()
        return cls(scratch, spec, lock, owner, create=True)

    def enter(self, root: Path) -> None:
        """Add an open segment that was built aside to the store, with all its rows: durable on return."""
        self.sync()
        files.publish(self.path / layout.OWNER_JSON, self.owner.encode(), scratch=self.path)
        number = _new_number()
        while (root / layout.slot_dir(f"{number:016x}")).exists():
            number += 1
        path = root / layout.slot_dir(f"{number:016x}")
        files.rename(self.path, path)
        files.sync_dir(path.parent)
        self.path, self._lock.path = path, path / layout.LOCK

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
            The writer that fills it from now on.
        lock : FileLock
            Its lock, held; closing the segment releases it.

        Returns
        -------
        OpenSegment
            With the rows of `found`; bytes after them are cut off.
        """
        owner = replace(owner, reopens=found.owner.reopens)
        segment = cls(found.path, spec, lock, owner, create=False)
        try:
            for index, shard in enumerate(segment._shards):
                shard.restore([frame.arrays[index] for frame in found.frames], found.counts(index))
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

    def append(self, batches: Sequence[CheckedBatch]) -> None:
        """Append rows, in frames of `StoreSpec.frame_rows` rows at most: accepted on return.

        Parameters
        ----------
        batches : sequence of CheckedBatch
            At most `room` rows.

        Raises
        ------
        OSError
            If the operating system refuses; the segment must not be appended to again.
        """
        assert sum(batch.rows for batch in batches) <= self.room
        while batches:
            now, batches = split(batches, self._frame_rows(batches))
            self._append(now)

    def _frame_rows(self, batches: Sequence[CheckedBatch]) -> int:
        """Return how many rows of these the next frame takes: at least one."""
        limit = self.spec.frame_rows
        if not self._places:
            return limit
        sizes = np.full(min(limit, sum(batch.rows for batch in batches)), self.spec.fixed_bytes)
        for ragged, extents in self._places.items():
            counts = np.concatenate([batch.arrays[extents][: len(sizes)] for batch in batches])
            sizes += counts[: len(sizes)] * self.spec.arrays[ragged].row_bytes
        return max(int(np.searchsorted(np.cumsum(sizes), MAX_FRAME_ROW_BYTES, "right")), 1)

    def _append(self, batches: Sequence[CheckedBatch]) -> None:
        rows = sum(batch.rows for batch in batches)
        pieces = self._pieces(batches)
        if any(shard.needs_sync(sum(map(len, own))) for shard, own in zip(self._shards, pieces, strict=True)):
            self.sync()
        entries = [shard.append(*own) for shard, own in zip(self._shards, pieces, strict=True)]
        self._write_frame(rows, entries, payload(batches))
        if not os.fstat(self._frames_fd).st_nlink:
            raise OSError(errno.ESTALE, "the open segment was removed while it was written")
        self._rows += rows

    def _pieces(self, batches: Sequence[CheckedBatch]) -> list[list[Any]]:
        """Return what is appended to each array: of ragged ones their vectors, and where those will lie."""
        pieces: list[list[Any]] = [
            [batch.arrays[index] for batch in batches] for index in range(len(self._shards))
        ]
        for ragged, extents in self._places.items():
            array, first = self.spec.arrays[ragged], self._shards[ragged].rows
            pieces[ragged] = [rows.values for rows in pieces[ragged]]
            counts = np.concatenate(pieces[extents])
            ends = first + np.cumsum(counts)
            if len(ends) and ends[-1] > array.shard_rows(self.spec.segment_rows):
                raise InvalidInputError(
                    f"array {array.name!r}: a segment may have {array.segment_vectors} vectors, and its "
                    f"{self.spec.segment_rows} rows have more: write a store with smaller segment_rows"
                )
            pieces[extents] = [np.stack([ends - counts, counts], axis=1)]
        return pieces

    def _write_frame(
        self, rows: int, entries: Sequence[frames.ArrayEntry], payload: pa.Buffer | bytes
    ) -> None:
        frame = frames.encode(self._uuid, self._rows, rows, self.durable_rows, entries, payload)
        files.write(self._frames_fd, frame, self._frames_bytes)
        self._frames_bytes += len(frame)

    @property
    def wants_writeback(self) -> bool:
        """Whether enough was written to start writeback."""
        return any(shard.wants_writeback for shard in self._shards)

    def start_writeback(self) -> None:
        """Have the kernel start to write rows to the disk."""
        for shard in self._shards:
            shard.start_writeback()

    def sync(self) -> None:
        """Make all rows durable.

        A frame without rows records it, so that damage in the last batch cannot pass for a torn tail. If a
        power cut takes that frame, only this record is lost.
        """
        if self.durable_rows == self._rows:
            return
        for shard in self._shards:
            shard.sync()
        files.sync(self._frames_fd)
        self.durable_rows = self._rows
        for shard in self._shards:
            shard.frames_synced()
        self._write_mark()

    def _write_mark(self) -> None:
        """Write a frame without rows."""
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
            For the commit record.
        """
        files.sync(self._frames_fd)
        return {shard.array.name: shard.seal() for shard in self._shards}

    def batches(self) -> list[pa.RecordBatch]:
        """Return the table's rows, of the wire schema, read from the journal and checked."""
        path = self.path / layout.FRAMES
        found = frames.scan(
            reading.open_file(self.path, layout.FRAMES).journal(small_bytes=_JOURNAL_BYTES),
            self._uuid,
            len(self.spec.arrays),
            self.spec.segment_rows,
            str(path),
        )
        if found.rows != self._rows:
            raise CorruptionError(f"{self._rows} rows were appended, {found.rows} were read back", path=path)
        return [frames.parse_payload(frame, self.spec.wire_schema) for frame in found.frames if frame.rows]

    def let_go(self) -> FileLock:
        """Close the files and return the lock, held; the rows stay."""
        self.close(keep_lock=True)
        return self._lock

    def close(self, *, keep_lock: bool = False) -> None:
        """Close the files and, unless it is kept, release the lock; the rows stay."""
        for shard in self._shards:
            shard.close()
        fd, self._frames_fd = self._frames_fd, -1
        if fd >= 0:
            os.close(fd)
        if not keep_lock:
            self._lock.release()


def _new_number(after: str = "") -> int:
    """Return a number for a name, by the time to 4 microseconds and, since clocks stand still, by chance."""
    number = time.time_ns() & ~0xFFF | secrets.randbelow(0x1000)
    return max(number, int(after or "0", 16) + 1)


def new_slot() -> str:
    """Return a name for an open segment that is made for a bucket."""
    return f"{_new_number():016x}"


def discard(path: Path) -> None:
    """Remove an open segment that no longer counts: for readers in one step, and durably on return.

    The sync prevents two power cuts: one that brings the name back without its files, which looks like
    damage, and one that brings it back without the claim that says its rows are committed, so that they
    count twice.
    """
    aside = files.scratch_name(path.parent)
    files.rename(path, aside)
    files.sync_dir(path.parent)
    files.remove_tree(aside)
