"""Trailers — what a derived file of another format ends with: of which rows it is, and its checksum.

The file is what another library reads, then a document whose member ``of`` identifies the rows, with the size
and crc32c of what precedes it, then the document's size as a u64, and eight bytes that say what it is. A file
of other rows, or a damaged one, is told by that before anything in it is parsed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrow._format.checksum import crc32c
from zarrow._format.documents import MAX_OWNER_BYTES, decode_document, encode_document
from zarrow.errors import CorruptionError

__all__ = ["MAX_TRAILER_BYTES", "with_trailer", "without_trailer"]

_END_BYTES = 16
MAX_TRAILER_BYTES = MAX_OWNER_BYTES + _END_BYTES


def with_trailer(data: bytes | npt.NDArray[np.uint8], facts: Mapping[str, Any], magic: bytes) -> bytes:
    """Return a file: the data, and the trailer with these facts.

    Parameters
    ----------
    data : bytes or uint8 array, shape (size,)
        What another library reads.
    facts : mapping
        JSON values, among them ``of``.
    magic : bytes, 8 of them
        What the file ends with.
    """
    document = encode_document({**facts, "index_bytes": len(data), "index_crc32c": crc32c(data)})
    return b"".join([bytes(data), document, len(document).to_bytes(8, "little"), magic])


def without_trailer(
    file: npt.NDArray[np.uint8], magic: bytes, path: str
) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
    """Return the data of a file, whose checksum was verified, and the facts.

    Raises
    ------
    CorruptionError
        If it does not end with such a trailer, or the data is not what was written.

    Examples
    --------
    >>> file = np.frombuffer(with_trailer(b"data", {"of": "these rows"}, b"ZARROW01"), np.uint8)
    >>> data, facts = without_trailer(file, b"ZARROW01", "x")
    >>> bytes(data), facts["of"]
    (b'data', 'these rows')
    """
    end = file[-_END_BYTES:].tobytes()
    size = int.from_bytes(end[:8], "little")
    if len(end) < _END_BYTES or end[8:] != magic or size > min(len(file) - _END_BYTES, MAX_OWNER_BYTES):
        raise CorruptionError(f"does not end with {magic.decode()}", path=path)
    facts = decode_document(file[len(file) - _END_BYTES - size : -_END_BYTES].tobytes(), path)
    data = file[: len(file) - _END_BYTES - size]
    if len(data) != facts.get("index_bytes") or crc32c(data) != facts.get("index_crc32c"):
        raise CorruptionError("not the bytes that were written", path=path)
    return data, facts
