"""Identifiers — the columns that say whose predictions the rows of a batch are.

They come as a table with one row per sample of the dataset, as the path of a Parquet file (or directory) that
is read a row group at a time, or from a function that finds them in a batch.

The samples of a batch are mostly neighbours, so a table is first cut to the window that they span: a slice,
not a gather from the whole table. Of a Parquet file only the row groups that a batch touches are decoded, and
the last two are kept.
"""

from __future__ import annotations

import abc
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from zarrow._format.arrow import without_view
from zarrow._format.given import as_table
from zarrow._format.layout import RESERVED_COLUMNS
from zarrow._predict.sample_set import SampleIndex
from zarrow._storage.reading import parquet_files
from zarrow.errors import BatchError, InvalidInputError

__all__ = ["CallableIdentifiers", "Identifiers", "open_all", "open_identifiers"]

_KEPT_ROW_GROUPS = 2
_SCATTERED = 256
"""Indices that span more than this many times their number are scattered."""


class Identifiers(abc.ABC):
    """Identifiers that are found by the rows' index in the dataset."""

    @property
    @abc.abstractmethod
    def rows(self) -> int:
        """How many samples have identifiers."""

    @abc.abstractmethod
    def take(self, sample_index: SampleIndex) -> pa.Table:
        """Return the identifiers of these samples, in this order."""


class TableIdentifiers(Identifiers):
    """Identifiers that are in memory.

    Parameters
    ----------
    table : pyarrow.Table
        One row per sample, in the dataset's order.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = _without_views(table)

    @property
    def rows(self) -> int:
        """How many samples have identifiers."""
        return int(self._table.num_rows)

    def take(self, sample_index: SampleIndex) -> pa.Table:
        """Return the identifiers of these samples, in this order."""
        _check_range(sample_index, self.rows)
        scattered = len(sample_index) and np.ptp(sample_index) > _SCATTERED * len(sample_index)
        if scattered and any(column.num_chunks > 1 for column in self._table.columns):
            # The more chunks, the slower a gather, so they are joined once.
            self._table = self._table.combine_chunks()
        return _gather(self._table, sample_index)


class ParquetIdentifiers(Identifiers):
    """Identifiers in a Parquet file, or in the files of a directory in natural order: part.2 before part.10.

    Parameters
    ----------
    path : Path
        The file or directory; one row per sample, in the dataset's order.
    """

    def __init__(self, path: Path) -> None:
        try:
            files = parquet_files(path)
        except InvalidInputError as error:
            raise InvalidInputError(f"identifiers: {error}") from error
        self._groups: list[tuple[Path, int]] = []
        starts = [0]
        self.schema: pa.Schema | None = None
        for file in files:
            try:
                with pq.ParquetFile(file) as parquet:
                    schema, metadata = parquet.schema_arrow, parquet.metadata
            except FileNotFoundError:
                raise InvalidInputError(f"identifiers: {file} does not exist") from None
            except pa.ArrowInvalid as error:
                raise InvalidInputError(f"identifiers: {file} is not a Parquet file: {error}") from error
            if self.schema is not None and not schema.equals(self.schema):
                raise InvalidInputError(f"identifiers: the columns of {file} are not those of {files[0]}")
            self.schema = schema
            for group in range(metadata.num_row_groups):
                self._groups.append((file, group))
                starts.append(starts[-1] + metadata.row_group(group).num_rows)
        self._starts = np.array(starts, np.int64)
        self._decoded: OrderedDict[int, pa.Table] = OrderedDict()

    @property
    def rows(self) -> int:
        """How many samples have identifiers."""
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decoded": OrderedDict()}

    def take(self, sample_index: SampleIndex) -> pa.Table:
        """Return the identifiers of these samples, decoding only the row groups that they lie in."""
        _check_range(sample_index, self.rows)
        assert self.schema is not None
        if not len(sample_index):
            return self.schema.empty_table()
        groups = np.searchsorted(self._starts, sample_index, "right") - 1
        touched = np.unique(groups)
        if len(touched) == 1:
            return _gather(self._group(int(touched[0])), sample_index - self._starts[touched[0]])
        pieces = []
        order = []
        for group in touched:
            rows = np.flatnonzero(groups == group)
            order.append(rows)
            pieces.append(_gather(self._group(int(group)), sample_index[rows] - self._starts[group]))
        return pa.concat_tables(pieces).take(np.argsort(np.concatenate(order)))

    def _group(self, number: int) -> pa.Table:
        table = self._decoded.get(number)
        if table is None:
            while len(self._decoded) >= _KEPT_ROW_GROUPS:
                self._decoded.popitem(last=False)
            file, group = self._groups[number]
            with pq.ParquetFile(file) as parquet:
                table = self._decoded[number] = _without_views(
                    parquet.read_row_group(group, use_threads=False)
                )
        self._decoded.move_to_end(number)
        return table


class CallableIdentifiers:
    """Identifiers that a function of the caller finds in a batch.

    Parameters
    ----------
    find : callable of (batch, sample_index) to table
        Gets what the data loader yielded and the rows' index in the dataset.
    """

    def __init__(self, find: Callable[[Any, SampleIndex], Any]) -> None:
        self._find = find

    def find(self, batch: Any, sample_index: SampleIndex) -> pa.Table:
        """Return what the function returned, if it is a table of the batch's rows."""
        table = _as_table(self._find(batch, sample_index))
        if table.num_rows != len(sample_index):
            raise BatchError(
                f"identifiers: the callable must return one row per prediction, {len(sample_index)}, got "
                f"{table.num_rows}"
            )
        return _checked(table)


