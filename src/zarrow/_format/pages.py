"""Pages — the page headers of a Parquet file, checked before anything is decompressed.

A page's header declares the page's stored and its decompressed size, its number of values, and the crc32 of
its stored bytes (https://parquet.apache.org/docs/file-format/data-pages/). Decoders trust it: a few KiB may
decompress to GiB. So `check_pages` walks over the headers, which takes no decompression, and refuses pages
that zarrow never writes. It does so for `verify` and `repair`, and when a writer reopens a segment; plain
reads trust the store (``FORMAT.md``, section 7).

The headers are Thrift structs in the compact protocol
(https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md); the fields that are not
needed are skipped, within bounds.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from zarrow.errors import CorruptionError

__all__ = ["Page", "check_pages", "read_footer", "read_pages"]

Read = Callable[[int, int], bytes]

MAX_HEADER_BYTES = 1 << 20
SMALL_BYTES = 64 << 20
"""A size that every machine can spare: pages up to it may have any ratio."""
MAX_RATIO = 1000
"""zstd compresses even large constant columns less than that."""
VALUE_BYTES = 8
_MAX_DEPTH = 8
_END_BYTES = 8


def read_footer(read: Read, size_bytes: int) -> bytes:
    """Return a Parquet file's footer: the metadata, their length, and the magic number.

    Parameters
    ----------
    read : callable of (int, int) to bytes
        Takes an offset and a size, and returns those bytes of the file.
    size_bytes : int
        The size of the file.

    Returns
    -------
    bytes
        The whole file if its last bytes make no sense, so that the checksum of the footer cannot match.
    """
    end = read(max(size_bytes - _END_BYTES, 0), min(size_bytes, _END_BYTES))
    length = _END_BYTES + int.from_bytes(end[:4], "little")
    length = length if length <= size_bytes and len(end) == _END_BYTES else size_bytes
    return read(size_bytes - length, length)


@dataclass(frozen=True, slots=True)
class Page:
    """The facts in a page's header; the stored bytes begin at `data_offset`."""

    data_offset: int
    stored_bytes: int
    inflated_bytes: int
    values: int
    crc32: int | None


class _Thrift:
    """Reads structs of Thrift's compact protocol, and never beyond the bytes that are given."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def _byte(self) -> int:
        self.position += 1
        return self._data[self.position - 1]  # IndexError: the header ends too early

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def _skip(self, size_bytes: int) -> None:
        self.position += size_bytes
        if self.position > len(self._data):
            raise IndexError("a value ends after the header")

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Return a struct's integers and structs by field number; everything else is skipped."""
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) & 0x0F:
            number = number + (head >> 4) if head >> 4 else self._integer()
            value = self._value(head & 0x0F, depth + 1, in_struct=True)
            if value is not None:
                fields[number] = value
        return fields

    def _value(self, kind: int, depth: int, *, in_struct: bool = False) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("structs are nested too deeply")
        if kind in (1, 2):  # a boolean: in a struct its type is its value
            return None if in_struct else self._skip(1)
        if kind == 3:
            return self._skip(1)
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 7:
            return self._skip(8)
        if kind == 8:
            return self._skip(self._varint())
        if kind in (9, 10):
            head = self._byte()
            size = head >> 4 if head >> 4 < 15 else self._varint()
            return self._items(size, (head & 0x0F,), depth)
        if kind == 11:
            size = self._varint()
            types = self._byte() if size else 0
            return self._items(size, (types >> 4, types & 0x0F), depth)
        if kind == 12:
            return self.struct(depth)
        raise ValueError(f"a value of the unknown type {kind}")

    def _items(self, size: int, kinds: tuple[int, ...], depth: int) -> None:
        if size > len(self._data):  # every item takes a byte
            raise IndexError("a list ends after the header")
        for _ in range(size):
            for kind in kinds:
                self._value(kind, depth + 1)


def _page(read: Read, offset: int, stop: int) -> Page:
    header = read(offset, min(stop - offset, MAX_HEADER_BYTES))
    thrift = _Thrift(header)
    fields = thrift.struct()
    inflated, stored, crc = fields[2], fields[3], fields.get(4)
    values = next((fields[kind][1] for kind in (5, 7, 8) if kind in fields), 0)
    data_offset = offset + thrift.position
    if inflated < 0 or values < 0 or not 0 <= stored <= stop - data_offset:
        raise ValueError(f"a page of {stored} stored and {inflated} inflated bytes with {values} values")
    return Page(data_offset, stored, inflated, values, None if crc is None else crc & 0xFFFFFFFF)


def read_pages(metadata: Any, read: Read, path: str) -> Iterator[Page]:
    """Yield the facts in the page headers of a Parquet file.

    Parameters
    ----------
    metadata : pyarrow.parquet.FileMetaData
        The file's metadata.
    read : callable of (int, int) to bytes
        Takes an offset and a size, and returns those bytes of the file.
    path : str
        For messages.

    Yields
    ------
    Page
        Column by column.

    Raises
    ------
    CorruptionError
        If the pages do not fill the columns as the footer says.
    """
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            column = metadata.row_group(group).column(index)
            offset = column.data_page_offset
            if column.has_dictionary_page and (not offset or column.dictionary_page_offset < offset):
                offset = column.dictionary_page_offset  # no rows, no data page: 0
            stop = offset + column.total_compressed_size
            try:
                while offset < stop:
                    page = _page(read, offset, stop)
                    yield page
                    offset = page.data_offset + page.stored_bytes
            except (LookupError, TypeError, ValueError) as error:
                raise CorruptionError(
                    f"column {column.path_in_schema!r} has no valid page at byte {offset}: {error}", path=path
                ) from error


def check_pages(metadata: Any, read: Read, path: str, *, checksums: bool = False) -> int:
    """Raise unless every page can be decompressed without harm.

    Parameters
    ----------
    metadata : pyarrow.parquet.FileMetaData
        The file's metadata.
    read : callable of (int, int) to bytes
        Takes an offset and a size, and returns those bytes of the file.
    path : str
        For messages.
    checksums : bool
        Whether to verify the pages' own checksums too.

    Returns
    -------
    int
        The number of pages without a checksum of their own.

    Raises
    ------
    CorruptionError
        If a page is harmful or damaged; the error names it.
    """
    unchecked = 0
    for page in read_pages(metadata, read, path):
        largest = max(page.inflated_bytes, page.values * VALUE_BYTES)
        if largest > SMALL_BYTES and largest > MAX_RATIO * page.stored_bytes:
            raise CorruptionError(
                f"the page at byte {page.data_offset} declares {page.values} values and "
                f"{page.inflated_bytes} bytes, but only {page.stored_bytes} bytes are stored",
                path=path,
            )
        if page.crc32 is None:
            unchecked += 1
        elif checksums and zlib.crc32(read(page.data_offset, page.stored_bytes)) != page.crc32:
            raise CorruptionError(
                f"the checksum of the page at byte {page.data_offset} does not match", path=path
            )
    return unchecked
