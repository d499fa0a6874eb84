"""embedding-atlas — the columns, and the coordinates of a stored map, in one Parquet file.

The coordinates are ``projection_x`` and ``projection_y``, which is what embedding-atlas looks for. It draws
and never computes, so vectors are left out, and the file is small enough for a browser. Rows that are not on
the map have null coordinates, and embedding-atlas does not show them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from zarrow.errors import InvalidInputError
from zarrow.store import StoreArray
from zarrow.transfer._parquet import write_parquet
from zarrow.transfer._rows import Outgoing

__all__ = ["write"]

COORDINATES = ("projection_x", "projection_y")


def write(rows: Outgoing, scratch: Path, target: Path) -> None:
    """Write one file."""
    del target
    shown = choose_map(rows)
    if clash := sorted(set(rows.schema.names) & set(COORDINATES)):
        raise InvalidInputError(
            f"{clash} are both columns of the store and coordinates of the map: leave them out"
        )
    schema = pa.schema([*rows.schema, *(pa.field(name, pa.float32()) for name in COORDINATES)])

    def batches() -> Iterator[pa.RecordBatch]:
        start = 0
        for batch in rows.store.scan(rows.schema.names, batch_size=rows.batch_rows()):
            stop = start + batch.num_rows
            xy = shown.read(start, stop).astype(np.float32, copy=False)
            known = np.isfinite(xy).all(axis=1)
            coordinates = [pa.array(np.ascontiguousarray(xy[:, axis]), mask=~known) for axis in (0, 1)]
            yield pa.RecordBatch.from_arrays([*batch.columns, *coordinates], schema=schema)
            start = stop
            if rows.progress is not None:
                rows.progress(stop, rows.rows)

    write_parquet(scratch, schema, batches(), rows.schema.names)


def choose_map(rows: Outgoing) -> StoreArray:
    """Return the map: the one among the chosen arrays, or else the only stored one."""
    store = rows.store
    flat = {
        name: array
        for name, array in store.derived.items()
        if isinstance(array, StoreArray) and array.row_shape == (2,)
    }
    asked = [array for array in rows.fixed if array.row_shape == (2,)]
    found = asked or list(flat.values())
    if len(found) != 1:
        raise InvalidInputError(
            "embedding-atlas shows one map, an array of two values per row: "
            f"got {', '.join(flat) or 'none'}; choose one with arrays=, or run 'zarrow map {store.path}'"
        )
    return found[0]
