"""Batches — what a caller passes, checked against the store before its first byte is written.

`BatchChecker` turns every batch into what the write path takes, a `CheckedBatch`: the table's columns,
numbers as numpy arrays and the rest as Arrow arrays (`given`), and one contiguous little-endian array per
vector. The caller waits for this, so it does no more than necessary: where caches are cold, every call into
Arrow costs tens of microseconds.

A rejected batch leaves everything as it was. Nothing is cast unless the cast only changes the representation
(byte order, ``string`` and ``large_string``, bfloat16 widened to float32). An array that is declared to be
quantized (`quantized`) may be given in floats, or as the integers, with the column of their scales. The
column of the counts of a ragged array is added, and compared where it is given.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format.array_spec import ArraySpec
from zarrow._format.arrow import Values, as_arrow, number_dtype, numbers_as_arrow
from zarrow._format.documents import require_json
from zarrow._format.given import TableLike, as_array, as_columns, as_integers
from zarrow._format.layout import RESERVED_COLUMNS
from zarrow._format.quantized import quantize
from zarrow._format.ragged import Ragged, is_ragged
from zarrow._format.spec import StoreSpec
from zarrow._format.types import is_representable, represent, row_of_null
from zarrow.errors import BatchError, InvalidInputError

__all__ = ["BatchChecker", "CheckedBatch", "as_appended", "payload", "split"]

_POOL = pa.system_memory_pool()
"""Arrow's default pool takes 10 MB and more for the few hundred kB that a writer needs."""


@dataclass(frozen=True, slots=True)
class CheckedBatch:
    """Rows on their way to disk.

    Parameters
    ----------
    rows : int
        Number of rows.
    columns : tuple of Arrow array, array or None
        The table's columns, of the wire schema's types.
    schema : pyarrow.Schema
        The wire schema.
    arrays : tuple of array or Ragged, shapes (rows, *row_shape)
        In the order of the store's spec; contiguous, little-endian. For the extents of a ragged array, which
        are only known where the rows lie, its counts.
    """

    rows: int
    columns: tuple[Values, ...]
    schema: pa.Schema
    arrays: tuple[npt.NDArray[Any] | Ragged, ...]

    @property
    def size_bytes(self) -> int:
        """Its size in memory."""
        narrow = sum(values.nbytes for values in self.columns if values is not None)
        return int(narrow) + sum(rows.nbytes for rows in self.arrays)

    def slice(self, start: int, stop: int) -> CheckedBatch:
        """Return rows `start` to `stop`."""
        columns = [None if values is None else values[start:stop] for values in self.columns]
        arrays = [rows[start:stop] for rows in self.arrays]
        return CheckedBatch(stop - start, tuple(columns), self.schema, tuple(arrays))


def split(batches: Sequence[CheckedBatch], rows: int) -> tuple[list[CheckedBatch], list[CheckedBatch]]:
    """Return the first `rows` rows of batches, or all if there are fewer, and the rest."""
    first: list[CheckedBatch] = []
    for index, batch in enumerate(batches):
        if batch.rows > rows:
            rest = [*batches[index:]]
            if rows:
                first.append(batch.slice(0, rows))
                rest[0] = batch.slice(rows, batch.rows)
            return first, rest
        first.append(batch)
        rows -= batch.rows
    return first, []


def payload(batches: Sequence[CheckedBatch]) -> pa.Buffer:
    """Return the columns of batches as one encapsulated Arrow record batch message, without the schema.

    This takes Arrow longer than all checks, so it is left to the thread that writes.
    """
    schema = batches[0].schema
    columns = []
    for index, column in enumerate(schema):
        pieces = [batch.columns[index] for batch in batches]
        if len(pieces) > 1 and all(isinstance(piece, np.ndarray) for piece in pieces):
            pieces = [np.concatenate(pieces)]
        arrays = [
            as_arrow(piece, column.type, batch.rows) for piece, batch in zip(pieces, batches, strict=False)
        ]
        columns.append(arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays, memory_pool=_POOL))
    return pa.RecordBatch.from_arrays(columns, schema=schema).serialize(memory_pool=_POOL)


