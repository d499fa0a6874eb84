"""How does a damaged store become a sound one, without what was damaged?

`repair` audits a store (`_maintenance.audit`), puts what is damaged aside (`_maintenance.quarantine`) and
lets recovery do the
rest (`_write.recovery`), in this order:

1. the manifest goes: the store is incomplete, and does not pass for what it was;
2. each damaged segment is moved to ``quarantine/``: shards and part first, its record last, so that a repair
   that was interrupted finds it again. Its number is free then;
3. damaged open segments, claims that can never be fulfilled, and files that readers would take for rows
   follow;
4. recovery closes the gaps: the rows of the *last* segments are entered anew, by the path on which a writer
   reopens one, and sealed under the free numbers. The records are dense again, and per damaged segment one
   sound segment was copied, however many lie behind it;
5. Zarr's metadata are written anew.

**Rows that were moved have new row numbers**; their ``sample_index`` is what names them. The rows that are
gone are named by theirs, so that a resumed ``predict`` computes exactly those anew. Nothing is ever removed
that there is no copy of, and the store is not declared complete without `finalize`.

Why not mark the damaged rows and leave them in place: every reader, also those that know Zarr or Parquet
only, would have to know of the marks.

Place: tier 4, with `writer`, `store` and `verify`, which it must not import. Takes the store's lock. A crash
anywhere leaves a store that a second repair, or a writer, finishes; no row that was sound is lost or doubled.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from zarrow._maintenance.findings import Progress, Report
from zarrow._maintenance.quarantine import SetAside
from zarrow.errors import InvalidInputError

if TYPE_CHECKING:
    from zarrow._maintenance.repair_plan import Plan

__all__ = ["Repair", "SetAside", "repair"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:  # its fields are its parameters: numpydoc ignore=PR02
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


def repair(
    path: str | os.PathLike[str],
    *,
    dry_run: bool = False,
    finalize: bool = False,
    level: Literal["checksums", "full"] = "checksums",
    progress: Progress | None = None,
) -> Repair:
    """Put what is damaged aside, and rebuild what is derived.

    The store is incomplete afterwards, if rows had to be set aside: predict them again with ``mode="a"``, or
    complete the store without them.

    Parameters
    ----------
    path : path
        The store. No writer may be at work.
    dry_run : bool
        Only say what would be done.
    finalize : bool
        Complete the store in the end, without the rows that were set aside.
    level : {"checksums", "full"}
        How closely to look for damage, as in `verify`.
    progress : callable of (int, int), optional
        Called with the bytes audited so far and those to audit.

    Returns
    -------
    Repair
        What was done, and the ``sample_index`` values to compute again.

    Raises
    ------
    InvalidInputError
        If there is no such level.
    StoreNotFoundError, NotAStoreError
        If there is no store.
    StoreLockedError
        If a writer is at work.
    CorruptionError
        If ``zarrow.json`` is damaged: without it nothing else can be judged.
    PermissionError
        If this user may not read what seems damaged, or not write.

    Examples
    --------
    >>> import zarrow, zarrow.testing
    >>> zarrow.repair(zarrow.testing.example_store().path, dry_run=True).nothing_to_do
    True
    """
    if level not in ("checksums", "full"):
        raise InvalidInputError(f"level must be checksums or full, got {level!r}")
    from zarrow._maintenance import (
        repair_plan,
    )  # imports Parquet and the codecs, which `import zarrow` does not

    root = Path(os.path.abspath(path))
    if dry_run:
        report, plan = repair_plan.examine(root, level, progress)
        return _result(path, report, plan, dry_run=True, finalize=finalize)
    with repair_plan.exclusively(root) as owner:
        report, plan = repair_plan.examine(root, level, progress)
        done = _result(path, report, plan, dry_run=False, finalize=finalize)
        if not done.nothing_to_do:
            repair_plan.carry_out(root, plan, owner, finalize=finalize)
    return done


def _result(
    path: str | os.PathLike[str], report: Report, plan: Plan, *, dry_run: bool, finalize: bool
) -> Repair:
    aside = tuple(one.facts for one in plan.incidents)
    return Repair(
        path=os.fspath(path),
        dry_run=dry_run,
        before=report,
        set_aside=aside,
        rebuilt=plan.rebuilt,
        moved_rows=plan.moved_rows,
        finalized=finalize and bool(aside or plan.rebuilt or not report.complete),
    )
