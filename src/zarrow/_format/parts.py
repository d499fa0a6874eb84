"""Parts as tables — the table of a segment, as its frames have it and as its Parquet file has it.

`to_table` makes the table of a part from the batches of a segment's frames; `to_wire` makes the batches'
columns from a part again, when a segment is reopened. `check_part` tells whether a part can be decoded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format.arrow import numbers_as_arrow
from zarrow._format.layout import SAMPLE_INDEX
from zarrow._format.pages import Read, Repeating, check_pages
from zarrow._format.spec import StoreSpec
from zarrow.errors import CorruptionError

__all__ = ["check_part", "has_stored_schema", "parquet", "to_table", "to_wire"]

POOL = pa.system_memory_pool()
"""Arrow's default pool would keep 10 MB and more for a few hundred kB."""
_ROWS = 65_536

Numbers = npt.NDArray[np.integer[Any]]


def parquet() -> Any:
    """Import pyarrow's Parquet module, which importing zarrow does not need."""
    import pyarrow.parquet

    return pyarrow.parquet


def check_part(
    part: Any,
    metadata: Any,
    read: Read,
    path: str,
    *,
    columns: Collection[str] | None = None,
    checksums: bool = False,
) -> None:
    """Raise unless columns of a part can be decoded without harm: see `pages`.

    Parameters
    ----------
    part : file
        The part, as pyarrow reads it.
    metadata, read, path, columns, checksums
        As of `check_pages`.

    Raises
    ------
    CorruptionError
        If a column is harmful or damaged.
    """
    for found in check_pages(metadata, read, path, columns=columns, checksums=checksums):
        found.require(0, path)
        lengths = next((lengths for lengths, _ in _texts(part, metadata, found, 1)), None)
        if lengths is None:
            found.require(found.by_number * found.longest_bytes, path)
        elif not found.fits(int(lengths.max(initial=0))):
            texts = _texts(part, metadata, found, _ROWS)
            found.require(sum(int(lengths[numbers].sum()) for lengths, numbers in texts), path)


def _texts(part: Any, metadata: Any, column: Repeating, rows: int) -> Iterator[tuple[Numbers, Numbers]]:
    """Yield the lengths of a column's texts, each once, and which of them the next rows have.

    Nothing for an extension type, which pyarrow gives no dictionary.
    """
    with parquet().ParquetFile(
        part, metadata=metadata, read_dictionary=[column.path], pre_buffer=False
    ) as file:
        groups = range(metadata.num_row_groups)
        # By its place: the path of "a.b" is also that of "b" in a struct "a".
        batches = file.reader.iter_batches(
            rows, row_groups=groups, column_indices=[column.index], use_threads=False
        )
        for batch in batches:
            values = batch.column(0)
            while pa.types.is_nested(values.type):
                values = values.field(0) if pa.types.is_struct(values.type) else values.flatten()
            if not pa.types.is_dictionary(values.type):
                return
            texts = values.dictionary
            offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset :][: len(texts) + 1]
            yield np.diff(offsets).astype(np.int64), np.asarray(values.indices.drop_null())


def to_table(spec: StoreSpec, batches: Sequence[pa.RecordBatch], first_row: int) -> pa.Table:
    """Return a segment's table as readers see it, from the batches of its frames.

    Parameters
    ----------
    spec : StoreSpec
        The store.
    batches : sequence of pyarrow.RecordBatch
        Of the wire schema, in order.
    first_row : int
        The row number of the first row.

    Returns
    -------
    pyarrow.Table
        Of the spec's `table_schema`, one chunk per column.
    """
    wire = pa.Table.from_batches(batches, spec.wire_schema).combine_chunks(memory_pool=POOL)
    columns = []
    for column in spec.schema:
        values = wire[column.name]
        if pa.types.is_dictionary(column.type):
            values = values.dictionary_encode().cast(column.type)
        columns.append(values)
    rows = numbers_as_arrow(np.arange(first_row, first_row + wire.num_rows, dtype=np.int64))
    return pa.Table.from_arrays([*columns, rows, wire[SAMPLE_INDEX]], schema=spec.table_schema)


def to_wire(spec: StoreSpec, part: Any, read: Read, path: str) -> pa.Table:
    """Return the table of a part, whose checksum was verified, as its frames had it.

    `CorruptionError` if it is not a part all the same, or would take more memory than a part may: a store may
    be hostile.
    """
    try:
        file = parquet().ParquetFile(part, page_checksum_verification=True, pre_buffer=False)
        if not has_stored_schema(file, spec):
            raise CorruptionError(
                f"its columns are not those of the store: {file.schema_arrow.names}", path=path
            )
        if file.metadata.num_rows > spec.segment_rows:
            raise CorruptionError(
                f"{file.metadata.num_rows} rows in segments of {spec.segment_rows}", path=path
            )
        check_part(part, file.metadata, read, path)
        table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise CorruptionError(
            f"cannot be decoded, though its checksum matches: {error}", path=path
        ) from error
    wire = spec.wire_schema
    return pa.Table.from_arrays(
        [table[column.name].cast(column.type) for column in wire], schema=wire
    ).combine_chunks()


def has_stored_schema(part: Any, spec: StoreSpec) -> bool:
    """Tell whether a `ParquetFile` has the store's columns, as Parquet gives them back.

    Of types that are not kept any more, that may differ: earlier stores have dictionaries of large strings.
    """
    found = part.schema_arrow.remove_metadata()
    return bool(found.equals(spec.table_schema.remove_metadata()) or found.equals(_stored_schema(spec)))


def _stored_schema(spec: StoreSpec) -> pa.Schema:
    sink = pa.BufferOutputStream()
    with parquet().ParquetWriter(sink, spec.table_schema) as writer:
        writer.write_table(pa.Table.from_batches([], spec.table_schema))
    return parquet().ParquetFile(pa.BufferReader(sink.getvalue())).schema_arrow.remove_metadata()
