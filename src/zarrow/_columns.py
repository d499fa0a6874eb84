"""How is the table read without reading all of it?

The parts are a Parquet dataset, and `pyarrow.dataset` is asked: it decodes the columns that are wanted,
and skips row groups by their statistics, and here whole files by the rows that they hold. Live rows (see
`_view`) stand behind it as a table in memory. A scan reads a few row groups ahead and holds no more.

Single rows are taken from decoded columns of single parts, the last used of which are kept.

Page checksums are verified. If anything fails, the files are compared with their records to say which
segment is damaged; its neighbours stay readable.

Place: tier 3, used by `store`. Loads what pyarrow has beside its core (a third of the time that ``import
zarrow`` took) when it is first needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow import _parts, layout
from zarrow._cache import Cache
from zarrow._checksum import crc32c
from zarrow._mapping import File
from zarrow._view import View
from zarrow.errors import CorruptionError, InvalidInputError, UnknownNameError
from zarrow.layout import ROW, SAMPLE_INDEX

if TYPE_CHECKING:
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

__all__ = ["Columns", "unknown_name"]

CACHE_BYTES = 64 << 20
_MIN_BATCH_ROWS = 8192
_MAX_BATCH_ROWS = 131_072
_NO_FIELD = re.compile(r"No match for FieldRef\.\w+\((.*?)\)")
_READ_BYTES = 8 << 20


def unknown_name(what: str, name: object, names: Iterable[str]) -> UnknownNameError:
    """Return the error that says that there is no `what` of that name, and what there is.

    >>> print(unknown_name("array", "query_embd", ["query_embed"]))
    there is no array 'query_embd'; did you mean 'query_embed'? There are: query_embed
    """
    import difflib

    known = list(names)
    near = difflib.get_close_matches(str(name), known, n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    return UnknownNameError(f"there is no {what} {name!r}{hint} There are: {', '.join(known) or 'none'}")


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

    # Scans

    def scanner(
        self, columns: Sequence[str] | None, filter: pc.Expression | None, batch_rows: int = _MAX_BATCH_ROWS
    ) -> ds.Scanner:
        """Return a scanner of the rows that pass a filter, in order; it has read nothing yet.

        Raises
        ------
        UnknownNameError
            If there is no such column.
        InvalidInputError
            If the filter is none, or compares what cannot be compared.
        """
        from pyarrow.compute import Expression

        if filter is not None and not isinstance(filter, Expression):
            raise InvalidInputError(
                "filter must be a pyarrow expression, such as pyarrow.compute.field('occurs_prob') > 0.9, "
                f"got {filter!r}"
            )
        names = self.names(columns)
        try:
            if filter is not None:
                kind = self.dataset().scanner(columns={"passes": filter}).projected_schema.field(0).type
                if not pa.types.is_boolean(kind):
                    raise InvalidInputError(
                        f"the filter {filter} is no condition: it gives {kind}, not true or false"
                    )
            return self.dataset().scanner(
                columns=names,
                filter=filter,
                batch_size=min(max(batch_rows, _MIN_BATCH_ROWS), _MAX_BATCH_ROWS),
                batch_readahead=4,
                fragment_readahead=2,
            )
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            if found := _NO_FIELD.search(str(error)):
                raise unknown_name("column", found[1], self.schema.names) from None
            raise InvalidInputError(
                f"the filter {filter} does not fit the table's columns: {error}"
            ) from error

    def table(self, columns: Sequence[str] | None, filter: pc.Expression | None) -> pa.Table:
        """Return the rows that pass a filter."""
        scanner = self.scanner(columns, filter)
        try:
            table = scanner.to_table()
        except (OSError, pa.ArrowException) as error:
            raise self._explain(error) from error
        self._view.guard()
        return table

    def batches(
        self, columns: Sequence[str] | None, filter: pc.Expression | None, batch_rows: int = _MAX_BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows that pass a filter, in batches of no particular size."""
        return self._run(self.scanner(columns, filter, batch_rows))

    def _run(self, scanner: ds.Scanner) -> Iterator[pa.RecordBatch]:
        batches = scanner.to_batches()
        while True:
            try:
                batch = next(batches, None)
            except (OSError, pa.ArrowException) as error:
                raise self._explain(error) from error
            self._view.guard()
            if batch is None:
                return
            if batch.num_rows:
                yield batch

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

    def dataset(self) -> ds.Dataset:
        """Return the table as a dataset."""
        if self._dataset is None:
            import pyarrow.dataset as ds
            from pyarrow.fs import LocalFileSystem

            row = ds.field(ROW)
            ranges = self._view.segment_ranges()
            committed = ds.FileSystemDataset.from_paths(
                [self._source(number) for number in range(len(ranges))],
                schema=self.schema,
                format=ds.ParquetFileFormat(
                    default_fragment_scan_options=ds.ParquetFragmentScanOptions(
                        page_checksum_verification=True
                    )
                ),
                filesystem=LocalFileSystem(),
                # So that a filter on rows opens no file but theirs.
                partitions=[(row >= rows.start) & (row < max(rows.stop, rows.start + 1)) for rows in ranges],
            )
            live = self.live()
            self._dataset = ds.dataset([committed, ds.dataset(live)]) if live.num_rows else committed
        return self._dataset

    def _path(self, segment: int) -> Path:
        return self._view.snapshot.root / layout.part_path(segment)

    def _source(self, segment: int) -> str:
        """Return a name under which a part can be opened."""
        file = self._view.last_files.get("") if self._view.is_short_last(segment) else None
        if file is not None:
            return f"/dev/fd/{file.fd}"
        path = self._path(segment)
        if path.is_symlink():
            raise CorruptionError(f"{path}: a symbolic link, which may lead out of the store")
        return str(path)

    # Rows that are not in the dataset's files

    def live(self) -> pa.Table:
        """Return the live rows, with provisional row numbers."""
        if self._live is None:
            import pyarrow.parquet as pq

            view, spec = self._view, self._view.spec
            tables = [self.schema.empty_table()]
            ranges = view.live_ranges()
            for record, rows in zip(view.behind_gap, ranges, strict=False):
                part = pq.read_table(
                    self._path(record.segment), schema=self.schema, page_checksum_verification=True
                )
                numbers = pa.array(np.arange(rows.start, rows.stop))
                place = self.schema.get_field_index(ROW)
                tables.append(part.set_column(place, self.schema.field(ROW), numbers))
            for piece, rows in zip(view.open_pieces, ranges[len(view.behind_gap) :], strict=True):
                tables.append(_parts.to_table(spec, piece.batches(spec), rows.start))
            self._live = pa.concat_tables(tables).unify_dictionaries()
        return self._live

    def full_parts(self) -> tuple[list[str], pa.Table]:
        """Return the files of full segments, which never change, and the rows that are in none of them."""
        view = self._view
        numbers = range(view.snapshot.segments)
        paths = [str(self._path(number)) for number in numbers if not view.is_short_last(number)]
        rest = [self.live()]
        if len(paths) < len(numbers):
            rest.insert(0, self.segment(numbers[-1], self.schema.names))
        return paths, pa.concat_tables(rest).unify_dictionaries()

    # Single rows

    def segment(self, number: int, names: Sequence[str]) -> pa.Table:
        """Return columns of one part, decoded.

        Raises
        ------
        CorruptionError
            If the part is damaged.
        """
        found: dict[str, pa.ChunkedArray] = {}
        for name in names:
            column = self._decoded.get((number, name))
            if column is not None:
                found[name] = column
        missing = [name for name in names if name not in found]
        if missing:
            import pyarrow.parquet as pq

            try:
                source = pa.OSFile(self._source(number))
                with pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=True) as file:
                    table = file.read(columns=missing)
                if table.num_rows != self._view.snapshot.segment_rows(number):
                    raise CorruptionError(
                        f"{self._path(number)}: {table.num_rows} rows are not what was committed"
                    )
            except (OSError, pa.ArrowException, KeyError) as error:
                raise self._explain(error, [number]) from error
            self._view.guard()
            for name in missing:
                found[name] = table[name]
                self._decoded.put((number, name), table[name], table[name].nbytes)
        fields = pa.schema([self.schema.field(name) for name in names])
        return pa.Table.from_arrays(
            [found[name].cast(fields.field(name).type) for name in names], schema=fields
        )

    def take(self, rows: npt.NDArray[np.int64], names: Sequence[str]) -> pa.Table:
        """Return these rows, which are in range, in the order given."""
        if not len(rows):
            return self.schema.empty_table().select(names)
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
                table, first = self.segment(number, names), number * full
            tables.append(table.take(pa.array(sorted_rows[start:stop] - first)))
        joined = pa.concat_tables(tables).unify_dictionaries()
        if order is not None:
            joined = joined.combine_chunks().take(pa.array(np.argsort(order, kind="stable")))
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

    # What went wrong

    def _explain(self, error: Exception, segments: Iterable[int] | None = None) -> Exception:
        """Return the error that names the damaged segment, or `error` if none is."""
        if isinstance(error, CorruptionError):
            return error
        self._view.guard()
        for number in range(self._view.snapshot.segments) if segments is None else segments:
            problem = self._damage(number)
            if problem:
                rows = self._view.segment_ranges()[number]
                return CorruptionError(
                    f"{self._path(number)}: the part of segment {number} (rows {rows.start} to {rows.stop}) "
                    f"{problem}: other rows can still be read, with a filter on 'row' ({error})"
                )
        return error

    def _damage(self, number: int) -> str | None:
        facts = self._view.snapshot.record(number).part
        try:
            last = self._view.last_files.get("") if self._view.is_short_last(number) else None
            file = File(self._path(number)) if last is None else last
        except OSError as error:
            return f"cannot be opened ({error.strerror})"
        if file.size_bytes != facts.size_bytes:
            return f"has {file.size_bytes} bytes, {facts.size_bytes} were committed"
        checksum = 0
        for offset in range(0, file.size_bytes, _READ_BYTES):
            checksum = crc32c(file.read(offset, _READ_BYTES), checksum)
        if checksum != facts.crc32c:
            return "is damaged"
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self._source(number)) as part:
                sound = part.metadata.num_rows == self._view.snapshot.segment_rows(number)
        except (OSError, pa.ArrowException):
            sound = False
        return None if sound else "is no such part, though its checksum holds"


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    table = pa.Table.from_batches(batches).unify_dictionaries().combine_chunks()
    return table.to_batches()[0]
