"""Key index — the index that answers for the rows of a view.

It is ``index/keys.index`` if that was made of exactly these rows. Otherwise a reader makes one of its own,
in an unnamed file in the directory for temporary files (``TMPDIR``), mapped like the other and gone with
the process. This takes a scan of the key columns at the first `Store.locate`, and bounded memory.

A reader never writes into a store, and nothing derived may delay or fail a writer's `finalize`. Therefore
the index is made by `build_index`, once the store is complete, and all readers have it from then on.

An incomplete store is never served from the file, which lacks the live rows: its index is made again after
every `Store.refresh` that finds new rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from zarrow._format import layout
from zarrow._format.key_tables import keys_of
from zarrow._format.layout import ROW
from zarrow._read import keys
from zarrow._read.columns import NarrowColumns
from zarrow._read.keys import IndexedRows, IndexFile
from zarrow._read.view import View
from zarrow._storage import reading
from zarrow.errors import InvalidInputError

__all__ = ["SCRATCH_PREFIX", "find_index", "indexed_rows", "key_batches", "key_schema"]

SCRATCH_PREFIX = "zarrow-keys-"


def find_index(view: View, columns: NarrowColumns) -> IndexFile:
    """Return the index of the rows of a view: the store's if it is of these rows, else one made for them.

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
            data = reading.map_file(view.snapshot.root, layout.KEY_INDEX)
        except FileNotFoundError:
            data = np.empty(0, np.uint8)
        else:
            index = IndexFile(np.asarray(data), schema.types, str(path))
            if index.of == indexed_rows(view):
                return index
    import tempfile

    with (
        tempfile.TemporaryFile(prefix=SCRATCH_PREFIX) as file,
        tempfile.TemporaryFile(prefix=SCRATCH_PREFIX) as spill,
    ):
        keys.build(_write, file.fileno(), spill.fileno(), key_batches(view, columns), indexed_rows(view))
        name = f"{view.snapshot.root}: the temporary index of its keys"
        return IndexFile(keys.map_file(file.fileno(), name), schema.types, name)


def _write(fd: int, data: Any, offset: int) -> None:
    """Write all of a buffer into a temporary file."""
    with memoryview(data) as whole, whole.cast("B") as view:
        done = 0
        while done < len(view):
            done += os.pwrite(fd, view[done:], offset + done)


def key_schema(view: View) -> pa.Schema:
    """Return the key columns of a store; `InvalidInputError` if it has none."""
    spec = view.spec
    if not spec.keys:
        raise InvalidInputError(
            f"{view.snapshot.root}: the store was written without keys=, so it has no keys to look up: "
            "filter the table instead"
        )
    return pa.schema([spec.schema.field(key) for key in spec.keys])


def key_batches(view: View, columns: NarrowColumns) -> Iterator[pa.RecordBatch]:
    return columns.batches([*view.spec.keys, ROW])


def indexed_rows(view: View) -> IndexedRows:
    return view.identity, keys_of(view.spec)
