"""Audit of a committed segment — its part and shards, against its record.

Files are checked from the outside in, so that nothing is used before it is known to be what was written: the
file is there and has its size; its bytes match their checksum; its metadata (the footer, the shard index, the
headers of pages, the chunks' sizes) agrees with the record and the store's declaration; and finally, decoded,
the rows are numbered correctly and hold what the schema allows.

Damage is reported by rows, as narrowly as a checksum covers them (a chunk, a part), and with the
``sample_index`` values of those rows if the part can still be read.

Memory is bounded: a block, a chunk, a few thousand rows of one column.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zarrow._format import layout
from zarrow._format.array_spec import ArraySpec
from zarrow._format.arrow import is_text
from zarrow._format.checksum import crc32c
from zarrow._format.layout import ROW, SAMPLE_INDEX
from zarrow._format.pages import read_footer
from zarrow._format.parts import check_part, has_stored_schema
from zarrow._format.records import SegmentRecord
from zarrow._format.spec import StoreSpec
from zarrow._format.statistics import excess, nans_in
from zarrow._maintenance.findings import AuditLog, Finding, said_by
from zarrow._read.shard_rows import CommittedShard
from zarrow._storage.reading import Beneath, File
from zarrow.errors import CorruptionError, ZarrowError

__all__ = ["audit_segment", "open_part", "read_sample_index", "record_bytes"]

BATCH_ROWS = 4096


def record_bytes(record: SegmentRecord) -> int:
    """Return the size of a segment's files."""
    return record.part.size_bytes + sum(facts.size_bytes for facts in record.arrays.values())


def audit_segment(files: Beneath, spec: StoreSpec, record: SegmentRecord, found: AuditLog) -> None:
    """Compare a segment's files with its record.

    Parameters
    ----------
    files : Beneath
        The store's files.
    spec : StoreSpec
        The store's declaration.
    record : SegmentRecord
        Accepted by `_format.records.check_record`.
    found : AuditLog
        Collects the findings.
    """
    damage = [
        *_audit_part(files, spec, record, found),
        *(finding for array in spec.arrays for finding in _audit_shard(files, spec, array, record, found)),
    ]
    if damage and files.exists(layout.record_path(record.segment)):  # else an appending writer took it back
        values = read_sample_index(files, spec, record)
        found.extend(_with_samples(finding, record.segment * spec.segment_rows, values) for finding in damage)


# The part


@contextlib.contextmanager
def open_part(file: File, spec: StoreSpec, record: SegmentRecord) -> Iterator[pq.ParquetFile]:
    """Open a part after its checksum, footer and page headers have been verified.

    Parameters
    ----------
    file : File
        The part.
    spec : StoreSpec
        The store's declaration.
    record : SegmentRecord
        The segment's record.

    Yields
    ------
    pyarrow.parquet.ParquetFile
        The part, safe to decode.

    Raises
    ------
    CorruptionError
        If it is not what record and declaration say.
    """
    path = file.path
    if file.size_bytes != record.part.size_bytes:
        raise CorruptionError(f"{file.size_bytes} bytes, {record.part.size_bytes} were committed", path=path)
    if file.crc32c(0, file.size_bytes) != record.part.crc32c:
        raise CorruptionError("does not match its checksum", path=path)
    if crc32c(read_footer(file.read, file.size_bytes)) != record.part.footer_crc32c:
        raise CorruptionError("not the footer that was committed", path=path)
    with file.stream() as stream:
        try:
            strings = [column.name for column in spec.schema if is_text(column.type)]
            plain = pq.ParquetFile(stream)
            _check_footer(plain, spec, record, path)
            # As dictionaries, so that a long string that is repeated takes no more memory than in the file.
            part = pq.ParquetFile(
                stream, read_dictionary=strings, page_checksum_verification=True, pre_buffer=False
            )
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CorruptionError(
                f"not a Parquet file, despite a correct checksum: {error}", path=path
            ) from error
        try:
            check_part(stream, plain.metadata, file.read, path, checksums=True)
            yield part
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CorruptionError(f"undecodable despite a correct checksum: {error}", path=path) from error


