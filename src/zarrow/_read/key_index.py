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

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from zarrow._format import layout
from zarrow._format.key_tables import Identity, identity_of
from zarrow._format.layout import ROW
from zarrow._read import keys
from zarrow._read.columns import NarrowColumns
from zarrow._read.keys import KeyIndex
from zarrow._read.view import View
from zarrow._storage import reading
from zarrow.errors import InvalidInputError

__all__ = ["SCRATCH_PREFIX", "find_index", "identity", "key_batches", "key_schema"]

SCRATCH_PREFIX = "zarrow-keys-"


def find_index(view: View, columns: NarrowColumns) -> KeyIndex:
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
            if index.identity == identity(view):
                return index
    import tempfile

    with (
        tempfile.TemporaryFile(prefix=SCRATCH_PREFIX) as file,
        tempfile.TemporaryFile(prefix=SCRATCH_PREFIX) as spill,
    ):
        keys.build(_write, file.fileno(), spill.fileno(), key_batches(view, columns), identity(view))
        name = f"{view.snapshot.root}: the temporary index of its keys"
        return KeyIndex(keys.map_file(file.fileno(), name), schema.types, name)


def _write(fd: int, data: Any, offset: int) -> None:
    """Write all of a buffer into a file without a name."""
    with memoryview(data) as whole, whole.cast("B") as view:
        done = 0
        while done < len(view):
            done += os.pwrite(fd, view[done:], offset + done)


def key_schema(view: View) -> pa.Schema:
    """Return the key columns of a store; `InvalidInputError` if it has none."""
    spec = view.spec
    if not spec.keys:
        raise InvalidInputError(
            f"{view.snapshot.root}: the store was written without keys=, so no key names a row: filter the "
            "table instead"
        )
    return pa.schema([spec.schema.field(key) for key in spec.keys])


def key_batches(view: View, columns: NarrowColumns) -> Iterator[pa.RecordBatch]:
    return columns.batches([*view.spec.keys, ROW])


def identity(view: View) -> Identity:
    return identity_of(view.spec, view.rows, view.snapshot.manifest)
