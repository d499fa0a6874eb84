"""How does somebody read what an audit found, or what a repair did?

As a few lines: what the store is, what is wrong with it, the worst first, and what to do next.

Place: under `cli`, which calls it. Pure but for printing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from zarrow._maintenance import findings
from zarrow.repair import Repair, SetAside

__all__ = ["progress_bar", "ranges", "show_repair", "show_report"]

MAX_LINES = 40
MAX_RANGES = 8
_COLORS = {"damage": "bold red", "defect": "yellow", "note": "dim"}
_COUNTED = {
    "damage": ("damaged part", "damaged parts"),
    "defect": ("defect", "defects"),
    "note": ("note", "notes"),
}


@contextmanager
def progress_bar(console: Console, title: str) -> Iterator[findings.Progress | None]:
    """Show how far an audit is, if somebody looks."""
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn(title), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def show_report(console: Console, report: findings.Report) -> None:
    """Print what `verify` found."""
    counts = {name: count for name, count in report.counts.items() if count}
    state = (
        "[green]sound[/]"
        if report.ok
        else "[bold red]damaged[/]"
        if "damage" in counts
        else "[yellow]defective[/]"
    )
    completeness = (
        "complete" if report.complete else f"incomplete, with {report.open_rows:,} more rows in open segments"
    )
    _line(
        console,
        f"[bold]{escape(report.path)}[/]  {state}; {report.rows:,} rows in {report.segments:,} "
        f"segment{'s' * (report.segments != 1)}, {completeness}",
    )
    found = ", ".join(f"{count:,} {_COUNTED[name][count != 1]}" for name, count in counts.items())
    _line(
        console,
        f"  {report.checked_files:,} files, {report.checked_bytes:,} bytes read (level: {report.level}); "
        f"{found or 'nothing found'}",
    )
    _lines(console, [_finding(finding) for finding in report.findings])
    if not report.ok:
        _line(console, f"to mend it: zarrow repair {escape(report.path)} --dry-run")


def _finding(finding: findings.Finding) -> str:
    color, said = _COLORS[finding.severity], escape(str(finding))
    return f"  [{color}]{finding.severity}[/]{said.removeprefix(finding.severity)}"


def show_repair(console: Console, done: Repair) -> None:
    """Print what `repair` did, or would do."""
    name = escape(done.path)
    if done.nothing_to_do:
        _line(console, f"[bold]{name}[/]  [green]nothing to mend[/]")
        return
    would = "would be " if done.dry_run else ""
    _line(
        console,
        f"[bold]{name}[/]  {'a dry run: nothing was changed' if done.dry_run else '[green]mended[/]'}",
    )
    _lines(console, [f"  {would}set aside: {_set_aside(one)}" for one in done.set_aside])
    _lines(console, [f"  {would}rebuilt: {escape(path)}" for path in done.rebuilt])
    if done.moved_rows:
        _line(
            console,
            f"  {would}moved: {done.moved_rows:,} sound rows, to other row numbers; sample_index names them",
        )
    lost = sum(one.rows[1] - one.rows[0] for one in done.set_aside if one.rows is not None)
    if lost:
        known = [f"sample_index {ranges(done.sample_index)}"] if done.sample_index else []
        if done.nameless_rows:
            known.append(
                f"{done.nameless_rows:,} of them without a name, since the file that had it is damaged"
            )
        _line(console, f"  to predict again: {lost:,} rows{': ' * bool(known)}{'; '.join(known)}")
    if done.dry_run:
        _line(console, f"to do it: zarrow repair {name}")
    elif lost and not done.finalized:
        _line(
            console,
            f"now resume the run, which predicts these rows only, or do without: zarrow finalize {name}",
        )
    elif not done.before.complete and not done.finalized:
        _line(
            console,
            f"the store is incomplete: resume its run, or complete it as it is: zarrow finalize {name}",
        )


def _set_aside(one: SetAside) -> str:
    rows = "" if one.rows is None else f" (rows {one.rows[0]:,} to {one.rows[1] - 1:,})"
    return f"{escape(one.path)}{rows} → {escape(one.to)}: {escape('; '.join(one.reasons))}"


def ranges(numbers: Sequence[int]) -> str:
    """Return numbers in ascending order as ranges.

    >>> ranges([3, 4, 5, 9, 11, 12])
    '3–5, 9, 11–12'
    """
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    shown = [str(first) if first == last else f"{first}–{last}" for first, last in found[:MAX_RANGES]]
    return ", ".join(shown) + (
        f" and {len(found) - MAX_RANGES} more ranges" if len(found) > MAX_RANGES else ""
    )


def _lines(console: Console, lines: Iterable[str]) -> None:
    every = list(lines)
    for text in every[:MAX_LINES]:
        _line(console, text)
    if len(every) > MAX_LINES:
        _line(console, f"  and {len(every) - MAX_LINES:,} more: --json has all")


def _line(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True)
