"""Where does a reader find the index of the rows that it sees?

In ``index/keys.index``, if that was made of exactly these rows; else it makes one of its own, in a file
without a name in the directory for temporary files (``TMPDIR``), mapped like the other and gone with the
process. That costs a scan of the key columns at the first `Store.locate`, and bounded memory.

Why not otherwise: a reader never writes into a store, and what is derived must not delay or fail a writer's
`finalize`. So whoever asks more than once calls `build_index` when the store is complete, and all readers
have it from then on.

The rule for incomplete stores: they are never served from the file, which would lack their live rows; the
index of the snapshot's own is made anew after every `Store.refresh` that finds rows.

Place: tier 3, above `columns`; used by `store`. A crash of `build_index` leaves a scratch file in
``open/``, which the next writer removes, and the index that was there before or the new one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from zarrow._format import layout
from zarrow._format.key_tables import Identity, identity_of
from zarrow._format.layout import ROW
from zarrow._read import keys
from zarrow._read.columns import Columns
from zarrow._read.keys import KeyIndex
from zarrow._read.view import View, take_view
from zarrow._storage import files
from zarrow.errors import InvalidInputError, WriteFailedError
from zarrow._storage import reading

__all__ = ["build_index", "find_index", "key_schema"]

_SCRATCH_PREFIX = "zarrow-keys-"


def build_index(path: str | os.PathLike[str]) -> None:
    """Write the index that lets `Store.locate` find rows by key: durable on return.

    It is derived: it can be removed and made again at any time, and readers work without it, but slower.
    Takes the time of reading the key columns and sorting them, and some 100 MB of memory however many
    rows there are. It has to be made again after rows were appended; one that is outdated is ignored.

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
    import tempfile

    root = Path(os.path.abspath(path))
    view = take_view(root, partial=False)
    columns = Columns(view)
    key_schema(view)
    try:
        for folder in (layout.INDEX_DIR, layout.OPEN_DIR):
            files.make_dir(root / folder, exist_ok=True)
        files.sync_dir(root)
        scratch = files.scratch_name(root / layout.OPEN_DIR)
        fd = files.create(scratch)
        try:
            with tempfile.TemporaryFile(prefix=_SCRATCH_PREFIX, dir=root / layout.OPEN_DIR) as spill:
                keys.build(fd, spill.fileno(), _batches(view, columns), _identity(view))
            # The crash that the order prevents: a name whose bytes a power cut takes.
            files.sync(fd)
            view.guard()
            files.rename(scratch, root / layout.KEY_INDEX)
        finally:
            os.close(fd)
            files.remove(scratch)
        files.sync_dir(root / layout.INDEX_DIR)
    except OSError as error:
        raise WriteFailedError(
            error.errno or errno.EIO,
            f"{root / layout.INDEX_DIR}: the index cannot be written: {error.strerror or error}; the store "
            "is as it was",
        ) from error


def find_index(view: View, columns: Columns) -> KeyIndex:
    """Return the index of the rows of a view: the store's if it is theirs, else one made for them.

    Raises
    ------
    InvalidInputError
        If the store has no keys.
    CorruptionError
        If the store's index, or a part, is damaged.
    """
    schema = key_schema(view)
    if view.snapshot.complete:
        path = view.snapshot.root / layout.KEY_INDEX
        try:
            data = reading.map_bytes(path)
        except FileNotFoundError:
            data = np.empty(0, np.uint8)
        else:
            index = KeyIndex(np.asarray(data), schema.types, str(path))
            if index.identity == _identity(view):
                return index
    import tempfile

    with (
        tempfile.TemporaryFile(prefix=_SCRATCH_PREFIX) as file,
        tempfile.TemporaryFile(prefix=_SCRATCH_PREFIX) as spill,
    ):
        keys.build(file.fileno(), spill.fileno(), _batches(view, columns), _identity(view))
        name = f"{view.snapshot.root}: the temporary index of its keys"
        return KeyIndex(keys.map_file(file.fileno(), name), schema.types, name)


def key_schema(view: View) -> pa.Schema:
    """Return the key columns of a store; `InvalidInputError` if it has none."""
    spec = view.spec
    if not spec.keys:
        raise InvalidInputError(
            f"{view.snapshot.root}: the store was written without keys=, so no key names a row: filter the "
            "table instead"
        )
    return pa.schema([spec.schema.field(key) for key in spec.keys])


def _batches(view: View, columns: Columns) -> Iterator[pa.RecordBatch]:
    return columns.batches([*view.spec.keys, ROW], None)


def _identity(view: View) -> Identity:
    return identity_of(view.spec, view.rows, view.snapshot.manifest)
