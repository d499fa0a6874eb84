"""Rows in transit — what every format's module gets (`Outgoing`) and returns (`Incoming`).

Both come in batches: narrow columns as Arrow record batches, and per array the same rows as numpy arrays.
`to_arrow` and `from_arrow` convert between these and Arrow streams in which vectors are columns of lists.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zarrow._format.array_spec import rows_of
from zarrow._format.arrow import is_number, lists_as_array, number_dtype
from zarrow._format.layout import MEBIBYTE, RESERVED_COLUMNS, SAMPLE_INDEX
from zarrow._format.ragged import Ragged, RaggedArray
from zarrow._format.vector_lists import is_vector
from zarrow._read.join import Vectors
from zarrow._read.ragged_rows import StoreRagged
from zarrow.errors import InvalidInputError, MissingExtraError
from zarrow.store import Store, StoreArray

__all__ = [
    "Incoming",
    "Outgoing",
    "Progress",
    "array_names",
    "batch_rows",
    "from_arrow",
    "row_ranges",
    "to_arrow",
]

Progress = Callable[[int, int], None]
IncomingBatch = tuple[pa.RecordBatch, Vectors, npt.NDArray[np.int64] | None]

BATCH_BYTES = 16 * MEBIBYTE
MAX_BATCH_ROWS = 65_536
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def batch_rows(row_bytes: int) -> int:
    """Return how many rows of vectors to hold at once: a power of two.

    >>> batch_rows(3072), batch_rows(0)
    (4096, 65536)
    """
    return 1 << (min(rows_of(BATCH_BYTES, row_bytes), MAX_BATCH_ROWS).bit_length() - 1)


def row_ranges(counts: npt.NDArray[np.int64], vector_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield consecutive ranges of rows of any number of vectors to hold at once.

    >>> list(row_ranges(np.array([2, 2, 9, 0, 1]), BATCH_BYTES // 4))
    [(0, 2), (2, 3), (3, 5)]
    """
    ends = np.cumsum(counts)
    start, vectors = 0, 0
    while start < len(counts):
        fitting = int(np.searchsorted(ends, vectors + rows_of(BATCH_BYTES, vector_bytes), "right"))
        stop = max(start + 1, min(fitting, start + MAX_BATCH_ROWS))
        yield start, stop
        start, vectors = stop, int(ends[stop - 1])


