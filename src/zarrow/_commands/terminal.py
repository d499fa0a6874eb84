"""Terminal — what commands print with: two consoles, tables, one progress bar, one form of JSON.

Answers go to standard output (`out`), warnings and progress to standard error (`err`), so that ``--json``
leaves standard output to programs. A terminal is filled as wide as it is; into a pipe or a file nothing is
wrapped or cut, for ``grep`` and ``less -S``, unless the environment variable ``COLUMNS`` sets a width.

No text of a store acts on the terminal: `escape` makes it harmless, and `_Harmless` what was forgotten.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import markup
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table

from zarrow.errors import printable

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "SHOWN_ROWS",
    "Bar",
    "answer",
    "cell",
    "counted",
    "err",
    "escape",
    "grid_of",
    "out",
    "print_json",
    "progress_bar",
    "say",
    "show_facts",
    "show_table",
]

SHOWN_ROWS = 30
CELL_CHARACTERS = 28
GAP = 2
UNBOUNDED = 10_000


class _Harmless(RenderHook):
    """Prints without what acts on a terminal, but for what rich itself adds."""

    def __init__(self, renderable: ConsoleRenderable | None = None) -> None:
        self._renderable = renderable

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Harmless(one) for one in renderables]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        assert self._renderable is not None
        for text, style, control in console.render(self._renderable, options):
            lines = text if control else "\n".join(map(printable, text.split("\n")))
            yield Segment(lines, style, control)


out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
for _console in (out, err):
    _console.push_render_hook(_Harmless())
    if not _console.is_terminal and "COLUMNS" not in os.environ:
        _console.width = UNBOUNDED


def escape(text: str) -> str:
    """Return a text that is printed as it is: neither rich nor the terminal finds instructions in it."""
    return markup.escape(printable(text))


def say(text: str, console: Console = out) -> None:
    """Print a line of markup that the terminal may wrap, but rich does not: paths in it can be copied."""
    console.print(text, soft_wrap=True)


def print_json(facts: Any, *, one_line: bool = False) -> None:
    """Print standard JSON: NaN and infinity, which it does not have, become null."""
    text = json.dumps(_finite(facts), indent=None if one_line else 2, default=str, allow_nan=False)
    sys.stdout.write(text.replace("\x7f", "\\u007f") + "\n")
    sys.stdout.flush()


def _finite(facts: Any) -> Any:
    if isinstance(facts, Mapping):
        return {name: _finite(value) for name, value in facts.items()}
    if isinstance(facts, list | tuple):
        return [_finite(value) for value in facts]
    return None if isinstance(facts, float) and not math.isfinite(facts) else facts


def answer(facts: Any, text: str, *, as_json: bool) -> None:
    """Print a command's answer: its facts as JSON, or the text."""
    if as_json:
        print_json(facts)
    else:
        say(text)


class Bar:
    """A progress bar; called with how much is done, and how much there is in all."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress = progress
        self._what = what
        self._task = progress.add_task(escape(what), total=None)

    def __call__(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)

    def stage(self, what: str) -> None:
        """Begin the next stage."""
        self._what = what
        self._progress.reset(self._task, description=escape(what), total=None)

    def staged(self, what: str, done: int, total: int) -> None:
        """Show how much of a stage is done."""
        if what != self._what:
            self.stage(what)
        self(done, total)


@contextmanager
def progress_bar(what: str = "reading") -> Iterator[Bar]:
    """Show a progress bar on standard error if that is a terminal, and remove it at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        yield Bar(progress, what)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "segment"), counted(2000, "segment")
    ('1 segment', '2,000 segments')
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"


def cell(value: Any) -> str:
    """Return a value as a short text: whole numbers as they are, others to four digits."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    text = str(value)
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 1] + "…"


def grid_of(titles: Mapping[str, bool]) -> Table:
    """Return an empty table with these column titles; True aligns a column to the right."""
    grid = Table(box=None, pad_edge=False, padding=(0, GAP // 2))
    for title, right in titles.items():
        grid.add_column(escape(title), justify="right" if right else "left", no_wrap=True)
    return grid


def show_facts(facts: Mapping[str, str]) -> None:
    """Print names and values, one pair per line."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2), show_header=False)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for name, value in facts.items():
        grid.add_row(f"  {escape(name)}", escape(value))
    out.print(grid)


def show_table(table: pa.Table, limit: int = SHOWN_ROWS, keys: int = 1) -> None:
    """Print the first rows; columns that do not fit follow below, next to the first `keys` columns again."""
    import pyarrow as pa

    right = [pa.types.is_integer(field.type) or pa.types.is_floating(field.type) for field in table.schema]
    cells = [[cell(value) for value in column] for column in table.slice(0, limit).to_pydict().values()]
    widths = [
        max(map(cell_len, [name, *values])) for name, values in zip(table.column_names, cells, strict=True)
    ]
    for number, places in enumerate(_side_by_side(widths, keys, out.width)):
        if number:
            out.print()
        grid = grid_of({table.column_names[place]: right[place] for place in places})
        for row in zip(*(cells[place] for place in places), strict=True):
            grid.add_row(*map(escape, row))
        out.print(grid)
    if table.num_rows > limit:
        out.print(f"[dim]… {table.num_rows - limit:,} more; --json has all of them[/]")


def _side_by_side(widths: Sequence[int], keys: int, room: int) -> list[list[int]]:
    """Return which columns to print together, each time with the keys.

    >>> _side_by_side([8, 10, 10, 10], 1, 34)
    [[0, 1, 2], [0, 3]]
    """
    together: list[list[int]] = [list(range(min(keys, len(widths))))]
    for place in range(keys, len(widths)):
        wanted = sum(widths[one] + GAP for one in [*together[-1], place]) - GAP
        if wanted > room and len(together[-1]) > keys:
            together.append(list(range(keys)))
        together[-1].append(place)
    return together