def _check_footer(part: pq.ParquetFile, spec: StoreSpec, record: SegmentRecord, path: str) -> None:
    metadata = part.metadata
    if metadata.num_rows != record.rows or metadata.num_row_groups > 1:
        raise CorruptionError(
            f"{metadata.num_rows} rows in {metadata.num_row_groups} row groups, not {record.rows} in one",
            path=path,
        )
    if not has_stored_schema(part, spec):
        raise CorruptionError(f"its columns are not the store's, but {part.schema_arrow.names}", path=path)


def _damage(path: str, message: object, record: SegmentRecord, spec: StoreSpec) -> Finding:
    """Return damage to all rows of a segment."""
    first = record.segment * spec.segment_rows
    return Finding(
        severity="damage",
        path=path,
        message=said_by(path, message),
        segment=record.segment,
        rows=(first, first + record.rows),
    )


def _audit_part(files: Beneath, spec: StoreSpec, record: SegmentRecord, found: AuditLog) -> Iterator[Finding]:
    path = layout.part_path(record.segment)
    try:
        with files.open(path) as file:
            found.checked_files += 1
            if file.size_bytes != record.part.size_bytes:
                raise CorruptionError(f"{file.size_bytes} bytes, {record.part.size_bytes} were committed")
            if found.checksums:
                with open_part(file, spec, record) as part:
                    found.read(file.size_bytes)
                    if found.full:
                        _check_values(part, spec, record)
    except FileNotFoundError:
        yield _damage(path, "missing", record, spec)
    except CorruptionError as error:
        yield _damage(path, error, record, spec)
    found.advance(record.part.size_bytes)


def _check_values(part: pq.ParquetFile, spec: StoreSpec, record: SegmentRecord) -> None:
    """Decode every column, a few thousand rows at a time, and raise if it has a value that it must not."""
    scales = [array.scale for array in spec.arrays]
    for column in spec.table_schema:
        row = record.segment * spec.segment_rows
        stated, nulls, nans = record.part.statistics.get(column.name), 0, 0
        for batch in part.iter_batches(BATCH_ROWS, columns=[column.name], use_threads=False):
            values = batch.column(0)
            values.validate(full=True)
            if values.null_count and (not column.nullable or column.name in spec.keys):
                raise CorruptionError(f"column {column.name!r} has nulls, but must not")
            if column.name == ROW:
                expected = np.arange(row, row + len(values))
                if not np.array_equal(values.to_numpy(zero_copy_only=False), expected):
                    raise CorruptionError(f"column {ROW!r} does not number the store's rows from {row}")
            if column.name in scales and not _are_scales(values):
                raise CorruptionError(f"column {column.name!r} has a scale that is not finite or negative")
            row += len(values)
            if stated is not None:
                nulls, nans = nulls + values.null_count, nans + nans_in(values)
                if wrong := excess(stated, pa.chunked_array([values])):
                    raise CorruptionError(
                        f"column {column.name!r} exceeds the {wrong} in the segment's record"
                    )
        if stated is not None and (stated.nulls, stated.nans) != (nulls, nans):
            raise CorruptionError(
                f"column {column.name!r} has {nulls} nulls and {nans} NaNs, its record says otherwise"
            )
        if row != record.segment * spec.segment_rows + record.rows:
            raise CorruptionError(f"column {column.name!r} does not have {record.rows} rows")


def _are_scales(values: pa.Array) -> bool:
    """Tell whether all values may be scales of quantized rows."""
    scales = np.from_dlpack(values)
    return bool((np.isfinite(scales) & (scales >= 0)).all())


def read_sample_index(files: Beneath, spec: StoreSpec, record: SegmentRecord) -> npt.NDArray[np.int64] | None:
    """Return a segment's ``sample_index`` values, −1 where there is none; None if its part is damaged."""
    return _read_column(files, spec, record, SAMPLE_INDEX)


def _read_column(
    files: Beneath, spec: StoreSpec, record: SegmentRecord, name: str
) -> npt.NDArray[np.int64] | None:
    """Return a column of integers of a segment, −1 where there is none; None if its part is damaged."""
    path = layout.part_path(record.segment)
    try:
        with files.open(path) as file, open_part(file, spec, record) as part:
            column = part.read([name], use_threads=False).column(0)
    except (ZarrowError, FileNotFoundError):
        return None
    values: npt.NDArray[np.int64] = pc.fill_null(column, -1).to_numpy()
    return values


