"""Audit of the key index — whether it is the index of the store's rows.

The index is derived, so anything wrong with it is a defect, and no row is lost by it; but a reader that gets
the wrong row for a key would never notice. It is checked from the outside in: the footer and the tables; the
checksums of all entries and of the heap; and, at the level *full*, that the entries are in order, that the
fences fit them, and that they hold the keys of the table, each with its row. The last is checked by a single
number, the sum over all rows of a hash of row and key, so that neither side has to be in memory.

An index of other rows than the store has (because rows were appended) is a note: readers ignore it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from zarrow._format import key_words
from zarrow._format.array_spec import rows_of
from zarrow._format.checksum import crc32c
from zarrow._format.key_tables import (
    BLOCK_ENTRIES,
    ENTRY_HASH,
    ENTRY_ROW,
    ENTRY_WORDS,
    HEAP_BLOCK_BYTES,
    Tables,
    damaged,
    keys_of,
    read_tables,
)
from zarrow._format.key_words import Bytes, Words
from zarrow._format.layout import KEY_INDEX, part_path
from zarrow._format.records import Manifest, SegmentRecord
from zarrow._format.spec import StoreSpec
from zarrow._maintenance.audit_segment import BATCH_ROWS, open_part
from zarrow._maintenance.findings import AuditLog
from zarrow._storage.reading import Beneath, File
from zarrow.errors import CorruptionError

__all__ = ["audit_index", "index_size"]

_PIECE_BYTES = 4 << 20


def index_size(files: Beneath) -> int:
    """Return the size of the index; 0 if there is none, or it cannot be read."""
    try:
        with files.open(KEY_INDEX) as file:
            return file.size_bytes
    except (FileNotFoundError, CorruptionError):
        return 0


def audit_index(
    files: Beneath,
    spec: StoreSpec,
    manifest: Manifest | None,
    records: Iterable[SegmentRecord],
    found: AuditLog,
) -> None:
    """Check the index, if there is one.

    Parameters
    ----------
    files : Beneath
        The store's files.
    spec : StoreSpec
        The store's declaration.
    manifest : Manifest or None
        The manifest of a complete store.
    records : iterable of SegmentRecord
        The records of all segments, in order.
    found : AuditLog
        Collects the findings.
    """
    try:
        with files.open(KEY_INDEX) as file:
            found.checked_files += 1
            _IndexAudit(files, spec, file, found).run(manifest, records)
    except FileNotFoundError:
        pass
    except CorruptionError as error:
        found.defect(KEY_INDEX, error)


class _IndexAudit:
    def __init__(self, files: Beneath, spec: StoreSpec, file: File, found: AuditLog) -> None:
        self._files = files
        self._spec = spec
        self._file = file
        self._found = found
        self._kinds = [spec.schema.field(key).type for key in spec.keys]

    def run(self, manifest: Manifest | None, records: Iterable[SegmentRecord]) -> None:
        if not self._spec.keys:
            raise CorruptionError("a key index, but the store has no keys: remove it")
        tables = read_tables(self._read, self._file.size_bytes, self._kinds, KEY_INDEX)
        if manifest is None or (tables.identity, tables.keys) != (manifest.identity, keys_of(self._spec)):
            self._found.note(KEY_INDEX, "built of other rows than the store has now, so readers ignore it")
            return
        if self._found.checksums:
            total = self._entries(tables)
            self._heap(tables)
            # A damaged table cannot be compared, and the index is not to blame.
            if self._found.full and not self._found.damaged and total != self._table(records):
                raise damaged(KEY_INDEX, "despite correct checksums, its keys are not those of the table")

    def _read(self, offset: int, size_bytes: int) -> Bytes:
        self._found.read(size_bytes)
        self._found.advance(size_bytes)
        return np.frombuffer(self._file.read(offset, size_bytes), np.uint8)

    def _entries(self, tables: Tables) -> int:
        """Check the entries, and return the sum of the hashes of keys and rows."""
        block_bytes = BLOCK_ENTRIES * 8 * tables.width
        step = rows_of(_PIECE_BYTES, block_bytes)
        total = 0
        last = np.zeros((1, 2), np.uint64)  # of the piece before
        for block in range(0, len(tables.entry_sums), step):
            start = block * block_bytes
            data = self._read(start, min(step * block_bytes, tables.entries_bytes - start))
            self._checksums(data, block_bytes, tables.entry_sums[block : block + step].tolist(), "entries")
            if not self._found.full:
                continue
            entries = data.view("<u8").reshape(-1, tables.width)
            fences = tables.fences[block : block + step]
            places = np.concatenate([last, entries[:, :ENTRY_WORDS]])
            last = places[-1:]
            hashes, rows = places[:, ENTRY_HASH], places[:, ENTRY_ROW]
            later = (hashes[1:] > hashes[:-1]) | ((hashes[1:] == hashes[:-1]) & (rows[1:] > rows[:-1]))
            if not later[0 if block else 1 :].all() or (entries[::BLOCK_ENTRIES, ENTRY_HASH] != fences).any():
                raise damaged(KEY_INDEX, "despite correct checksums, its entries are not in order")
            self._point_into_heap(entries, tables.heap_bytes)
            total += _total(
                self._kinds, entries[:, ENTRY_ROW], entries[:, ENTRY_HASH], entries[:, ENTRY_WORDS:]
            )
        return total % (1 << 64)

    def _heap(self, tables: Tables) -> None:
        step = _PIECE_BYTES // HEAP_BLOCK_BYTES
        for block in range(0, len(tables.heap_sums), step):
            start = block * HEAP_BLOCK_BYTES
            size_bytes = min(_PIECE_BYTES, tables.heap_bytes - start)
            data = self._read(tables.entries_bytes + start, size_bytes)
            self._checksums(data, HEAP_BLOCK_BYTES, tables.heap_sums[block : block + step].tolist(), "keys")

    def _checksums(self, data: Bytes, block_bytes: int, expected: list[int], what: str) -> None:
        for number, checksum in enumerate(expected):
            if crc32c(data[number * block_bytes : (number + 1) * block_bytes]) != checksum:
                raise damaged(KEY_INDEX, f"some of its {what} do not match their checksum")

    def _point_into_heap(self, entries: Words, heap_bytes: int) -> None:
        column, size = ENTRY_WORDS, np.uint64(heap_bytes)
        for kind in self._kinds:
            if key_words.is_in_heap(kind):
                starts, lengths = entries[:, column], entries[:, column + 1]
                if np.any(starts > size) or np.any(lengths > size - np.minimum(starts, size)):
                    raise damaged(KEY_INDEX, "despite a correct checksum, an entry points out of it")
            column += 1 + key_words.is_in_heap(kind)

    def _table(self, records: Iterable[SegmentRecord]) -> int:
        """Return the same sum as `_entries`, of the table."""
        total = 0
        for record in records:
            row = record.segment * self._spec.segment_rows
            for columns in self._key_columns(record):
                keys = key_words.encode(columns)
                rows = np.arange(row, row + len(keys.hashes), dtype=np.uint64)
                total += _total(self._kinds, rows, keys.hashes, keys.words)
                row += len(rows)
        return total % (1 << 64)

    def _key_columns(self, record: SegmentRecord) -> Iterator[list[pa.Array]]:
        keys = list(self._spec.keys)
        path = part_path(record.segment)
        with self._files.open(path) as file, open_part(file, self._spec, record) as part:
            for batch in part.iter_batches(BATCH_ROWS, columns=keys, use_threads=False):
                columns = [batch.column(key) for key in keys]
                if any(column.null_count for column in columns):
                    raise CorruptionError("the table has a null key, which must not be")
                yield columns


def _total(kinds: list[pa.DataType], rows: Words, hashes: Words, words: Words) -> int:
    """Return the sum of the hashes of rows and keys, regardless of where in the heap a key lies."""
    chain, column = [rows, hashes], 0
    for kind in kinds:
        column += key_words.is_in_heap(kind)
        chain.append(words[:, column])
        column += 1
    return int(np.add.reduce(key_words.hash_keys(chain)))
