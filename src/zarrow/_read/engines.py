"""Query engines — the table for Polars and DuckDB.

Full parts never change, so the engines get their paths and read only what a query needs; in a bucket they
read through the store (`remote_parts`). The other rows
(live ones, and those of a short last segment, which a writer may take back) are handed over in memory. An
engine is loaded when it is first used.
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from zarrow._format.arrow import with_children, with_types
from zarrow._format.layout import ROW, require_utf8
from zarrow._read.remote_parts import RemoteParts
from zarrow.errors import InvalidInputError, MissingExtraError

if TYPE_CHECKING:
    import duckdb
    import polars as pl

__all__ = ["duckdb_connection", "duckdb_union", "for_duckdb", "polars_frame", "quoted", "type_in_duckdb"]


_MAX_PRECISION = 38


def _type_in_polars(kind: pa.DataType) -> pa.DataType:
    """Return a type that Polars takes from Arrow, and to which it reads the same type from Parquet."""
    if pa.types.is_decimal256(kind):
        return pa.decimal128(kind.precision, kind.scale)
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        zoneinfo.ZoneInfo(kind.tz)  # which it must know by name, else it panics
    return with_children(kind, _type_in_polars)


def type_in_duckdb(kind: pa.DataType) -> pa.DataType:
    """Return the type to which DuckDB reads a type from Parquet, so that all rows of a column are alike."""
    if pa.types.is_dictionary(kind):
        return type_in_duckdb(kind.value_type)
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_duration(kind):
        return pa.int64()
    if pa.types.is_decimal256(kind):
        return pa.decimal128(kind.precision, kind.scale) if kind.precision <= _MAX_PRECISION else pa.float64()
    if isinstance(kind, pa.FixedShapeTensorType):
        return type_in_duckdb(kind.storage_type)
    return with_children(kind, type_in_duckdb)


def polars_frame(paths: list[str] | RemoteParts, rest: pa.Table) -> pl.LazyFrame:
    """Return a lazy frame of Parquet files and the rows that follow them."""
    try:
        import polars as pl
    except ImportError as error:
        raise MissingExtraError("to_polars needs Polars: pip install polars") from error
    for field in rest.schema:
        try:
            _type_in_polars(field.type)
        except (ValueError, KeyError, OSError) as error:
            raise InvalidInputError(
                f"column {field.name!r}: Polars has no {field.type} ({error}): read it with table() or sql()"
            ) from error
    behind = pl.DataFrame(pl.from_arrow(with_types(rest, _type_in_polars))).lazy()
    if isinstance(paths, RemoteParts):
        files = paths.source(_type_in_polars)
    elif paths:
        require_utf8(paths[0])
        files = pl.scan_parquet(paths, glob=False)
    else:
        return behind
    return pl.concat([files, behind], how="vertical_relaxed") if rest.num_rows else files


def duckdb_connection(paths: list[str] | RemoteParts, rest: pa.Table) -> duckdb.DuckDBPyConnection:
    """Return a connection with a view ``predictions`` of Parquet files and the rows that follow them."""
    connection = _connect()
    connection.execute(f"CREATE VIEW predictions AS {_rows_of(connection, 'zarrow_rest', paths, rest)}")
    return connection


def duckdb_union(
    stores: Sequence[tuple[list[str] | RemoteParts, pa.Table]],
    names: Sequence[str],
    starts: Sequence[int],
    columns: Sequence[str],
    column: str,
) -> duckdb.DuckDBPyConnection:
    """Return a connection with a view ``predictions`` of several stores.

    Parameters
    ----------
    stores : list of (list of str or RemoteParts, pyarrow.Table)
        As for `duckdb_connection`, of each store.
    names, starts : list
        The name of each store, and what to add to its row numbers.
    columns : list of str
        The columns of the view.
    column : str
        That of the names.
    """
    connection = _connect()
    queries = []
    for number, ((paths, rest), name, start) in enumerate(zip(stores, names, starts, strict=True)):
        made = {ROW: f"{quoted(ROW)} + {start}", column: "'" + name.replace("'", "''") + "'"}
        chosen = ", ".join(f"{made.get(one, quoted(one))} AS {quoted(one)}" for one in columns)
        rows = _rows_of(connection, f"zarrow_rest_{number}", paths, rest)
        queries.append(f"SELECT {chosen} FROM ({rows})")
    connection.execute(f"CREATE VIEW predictions AS {' UNION ALL '.join(queries)}")
    return connection


def _connect() -> duckdb.DuckDBPyConnection:
    try:
        import duckdb
    except ImportError as error:
        raise MissingExtraError("sql needs DuckDB: pip install duckdb") from error
    return duckdb.connect()


def _rows_of(
    connection: duckdb.DuckDBPyConnection, name: str, paths: list[str] | RemoteParts, rest: pa.Table
) -> str:
    """Return a query of Parquet files and the rows that follow them, which are registered under a name."""
    connection.register(name, with_types(rest, type_in_duckdb))
    query = f"SELECT * FROM {name}"
    if isinstance(paths, RemoteParts):
        connection.register(f"{name}_parts", paths.dataset(type_in_duckdb))
        query = f"SELECT * FROM {name}_parts UNION ALL {query}"
    elif paths:
        require_utf8(paths[0])
        files = ", ".join(map(_quoted, paths))
        query = f"SELECT * FROM read_parquet([{files}], hive_partitioning=false) UNION ALL {query}"
    return query


def quoted(name: str) -> str:
    """Return a name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def _quoted(path: str) -> str:
    """Return a path as DuckDB's SQL has it: a pattern, in which a backslash is a slash."""
    if "\\" in path and re.search(r"[*?\[]", path):
        raise InvalidInputError(
            f"{path}: DuckDB finds no file whose path has a backslash and one of *, ? and [: rename the "
            "store, or read it with table() or scan()"
        )
    return "'" + re.sub(r"[*?\[]", r"[\g<0>]", path).replace("'", "''") + "'"


def for_duckdb(reader: pa.RecordBatchReader, names: list[str] | None = None) -> pa.RecordBatchReader:
    """Return a stream that DuckDB takes, of the types that it reads from Parquet, and perhaps renamed."""
    schema = with_types(reader.schema, type_in_duckdb)
    schema = pa.schema(
        [field.with_name(name) for field, name in zip(schema, names or schema.names, strict=True)]
    )
    columns = (with_types(batch, type_in_duckdb).columns for batch in reader)
    return pa.RecordBatchReader.from_batches(
        schema, (pa.RecordBatch.from_arrays(arrays, schema=schema) for arrays in columns)
    )
