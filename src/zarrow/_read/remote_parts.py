"""Remote parts — the parts of a store in a bucket, for engines, which have no credentials to read them.

DuckDB gets a dataset of Arrow's, whose files are read through the store. Each file has a condition that all
its rows meet, from the statistics of its segment: by it Arrow leaves out files when DuckDB hands a filter
down. Polars gets a source of batches, which asks the same statistics.

Both engines take NaN to be greater than any number, and Arrow takes it to be neither. So nothing is left out
by a column with NaN in a segment, and of what is read, only Polars itself drops rows.

Reads only. Engines are loaded when they are first used.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa

from zarrow._format import layout
from zarrow._format.arrow import with_types, without_dictionaries
from zarrow._read.filters import read_filter
from zarrow._read.pruning import KnownSegments
from zarrow._read.view import View
from zarrow._storage.reading import open_file
from zarrow.errors import InvalidInputError

if TYPE_CHECKING:
    import polars as pl
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

__all__ = ["RemoteParts"]

BatchesOf = Callable[[Sequence[str], Sequence[int]], Iterator[pa.RecordBatch]]


@dataclass(frozen=True, slots=True)
class RemoteParts:
    """The parts of a view's committed segments.

    Parameters
    ----------
    view : View
        The rows, in a bucket.
    known : KnownSegments
        Their statistics.
    batches : callable of (list of str, list of int)
        Yields columns of the rows of these segments.
    """

    view: View
    known: KnownSegments
    batches: BatchesOf

    def dataset(self, type_in_engine: Callable[[pa.DataType], pa.DataType]) -> ds.Dataset | pa.Table:
        """Return them as a dataset of the types that an engine reads them to.

        As a table, if Arrow could not compare what the files say of a column with what the engine asks.
        """
        import pyarrow.dataset as ds
        import pyarrow.fs

        schema = with_types(self.view.spec.table_schema, type_in_engine)
        if not all(map(_is_like, without_dictionaries(self.view.spec.table_schema), schema)):
            batches = self.batches(schema.names, range(self.view.snapshot.segments))
            return with_types(pa.Table.from_batches(batches, self.view.spec.table_schema), type_in_engine)
        kind = ds.ParquetFileFormat(
            default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
        )
        files = pyarrow.fs.PyFileSystem(_handler(self.view))
        fragments = [
            kind.make_fragment(layout.part_path(number), files, partition_expression=known)
            for number, known in enumerate(self.known.guarantees(schema))
        ]
        return ds.FileSystemDataset(fragments, schema, kind, files)

    def source(self, type_in_engine: Callable[[pa.DataType], pa.DataType]) -> pl.LazyFrame:
        """Return them as a lazy frame, which asks for the columns that a query needs."""
        import polars as pl
        from polars.io.plugins import register_io_source

        schema = with_types(self.view.spec.table_schema, type_in_engine)

        def frames(
            columns: list[str] | None, predicate: pl.Expr | None, rows: int | None, _size: int | None
        ) -> Iterator[pl.DataFrame]:
            segments = self._may_pass(predicate, schema)
            for batch in self.batches(columns or schema.names, segments):
                frame = pl.DataFrame(
                    pl.from_arrow(with_types(pa.Table.from_batches([batch]), type_in_engine))
                )
                frame = frame if predicate is None else frame.filter(predicate)
                if rows is not None:
                    frame = frame.head(rows)
                    rows -= frame.height
                yield frame
                if rows == 0:
                    return

        empty = pl.DataFrame(pl.from_arrow(pa.Table.from_batches([], schema)))
        return register_io_source(frames, schema=empty.schema)

    def _may_pass(self, predicate: pl.Expr | None, schema: pa.Schema) -> Sequence[int]:
        """Return the segments that may have rows which pass, as far as Polars can say it to Arrow."""
        segments = range(self.view.snapshot.segments)
        asked = None if predicate is None else _in_arrow(predicate, schema)
        if asked is None:
            return segments
        try:
            filter = read_filter(asked, without_dictionaries(self.view.spec.table_schema))
        except InvalidInputError:  # of types that Arrow does not compare
            return segments
        clear = self.known.without_nan(filter)
        return clear.among(clear.segments(filter), filter)


def _is_like(stored: pa.Field, read: pa.Field) -> bool:
    return bool(stored.type == read.type or pa.types.is_float16(stored.type))


def _in_arrow(predicate: pl.Expr, schema: pa.Schema) -> pc.Expression | None:
    """Return a predicate of Polars as Arrow has it; None if it has no such thing."""
    import polars as pl

    asked: list[pc.Expression | None] = [None]

    class Asked:
        """What Polars takes for a dataset, which notes what it is asked."""

        def __init__(self) -> None:
            self.schema = schema

        def to_batches(self, **options: Any) -> Iterator[pa.RecordBatch]:
            asked[0] = options.get("filter")
            return iter(())

        def to_table(self, **options: Any) -> pa.Table:
            asked[0] = options.get("filter")
            return pa.Table.from_batches([], schema).select(options.get("columns") or schema.names)

    pl.scan_pyarrow_dataset(Asked()).filter(predicate).collect()
    return asked[0]


def _handler(view: View) -> Any:
    from pyarrow.fs import FileInfo, FileSystemHandler, FileType

    root, sizes = view.snapshot.root, {}
    if view.snapshot.manifest is not None:
        sizes = {
            layout.part_path(number): size_bytes
            for number, size_bytes in enumerate(view.snapshot.manifest.part_bytes)
        }

    class Handler(FileSystemHandler):  # type: ignore[misc] # of no known type
        """The parts as a file system of Arrow's, which can only be read."""

        def get_type_name(self) -> str:
            return "zarrow"

        def normalize_path(self, path: str) -> str:
            return path

        def get_file_info(self, paths: Sequence[str]) -> list[Any]:
            return [FileInfo(path, FileType.File, size=sizes.get(path)) for path in paths]

        def open_input_file(self, path: str) -> Any:
            view.guard()
            return open_file(root, path, whole=True).source()

        open_input_stream = open_input_file

        def _refuse(self, *_: object) -> NoReturn:
            raise PermissionError(errno.EROFS, "parts can only be opened and read here", str(root))

        get_file_info_selector = create_dir = delete_dir = delete_dir_contents = _refuse
        delete_root_dir_contents = delete_file = move = copy_file = _refuse
        open_output_stream = open_append_stream = _refuse

    return Handler()
