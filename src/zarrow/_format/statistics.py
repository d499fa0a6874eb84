"""Statistics — minimum, maximum, nulls and NaNs of the columns of a segment, by which filters skip it.

A record has those of its segment (`column_statistics`); the file ``statistics.arrow`` has those of all
segments of a complete store, a row for each, so that a filter asks one file instead of every part.

Values are kept as the bytes that Arrow has for them. Minimum and maximum are bounds: those of long texts are
cut, the maximum's last character raised. They leave NaN out, so whoever skips by them needs the number of
NaNs, too. A column whose values have no order that filters know (nested ones, extensions) has none.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format.arrow import (
    bits_of,
    bools_as_arrow,
    is_bytes,
    is_compressed,
    is_text,
    numbers_as_arrow,
    value_type,
)
from zarrow._format.layout import ROW, SAMPLE_INDEX, STATISTICS
from zarrow._format.trailers import MAX_TRAILER_BYTES, with_trailer, without_trailer
from zarrow.errors import CorruptionError

__all__ = [
    "MAX_STATISTICS_BYTES",
    "ColumnStatistics",
    "Statistics",
    "check_statistics",
    "column_statistics",
    "decode_statistics",
    "excess",
    "has_bounds",
    "nans_in",
    "statistics_of",
]

MAGIC = b"ZARROWS1"
_MAX_VALUE_BYTES = 64
_MAX_OF_SEGMENT_BYTES = 512 << 10
"""Of all columns of a segment: they must fit into its record."""
_MAX_FILE_BYTES = 64 << 20
"""Of all segments: what is left out makes filters slower, and no answer wrong."""
MAX_STATISTICS_BYTES = _MAX_FILE_BYTES + MAX_TRAILER_BYTES
_FACTS_BYTES = 64
"""About what a column takes besides its bounds."""
FOOTERS, COLUMNS = "footer_crc32c", "columns"


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnStatistics:
    """The statistics of a column in one segment.

    Parameters
    ----------
    nulls, nans : int
        How many values are null, or NaN.
    low, high : bytes or None
        No other value is below or above; as Arrow has them. None if there are no other values, or no order.
    """

    nulls: int
    nans: int = 0
    low: bytes | None = None
    high: bytes | None = None

    def __post_init__(self) -> None:
        if not all(type(number) is int and number >= 0 for number in (self.nulls, self.nans)):
            raise ValueError("numbers of nulls and NaNs must be 0 or more")

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        bounds = {"min": self.low, "max": self.high}
        found = {
            name: base64.b64encode(value).decode() for name, value in bounds.items() if value is not None
        }
        return {"nulls": self.nulls, "nans": self.nans, **found}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> ColumnStatistics:
        """Return those of a JSON object."""
        bounds = [
            base64.b64decode(body[name], validate=True) if name in body else None for name in ("min", "max")
        ]
        return cls(nulls=body["nulls"], nans=body["nans"], low=bounds[0], high=bounds[1])


def has_bounds(kind: pa.DataType) -> bool:
    """Tell whether columns of a type have a minimum and a maximum.

    >>> has_bounds(pa.dictionary(pa.int32(), pa.string())), has_bounds(pa.list_(pa.int8()))
    (True, False)
    """
    kind = value_type(kind)
    return is_text(kind) or is_bytes(kind) or _width(kind) is not None


def _width(kind: pa.DataType) -> int | None:
    r"""Return the bytes of a value of a type, in a record; None if they differ."""
    if isinstance(kind, pa.BaseExtensionType) or pa.types.is_nested(kind) or pa.types.is_null(kind):
        return None
    try:
        width = max(int(kind.bit_width) // 8, 1)
    except ValueError:
        return None
    return width if width <= _MAX_VALUE_BYTES else None


def column_statistics(table: pa.Table) -> dict[str, ColumnStatistics]:
    r"""Return the statistics of the columns of a segment, but of ``row``, which follows from its number.

    Parameters
    ----------
    table : pyarrow.Table
        The segment's rows.

    Returns
    -------
    dict of str to ColumnStatistics
        ``sample_index`` first; columns beyond what a record can hold are left out.

    Examples
    --------
    >>> found = column_statistics(pa.table({"n": pa.array([3, None, -1], pa.int8())}))
    >>> found["n"]
    ColumnStatistics(nulls=1, nans=0, low=b'\xff', high=b'\x03')
    """
    found: dict[str, ColumnStatistics] = {}
    left = _MAX_OF_SEGMENT_BYTES
    for name in sorted(table.column_names, key=lambda name: name != SAMPLE_INDEX):
        if name == ROW:
            continue
        one = _of_column(table[name])
        left -= _FACTS_BYTES + 2 * len(name.encode()) + 2 * (len(one.low or b"") + len(one.high or b""))
        if left < 0:
            break
        found[name] = one
    return found


def _of_column(column: pa.ChunkedArray, *, cut: bool = True) -> ColumnStatistics:
    import pyarrow.compute as pc

    kind, nulls = value_type(column.type), column.null_count
    if not has_bounds(kind) or nulls == len(column):
        return ColumnStatistics(nulls=nulls)
    if pa.types.is_dictionary(column.type):
        column = pa.chunked_array([chunk.dictionary for chunk in column.chunks if len(chunk)], kind)
    elif pa.types.is_duration(kind):
        column = pa.chunked_array([chunk.view(pa.int64()) for chunk in column.chunks])
    nans = nans_in(column)
    if nans + nulls == len(column):
        return ColumnStatistics(nulls=nulls, nans=nans)
    if pa.types.is_floating(kind):
        column = column.cast(pa.float64())  # which has room for every value, and kernels for each
        column = column.filter(pc.invert(pc.is_nan(column))) if nans else column
    found = pc.min_max(column)
    low, high = (_as_bytes(found[which], kind) for which in ("min", "max"))
    if pa.types.is_floating(kind):  # either zero may be among the values
        zero, minus = (np.array(one, f"<f{len(low)}").tobytes() for one in (0.0, -0.0))
        low, high = minus if low == zero else low, zero if high == minus else high
    if cut and (is_text(kind) or is_bytes(kind)):
        low, high = _prefix(low, text=is_text(kind)), _above(high, text=is_text(kind))
    return ColumnStatistics(nulls=nulls, nans=nans, low=low, high=high)


def nans_in(column: pa.Array | pa.ChunkedArray) -> int:
    """Return how many values are NaN.

    >>> nans_in(pa.array([1.0, None, float("nan")]))
    1
    """
    import pyarrow.compute as pc

    if not pa.types.is_floating(column.type):
        return 0
    return pc.sum(pc.is_nan(column.cast(pa.float64()))).as_py() or 0


def _as_bytes(value: pa.Scalar, kind: pa.DataType) -> Any:
    """Return the bytes that Arrow has for a value."""
    if is_text(kind) or is_bytes(kind):
        return value.as_buffer().to_pybytes()
    if pa.types.is_boolean(kind):
        return bytes([value.as_py()])
    if pa.types.is_floating(kind):
        return np.array(value.as_py(), f"<f{_width(kind)}").tobytes()
    return pa.repeat(value, 1).buffers()[1].to_pybytes()[: _width(kind)]


def _prefix(value: bytes, *, text: bool) -> bytes:
    """Return the beginning of a value, which is not above it."""
    if len(value) <= _MAX_VALUE_BYTES:
        return value
    start = value[:_MAX_VALUE_BYTES]
    return start.decode(errors="ignore").encode() if text else start


def _above(value: bytes, *, text: bool) -> bytes | None:
    r"""Return a short value that is not below a value; None if there is none.

    >>> _above(b"a" * 99, text=True) == b"a" * 63 + b"b", _above(b"\xff" * 99, text=False)
    (True, None)
    """
    start = _prefix(value, text=text)
    if start == value:
        return value
    units: list[int] = list(map(ord, start.decode())) if text else list(start)
    last = 0x10FFFF if text else 0xFF
    while units and units[-1] == last:
        units.pop()
    if not units:
        return None
    units[-1] = 0xE000 if text and units[-1] == 0xD7FF else units[-1] + 1  # between them are no characters
    return "".join(map(chr, units)).encode() if text else bytes(units)


def excess(stated: ColumnStatistics, column: pa.ChunkedArray) -> str | None:
    """Return what statistics of some rows contradict; None if the rows may be among those they are of.

    >>> one = column_statistics(pa.table({"n": [3, 5]}))["n"]
    >>> excess(one, pa.chunked_array([[4, 3]])), excess(one, pa.chunked_array([[6]]))
    (None, 'max')
    """
    kind, there = value_type(column.type), _of_column(column, cut=False)
    if there.nulls > stated.nulls or there.nans > stated.nans:
        return "nulls" if there.nulls > stated.nulls else "nans"
    for what, given, found in (("min", stated.low, there.low), ("max", stated.high, there.high)):
        if given is not None and found is not None:
            values = [_as_number(value, kind) for value in (given, found)]
            if values != sorted(values, reverse=what == "max"):
                return what
    return None


def _as_number(value: bytes, kind: pa.DataType) -> Any:
    """Return a value, given as the bytes that Arrow has for it, as one that Python orders alike."""
    if is_text(kind) or is_bytes(kind):
        return value
    if pa.types.is_temporal(kind):
        kind = pa.int32() if kind.bit_width == 32 else pa.int64()
    found = _as_values([value], kind)
    return found.cast(pa.float64())[0].as_py() if pa.types.is_float16(kind) else found[0].as_py()


# All segments


class _Part(Protocol):
    @property
    def footer_crc32c(self) -> int: ...
    @property
    def statistics(self) -> Mapping[str, ColumnStatistics]: ...


def statistics_of(schema: pa.Schema, parts: Sequence[_Part], of: Any) -> bytes:
    """Return the content of ``statistics.arrow``.

    Parameters
    ----------
    schema : pyarrow.Schema
        The table's.
    parts : sequence of PartFacts
        The part of each segment.
    of : Identity
        The rows.
    """
    segments, footers = [part.statistics for part in parts], [part.footer_crc32c for part in parts]
    fields: list[pa.Field] = []
    columns: list[pa.Array] = []
    left = _MAX_FILE_BYTES - 8 * len(segments)
    for name in sorted(schema.names, key=lambda name: name != SAMPLE_INDEX):
        stated = [one.get(name) for one in segments]
        bounds = sum(len(one.low or b"") + len(one.high or b"") for one in stated if one is not None)
        left -= len(segments) * _FACTS_BYTES + bounds
        if left < 0:
            break
        if any(one is not None for one in stated):
            columns.append(_as_column(stated, value_type(schema.field(name).type)))
            fields.append(pa.field(name, columns[-1].type))
    batch = pa.RecordBatch.from_arrays(
        [
            numbers_as_arrow(np.array(footers, np.uint32)),
            pa.StructArray.from_arrays(columns, fields=fields)
            if columns
            else pa.nulls(len(segments), pa.struct([])),
        ],
        schema=pa.schema([(FOOTERS, pa.uint32()), (COLUMNS, pa.struct(fields))]),
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return with_trailer(sink.getvalue().to_pybytes(), {"of": asdict(of)}, MAGIC)


def _as_column(stated: Sequence[ColumnStatistics | None], kind: pa.DataType) -> pa.Array:
    """Return the statistics of a column in all segments, null where there are none."""
    there = np.array([one is not None for one in stated], bool)
    some = [one or ColumnStatistics(nulls=0) for one in stated]
    columns = [
        numbers_as_arrow(np.array([getattr(one, what) for one in some], np.int64))
        for what in ("nulls", "nans")
    ]
    fields = [pa.field("nulls", pa.int64()), pa.field("nans", pa.int64())]
    if has_bounds(kind):
        columns += [_as_values([getattr(one, what) for one in some], kind) for what in ("low", "high")]
        fields += [pa.field("min", kind), pa.field("max", kind)]
    return pa.StructArray.from_arrays(columns, fields=fields, mask=bools_as_arrow(~there))


def _as_values(values: Sequence[bytes | None], kind: pa.DataType) -> pa.Array:
    """Return values, given as the bytes that Arrow has for them."""
    there = bits_of(np.array([value is not None for value in values], np.bool_))
    if is_text(kind) or is_bytes(kind):
        wide = pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
        ends = np.cumsum([0, *(len(value or b"") for value in values)], dtype=np.int64 if wide else np.int32)
        data = b"".join(value or b"" for value in values)
        buffers = [there, pa.py_buffer(ends), pa.py_buffer(data)]
    elif pa.types.is_boolean(kind):
        buffers = [there, bits_of(np.array([bool(value) and value != b"\0" for value in values], np.bool_))]
    else:
        empty = bytes(_width(kind) or 0)
        buffers = [there, pa.py_buffer(b"".join(empty if value is None else value for value in values))]
    return pa.Array.from_buffers(kind, len(values), buffers)


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """The statistics of all segments of a store.

    Parameters
    ----------
    footers : uint32 array, shape (segments,)
        The checksum of each part's footer.
    columns : dict of str to pyarrow.StructArray
        By column, with a row per segment: ``nulls``, ``nans``, ``min`` and ``max``.
    """

    footers: npt.NDArray[np.uint32]
    columns: dict[str, pa.StructArray]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Statistics)
            and np.array_equal(self.footers, other.footers)
            and self.columns == other.columns
        )


def decode_statistics(file: bytes, schema: pa.Schema, segments: int, of: Any) -> Statistics | None:
    """Return the statistics in a file; None if they are of other rows.

    Parameters
    ----------
    file : bytes
        Its content.
    schema : pyarrow.Schema
        The table's.
    segments : int
        How many there are.
    of : Identity
        The rows.

    Raises
    ------
    CorruptionError
        If it is damaged, or not what a writer writes: a store may be hostile.
    """
    data, facts = without_trailer(np.frombuffer(file, np.uint8), MAGIC, STATISTICS)
    if facts.get("of") != asdict(of):
        return None
    try:
        reader = pa.ipc.MessageReader.open_stream(pa.BufferReader(data))
        stored = pa.ipc.read_schema(reader.read_next_message())
        _check_schema(stored, schema)
        message = reader.read_next_message()
        if message.type != "record batch" or is_compressed(message.metadata):
            raise CorruptionError("its rows must be an uncompressed record batch", path=STATISTICS)
        batch = pa.ipc.read_record_batch(message, stored)
        batch.validate(full=True)
    except (pa.ArrowException, EOFError, OSError, StopIteration, struct.error) as error:
        raise CorruptionError(f"not Arrow's format: {error}", path=STATISTICS) from error
    if batch.num_rows != segments or any(column.null_count for column in batch.columns):
        raise CorruptionError(f"{batch.num_rows} rows for {segments} segments", path=STATISTICS)
    found = batch.column(COLUMNS)
    columns = {field.name: found.field(place) for place, field in enumerate(found.type)}
    for name, column in columns.items():
        _check_numbers(column, name)
    return Statistics(np.asarray(np.from_dlpack(batch.column(FOOTERS))), columns)


def _check_schema(stored: pa.Schema, schema: pa.Schema) -> None:
    if stored.names != [FOOTERS, COLUMNS] or stored.field(0).type != pa.uint32():
        raise CorruptionError(f"its columns are {stored.names}", path=STATISTICS)
    if not pa.types.is_struct(stored.field(1).type):
        raise CorruptionError(f"{COLUMNS!r} is no struct", path=STATISTICS)
    for field in stored.field(1).type:
        if field.name not in schema.names:
            raise CorruptionError(f"of a column {field.name!r}, which there is not", path=STATISTICS)
        kind = value_type(schema.field(field.name).type)
        if field.type != _as_column([], kind).type:
            raise CorruptionError(f"column {field.name!r} has statistics of another type", path=STATISTICS)


def _check_numbers(column: pa.StructArray, name: str) -> None:
    nulls, nans = (np.asarray(np.from_dlpack(column.field(place))) for place in (0, 1))
    of_floats = column.type.num_fields > 2 and pa.types.is_floating(column.type.field(2).type)
    if (nulls < 0).any() or (nans < 0).any() or (nans.any() and not of_floats):
        raise CorruptionError(f"column {name!r} has other numbers of nulls or NaNs", path=STATISTICS)


def check_statistics(found: Mapping[str, ColumnStatistics], schema: pa.Schema, rows: int, path: str) -> None:
    """Raise `CorruptionError` if the statistics in a record cannot be those of its rows."""
    for name, one in found.items():
        if name not in schema.names or name == ROW:
            raise CorruptionError(f"statistics of a column {name!r}, which there is not", path=path)
        kind = value_type(schema.field(name).type)
        width, given = _width(kind), [value for value in (one.low, one.high) if value is not None]
        if (
            one.nulls + one.nans > rows
            or (one.nans and not pa.types.is_floating(kind))
            or any(not has_bounds(kind) or (width is not None and len(value) != width) for value in given)
        ):
            raise CorruptionError(f"statistics that do not fit column {name!r}", path=path)
        if is_text(kind):
            for value in given:
                try:
                    value.decode()
                except UnicodeDecodeError as error:
                    raise CorruptionError(f"statistics of {name!r} are no text", path=path) from error
