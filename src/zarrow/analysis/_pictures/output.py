"""How does a picture, a page or a table take its name?

In one step, when it is whole: it grows beside the target under a name of its own. Interrupted, it is gone,
and at the target is what was there before.

Place: tier 5, in `zarrow.analysis`; below whatever writes a file that somebody asked for.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zarrow.errors import WriteFailedError

__all__ = ["in_one_step", "require_writable"]


def require_writable(target: Path) -> None:
    """Refuse a target that no file can have, before anything is computed.

    Raises
    ------
    WriteFailedError
        If its directory is missing or must not be written to, or if it is a directory itself.

    Examples
    --------
    >>> require_writable(Path("/nowhere/map.png"))
    Traceback (most recent call last):
    zarrow.errors.WriteFailedError: [Errno 2] /nowhere: no such directory: create it, or write elsewhere
    """
    if not target.parent.is_dir():
        raise WriteFailedError(2, f"{target.parent}: no such directory: create it, or write elsewhere")
    if target.is_dir():
        raise WriteFailedError(21, f"{target}: is a directory: give the name of a file")
    if not os.access(target.parent, os.W_OK):
        raise WriteFailedError(13, f"{target.parent}: must not be written to: write elsewhere")


@contextmanager
def in_one_step(target: Path) -> Iterator[Path]:
    """Hand out a scratch file, and give what was written there the target's name, replacing what is there.

    Raises
    ------
    WriteFailedError
        If it cannot be written; what was there before stays.
    """
    require_writable(target)
    scratch = None
    try:
        handle, scratch = tempfile.mkstemp(prefix=".zarrow-", suffix=target.suffix, dir=target.parent)
        os.close(handle)
        yield Path(scratch)
        os.chmod(scratch, 0o666 & ~_umask())
        os.replace(scratch, os.path.realpath(target))
    except OSError as error:
        raise WriteFailedError(
            error.errno or 0, f"{target}: cannot be written: {error.strerror or error}"
        ) from error
    finally:
        if scratch is not None:
            with suppress(FileNotFoundError):
                os.remove(scratch)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
