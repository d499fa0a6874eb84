"""Findings — what an audit found, by severity.

A `Finding` is one problem, a `Report` all of them, an `AuditLog` collects them during the audit. There are
three severities:

* *damage*: rows are lost, or cannot be trusted. `repair` sets them aside and lists those to predict again;
* *defect*: all rows are sound, but something else is not (Zarr's metadata, a stray part that any Parquet
  reader would take for rows). `repair` fixes it without loss;
* *note*: what a killed writer leaves behind; harmless, and the next writer cleans it up.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from html import escape
from typing import Literal

from zarrow._read.appearance import html_table
from zarrow.errors import CorruptionError

__all__ = ["AuditLog", "Finding", "Level", "Progress", "Report", "Severity", "said_by"]

Severity = Literal["damage", "defect", "note"]
Level = Literal["structure", "checksums", "full"]
LEVELS: tuple[Level, ...] = ("structure", "checksums", "full")
SEVERITIES: tuple[Severity, ...] = ("damage", "defect", "note")

Progress = Callable[[int, int], None]
"""Called with the bytes checked so far and the total."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A problem in a store.

    Parameters
    ----------
    severity : {"damage", "defect", "note"}
        Whether rows are lost, something other than rows is wrong, or it is harmless.
    path : str
        The file, relative to the store.
    message : str
        What is wrong with it.
    segment : int, optional
        The committed segment that it belongs to.
    rows : (int, int), optional
        The affected rows, as start and stop: rows of the store or, for files under ``open/``, of that open
        segment.
    sample_index : (int, int), optional
        The smallest and the largest ``sample_index`` of these rows, where they are known.

    Examples
    --------
    >>> print(Finding(severity="damage", path="table/part-00000000.parquet", message="missing"))
    damage: table/part-00000000.parquet: missing
    """

    severity: Severity
    path: str
    message: str
    segment: int | None = None
    rows: tuple[int, int] | None = None
    sample_index: tuple[int, int] | None = None

    def __str__(self) -> str:
        where = ""
        if self.rows is not None:
            where = f" (rows {self.rows[0]} to {self.rows[1] - 1}"
            if self.sample_index is not None:
                where += f", sample_index {self.sample_index[0]} to {self.sample_index[1]}"
            where += ")"
        return f"{self.severity}: {self.path}{where}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Report:
    """What `verify` found.

    Parameters
    ----------
    path : str
        The store.
    level : {"structure", "checksums", "full"}
        How thoroughly it was checked.
    complete : bool
        Whether the store has a sound manifest.
    rows, segments : int
        Committed rows and segments.
    open_rows : int
        Accepted rows of open segments.
    checked_files, checked_bytes : int
        What was read.
    findings : tuple of Finding
        The worst first.

    Examples
    --------
    >>> report = Report(path="run.zarrow", level="full", complete=True)
    >>> report.ok, report.counts
    (True, {'damage': 0, 'defect': 0, 'note': 0})
    """

    path: str
    level: Level
    complete: bool = False
    rows: int = 0
    segments: int = 0
    open_rows: int = 0
    checked_files: int = 0
    checked_bytes: int = 0
    findings: tuple[Finding, ...] = ()

    def __repr__(self) -> str:
        found = {severity: count for severity, count in self.counts.items() if count}
        state = f"complete={self.complete}, rows={self.rows}, open_rows={self.open_rows}"
        return f"Report(path={self.path!r}, level={self.level!r}, ok={self.ok}, {state}, counts={found})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: what was checked, then the findings."""
        state = "sound" if self.ok else "not sound"
        checked = f"{self.rows:,} rows in {self.segments:,} segments, level {self.level}"
        found = [(one.severity, str(one).removeprefix(f"{one.severity}: ")) for one in self.findings]
        return f"<div><b>{escape(self.path)}</b>: {state}; {checked}{html_table(found)}</div>"

    @property
    def ok(self) -> bool:
        """Whether there are no findings but notes."""
        return all(finding.severity == "note" for finding in self.findings)

    @property
    def counts(self) -> dict[str, int]:
        """The number of findings of each severity."""
        found = Counter(finding.severity for finding in self.findings)
        return {severity: found[severity] for severity in SEVERITIES}

    def to_json(self) -> str:
        """Return the report as one JSON object."""
        return json.dumps({"ok": self.ok, "counts": self.counts, **asdict(self)})


def said_by(path: object, error: object) -> str:
    """Return the message of an error, without its path if the finding names the same one."""
    if isinstance(error, CorruptionError) and error.path == str(path):
        return error.reason
    return str(error)


class AuditLog:
    """The findings of an audit in progress, and how far it has come.

    Parameters
    ----------
    level : {"structure", "checksums", "full"}
        How thoroughly to check.
    progress : callable of (int, int), optional
        Called with the bytes checked so far and the total.
    """

    def __init__(self, level: Level, progress: Progress | None = None) -> None:
        self.checksums = level != "structure"
        self.full = level == "full"
        self.total_bytes = 0
        self.checked_files = 0
        self.checked_bytes = 0
        self._done_bytes = 0
        self._progress = progress
        self._found: list[Finding] = []

    def add(self, finding: Finding) -> None:
        """Add a finding."""
        self._found.append(finding)

    def extend(self, findings: Iterable[Finding]) -> None:
        """Add several findings."""
        self._found.extend(findings)

    def damage(self, path: str, message: object, *, segment: int | None = None) -> None:
        """Add damage to unknown rows."""
        self.add(Finding(severity="damage", path=path, message=said_by(path, message), segment=segment))

    def defect(self, path: str, message: object) -> None:
        """Add a defect."""
        self.add(Finding(severity="defect", path=path, message=said_by(path, message)))

    def note(self, path: str, message: str, *, segment: int | None = None) -> None:
        """Add a note."""
        self.add(Finding(severity="note", path=path, message=message, segment=segment))

    @property
    def ok(self) -> bool:
        """Whether there are no findings but notes so far."""
        return all(finding.severity == "note" for finding in self._found)

    @property
    def damaged(self) -> bool:
        """Whether damage has been found so far."""
        return any(finding.severity == "damage" for finding in self._found)

    def read(self, size_bytes: int) -> None:
        """Count bytes that were read and checked."""
        self.checked_bytes += size_bytes

    def advance(self, size_bytes: int) -> None:
        """Report progress."""
        self._done_bytes += size_bytes
        if self._progress is not None:
            self._progress(min(self._done_bytes, self.total_bytes), self.total_bytes)

    def sorted(self) -> tuple[Finding, ...]:
        """Return the findings, the worst first."""
        return tuple(sorted(self._found, key=lambda finding: SEVERITIES.index(finding.severity)))
