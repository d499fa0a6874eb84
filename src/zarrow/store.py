"""How do rows get out? First cut, replaced step by step: `open`, `num_rows`, `table`, ``store[name]``.

Place: tier 4. Must not import `writer` or `verify`. Never writes, never locks.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from zarrow import _catalog, _shards, layout
from zarrow._codecs import ChunkCodec
from zarrow.errors import IncompleteStoreError, UnknownNameError

__all__ = ["Store", "open"]


class Store:
    """A snapshot of a store."""

    def __init__(self, path: str | os.PathLike[str], *, partial: bool = False) -> None:
        self.path = Path(os.path.abspath(path))
        self.partial = partial
        self._snapshot = _catalog.read_snapshot(self.path)
        if not partial and not self._snapshot.complete:
            raise IncompleteStoreError(f"{self.path}: the store was never finalized")

    @property
    def num_rows(self) -> int:
        """Rows."""
        return self._snapshot.rows

    @property
    def complete(self) -> bool:
        """Whether the store was finalized."""
        return self._snapshot.complete

    @property
    def schema(self) -> pa.Schema:
        """The table's columns."""
        return self._snapshot.spec.table_schema

    def table(self, columns: list[str] | None = None, filter: Any = None) -> pa.Table:
        """Return the narrow columns."""
        paths = [str(self.path / layout.part_path(number)) for number in range(self._snapshot.segments)]
        if not paths:
            return self.schema.empty_table()
        tables = [pq.read_table(path, columns=columns, filters=filter) for path in paths]
        return pa.concat_tables(tables)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        spec = self._snapshot.spec
        if name not in [array.name for array in spec.arrays]:
            raise UnknownNameError(f"no array {name!r}")
        array = spec.array(name)
        blocks = [
            block
            for number in range(self._snapshot.segments)
            for block in _shards.committed_rows(
                self.path, array, spec.segment_rows, self._snapshot.record(number), ChunkCodec(array)
            )
        ]
        return np.concatenate(blocks) if blocks else np.empty((0, *array.row_shape), array.numpy_dtype)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def open(path: str | os.PathLike[str], *, partial: bool = False) -> Store:
    """Open a store for reading."""
    return Store(path, partial=partial)
