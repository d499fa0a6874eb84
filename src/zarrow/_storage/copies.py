"""Copies — folders of a bucket, copied into temporary ones that end with the process."""

from __future__ import annotations

import atexit
import contextlib
import os
import tempfile
from pathlib import Path

from zarrow._storage.reading import RemotePath

__all__ = ["local_copy"]

_copies: dict[tuple[str, str], Path] = {}


def local_copy(place: RemotePath, folder: str) -> Path:
    """Return a directory with the objects of a folder that never change, copied once per process.

    Parameters
    ----------
    place : RemotePath
        The store.
    folder : str
        The folder, of objects only.

    Raises
    ------
    FileNotFoundError
        If one of the objects is removed meanwhile.
    """
    known = str(place), folder
    if known not in _copies:
        above = Path(tempfile.mkdtemp(prefix="zarrow-"))
        _remove_at_exit(above, os.getpid())
        copy = above / folder.rpartition("/")[2]
        copy.mkdir()
        for name, kind in place.list(folder).items():
            if kind == "file":
                with open(copy / name, "wb") as file:
                    file.writelines(place.open(f"{folder}/{name}").blocks())
        _copies[known] = copy
    return _copies[known]


def _remove_at_exit(path: Path, process: int) -> None:
    def remove() -> None:
        if os.getpid() == process:
            with contextlib.suppress(OSError):
                for folder in path.iterdir():
                    for file in folder.iterdir():
                        file.unlink()
                    folder.rmdir()
                path.rmdir()

    atexit.register(remove)
