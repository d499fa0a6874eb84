"""Pruning — which parts a filter needs not read, by what is known of their rows.

Two things are known: the row numbers of each part, before it is opened (`KnownRows`), and the statistics in
a part's footer (`may_pass`). Arrow simplifies the filter by what they guarantee. Nothing else leaves out
rows that were not read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

import pyarrow as pa

from zarrow._format import layout
from zarrow._format.arrow import computable_type, with_types
from zarrow._format.layout import ROW
from zarrow._read.filters import Filter

if TYPE_CHECKING:
    import pyarrow.dataset as ds

__all__ = ["KnownRows", "may_pass"]


class KnownRows:
    """The row numbers of every part: the partitions of a Parquet dataset, in Arrow's words.

    Parameters
    ----------
    rows : sequence of range
        Those of each segment.
    schema : pyarrow.Schema
        The table's.
    """

    def __init__(self, rows: Sequence[range], schema: pa.Schema) -> None:
        import pyarrow.dataset as ds
        from pyarrow.fs import LocalFileSystem

        row = ds.field(ROW)
        self._dataset = ds.FileSystemDataset.from_paths(
            [layout.part_path(segment) for segment in range(len(rows))],
            schema=with_types(schema, computable_type),
            format=ds.ParquetFileFormat(),
            filesystem=LocalFileSystem(),
            partitions=[(row >= here.start) & (row < here.stop) for here in rows],
        )

    def segments(self, filter: Filter) -> list[int]:
        """Return the segments that may have rows which pass; opens no file."""
        left = self._dataset.get_fragments(None if _names_nan(filter) else filter.expression)
        return [int(PurePath(fragment.path).stem.rpartition("-")[2]) for fragment in left]


def may_pass(part: ds.ParquetFileFragment, filter: Filter, schema: pa.Schema) -> bool:
    """Tell whether the statistics of a part leave rows that pass."""
    return _names_nan(filter) or bool(
        part.subset(filter.expression, schema=with_types(schema, computable_type)).row_groups
    )


def _names_nan(filter: Filter) -> bool:
    """Tell whether a filter may compare with NaN, by which Arrow rules out rows that pass."""
    return re.search(r"\bnan\b", str(filter.expression), re.IGNORECASE) is not None
