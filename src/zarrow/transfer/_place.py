"""Putting finished files into place — a target gets its name in one step, when it is whole and durable.

Each file or folder grows next to its target as ``.<name>.exporting``. Of several targets none is touched
before all of them are durable, so that a failed export leaves no new file next to an old one. A crash leaves
these scratch names, which the next export to the same targets removes, and at every target either what was
there before or the whole new file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zarrow._storage import files

__all__ = ["in_place"]


@contextmanager
def in_place(*targets: Path) -> Iterator[list[Path]]:
    """Yield a scratch path per target, and move what was written there to the targets, replacing them."""
    scratch = [target.with_name(f".{target.name}.exporting") for target in targets]
    for path in scratch:
        _remove(path)
    try:
        yield scratch
        for path in scratch:
            _sync(path)
        for path, target in zip(scratch, targets, strict=True):
            if os.path.lexists(target) and (target.is_dir() or path.is_dir()):
                files.exchange(path, target)
            else:
                files.rename(path, target)
            files.sync_dir(target.parent)
    finally:
        for path in scratch:
            _remove(path)  # after an exchange this is what was at the target


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        files.remove_tree(path)
    else:
        files.remove(path)


def _sync(path: Path) -> None:
    """Make a file, or a folder and everything in it, durable."""
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
