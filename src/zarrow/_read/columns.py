"""How is the table read without reading all of it?

The parts are a Parquet dataset, and `pyarrow.dataset` says which of them can hold rows that pass a filter:
by the rows that they are, and by Parquet's statistics. Of those, a part at a time (`_passing`),

1. the columns that the filter asks are decoded, and it is applied; ``row`` follows from the place;
2. where a row passes, the other columns that are wanted are decoded, and its values are taken.

A few threads do that ahead of whoever reads, for `_AHEAD_ROWS` rows at most or one segment: Arrow's own
scanner would hold up to a GiB for a slow reader. Live rows (see `view`) stand behind the parts as a table
in memory.

Decoded columns of single parts are kept, the last used of them: those that single rows were taken from, and
those that filters ask, if all parts' of them fit.

A damaged part is an error that names its segment (`part_files`); its neighbours stay readable.

Place: tier 3, used by `store`. Loads what pyarrow has beside its core (a third of the time that ``import
zarrow`` took) when it is first needed.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format.arrow import numbers_as_arrow
from zarrow._format.layout import ROW, SAMPLE_INDEX
from zarrow._format.parts import to_table
from zarrow._read.filters import asked_columns
from zarrow._read.part_files import PartFiles
from zarrow._read.view import View
from zarrow._storage.cache import Cache
from zarrow.errors import InvalidInputError, unknown_name

if TYPE_CHECKING:
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

__all__ = ["Columns"]

CACHE_BYTES = 64 << 20
_KEPT_BYTES = 16 << 20
"""Of the columns that a filter asks: more than that is decoded anew for every filter."""
_MAX_BATCH_ROWS = 131_072
_PIECE_ROWS = 131_072
_AHEAD_ROWS = 4 * _PIECE_ROWS


class Columns:
    """The narrow columns of a view.

    Parameters
    ----------
    view : View
        The rows.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self.schema: pa.Schema = view.spec.table_schema
        self._dataset: ds.Dataset | None = None
        self._live: pa.Table | None = None
        self._decoded: Cache[pa.ChunkedArray] = Cache(CACHE_BYTES)
        self._part_files = PartFiles(view)

    def names(self, columns: Sequence[str] | None) -> list[str]:
        """Return the columns that are meant, checked; None means all."""
        if columns is None:
            return list(self.schema.names)
        if isinstance(columns, str) or not all(isinstance(name, str) for name in columns):
            raise InvalidInputError(f"columns must be a list of names, got {columns!r}")
        for name in columns:
            if name not in self.schema.names:
                raise unknown_name("column", name, self.schema.names)
        return list(columns)

    def _empty(self, names: Sequence[str]) -> pa.Table:
        return pa.Table.from_batches([], self.schema).select(names)  # Schema.empty_table imports pandas

    # Scans

    def table(self, columns: Sequence[str] | None, filter: pc.Expression | None) -> pa.Table:
        """Return the rows that pass a filter."""
        names = self.names(columns)
        tables = [
            self._empty(names or [ROW]),
            *self._tables(names or [ROW], filter),  # a table without columns forgets how many rows it has
        ]
        return pa.concat_tables(tables).unify_dictionaries().select(names)

    def batches(
        self, columns: Sequence[str] | None, filter: pc.Expression | None, batch_rows: int = _MAX_BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows that pass a filter, in batches of no particular size, up to `batch_rows`."""
        names = self.names(columns)
        tables = self._tables(names or [ROW], filter)  # what is wrong with it is told now
        most = min(batch_rows, _MAX_BATCH_ROWS)
        return (
            batch if names else batch.select([])
            for table in tables
            for batch in table.to_batches(most)
            if batch.num_rows  # a chunk may be empty
        )

    def _tables(self, names: list[str], filter: pc.Expression | None) -> Iterator[pa.Table]:
        """Return the rows that pass a filter, a few segments at a time."""
        asked = [] if filter is None else asked_columns(filter, self.schema)
        return self._run(names, filter, asked)

    def _run(self, names: list[str], filter: pc.Expression | None, asked: list[str]) -> Iterator[pa.Table]:
        keep = self._view.rows * 8 * len(asked) <= _KEPT_BYTES
        most = _AHEAD_ROWS // max(self._view.spec.segment_rows, _PIECE_ROWS)
        threads = max(min(os.cpu_count() or 1, most), 1)
        waiting: deque[Future[pa.Table]] = deque()
        pool = ThreadPoolExecutor(threads, thread_name_prefix="zarrow-scan")
        try:
            for piece in self._pieces(self._candidates(filter, asked)):
                if len(waiting) == threads and (table := waiting.popleft().result()).num_rows:
                    yield table
                if filter is not None and self._are_decoded(piece, {*asked, *names}):
                    waiting.append(Future())
                    waiting[-1].set_result(self._passing(piece, names, filter, asked, keep=keep))
                else:
                    waiting.append(pool.submit(self._passing, piece, names, filter, asked, keep=keep))
            while waiting:
                if (table := waiting.popleft().result()).num_rows:
                    yield table
        finally:
            pool.shutdown(cancel_futures=True)
        if self._view.rows > self._view.snapshot.rows:
            live = self.live() if filter is None else self.live().filter(filter)
            if live.num_rows:
                yield live.select(names)

    def _pieces(self, segments: Iterable[int]) -> Iterator[list[int]]:
        """Yield segments together that are worked on together."""
        most = max(_PIECE_ROWS // self._view.spec.segment_rows, 1)
        rest = iter(segments)
        while piece := list(itertools.islice(rest, most)):
            yield piece

    def _candidates(self, filter: pc.Expression | None, asked: list[str]) -> Iterable[int]:
        """Return the segments that have rows which pass, as far as the numbers of their rows tell."""
        numbers = range(self._view.snapshot.segments)
        if filter is None or ROW not in asked:
            return numbers
        if self._dataset is None:
            import pyarrow.dataset as ds
            from pyarrow.fs import LocalFileSystem

            row = ds.field(ROW)
            self._dataset = ds.FileSystemDataset.from_paths(  # nothing of it is ever opened
                [str(number) for number in numbers],
                schema=self.schema,
                format=ds.ParquetFileFormat(),
                filesystem=LocalFileSystem(),
                partitions=[
                    (row >= rows.start) & (row < max(rows.stop, rows.start + 1))
                    for rows in self._view.segment_ranges()
                ],
            )
        return (int(fragment.path) for fragment in self._dataset.get_fragments(filter))

    def _passing(
        self,
        segments: list[int],
        names: list[str],
        filter: pc.Expression | None,
        asked: list[str],
        *,
        keep: bool,
    ) -> pa.Table:
        """Return the rows of segments that pass."""
        if filter is None:
            return pa.concat_tables([self.segment(number, names, keep=False) for number in segments])
        first = asked or [ROW]  # a table without columns forgets how many rows it has
        decoded = {number: self._segment(number, first, keep=keep, filter=filter) for number in segments}
        tables = {number: table for number, table in decoded.items() if table is not None}
        if not tables:
            return self._empty(names)
        table = pa.concat_tables(tables.values()).unify_dictionaries()
        passes = _passes(table, filter)
        index, place = np.divmod(np.flatnonzero(passes), self._view.spec.segment_rows)
        rows = np.array([*tables])[index] * self._view.spec.segment_rows + place
        found = table.filter(pa.array(passes))
        if ROW not in first:
            found = found.append_column(self.schema.field(ROW), numbers_as_arrow(rows))
        more = [name for name in names if name not in found.column_names]
        if more:
            rest = self.take(rows, more, keep=False)
            for name in more:
                found = found.append_column(rest.schema.field(name), rest[name])
        return found.select(names)

    def _are_decoded(self, segments: list[int], names: Iterable[str]) -> bool:
        return all(
            name == ROW or self._decoded.get((number, name)) is not None
            for number in segments
            for name in names
        )

    def exact_batches(
        self, columns: Sequence[str] | None, filter: pc.Expression | None, batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows that pass a filter, in batches of `batch_rows` rows, the last one shorter."""
        pending: list[pa.RecordBatch] = []
        have = 0
        for batch in self.batches(columns, filter, batch_rows):
            start = 0
            while have + batch.num_rows - start >= batch_rows:
                stop = start + batch_rows - have
                yield _joined([*pending, batch.slice(start, stop - start)])
                pending, have, start = [], 0, stop
            if start < batch.num_rows:
                pending.append(batch.slice(start))
                have += batch.num_rows - start
        if pending:
            yield _joined(pending)

    # Rows that are not in the dataset's files

    def live(self) -> pa.Table:
        """Return the live rows, with provisional row numbers."""
        if self._live is None:
            import pyarrow.parquet as pq

            view, spec = self._view, self._view.spec
            tables = [self._empty(self.schema.names)]
            ranges = view.live_ranges()
            for record, rows in zip(view.behind_gap, ranges, strict=False):
                part = pq.read_table(
                    self._part_files.path(record.segment), schema=self.schema, page_checksum_verification=True
                )
                numbers = numbers_as_arrow(np.arange(rows.start, rows.stop))
                place = self.schema.get_field_index(ROW)
                tables.append(part.set_column(place, self.schema.field(ROW), numbers))
            for piece, rows in zip(view.open_pieces, ranges[len(view.behind_gap) :], strict=True):
                tables.append(to_table(spec, piece.batches(spec), rows.start))
            self._live = pa.concat_tables(tables).unify_dictionaries()
        return self._live

    def full_parts(self) -> tuple[list[str], pa.Table]:
        """Return the files of full segments, which never change, and the rows that are in none of them.

        Raises
        ------
        CorruptionError
            If one of them is missing, cut short or no file.
        """
        view = self._view
        numbers = range(view.snapshot.segments)
        paths = [self._part_files.whole_path(number) for number in numbers if not view.is_short_last(number)]
        rest = [self.live()]
        if len(paths) < len(numbers):
            rest.insert(0, self.segment(numbers[-1], self.schema.names))
        return paths, pa.concat_tables(rest).unify_dictionaries()

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
        self, number: int, names: Sequence[str], *, keep: bool, filter: pc.Expression | None
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
                table, first = self.live().select(names), committed
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

    def in_sample_order(self, filter: pc.Expression | None) -> npt.NDArray[np.int64]:
        """Return the rows that pass a filter, ordered by sample index, then row.

        Raises
        ------
        InvalidInputError
            If rows have none.
        """
        rows, samples = [], []
        for batch in self.batches([ROW, SAMPLE_INDEX], filter):
            if batch[SAMPLE_INDEX].null_count:
                raise InvalidInputError(
                    "rows can be put in sample order only if all were appended with sample_index=, and some "
                    "were not: leave order away"
                )
            rows.append(batch[ROW].to_numpy())
            samples.append(batch[SAMPLE_INDEX].to_numpy())
        if not rows:
            return np.empty(0, np.int64)
        order = np.argsort(np.concatenate(samples), kind="stable")
        return np.concatenate(rows)[order]


def _passes(table: pa.Table, filter: pc.Expression) -> npt.NDArray[np.bool_]:
    """Tell which rows of a table pass."""
    from pyarrow import acero

    passes = acero.Declaration.from_sequence(
        [
            acero.Declaration("table_source", acero.TableSourceNodeOptions(table)),
            acero.Declaration("project", acero.ProjectNodeOptions([filter], ["passes"])),
        ]
    ).to_table(use_threads=False)["passes"]
    return np.asarray(passes.fill_null(False) if passes.null_count else passes, np.bool_)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    table = pa.Table.from_batches(batches).unify_dictionaries().combine_chunks()
    return table.to_batches()[0]
