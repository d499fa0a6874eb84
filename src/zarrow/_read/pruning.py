"""Pruning — which parts a filter needs not read, by what is known of their rows.

Two things are known: the row numbers of each part, before it is opened (`KnownRows`), and the statistics in
a part's footer (`may_pass`). Arrow simplifies the filter by what they guarantee. Nothing else leaves out
rows that were not read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from zarrow._format.arrow import computable_type, with_types
from zarrow._format.layout import ROW
from zarrow._read.filters import Filter

if TYPE_CHECKING:
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

__all__ = ["KnownRows", "may_pass", "possible_places"]


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

        row = ds.field(ROW)
        self._places = _places([(row >= here.start) & (row < here.stop) for here in rows], schema)

    def segments(self, filter: Filter) -> list[int]:
        """Return the segments that may have rows which pass; opens no file."""
        return _left(self._places, filter)


def possible_places(known: Sequence[pc.Expression], filter: Filter, schema: pa.Schema) -> list[int]:
    """Return the places of those conditions that rows can meet which pass a filter, too.

    Parameters
    ----------
    known : list of pyarrow.compute.Expression
        What holds for all rows of each place.
    filter : Filter
        The filter.
    schema : pyarrow.Schema
        The columns of both.

    Returns
    -------
    list of int
        Ascending.

    Examples
    --------
    >>> import pyarrow.compute as pc
    >>> from zarrow._read.filters import read_filter
    >>> schema = pa.schema({"model": pa.string()})
    >>> known = [pc.field("model") == "a", pc.field("model") == "b"]
    >>> possible_places(known, read_filter(pc.field("model") == "b", schema), schema)
    [1]
    """
    return _left(_places(known, schema), filter)


def _places(known: Sequence[pc.Expression], schema: pa.Schema) -> ds.FileSystemDataset:
    """Return a dataset whose partitions are the conditions; its files need not exist."""
    import pyarrow.dataset as ds
    from pyarrow.fs import LocalFileSystem

    return ds.FileSystemDataset.from_paths(
        [str(place) for place in range(len(known))],
        schema=with_types(schema, computable_type),
        format=ds.ParquetFileFormat(),
        filesystem=LocalFileSystem(),
        partitions=list(known),
    )


def _left(places: ds.FileSystemDataset, filter: Filter) -> list[int]:
    left = places.get_fragments(None if _names_nan(filter) else filter.expression)
    return [int(fragment.path) for fragment in left]


def may_pass(part: ds.ParquetFileFragment, filter: Filter, schema: pa.Schema) -> bool:
    """Tell whether the statistics of a part leave rows that pass."""
    return _names_nan(filter) or bool(
        part.subset(filter.expression, schema=with_types(schema, computable_type)).row_groups
    )


def _names_nan(filter: Filter) -> bool:
    """Tell whether a filter may compare with NaN, by which Arrow rules out rows that pass."""
    return re.search(r"\bnan\b", str(filter.expression), re.IGNORECASE) is not None
