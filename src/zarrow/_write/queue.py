"""How does the caller get ahead of the disk, but not too far?

Place: tier 3, used by `appender`. Owns the bound on memory while writing. What is queued dies with the
process.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from zarrow._write.batches import Batch

__all__ = ["BatchQueue", "Later"]

GROUP_BYTES = 4 << 20
"""Batches that wait are written in one frame up to so many bytes."""

NAP_S = 0.05
"""How long batches wait for others to be written with, if there are not so many bytes and nobody waits."""
ITEM_BYTES = 32 << 10
"""What each that waits counts beside its values: Python's own objects are most of a tiny one."""


@dataclass(frozen=True, slots=True)
class Later:
    """A batch that the thread is to make.

    Parameters
    ----------
    size_bytes : int
        What it takes in memory, until then and after.
    make : callable
        Returns it, in a list that may be empty.
    """

    size_bytes: int
    make: Callable[[], list[Batch]]


Item = Batch | Later | Callable[[], None]


class BatchQueue:
    """Batches between callers and one thread, bounded in bytes; a callable among them is run in its turn.

    While there is room, `put` takes no lock that the thread holds: whoever waits for a lock gives the
    interpreter away, and gets it back when the thread has checked a batch's bytes and written them.

    A caller who found it full is woken when a sixteenth is free, not after every batch: where the disk is
    slower than the model, one batch in a few then waits, and the others do not.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._resume_bytes = limit_bytes - limit_bytes // 16
        self._items: queue.SimpleQueue[tuple[Item, int] | None] = queue.SimpleQueue()
        self._next: tuple[Item, int] | None = None  # what the thread took out, but not with what came before
        self._put_bytes = 0  # callers count these, under `_putting`
        self._done_bytes = 0  # the thread counts these
        self._putting = threading.Lock()
        self._room = threading.Condition()
        self._waiting = False
        self._calls_put = self._calls_taken = 0  # callables, whose callers wait: counted in the same way
        self._enough = threading.Event()
        self.stopped = False

    def put(self, item: Item) -> None:
        """Add an item, when there is room for it or nothing else is queued."""
        size = item.size_bytes + ITEM_BYTES if isinstance(item, Batch | Later) else 0
        with self._putting:
            if self._put_bytes - self._done_bytes + size > self._limit_bytes:
                self._wait_for_room(size)
            if not self.stopped:
                self._items.put((item, size))  # before it is counted: an interrupt in between does no harm
                self._put_bytes += size
                self._calls_put += not size
                if self._is_enough() and not self._enough.is_set():
                    self._enough.set()

    def _is_enough(self) -> bool:
        """Tell whether the thread is not to wait for more."""
        queued = self._put_bytes - self._done_bytes
        return queued >= GROUP_BYTES or self._waiting or self._calls_put > self._calls_taken or self.stopped

    def _wait_for_room(self, size: int) -> None:
        with self._room:
            limit = self._limit_bytes
            # Said before the thread's count is looked at, which it raises before it looks here.
            self._waiting = True
            self._enough.set()
            while not self.stopped:
                queued = self._put_bytes - self._done_bytes
                if not queued or queued + size <= limit:
                    break
                self._room.wait()
                limit = self._resume_bytes
            self._waiting = False

    def get(self, timeout_s: float | None) -> tuple[list[Batch | Later], int] | Callable[[], None] | None:
        """Return batches that came first and their bytes, or a callable; None after the timeout.

        Batches that wait one behind the other come together: each frame has its price, and so has waking
        up: between the steps of a model caches are cold, and what runs then takes the interpreter from the
        model. So the first batch waits a moment for others.
        """
        self._enough.clear()
        first, self._next = self._next, None
        if first is None and not self.stopped:
            with contextlib.suppress(queue.Empty):
                first = self._items.get(timeout=timeout_s)
        if first is None or self.stopped:
            return None
        item, size = first
        if not isinstance(item, Batch | Later):
            self._calls_taken += 1
            return item
        if not self._is_enough():
            self._enough.wait(NAP_S)
        batches = [item]
        while size < GROUP_BYTES and self._next is None:
            try:
                following = self._items.get_nowait()
            except queue.Empty:
                break
            if following is None:
                break
            item, more = following
            if isinstance(item, Batch | Later) and size + more <= GROUP_BYTES:
                batches.append(item)
                size += more
            else:
                self._next = following
        return batches, size

    def done(self, size_bytes: int) -> None:
        """Count the bytes of batches whose memory is free."""
        self._done_bytes += size_bytes
        if self._waiting and self._put_bytes - self._done_bytes <= self._resume_bytes:
            with self._room:
                self._room.notify_all()

    def stop(self) -> None:
        """Throw away what is queued, and let every caller go."""
        with self._room:
            self.stopped = True
            self._enough.set()
            self._room.notify_all()
        with contextlib.suppress(queue.Empty):
            while True:
                self._items.get_nowait()
        self._items.put(None)
