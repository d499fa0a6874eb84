"""How does a store look in a terminal?

What it is (`facts_of`, which machines read, too, and `show_info`), and how its rows begin (`show_head`).

Place: under `cli`, which calls it. Reads only; prints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from zarrow._commands.console import out
from zarrow.store import Store
from zarrow.store import open as open_store

__all__ = ["facts_of", "show_head", "show_info"]

PREVIEW_VALUES = 4
CELL_CHARACTERS = 28


def facts_of(path: Path) -> dict[str, Any]:
    """Collect what `info` tells, as JSON values."""
    with open_store(path, partial=True) as store:
        committed = store.committed_rows
        arrays = {}
        for name, array in store.arrays.items():
            raw = committed * (array.nbytes // len(array) if len(array) else 0)
            arrays[name] = {
                "shape": [committed, *array.row_shape],
                "dtype": array.dtype.name,
                "codecs": [codec["name"] for codec in array.codecs],
                "chunk_rows": array.chunks[0],
                "raw_bytes": raw,
                "stored_bytes": array.stored_bytes,
                "compression_ratio": round(raw / array.stored_bytes, 3) if array.stored_bytes else None,
            }
        return {
            "path": str(path),
            "uuid": store.uuid,
            "complete": store.complete,
            "rows": committed,
            "open_rows": store.num_rows - committed,
            "segments": -(-committed // store.segment_rows),
            "segment_rows": store.segment_rows,
            "keys": list(store.keys),
            "columns": {column.name: str(column.type) for column in store.schema},
            "table_bytes": store.table_bytes,
            "arrays": arrays,
            "derived": {
                **{
                    name: {"shape": list(array.shape), "dtype": array.dtype.name, "usable": True}
                    for name, array in store.derived.items()
                },
                **{
                    name: {"usable": False, "reason": str(error)}
                    for name, error in store._derived.unusable.items()
                },
            },
            "provenance": store.provenance,
        }


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def show_info(facts: dict[str, Any]) -> None:
    """Print what `info` tells."""
    state = "[green]complete[/]" if facts["complete"] else "[yellow]incomplete[/]"
    out.print(
        f"[bold]{escape(facts['path'])}[/]  {state}, {facts['rows']:,} rows in "
        f"{facts['segments']:,} segment{'s' * (facts['segments'] != 1)} of {facts['segment_rows']:,}",
        soft_wrap=True,
    )
    if not facts["complete"]:
        out.print(
            f"  {facts['open_rows']:,} more rows in open segments; "
            f"resume the run, or: zarrow finalize {escape(facts['path'])}",
            soft_wrap=True,
        )
    grid = Table(box=None, pad_edge=False, padding=(0, 2))
    for title in ("", "shape", "dtype", "codecs"):
        grid.add_column(title, no_wrap=title != "codecs", style="bold" if not title else None)
    for title in ("on disk", "raw / disk"):
        grid.add_column(title, justify="right", no_wrap=True)
    for name, array in facts["arrays"].items():
        ratio = array["compression_ratio"]
        grid.add_row(
            escape(name),
            " × ".join(f"{axis:,}" for axis in array["shape"]),
            array["dtype"],
            ", ".join(array["codecs"]),
            _size(array["stored_bytes"]),
            "–" if ratio is None else f"{ratio:.2f}",
        )
    grid.add_row(
        "table", f"{facts['rows']:,} × {len(facts['columns'])}", "", "zstd", _size(facts["table_bytes"]), ""
    )
    out.print(grid)
    columns = ", ".join(
        f"{escape(name)} [dim]{escape(kind)}[/]" + (" [cyan]key[/]" if name in facts["keys"] else "")
        for name, kind in facts["columns"].items()
    )
    out.print(f"columns: {columns}")
    for name, array in facts["derived"].items():
        what = (
            " × ".join(f"{axis:,}" for axis in array["shape"]) + f" {array['dtype']}"
            if array["usable"]
            else f"[yellow]not usable:[/] {escape(array['reason'])}"
        )
        out.print(f"derived: [bold]{escape(name)}[/] {what}", soft_wrap=True)
    provenance = " · ".join(f"{name} {value}" for name, value in facts["provenance"].items())
    if provenance:
        out.print(f"[dim]{escape(provenance)}[/]")


def show_head(store: Store, rows: int, columns: list[str] | None) -> None:
    """Print the first rows: what of the columns fits the terminal, and how each vector begins."""
    first, vectors = store.take(range(rows), columns)
    cells = {name: [_cell(value) for value in first[name].to_pylist()] for name in first.schema.names}
    shown = {name: [_vector(row) for row in values] for name, values in vectors.items()}
    # What does not fit is named, not squeezed; how the vectors begin comes before the last of many columns.
    room = out.width - sum(_width(name, values) for name, values in shown.items())
    left_out = []
    for name, values in cells.items():
        room -= _width(name, values)
        if room < 0:
            left_out.append(name)
        else:
            shown[name] = values
    order = [*(name for name in cells if name in shown), *vectors]
    grid = Table(box=None, pad_edge=False, padding=(0, 1))
    for name in order:
        grid.add_column(escape(name), overflow="ellipsis", no_wrap=True)
    for row in range(rows):
        grid.add_row(*(shown[name][row] for name in order))
    out.print(grid)
    if left_out:
        out.print(f"[dim]no room for: {escape(', '.join(left_out))}; choose with --columns[/]")


def _width(name: str, values: list[str]) -> int:
    return max(len(name), *(len(value.replace("\\[", "[")) for value in values), 0) + 2


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    return escape(text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 1] + "…")


def _vector(vector: Any) -> str:
    values = vector.reshape(-1)
    more = " …" if values.size > PREVIEW_VALUES else ""
    return "\\[" + " ".join(f"{value:.3g}" for value in values[:PREVIEW_VALUES].tolist()) + more + "]"
