"""Ahead — batches prepared in a thread while the model works on an earlier one.

The thread takes a ticket for every batch that it prepares, and the consumer returns it with the batch: so no
more than a number of batches wait. An error is raised where its batch would have come. The thread ends with
the iterator, also when that is abandoned halfway.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

__all__ = ["ahead"]

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
    made: SimpleQueue[Any] = SimpleQueue()
    tickets: SimpleQueue[bool] = SimpleQueue()
    for _ in range(count):
        tickets.put(True)
    threading.Thread(target=_make, args=(items, made, tickets), name="zarrow-ahead", daemon=True).start()
    try:
        while (one := made.get()) is not None:
            if isinstance(one, _Failed):
                raise one.error
            tickets.put(True)
            yield one
            del one  # else its memory could not be used for the next one
    finally:
        tickets.put(False)


def _make(items: Iterator[Any], made: SimpleQueue[Any], tickets: SimpleQueue[bool]) -> None:
    try:
        while tickets.get():
            one = next(items, None)
            if one is None:
                made.put(None)
                return
            made.put(one)
            del one
    except BaseException as error:  # noqa: BLE001 - raised where the batch would have come
        made.put(_Failed(error))


class _Failed(NamedTuple):
    error: BaseException
