"""Narrow columns — the table of a view: filtered, scanned, or row by row, without reading all of it.

The parts are read a few segments at a time:

1. what the filter rules out by row numbers or statistics is skipped, most of it unopened (`pruning`);
2. the columns that the filter needs are decoded, and it is applied; ``row`` follows from the part's place;
3. where a row passes, the other columns are decoded, and their values taken.

A few threads do this ahead of the reader, for `_AHEAD_ROWS` rows at most or one segment. (Arrow's own
scanner reads the whole table into memory for a slow reader, and leaves out rows with NaN where statistics
do.) Live rows (see `view`) come after the parts, from a table in memory.

The decoded columns of single parts are kept, the last used ones: those that rows were taken from, and those
that filters need, if these fit for all parts.

A damaged part is an error that names its segment (`part_files`); its neighbours stay readable.

Reads only. What pyarrow has besides its core (a third of the time of ``import zarrow``) is loaded when it
is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format.arrow import numbers_as_arrow, rebatched
from zarrow._format.layout import ROW, SAMPLE_INDEX
from zarrow._format.parts import to_table
from zarrow._read.filters import Filter
from zarrow._read.part_files import PartFiles, committed_table
from zarrow._read.pruning import KnownSegments
from zarrow._read.remote_parts import RemoteParts
from zarrow._read.segment_statistics import read_statistics
from zarrow._read.view import View
from zarrow._storage import threads
from zarrow._storage.cache import Cache
from zarrow.errors import InvalidInputError, unknown_column

if TYPE_CHECKING:
    import pyarrow.compute as pc

__all__ = ["NarrowColumns", "by_sample"]

CACHE_BYTES = 64 << 20
_KEPT_BYTES = 16 << 20
"""Of the columns that a filter needs: more than that is decoded again for every filter."""
_MAX_BATCH_ROWS = 131_072
_PIECE_ROWS = 131_072
_AHEAD_ROWS = 4 * _PIECE_ROWS


class NarrowColumns:
    """The narrow columns of a view.

    Parameters
    ----------
    view : View
        The rows.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self.schema: pa.Schema = view.spec.table_schema
        self._decoded: Cache[pa.ChunkedArray] = Cache(CACHE_BYTES)
        self._part_files = PartFiles(view)

    @cached_property
    def _known(self) -> KnownSegments:
        statistics = read_statistics(self._view)
        if statistics is not None:
            self._part_files.footers = statistics.footers
        return KnownSegments(self._view.segment_ranges(), self.schema, statistics)

    def names(self, columns: Sequence[str] | None) -> list[str]:
        """Return the chosen columns, checked; None means all."""
        if columns is None:
            return list(self.schema.names)
        if isinstance(columns, str) or not all(isinstance(name, str) for name in columns):
            raise InvalidInputError(f"columns must be a list of names, got {columns!r}")
        for name in columns:
            if name not in self.schema.names:
                arrays = [array.name for array in self._view.spec.arrays]
                raise unknown_column(name, self.schema.names, arrays)
        return list(columns)

    def _empty(self, names: Sequence[str]) -> pa.Table:
        return pa.Table.from_batches([], self.schema).select(names)  # Schema.empty_table imports pandas

    # Scans

    def table(self, names: Sequence[str], filter: Filter | None) -> pa.Table:
        """Return the rows that pass a filter."""
        tables = self._tables(names or [ROW], filter)  # a table without columns forgets how many rows it has
        joined = pa.concat_tables([self._empty(names or [ROW]), *tables])
        return joined.unify_dictionaries().select(names)

    def batches(
        self, names: Sequence[str], filter: Filter | None = None, batch_rows: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows that pass a filter, in batches of `batch_rows` rows, the last one shorter.

        Without `batch_rows` batches have whatever size takes no copy, up to 131,072 rows.
        """
        most = min(batch_rows or _MAX_BATCH_ROWS, _MAX_BATCH_ROWS)
        found = (
            batch if names else batch.select([])
            for table in self._tables(names or [ROW], filter)
            for batch in table.to_batches(most)
            if batch.num_rows  # a chunk may be empty
        )
        return found if batch_rows is None else rebatched(found, batch_rows)

    def _tables(self, names: Sequence[str], filter: Filter | None) -> Iterator[pa.Table]:
        """Yield the rows that pass a filter, a few segments at a time."""
        segments: Sequence[int] = range(self._view.snapshot.segments)
        if filter is not None:
            segments = self._known.segments(filter)
        for table in self._of(segments, partial(self._passing, names, filter)):
            if table.num_rows:
                yield table
        if self._view.rows > self._view.snapshot.rows:
            yield (self.live if filter is None else filter.select(self.live)).select(names)

    def _of(self, segments: Sequence[int], read: Callable[[Sequence[int]], pa.Table]) -> Iterator[pa.Table]:
        """Yield what is read of segments, a few at a time and ahead."""
        most = max(_PIECE_ROWS // self._view.spec.segment_rows, 1)
        pieces = [segments[start : start + most] for start in range(0, len(segments), most)]
        ahead = max(_AHEAD_ROWS // max(self._view.spec.segment_rows, _PIECE_ROWS), 1)
        return threads.in_order(read, pieces, ahead)

    def _passing(self, names: Sequence[str], filter: Filter | None, segments: Sequence[int]) -> pa.Table:
        """Return the rows of segments that pass."""
        if filter is None:
            return pa.concat_tables([self.segment(number, names, keep=False) for number in segments])
        segments = self._known.among(segments, filter)
        first = filter.columns if ROW in filter.columns else [*filter.columns, ROW]
        keep = self._view.rows * 8 * len(filter.columns) <= _KEPT_BYTES
        decoded = [self._segment(number, first, keep=keep, filter=filter) for number in segments]
        tables = [table for table in decoded if table is not None]
        if not tables:
            return self._empty(names)
        found = filter.select(pa.concat_tables(tables).unify_dictionaries())
        more = [name for name in names if name not in first]
        if more:
            rows = np.asarray(np.from_dlpack(found[ROW].combine_chunks()), np.int64)
            rest = self.take(rows, more, keep=False)
            for name in more:
                found = found.append_column(rest.schema.field(name), rest[name])
        return found.select(names)

    def cases(self, segment: int, filter: Filter) -> Iterator[pc.Expression]:
        """Yield what statistics say of the rows of a segment: one of these conditions holds for each."""
        import pyarrow.compute as pc

        if segment < self._view.snapshot.segments:
            yield from self._known.cases(segment, filter)
        else:  # live rows
            yield pc.scalar(True)

    # Rows that are in no full part

    @cached_property
    def live(self) -> pa.Table:
        """The live rows, with provisional row numbers."""
        view, spec = self._view, self._view.spec
        tables = [self._empty(self.schema.names)]
        ranges = view.live_ranges()
        for record, rows in zip(view.behind_gap, ranges, strict=False):
            part = committed_table(view.snapshot.root, spec, record)
            tables.append(to_table(spec, part.to_batches(), rows.start))
        for piece, rows in zip(view.open_pieces, ranges[len(view.behind_gap) :], strict=True):
            tables.append(to_table(spec, piece.batches(spec), rows.start))
        return pa.concat_tables(tables).unify_dictionaries()

    def full_parts(self) -> tuple[list[str] | RemoteParts, pa.Table]:
        """Return the parts of full segments, which never change, and the rows that are in none of them.

        On a disk, the paths of their files; in a bucket those of all segments, read through the store.

        Raises
        ------
        CorruptionError
            If one of them is missing, cut short or no file.
        """
        view = self._view
        if not isinstance(view.snapshot.root, Path):
            return RemoteParts(view, self._known, self._batches_of), self.live
        numbers = range(view.snapshot.segments)
        paths = [self._part_files.whole_path(number) for number in numbers if not view.is_short_last(number)]
        rest = [self.live]
        if len(paths) < len(numbers):
            rest.insert(0, self.segment(numbers[-1], self.schema.names))
        return paths, pa.concat_tables(rest).unify_dictionaries()

    def _batches_of(self, names: Sequence[str], segments: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """Yield columns of segments, a few of these at a time."""
        for table in self._of(segments, partial(self._passing, names, None)):
            yield from table.to_batches(_MAX_BATCH_ROWS)

    # Single rows

    def segment(self, number: int, names: Sequence[str], *, keep: bool = True) -> pa.Table:
        """Return columns of one part, decoded, and keep them for the next time if that is wanted.

        Raises
        ------
        CorruptionError
            If the part is damaged.
        """
        table = self._segment(number, names, keep=keep, filter=None)
        assert table is not None
        return table

    def _segment(
        self, number: int, names: Sequence[str], *, keep: bool, filter: Filter | None
    ) -> pa.Table | None:
        """Return columns of one part, or None if they are not decoded and no row can pass a filter."""
        found: dict[str, pa.ChunkedArray] = {}
        for name in names:
            column = self._numbers(number) if name == ROW else self._decoded.get((number, name))
            if column is not None:
                found[name] = column
        missing = [name for name in names if name not in found]
        if missing:
            table = self._part_files.decode(number, missing, filter)
            if table is None:
                return None
            for name in missing:
                found[name] = table[name]
                if keep:
                    self._decoded.put((number, name), table[name], table[name].nbytes)
        fields = pa.schema([self.schema.field(name) for name in names])
        columns = [found[name] for name in names]
        for place, field in enumerate(fields):
            if columns[place].type != field.type:
                columns[place] = columns[place].cast(field.type)
        return pa.Table.from_arrays(columns, schema=fields)

    def _numbers(self, segment: int) -> pa.ChunkedArray:
        """Return what a part has as the numbers of its rows: they follow from its place."""
        start = segment * self._view.spec.segment_rows
        return pa.chunked_array(
            [numbers_as_arrow(np.arange(start, start + self._view.snapshot.segment_rows(segment)))]
        )

    def take(self, rows: npt.NDArray[np.int64], names: Sequence[str], *, keep: bool = True) -> pa.Table:
        """Return these rows, which are in range, in the order given."""
        if not len(rows):
            return self._empty(names)
        full, committed = self._view.spec.segment_rows, self._view.snapshot.rows
        segments = np.where(rows < committed, rows // full, self._view.snapshot.segments)
        ordered = bool(np.all(segments[1:] >= segments[:-1]))
        order = None if ordered else np.argsort(segments, kind="stable")
        sorted_rows = rows if order is None else rows[order]
        sorted_segments = segments if order is None else segments[order]
        numbers, starts = np.unique(sorted_segments, return_index=True)
        stops = np.append(starts[1:], len(rows))
        tables = []
        for number, start, stop in zip(numbers.tolist(), starts.tolist(), stops.tolist(), strict=True):
            if number == self._view.snapshot.segments:
                table, first = self.live.select(names), committed
            else:
                table, first = self.segment(number, names, keep=keep), number * full
            places = sorted_rows[start:stop] - first
            if not np.array_equal(places, np.arange(table.num_rows)):
                table = table.take(numbers_as_arrow(places))
            tables.append(table)
        joined = pa.concat_tables(tables).unify_dictionaries()
        if order is not None:
            joined = joined.combine_chunks().take(numbers_as_arrow(np.argsort(order, kind="stable")))
        return joined

    def in_sample_order(self, filter: Filter | None) -> npt.NDArray[np.int64]:
        """Return the rows that pass a filter, ordered by sample index, then row.

        Raises
        ------
        InvalidInputError
            If rows have none.
        """
        return by_sample(self.batches([ROW, SAMPLE_INDEX], filter))


def by_sample(batches: Iterable[pa.RecordBatch]) -> npt.NDArray[np.int64]:
    """Return the rows of batches by sample index, then row; `InvalidInputError` if some have none."""
    rows, samples = [], []
    for batch in batches:
        if batch[SAMPLE_INDEX].null_count:
            raise InvalidInputError(
                "sample order needs all rows to have been appended with sample_index=, and some were "
                "not: read them in row order"
            )
        rows.append(batch[ROW].to_numpy())
        samples.append(batch[SAMPLE_INDEX].to_numpy())
    if not rows:
        return np.empty(0, np.int64)
    order = np.argsort(np.concatenate(samples), kind="stable")
    return np.concatenate(rows)[order]
