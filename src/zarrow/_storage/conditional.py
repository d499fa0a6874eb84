"""Conditional creates — a name in a bucket is taken by one writer, whatever becomes of the answers.

A request may act and its answer be lost; the client then asks again and is told that the name is taken, by
itself. S3 also says no (409) while another request for the name is under way, which may fail. So the answer
does not decide, but what is there: these bytes, others, or nothing, and then the request is made again.
"""

from __future__ import annotations

import errno
import time

from zarrow._storage.objects import ObjectPath
from zarrow.errors import CorruptionError, InvalidInputError

__all__ = ["create", "require_conditional"]

_AGAIN_SECONDS = (0.1, 0.3, 1.0, 3.0)
_PROBE = b"zarrow: may a name that is taken be taken again?"


def create(place: ObjectPath, path: str, data: bytes) -> None:
    """Put a small object in place if its name is free.

    Parameters
    ----------
    place : ObjectPath
        The store.
    path : str
        Where it goes in there.
    data : bytes
        Its content, by which the caller's object is known from others.

    Raises
    ------
    FileExistsError
        If there is an object of other bytes.
    OSError
        If the bucket neither makes the object nor has another one.
    """
    for wait in (*_AGAIN_SECONDS, None):
        try:
            if place.put_if_free(path, data):
                return
            failure = OSError(errno.EAGAIN, "the bucket says to ask again, however often", str(place / path))
        except PermissionError:
            raise
        except OSError as error:
            failure = error
        try:
            if place.fetch(path).content(len(data)) == data:
                return
            raise _taken(place / path)
        except CorruptionError:  # it is longer
            raise _taken(place / path) from None
        except FileNotFoundError:
            pass
        except FileExistsError:
            raise
        except OSError as error:
            failure = error
        if wait is None:
            raise failure
        time.sleep(wait)


def _taken(path: ObjectPath) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "there is another object already", str(path))


def require_conditional(place: ObjectPath, path: str) -> None:
    """Refuse a service that ignores the condition of a create.

    Parameters
    ----------
    place : ObjectPath
        The store.
    path : str
        An object in there, which such a service overwrites; it is removed then.

    Raises
    ------
    InvalidInputError
        If the name could be taken though it was taken.
    """
    try:
        create(place, path, _PROBE)
    except FileExistsError:
        return
    place.delete(path)
    raise InvalidInputError(
        f"{place}: this service overwrites objects even where it is asked not to (it ignores If-None-Match), "
        "so that two writers could destroy each other's store: use another service, or a newer version of it"
    )
