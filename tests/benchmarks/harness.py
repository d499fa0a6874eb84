"""Harness — the tables that the benchmarks print, and how a benchmark ends early."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

__all__ = ["command", "show_table"]


def show_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table with its columns aligned."""
    widths = [max(len(line[at]) for line in (head, *rows)) for at in range(len(head))]
    rule = ["-" * width for width in widths]
    for line in (head, rule, *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")


def command(main: Callable[[], None]) -> None:
    """Run a script; Ctrl-C and a missing package end it without a traceback."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        sys.exit(f"the package {error.name} is missing: pip install -c constraints.txt '.[bench]'")
