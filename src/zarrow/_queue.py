"""How does the caller get ahead of the disk, but not too far?

Place: tier 3, used by `_appender`. Owns the bound on memory while writing. What is queued dies with the
process.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from zarrow._batches import Batch

__all__ = ["BatchQueue"]

GROUP_BYTES = 1 << 20
"""Batches that wait are written together up to so many bytes; larger ones alone, without being copied."""


class BatchQueue:
    """Batches between caller and thread, bounded in bytes; a callable among them is run in its turn.

    A caller who found it full is woken when an eighth is free, not after every batch: where the disk is
    slower than the model, one batch in a few then waits, and the others do not.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._resume_bytes = limit_bytes - limit_bytes // 8
        self._items: deque[Batch | Callable[[], None]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self.stopped = False

    def put(self, item: Batch | Callable[[], None]) -> None:
        """Add an item, when there is room for it or nothing else is queued."""
        size = item.size_bytes if isinstance(item, Batch) else 0
        with self._changed:
            limit = self._limit_bytes
            while self._bytes and self._bytes + size > limit and not self.stopped:
                self._changed.wait()
                limit = self._resume_bytes
            self._items.append(item)
            self._bytes += size
            if len(self._items) == 1:
                self._changed.notify_all()

    def get(self, timeout_s: float | None) -> list[Batch] | Callable[[], None] | None:
        """Return what is first, without taking it away; None after the timeout.

        Small batches that wait one behind the other come together: each write has its price.
        """
        with self._changed:
            if not self._items and not self.stopped:  # who stopped it has notified already
                self._changed.wait(timeout_s)
            if not self._items:
                return None
            first = self._items[0]
            if not isinstance(first, Batch):
                return first
            batches: list[Batch] = []
            size = 0
            for item in self._items:
                if not isinstance(item, Batch) or (batches and size + item.size_bytes > GROUP_BYTES):
                    break
                batches.append(item)
                size += item.size_bytes
            return batches

    def done(self, items: int) -> None:
        """Take so many items away: their memory is free."""
        with self._changed:
            if self.stopped:
                return
            for _ in range(items):
                item = self._items.popleft()
                self._bytes -= item.size_bytes if isinstance(item, Batch) else 0
            if self._bytes <= self._resume_bytes:
                self._changed.notify_all()

    def stop(self) -> None:
        """Throw everything away and let every caller go."""
        with self._changed:
            self.stopped = True
            self._items.clear()
            self._bytes = 0
            self._changed.notify_all()
