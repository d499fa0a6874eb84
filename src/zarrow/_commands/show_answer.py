"""Answers of the analysis in a terminal — columns, metrics with their intervals, rows left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zarrow._commands.terminal import cell, out, show_facts, show_table

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["show_columns", "show_left_out", "show_metric_table", "show_metrics"]

_ENDS = ("_low", "_high")


def show_left_out(counts: dict[str, int]) -> None:
    """Print how many rows were left out, for each reason."""
    reasons = [f"{count:,} for {reason}" for reason, count in counts.items() if count]
    if reasons:
        out.print(f"[dim]rows left out: {', '.join(reasons)}[/]")


def show_columns(table: pa.Table, keys: int) -> None:
    """Print the column statistics of `zarrow.analysis.describe`; times in a table of their own, as times."""
    import pyarrow as pa
    import pyarrow.compute as pc

    timed = pc.match_substring_regex(table["type"], "^(timestamp|date)")
    numbers, times = table.filter(pc.invert(timed)), table.filter(timed)
    if numbers.num_rows:
        show_table(numbers.drop_columns(["exact", "q05", "q95"]), keys=keys)
    if numbers.num_rows and times.num_rows:
        out.print()
    if times.num_rows:
        counted = times.select([*times.column_names[:keys], "type", "count", "nulls", "distinct"])
        zone = " UTC" if pc.any(pc.match_substring(times["type"], "tz=")).as_py() else ""
        for name in ("min", "median", "max"):
            seconds = pc.round(times[name]).cast(pa.int64()).cast(pa.timestamp("s"))
            counted = counted.append_column(name + zone, seconds)
        show_table(counted, keys=keys)


def show_metrics(overall: dict[str, Any]) -> None:
    """Print metrics, each with its interval."""
    shown = {}
    for name, value in overall.items():
        if name.endswith(_ENDS):
            continue
        low, high = overall.get(f"{name}_low"), overall.get(f"{name}_high")
        interval = "" if low is None else f"  [{low:.4g}, {high:.4g}]"
        shown[name] = (f"{value:,}" if isinstance(value, int) else cell(value)) + interval
    show_facts(shown)


def show_metric_table(table: pa.Table, keys: int) -> None:
    """Print a table of metrics, the first one with its interval."""
    import pyarrow as pa

    shown = table.select([name for name in table.column_names if not name.endswith(_ENDS)])
    low = next((name for name in table.column_names[keys:] if name.endswith("_low")), None)
    if low is not None and table[low].null_count < table.num_rows:
        name = low.removesuffix("_low")
        values = zip(*(table[one].to_pylist() for one in (name, low, f"{name}_high")), strict=True)
        texts = [
            "–" if low is None else f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in values
        ]
        place = shown.column_names.index(name)
        shown = shown.set_column(place, f"{name}, 95 %", pa.array(texts, pa.string()))
    show_table(shown, keys=keys)
