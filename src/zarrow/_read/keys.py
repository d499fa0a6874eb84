"""Key index file — key to row, where neither the keys nor the index fit into memory.

The file holds an *entry* per row (hash, row, the key's words: `_format.key_words`), sorted by hash and row,
and the bytes that strings point to, so that keys that share a hash are distinguished without reading the
table. ``FORMAT.md`` section 13 has its bytes.

`build` makes it in bounded memory:

1. batches become entries; every 16 MiB of entries are sorted, and spilled as a *run*;
2. the range of hashes is halved repeatedly until the entries of all runs within it fit into 16 MiB; those
   are sorted together and written. Entries of one hash, however many, are already in order;
3. the *fences* (the hash of every 256th entry), the checksums and a footer follow.

A lookup finds, for all keys at once, the block of 256 entries by the fences, then the entry within the
block. The file is mapped: only touched pages are read, and only the pages of the fences stay in use.
(Measured against it: an Arrow IPC file of the same columns takes 1.4 to 2 times as long per lookup, and is
read whole for its checksum when it is opened; comparing keys with the table's parts takes a second per
1,000 keys of 10 million.)

Invariant: damage is never taken for an answer. Footer, fences and checksums are checked at opening, each
block of entries or bytes when it is first touched. Whether the file belongs to the rows of a view is for
`key_index` to ask, of `IndexFile.of`. Files are written through a function that the caller gives.
"""

from __future__ import annotations

import bisect
import itertools
import mmap
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
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
    KeyColumns,
    damaged,
    encode_tables,
    read_tables,
)
from zarrow._format.key_words import Bytes, Keys, Words
from zarrow._format.records import Identity
from zarrow.errors import CorruptionError

__all__ = ["IndexFile", "IndexedRows", "build"]

RUN_BYTES = 16 << 20
_WRITE_BYTES = 1 << 20
_QUERY_KEYS = 65_536

Write = Callable[[int, Any, int], None]
IndexedRows = tuple[Identity, KeyColumns]


def map_file(fd: int, name: str) -> Bytes:
    """Return a file's bytes, mapped for reading; the descriptor may be closed."""
    try:
        return np.frombuffer(mmap.mmap(fd, 0, prot=mmap.PROT_READ), np.uint8)
    except ValueError:  # an empty file cannot be mapped
        raise damaged(name, "it is empty") from None


# Building


