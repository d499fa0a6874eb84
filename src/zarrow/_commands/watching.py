"""Watch — how far a run is, how fast, and by which writers.

`Watch.look` reads a store that grows and compares it with earlier looks: rows, rows and bytes per second, the
same per writer, and the time left. Rates cover the last `WINDOW_S` seconds.

A writer's rows are those of the open segments that were seen while it was watched, and of the segments that
they became; who wrote the segments committed before is not recorded. A store that is being replaced is
watched where the new one grows. Of a store in a bucket, the rows are seen that are there: what is in the
spools of its writers is not. Reads only: writers do not notice.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from zarrow._format import layout
from zarrow._format.bucket import HOLDER, Holder
from zarrow._format.records import Owner, this_host
from zarrow._read.view import View, take_view
from zarrow._storage.lock import is_running
from zarrow._storage.objects import ObjectPath, located
from zarrow._storage.reading import read_file
from zarrow.errors import NotAStoreError, StoreNotFoundError

__all__ = ["Watch"]

WINDOW_S = 15.0


class Watch:
    """The progress of a store, from one look to the next.

    Parameters
    ----------
    path : path or URL
        The store.
    total : int, optional
        How many rows to expect; by default what the run stated, if it did.
    """

    def __init__(self, path: str | os.PathLike[str], total: int | None = None) -> None:
        self._path = located(path)
        self._total = total
        self._owners: dict[str, Owner] = {}
        self._slots: dict[str, int] = {}
        self._records: int | None = None
        self._looks: deque[tuple[float, int, dict[str, int]]] = deque()

    def look(self) -> dict[str, Any]:
        """Return the progress so far, as JSON values; what is not known yet is None.

        Raises
        ------
        StoreNotFoundError, NotAStoreError, CorruptionError
            If there is no store, or a damaged one.
        """
        view = self._view()
        rows = 0 if view is None else view.rows
        if view is not None:
            self._count(view)
        total = self._total
        if total is None and view is not None:
            total = view.snapshot.expected_rows
        writers = self._writers()
        now = time.monotonic()
        self._looks.append((now, rows, writers))
        while self._looks[0][0] < now - WINDOW_S:
            self._looks.popleft()
        then, rows_then, writers_then = self._looks[0]
        spent = now - then

        def rate(after: int, before: int) -> float | None:
            return round(max(after - before, 0) / spent, 1) if spent else None

        speed = rate(rows, rows_then)
        row_bytes = 0 if view is None else sum(array.row_bytes for array in view.spec.arrays)
        complete = view is not None and view.snapshot.complete
        return {
            "path": str(self._path),
            "complete": complete,
            "rows": rows,
            "open_rows": 0 if view is None else rows - view.snapshot.rows,
            "total_rows": total,
            "rows_per_s": speed,
            "vector_mb_per_s": None if speed is None else round(speed * row_bytes / 1e6, 2),
            "eta_s": round((total - rows) / speed, 1) if total and speed and total >= rows else None,
            "writers": [
                {
                    "host": owner.host,
                    "pid": owner.pid,
                    "since": owner.since,
                    "running": is_running(owner.pid) if owner.host == this_host() else None,
                    "rows": writers[session],
                    "rows_per_s": rate(writers[session], writers_then.get(session, 0)),
                }
                for session, owner in self._sessions().items()
            ],
        }

    def _view(self) -> View | None:
        """Return the store's rows, None before the first batch."""
        if isinstance(self._path, ObjectPath):
            try:
                return take_view(self._path, partial=True)
            except StoreNotFoundError:
                if not self._path.exists(HOLDER):
                    raise
                return None
        grows = self._path.with_name(self._path.name + layout.INCOMING_SUFFIX)
        for path in (grows, self._path):
            if path == grows and not (path / layout.STORE_JSON).exists():
                continue
            try:
                return take_view(path, partial=True)
            except NotAStoreError:
                if not (path / layout.OPEN_DIR).is_dir():
                    raise
        return None

    def _count(self, view: View) -> None:
        """Note the rows of each open segment, and of those committed since the last look."""
        if isinstance(self._path, ObjectPath):
            self._count_in_bucket(self._path, view)
            return
        for piece in view.open_pieces:
            self._owners[piece.rows.slot] = piece.rows.owner
            self._slots[piece.rows.slot] = max(self._slots.get(piece.rows.slot, 0), piece.rows.rows)
        segments = view.snapshot.segments
        if self._records is not None:
            for number in range(self._records, segments):
                for source in view.snapshot.record(number).sources:
                    if source.slot in self._owners:
                        self._slots[source.slot] = max(self._slots[source.slot], source.stop)
        self._records = segments

    def _count_in_bucket(self, place: ObjectPath, view: View) -> None:
        """Note the writers that are listed, and the rows of segments that they committed since."""
        with contextlib.suppress(FileNotFoundError):  # the store is complete
            holder = Holder.decode(read_file(place, HOLDER), str(place / HOLDER))
            for owner in holder.writers:
                self._owners.setdefault(owner.session, owner)
                self._slots.setdefault(owner.session, 0)
        segments = view.snapshot.segments
        for number in range(segments if self._records is None else self._records, segments):
            for source in view.snapshot.record(number).sources:
                if source.session in self._owners:
                    self._slots[source.session] += source.rows
        self._records = segments

    def _sessions(self) -> Mapping[str, Owner]:
        return {owner.session: owner for owner in self._owners.values()}

    def _writers(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for slot, owner in self._owners.items():
            found[owner.session] = found.get(owner.session, 0) + self._slots[slot]
        return found