def array_names(names: Iterable[str], where: Path) -> dict[str, str]:
    """Return a name that an array may have for each of these names; raise if two get the same.

    >>> array_names(["blocks.0.hook_resid_post", "v"], Path("run"))
    {'blocks.0.hook_resid_post': 'blocks_0_hook_resid_post', 'v': 'v'}
    """
    found = {name: re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] for name in names}
    for name, clean in found.items():
        if list(found.values()).count(clean) > 1:
            raise InvalidInputError(
                f"{where}: {name!r} and another one would both become the array {clean!r}: rename one"
            )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """Rows of a store on their way out.

    Parameters
    ----------
    store : Store
        The store.
    schema : pyarrow.Schema
        The chosen columns.
    explicit : bool
        Whether the user chose them.
    arrays : tuple of StoreArray
        The chosen arrays.
    progress : callable, optional
        Called with the number of rows done and in all.
    """

    store: Store
    schema: pa.Schema
    explicit: bool
    arrays: tuple[StoreArray | StoreRagged, ...]
    progress: Progress | None

    @classmethod
    def of(
        cls,
        store: Store,
        columns: Sequence[str] | None,
        arrays: Sequence[str] | None,
        progress: Progress | None,
        *,
        ragged: bool = False,
    ) -> Self:
        """Return the rows of a store; raise if a name is unknown or not unique, or may not be ragged."""
        store = store._pinned()  # several passes over it see the same rows
        users = [name for name in store.schema.names if name not in RESERVED_COLUMNS]
        store.join(columns=columns, arrays=arrays)  # reads nothing, but checks the names
        names = users if columns is None else list(dict.fromkeys(columns))
        names_of = [*store.arrays, *store.ragged] if arrays is None else arrays
        chosen = [store[name] for name in names_of]
        if not ragged and (found := [array.name for array in chosen if isinstance(array, StoreRagged)]):
            raise InvalidInputError(
                f"{store.path}: rows of array {found[0]!r} have any number of vectors, which this format "
                "cannot hold: name other arrays, or pool it first (zarrow.analysis.pool)"
            )
        if clash := sorted(set(names) & {array.name for array in chosen}):
            raise InvalidInputError(f"{clash} are both columns and arrays: leave one of them out")
        schema = pa.schema([store.schema.field(name) for name in names])
        return cls(
            store=store,
            schema=schema,
            explicit=columns is not None,
            arrays=tuple(chosen),
            progress=progress,
        )

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.store.num_rows

    @property
    def fixed(self) -> tuple[StoreArray, ...]:
        """The arrays that are not ragged: all of them, in most formats."""
        return tuple(array for array in self.arrays if not isinstance(array, StoreRagged))

    def batch_rows(self) -> int:
        """Return how many rows of these arrays to hold at once."""
        return batch_rows(max((array.nbytes // max(len(array), 1) for array in self.arrays), default=0))

    def only(self, columns: Iterable[str]) -> Outgoing:
        """Return the same rows with fewer columns."""
        return replace(self, schema=pa.schema([self.schema.field(name) for name in columns]))

    def batches(self) -> Iterator[tuple[int, pa.RecordBatch, Vectors]]:
        """Yield first row, columns and vectors of batches of `batch_rows` rows, the last one shorter."""
        start = 0
        for batch, vectors in self.store.join(
            columns=self.schema.names,
            arrays=[array.name for array in self.arrays],
            batch_size=self.batch_rows(),
        ):
            yield start, batch, vectors
            start += batch.num_rows
            for array in self.arrays:
                array.release()
            if self.progress is not None:
                self.progress(start, self.rows)


@dataclass(slots=True, kw_only=True)
class Incoming:
    """Rows of another format on their way in. A context manager that closes their files.

    Parameters
    ----------
    schema : pyarrow.Schema
        The columns of the store to make.
    arrays : mapping of str to (row shape, dtype name) or RaggedArray
        The arrays.
    total : int
        Number of rows.
    batches : callable
        Returns an iterator of columns, vectors and sample indices.
    keys : tuple of str
        Columns that name a row, if the format has any.
    files : ExitStack
        The open files.
    """

    schema: pa.Schema
    arrays: Mapping[str, tuple[tuple[int, ...], str] | RaggedArray]
    total: int
    batches: Callable[[], Iterator[IncomingBatch]]
    keys: tuple[str, ...] = ()
    files: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.files.close()


# Vectors in Arrow tables: lists of equal length


def to_arrow(rows: Outgoing, *, tensors: bool = False) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Return schema and batches of columns and vectors, each array as a column of fixed-size lists.

    Vectors of several axes are lists of lists, or with `tensors` of a fixed shape.
    """
    fields = list(rows.schema)
    for array in rows.arrays:
        kind = pa.from_numpy_dtype(array.dtype)
        shape = array.vector_shape if isinstance(array, StoreRagged) else array.row_shape
        if tensors and len(shape) > 1:
            kind = pa.fixed_shape_tensor(kind, shape)
        else:
            for axis in reversed(shape):
                kind = pa.list_(pa.field("element", kind, nullable=False), axis)
        if isinstance(array, StoreRagged):
            kind = pa.list_(pa.field("element", kind, nullable=False))
        fields.append(pa.field(array.name, kind, nullable=False))
    schema = pa.schema(fields)

    def batches() -> Iterator[pa.RecordBatch]:
        for _, batch, vectors in rows.batches():
            columns = list(batch.columns)
            for array in rows.arrays:
                found, kind = vectors[array.name], schema.field(array.name).type
                flat = found.values if isinstance(found, Ragged) else found
                values = pa.array(np.ascontiguousarray(flat).reshape(-1))
                if isinstance(found, Ragged):
                    values = _listed(values, kind.value_type)
                    offsets = pa.array(found.offsets.astype(np.int32))
                    columns.append(pa.ListArray.from_arrays(offsets, values, type=kind))
                else:
                    columns.append(_listed(values, kind))
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return schema, batches()


def _listed(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.FixedShapeTensorType):
        return pa.ExtensionArray.from_storage(kind, _listed(values, kind.storage_type))
    inner = kind.value_type
    if pa.types.is_fixed_size_list(inner):
        values = _listed(values, inner)
    return pa.FixedSizeListArray.from_arrays(values, type=kind)


def from_arrow(
    total: int, first: pa.RecordBatch, batches: Callable[[], Iterator[pa.RecordBatch]], where: Path
) -> Incoming:
    """Return the rows of a stream of Arrow batches, in which lists of numbers of equal length become arrays.

    Parameters
    ----------
    total : int
        Number of rows.
    first : pyarrow.RecordBatch
        A first batch, which shows the length of lists whose type does not have it.
    batches : callable
        Returns the stream, from its beginning.
    where : Path
        The source, for messages.
    """
    found = {column.name: _facts_of(first[column.name]) for column in first.schema}
    arrays = {name: facts for name, facts in found.items() if facts is not None}
    names = array_names(arrays, where)
    indexed = SAMPLE_INDEX in first.schema.names and pa.types.is_integer(
        first.schema.field(SAMPLE_INDEX).type
    )
    schema = pa.schema(
        [
            column
            for column in first.schema
            if column.name not in arrays and not (indexed and column.name == SAMPLE_INDEX)
        ]
    )

    def read() -> Iterator[IncomingBatch]:
        done = 0
        for batch in batches():
            vectors = {
                names[name]: _vectors(batch[name], facts, f"{where}: column {name!r}, rows from {done} on")
                for name, facts in arrays.items()
            }
            index = None
            if indexed:
                if batch[SAMPLE_INDEX].null_count:
                    raise InvalidInputError(f"{where}: {SAMPLE_INDEX} is null in rows from {done} on")
                index = batch[SAMPLE_INDEX].cast(pa.int64()).to_numpy()
            yield batch.select(schema.names), vectors, index
            done += batch.num_rows

    shapes = {names[name]: facts for name, facts in arrays.items()}
    return Incoming(schema=schema, arrays=shapes, total=total, batches=read)


def _facts_of(column: pa.Array) -> tuple[tuple[int, ...], str] | RaggedArray | None:
    """Return row shape and dtype of a column that holds vectors, judging by a first batch; else None.

    Lists of any length, of lists of one length, are rows of any number of vectors.
    """
    facts, kind = _row_shape(column), column.type
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and (
        is_vector(kind.value_type) or facts is None
    ):
        vectors = _row_shape(column.flatten())
        return facts if vectors is None else RaggedArray(*vectors)
    return facts


def _row_shape(column: pa.Array) -> tuple[tuple[int, ...], str] | None:
    shape: list[int] = []
    kind = column.type
    if isinstance(kind, pa.FixedShapeTensorType):
        shape = [kind.shape[axis] for axis in kind.permutation or range(len(kind.shape))]
        kind = kind.value_type
    while any(is_list(kind) for is_list in _LISTS):
        if pa.types.is_fixed_size_list(kind):
            shape.append(kind.list_size)
        else:
            lengths = np.unique(np.diff(column.drop_null().offsets.to_numpy()))  # nulls are refused later
            if len(lengths) != 1:
                return None
            shape.append(int(lengths[0]))
        column, kind = column.flatten(), kind.value_type
    if not shape or not is_number(kind) or 0 in shape:
        return None
    return tuple(shape), number_dtype(kind).name


def _vectors(
    column: pa.Array, facts: tuple[tuple[int, ...], str] | RaggedArray, what: str
) -> npt.NDArray[Any] | Ragged:
    """Return lists as an array; raise unless all of them have that shape."""
    try:
        if isinstance(facts, RaggedArray):
            rows = Ragged.of(column)
            return Ragged(rows.values.astype(facts.dtype, copy=False), rows.counts)
        shape, kind = facts
        return lists_as_array(column, shape).astype(kind, copy=False)
    except InvalidInputError as error:
        raise InvalidInputError(f"{what}: {error}") from error


def without_columns(rows: int) -> pa.RecordBatch:
    """Return a batch of rows without columns."""
    return pa.record_batch({"rows": pa.nulls(rows)}).select([])


def missing(what: str, error: ImportError, package: str) -> MissingExtraError:
    """Return the error that names the command which installs a format's library."""
    return MissingExtraError(f"{what} needs {error.name}: pip install {package}", name=error.name)
