"""Part files — the Parquet files of committed segments: opened, checked, decoded.

A part is opened once for all three:

1. its footer is compared with the segment's record, because statistics that are not the committed ones
   would leave out rows unnoticed;
2. if there is a filter, the footer's statistics may rule the part out (`pruning`), unless those of the store
   were asked before;
3. the headers of the columns' pages are checked, once, and how long repeated texts are: a few KiB may become
   GiB;
4. the columns are decoded with the footer that was parsed already. Pages have checksums, which are verified.

If anything fails, the whole file is compared with its record, so that the error says what is wrong.

Reads only, and remembers which footers and columns were checked. What pyarrow has besides its core is loaded
with the first part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format import layout
from zarrow._format.checksum import crc32c
from zarrow._format.pages import read_footer
from zarrow._format.parts import check_part, to_wire
from zarrow._format.records import SegmentRecord
from zarrow._format.spec import StoreSpec
from zarrow._read.filters import Filter
from zarrow._read.pruning import may_pass
from zarrow._read.view import View
from zarrow._storage.reading import File, Place, open_file
from zarrow.errors import CorruptionError

__all__ = ["PartFiles", "committed_table"]


def committed_table(root: Place, spec: StoreSpec, record: SegmentRecord) -> pa.Table:
    """Return a whole part as its frames had it (`to_wire`), compared with the segment's record."""
    try:
        opened = open_file(root, layout.part_path(record.segment))
    except FileNotFoundError as error:
        raise CorruptionError("missing, though its segment is committed", path=error.filename) from error
    with opened as file:
        if file.size_bytes != record.part.size_bytes or not file.holds(
            0, record.part.size_bytes, record.part.crc32c
        ):
            raise CorruptionError("not the bytes that were committed", path=file.path)
        with file.stream() as stream:
            return to_wire(spec, stream, file.read, file.path)


class PartFiles:
    """The parts of a view's committed segments.

    Parameters
    ----------
    view : View
        The rows.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._schema = view.spec.table_schema
        self.footers: npt.NDArray[np.uint32] | None = None
        """The checksums of the footers, once they are known without the records."""
        self._sound: set[int] = set()  # parts whose footers were checked
        self._harmless: set[tuple[int, str]] = set()  # columns of parts whose page headers were

    def path(self, segment: int) -> Any:
        """Return where a segment's part is."""
        return self._view.snapshot.root / layout.part_path(segment)

    def whole_path(self, segment: int) -> str:
        """Return the path of a part for another reader, after checking that it has the committed size.

        Raises
        ------
        CorruptionError
            If it is missing, truncated or not a file.
        """
        misfit = self._misfit(segment)
        if misfit is not None:
            self._view.guard()
            raise self._damaged(segment, misfit)
        return str(self.path(segment))

    def decode(self, number: int, names: Sequence[str], filter: Filter | None = None) -> pa.Table | None:
        """Return columns of a part, or None if its statistics say that none of its rows passes a filter.

        Raises
        ------
        CorruptionError
            If the part is damaged.
        """
        import pyarrow.parquet as pq

        metadata = None
        try:
            part = self._open(number)
            with part.source() as source:
                self._check_footer(number, source)
                if filter is not None and self.footers is None:  # else it was asked already
                    import pyarrow.dataset as ds

                    fragment = ds.ParquetFileFormat().make_fragment(source)
                    if not may_pass(fragment, filter, self._schema):
                        return None
                    metadata = fragment.metadata
                # Without pre_buffer, which would read the same bytes in another thread.
                with pq.ParquetFile(
                    source, metadata=metadata, page_checksum_verification=True, pre_buffer=False
                ) as file:
                    self._check_size(number, names, file.metadata, part, source)
                    table = file.read(columns=list(names), use_threads=len(names) > 1)
            # Of "a" and "a.b", pyarrow reads both if "a" is wanted.
            if not set(names) <= set(table.column_names):
                raise CorruptionError("its columns are not what was committed", path=self.path(number))
        except (OSError, pa.ArrowException, KeyError, UnicodeDecodeError) as error:
            raise self._explain(error, number) from error
        self._view.guard()
        return table.select(list(names))

    def _open(self, number: int) -> File:
        """Open a part; a short last one, which a writer may take back, was opened with the view."""
        last = self._view.last_files.get("") if self._view.is_short_last(number) else None
        return last or open_file(self._view.snapshot.root, layout.part_path(number), whole=True)

    def _check_footer(self, number: int, source: pa.NativeFile) -> None:
        """Compare a part's footer with its record, once; raise `OSError` if they differ.

        The footer has no checksum of its own, and wrong statistics in it would make a filter leave out rows
        without a trace.
        """
        if number not in self._sound:
            footer = read_footer(lambda offset, size: source.read_at(size, offset), source.size())
            if crc32c(footer) != self._footer_crc32c(number):
                raise OSError("its footer is not what was committed")
            self._sound.add(number)

    def _footer_crc32c(self, number: int) -> int:
        if self.footers is None:
            return self._view.record(number).part.footer_crc32c
        return int(self.footers[number])

    def _check_size(
        self, number: int, names: Sequence[str], metadata: Any, part: File, source: pa.NativeFile
    ) -> None:
        """Raise unless a part has the committed rows and its columns can be decoded without harm."""
        if metadata.num_rows != self._view.snapshot.segment_rows(number):
            raise CorruptionError(f"{metadata.num_rows} rows are not what was committed", path=part.path)
        new = [name for name in names if (number, name) not in self._harmless]
        check_part(source, metadata, part.read, part.path, columns=new)
        self._harmless.update((number, name) for name in new)

    # What went wrong

    def _explain(self, error: Exception, number: int) -> Exception:
        """Return an error that says how a segment's part is damaged, or `error` if it is not damaged."""
        if isinstance(error, CorruptionError):
            return error
        self._view.guard()
        problem = self._damage(number)
        if not problem:
            return error
        return self._damaged(number, problem, f" ({error})")

    def _damaged(self, number: int, problem: str, because: str = "") -> CorruptionError:
        rows = self._view.segment_ranges()[number]
        return CorruptionError(
            f"the part of segment {number} (rows {rows.start} to {rows.stop}) {problem}: other rows can "
            f"still be read, with a filter on 'row'{because}",
            path=self.path(number),
        )

    def _misfit(self, number: int) -> str | None:
        """Return what is wrong with a part as far as its size shows, else None."""
        manifest = self._view.snapshot.manifest  # saves reading the record
        committed = (
            self._view.record(number).part.size_bytes if manifest is None else manifest.part_bytes[number]
        )
        try:
            size_bytes = self._open(number).size_bytes
        except OSError as error:
            return f"cannot be opened ({error.strerror})"
        return None if size_bytes == committed else f"has {size_bytes} bytes, {committed} were committed"

    def _damage(self, number: int) -> str | None:
        """Return what is wrong with a part, which is read whole, else None."""
        misfit = self._misfit(number)
        if misfit is not None:
            return misfit
        part = self._open(number)
        if part.crc32c(0, part.size_bytes) != self._view.record(number).part.crc32c:
            return "is damaged"
        import pyarrow.parquet as pq

        try:
            with part.source() as source, pq.ParquetFile(source) as file:
                self._sound.discard(number)
                self._check_footer(number, source)
                sound = file.metadata.num_rows == self._view.snapshot.segment_rows(number)
        except (OSError, pa.ArrowException):
            sound = False
        return None if sound else "is not a part of this table, though its checksum holds"
