"""Threads — the process's one pool, in which chunks are encoded and decoded and rows gathered.

It is made when it is first needed; codecs and numpy release the GIL. At the interpreter's end pools accept no
more work, which is then done by the calling thread.
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
"""Results per thread that may wait to be consumed."""

T = TypeVar("T")
R = TypeVar("R")


def in_order(run: Callable[[T], R], items: Sequence[T], ahead: int | None = None) -> Iterator[R]:
    """Yield ``run(item)`` for every item, in order, computed by several threads.

    Parameters
    ----------
    run : callable
        Must not use this function itself, because the threads would wait for each other.
    items : sequence
        Its arguments.
    ahead : int, optional
        Results that may wait to be consumed; 8 per thread by default.

    Yields
    ------
    object
        Its results.

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
    """Submit work to a pool; if the pool accepts none, because the interpreter ends, do it here."""
    try:
        return pool.submit(work)
    except RuntimeError:
        done: Future[T] = Future()
        try:
            done.set_result(work())
        except Exception as error:  # noqa: BLE001 - raised where the result is taken
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
    """Drop the pool after a fork, as in data loader workers: its threads exist only in the parent."""
    global _pool, _pool_lock
    _pool = None
    _pool_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
