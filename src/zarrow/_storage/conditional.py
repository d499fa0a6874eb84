"""Conditional puts — an object in a bucket is made or replaced by one writer, whatever becomes of answers.

A request may act and its answer be lost; the client then asks again and is told that the name is taken, by
itself. S3 also says no (409) while another request for the name is under way, which may fail. So the answer
does not decide, but what is there: these bytes, others, or what was there before, and then the request is
made again. An object is replaced only if it still is the one that was looked at, so that a writer which
stood still for an hour cannot overwrite what others have made since.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from typing import Any

from zarrow._format.documents import MAX_DOCUMENT_BYTES
from zarrow._storage.objects import ObjectPath, Version
from zarrow.errors import CorruptionError, InvalidInputError

__all__ = ["Seen", "create", "look", "require_conditional", "swap"]

_AGAIN_SECONDS = (0.1, 0.3, 1.0, 3.0)
_PROBE = b"zarrow: may a name that is taken be taken again?"
_NO_VERSION = {"e_tag": '"00000000000000000000000000000000"', "version": "1"}


@dataclass(frozen=True, slots=True)
class Seen:
    """A small object as it was: its content, and its version, by which it is replaced."""

    data: bytes
    version: Version


def look(place: ObjectPath, path: str, limit_bytes: int = MAX_DOCUMENT_BYTES) -> Seen | None:
    """Return an object; None if there is none."""
    try:
        with place.fetch(path) as file:
            return Seen(file.content(limit_bytes), file.version)
    except FileNotFoundError:
        return None


def create(place: ObjectPath, path: str, data: Any) -> Version:
    """Put an object in place if its name is free; see `swap`."""
    return swap(place, path, None, data)


def swap(place: ObjectPath, path: str, version: Version | None, data: Any) -> Version:
    """Put an object in place of one of this version; if None, of none.

    Parameters
    ----------
    place : ObjectPath
        The store.
    path : str
        Where it goes in there.
    version : mapping or None
        Of the object that it replaces.
    data : bytes or buffer
        Its content, by which the caller's object is known from others.

    Returns
    -------
    mapping
        Its version.

    Raises
    ------
    FileExistsError
        If there is an object of other bytes, or the one to be replaced is gone.
    OSError
        If the bucket neither makes the object nor has another one.
    """
    for wait in (*_AGAIN_SECONDS, None):
        try:
            made = place.put_if(path, data, version)
            if made is not None:
                return made
            failure = OSError(errno.EAGAIN, "the bucket says to ask again, however often", str(place / path))
        except PermissionError:
            raise
        except OSError as error:
            failure = error
        try:
            with place.fetch(path) as there:
                if there.size_bytes == len(data) and there.content(len(data)) == data:
                    return there.version
                if there.version != version:
                    raise _taken(place / path)
        except FileNotFoundError:
            if version is not None:
                raise _taken(place / path) from None
        except FileExistsError:
            raise
        except CorruptionError as error:  # the answer was cut off
            failure = OSError(errno.EIO, str(error), str(place / path))
        except OSError as error:
            failure = error
        if wait is not None:
            time.sleep(wait)
    raise failure


def _taken(path: ObjectPath) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "there is another object already", str(path))


def require_conditional(place: ObjectPath, path: str, *, replaces: bool = False) -> None:
    """Refuse a service that ignores the condition of a put.

    Parameters
    ----------
    place : ObjectPath
        The store.
    path : str
        An object in there, which such a service overwrites; it is removed then.
    replaces : bool
        Whether objects are going to be replaced, too, not only made.

    Raises
    ------
    InvalidInputError
        If the name could be taken though it was taken.
    """
    conditions: list[tuple[str, Version | None]] = [("If-None-Match", None)]
    if replaces:
        conditions.append(("If-Match", _NO_VERSION))
    for name, version in conditions:
        try:
            swap(place, path, version, _PROBE)
        except FileExistsError:
            continue
        place.delete(path)
        raise InvalidInputError(
            f"{place}: this service overwrites objects even where it is asked not to (it ignores {name}), "
            "so that two writers could destroy each other's store: use another service, or a newer version "
            "of it"
        )
