"""Harness — the tables that the benchmarks print, what they were measured with, and how they end early."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["command", "put_table", "show_table", "table_lines", "versions"]

_DISTRIBUTIONS = {"lance": "pylance", "streaming": "mosaicml-streaming"}


def versions(*packages: str) -> str:
    """Return the versions of Python and of packages that are installed, as one line."""
    found = [f"Python {platform.python_version()}"]
    for package in dict.fromkeys(package.partition(".")[0] for package in packages):
        name = _DISTRIBUTIONS.get(package, package)
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table with its columns aligned."""
    widths = [max(len(line[at]) for line in (head, *rows)) for at in range(len(head))]
    rule = ["-" * width for width in widths]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in (head, rule, *rows)
    ]


def show_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table with its columns aligned."""
    print("\n".join(table_lines(head, rows)))


def put_table(path: Path, name: str, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Put a table into a document, in the place of the one between its marks, with what was measured."""
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{path} must have the lines {begin.strip()!r} and {end.strip()!r}")
    lines = "\n".join([f"{title}:", "", *table_lines(head, rows)])
    path.write_text(f"{before}{begin}\n{lines}\n\n{end}{after}", encoding="utf-8")


def command(main: Callable[[], None]) -> None:
    """Run a script; Ctrl-C and a missing package end it without a traceback."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        sys.exit(f"the package {error.name} is missing: pip install -c constraints.txt '.[bench]'")
