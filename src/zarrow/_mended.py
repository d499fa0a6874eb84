"""What did a repair do, or what would it do?

`SetAside`, one thing that was moved out of the way, and `Repair`, all that was done.

Place: tier 1; pure. Made and handed out by `repair`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from zarrow._maintenance.findings import Report

__all__ = ["Repair", "SetAside"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """Something damaged that was moved out of the way, or would be.

    Parameters
    ----------
    path : str
        Where it was: a segment's record, an open segment, …, relative to the store.
    to : str
        The directory in which it is now.
    segment : int or None
        The committed segment's number, if it was one.
    rows : (int, int) or None
        Its rows, from the first to before the last: of the store, or of the open segment.
    sample_index : tuple of int or None
        The ``sample_index`` values of these rows, in ascending order; None where they cannot be told.
    reasons : tuple of str
        What was wrong with it.
    """

    path: str
    to: str
    segment: int | None
    rows: tuple[int, int] | None
    sample_index: tuple[int, ...] | None
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.path} → {self.to}: {'; '.join(self.reasons)}"
        if self.rows is not None:
            text += f" ({self.rows[1] - self.rows[0]} rows)"
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What `repair` did, or would do.

    Parameters
    ----------
    path : str
        The store.
    dry_run : bool
        Whether nothing was done.
    set_aside : tuple of SetAside
        What was moved to ``quarantine/``.
    rebuilt : tuple of str
        Derived files that were written anew.
    moved_rows : int
        Sound rows that were entered anew, and have other row numbers since.
    finalized : bool
        Whether the store was completed, or would be.
    before : Report
        The audit that it is based on.

    Examples
    --------
    >>> report = Report(path="run.zarrow", level="checksums")
    >>> Repair(path="run.zarrow", dry_run=True, before=report).nothing_to_do
    True
    """

    path: str
    dry_run: bool
    before: Report
    set_aside: tuple[SetAside, ...] = ()
    rebuilt: tuple[str, ...] = ()
    moved_rows: int = 0
    finalized: bool = False

    @property
    def nothing_to_do(self) -> bool:
        """Whether the store was sound, and no wish was left."""
        return not self.set_aside and not self.rebuilt and not self.finalized

    @property
    def sample_index(self) -> tuple[int, ...]:
        """The ``sample_index`` values of all rows that were set aside, where they can be told."""
        values = {value for one in self.set_aside for value in one.sample_index or ()}
        return tuple(sorted(values))

    @property
    def nameless_rows(self) -> int:
        """How many of the rows that were set aside no ``sample_index`` names: what had it is damaged."""
        return sum(
            one.rows[1] - one.rows[0]
            for one in self.set_aside
            if one.rows is not None and one.sample_index is None
        )

    def to_json(self) -> str:
        """Return what was done as one JSON object."""
        facts = asdict(self) | {"nothing_to_do": self.nothing_to_do, "sample_index": self.sample_index}
        return json.dumps(facts | {"before": json.loads(self.before.to_json())})
