"""Pruning — which parts a filter needs not read, by what is known of their rows.

Before a part is opened, its row numbers are known, and of a complete store the statistics of its columns
(`_format.statistics`); what the footer of an opened part says is asked by `may_pass`. Arrow simplifies the
filter by what they guarantee. Nothing else leaves out rows that were not read.

A guarantee is a condition that rows meet. Of the rows of a segment some may be null and some NaN in a column,
for which minimum and maximum say nothing: so each of these *cases* has a guarantee of its own, and the
segment is left out if none of them leaves rows that pass.

`KnownSegments` asks in two steps, groups of segments first: of ten thousand segments, a filter on a column by
which the rows are sorted leaves one group or two.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import and_, or_
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format.arrow import are_null, computable_type, with_types, without_dictionaries
from zarrow._format.layout import ROW
from zarrow._format.statistics import Statistics
from zarrow._read.filters import Filter

if TYPE_CHECKING:
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

__all__ = ["KnownSegments", "may_pass", "possible_places"]

_LEAST_GROUP = 64
_MAX_CASES = 16
"""Of the rows of one segment: columns beyond that are not asked about."""
_GROUPS_KEPT = 8
_MAX_GUARANTEES = 200_000
"""Of all segments together: columns beyond that are not asked about."""


class KnownSegments:
    """What is known of the rows of every segment before its part is opened.

    Parameters
    ----------
    rows : sequence of range
        Their numbers.
    schema : pyarrow.Schema
        The table's.
    statistics : Statistics or None
        Those of the segments, if there are any.

    Examples
    --------
    >>> import pyarrow.compute as pc
    >>> from zarrow._read.filters import read_filter
    >>> schema = pa.schema({"row": pa.int64()})
    >>> known = KnownSegments([range(4), range(4, 8)], schema, None)
    >>> known.among([0, 1], read_filter(pc.field("row") > 5, schema))
    [1]
    """

    def __init__(self, rows: Sequence[range], schema: pa.Schema, statistics: Statistics | None) -> None:
        self._rows = rows
        self._counts = np.array([len(here) for here in rows], np.int64)
        self._schema = without_dictionaries(schema)
        self._stated = {} if statistics is None else statistics.columns
        self._bounds: dict[str, _Bounds] = {}
        self._groups: dict[tuple[str, ...], list[tuple[range, pc.Expression]]] = {}

    def segments(self, filter: Filter) -> list[int]:
        """Return the segments that may have rows which pass, as far as groups of them show; opens no file."""
        size = max(_LEAST_GROUP, math.isqrt(len(self._rows)))
        names = self._names(filter)
        if len(self._rows) <= size or not names:
            return list(range(len(self._rows)))
        groups = self._groups.get(names)
        if groups is None:
            groups = []
            for start in range(0, len(self._rows), size):
                group = range(start, min(start + size, len(self._rows)))
                groups += ((group, case) for case in self._cases(group, names))
            if len(self._groups) >= _GROUPS_KEPT:
                self._groups.clear()
            self._groups[names] = groups
        return _left_of(groups, filter, self._schema)

    def among(self, segments: Sequence[int], filter: Filter) -> list[int]:
        """Return those of some segments that may have rows which pass; opens no file."""
        names = self._names(filter)
        if not names:
            return list(segments)
        alone = [range(number, number + 1) for number in segments]
        known = [(one, case) for one in alone for case in self._cases(one, names)]
        return _left_of(known, filter, self._schema)

    def cases(self, segment: int, filter: Filter) -> Iterator[pc.Expression]:
        """Yield what holds for the rows of a segment besides their numbers: one of these for each row."""
        names = tuple(name for name in self._names(filter) if name != ROW)
        return self._cases(range(segment, segment + 1), names)

    def without_nan(self, filter: Filter) -> KnownSegments:
        """Return what is known without columns of a filter that have NaN in any segment.

        For engines that take NaN to be greater than any number, as Arrow does not.
        """
        clear = KnownSegments(self._rows, self._schema, None)
        clear._stated = {
            name: stated
            for name, stated in self._stated.items()
            if name in filter.columns and not self._bound(name).nans.any()
        }
        return clear

    def guarantees(self, schema: pa.Schema) -> Iterator[pc.Expression]:
        """Yield what all rows of each segment meet, of columns that are read to comparable types."""
        import pyarrow.compute as pc

        most = max(_MAX_GUARANTEES // max(len(self._rows), 1), 1)
        names = [
            name
            for name in self._stated
            if self._schema.field(name).type == schema.field(name).type
            and computable_type(schema.field(name).type) == schema.field(name).type
        ][:most]
        row = pc.field(ROW)
        for number, rows in enumerate(self._rows):
            here = [(row >= rows.start) & (row < rows.stop)]
            for name in names:
                cases = self._bound(name).cases(range(number, number + 1), len(rows))
                if cases and not self._bound(name).nans[number]:
                    here.append(reduce(or_, cases))
            yield reduce(and_, here)

    def _bound(self, name: str) -> _Bounds:
        if name not in self._bounds:
            self._bounds[name] = _Bounds(name, self._stated[name], self._counts)
        return self._bounds[name]

    def _names(self, filter: Filter) -> tuple[str, ...]:
        """Return the columns of a filter of which something is known."""
        return tuple(name for name in filter.columns if name == ROW or name in self._stated)

    def _cases(self, segments: range, names: tuple[str, ...]) -> Iterator[pc.Expression]:
        """Yield what holds for the rows of consecutive segments: one of these conditions for each row."""
        import pyarrow.compute as pc

        start, stop = self._rows[segments[0]].start, self._rows[segments[-1]].stop
        if start == stop:
            return
        alternatives: list[list[pc.Expression]] = []
        count = 1
        for name in names:
            if name == ROW:
                row = pc.field(ROW)
                alternatives.append([(row >= start) & (row < stop)])
                continue
            cases = self._bound(name).cases(segments, stop - start)
            if cases and count * len(cases) <= _MAX_CASES:
                count *= len(cases)
                alternatives.append(cases)
        for chosen in itertools.product(*alternatives):
            yield reduce(and_, chosen) if chosen else pc.scalar(True)


class _Bounds:
    """The statistics of a column, segment by segment.

    Parameters
    ----------
    name : str
        The column.
    stated : pyarrow.StructArray
        What the statistics of the store say of it.
    rows : int64 array, shape (segments,)
        The rows of each segment.
    """

    def __init__(self, name: str, stated: pa.StructArray, rows: npt.NDArray[np.int64]) -> None:
        self._name = name
        self._unknown = are_null(stated)
        self._nulls, self.nans = (np.asarray(np.from_dlpack(stated.field(place))) for place in (0, 1))
        sides = range(2, stated.type.num_fields)
        self._sides = [_comparable(stated.field(place)) for place in sides]
        has_values = self._nulls + self.nans < rows
        self._unbounded = [are_null(side) & has_values for side in self._sides]

    def cases(self, segments: range, rows: int) -> list[pc.Expression]:
        """Return conditions of which each of `rows` rows meets one; none if nothing is known."""
        import pyarrow.compute as pc

        here = slice(segments.start, segments.stop)
        if self._unknown[here].any():
            return []
        column = pc.field(self._name)
        nulls, nans = int(self._nulls[here].sum()), int(self.nans[here].sum())
        cases = [column.is_null()] if nulls else []
        if nans:
            cases.append(column == pa.scalar(math.nan, self._sides[0].type))
        if nulls + nans < rows:
            bounds = []
            for which, (side, unbounded) in enumerate(zip(self._sides, self._unbounded, strict=True)):
                if not unbounded[here].any():
                    bound = _extreme(side, segments, which)
                    bounds.append(column <= bound if which else column >= bound)
            cases.append(reduce(and_, bounds) if bounds else column.is_valid())
        return cases


def _comparable(values: pa.Array) -> pa.Array:
    """Return values of a type that Arrow compares."""
    kind = computable_type(values.type)
    return values if kind == values.type else values.cast(kind)


def _extreme(values: pa.Array, segments: range, which: int) -> pa.Scalar:
    """Return the least (0) or the largest (1) of the values of segments."""
    import pyarrow.compute as pc

    if len(segments) == 1:
        return values[segments.start]
    here, kind = values.slice(segments.start, len(segments)), values.type
    if pa.types.is_duration(kind):
        here = here.view(pa.int64())
    return pc.min_max(here)["max" if which else "min"].cast(kind)


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
    import pyarrow.dataset as ds
    from pyarrow.fs import LocalFileSystem

    # The files of a dataset, whose partitions are the conditions, need not exist.
    places = ds.FileSystemDataset.from_paths(
        [str(place) for place in range(len(known))],
        schema=with_types(schema, computable_type),
        format=ds.ParquetFileFormat(),
        filesystem=LocalFileSystem(),
        partitions=list(known),
    )
    left = places.get_fragments(None if _names_nan(filter) else filter.expression)
    return [int(fragment.path) for fragment in left]


def _left_of(known: Sequence[tuple[range, pc.Expression]], filter: Filter, schema: pa.Schema) -> list[int]:
    """Return the segments of which one of the cases is possible."""
    found = possible_places([case for _, case in known], filter, schema)
    segments = dict.fromkeys(known[place][0] for place in found)
    return list(itertools.chain.from_iterable(segments))


def may_pass(part: ds.ParquetFileFragment, filter: Filter, schema: pa.Schema) -> bool:
    """Tell whether the statistics of a part leave rows that pass."""
    return _names_nan(filter) or bool(
        part.subset(filter.expression, schema=with_types(schema, computable_type)).row_groups
    )


def _names_nan(filter: Filter) -> bool:
    """Tell whether a filter may compare with NaN, by which Arrow rules out rows that pass."""
    return re.search(r"\bnan\b", str(filter.expression), re.IGNORECASE) is not None
