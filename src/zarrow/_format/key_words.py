"""Key words — a key as 64-bit words, and its hash: when two keys are the same.

Every value of a key column becomes one unsigned 64-bit *word*: an integer, boolean, date or time its integer;
a float the bits of its float64 (-0.0 becomes 0.0, and all NaNs are alike, so that a NaN finds NaN). Values
without such a word (strings, bytes, decimals) become bytes in a *heap* and two words, their offset and their
size; equal values are stored once. Two keys are the same if and only if all their words and bytes are
(`same`).

The hash of a key chains ``step``, the finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable
pseudorandom number generators", 2014), over the words of its columns; for a value in the heap the word is the
chain over its size and its bytes, eight at a time. ``FORMAT.md``, section 13, has test values. The hash is
made for speed in numpy, not against an adversary: who can choose keys can make them collide, which costs
time, but never yields a wrong row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format.arrow import decoded, is_text, value_type

__all__ = ["Keys", "encode", "family", "hash_keys", "is_in_heap", "same", "word_count"]

Words = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
_LAST_SHIFT = np.uint64(31)
_FAMILIES = {
    "integer": pa.types.is_integer,
    "float": pa.types.is_floating,
    "boolean": pa.types.is_boolean,
    "date": pa.types.is_date,
    "time": pa.types.is_time,
    "duration": pa.types.is_duration,
    "decimal": pa.types.is_decimal,
}


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of rows.

    Parameters
    ----------
    words : uint64 array, shape (rows, words)
        Per column one word, or the offset and the size of its bytes in the heap.
    heap : uint8 array, shape (bytes,)
        The bytes.
    hashes : uint64 array, shape (rows,)
        The hash of each key.
    """

    words: Words
    heap: Bytes
    hashes: Words


@lru_cache(256)
def family(kind: pa.DataType) -> str:
    """Return the family of a type: only values of one family can be the same.

    >>> family(pa.int8()), family(pa.dictionary(pa.int32(), pa.string())), family(pa.timestamp("us"))
    ('integer', 'string', 'timestamp')
    """
    types = pa.types
    kind = value_type(kind)
    for name, test in _FAMILIES.items():
        if test(kind):
            return name
    if types.is_timestamp(kind):
        return "timestamp" if kind.tz is None else "timestamp with a time zone"
    if is_text(kind):
        return "string"
    return "bytes" if "binary" in str(kind) else str(kind)


def is_in_heap(kind: pa.DataType) -> bool:
    """Tell whether a type's values become bytes in the heap."""
    return family(kind) in ("string", "bytes", "decimal")


def word_count(kinds: Sequence[pa.DataType]) -> int:
    """Return the number of words of a key of these types."""
    return sum(1 + is_in_heap(kind) for kind in kinds)


def encode(columns: Sequence[pa.Array]) -> Keys:
    """Return the keys in columns without nulls.

    >>> keys = encode([pa.array([7, 8]), pa.array(["stroke", "stroke"])])
    >>> keys.words.tolist(), keys.heap.tobytes()
    ([[7, 0, 6], [8, 0, 6]], b'stroke')
    """
    words: list[Words] = []
    chain: list[Words] = []
    heaps: list[Bytes] = []
    size_bytes = 0
    for column in columns:
        column = decoded(column)
        if not is_in_heap(column.type):
            word = _word(column)
            words.append(word)
            chain.append(word)
            continue
        codes, starts, lengths, data = _distinct(column)
        words += [(starts + size_bytes).astype(np.uint64)[codes], lengths.astype(np.uint64)[codes]]
        chain.append(_hash_bytes(lengths, data)[codes])
        heaps.append(data)
        size_bytes += len(data)
    heap = np.concatenate(heaps) if heaps else np.empty(0, np.uint8)
    table = np.empty((len(words[0]), len(words)), np.uint64)
    for place, word in enumerate(words):
        table[:, place] = word
    return Keys(table, heap, hash_keys(chain))


def hash_keys(chain: Sequence[Words]) -> Words:
    """Return the hashes of keys from one word per column.

    >>> [f"{number:016x}" for number in hash_keys([np.array([0, 1], np.uint64)])]
    ['e220a8397b1dcdaf', '910a2dec89025cc1']
    """
    found = np.zeros(len(chain[0]), np.uint64)
    for word in chain:
        found = _step(found, word)
    return found


