"""Streams — a file that is read by offset, as a file of Python's."""

from __future__ import annotations

import io
import os
from typing import Any

from zarrow._storage.reading import File

__all__ = ["FileStream"]


class FileStream(io.RawIOBase):
    """A file, such as an object in a bucket, that can be read from the position where it is."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def size(self) -> int:
        return self._file.size_bytes

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size_bytes}[whence]
        self._position = max(start + offset, 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer).cast("B") as view:
            data = self.read(len(view))
            view[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        left = max(self._file.size_bytes - self._position, 0)
        size = left if size < 0 else min(size, left)
        data = self._file.read(self._position, size)
        self._position += len(data)
        return data
