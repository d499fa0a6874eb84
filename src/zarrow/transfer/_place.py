"""How does a finished file or folder take its name?

In one step, when it is whole and durable: it grows beside the target as ``.<name>.exporting``.

Place: below the formats; knows none of them. A crash leaves that scratch name, which the next export to
the same target removes, and at the target what was there before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zarrow._storage import files

__all__ = ["in_place"]


@contextmanager
def in_place(target: Path) -> Iterator[Path]:
    """Hand out a scratch path, and move what was written there to `target`, replacing what is there."""
    scratch = target.with_name(f".{target.name}.exporting")
    _remove(scratch)
    try:
        yield scratch
        _sync(scratch)
        if os.path.lexists(target) and (target.is_dir() or scratch.is_dir()):
            files.exchange(scratch, target)
        else:
            files.rename(scratch, target)
        files.sync_dir(target.parent)
    finally:
        _remove(scratch)  # after an exchange it is what was at the target


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        files.remove_tree(path)
    else:
        files.remove(path)


def _sync(path: Path) -> None:
    """Make a file, or a folder and all in it, durable."""
    if not path.is_dir():
        fd = os.open(path, os.O_RDONLY)
        try:
            files.sync(fd)
        finally:
            os.close(fd)
        return
    for entry in sorted(path.iterdir()):
        _sync(entry)
    files.sync_dir(path)