def open_identifiers(source: Any) -> Identifiers | CallableIdentifiers | None:
    """Return the identifiers that the caller gave.

    Parameters
    ----------
    source : table, frame, path, callable, Identifiers or None
        As `zarrow.lightning.PredictionWriter` takes it.

    Returns
    -------
    Identifiers, CallableIdentifiers or None
        None for None.

    Raises
    ------
    InvalidInputError
        If it is none of these, or has a column with a reserved name.
    """
    if source is None or isinstance(source, Identifiers):
        return source
    if isinstance(source, str | os.PathLike):
        found = ParquetIdentifiers(Path(source))
        assert found.schema is not None
        _checked(found.schema.empty_table())
        return found
    if callable(source) and not hasattr(source, "__arrow_c_stream__"):
        return CallableIdentifiers(source)
    return TableIdentifiers(_checked(_as_table(source)))


def open_all(source: Any) -> list[Identifiers | CallableIdentifiers | None]:
    """Return the identifiers of each data loader: those of a list, else the only ones."""
    return [open_identifiers(one) for one in (source if isinstance(source, list | tuple) else [source])]


def _as_table(source: Any) -> pa.Table:
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, pa.RecordBatch):
        return pa.Table.from_batches([source])
    try:
        return as_table(source)
    except BatchError as error:
        raise InvalidInputError(
            "identifiers must be a pyarrow Table, a polars or pandas frame, the path of a Parquet file or a "
            f"callable of (batch, sample_index) to one, got {type(source).__name__}: {error}"
        ) from error


def _without_views(table: pa.Table) -> pa.Table:
    """Return the table with plain strings in place of views, from which pyarrow cannot gather."""
    fields = [field.with_type(without_view(field.type)) for field in table.schema]
    schema = pa.schema(fields, table.schema.metadata)
    return table if schema.equals(table.schema) else table.cast(schema)


def _checked(table: pa.Table) -> pa.Table:
    for name in table.column_names:
        if name in RESERVED_COLUMNS:
            raise InvalidInputError(f"identifiers: the column name {name!r} is reserved: rename the column")
    return table


def _check_range(sample_index: SampleIndex, rows: int) -> None:
    if len(sample_index) and (sample_index.max() >= rows or sample_index.min() < 0):
        bad = sample_index[(sample_index >= rows) | (sample_index < 0)][0]
        raise BatchError(
            f"identifiers must have one row per sample, in the dataset's order: the batch has sample_index "
            f"{bad}, but there are only {rows} rows"
        )


def _gather(table: pa.Table, numbers: npt.NDArray[np.int64]) -> pa.Table:
    """Return rows of a table: a slice where they are neighbours, else a gather from a window."""
    if not len(numbers):
        return table.slice(0, 0)
    first, last = int(numbers.min()), int(numbers.max())
    window = table.slice(first, last - first + 1)
    if len(window) == len(numbers) and (len(numbers) == 1 or bool((np.diff(numbers) == 1).all())):
        return window
    return window.take(pa.array(numbers - first))