class _Blocks:
    """Bytes written one after the other, with a checksum per block."""

    def __init__(self, write: Write, fd: int, offset: int, block_bytes: int) -> None:
        self._write = write
        self._fd = fd
        self._offset = offset
        self._block_bytes = block_bytes
        self._pending = bytearray()
        self.checksums = array("I")
        self.size_bytes = 0

    def write(self, data: Any) -> None:
        self._pending += memoryview(data).cast("B")
        if len(self._pending) >= _WRITE_BYTES + self._block_bytes:
            self._drain(len(self._pending) // self._block_bytes * self._block_bytes)

    def finish(self) -> None:
        self._drain(len(self._pending))

    def _drain(self, size_bytes: int) -> None:
        data = memoryview(bytes(self._pending[:size_bytes]))
        self._write(self._fd, data, self._offset + self.size_bytes)
        for start in range(0, size_bytes, self._block_bytes):
            self.checksums.append(crc32c(bytes(data[start : start + self._block_bytes])))
        self.size_bytes += size_bytes
        del self._pending[:size_bytes]


def build(write: Write, fd: int, spill_fd: int, batches: Iterable[pa.RecordBatch], of: IndexedRows) -> None:
    """Write the index of rows into an empty file: not durable on return.

    Parameters
    ----------
    write : callable of (int, buffer, int)
        Writes all of a buffer into a file (a descriptor) at an offset. Only the caller may change a disk.
    fd : int
        The file.
    spill_fd : int
        Another empty file, for the entries that do not fit into memory.
    batches : iterable of pyarrow.RecordBatch
        All rows in order: the key columns, then ``row``.
    of : (Identity, key columns)
        What tells the rows from any others, and name and type of every key column.

    Raises
    ------
    CorruptionError
        If the batches are not those rows, or a key is null.
    """
    identity, columns = of
    entry_bytes = 0
    heap: _Blocks | None = None
    runs: list[int] = [0]  # where each begins, in entries
    pending: list[Words] = []
    rows = waiting = 0
    for batch in batches:
        if any(column.null_count for column in batch.columns):
            raise CorruptionError(
                f"rows {rows} to {rows + batch.num_rows}: a key is null, which keys never are"
            )
        keys = key_words.encode(batch.columns[:-1])
        if heap is None:
            entry_bytes = 8 * (ENTRY_WORDS + keys.words.shape[1])
            heap = _Blocks(write, fd, identity.rows * entry_bytes, HEAP_BLOCK_BYTES)
        _shift(keys.words, batch.schema.types[:-1], heap.size_bytes + len(heap._pending))
        heap.write(keys.heap)
        entries = np.empty((batch.num_rows, entry_bytes // 8), "<u8")
        entries[:, ENTRY_HASH] = keys.hashes
        entries[:, ENTRY_ROW] = np.from_dlpack(batch.column(batch.num_columns - 1))  # to_numpy imports pandas
        entries[:, ENTRY_WORDS:] = keys.words
        rows += batch.num_rows
        for start in range(0, len(entries), step := rows_of(RUN_BYTES // 4, entry_bytes)):
            pending.append(entries[start : start + step].copy())
            waiting += len(pending[-1])
            if waiting * entry_bytes >= RUN_BYTES:
                write(spill_fd, _sorted(pending), runs[-1] * entry_bytes)
                runs.append(runs[-1] + waiting)
                pending, waiting = [], 0
    if rows != identity.rows:
        raise CorruptionError(f"{rows} rows are in the table, {identity.rows} were committed")
    if heap is None:
        heap = _Blocks(write, fd, 0, HEAP_BLOCK_BYTES)
        entry_bytes = 8 * ENTRY_WORDS  # of none
    heap.finish()
    output = _Blocks(write, fd, 0, BLOCK_ENTRIES * entry_bytes)
    fences = array("Q")
    last = [_sorted(pending)] if pending else []
    pending = []
    for entries in _merged(spill_fd, runs, last, entry_bytes):
        done = (output.size_bytes + len(output._pending)) // entry_bytes
        fences.extend(entries[-done % BLOCK_ENTRIES :: BLOCK_ENTRIES, ENTRY_HASH].tolist())
        output.write(entries)
    output.finish()
    tables = encode_tables(
        identity, columns, output.size_bytes, heap.size_bytes, fences, output.checksums, heap.checksums
    )
    write(fd, tables, output.size_bytes + heap.size_bytes)


def _shift(words: Words, kinds: Sequence[pa.DataType], size_bytes: int) -> None:
    """Shift words that point into a batch's heap behind the bytes that are in the heap already."""
    column = 0
    for kind in kinds:
        in_heap = key_words.is_in_heap(kind)
        if in_heap:
            words[:, column] += np.uint64(size_bytes)
        column += 1 + in_heap


def _sorted(pieces: list[Words]) -> Words:
    """Return entries, which are in row order where their hashes are equal, sorted by hash and row."""
    entries = np.concatenate(pieces)
    hashes = entries[:, ENTRY_HASH]
    # numpy sorts numbers several times as fast as it finds their order: so the last bits are the place.
    bits = np.uint64(len(entries).bit_length())
    placed = hashes >> bits << bits | np.arange(len(entries), dtype=np.uint64)
    placed.sort()
    order = (placed & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)  # numpy 1 takes no uint64
    found = entries.take(order, axis=0)
    hashes_found = found[:, ENTRY_HASH]
    if (hashes_found[1:] < hashes_found[:-1]).any():  # by bits that were left out
        found = entries.take(np.argsort(hashes, kind="stable"), axis=0)
    return found


def _merged(spill_fd: int, starts: list[int], last: list[Words], entry_bytes: int) -> Iterator[Words]:
    """Yield the entries of all runs in order, in pieces of at most `RUN_BYTES`."""
    if len(starts) == 1:
        yield from last
        return
    spilled = map_file(spill_fd, "the sorted runs").view("<u8").reshape(-1, entry_bytes // 8)
    runs = [spilled[start:stop] for start, stop in itertools.pairwise(starts)] + last
    limit = rows_of(RUN_BYTES, entry_bytes)
    ranges = [(0, 1 << 64, [(0, len(run)) for run in runs])]
    while ranges:
        low, high, places = ranges.pop()
        total = sum(stop - start for start, stop in places)
        if not total:
            continue
        if total <= limit:
            yield _sorted([run[start:stop] for run, (start, stop) in zip(runs, places, strict=True)])
        elif high - low == 1:
            for run, (start, stop) in zip(runs, places, strict=True):
                for first in range(start, stop, limit):
                    yield np.ascontiguousarray(run[first : min(first + limit, stop)])
        else:
            middle = (low + high) // 2
            cuts = [_first_at(run, middle, *place) for run, place in zip(runs, places, strict=True)]
            upper = [(cut, stop) for cut, (_, stop) in zip(cuts, places, strict=True)]
            lower = [(start, cut) for cut, (start, _) in zip(cuts, places, strict=True)]
            ranges += [(middle, high, upper), (low, middle, lower)]  # the lower half comes off first


def _first_at(run: Words, value: int, start: int, stop: int) -> int:
    """Return where the hashes of a run reach a value."""
    return bisect.bisect_left(range(len(run)), value, start, stop, key=lambda at: int(run[at, ENTRY_HASH]))


# Reading


class IndexFile:
    """An index file, mapped.

    Parameters
    ----------
    data : uint8 array, shape (size,)
        Its bytes, mapped.
    kinds : sequence of DataType
        The types of the store's key columns.
    name : str
        Its name in messages.

    Raises
    ------
    CorruptionError
        If footer or tables are damaged.
    """

    def __init__(self, data: Bytes, kinds: Sequence[pa.DataType], name: str) -> None:
        self._name = name
        self._kinds = tuple(kinds)
        tables = read_tables(lambda start, size: data[start : start + size], len(data), kinds, name)
        self.of: IndexedRows = tables.identity, tables.keys
        self._entries: Words = (
            data[: tables.entries_bytes].view("<u8").reshape(tables.identity.rows, tables.width)
        )
        self._hashes = self._entries[:, ENTRY_HASH]
        self._heap: Bytes = data[tables.entries_bytes : tables.entries_bytes + tables.heap_bytes]
        self._fences = tables.fences
        self._entry_sums = tables.entry_sums
        self._heap_sums = tables.heap_sums
        self._checked = np.zeros(len(tables.entry_sums), np.bool_)
        self._heap_checked = np.zeros(len(tables.heap_sums), np.bool_)

    def find(self, keys: Keys) -> npt.NDArray[np.int64]:
        """Return per key the first row that has it, −1 if none has.

        Raises
        ------
        CorruptionError
            If the blocks that were needed are damaged.
        """
        rows = np.full(len(keys.words), -1, np.int64)
        if len(self._entries):
            for start in range(0, len(rows), _QUERY_KEYS):
                here = slice(start, start + _QUERY_KEYS)
                order = np.argsort(keys.hashes[here]) + start  # so that pages are touched once
                rows[order] = self._find(keys.hashes[order], keys.words[order], keys.heap)
        return rows

    def _find(self, hashes: Words, words: Words, heap: Bytes) -> npt.NDArray[np.int64]:
        count = len(self._entries)
        block = np.maximum(np.searchsorted(self._fences, hashes, "left") - 1, 0)
        self._check(block)
        low = self._first_not_below(hashes, block)
        rows = np.full(len(hashes), -1, np.int64)
        left = np.flatnonzero(low < count)  # the keys that may still be found, at entry `low`
        while len(left):
            at = low[left]
            self._check(at // BLOCK_ENTRIES)
            entries = self._entries.take(at, axis=0)
            alike = entries[:, ENTRY_HASH] == hashes[left]
            if not alike.all():
                left, entries = left[alike], entries[alike]
            words_here = self._sound(entries[:, ENTRY_WORDS:])
            equal = key_words.same(self._kinds, words_here, self._heap, words[left], heap)
            rows[left[equal]] = entries[equal, ENTRY_ROW].astype(np.int64)
            left = left[~equal]
            low[left] += 1
            left = left[low[left] < count]
        return rows

    def _first_not_below(self, hashes: Words, block: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the first entry of a block whose hash is not below, or the entry after the block.

        The last block may be short. The search then starts in the block before, whose entries are below or
        damaged; the caller checks the block of the entry that is found.
        """
        count, width = self._entries.shape
        flat = self._entries.reshape(-1)
        left = min(BLOCK_ENTRIES, count)
        place = np.minimum(block * BLOCK_ENTRIES, count - left) * width  # of the hash, in words
        while left > 1:
            half = left // 2
            place += (flat.take(place + (half - 1) * width) < hashes) * (half * width)
            left -= half
        place += (flat.take(place) < hashes) * width
        found: npt.NDArray[np.int64] = place // width
        return found

    def repeated(self) -> npt.NDArray[np.int64]:
        """Return the rows whose key an earlier row has, in order.

        Raises
        ------
        CorruptionError
            If the index is damaged.
        """
        found: list[npt.NDArray[np.int64]] = []
        firsts = np.empty(0, np.int64)  # one entry per key that has the last hash so far
        step = 256 * BLOCK_ENTRIES
        for start in range(0, len(self._entries), step):
            stop = min(start + step, len(self._entries))
            self._check(np.arange(start // BLOCK_ENTRIES, -(-stop // BLOCK_ENTRIES)))
            at = np.concatenate([firsts, np.arange(start, stop)])
            last = self._hashes[stop - 1]
            kept = [np.empty(0, np.int64)]
            while len(at):
                hashes = self._hashes[at]
                new = np.append(True, hashes[1:] != hashes[:-1])
                heads = at[np.flatnonzero(new)[np.cumsum(new) - 1]]
                if hashes[-1] == last:
                    kept.append(heads[-1:])
                at, heads = at[~new], heads[~new]
                one, other = (self._sound(self._entries[places, ENTRY_WORDS:]) for places in (at, heads))
                equal = key_words.same(self._kinds, one, self._heap, other, self._heap)
                again = at[equal]
                found.append(self._entries[again, ENTRY_ROW].astype(np.int64))
                at = at[~equal]
            firsts = np.concatenate(kept)
        return np.sort(np.concatenate(found)) if found else np.empty(0, np.int64)

    # Nothing is used unchecked

    def _damage(self, what: str) -> CorruptionError:
        return damaged(self._name, what)

    def _check(self, blocks: npt.NDArray[np.int64]) -> None:
        """Check those of some blocks of entries that were not checked before."""
        new = np.unique(blocks[~self._checked[blocks]])
        if not len(new):
            return
        size_bytes = BLOCK_ENTRIES * 8 * self._entries.shape[1]
        data = self._entries.reshape(-1).view(np.uint8)
        found = [crc32c(data[start : start + size_bytes]) for start in (new * size_bytes).tolist()]
        damaged_blocks = new[self._entry_sums[new] != found]
        if len(damaged_blocks):
            raise self._damage(f"entries from {damaged_blocks[0] * BLOCK_ENTRIES} on are damaged")
        self._checked[new] = True

    def _sound(self, words: Words) -> Words:
        """Return words after checking that their bytes lie in the heap, and the checksums of those."""
        column = 0
        for kind in self._kinds:
            if not key_words.is_in_heap(kind):
                column += 1
                continue
            starts, lengths = words[:, column], words[:, column + 1]
            column += 2
            size = np.uint64(len(self._heap))
            if np.any(starts > size) or np.any(lengths > size - np.minimum(starts, size)):
                raise self._damage("an entry points out of it")
            if not np.any(lengths):
                continue
            first = starts[lengths > 0].astype(np.int64) // HEAP_BLOCK_BYTES
            last = (starts + lengths - np.uint64(1))[lengths > 0].astype(np.int64) // HEAP_BLOCK_BYTES
            blocks = [first, last]
            for one, other in zip(first[last > first + 1], last[last > first + 1], strict=True):
                blocks.append(np.arange(one + 1, other))
            wanted = np.concatenate(blocks)
            new = ~self._heap_checked[wanted]
            for block in np.unique(wanted[new]).tolist() if new.any() else ():
                data = self._heap[block * HEAP_BLOCK_BYTES : (block + 1) * HEAP_BLOCK_BYTES]
                if crc32c(data) != self._heap_sums[block]:
                    raise self._damage(f"keys from byte {block * HEAP_BLOCK_BYTES} on are damaged")
                self._heap_checked[block] = True
        return words
