"""Layout — names and paths in a store, and the limits of the numbers in it.

Paths are relative to the store's root, with forward slashes. ``FORMAT.md``, next to the package's root
module, says the same to implementers in other languages, and defines the words.
"""

from __future__ import annotations

import re

from zarrow.errors import InvalidInputError

FORMAT_VERSION = 1

STORE_JSON = "zarrow.json"
MANIFEST_JSON = "manifest.json"
STATISTICS = "statistics.arrow"
ARRAYS_DIR = "embeddings.zarr"
TABLE_DIR = "table"
SEGMENTS_DIR = "segments"
INDEX_DIR = "index"
KEY_INDEX = "index/keys.index"
NEIGHBOURS_SUFFIX = ".neighbours"
DERIVED_DIR = "derived"
OPEN_DIR = "open"
QUARANTINE_DIR = "quarantine"
SCRATCH_PREFIX = "tmp-"
INCOMING_SUFFIX = ".incoming"
LOCK_SUFFIX = ".lock"
OWNER_JSON = "owner.json"
LOCK = "lock"
FRAMES = "table.frames"
PART = "part.parquet"

STORE_NAMES = frozenset(
    {
        STORE_JSON,
        MANIFEST_JSON,
        STATISTICS,
        ARRAYS_DIR,
        TABLE_DIR,
        SEGMENTS_DIR,
        INDEX_DIR,
        DERIVED_DIR,
        OPEN_DIR,
    }
)
"""What a store consists of; `repair` may add `QUARANTINE_DIR`."""

ROW = "row"
SAMPLE_INDEX = "sample_index"
RESERVED_COLUMNS = (ROW, SAMPLE_INDEX)

MEBIBYTE = 1 << 20
MAX_SHARD_BYTES = 96 * MEBIBYTE
MIN_SEGMENT_ROWS = 1024
TABLE_ONLY_SEGMENT_ROWS = 65_536
MAX_DEFAULT_SEGMENT_ROWS = 131_072
"""Of narrow rows: sealing a segment takes memory for the values of all its columns."""

TARGET_CHUNK_BYTES = MEBIBYTE
MAX_SEGMENTS = 10**8
"""Part and record names have eight digits, so that they sort by number."""

MAX_SEGMENT_ROWS = 1 << 31
MAX_ROW_AXES = 16
MAX_CHUNK_BYTES = 256 * MEBIBYTE
MAX_SEGMENT_BYTES = 1 << 40
MAX_FRAME_ROW_BYTES = 4 * MEBIBYTE
MAX_FRAME_ROWS = 16_384
"""Of all arrays, unless a frame has one row: a killed writer leaves no more than these without a frame."""

RAGGED_CHUNKS = 1 << 14
"""Of the shard of a ragged array, by default: room for 16 GiB of vectors, in an index of 256 KiB."""

EXTENT_SUFFIX = "_extent"

MAX_CHUNKS = 1 << 18
"""Of all arrays of a segment together. Like the other limits a bound, far above any use, on the memory that a
hostile store can make a reader allocate."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_UUID = re.compile(r"[0-9a-f]{32}\Z")
_SLOT = re.compile(r"[0-9a-f]{16}\Z")


def check_name(name: object, what: str) -> str:
    """Return `name` if it may name an array, else raise `InvalidInputError`.

    Array names become directories: the rule keeps them portable and inside the store.

    Parameters
    ----------
    name : str
        The name.
    what : str
        What it names, for messages.

    Returns
    -------
    str
        The name.

    Raises
    ------
    InvalidInputError
        If the name is not of the form ``[A-Za-z0-9_-]{1,64}``.

    Examples
    --------
    >>> check_name("query_embed", "an array")
    'query_embed'
    >>> check_name("../x", "an array")
    Traceback (most recent call last):
    zarrow.errors.InvalidInputError: the name of an array must be [A-Za-z0-9_-]{1,64}, got '../x': rename it
    """
    if not isinstance(name, str) or not _NAME.match(name):
        raise InvalidInputError(f"the name of {what} must be [A-Za-z0-9_-]{{1,64}}, got {name!r}: rename it")
    return name


def require_utf8(path: object) -> None:
    """Raise `InvalidInputError` if other programs cannot be told a path."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{path}: other programs take paths in UTF-8 only, and this one is not: rename it"
        ) from error


def is_name(name: str) -> bool:
    """Tell whether an array may have this name."""
    return bool(_NAME.match(name))


def is_uuid(text: str) -> bool:
    """Tell whether a store may have this ``uuid``: 32 hexadecimal digits."""
    return bool(_UUID.match(text))


def is_slot(name: str) -> bool:
    """Tell whether the directory of an open segment may have this name."""
    return bool(_SLOT.match(name))


def array_dir(array: str) -> str:
    """Return the directory of an array."""
    return f"{ARRAYS_DIR}/{array}"


def shard_path(array: str, segment: int, row_ndim: int) -> str:
    """Return the path of an array's shard: Zarr's default chunk key encoding.

    >>> shard_path("query_embed", 5, 1)
    'embeddings.zarr/query_embed/c/5/0'
    """
    return f"{ARRAYS_DIR}/{array}/c/{segment}" + "/0" * row_ndim


def part_path(segment: int) -> str:
    """Return the path of a segment's Parquet part.

    >>> part_path(5)
    'table/part-00000005.parquet'
    """
    return f"{TABLE_DIR}/part-{segment:08d}.parquet"


def record_path(segment: int) -> str:
    """Return the path of a segment's commit record."""
    return f"{SEGMENTS_DIR}/{segment:08d}.json"


def claim_path(segment: int) -> str:
    """Return the path of the claim of a segment number."""
    return f"{SEGMENTS_DIR}/{segment:08d}.claim"


def slot_dir(slot: str) -> str:
    """Return the directory of an open segment."""
    return f"{OPEN_DIR}/{slot}"


def rows_name(array: str) -> str:
    """Return the name of the file in an open segment that becomes the array's shard."""
    return f"{array}.rows"


def count_column(array: str) -> str:
    """Return the name of the column with the number of vectors of each row of a ragged array."""
    return f"{array}_count"


def extent_name(array: str) -> str:
    """Return the name of the array that says where the vectors of each row of a ragged array lie."""
    return f"{array}{EXTENT_SUFFIX}"


def tail_name(array: str, side: int) -> str:
    """Return the name of one of the two files for the rows of a compressed array's unfinished chunk."""
    return f"{array}.tail{side}"
