"""Pages — the page headers of a Parquet file, checked before anything is decompressed.

A page's header declares the page's stored and its decompressed size, its number of values, and the crc32 of
its stored bytes (https://parquet.apache.org/docs/file-format/data-pages/). Decoders trust it: a few KiB may
decompress to GiB. So `check_pages` walks over the headers, which takes no decompression, and refuses columns
that expand more than zarrow lets them when it writes (``FORMAT.md``, section 7). A text that a page repeats
by its number in a dictionary takes no bytes either: headers do not tell how long it is, so columns for which
that matters are returned, to be measured (`parts.check_part`).

The headers are Thrift structs in the compact protocol
(https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md); the fields that are not
needed are skipped, within bounds.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from zarrow.errors import CorruptionError

__all__ = ["Page", "Repeating", "check_pages", "read_footer"]

Read = Callable[[int, int], bytes]

_HEADER_BYTES, MAX_HEADER_BYTES = 128, 1 << 20
SMALL_BYTES = 16 << 20
"""A size that every machine can spare: columns up to it may have any ratio."""
MAX_RATIO = 1000
"""Only constants are compressed more than that by zstd, and nothing by LZ4."""
MAX_VALUES = 8 << 20
"""Of a page: nulls and repeated values take no bytes."""
MAX_LIST_VALUES = 32 << 20
"""Of a column within lists, where the number of rows does not bound them."""
MAX_TEXT_BYTES = 64 << 20
"""Texts of a column that are no longer together may be repeated as often as they like."""
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
    is_dictionary: bool
    encoding: int


_BY_NUMBER = (2, 8)
"""The encodings PLAIN_DICTIONARY and RLE_DICTIONARY."""
_BY_PREFIX = 7
"""DELTA_BYTE_ARRAY: a value may repeat the one before it."""


@dataclass(frozen=True, slots=True)
class Repeating:
    """A column of texts or bytes that may take much more memory than its pages.

    Parameters
    ----------
    path : str
        The column, as Parquet names it.
    index : int
        Its place.
    by_number : int
        Values that are numbers of texts in the column's dictionary.
    longest_bytes : int
        What such a text takes at most.
    others_bytes : int
        What all other values take at most.
    limit_bytes : int
        What all values together may take.
    """

    path: str
    index: int
    by_number: int
    longest_bytes: int
    others_bytes: int
    limit_bytes: int

    def fits(self, longest_bytes: int) -> bool:
        """Tell whether the values cannot be too large if the longest text is this long."""
        return self.by_number * longest_bytes + self.others_bytes <= self.limit_bytes

    def require(self, text_bytes: int, path: str) -> None:
        """Raise `CorruptionError` if all texts together take too much."""
        if text_bytes + self.others_bytes > self.limit_bytes:
            raise CorruptionError(
                f"column {self.path!r} repeats few bytes until they are {text_bytes + self.others_bytes}, "
                f"at most {self.limit_bytes} are allowed",
                path=path,
            )


class _Thrift:
    """Reads structs of Thrift's compact protocol, and never beyond the bytes that are given."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def _byte(self) -> int:
        self.position += 1
        return self._data[self.position - 1]  # IndexError: the header ends too early

    def _varint(self) -> int:
        value = self._data[self.position]
        if value < 0x80:  # almost always
            self.position += 1
            return value
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
            kind = head & 0x0F
            value = self._integer() if kind == 5 else self._value(kind, depth + 1, in_struct=True)
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
    try:
        thrift = _Thrift(read(offset, min(stop - offset, _HEADER_BYTES)))
        fields = thrift.struct()
    except IndexError:
        thrift = _Thrift(read(offset, min(stop - offset, MAX_HEADER_BYTES)))
        fields = thrift.struct()
    inflated, stored, crc = fields[2], fields[3], fields.get(4)
    # Of a data page, of a dictionary, of a data page of version 2
    kind, coded_by = next((one for one in ((5, 2), (7, 2), (8, 4)) if one[0] in fields), (0, 0))
    values, encoding = (fields[kind][1], fields[kind][coded_by]) if kind else (0, 0)
    data_offset = offset + thrift.position
    if inflated < 0 or values < 0 or not 0 <= stored <= stop - data_offset:
        raise ValueError(f"a page of {stored} stored and {inflated} inflated bytes with {values} values")
    crc32 = None if crc is None else crc & 0xFFFFFFFF
    return Page(data_offset, stored, inflated, values, crc32, kind == 7, encoding)


def _pages(column: Any, read: Read, path: str) -> Iterator[Page]:
    """Yield the facts in the page headers of a column chunk, which must fill it as the footer says."""
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


def check_pages(
    metadata: Any, read: Read, path: str, *, columns: Collection[str] | None = None, checksums: bool = False
) -> list[Repeating]:
    """Raise unless every column can be decompressed without harm.

    Parameters
    ----------
    metadata : pyarrow.parquet.FileMetaData
        The file's metadata.
    read : callable of (int, int) to bytes
        Takes an offset and a size, and returns those bytes of the file.
    path : str
        For messages.
    columns : collection of str, optional
        The columns to check; all by default.
    checksums : bool
        Whether to verify the pages' own checksums too.

    Returns
    -------
    list of Repeating
        The columns that can be decompressed, but perhaps not decoded.

    Raises
    ------
    CorruptionError
        If a column is harmful or damaged; the error names it, and the page.
    """
    repeating = []
    wanted = None if columns is None else tuple(f"{name}." for name in columns)
    for group, index in itertools.product(range(metadata.num_row_groups), range(metadata.num_columns)):
        column = metadata.row_group(group).column(index)
        if wanted is not None and not f"{column.path_in_schema}.".startswith(wanted):
            continue
        in_lists = metadata.schema.column(index).max_repetition_level > 0
        inflated = stored = values = by_number = longest = others = 0
        for page in _pages(column, read, path):
            inflated, stored = inflated + page.inflated_bytes, stored + page.stored_bytes
            values = values + page.values if in_lists else page.values
            small, paid_for = (MAX_LIST_VALUES, stored) if in_lists else (MAX_VALUES, page.stored_bytes)
            if inflated > max(SMALL_BYTES, MAX_RATIO * stored) or values > max(small, MAX_RATIO * paid_for):
                raise CorruptionError(
                    f"column {column.path_in_schema!r} declares {inflated} bytes, and {values} values "
                    f"up to the page at byte {page.data_offset}, but only {stored} bytes are stored",
                    path=path,
                )
            if page.is_dictionary:
                longest = page.inflated_bytes
            elif page.encoding in _BY_NUMBER:
                by_number += page.values
            else:
                others += page.inflated_bytes * (page.values if page.encoding == _BY_PREFIX else 1)
            if (
                checksums
                and page.crc32 is not None
                and zlib.crc32(read(page.data_offset, page.stored_bytes)) != page.crc32
            ):
                raise CorruptionError(
                    f"the checksum of the page at byte {page.data_offset} does not match", path=path
                )
        limit = max(MAX_TEXT_BYTES, MAX_RATIO * stored)
        found = Repeating(column.path_in_schema, index, by_number, longest, others, limit)
        if column.physical_type == "BYTE_ARRAY" and not found.fits(longest):
            repeating.append(found)
    return repeating
