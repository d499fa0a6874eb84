"""In which threads are chunks encoded and decoded, and rows gathered?

One pool per process, made when it is first needed, for codecs and numpy let go of Python's lock. At the
interpreter's end pools take no more work; whoever hands some in does it then.

Place: tier 1, used by `_write.shards`, `_read.chunks`, `_read.mapping` and `_write.appender`.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

__all__ = ["in_order", "submit"]

MAX_THREADS = 8
AHEAD = 8
"""Results per thread that may wait to be taken."""

T = TypeVar("T")
R = TypeVar("R")


def in_order(run: Callable[[T], R], items: Sequence[T], ahead: int | None = None) -> Iterator[R]:
    """Yield ``run(item)`` of every item in their order, worked on by several threads.

    Parameters
    ----------
    run : callable
        Must not use this function itself: its threads would wait for each other.
    items : sequence
        What it is called with.
    ahead : int, optional
        Results that may wait to be taken; 8 per thread by default.

    Yields
    ------
    object
        What it returned.

    Examples
    --------
    >>> list(in_order(len, ["a", "bc"]))
    [1, 2]
    """
    if len(items) < 2:
        yield from map(run, items)
        return
    pool = _shared_pool()
    most = AHEAD * _threads() if ahead is None else ahead
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            if len(waiting) >= most:
                yield waiting.popleft().result()
            waiting.append(submit(pool, partial(run, item)))
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def submit(pool: ThreadPoolExecutor, work: Callable[[], T]) -> Future[T]:
    """Hand work to a pool; if that takes no more, for the interpreter ends, do it here."""
    try:
        return pool.submit(work)
    except RuntimeError:
        done: Future[T] = Future()
        try:
            done.set_result(work())
        except Exception as error:  # noqa: BLE001 - whoever asks for the result hears of it
            done.set_exception(error)
        return done


_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def _threads() -> int:
    return min(MAX_THREADS, os.cpu_count() or 1)


def _shared_pool() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(_threads(), thread_name_prefix="zarrow")
        return _pool


def _forget_pool() -> None:
    """Forget the threads after a fork (data loader workers): they stayed in the parent."""
    global _pool, _pool_lock
    _pool = None
    _pool_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
