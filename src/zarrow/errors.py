"""What can go wrong, grouped by what a handler would do about it.

::

    ZarrowError
    ├── InvalidInputError (ValueError)      mend the call: nothing was written, the writer is usable
    │   ├── BatchError                      one batch breaks a rule of the store
    │   └── SchemaMismatchError             the declared or inferred schema differs from the store's
    ├── NotFoundError (LookupError)         mend the name
    │   ├── StoreNotFoundError (FileNotFoundError)
    │   ├── NotAStoreError                  there is something else at that path
    │   ├── UnknownNameError (KeyError)     no such column or array
    │   └── KeyNotFoundError (KeyError)     no row has that key
    ├── ConflictError                       somebody else was here: wait, reopen, or choose another path
    │   ├── StoreExistsError (FileExistsError)
    │   ├── StoreLockedError (BlockingIOError)
    │   └── StoreChangedError               the store was replaced or extended under an open snapshot
    ├── IncompleteStoreError (RuntimeError) resume or finalize it, or ask for ``partial=True``
    ├── CorruptionError (RuntimeError)      bytes on disk are not the bytes that were written
    ├── WriteFailedError (OSError)          the operating system refused; says which rows are safe
    ├── WriterClosedError (ValueError)      the writer was closed
    └── MissingExtraError (ImportError)     install the extra that the message names

Place: tier 1, imported by every module, imports none.
"""

from __future__ import annotations

from collections.abc import Iterable

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


class ZarrowError(Exception):
    """Root of everything that zarrow raises on purpose.

    Examples
    --------
    >>> issubclass(CorruptionError, ZarrowError)
    True
    """


class InvalidInputError(ZarrowError, ValueError):
    """A call breaks a rule that its message names; nothing was written."""


class BatchError(InvalidInputError):
    """A batch breaks a rule of the store; store and writer are as they were before it."""


class SchemaMismatchError(InvalidInputError):
    """The columns, arrays or keys asked for are not those that the store has."""


class NotFoundError(ZarrowError, LookupError):
    """What was asked for is not there."""


class StoreNotFoundError(FileNotFoundError, NotFoundError):  # this order: its `__new__` must be OSError's
    """There is nothing at the path."""


class NotAStoreError(NotFoundError):
    """There is something at the path, but it is no zarrow store."""


class _PlainKeyError(NotFoundError, KeyError):
    """A KeyError whose message is not shown in quotes."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class UnknownNameError(_PlainKeyError):
    """The store has no column or array of that name."""


class KeyNotFoundError(_PlainKeyError):
    """No row of the store has that key."""


class ConflictError(ZarrowError):
    """Somebody else's work is in the way."""


class StoreExistsError(ConflictError, FileExistsError):
    """There is a store already and the mode does not allow touching it."""


class StoreLockedError(ConflictError, BlockingIOError):
    """Another writer that is alive holds the store or the open segment."""


class StoreChangedError(ConflictError):
    """The store was replaced under an open snapshot; open it anew."""


class IncompleteStoreError(ZarrowError, RuntimeError):
    """The store was never finalized; resume it, finalize it, or open it with ``partial=True``."""


class CorruptionError(ZarrowError, RuntimeError):
    """Bytes on disk are not the bytes that were written."""


class WriteFailedError(ZarrowError, OSError):
    """The operating system refused a write; the writer is poisoned, the rows that it names are safe.

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
    """The writer was closed; open another one with ``mode="a"``."""


class MissingExtraError(ZarrowError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def unknown_name(what: str, name: object, names: Iterable[str]) -> UnknownNameError:
    """Return the error that says that there is no `what` of that name, and what there is.

    >>> print(unknown_name("array", "query_embd", ["query_embed"]))
    there is no array 'query_embd'; did you mean 'query_embed'? There are: query_embed
    """
    import difflib

    known = list(names)
    near = difflib.get_close_matches(str(name), known, n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    return UnknownNameError(f"there is no {what} {name!r}{hint} There are: {', '.join(known) or 'none'}")
