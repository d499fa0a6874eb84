"""Documents — small JSON files that prove that they are what was written.

Every document of a store (its spec, records, claims, manifest, owners) is one JSON object whose last member
is the crc32c of the bytes before it, so that a flipped bit is never mistaken for a fact.

Who made a store may have meant harm: sizes are bounded before a file is read, and the number of objects and
lists, which take many times as much memory as in the text, before it is parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from zarrow._format.checksum import crc32c
from zarrow.errors import CorruptionError

__all__ = ["MAX_DOCUMENT_BYTES", "MAX_OWNER_BYTES", "decode_document", "encode_document", "require_json"]

MAX_DOCUMENT_BYTES = 8 << 20
"""Of any but a manifest (`records.max_manifest_bytes`): a record of `MAX_CHUNKS` chunks has 3 MiB."""
MAX_OWNER_BYTES = 64 << 10
MAX_CONTAINERS = 1 << 18

_CHECKSUM = re.compile(rb',"crc32c":"([0-9a-f]{8})"\}\n\Z')
_CHECKSUM_BYTES = len(b',"crc32c":"00000000"}\n')


def encode_document(body: Mapping[str, Any]) -> bytes:
    r"""Return `body` as JSON with its checksum as the last member.

    >>> encode_document({"rows": 3})
    b'{"rows":3,"crc32c":"267e3b8c"}\n'
    """
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()[:-1]
    return text + b',"crc32c":"%08x"}\n' % crc32c(text)


def decode_document(data: bytes, path: str) -> dict[str, Any]:
    """Return the body of a document after its checksum was verified.

    Parameters
    ----------
    data : bytes
        The file's content.
    path : str
        Its path, for messages.

    Returns
    -------
    dict
        The object, without its checksum.

    Raises
    ------
    CorruptionError
        If the checksum is missing or wrong, or the rest is not a JSON object.
    """
    found = _CHECKSUM.search(data[-_CHECKSUM_BYTES:])
    text = data[:-_CHECKSUM_BYTES]
    if not found or crc32c(text) != int(found[1], 16):
        raise CorruptionError("its checksum does not match, so nothing in it can be trusted", path=path)
    if text.count(b"[") + text.count(b"{") > MAX_CONTAINERS:
        raise CorruptionError(f"more than {MAX_CONTAINERS} lists and objects", path=path)
    try:
        body = _DECODER.decode(text.decode() + "}")
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"not JSON, though its checksum matches: {error}", path=path) from error
    if not isinstance(body, dict):
        raise CorruptionError("not a JSON object", path=path)
    return body


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) < len(members):
        raise ValueError("an object has two members of the same name")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON value")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse)
_ANY_JSON = json.JSONDecoder(parse_constant=_refuse)


def require_json(text: str) -> None:
    """Raise `ValueError` or `RecursionError` unless a text is JSON."""
    _ANY_JSON.decode(text)
