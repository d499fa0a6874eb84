"""Building the key index — a file in the store that all its readers share."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from zarrow._format import layout
from zarrow._read import keys
from zarrow._read.columns import NarrowColumns
from zarrow._read.key_index import SCRATCH_PREFIX, indexed_rows, key_batches, key_schema
from zarrow._read.view import take_view
from zarrow._storage import files
from zarrow._storage.objects import on_disk
from zarrow._write.directory import exclusively
from zarrow.errors import WriteFailedError, ZarrowError

__all__ = ["build_index"]


def build_index(path: str | os.PathLike[str]) -> None:
    """Write the index that lets `Store.locate` find rows by key: durable on return.

    The index is derived: it can be removed and built again at any time, and readers work without it, but
    slower. Building it takes the time to read and sort the key columns, and some 100 MB of memory for any
    number of rows. After an append it is outdated and ignored until it is built again.

    Parameters
    ----------
    path : path
        A complete store that was written with ``keys=``.

    Raises
    ------
    StoreNotFoundError, NotAStoreError, IncompleteStoreError
        If there is no complete store.
    InvalidInputError
        If the store has no keys.
    CorruptionError
        If the table is damaged.
    StoreLockedError
        If a writer is active.
    StoreChangedError
        If the store was changed meanwhile.
    WriteFailedError
        If the index cannot be written; the store is as it was.

    Examples
    --------
    >>> import zarrow, zarrow.testing
    >>> store = zarrow.testing.example_store()
    >>> zarrow.build_index(store.path)
    >>> store.locate({"subject_id": [3], "query": ["code//7"]})
    array([37])
    """
    write_index(Path(os.path.abspath(on_disk(path))))


def write_index(root: Path, *, locked: bool = False) -> None:
    """Do what `build_index` does; `locked` if the caller holds the store's lock."""
    import tempfile

    view = take_view(root, partial=False)
    columns = NarrowColumns(view)
    key_schema(view)
    try:
        for folder in (layout.INDEX_DIR, layout.OPEN_DIR):
            files.make_dir(root / folder, exist_ok=True)
        files.sync_dir(root)
        scratch = files.scratch_name(root / layout.OPEN_DIR)
        fd = files.create(scratch)
        try:
            with tempfile.TemporaryFile(prefix=SCRATCH_PREFIX, dir=root / layout.OPEN_DIR) as spill:
                keys.build(files.write, fd, spill.fileno(), key_batches(view, columns), indexed_rows(view))
            # The crash that the order prevents: a name whose bytes a power cut takes.
            files.sync(fd)
            with contextlib.nullcontext() if locked else exclusively(root, view.identity):
                files.rename(scratch, root / layout.KEY_INDEX)
        finally:
            os.close(fd)
            files.remove(scratch)
        files.sync_dir(root / layout.INDEX_DIR)
    except ZarrowError:
        raise
    except OSError as error:
        raise WriteFailedError(
            error.errno or errno.EIO,
            f"{root / layout.INDEX_DIR}: the index cannot be written: {error.strerror or error}; the store "
            "is as it was",
        ) from error
