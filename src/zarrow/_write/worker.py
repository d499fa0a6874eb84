"""Worker — a thread that works on items in the order they were put, several at a time, bounded in bytes.

1. `Worker.put` adds an item. It waits while the items that are queued or being worked on take more bytes than
   the limit.
2. The thread takes what has come, up to `GROUP_BYTES`, and hands it to `Worker.work`. If there is less, it
   waits a moment for more: every group has its price (a frame, in a store), and so has waking up, since what
   runs between the steps of a model finds cold caches and takes the interpreter from it.
3. `Worker.call` has the thread call a function after the items put before, and waits for that.

It owns the bound on memory while writing. Whatever `work` raises ends the thread and is kept in
`Worker.error`, for the caller to raise. Items still queued are lost then, as they are when the process dies.

A signal handler may call anything here, whatever it interrupts. So no lock is held that the thread needs,
callers exclude each other by a lock that one thread may take twice, and threads wake each other through
`queue.SimpleQueue` and plain locks, which no signal finds half done.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Worker", "close_at_exit"]

GROUP_BYTES = 4 << 20
"""Items are taken together up to this size."""
NAP_S = 0.05
"""How long the thread waits for a group to grow, unless a caller waits for it."""
ITEM_BYTES = 32 << 10
"""Added to the size of every item: the Python objects around small values take more than the values."""

Item = TypeVar("Item")


class Worker(ABC, Generic[Item]):
    """A thread with a queue; a subclass says what is done with the items.

    While there is room, `put` takes no lock that the thread holds: waiting for a lock gives the interpreter
    away until the thread has finished its group. A caller who found the queue full is woken when a sixteenth
    is free, not after every group: where the disk is slower than the model, one step in a few then waits, and
    the others do not.

    Parameters
    ----------
    name : str
        Of the thread.
    limit_bytes : int
        Size of the items that may be queued or worked on. A larger item is taken alone.
    """

    def __init__(self, name: str, limit_bytes: int) -> None:
        self.error: BaseException | None = None
        self._limit_bytes = limit_bytes
        self._resume_bytes = limit_bytes - limit_bytes // 16
        self._entries: queue.SimpleQueue[tuple[Item, int] | Callable[[], None] | None] = queue.SimpleQueue()
        self._next: tuple[Item, int] | Callable[[], None] | None = None  # taken out, but not worked on yet
        self._put_bytes = self._calls_put = 0  # counted by callers, under `_putting`
        self._done_bytes = self._calls_taken = 0  # counted by the thread
        self._putting = threading.RLock()
        self._waiting = self._stopped = False
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()  # something in it wakes a waiting caller
        self._enough: queue.SimpleQueue[None] = queue.SimpleQueue()  # something in it wakes the thread
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # What a subclass says

    @abstractmethod
    def work(self, items: list[Item]) -> None:
        """Work on items, on the thread; without any when `idle_s` is over."""

    def idle_s(self) -> float | None:
        """Return after how many seconds without an item `work` is called all the same; None for never."""
        return None

    def end(self) -> None:
        """Do what is left to do when the thread ends, however it ends; on the thread."""

    # The caller's side

    def put(self, item: Item, size_bytes: int) -> None:
        """Add an item when there is room for it; dropped if the thread has ended."""
        size_bytes += ITEM_BYTES
        with self._putting:
            if self._put_bytes - self._done_bytes + size_bytes > self._limit_bytes:
                self._wait_for_room(size_bytes)
            if not self._stopped:
                # Before it is counted: an interrupt in between is harmless.
                self._entries.put((item, size_bytes))
                self._put_bytes += size_bytes
                if self._is_enough() and self._enough.empty():
                    self._enough.put(None)

    def call(self, function: Callable[[], None] = lambda: None) -> None:
        """Have the thread call a function after all items put so far; returns early if the thread ends."""
        done = threading.Lock()
        done.acquire()

        def called() -> None:
            function()
            done.release()

        with self._putting:
            self._entries.put(called)
            self._calls_put += 1
            self._enough.put(None)
        while not done.acquire(timeout=0.01) and self._thread.is_alive():
            pass

    def stop(self) -> None:
        """Drop what is queued and end the thread; more than once does no harm."""
        self._end()
        self.join()

    def join(self) -> None:
        """Wait for the end of the thread."""
        self._thread.join()

    def end_with(self, function: Callable[[], None]) -> None:
        """Have the thread call a function after all items put so far, and end; for a destructor.

        Waits for nothing and takes no lock: a destructor may run on any thread, even the worker's own, at any
        instant. If the thread has ended, the function is called at once.
        """

        def last() -> None:
            try:
                function()
            finally:
                self._stopped = True

        if self._thread.is_alive():
            self._entries.put(last)
        else:
            function()

    def _end(self) -> None:
        self._stopped = True
        self._enough.put(None)
        self._room.put(None)
        with contextlib.suppress(queue.Empty):
            while True:
                self._entries.get_nowait()
        self._entries.put(None)

    def _is_enough(self) -> bool:
        """Tell whether the thread is not to wait for more."""
        queued = self._put_bytes - self._done_bytes
        return queued >= GROUP_BYTES or self._waiting or self._calls_put > self._calls_taken or self._stopped

    def _wait_for_room(self, size_bytes: int) -> None:
        limit = self._limit_bytes
        before = self._waiting  # true if a signal handler interrupted a caller who waits
        try:
            # Set before the thread's count is read: the thread raises the count before it reads this.
            self._waiting = True
            self._enough.put(None)
            while not self._stopped:
                queued = self._put_bytes - self._done_bytes
                if not queued or queued + size_bytes <= limit:
                    break
                self._room.get()
                limit = self._resume_bytes
        finally:
            self._waiting = before

    # The thread's side

    def _run(self) -> None:
        for step in (self._loop, self.end):
            try:
                step()
            except BaseException as error:  # noqa: BLE001 - whatever it is, the caller must see it
                self.error = self.error or error
                self._end()

    def _loop(self) -> None:
        while True:
            taken = self._take(self.idle_s())
            if self._stopped:
                return
            size_bytes = self.work_on(taken)
            del taken  # the memory is free before it is counted so
            self._done_bytes += size_bytes
            if self._waiting and self._put_bytes - self._done_bytes <= self._resume_bytes:
                self._room.put(None)

    def work_on(self, taken: tuple[list[Item], int] | Callable[[], None]) -> int:
        """Work on a group or call a function; return the bytes that are done."""
        if not isinstance(taken, tuple):
            taken()
            return 0
        items, size_bytes = taken
        self.work(items)
        return size_bytes

    def _take(self, timeout_s: float | None) -> tuple[list[Item], int] | Callable[[], None]:
        """Return the items that came first and their bytes, or a function; no items after the timeout."""
        while not self._enough.empty():
            self._enough.get_nowait()
        first, self._next = self._next, None
        if first is None and not self._stopped:
            with contextlib.suppress(queue.Empty):
                first = self._entries.get(timeout=timeout_s)
        if first is None:
            return [], 0
        if not isinstance(first, tuple):
            self._calls_taken += 1
            return first
        if not self._is_enough():
            with contextlib.suppress(queue.Empty):
                self._enough.get(timeout=NAP_S)
        item, size_bytes = first
        items = [item]
        while size_bytes < GROUP_BYTES:
            try:
                self._next = self._entries.get_nowait()
            except queue.Empty:
                break
            if not isinstance(self._next, tuple) or size_bytes + self._next[1] > GROUP_BYTES:
                break
            (item, more), self._next = self._next, None
            items.append(item)
            size_bytes += more
        return items, size_bytes


class Closable(Protocol):
    """What has to be closed."""

    def close(self) -> None: ...


def close_at_exit(owner: weakref.ref[Closable], worker: Worker[Any]) -> Callable[[], None]:
    """Have an owner of a worker closed when the interpreter ends, so that nothing queued is lost.

    Parameters
    ----------
    owner : weak reference
        If nothing refers to the owner any more, its worker is waited for.
    worker : Worker
        The owner's.

    Returns
    -------
    callable
        For `atexit.unregister`.
    """
    process = os.getpid()

    def close() -> None:
        if os.getpid() == process:
            still_there = owner()
            still_there.close() if still_there is not None else worker.join()

    atexit.register(close)
    return close
