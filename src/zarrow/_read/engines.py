"""How do Polars and DuckDB read the table?

Full parts never change, so the engines are given their paths and read what a query needs. The rest (live
rows, and those of a short last segment, which a writer may take back) is handed over in memory.

Place: tier 3, used by `store`; loads an engine when it is asked for.
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
    """Return a lazy frame of Parquet files and the rows behind them."""
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
    """Return a connection with a view ``predictions`` of Parquet files and the rows behind them."""
    try:
        import duckdb
    except ImportError as error:
        raise MissingExtraError("sql needs DuckDB: pip install duckdb") from error
    connection = duckdb.connect()
    # DuckDB reads dictionaries of Parquet as their values.
    connection.register("zarrow_rest", rest.cast(without_dictionaries(rest.schema)))
    query = "SELECT * FROM zarrow_rest"
    if paths:
        quoted = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
        query = f"SELECT * FROM read_parquet([{quoted}], hive_partitioning=false) UNION ALL {query}"
    connection.execute(f"CREATE VIEW predictions AS {query}")
    return connection
