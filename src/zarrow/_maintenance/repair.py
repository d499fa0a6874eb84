"""Repair — a damaged store made sound again, without what was damaged.

`repair` audits a store, sets aside what is damaged (`_write.quarantine`), and leaves the rest to
recovery (`_write.recovery`), in this order:

1. The manifest is removed: the store is incomplete now, and must not pass for complete. Zarr's metadata
   shrink to the rows before the first damaged segment, so that no Zarr reader sees zeros in place of missing
   shards.
2. Each damaged segment is moved to ``quarantine/``: its files are linked there, then its record is removed,
   then their other names. Its number is then free.
3. Damaged open segments, claims that can never be fulfilled, and files that readers would take for rows
   follow.
4. Recovery closes the gaps: the *last* segments are reopened, as by a writer that appends, and sealed under
   the free numbers. Then the records are dense again; for each damaged segment one sound segment was copied,
   however many follow it.
5. Zarr's metadata is written again.

Rows of what is set aside that can still be read and checked stay in the store: they are copied to an open
segment first, which counts from the moment that what it repeats is gone.

**Rows that were moved have new row numbers**; their ``sample_index`` identifies them. The rows that are lost
are listed by theirs, so that a resumed ``predict`` computes exactly those. Nothing is removed unless there is
a copy of it, and the store is not completed without `finalize`.

Why damaged rows are not just marked and left in place: every reader, also those that know only Zarr or
Parquet, would have to know about the marks.

A repair holds the store's lock. A crash anywhere leaves a store that a second repair, or a writer, finishes;
no sound row is lost or duplicated.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from zarrow._maintenance.findings import Progress, Report
from zarrow._storage.objects import ObjectPath, located
from zarrow._write.quarantine import SetAside
from zarrow.errors import CorruptionError, InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

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
        Whether nothing was changed.
    set_aside : tuple of SetAside
        What was moved to ``quarantine/``.
    rebuilt : tuple of str
        Derived files that were rebuilt.
    moved_rows : int
        The number of sound rows that have new row numbers.
    finalized : bool
        Whether the store was completed.
    removed : tuple of str
        Objects in a bucket that were no part of the store.
    before : Report
        The audit that this is based on.

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
    removed: tuple[str, ...] = ()

    @property
    def nothing_to_do(self) -> bool:
        """Whether the store was sound, and was not to be completed."""
        return not (self.set_aside or self.rebuilt or self.finalized or self.removed)

    @property
    def sample_index(self) -> tuple[int, ...]:
        """The known ``sample_index`` values of all rows that were set aside."""
        values = {value for one in self.set_aside for value in one.sample_index or ()}
        return tuple(sorted(values))

    @property
    def nameless_rows(self) -> int:
        """The number of rows that were set aside and whose ``sample_index`` is lost."""
        return sum(
            one.rows[1] - one.rows[0] - one.kept_rows
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
    remove_unreferenced: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Repair:
    """Set aside what is damaged, and rebuild what is derived.

    If rows were set aside, the store is incomplete afterwards: predict them again with ``mode="a"``, or
    complete the store without them.

    Parameters
    ----------
    path : path or URL
        The store, without an active writer: one in a bucket, which has no locks, would be overtaken, and
        stop.
    dry_run : bool
        Only return what would be done.
    finalize : bool
        Complete the store at the end, without the rows that were set aside.
    level : {"checksums", "full"}
        How thoroughly to check for damage, as in `verify`.
    remove_unreferenced : bool
        In a bucket: remove all objects below a complete store that are no part of it, such as what a killed
        copy has left.
    storage_options : dict of str, optional
        For a URL; see `zarrow.open`.
    progress : callable of (int, int), optional
        Called with the bytes checked so far and the total.

    Returns
    -------
    Repair
        What was done, and the ``sample_index`` values to predict again.

    Raises
    ------
    InvalidInputError
        If `level` is neither of these, or if this is not possible where the store is.
    StoreNotFoundError, NotAStoreError
        If there is no store.
    StoreLockedError
        If a writer is active.
    CorruptionError
        If ``zarrow.json`` is damaged: nothing else can be checked without it.
    PermissionError
        If this user may not write, or may not read what seems damaged.

    Examples
    --------
    >>> import zarrow, zarrow.testing
    >>> zarrow.repair(zarrow.testing.example_store().path, dry_run=True).nothing_to_do
    True
    """
    if level not in ("checksums", "full"):
        raise InvalidInputError(f"level must be checksums or full, got {level!r}")
    # Which import Parquet; `import zarrow` does not.
    from zarrow._maintenance import repair_in_bucket, repair_on_disk, repair_plan
    from zarrow._write.directory import exclusively, new_owner

    place = located(path, storage_options)
    if remove_unreferenced:
        return _without_unreferenced(place, dry_run=dry_run, finalize=finalize)
    if dry_run:
        report, plan = repair_plan.examine(place, level, progress)
        return _result(place, report, plan, dry_run=True, finalize=finalize)
    if isinstance(place, ObjectPath):
        before = repair_in_bucket.pulse(place)
        report, plan = repair_plan.examine(place, level, progress)
        done = _result(place, report, plan, dry_run=False, finalize=finalize)
        if not done.nothing_to_do:
            repair_in_bucket.carry_out(place, plan, new_owner(), before, finalize=finalize)
        return done
    with exclusively(place) as owner:
        report, plan = repair_plan.examine(place, level, progress)
        done = _result(place, report, plan, dry_run=False, finalize=finalize)
        if not done.nothing_to_do:
            repair_on_disk.carry_out(place, plan, owner, finalize=finalize)
    return done


def _without_unreferenced(place: Path | ObjectPath, *, dry_run: bool, finalize: bool) -> Repair:
    """Remove the objects that are no part of a sound, complete store in a bucket."""
    from zarrow._maintenance import unreferenced
    from zarrow._maintenance.audit import audit

    if not isinstance(place, ObjectPath) or finalize:
        raise InvalidInputError(f"{place}: remove_unreferenced is for a complete store in a bucket, alone")
    report = audit(place, "structure").report
    for finding in report.findings:
        if finding.severity == "damage":
            raise CorruptionError(
                f"{finding.message}: nothing was removed: copy what can be read, and repair that",
                path=place / finding.path,
            )
    found = unreferenced.unreferenced(place) if dry_run else unreferenced.remove_unreferenced(place)
    return Repair(path=str(place), dry_run=dry_run, before=report, removed=tuple(sorted(found)))


def _result(place: Path | ObjectPath, report: Report, plan: Plan, *, dry_run: bool, finalize: bool) -> Repair:
    aside = tuple(one.facts for one in plan.incidents)
    return Repair(
        path=str(place),
        dry_run=dry_run,
        before=report,
        set_aside=aside,
        rebuilt=plan.rebuilt,
        moved_rows=plan.moved_rows,
        finalized=finalize and bool(aside or plan.rebuilt or not report.complete),
    )
