"""A store in a terminal — what it holds, and how its first rows look.

`facts_of` and `schema_of` collect what ``info`` and ``schema`` say as JSON values, `show_info` and
`show_schema` print them, `show_head` prints rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.filesize import decimal
from rich.table import Table

from zarrow._commands.terminal import cell, counted, escape, grid_of, out, print_json, say, show_facts
from zarrow._format.spec import rows_of_expected
from zarrow._read.appearance import nested_lines
from zarrow._read.derived_arrays import derived_names
from zarrow._read.ragged_rows import StoreRagged
from zarrow._storage.objects import is_remote, named
from zarrow.errors import ZarrowError
from zarrow.store import QuantizedArray, Store, StoreArray
from zarrow.store import open as open_store

__all__ = ["facts_of", "schema_of", "show_head", "show_info", "show_schema"]

PREVIEW_VALUES = 4


def facts_of(path: Path) -> dict[str, Any]:
    """Return what ``info`` says, as JSON values."""
    with open_store(path, partial=True) as store:
        committed = store.committed_rows
        return {
            "path": named(path),
            "uuid": store.uuid,
            "complete": store.complete,
            "expected_rows": store.expected_rows,
            "rows": committed,
            "open_rows": store.num_rows - committed,
            "segments": -(-committed // store.segment_rows),
            "segment_rows": store.segment_rows,
            "keys": list(store.keys),
            "columns": {column.name: str(column.type) for column in store.schema},
            "table_bytes": store.table_bytes,
            "arrays": {name: _array_facts(array, committed) for name, array in store.arrays.items()}
            | {name: _ragged_facts(array, committed) for name, array in store.ragged.items()},
            "derived": {name: _derived_facts(store, name) for name in _derived_names(store)},
            "provenance": store.provenance,
        }


def _array_facts(array: StoreArray, committed: int) -> dict[str, Any]:
    raw = committed * (array.nbytes // len(array) if len(array) else 0)
    return {
        "shape": [committed, *array.row_shape],
        "dtype": array.dtype.name,
        "quantized": _quantized(array),
        "codecs": [codec["name"] for codec in array.codecs],
        "chunk_rows": array.chunks[0],
        "raw_bytes": raw,
        "stored_bytes": array.stored_bytes,
        "compression_ratio": round(raw / array.stored_bytes, 3) if array.stored_bytes else None,
    }


def _quantized(array: StoreArray | StoreRagged) -> str | None:
    """Return the dtype that an array is quantized to; None for all others."""
    return array.stored.dtype.name if isinstance(array, QuantizedArray) else None


def _type_of(facts: dict[str, Any]) -> str:
    """Return the dtype of an array in words.

    >>> _type_of({"dtype": "float32", "quantized": "int8"}), _type_of({"dtype": "float16", "usable": True})
    ('float32 (int8)', 'float16')
    """
    return f"{facts['dtype']} ({facts['quantized']})" if facts.get("quantized") else str(facts["dtype"])


def _ragged_facts(array: StoreRagged, committed: int) -> dict[str, Any]:
    counts = array.counts[:committed]
    vectors = int(counts.sum())
    raw = vectors * int(np.prod(array.vector_shape)) * array.dtype.itemsize
    return {
        "shape": [committed, None, *array.vector_shape],
        "vectors": vectors,
        "vectors_per_row": {
            "min": int(counts.min()),
            "median": int(np.quantile(counts, 0.5, method="inverted_cdf")),
            "max": int(counts.max()),
        }
        if committed
        else None,
        "dtype": array.dtype.name,
        "codecs": [codec["name"] for codec in array.codecs],
        "chunk_vectors": array.chunks[0],
        "raw_bytes": raw,
        "stored_bytes": array.stored_bytes,
        "compression_ratio": round(raw / array.stored_bytes, 3) if array.stored_bytes else None,
    }


def _derived_names(store: Store) -> list[str]:
    """Return the names under which derived arrays lie in the store, usable or not."""
    taken = {*store.arrays, *store.ragged, *store.schema.names}
    return [name for name in derived_names(store.path) if name not in taken]


def _derived_facts(store: Store, name: str) -> dict[str, Any]:
    try:
        array = store[name]
    except ZarrowError as error:
        return {"usable": False, "reason": str(error)}
    return {"shape": list(array.shape), "dtype": array.dtype.name, "usable": True}


def schema_of(store: Store) -> dict[str, Any]:
    """Return what ``schema`` says, as JSON values."""
    named: dict[str, StoreArray | StoreRagged] = {**store.arrays, **store.ragged, **store.derived}
    return {
        "columns": [
            {
                "name": field.name,
                "type": str(field.type),
                "nullable": field.nullable and field.name not in store.keys,
                "key": field.name in store.keys,
            }
            for field in store.schema
        ],
        "arrays": [
            {
                "name": name,
                "shape": list(array.shape),
                "dtype": array.dtype.name,
                "quantized": _quantized(array),
                "codecs": [codec["name"] for codec in array.codecs],
                "derived": name in store.derived,
            }
            for name, array in named.items()
        ],
    }


def show_schema(facts: dict[str, Any]) -> None:
    """Print what `schema_of` returned."""
    grid = grid_of({"name": False, "type": False, "": False})
    for one in facts["columns"]:
        notes = "key" if one["key"] else "" if one["nullable"] else "never null"
        grid.add_row(*map(escape, (one["name"], one["type"], notes)))
    for one in facts["arrays"]:
        codecs = "" if one["codecs"] == ["bytes"] else ", ".join(one["codecs"])
        notes = ", ".join(filter(None, ("array", "derived" if one["derived"] else "", codecs)))
        grid.add_row(*map(escape, (one["name"], f"{_shape(one['shape'])} {_type_of(one)}", notes)))
    out.print(grid)


def show_info(facts: dict[str, Any], *, as_json: bool = False) -> None:
    """Print what `facts_of` returned."""
    if as_json:
        print_json(facts)
        return
    stored, expected = facts["rows"] + facts["open_rows"], facts["expected_rows"]
    lacking = stored < (expected or 0)
    state = "[green]complete[/]" if facts["complete"] else "[yellow]incomplete[/]"
    if facts["complete"] and lacking:
        state = "[yellow]finalized without all rows[/]"
    path = escape(facts["path"])
    segments = f"{counted(facts['segments'], 'segment')} of {facts['segment_rows']:,}"
    where = f"in {segments}"
    if facts["open_rows"]:
        sealed = f"{facts['rows']:,} in {segments}, " if facts["rows"] else ""
        where = f"({sealed}{facts['open_rows']:,} in open segments)"
    say(f"[bold]{path}[/]  {state}, {rows_of_expected(stored, expected)} {where}")
    if not facts["complete"]:
        where = "all of them are safe; " if stored else ""
        if is_remote(facts["path"]):
            where = "rows that are not uploaded yet are safe in the spools of their machines; "
        say(f"  {where}resume the run, or: zarrow finalize {'--partial ' * lacking}{path}")
    grid = Table(box=None, pad_edge=False, padding=(0, 2))
    for title in ("", "shape", "dtype", "codecs"):
        grid.add_column(title, no_wrap=title != "codecs", style="bold" if not title else None)
    for title in ("on disk", "raw / disk"):
        grid.add_column(title, justify="right", no_wrap=True)
    for name, array in facts["arrays"].items():
        ratio = array["compression_ratio"]
        grid.add_row(
            escape(name),
            _shape([stored, *array["shape"][1:]]),
            _type_of(array),
            escape(", ".join(map(str, array["codecs"]))) if array["codecs"] != ["bytes"] else "none",
            decimal(array["stored_bytes"]) if facts["rows"] or not stored else "–",  # of segments only
            "–" if ratio is None or array["codecs"] == ["bytes"] else f"{ratio:.2f}",
        )
    table = _shape([stored, len(facts["columns"])])
    size = decimal(facts["table_bytes"]) if facts["rows"] or not stored else "–"
    grid.add_row("table", table, "", "zstd", size, "")
    out.print(grid)
    for name, array in facts["arrays"].items():
        if per_row := array.get("vectors_per_row"):
            say(
                f"vectors: [bold]{escape(name)}[/] {array['vectors']:,}: {per_row['min']:,} to "
                f"{per_row['max']:,} per row, median {per_row['median']:,}"
            )
    columns = ", ".join(
        f"{escape(name)} [dim]{escape(kind)}[/]" + (" [cyan]key[/]" if name in facts["keys"] else "")
        for name, kind in facts["columns"].items()
    )
    out.print(f"columns: {columns}")
    for name, array in facts["derived"].items():
        what = (
            f"{_shape(array['shape'])} {array['dtype']}"
            if array["usable"]
            else f"[yellow]not usable:[/] {escape(array['reason'])}"
        )
        say(f"derived: [bold]{escape(name)}[/] {what}")
    show_facts(dict(nested_lines("provenance", facts["provenance"])))


def _shape(shape: Sequence[int | None]) -> str:
    return " × ".join("any" if axis is None else f"{axis:,}" for axis in shape)


def show_head(store: Store, rows: int, columns: Sequence[str] | None) -> None:
    """Print the first rows: the columns that fit the terminal, and how each vector begins."""
    first, vectors = store.take(range(rows), columns)
    cells = {name: [cell(value) for value in first[name].to_pylist()] for name in first.schema.names}
    shown = {name: [_vector(row) for row in values] for name, values in vectors.items()}
    # Columns that do not fit are named, not squeezed; the vectors come before the last of many columns.
    room = out.width - sum(_width(name, values) for name, values in shown.items())
    left_out = []
    for name, values in cells.items():
        room -= _width(name, values)
        if room < 0:
            left_out.append(name)
        else:
            shown[name] = values
    order = [*(name for name in cells if name in shown), *vectors]
    grid = grid_of(dict.fromkeys(order, False))
    for row in range(rows):
        grid.add_row(*(escape(shown[name][row]) for name in order))
    out.print(grid)
    if left_out:
        out.print(f"[dim]no room for: {escape(', '.join(left_out))}; choose with --columns[/]")


def _width(name: str, values: list[str]) -> int:
    return max(len(name), *map(len, values), 0) + 2


def _vector(vector: Any) -> str:
    if vector.ndim > 1 and not len(vector):
        return "no vectors"
    values = vector.reshape(-1)
    more = " …" if values.size > PREVIEW_VALUES else ""
    return "[" + " ".join(f"{value:.3g}" for value in values[:PREVIEW_VALUES].tolist()) + more + "]"
