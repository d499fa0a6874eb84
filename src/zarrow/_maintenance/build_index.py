"""Building the key index — a file in the store that all its readers share."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zarrow._format import layout
from zarrow._read import keys
from zarrow._read.columns import NarrowColumns
from zarrow._read.key_index import SCRATCH_PREFIX, indexed_rows, key_batches, key_schema
from zarrow._read.view import take_view
from zarrow._storage import files
from zarrow._storage.objects import ObjectPath, located
from zarrow._storage.reading import open_file
from zarrow._write.directory import exclusively
from zarrow.errors import WriteFailedError, ZarrowError

__all__ = ["build_index"]


def build_index(path: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None) -> None:
    """Write the index that lets `Store.locate` find rows by key: durable on return.

    The index is derived: it can be removed and built again at any time, and readers work without it, but
    slower. Building it takes the time to read and sort the key columns, and some 100 MB of memory for any
    number of rows. After an append it is outdated and ignored until it is built again.

    Parameters
    ----------
    path : path or URL
        A complete store that was written with ``keys=``. The index of one in a bucket is made in the
        directory for temporary files (``TMPDIR``), then put there.
    storage_options : dict of str, optional
        For URLs; see `zarrow.open`.

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
    place = located(path, storage_options)
    if isinstance(place, ObjectPath):
        _put_index(place)
    else:
        write_index(place)


def _put_index(place: ObjectPath) -> None:
    """Make the index of a store in a bucket, whose rows stay as they are, and put it there: one object."""
    import tempfile

    view = take_view(place, partial=False)
    key_schema(view)
    columns = NarrowColumns(view)
    try:
        with (
            tempfile.NamedTemporaryFile(prefix=SCRATCH_PREFIX) as made,
            tempfile.TemporaryFile(prefix=SCRATCH_PREFIX) as spill,
        ):
            keys.build(
                files.write, made.fileno(), spill.fileno(), key_batches(view, columns), indexed_rows(view)
            )
            view.guard()
            found = Path(made.name)
            place.put(layout.KEY_INDEX, open_file(found.parent, found.name))
    except ZarrowError:
        raise
    except OSError as error:
        raise _not_written(place, error) from error


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
        raise _not_written(root, error) from error


def _not_written(root: Path | ObjectPath, error: OSError) -> WriteFailedError:
    return WriteFailedError(
        error.errno or errno.EIO,
        f"{root / layout.INDEX_DIR}: the index cannot be written: {error.strerror or error}; the store "
        "is as it was",
    )
