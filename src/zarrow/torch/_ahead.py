"""Ahead — batches prepared in a thread while the model works on an earlier one.

Whoever has the lock makes the next batch: the thread as long as fewer than a number wait, or the consumer
itself if none does. So a consumer that is faster than the thread need not be woken for every batch. Nor is
the thread woken for a consumer that asks for the next batch at once: there would be nothing to overlap. An
error is raised where its batch would have come. The thread ends with the iterator, also when that is
abandoned halfway.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

__all__ = ["ahead"]

_AT_ONCE_S = 100e-6
"""Shorter than this, what the consumer does is not worth waking a thread for."""

T = TypeVar("T")


def ahead(items: Iterator[T], count: int) -> Iterator[T]:
    """Yield items, none of them None, that a thread makes, up to `count` before they are asked for.

    Examples
    --------
    >>> list(ahead(iter("abc"), 2))
    ['a', 'b', 'c']
    """
    if not count:
        yield from items
        return
    line = _Line(items, count)
    threading.Thread(target=line.fill, name="zarrow-ahead", daemon=True).start()
    try:
        while (one := line.take()) is not None:
            if isinstance(one, _Failed):
                raise one.error
            yield one
            del one  # else its memory could not be used for the next one
    finally:
        line.taken.put(False)


class _Failed(NamedTuple):
    error: BaseException


class _Line:
    """Items that were made and wait to be taken."""

    def __init__(self, items: Iterator[Any], count: int) -> None:
        self._items, self._count = items, count
        self._made: deque[Any] = deque()
        self._makes = threading.Lock()
        self.taken: SimpleQueue[bool] = SimpleQueue()
        self.taken.put(True)
        self._given_s = -_AT_ONCE_S

    def take(self) -> Any:
        """Return the next item, None at the end, or what failed instead of it."""
        busy_s = time.perf_counter() - self._given_s
        if not self._made:
            with self._makes:
                if not self._made:  # the thread had not begun it
                    self._make()
        one = self._made.popleft()
        if busy_s >= _AT_ONCE_S:
            self.taken.put(True)
        self._given_s = time.perf_counter()
        return one

    def fill(self) -> None:
        """Make items whenever one is taken, until the iterator that takes them ends."""
        while self.taken.get():
            while len(self._made) < self._count and self._makes.acquire(blocking=False):
                try:
                    if len(self._made) < self._count:
                        self._make()
                finally:
                    self._makes.release()

    def _make(self) -> None:
        try:
            self._made.append(next(self._items, None))
        except BaseException as error:  # noqa: BLE001 - raised where the item would have come
            self._made.append(_Failed(error))
