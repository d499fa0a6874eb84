"""An audit or a repair in a terminal — what is wrong with the store, the worst first, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence

from zarrow._commands.terminal import counted, escape, say
from zarrow._maintenance.repair import Repair, SetAside
from zarrow._maintenance.verify import Finding, Report

__all__ = ["ranges", "show_repair", "show_report"]

MAX_LINES = 40
MAX_RANGES = 8
_COLORS = {"damage": "bold red", "defect": "yellow", "note": "dim"}
_NOUNS = {"damage": "damaged part", "defect": "defect", "note": "note"}


def show_report(report: Report) -> None:
    """Print what `verify` found."""
    counts = {name: count for name, count in report.counts.items() if count}
    if report.ok:
        state = "[green]sound[/]"
    else:
        state = "[bold red]damaged[/]" if "damage" in counts else "[yellow]defective[/]"
    completeness = "complete"
    if not report.complete:
        completeness = f"incomplete, with {report.open_rows:,} more rows, which are safe, in open segments"
    segments = counted(report.segments, "segment")
    say(f"[bold]{escape(report.path)}[/]  {state}; {report.rows:,} rows in {segments}, {completeness}")
    found = ", ".join(counted(count, _NOUNS[name]) for name, count in counts.items())
    say(
        f"  {report.checked_files:,} files, {report.checked_bytes:,} bytes read (level: {report.level}); "
        f"{found or 'nothing found'}"
    )
    _say_some([_finding(finding) for finding in report.findings])
    if not report.ok:
        say(f"what a repair would do: zarrow repair {escape(report.path)} --dry-run")


def _finding(finding: Finding) -> str:
    color, text = _COLORS[finding.severity], escape(str(finding))
    return f"  [{color}]{finding.severity}[/]{text.removeprefix(finding.severity)}"


def show_repair(done: Repair) -> None:
    """Print what `repair` did, or would do."""
    name = escape(done.path)
    if done.nothing_to_do:
        say(f"[bold]{name}[/]  [green]nothing to repair[/]")
        return
    would = "would be " if done.dry_run else ""
    say(f"[bold]{name}[/]  {'dry run: nothing was changed' if done.dry_run else '[green]repaired[/]'}")
    _say_some([f"  {would}set aside: {_set_aside(one)}" for one in done.set_aside])
    _say_some([f"  {would}rebuilt: {escape(path)}" for path in done.rebuilt])
    _say_some([f"  {would}removed: {escape(path)}" for path in done.removed])
    if done.moved_rows:
        say(
            f"  {would}moved: {done.moved_rows:,} sound rows, to new row numbers; "
            "their sample_index stays the same"
        )
    lost = sum(one.rows[1] - one.rows[0] - one.kept_rows for one in done.set_aside if one.rows is not None)
    if lost:
        known = [f"sample_index {ranges(done.sample_index)}"] if done.sample_index else []
        if done.nameless_rows:
            known.append(
                f"{done.nameless_rows:,} of them unidentified: the file with their sample_index is damaged"
            )
        if not known:  # appended without
            known.append(f"their columns are in {escape(done.path)}/quarantine/*/part.parquet")
        say(f"  to predict again: {lost:,} rows: {'; '.join(known)}")
    if done.dry_run:
        say(f"to do this: zarrow repair {'--remove-unreferenced ' * bool(done.removed)}{name}")
    elif lost and not done.finalized:
        say(
            f"resume the run, which predicts only these rows, or append them, or do without: "
            f"zarrow finalize --partial {name}"
        )
    elif not done.before.complete and not done.finalized:
        say(f"the store is incomplete: resume its run, or complete it as it is: zarrow finalize {name}")


def _set_aside(one: SetAside) -> str:
    rows = "" if one.rows is None else f" (rows {one.rows[0]:,} to {one.rows[1] - 1:,})"
    return f"{escape(one.path)}{rows} → {escape(one.to)}: {escape('; '.join(one.reasons))}"


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as ranges.

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
    more = f" and {len(found) - MAX_RANGES} more ranges" if len(found) > MAX_RANGES else ""
    return ", ".join(shown) + more


def _say_some(lines: Sequence[str]) -> None:
    for text in lines[:MAX_LINES]:
        say(text)
    if len(lines) > MAX_LINES:
        say(f"  and {len(lines) - MAX_LINES:,} more: --json lists all of them")
