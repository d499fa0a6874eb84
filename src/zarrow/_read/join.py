"""Join — columns and vectors of the same rows.

1. The table yields the chosen rows, a batch at a time.
2. The vectors of these rows are read, and no others: the mapped files themselves where the rows are
   consecutive, gathered where they are not.

Reads only; holds a few batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format import layout
from zarrow._format.array_spec import rows_of
from zarrow._format.given import as_columns
from zarrow._format.layout import ROW
from zarrow._read.arrays import StoreArray
from zarrow._read.columns import NarrowColumns
from zarrow._read.filters import Filter
from zarrow._read.indexing import Check
from zarrow._read.ragged_rows import StoreRagged
from zarrow._read.stacked import StackedColumns, UnionArray, UnionRagged
from zarrow.errors import unknown_name

__all__ = ["Join", "Joined", "Vectors", "batch_rows", "rows_found"]

AnyArray = StoreArray | StoreRagged | UnionArray | UnionRagged
Vectors = dict[str, Any]
Joined = tuple[pa.RecordBatch, Vectors]

_BATCH_BYTES = 32 * layout.MEBIBYTE
_MAX_BATCH_ROWS = 65_536


def batch_rows(arrays: Sequence[AnyArray]) -> int:
    """Return the rows of a batch by default: those of 32 MiB of vectors, at most 65,536.

    A power of two, so that batches end where segments do: the vectors of ragged rows in two of them would be
    copied.
    """
    row_bytes = sum(array.nbytes // max(len(array), 1) for array in arrays)
    return 1 << (min(rows_of(_BATCH_BYTES, row_bytes), _MAX_BATCH_ROWS).bit_length() - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """What to read of each row, and how many rows at a time.

    Parameters
    ----------
    columns : NarrowColumns or StackedColumns
        The narrow columns.
    names : list of str
        Which of them.
    arrays : list of StoreArray, StoreRagged, UnionArray or UnionRagged
        The arrays.
    size : int
        Rows of every batch but the last.
    check : {"crc"} or None
        Whether to compare the vectors with their checksums.
    """

    columns: NarrowColumns | StackedColumns
    names: list[str]
    arrays: Sequence[AnyArray]
    size: int
    check: Check

    def filtered(self, filter: Filter | None) -> Iterator[Joined]:
        """Yield the rows that pass a filter, in row order."""
        with_row = self.names if ROW in self.names else [*self.names, ROW]
        for batch in self.columns.batches(with_row, filter, self.size):
            rows = np.from_dlpack(batch[ROW])  # to_numpy would import pandas
            first, stop = int(rows[0]), int(rows[-1]) + 1
            together = stop - first == len(rows)
            vectors = {}
            for array in self.arrays:
                if together:
                    vectors[array.name] = array.read(first, stop, check=self.check)
                    array.prefetch(stop, stop + self.size)
                else:
                    vectors[array.name] = array.take(rows, check=self.check)
            yield batch if with_row is self.names else batch.select(self.names), vectors

    def ordered(self, filter: Filter | None) -> Iterator[Joined]:
        """Yield the rows that pass a filter, by sample index."""
        yield from self.of_rows(self.columns.in_sample_order(filter))

    def of_rows(self, rows: npt.NDArray[np.int64]) -> Iterator[Joined]:
        """Yield these rows, in the order given."""
        for start in range(0, len(rows), self.size):
            here = rows[start : start + self.size]
            table = self.columns.take(here, self.names).combine_chunks()
            vectors = {array.name: array.take(here, check=self.check) for array in self.arrays}
            yield table.to_batches()[0], vectors


def rows_found(found: Any) -> Any:
    """Return the row numbers that a query found: the column ``row`` of a table, or the argument itself."""
    if not isinstance(found, Mapping) and not hasattr(found, "columns") and not hasattr(found, "schema"):
        return found
    columns, _ = as_columns(found, None)
    if ROW not in columns:
        raise unknown_name("column", ROW, list(columns))
    return columns[ROW]
