"""Visible rows — which records and which rows of open segments count, by one rule for all.

What a partial reader shows (`view`), what recovery keeps (`_write.recovery`) and what an audit counts
(`_maintenance.audit_sources`) is the same, because all of them ask here:

1. Every record counts. Each number below one has a record, a claim (its writer is about to commit it), or a
   directory in quarantine (a repair has set it aside). A number without any of these is *missing*: damage.
2. An open segment whose ``reopens`` names a segment that has a record, or an open segment that exists, is a
   copy, and does not count.
3. Of the open segments of a session, in the order of ``sequence``, those behind one that is not full do not
   count: a power cut took rows before theirs. If they have durable rows, that is damage.
4. Of the others, those rows count that no record lists among its ``sources``.
5. The ``sources`` of a claim without a record are all there. Any that is not is damage.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from zarrow._format.layout import OPEN_DIR, claim_path
from zarrow._format.records import Claim, Owner, Source
from zarrow.errors import CorruptionError

__all__ = ["OpenSegmentFacts", "VisibleRows", "lacking", "lacking_error", "missing_records", "visible_rows"]


def missing_records(records: Collection[int], claims: Collection[int], aside: Collection[int]) -> list[int]:
    """Return the numbers below the last record that have no record, no claim and no directory in quarantine.

    >>> missing_records([0, 2, 5], claims=[1], aside=[3])
    [4]
    """
    if len(records) == max(records, default=-1) + 1:
        return []
    return sorted(set(range(max(records))).difference(records, claims, aside))


@dataclass(frozen=True, slots=True)
class OpenSegmentFacts:
    """An open segment's name, its owner, and the numbers of its accepted and of its durable rows."""

    slot: str
    owner: Owner
    rows: int
    durable_rows: int


@dataclass(frozen=True, slots=True)
class VisibleRows:
    """The open segments of a store that count, and those that do not.

    Parameters
    ----------
    ranges : dict of str to list of range
        By the name of each open segment that counts, oldest first, its rows that are in no record: all, some
        or none.
    copies : tuple of str
        Open segments that repeat what still counts.
    behind : dict of str to OpenSegmentFacts
        By the name of each open segment that does not count because it is behind one that is not full, that
        one.
    lost : tuple of str
        Those of them that have durable rows: damage.
    """

    ranges: dict[str, list[range]]
    copies: tuple[str, ...]
    behind: dict[str, OpenSegmentFacts]
    lost: tuple[str, ...]

    def check(self, root: Path) -> None:
        """Raise `CorruptionError` if rows were durable whose predecessors are gone."""
        for slot in self.lost:
            before = self.behind[slot]
            raise CorruptionError(
                f"some of its rows were durable, but of {before.slot}, which the same writer filled before, "
                f"only {before.rows} rows are left: 'zarrow repair' keeps what can still be read",
                path=root / OPEN_DIR / slot,
            )


def visible_rows(
    slots: Iterable[OpenSegmentFacts], records: Collection[int], sources: Iterable[Source], full: int
) -> VisibleRows:
    """Apply the rule to the open segments of a store.

    Parameters
    ----------
    slots : iterable of OpenSegmentFacts
        All open segments whose creation was completed, also those without rows.
    records : collection of int
        The numbers of all records.
    sources : iterable of Source
        The sources of the records, of those at least that have a claim or follow a gap: open segments are
        removed before the claim of their segment is.
    full : int
        Rows of a full segment.
    """
    slots = sorted(slots, key=lambda one: one.slot)
    standing = {*records, *(one.slot for one in slots)}
    copies = tuple(one.slot for one in slots if one.owner.reopens in standing)
    behind: dict[str, OpenSegmentFacts] = {}
    counted = [one for one in slots if one.slot not in copies]
    in_order = sorted(counted, key=lambda one: (one.owner.session, one.owner.sequence))
    for _, session in itertools.groupby(in_order, key=lambda one: one.owner.session):
        short = None
        for one in session:
            if short is not None:
                behind[one.slot] = short
            elif one.rows < full:
                short = one
    lost = tuple(one.slot for one in counted if one.slot in behind and one.durable_rows)
    committed: dict[str, list[tuple[int, int]]] = {}
    for source in sources:
        committed.setdefault(source.slot, []).append((source.start, source.stop))
    ranges = {
        one.slot: _without(one.rows, committed.get(one.slot, [])) for one in counted if one.slot not in behind
    }
    return VisibleRows(ranges, copies, behind, lost)


def lacking(claim: Claim, rows: Mapping[str, int]) -> list[Source]:
    """Return the sources of a claim that are not all there, given the rows of every open segment."""
    return [source for source in claim.sources if rows.get(source.slot, -1) < source.stop]


def lacking_error(claim: Claim, source: Source, rows: Mapping[str, int], root: Path) -> CorruptionError:
    """Return the error for one of them."""
    left = f"{rows[source.slot]} are left" if source.slot in rows else "which is gone"
    return CorruptionError(
        f"claims {source.stop} rows of {source.slot}, {left}: 'zarrow repair' keeps what can still be read",
        path=root / claim_path(claim.segment),
    )


def _without(rows: int, taken: Iterable[tuple[int, int]]) -> list[range]:
    """Return the rows 0 to `rows` that are in none of these intervals.

    >>> _without(10, [(4, 6), (0, 2)]), _without(3, [(0, 8)])
    ([range(2, 4), range(6, 10)], [])
    """
    left, start = [], 0
    for low, high in [*sorted(taken), (rows, rows)]:
        if start < min(low, rows):
            left.append(range(start, min(low, rows)))
        start = max(start, high)
    return left
