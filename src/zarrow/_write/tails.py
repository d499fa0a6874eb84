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
from functools import partial
from pathlib import Path

from zarrow._format import layout
from zarrow._format.records import Owner
from zarrow._format.spec import StoreSpec
from zarrow._read.open_rows import OpenRows, read
from zarrow._storage import files
from zarrow._storage.reading import open_file, read_file
from zarrow._write import recovery
from zarrow._write.bucket import Bucket
from zarrow._write.directory import in_own_session
from zarrow._write.open_segment import OpenSegment
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
                self._bucket.hold.remove_tails(copies)
                for one in copies:
                    self._remove(one)

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
