"""Query engines — the table for Polars and DuckDB.

Full parts never change, so the engines get their paths and read only what a query needs. The other rows
(live ones, and those of a short last segment, which a writer may take back) are handed over in memory. An
engine is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from zarrow._format.arrow import without_dictionaries
from zarrow.errors import MissingExtraError

if TYPE_CHECKING:
    import duckdb
    import polars as pl

__all__ = ["duckdb_connection", "polars_frame"]


def polars_frame(paths: list[str], rest: pa.Table) -> pl.LazyFrame:
    """Return a lazy frame of Parquet files and the rows that follow them."""
    try:
        import polars as pl
    except ImportError as error:
        raise MissingExtraError("to_polars needs Polars: pip install polars") from error
    behind = pl.DataFrame(pl.from_arrow(rest)).lazy()
    if not paths:
        return behind
    files = pl.scan_parquet(paths, glob=False)
    return pl.concat([files, behind], how="vertical_relaxed") if rest.num_rows else files


def duckdb_connection(paths: list[str], rest: pa.Table) -> duckdb.DuckDBPyConnection:
    """Return a connection with a view ``predictions`` of Parquet files and the rows that follow them."""
    try:
        import duckdb
    except ImportError as error:
        raise MissingExtraError("sql needs DuckDB: pip install duckdb") from error
    connection = duckdb.connect()
    # DuckDB reads Parquet's dictionaries as their values.
    connection.register("zarrow_rest", rest.cast(without_dictionaries(rest.schema)))
    query = "SELECT * FROM zarrow_rest"
    if paths:
        quoted = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
        query = f"SELECT * FROM read_parquet([{quoted}], hive_partitioning=false) UNION ALL {query}"
    connection.execute(f"CREATE VIEW predictions AS {query}")
    return connection
