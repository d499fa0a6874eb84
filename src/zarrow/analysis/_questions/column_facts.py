"""Column facts — how the values of a table's columns are distributed, computed by DuckDB over a stream.

Up to a million rows, quantiles and counts of distinct values are exact, and DuckDB holds the values in
memory. Above, quantiles are approximated by t-digest (Dunning and Ertl, *Computing Extremely Accurate
Quantiles Using t-Digests*, 2019) and distinct values by HyperLogLog (Flajolet, Fusy, Gandouet and Meunier,
2007).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from zarrow._format.arrow import value_type
from zarrow._read.engines import for_duckdb
from zarrow.analysis._rows.dataset import Rows
from zarrow.analysis._rows.groups import free_names
from zarrow.errors import InvalidInputError, MissingExtraError

if TYPE_CHECKING:
    import duckdb

__all__ = ["connect", "describe_columns", "quoted"]

MAX_EXACT_ROWS = 1_000_000
QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


def connect() -> duckdb.DuckDBPyConnection:
    """Return a new DuckDB connection.

    Raises
    ------
    MissingExtraError
        If DuckDB is not installed.
    """
    try:
        import duckdb
    except ImportError as error:
        raise MissingExtraError(f"this needs {error.name}: pip install 'zarrow[analysis]'") from error
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    # Only if it is on: in Jupyter without ipywidgets DuckDB refuses even to switch the bar off.
    if connection.execute("SELECT current_setting('enable_progress_bar')").fetchall() == [(True,)]:
        connection.execute("SET enable_progress_bar = false")
    return connection


def quoted(name: str) -> str:
    """Return a column's name, quoted for SQL.

    Raises
    ------
    InvalidInputError
        If SQL cannot express it.

    >>> print(quoted("subject_id"))
    "subject_id"
    """
    if "\0" in name:
        raise InvalidInputError(f"the name of a column used in SQL must not contain NUL, got {name!r}")
    return '"' + name.replace('"', '""') + '"'


def describe_columns(store: Rows, columns: Sequence[str], by: Sequence[str]) -> pa.Table:
    """Return a table with a row per column and group; see `zarrow.analysis.Description`."""
    if not columns:
        return pa.table({"column": pa.array([], pa.string())})
    names = list(dict.fromkeys([*by, *columns]))
    reader = store.scan(names)
    # Renamed by number: not every Arrow name is a name in SQL (NUL is not).
    called = {name: f"v{number}" for number, name in enumerate(names)}
    connection = connect()
    keys = "".join(f"{called[name]}, " for name in by)
    fields = [store.schema.field(name) for name in columns]
    exact = store.num_rows <= MAX_EXACT_ROWS
    facts = ", ".join(
        _facts(field, called[field.name], f"c{number}", exact) for number, field in enumerate(fields)
    )
    group_by = f"GROUP BY {', '.join(called[name] for name in by)} ORDER BY ALL" if by else ""
    connection.register("incoming", for_duckdb(reader, list(called.values())))
    query = f"SELECT {keys} count(*) AS n, {facts} FROM incoming {group_by}"
    found: pa.Table = connection.sql(query).to_arrow_table()
    connection.close()
    tables = []
    for number, field in enumerate(fields):
        count = found[f"c{number}_count"]
        piece = {
            "column": pa.array([field.name] * found.num_rows, pa.string()),
            "type": pa.array([str(field.type)] * found.num_rows, pa.string()),
            "count": count.cast(pa.int64()),
            "nulls": pa.array(
                [n - c for n, c in zip(found["n"].to_pylist(), count.to_pylist(), strict=True)], pa.int64()
            ),
        }
        piece |= {name: found[f"c{number}_{name}"].cast(pa.int64()) for name in ("nonfinite", "distinct")}
        piece |= {name: found[f"c{number}_{name}"].cast(pa.float64()) for name in ("mean", "std", "min")}
        shares = found[f"c{number}_quantiles"].to_pylist()
        for place, name in enumerate(QUANTILES):
            piece[name] = pa.array([None if one is None else one[place] for one in shares], pa.float64())
        piece["max"] = found[f"c{number}_max"].cast(pa.float64())
        piece["exact"] = pa.array([exact] * found.num_rows)
        groups = zip(free_names(by, piece), (found[called[name]] for name in by), strict=True)
        tables.append(pa.table(dict(groups) | piece))
    return pa.concat_tables(tables)


def _facts(field: pa.Field, column: str, name: str, exact: bool) -> str:
    """Return the aggregates of a column, in SQL."""
    kind = value_type(field.type)
    number, nonfinite, distinct = "NULL::DOUBLE", "0", f"count(DISTINCT {column})"
    if not exact:  # the approximation may exceed the number of values
        distinct = f"least(approx_count_distinct({column}), count({column}))"
    if pa.types.is_floating(kind):
        number = f"CASE WHEN isfinite({column}) THEN {column}::DOUBLE END"
        nonfinite = f"count({column}) - count({number})"
    elif pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        number = f"{column}::DOUBLE"
    elif pa.types.is_boolean(kind):
        number = f"{column}::INT::DOUBLE"
    elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        number = f"epoch_us({column}::TIMESTAMP) / 1e6"
    elif pa.types.is_nested(kind):
        distinct = "NULL::BIGINT"
    quantile = "quantile_cont" if exact else "approx_quantile"
    aggregates = {
        "count": f"count({column})",
        "nonfinite": nonfinite,
        "distinct": distinct,
        "mean": f"avg({number})",
        "std": f"stddev_samp({number})",
        "min": f"min({number})",
        # All at once, so that DuckDB holds the values, or the digest, only once.
        "quantiles": f"{quantile}({number}, {list(QUANTILES.values())})",
        "max": f"max({number})",
    }
    return ", ".join(f"{value} AS {name}_{key}" for key, value in aggregates.items())
