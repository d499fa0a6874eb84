"""Key tables — the fences, checksums and footer that follow the entries of a key index.

They say whose rows the index has, and must be right before an entry is used. ``FORMAT.md``, section 13, has
the bytes. `_read.keys` maps an index, `_maintenance.audit_index` reads it in pieces.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format import key_words
from zarrow._format.checksum import crc32c
from zarrow._format.documents import MAX_DOCUMENT_BYTES, decode_document, encode_document
from zarrow._format.key_words import Bytes, Words
from zarrow._format.records import Identity
from zarrow._format.spec import StoreSpec
from zarrow.errors import CorruptionError

__all__ = ["KeyColumns", "Tables", "damaged", "encode_tables", "keys_of", "read_tables"]

MAGIC = b"ZARROWK1"
BLOCK_ENTRIES = 256
HEAP_BLOCK_BYTES = 4096
ENTRY_HASH, ENTRY_ROW, ENTRY_WORDS = 0, 1, 2
"""An entry's columns."""

KeyColumns = tuple[tuple[str, str], ...]
"""Name and type of every key column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """The facts about an index that precede its entries.

    Parameters
    ----------
    identity : Identity
        The rows that it was made of.
    keys : tuple of (str, str)
        Name and type of every key column.
    width : int
        Words per entry.
    entries_bytes, heap_bytes : int
        The sizes of the entries and of the heap.
    fences : uint64 array
        The hash of every 256th entry.
    entry_sums, heap_sums : uint32 array
        The crc32c of every block.
    """

    identity: Identity
    keys: KeyColumns
    width: int
    entries_bytes: int
    heap_bytes: int
    fences: Words
    entry_sums: npt.NDArray[np.uint32]
    heap_sums: npt.NDArray[np.uint32]


def keys_of(spec: StoreSpec) -> KeyColumns:
    """Return name and type of every key column."""
    return tuple((key, str(spec.schema.field(key).type)) for key in spec.keys)


def damaged(name: str, what: str) -> CorruptionError:
    """Return the error for a damaged index, with its remedy."""
    return CorruptionError(
        f"{what}: it is derived from the table, so remove it, or make it again with build_index", path=name
    )


def encode_tables(
    identity: Identity,
    keys: KeyColumns,
    entries_bytes: int,
    heap_bytes: int,
    fences: array[int],
    entry_sums: array[int],
    heap_sums: array[int],
) -> bytes:
    """Return the bytes that follow the heap."""
    tables = bytes(-(entries_bytes + heap_bytes) % 8) + b"".join(
        np.array(numbers, kind).tobytes()
        for numbers, kind in ((fences, "<u8"), (entry_sums, "<u4"), (heap_sums, "<u4"))
    )
    footer = encode_document(
        {
            **asdict(identity),
            "keys": [list(key) for key in keys],
            "entries_bytes": entries_bytes,
            "heap_bytes": heap_bytes,
            "tables_crc32c": crc32c(tables),
        }
    )
    return tables + footer + len(footer).to_bytes(8, "little") + MAGIC


def read_tables(
    read: Callable[[int, int], Bytes], size_bytes: int, kinds: Sequence[pa.DataType], name: str
) -> Tables:
    """Read footer and tables of an index, and check them.

    Parameters
    ----------
    read : callable of (int, int) to uint8 array
        Takes an offset and a size, and returns those bytes of the file.
    size_bytes : int
        The file's size.
    kinds : sequence of DataType
        The types of the store's key columns.
    name : str
        The name of the index in messages.

    Raises
    ------
    CorruptionError
        If they are damaged.
    """
    if size_bytes < 16:
        raise damaged(name, "it is not an index, or was cut short")
    stop = size_bytes - 16
    end = read(stop, 16).tobytes()
    if end[8:] != MAGIC:
        raise damaged(name, "it is not an index, or was cut short")
    start = stop - int.from_bytes(end[:8], "little")
    if start < 0 or stop - start > MAX_DOCUMENT_BYTES:
        raise damaged(name, "its footer is damaged")
    body = decode_document(read(start, stop - start).tobytes(), name)
    try:
        identity = Identity(
            uuid=str(body["uuid"]),
            rows=int(body["rows"]),
            records_crc32c=int(body["records_crc32c"]),
        )
        keys = tuple((str(column), str(kind)) for column, kind in body["keys"])
        entries_bytes, heap_bytes = int(body["entries_bytes"]), int(body["heap_bytes"])
        tables_crc32c = int(body["tables_crc32c"])
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(name, f"its footer breaks the format ({error})") from error
    rows = identity.rows
    blocks, heap_blocks = -(-rows // BLOCK_ENTRIES), -(-heap_bytes // HEAP_BLOCK_BYTES)
    tables = entries_bytes + heap_bytes
    padding = -tables % 8
    if (
        min(rows, entries_bytes, heap_bytes) < 0
        or tables + padding + 12 * blocks + 4 * heap_blocks != start
        or (rows and (entries_bytes % (8 * rows) or entries_bytes < 24 * rows))
        or (not rows and entries_bytes)
    ):
        raise damaged(name, "its footer does not fit its size")
    data = read(tables, start - tables)
    if crc32c(data) != tables_crc32c:
        raise damaged(name, "its fences or checksums are damaged")
    expected = ENTRY_WORDS + key_words.word_count(kinds)
    width = entries_bytes // 8 // rows if rows else expected
    if width != expected and [kind for _, kind in keys] == [str(kind) for kind in kinds]:
        raise damaged(name, "its entries do not have the size of the store's keys")
    ends = [padding, padding + 8 * blocks, padding + 12 * blocks]
    return Tables(
        identity=identity,
        keys=keys,
        width=width,
        entries_bytes=entries_bytes,
        heap_bytes=heap_bytes,
        fences=data[ends[0] : ends[1]].view("<u8"),
        entry_sums=data[ends[1] : ends[2]].view("<u4"),
        heap_sums=data[ends[2] :].view("<u4"),
    )