def as_appended(spec: StoreSpec, stored: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[Any] | Ragged, ...]:
    """Return rows of a store's arrays as they were appended.

    Parameters
    ----------
    spec : StoreSpec
        The store.
    stored : sequence of array, shapes (rows or vectors, *row_shape)
        In the order of the spec; of ragged arrays the vectors of these rows.

    Returns
    -------
    tuple of array or Ragged
        As in `CheckedBatch`.
    """
    arrays: list[npt.NDArray[Any] | Ragged] = [np.ascontiguousarray(rows) for rows in stored]
    for ragged, extents in spec.extent_places.items():
        arrays[extents] = counts = stored[extents][:, 1]
        arrays[ragged] = Ragged(arrays[ragged], counts)
    return tuple(arrays)


class BatchChecker:
    """Checks batches against a store's spec.

    Parameters
    ----------
    spec : StoreSpec
        The store.
    """

    def __init__(self, spec: StoreSpec) -> None:
        self._spec = spec
        self._wire = spec.wire_schema
        extents = spec.extents
        self._names = [array.name for array in spec.arrays if array.name not in extents]
        self._arrays = [(array, array.numpy_dtype) for array in spec.arrays if array.name in self._names]
        self._places = spec.extent_places
        # Looked up once: asking Arrow takes a good part of the time of a batch.
        self._columns = [
            (
                column.name,
                wire.type,
                _numpy_dtype(wire.type),
                column,
                # As Arrow has it, unless any value will do.
                column.with_type(wire.type) if not column.nullable or pa.types.is_nested(wire.type) else None,
                column.name in spec.keys and pa.types.is_floating(wire.type),
            )
            for column, wire in zip(spec.schema, self._wire, strict=False)
        ]
        self._column_names = set(spec.schema.names)
        self._has_scales = any(array.scale is not None for array in spec.arrays)
        self._has_counts = any(array.count is not None for array in spec.arrays)

    def check(
        self, columns: TableLike, arrays: Mapping[str, Any], sample_index: Any, *, copy: bool, number: int
    ) -> CheckedBatch:
        """Return a batch that the write path can take.

        Parameters
        ----------
        columns : Table, RecordBatch, frame or mapping
            The narrow columns.
        arrays : mapping of str to array, shapes (rows, *row_shape)
            The vectors.
        sample_index : int array, shape (rows,), or None
            The rows' index in the dataset.
        copy : bool
            Whether the caller keeps the memory.
        number : int
            The batch's number, for messages.

        Returns
        -------
        CheckedBatch
            It shares no memory with the caller's values, unless `copy` is False.

        Raises
        ------
        BatchError
            If the batch does not fit the store.
        """
        try:
            return self._check(columns, arrays, sample_index, copy=copy)
        except BatchError as error:
            raise BatchError(f"batch {number}: {error}; nothing of it was written") from error.__cause__

    def _check(
        self, columns: TableLike, arrays: Mapping[str, Any], sample_index: Any, *, copy: bool
    ) -> CheckedBatch:
        if len(arrays) != len(self._names) or any(name not in arrays for name in self._names):
            raise BatchError(f"arrays must be {self._names}, got {list(arrays)}")
        given: list[Any] = []
        scales: dict[str, npt.NDArray[np.float32]] = {}
        for place, (spec, dtype) in enumerate(self._arrays):
            values = arrays[spec.name]
            given.append(_ragged(spec, values) if spec.is_ragged else _fixed(spec, values))
            rows = given[-1].values if spec.is_ragged else given[-1]
            if spec.scale is not None and rows.dtype.kind == "f" and rows.shape[1:] == spec.row_shape:
                given[place], scales[spec.scale] = _quantized(spec, rows)
            elif rows.shape[1:] != spec.row_shape or rows.ndim < 2 or rows.dtype != dtype:
                _refuse_array(spec, rows)
        table, length = as_columns(columns, self._spec.schema)
        if self._has_scales:
            table = self._with_scales(table, scales, given)
        if self._has_counts:
            table = self._with_counts(table, given)
        lengths = {len(rows) for rows in given}
        if length is not None:
            lengths.add(length)
        if sample_index is not None:
            sample_index = _check_sample_index(sample_index)
            lengths.add(len(sample_index))
        if len(lengths) > 1:
            found = dict(zip(self._names, map(len, given), strict=True))
            index = "" if sample_index is None else f", sample_index {len(sample_index)}"
            raise BatchError(f"columns and arrays must have one length, got columns {length}, {found}{index}")
        count = lengths.pop() if lengths else 0
        values = self._check_columns(table)
        if not values and not given:
            raise BatchError("a batch must have columns or arrays, got neither")
        values.append(sample_index)
        owned = [_own(rows, dtype, copy=copy) for (_, dtype), rows in zip(self._arrays, given, strict=True)]
        for ragged, extents in sorted(self._places.items(), key=operator.itemgetter(1)):
            owned.insert(extents, owned[ragged].counts)
        return CheckedBatch(count, tuple(_copies(values) if copy else values), self._wire, tuple(owned))

    def _with_scales(
        self,
        table: dict[str, pa.Array | npt.NDArray[Any]],
        computed: Mapping[str, npt.NDArray[np.float32]],
        given: Sequence[npt.NDArray[Any]],
    ) -> dict[str, pa.Array | npt.NDArray[Any]]:
        """Return the columns with the scales of the quantized arrays, computed here or given and checked."""
        for (spec, _), rows in zip(self._arrays, given, strict=True):
            name = spec.scale
            if name is None:
                continue
            if (name in computed) is (name in table):
                got = "floats and" if name in table else f"{spec.dtype} without"
                raise BatchError(
                    f"array {spec.name!r} is quantized: it must be given as floats, or as {spec.dtype} with "
                    f"the column {name!r}, got {got} that column"
                )
            if name in table:
                _check_scales(name, table[name], rows)
        return {**table, **computed}

    def _with_counts(
        self, table: dict[str, pa.Array | npt.NDArray[Any]], given: Sequence[Any]
    ) -> dict[str, pa.Array | npt.NDArray[Any]]:
        """Return the columns with the counts of the ragged arrays, added here or given and checked."""
        for (spec, _), rows in zip(self._arrays, given, strict=True):
            if spec.count is None:
                continue
            if spec.count in table:
                _check_counts(spec.count, table[spec.count], spec.name, rows.counts)
            table = {**table, spec.count: rows.counts}
        return table

    def _check_columns(self, table: Mapping[str, pa.Array | npt.NDArray[Any]]) -> list[Values]:
        """Return the columns in the store's order, of the wire types."""
        if table.keys() != self._column_names:
            for name in RESERVED_COLUMNS:
                if name in table:
                    raise BatchError(
                        f"column {name!r}: the name is reserved: rename it, or use sample_index="
                    )
            missing = [name for name, *_ in self._columns if name not in table]
            unknown = [name for name in table if name not in self._column_names]
            raise BatchError(
                f"columns must be {self._spec.schema.names}; missing {missing}, unknown {unknown}"
            )
        values: list[Values] = []
        for name, kind, dtype, column, strict, finite in self._columns:
            data: Any = table[name]
            if type(data) is np.ndarray:
                if data.dtype == dtype and not finite:
                    values.append(data)
                    continue
                data = numbers_as_arrow(data)
            elif not pa.types.is_primitive(data.type) or pa.types.is_time(data.type):
                _require_valid(name, data)
            if data.type != kind or pa.types.is_nested(kind):
                data = _represented(data, kind, column)
            row = None if strict is None else row_of_null(data, strict)
            if row is not None:
                what = (
                    f"key {name!r}" if name in self._spec.keys else f"column {name!r}, declared not nullable"
                )
                raise BatchError(f"{what}: expected a value, got null in row {row} of the batch")
            if finite:
                bad = np.flatnonzero(np.isnan(data.to_numpy(zero_copy_only=False)))
                if bad.size:
                    raise BatchError(f"key {name!r}: expected a number, got NaN in row {bad[0]} of the batch")
            values.append(data)
        return values


