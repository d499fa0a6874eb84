"""How do rows come onto the map of embedding-atlas?

One Parquet file with the columns, and ``projection_x`` and ``projection_y``, which are what it looks for: a
map that was stored beside the rows. It draws and never computes, so the vectors stay behind and the file is
small enough for a browser. Rows without a place have nulls there, which it leaves out.

Place: tier 5, used by `zarrow.transfer`.
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

PLACES = ("projection_x", "projection_y")


def write(rows: Outgoing, scratch: Path, target: Path) -> None:
    """Write one file."""
    del target
    shown = choose_map(rows)
    if clash := sorted(set(rows.schema.names) & set(PLACES)):
        raise InvalidInputError(f"{clash} are columns of the store, and those of the map: leave them out")
    schema = pa.schema([*rows.schema, *(pa.field(name, pa.float32()) for name in PLACES)])

    def batches() -> Iterator[pa.RecordBatch]:
        start = 0
        for batch in rows.store.scan(rows.schema.names, batch_size=rows.batch_rows()):
            stop = start + batch.num_rows
            xy = shown.read(start, stop).astype(np.float32, copy=False)
            known = np.isfinite(xy).all(axis=1)
            places = [pa.array(np.ascontiguousarray(xy[:, axis]), mask=~known) for axis in (0, 1)]
            yield pa.RecordBatch.from_arrays([*batch.columns, *places], schema=schema)
            start = stop
            if rows.progress is not None:
                rows.progress(stop, rows.rows)

    write_parquet(scratch, schema, batches(), rows.schema.names)


def choose_map(rows: Outgoing) -> StoreArray:
    """Return the map: the one that was asked for, or the only one there is."""
    store = rows.store
    flat = {name: array for name, array in store.derived.items() if array.row_shape == (2,)}
    asked = [array for array in rows.arrays if array.row_shape == (2,)]
    found = asked or list(flat.values())
    if len(found) != 1:
        there = ", ".join(flat) or "none"
        raise InvalidInputError(
            "embedding-atlas shows one map, an array of two values per row: name it with arrays=; stored "
            f"are {there}; zarrow map {store.path} makes one"
        )
    return found[0]
