"""Interrupts — what Ctrl-C does: while a command starts it leaves at once, while it works it raises.

1. `leave_at_once` is called before anything large is imported. An exception in the middle of an import
   cannot be caught reliably: extension modules print it, swallow it or raise another one. So Ctrl-C prints
   its one line and ends the process; nothing has begun that would have to be undone.
2. In the context of `working` Ctrl-C raises `KeyboardInterrupt`, so that half-written files are removed and
   `predict` says what is safe; except in the middle of an import, see above.

A handler that somebody else has set stays, and so does "ignore Ctrl-C", with which shells start what runs in
the background. This module imports next to nothing: until it is loaded, Ctrl-C is a traceback.
"""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager

TYPE_CHECKING = False  # importing typing would take longer than all the rest
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["INTERRUPTED", "leave_at_once", "working"]

INTERRUPTED = 130
"""The exit code: 128 and the number of the signal, as of every shell."""


def _leave(*_: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _raise(_: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _leave()
        frame = frame.f_back
    raise KeyboardInterrupt


def _replace(usual: object, by: object) -> None:
    if signal.getsignal(signal.SIGINT) is usual:
        signal.signal(signal.SIGINT, by)  # type: ignore[arg-type]


def leave_at_once() -> None:
    """Have Ctrl-C end the process with one line from now on."""
    _replace(signal.default_int_handler, _leave)


@contextmanager
def working() -> Iterator[None]:
    """Have Ctrl-C raise `KeyboardInterrupt` in this context, if it ends the process outside."""
    _replace(_leave, _raise)
    try:
        yield
    finally:
        _replace(_raise, _leave)