def _quantized(
    spec: ArraySpec, rows: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    try:
        return quantize(rows)
    except BatchError as error:
        raise BatchError(f"array {spec.name!r}: {error}") from None


def _check_scales(name: str, values: pa.Array | npt.NDArray[Any], rows: npt.NDArray[Any]) -> None:
    """Raise if a caller's scales are not those of quantized rows."""
    scales = values if isinstance(values, np.ndarray) else np.asarray(values.to_numpy(zero_copy_only=False))
    if scales.dtype != np.float32 or len(scales) != len(rows):
        return  # refused as any column
    bad = ~(np.isfinite(scales) & (scales >= 0))
    bad |= (scales == 0) & rows.any(axis=tuple(range(1, rows.ndim)))
    if bad.any():
        row = int(np.argmax(bad))
        raise BatchError(
            f"column {name!r}: a scale must be finite and not negative, and 0 only in a row of zeros, got "
            f"{scales[row]} in row {row} of the batch"
        )


def _fixed(spec: ArraySpec, values: Any) -> npt.NDArray[Any]:
    """Return the rows of an array that is not ragged."""
    try:
        array = as_array(spec.name, values, spec.dtype)
        if array.dtype != np.dtype(object) or not is_ragged(values):
            return array
    except BatchError:
        if not is_ragged(values):
            raise
    raise BatchError(
        f"array {spec.name!r}: expected rows of shape {spec.row_shape}, got rows of any number of vectors: "
        "pad or pool them, or declare a store with zarrow.ragged"
    )


def _check_counts(
    name: str, values: pa.Array | npt.NDArray[Any], array: str, counts: npt.NDArray[np.int64]
) -> None:
    """Raise if a caller's column is not how many vectors rows have."""
    given = values if isinstance(values, np.ndarray) else np.asarray(values.to_numpy(zero_copy_only=False))
    if len(given) != len(counts):
        raise BatchError(f"column {name!r} has {len(given)} rows, array {array!r} has {len(counts)}")
    wrong = np.asarray(given != counts)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise BatchError(
            f"column {name!r} must be how many vectors each row of array {array!r} has: expected "
            f"{counts[row]}, got {given[row]} in row {row} of the batch: leave it out, or rename it"
        )


def _ragged(spec: ArraySpec, values: Any) -> Ragged:
    """Return the rows of a ragged array."""
    try:
        rows = Ragged.of(values, spec.dtype)
    except (InvalidInputError, BatchError) as error:
        raise BatchError(f"array {spec.name!r}: {error}") from error.__cause__
    if (most := int(rows.counts.max(initial=0))) > (spec.segment_vectors or 0):
        raise BatchError(
            f"array {spec.name!r}: a segment may have {spec.segment_vectors} vectors, got {most} in row "
            f"{int(rows.counts.argmax())}: split the row"
        )
    return rows


def _refuse_array(spec: ArraySpec, rows: npt.NDArray[Any]) -> None:
    """Raise what is wrong with an array; return if it is only the byte order."""
    if rows.shape[1:] != spec.row_shape or rows.ndim < 2:
        what = "vectors" if spec.is_ragged else "rows"
        expected = f"({what}, {', '.join(map(str, spec.row_shape))})"
        raise BatchError(f"array {spec.name!r}: expected shape {expected}, got {rows.shape}: reshape it")
    if rows.dtype.name != spec.dtype:
        raise BatchError(
            f"array {spec.name!r}: expected dtype {spec.dtype}, got {rows.dtype.name}: "
            "cast it if that loses nothing"
        )


def _check_sample_index(values: Any) -> Values:
    index = as_integers(values, "sample_index")
    if not isinstance(index, np.ndarray):  # a null: the row comes from no dataset
        try:
            index = index.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise BatchError(f"sample_index must lie in 0..2**63-1: {error}") from error
        known = np.asarray(index.drop_null())
        if known.size and known.min() < 0:
            raise BatchError(f"sample_index must lie in 0..2**63-1, got {known.min()}..{known.max()}")
        return index if index.null_count else known
    if index.ndim != 1:
        raise BatchError(f"sample_index must be one integer per row, got shape {index.shape}")
    if index.size and (
        int(np.minimum.reduce(index)) < 0 or (index.dtype.kind == "u" and int(index.max()) >= 2**63)
    ):
        raise BatchError(f"sample_index must lie in 0..2**63-1, got {index.min()}..{index.max()}")
    return index.astype(np.int64, copy=False)


def _require_valid(name: str, values: pa.Array) -> None:
    """Raise `BatchError` if an Arrow array breaks Arrow's rules, or one of JSON those of JSON.

    Arrow itself does not look at what others have made. Once the values are in a frame, no reader takes them.
    """
    problem = _problem(values)
    if problem is not None:
        rows = (row for row in range(len(values)) if _problem(_alone(values.slice(row, 1))) is not None)
        raise BatchError(
            f"column {name!r}: the value in row {next(rows, None)} is not valid: {problem}"
        ) from problem


def _problem(values: pa.Array) -> Exception | None:
    """Return what is wrong with an array, or None."""
    try:
        if pa.types.is_nested(values.type) and 2 * values.nbytes < values.get_total_buffer_size():
            values = _alone(values)  # a slice, of which Arrow would look at all children
        _validate(values)
        if isinstance(values.type, pa.JsonType):
            for text in values.storage.drop_null().to_pylist():
                require_json(text)
    except (pa.ArrowException, ValueError, RecursionError) as error:
        return error
    return None


def _validate(values: pa.Array) -> None:
    """Raise `pyarrow.ArrowInvalid` if an array breaks Arrow's rules; what lies under a null does not count.

    Arrow's own builders leave there indices into dictionaries without values, which Arrow calls invalid.
    """
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        kind, children = values.type, []
        if pa.types.is_struct(kind):
            values.validate()
            children = values.flatten()
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            type(values).from_arrays(values.offsets, pa.nulls(len(values.values))).validate(full=True)
            children = [values.flatten()]
        elif pa.types.is_fixed_size_list(kind):
            children = [values.flatten()]
        elif pa.types.is_map(kind):
            pa.ListArray.from_arrays(values.offsets, pa.nulls(len(values.keys))).validate(full=True)
            children = [values.keys, values.items]
        if not children:
            raise
        for child in children:
            _validate(child)


def _alone(values: pa.Array) -> pa.Array:
    """Return a slice without what lies around it; dictionaries within it are kept."""
    batch, sink = pa.RecordBatch.from_arrays([values], ["values"]), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return pa.ipc.open_stream(sink.getvalue()).read_next_batch().column(0)


def _represented(values: pa.Array, wanted: pa.DataType, column: pa.Field) -> pa.Array:
    """Return a column in its kept type, or raise where that would change a value."""
    if pa.types.is_dictionary(values.type) and values.null_count == len(values) and column.nullable:
        return pa.nulls(len(values), wanted)  # categories that are all null have no type
    if not is_representable(values.type, wanted):
        raise BatchError(
            f"column {column.name!r}: expected {column.type}, got {values.type}: "
            "cast it if that loses nothing"
        )
    try:
        return represent(values, wanted)
    except pa.ArrowException as error:
        row = next(row for row in range(len(values)) if not _fits(values.slice(row, 1), wanted))
        raise BatchError(
            f"column {column.name!r}: {column.type} cannot hold the value in row {row}: {error}"
        ) from error


def _fits(values: pa.Array, wanted: pa.DataType) -> bool:
    try:
        represent(values, wanted)
    except pa.ArrowException:
        return False
    return True


def _numpy_dtype(kind: pa.DataType) -> np.dtype[Any] | None:
    """Return the numpy dtype of a number type; None for any other."""
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return number_dtype(kind) if numbers else None


def _copies(columns: Sequence[Values]) -> list[Values]:
    """Return columns that share no memory with the caller's."""
    copies: list[Values] = []
    for values in columns:
        if isinstance(values, pa.Array):
            alone = pa.RecordBatch.from_arrays([values], ["values"])
            copies.append(pa.ipc.read_record_batch(alone.serialize(), alone.schema).column(0))
        else:
            copies.append(None if values is None else values.copy())
    return copies


def _own(rows: Any, dtype: np.dtype[Any], *, copy: bool) -> Any:
    """Return rows that the write path may keep: contiguous, little-endian, in memory of its own."""
    if isinstance(rows, Ragged):
        counts = rows.counts.copy() if copy else rows.counts
        return Ragged(_own(rows.values, dtype, copy=copy), counts)
    if not copy and rows.flags.c_contiguous and rows.dtype == dtype:
        return rows
    return np.array(rows, dtype, order="C", copy=True)
