"""Tails — open segments of which the bucket has the rows, because their writer was closed, or may be lost.

A tail has the files of an open segment as objects below ``open/``, and counts when its name is in the holder
(`hold`). Nothing is ever appended to it. Rows of an open segment that is still being filled are put there in
pieces (`Tails.copy`), each a tail of its own that names the segment: it does not count any more when the
segment was committed, or is there as a tail itself, and then it is removed.

A crash leaves objects of a tail that does not count; they are removed when the store is completed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path

from zarrow._format import layout
from zarrow._format.records import Owner
from zarrow._format.spec import StoreSpec
from zarrow._read.open_rows import OpenRows, read
from zarrow._storage import files
from zarrow._storage.reading import open_file, read_file
from zarrow._write import recovery
from zarrow._write.batches import CheckedBatch
from zarrow._write.bucket import Bucket
from zarrow._write.directory import in_own_session
from zarrow._write.open_segment import OpenSegment, new_slot
from zarrow.errors import CorruptionError, StoreLockedError

__all__ = ["Tails"]

_READS = 10


class Tails:
    """The tails that one writer puts into a bucket.

    Parameters
    ----------
    bucket : Bucket
        The store.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._place = bucket.place
        self._copies: dict[str, tuple[int, list[str]]] = {}  # by open segment: rows, and tails that have them

    def put(self, rows: OpenRows) -> None:
        """Put an open segment there: it counts on return, and copies of it do not."""
        self._put(rows.path, rows.slot)
        self.remove_copies(rows.slot)

    def put_built(self, segment: OpenSegment) -> str:
        """Put an open segment there that was built aside: it counts on return, by the name returned."""
        segment.sync()
        files.publish(segment.path / layout.OWNER_JSON, segment.owner.encode(), scratch=segment.path)
        slot = new_slot()
        self._bucket.persist(partial(self._put, segment.path, slot))
        return slot

    def put_rows(self, root: Path, spec: StoreSpec, owner: Owner, batches: Iterable[CheckedBatch]) -> None:
        """Put rows there, of which an open segment is built below the spool first."""
        segment = OpenSegment.build(files.scratch_name(root / layout.OPEN_DIR), spec, owner)
        try:
            for batch in batches:
                segment.append([batch])
            self.put_built(segment)
        finally:
            segment.close()
            files.remove_tree(segment.path)

    def remove(self, slots: Collection[str]) -> None:
        """Remove tails whose rows are elsewhere."""
        self._bucket.hold.remove_tails(slots)
        for slot in slots:
            self._remove(slot)

    def rename(self, slot: str, owner: Owner, frames_bytes: int | None) -> None:
        """Give a tail another owner, and so another name; cut its journal off after so many bytes."""
        new, folder = new_slot(), layout.slot_dir(slot)
        for name in self._place.list(folder):
            path = f"{layout.slot_dir(new)}/{name}"
            if name == layout.FRAMES and frames_bytes is not None:
                self._place.put_bytes(path, self._place.open(f"{folder}/{name}").read(0, frames_bytes))
            elif name != layout.OWNER_JSON:
                self._place.copy(f"{folder}/{name}", path)
        self._place.put_bytes(f"{layout.slot_dir(new)}/{layout.OWNER_JSON}", owner.encode())
        self._bucket.hold.change_tails([new], [slot])
        self._remove(slot)

    def _put(self, path: Path, slot: str) -> None:
        folder = layout.slot_dir(slot)
        for name in sorted(os.listdir(path)):
            if name not in (layout.LOCK, layout.PART):
                with open_file(path, name) as file:
                    self._place.put(f"{folder}/{name}", file)
        try:
            self._bucket.hold.add_tail(slot)
        except StoreLockedError:
            self._remove(slot)
            raise

    def _remove(self, slot: str) -> None:
        folder = layout.slot_dir(slot)
        for name in self._place.list(folder):
            self._place.delete(f"{folder}/{name}")

    def copy(self, spec: StoreSpec, segment: OpenSegment) -> None:
        """Put the rows of an open segment there that were accepted since the last time."""
        start, slots = self._copies.get(segment.slot, (0, []))
        found = None
        for _ in range(_READS):
            with contextlib.suppress(CorruptionError):  # it was read while it was written
                found = read(segment.path, spec)
                break
        if found is None or found.rows <= start:
            return
        owner = in_own_session(segment.owner, from_segment=segment.owner.from_segment, reopens=segment.slot)
        scratch = files.scratch_name(segment.path.parent)
        try:
            slot = recovery.copy_open(found, start, spec, scratch, owner)
            self._bucket.persist(partial(self._put, scratch, slot))
            self._copies[segment.slot] = found.rows, [*slots, slot]
        finally:
            files.remove_tree(scratch)

    def remove_copies(self, slot: str) -> None:
        """Remove what was copied of an open segment. What stays of it does not count."""
        _, copies = self._copies.pop(slot, (0, []))
        if copies:
            with contextlib.suppress(OSError):
                self.remove(copies)

    def remove_copies_of_the_dead(self, slot: str) -> None:
        """Remove what a dead writer has copied of an open segment, which is about to get another name."""
        copies = []
        for one in self._bucket.hold.require_held().tails:
            path = f"{layout.slot_dir(one)}/{layout.OWNER_JSON}"
            if Owner.decode(read_file(self._place, path), str(self._place / path)).reopens == slot:
                copies.append(one)
        self._copies[slot] = 0, copies
        self.remove_copies(slot)

    def put_copied(self, root: Path, spec: StoreSpec) -> None:
        """Put the open segments there that have copies, before any of their rows are packed.

        This prevents a crash that leaves rows which are committed, and in a copy that counts.
        """
        for slot in [*self._copies]:
            found = read(root / layout.slot_dir(slot), spec)
            if found is not None:
                self._bucket.persist(partial(self.put, found))