def _with_samples(finding: Finding, first: int, values: npt.NDArray[np.int64] | None) -> Finding:
    if values is None or finding.rows is None:
        return finding
    of_rows = values[finding.rows[0] - first : finding.rows[1] - first]
    of_rows = of_rows[of_rows >= 0]
    if not of_rows.size:
        return finding
    return replace(finding, sample_index=(int(of_rows.min()), int(of_rows.max())))


# The shards


def _audit_shard(
    files: Beneath, spec: StoreSpec, array: ArraySpec, record: SegmentRecord, found: AuditLog
) -> Iterator[Finding]:
    facts = record.arrays[array.name]
    path = array.shard_path(record.segment)
    if not facts.size_bytes:
        return
    done = 0
    try:
        with files.open(path) as file:
            found.checked_files += 1
            first = record.segment * spec.segment_rows
            shard = CommittedShard(file, array, spec.segment_rows, record, first)
            for number, chunk in enumerate(shard.chunks if found.checksums else ()):
                try:
                    _check_chunk(shard, array, record, number, full=found.full)
                except ZarrowError as error:
                    start, stop = _rows_of_chunk(files, spec, array, record, number)
                    yield replace(_damage(path, error, record, spec), rows=(first + start, first + stop))
                done += chunk.size_bytes
                found.read(chunk.size_bytes)
                found.advance(chunk.size_bytes)
            if array.name in spec.extents and found.full:
                ragged = spec.extents[array.name]
                counts = None if ragged.count is None else _read_column(files, spec, record, ragged.count)
                _check_extents(shard, record, ragged, counts)
    except FileNotFoundError:
        yield _damage(path, "missing", record, spec)
    except ZarrowError as error:
        yield _damage(path, error, record, spec)
    found.advance(facts.size_bytes - done)


def _check_chunk(
    shard: CommittedShard, array: ArraySpec, record: SegmentRecord, number: int, *, full: bool
) -> None:
    if not shard.holds(number):
        raise CorruptionError(f"chunk {number} does not match its checksum")
    if full:
        padding = shard.decode(number)[record.items(array) - number * array.chunk_rows :]
        if padding.size and padding.view(np.uint8).any():
            raise CorruptionError(f"chunk {number} is not padded with zeros")


def _check_extents(
    shard: CommittedShard,
    record: SegmentRecord,
    ragged: ArraySpec,
    counts: npt.NDArray[np.int64] | None,
) -> None:
    """Raise unless the rows of a ragged array have all its vectors, one row's behind the other's.

    `counts` is the column that says how many each row has.
    """
    position = rows = 0
    for number in range(len(shard.chunks)):
        extents = shard.decode(number)[: record.rows - rows]
        if counts is not None and not np.array_equal(counts[rows : rows + len(extents)], extents[:, 1]):
            raise CorruptionError(
                f"column {ragged.count!r} does not say how many vectors rows have in array {ragged.name!r}"
            )
        rows += len(extents)
        ends = position + np.cumsum(extents[:, 1])
        if (extents[:, 1] < 0).any() or not np.array_equal(extents[:, 0], ends - extents[:, 1]):
            raise CorruptionError(f"its rows do not lie one behind the other in array {ragged.name!r}")
        position = int(ends[-1])
    if position != record.items(ragged):
        raise CorruptionError(
            f"its rows have {position} vectors of array {ragged.name!r}, not {record.items(ragged)}"
        )


def _rows_of_chunk(
    files: Beneath, spec: StoreSpec, array: ArraySpec, record: SegmentRecord, number: int
) -> tuple[int, int]:
    """Return the rows of a segment that have values in a chunk; of a ragged array, as far as is known."""
    start, stop = number * array.chunk_rows, (number + 1) * array.chunk_rows
    if not array.is_ragged:
        return start, min(stop, record.rows)
    extent = spec.array(layout.extent_name(array.name))
    try:
        with files.open(extent.shard_path(record.segment)) as file:
            shard = CommittedShard(file, extent, spec.segment_rows, record)
            pieces = [shard.decode(number) for number in range(len(shard.chunks))]
    except (FileNotFoundError, ZarrowError):
        return 0, record.rows
    found = np.concatenate(pieces)[: record.rows]
    touched = np.flatnonzero((found[:, 0] < stop) & (found.sum(axis=1) > start))
    return (int(touched[0]), int(touched[-1]) + 1) if touched.size else (0, 0)