def _step(before: Words, word: Words) -> Words:
    mixed = before ^ word
    mixed += _GOLDEN
    for shift, factor in _MIX:
        mixed ^= mixed >> shift
        mixed *= factor
    mixed ^= mixed >> _LAST_SHIFT
    return mixed


def _hash_bytes(lengths: npt.NDArray[np.int64], data: Bytes) -> Words:
    """Return the words that represent adjacent values in the chain."""
    found = _step(np.zeros(len(lengths), np.uint64), lengths.astype(np.uint64))
    counts = (lengths + 7) // 8
    firsts = np.cumsum(counts) - counts
    padded = np.zeros(8 * int(counts.sum()), np.uint8)
    padded[_spread(8 * firsts, lengths)] = data
    eights = padded.view("<u8").astype(np.uint64, copy=False)
    left = np.flatnonzero(counts)
    position = 0
    while len(left):
        found[left] = _step(found[left], eights[firsts[left] + position])
        position += 1
        left = left[counts[left] > position]
    return found


def _spread(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the offsets of all bytes of values that begin at `starts`.

    >>> _spread(np.array([0, 8]), np.array([2, 3])).tolist()
    [0, 1, 8, 9, 10]
    """
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def _word(column: pa.Array) -> Words:
    kind = column.type
    if pa.types.is_floating(kind):
        floats: npt.NDArray[np.float64] = _numbers(column).astype(np.float64)
        floats = floats + 0.0  # −0.0 becomes 0.0
        floats[np.isnan(floats)] = np.nan
        return floats.view(np.uint64)
    if pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    elif not pa.types.is_integer(kind):
        column = column.view(pa.int32() if kind.bit_width == 32 else pa.int64())
    numbers = _numbers(column)
    if numbers.dtype.kind == "u":
        return numbers.astype(np.uint64)
    return numbers.astype(np.int64).view(np.uint64)


def _numbers(column: pa.Array) -> npt.NDArray[Any]:
    """Return numbers without nulls as a numpy array: `to_numpy` without its import of pandas."""
    return np.from_dlpack(column)


def _distinct(
    column: pa.Array,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64], Bytes]:
    """Return each value's index among the distinct ones, and the offsets, sizes and bytes of these."""
    if pa.types.is_decimal(column.type):
        kind = pa.binary(column.type.bit_width // 8)
        column = pa.Array.from_buffers(kind, len(column), [None, column.buffers()[1]], offset=column.offset)
    if pa.types.is_fixed_size_binary(column.type):
        column = column.cast(pa.binary())
    coded = column.cast(pa.large_binary()).dictionary_encode()
    values = coded.dictionary
    _, offsets_buffer, data_buffer = values.buffers()
    if not len(values):
        empty = np.empty(0, np.int64)
        return np.empty(0, np.int32), empty, empty, np.empty(0, np.uint8)
    offsets = np.frombuffer(offsets_buffer, np.int64)[values.offset : values.offset + len(values) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer else np.empty(0, np.uint8)
    starts = offsets[:-1] - offsets[0]
    return _numbers(coded.indices), starts, np.diff(offsets), data[offsets[0] : offsets[-1]]


def same(
    kinds: Sequence[pa.DataType], one: Words, one_heap: Bytes, other: Words, other_heap: Bytes
) -> npt.NDArray[np.bool_]:
    """Tell which pairs of keys are the same.

    Parameters
    ----------
    kinds : sequence of DataType
        The types of the columns.
    one, other : uint64 array, shape (pairs, words)
        Their words.
    one_heap, other_heap : uint8 array
        Their bytes; the words must not point outside.

    Returns
    -------
    bool array, shape (pairs,)
        Whether the keys of each pair are the same.
    """
    found = np.ones(len(one), np.bool_)
    column = 0
    for kind in kinds:
        if not is_in_heap(kind):
            found &= one[:, column] == other[:, column]
            column += 1
            continue
        found &= one[:, column + 1] == other[:, column + 1]
        left = np.flatnonzero(found)
        lengths = one[left, column + 1].astype(np.int64)
        here = one_heap[_spread(one[left, column].astype(np.int64), lengths)]
        there = other_heap[_spread(other[left, column].astype(np.int64), lengths)]
        found[np.repeat(left, lengths)[here != there]] = False
        column += 2
    return found
