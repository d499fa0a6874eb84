"""Composite tasks — the probabilities of several queries joined into one per subject and time.

The joined probability is the largest (``max``), the probability that any occurs if they are independent
(``or``), the mean (``mean``), or the expected number that occur (``sum``). The label is whether any occurred:
true if one label is, else null if one is unknown (censored), else false.

DuckDB computes it over a stream of the columns; vectors are not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from zarrow._read.engines import for_duckdb
from zarrow.analysis._questions.column_facts import connect, quoted
from zarrow.analysis._rows.arguments import require_choice, require_store
from zarrow.analysis._rows.groups import free_names, names_of
from zarrow.analysis._rows.roles import EVERYQUERY, choose_probability
from zarrow.errors import InvalidInputError
from zarrow.several import Union
from zarrow.store import Store

__all__ = ["compose"]

How = Literal["max", "or", "sum", "mean"]
AGGREGATES: dict[How, str] = {"max": "max(p)", "or": "1 - product(1 - p)", "sum": "sum(p)", "mean": "avg(p)"}


def compose(
    store: Store | Union,
    how: How = "max",
    over: str | None = None,
    by: str | Sequence[str] | None = None,
    *,
    probability: str | None = None,
    label: str | None = None,
    filter: pc.Expression | None = None,
) -> pa.Table:
    """Join the probabilities of several queries into one per subject and time.

    Parameters
    ----------
    store : Store or Union
        The store.
    how : {"max", "or", "sum", "mean"}
        How to join them; see the module's docstring.
    over : str, optional
        The column in which the joined rows differ; by default the task.
    by : str or list of str, optional
        The columns whose values the joined rows share; by default subject and time.
    probability : str, optional
        The column to join; by default the one that looks like a probability.
    label : str, optional
        A column of booleans, or of zeros and ones, to join as well.
    filter : pyarrow.compute.Expression, optional
        Rows to use, such as those of the queries that make up the task.

    Returns
    -------
    pyarrow.Table
        The columns of `by`, by which it is ordered; ``rows``, the number of rows joined; the probability,
        null where one of them is null or NaN; and the label. `evaluate` accepts it in place of a store.

    Raises
    ------
    UnknownNameError
        If there is no such column.
    InvalidInputError
        If a value of `over` occurs twice in a group (name another column in `by`), if probabilities are not
        in 0..1 or labels not yes or no, or if `how` is not one of these.
    MissingExtraError
        If DuckDB is not installed.

    Examples
    --------
    >>> import zarrow.analysis, zarrow.testing
    >>> store = zarrow.testing.example_predictions()
    >>> table = zarrow.analysis.compose(store, "or", label="occurs")
    >>> table.column_names, table.num_rows
    (['subject_id', 'prediction_time', 'rows', 'occurs_prob', 'occurs'], 500)
    """
    require_choice("how", how, How)
    require_store(store, or_union=True)
    models = [store.column] if isinstance(store, Union) else []
    usual = (*models, EVERYQUERY.subject, EVERYQUERY.time)
    names = _usual(store, "by", usual) if by is None else names_of(by)
    over = _usual(store, "over", EVERYQUERY.task[:1])[0] if over is None else over
    if not names:
        raise InvalidInputError("by must name at least one column, such as subject_id")
    probability = choose_probability(store, probability)
    columns = list(dict.fromkeys([*names, over, probability, *([label] if label else [])]))
    reader = store.scan(columns, filter)
    kind = store.schema.field(probability).type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)):
        raise InvalidInputError(f"column {probability!r} must hold probabilities, but is of type {kind}")
    keys = ", ".join(map(quoted, names))
    number = f"{quoted(probability)}::DOUBLE"
    value = f"CASE WHEN isnan({number}) THEN NULL ELSE {number} END"
    answer = "NULL::DOUBLE"
    if label is not None:
        labelled = store.schema.field(label).type
        if not (
            pa.types.is_boolean(labelled) or pa.types.is_integer(labelled) or pa.types.is_floating(labelled)
        ):
            raise InvalidInputError(
                f"column {label!r} must hold labels of yes and no, but is of type {labelled}"
            )
        answer = f"CASE WHEN isnan({quoted(label)}::DOUBLE) THEN NULL ELSE {quoted(label)}::DOUBLE END"
    connection = connect()
    connection.register("incoming", for_duckdb(reader))
    result: pa.Table = connection.sql(
        f"""
        WITH chosen AS (SELECT {keys}, {quoted(over)} AS o, {value} AS p, {answer} AS y FROM incoming)
        SELECT {keys}, count(*) AS n,
               CASE WHEN count(p) = count(*) THEN {AGGREGATES[how]} END AS p,
               CASE WHEN max(y) = 1 THEN true WHEN count(y) = count(*) THEN false END AS y,
               count(*) - count(DISTINCT o) - bool_or(o IS NULL)::INT AS again,
               count(*) FILTER (p < 0 OR p > 1) AS no_p, count(*) FILTER (y NOT IN (0, 1)) AS no_y
        FROM chosen GROUP BY {keys} ORDER BY {keys}
        """
    ).to_arrow_table()
    connection.close()
    _require_none(result, "no_p", f"probabilities must be in 0..1, column {probability!r} has others", names)
    _require_none(result, "no_y", f"labels must be yes or no, or 1 or 0, column {label!r} has others", names)
    _require_none(
        result,
        "again",
        f"a value of {over!r} occurs more than once in a group: add the column that tells the rows apart to "
        "by=, or filter the rows",
        names,
    )
    found = {"rows": result["n"], probability: result["p"]}
    if label is not None:
        found[label] = result["y"]
    grouped = dict(zip(free_names(names, found), (result[name] for name in names), strict=True))
    return pa.table(grouped | found)


def _usual(store: Store | Union, argument: str, names: Sequence[str]) -> list[str]:
    lacks = [name for name in names if name not in store.schema.names]
    if lacks:
        raise InvalidInputError(
            f"{store.path}: {argument} is {', '.join(names)} by default, and there is no {', '.join(lacks)}: "
            f"name columns with {argument}="
        )
    return list(names)


def _require_none(table: pa.Table, column: str, message: str, names: list[str]) -> None:
    bad = table.filter(pc.field(column) > 0).select(names).slice(0, 1).to_pylist()
    if bad:
        raise InvalidInputError(f"{message}: {', '.join(f'{key} {value}' for key, value in bad[0].items())}")
