"""Cache — the most recently used values, up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["Cache"]

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """A mapping that drops its least recently used values; thread-safe.

    Parameters
    ----------
    limit_bytes : int
        The total size of the values that are kept. A larger value is not kept at all.

    Examples
    --------
    >>> cache = Cache[str](10)
    >>> cache.put("a", "x", 6), cache.put("b", "y", 6)
    (None, None)
    >>> cache.get("a"), cache.get("b")
    (None, 'y')
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._items: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Value | None:
        """Return the value of a key if it is kept, else None."""
        with self._lock:
            item = self._items.get(key)
            if item is None:
                return None
            self._items.move_to_end(key)
            return item[0]

    def put(self, key: Hashable, value: Value, size_bytes: int) -> None:
        """Keep a value of that size."""
        with self._lock:
            if key in self._items:
                self._bytes -= self._items.pop(key)[1]
            if size_bytes <= self._limit_bytes:
                self._items[key] = value, size_bytes
                self._bytes += size_bytes
            while self._bytes > self._limit_bytes:
                self._bytes -= self._items.popitem(last=False)[1][1]
