"""Output files — a picture, a page or a table appears under its name in one step, when it is whole.

It is written under a scratch name in the same directory and then renamed. If the process is interrupted, the
scratch file is removed and the target is as it was; if it is killed, the scratch file stays.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zarrow.errors import WriteFailedError

__all__ = ["in_one_step", "require_writable"]


def require_writable(target: Path) -> None:
    """Refuse a path where no file can be written, before anything is computed.

    Raises
    ------
    WriteFailedError
        If its directory is missing or not writable, or if the path is a directory.

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
        raise WriteFailedError(13, f"{target.parent}: not writable: write elsewhere")


@contextmanager
def in_one_step(target: Path) -> Iterator[Path]:
    """Yield an empty scratch file, and rename it to the target when the block ends.

    Raises
    ------
    WriteFailedError
        If it cannot be written; a file that was there before stays.
    """
    require_writable(target)
    scratch = target.with_name(f".zarrow-{secrets.token_hex(8)}{target.suffix}")
    try:
        os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # less the umask
        yield scratch
        os.replace(scratch, os.path.realpath(target))
    except OSError as error:
        raise WriteFailedError(
            error.errno or 0, f"{target}: cannot be written: {error.strerror or error}"
        ) from error
    finally:
        with suppress(FileNotFoundError):
            os.remove(scratch)
