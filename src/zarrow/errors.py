"""Errors — everything that zarrow raises on purpose, grouped by what a handler would do about it.

::

    ZarrowError
    ├── InvalidInputError (ValueError)      correct the call: nothing was written, the writer is usable
    │   ├── BatchError                      one batch breaks a rule of the store
    │   └── SchemaMismatchError             the declared or inferred schema differs from the store's
    ├── NotFoundError (LookupError)         correct the name
    │   ├── StoreNotFoundError (FileNotFoundError)
    │   ├── NotAStoreError                  something else is at that path
    │   ├── UnknownNameError (KeyError)     no such column or array
    │   └── KeyNotFoundError (KeyError)     no row has that key
    ├── ConflictError                       another process is in the way: wait, reopen, choose another path
    │   ├── StoreExistsError (FileExistsError)
    │   ├── StoreLockedError (BlockingIOError)
    │   └── StoreChangedError               the store was replaced or extended under an open snapshot
    ├── IncompleteStoreError (RuntimeError) resume or finalize it, or open it with ``partial=True``
    ├── CorruptionError (RuntimeError)      bytes on disk are not the bytes that were written
    ├── WriteFailedError (OSError)          the operating system refused; the error says which rows are safe
    ├── WriterClosedError (ValueError)      the writer was closed
    └── MissingExtraError (ImportError)     install the extra that the message names

Each class also derives from the builtin that a caller would catch. A message gives the rule that was broken,
the value that broke it, and the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

__all__ = [
    "BatchError",
    "ConflictError",
    "CorruptionError",
    "IncompleteStoreError",
    "InvalidInputError",
    "KeyNotFoundError",
    "MissingExtraError",
    "NotAStoreError",
    "NotFoundError",
    "SchemaMismatchError",
    "StoreChangedError",
    "StoreExistsError",
    "StoreLockedError",
    "StoreNotFoundError",
    "UnknownNameError",
    "WriteFailedError",
    "WriterClosedError",
    "ZarrowError",
]


_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    r"""Return a text without what acts on a terminal, such as escape sequences: a store may be hostile.

    Parameters
    ----------
    text : object
        The text.

    Returns
    -------
    str
        The text, with escapes such as ``\x1b`` instead.

    Examples
    --------
    >>> printable("a\nb \x1b[2J é")
    'a\\nb \\x1b[2J é'
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


class ZarrowError(Exception):
    """Root of everything that zarrow raises on purpose; its text can be printed (`printable`).

    Examples
    --------
    >>> issubclass(CorruptionError, ZarrowError)
    True
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class InvalidInputError(ZarrowError, ValueError):
    """A call breaks a rule, which the message names; nothing was written."""


class BatchError(InvalidInputError):
    """A batch breaks a rule of the store; store and writer are as they were before it."""


class SchemaMismatchError(InvalidInputError):
    """The declared columns, arrays or keys are not those of the store."""


class NotFoundError(ZarrowError, LookupError):
    """The store, column, array or key does not exist."""


class StoreNotFoundError(FileNotFoundError, NotFoundError):  # this order: its `__new__` must be OSError's
    """Nothing is at the path."""

    __str__ = ZarrowError.__str__


class NotAStoreError(NotFoundError):
    """Something is at the path, but it is not a zarrow store."""


class _PlainKeyError(NotFoundError, KeyError):
    """A KeyError whose message is not shown in quotes."""

    def __str__(self) -> str:
        return printable(self.args[0]) if self.args else ""


class UnknownNameError(_PlainKeyError):
    """The store has no column or array of that name."""


class KeyNotFoundError(_PlainKeyError):
    """No row of the store has that key."""


class ConflictError(ZarrowError):
    """Another process is in the way, or was."""


class StoreExistsError(ConflictError, FileExistsError):
    """A store exists already, and the mode does not allow changing it."""


class StoreLockedError(ConflictError, BlockingIOError):
    """Another writer, which is alive, holds the store or the open segment."""


class StoreChangedError(ConflictError):
    """The store was replaced since it was opened; open it again."""


class IncompleteStoreError(ZarrowError, RuntimeError):
    """The store was never finalized; resume it, finalize it, or open it with ``partial=True``."""


class CorruptionError(ZarrowError, RuntimeError):
    """Bytes on disk are not the bytes that were written.

    Parameters
    ----------
    reason : str
        What is wrong, and with which rows.
    path : str or Path, optional
        The file or directory that is damaged.

    Examples
    --------
    >>> error = CorruptionError("its checksum does not hold", path="run.zarrow/manifest.json")
    >>> print(error)
    run.zarrow/manifest.json: its checksum does not hold
    >>> error.path, error.reason
    ('run.zarrow/manifest.json', 'its checksum does not hold')
    """

    path: str | None = None

    def __init__(self, reason: str, *, path: object = None) -> None:
        super().__init__(reason)
        self.path = None if path is None else str(path)

    @property
    def reason(self) -> str:
        """What is wrong, without the path."""
        return str(self.args[0])

    def __str__(self) -> str:
        return printable(self.reason if self.path is None else f"{self.path}: {self.reason}")


class WriteFailedError(ZarrowError, OSError):
    """The operating system refused a write; the writer cannot go on, but the rows that it names are safe.

    Parameters
    ----------
    errno : int
        The error number of the call that failed, as in `OSError`.
    message : str
        What failed, what is safe, what to do.
    accepted_rows : int
        Rows of this writer that survive the death of the process.
    durable_rows : int
        Rows of this writer that survive a power cut.
    """

    def __init__(self, errno: int, message: str, *, accepted_rows: int = 0, durable_rows: int = 0) -> None:
        super().__init__(errno, message)
        self.accepted_rows = accepted_rows
        self.durable_rows = durable_rows


class WriterClosedError(ZarrowError, ValueError):
    """The writer was closed; open another with ``mode="a"``."""


class MissingExtraError(ZarrowError, ImportError):
    """An optional dependency is not installed; the message names the extra that installs it."""


def unknown_name(what: str, name: object, names: Iterable[str]) -> UnknownNameError:
    """Return the error for a name that does not exist; it suggests similar names and lists all.

    >>> print(unknown_name("array", "query_embd", ["query_embed"]))
    there is no array 'query_embd'; did you mean 'query_embed'? There are: query_embed
    """
    known = list(names)
    hint = did_you_mean(name, known) or "."
    return UnknownNameError(f"there is no {what} {name!r}{hint} There are: {', '.join(known) or 'none'}")


def unknown_column(name: object, columns: Iterable[str], arrays: Collection[object]) -> UnknownNameError:
    """Return the error for a column that does not exist, and may be an array.

    Parameters
    ----------
    name : object
        What was asked for.
    columns : iterable of str
        The columns that there are.
    arrays : collection
        The names of the arrays.

    Returns
    -------
    UnknownNameError
        Not raised.

    Examples
    --------
    >>> print(unknown_column("prob", ["id"], ["prob"]))
    there is no column 'prob', but an array: a batch's (rows, 1) is one; its (rows,) is a column. Columns: id
    """
    if name not in arrays:
        return unknown_name("column", name, columns)
    return UnknownNameError(
        f"there is no column {name!r}, but an array: a batch's (rows, 1) is one; its (rows,) is a column. "
        f"Columns: {', '.join(columns)}"
    )


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """Return the names that are like one which does not exist, for the end of a message; maybe nothing.

    >>> did_you_mean("parket", ["npy", "parquet"]), did_you_mean("x", ["npy", "parquet"])
    ("; did you mean 'parquet'?", '')
    """
    import difflib

    near = difflib.get_close_matches(str(name), list(names), n=3)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
