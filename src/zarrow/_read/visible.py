"""Visible rows — which records and which rows of open segments count, by one rule for all.

What a partial reader shows (`view`), what recovery keeps (`_write.recovery`) and what an audit counts
(`_maintenance.audit_sources`) is the same, because all of them ask here:

1. Every record counts. Each number below one, and each that has a part, has a record, a claim (its writer is
   about to commit it), or a directory in quarantine (a repair has set it aside). A number without any of
   these is *missing*: damage. So is a part behind the last record, unless that segment was taken back.
2. An open segment whose ``reopens`` names a record that is there, by number and checksum, or an open segment
   that exists or was committed in full, is a copy, and does not count. If it has more rows than that record,
   that is damage.
3. Of the open segments of a session, in the order of ``sequence``, those behind one that is not full do not
   count: a power cut took rows before theirs. If they have durable rows, that is damage.
4. Of the others, those rows count that no record lists among its ``sources``, with a claim or without one.
5. An open segment with rows follows one that is there, too, or whose rows records have. If the one before it
   in its session is neither, that is damage.
6. The ``sources`` of a claim without a record are all there. Any that is not is damage.

No crash leaves what these rules call damage. A copy of a store that was written meanwhile may: it has one
file as it was early, and another as it was late.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from zarrow._format.layout import OPEN_DIR, claim_path
from zarrow._format.records import Claim, Owner, SegmentRecord, Source
from zarrow._storage.reading import Place
from zarrow.errors import CorruptionError

__all__ = ["OpenSegmentFacts", "VisibleRows", "lacking", "lacking_error", "missing_records", "visible_rows"]

_MAX_MISSING = 10_000
"""A hostile store may have one record, of the highest number."""

_COPIED = "the store was copied while it was written, or files of it are lost"


def missing_records(
    records: Collection[int],
    parts: Collection[int] = (),
    claims: Collection[int] = (),
    aside: Collection[int] = (),
    owners: Iterable[Owner] = (),
) -> list[int]:
    """Return the numbers below the last record, or with a part, that should have a record and have none.

    Parameters
    ----------
    records, parts, claims, aside : collection of int
        The numbers of records, parts, claims and directories in quarantine.
    owners : iterable of Owner
        Of the open segments: some may be what became of a segment whose record was taken back.

    Examples
    --------
    >>> missing_records([0, 2, 5], [5, 6, 7], claims=[1, 6], aside=[3])
    [4, 7]
    """
    last = max(records, default=-1)
    taken_back = {one.reopens[0] for one in owners if isinstance(one.reopens, tuple)}
    behind = {number for number in parts if number > last} - taken_back
    numbers = itertools.chain(range(last) if len(records) <= last else (), sorted(behind))
    known = {*records, *claims, *aside}
    return list(itertools.islice((one for one in numbers if one not in known), _MAX_MISSING))


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
    damage : dict of str to str
        By the name of an open segment, why its rows cannot be shown.
    """

    ranges: dict[str, list[range]]
    copies: tuple[str, ...]
    behind: dict[str, OpenSegmentFacts]
    damage: dict[str, str]

    def check(self, root: Place) -> None:
        """Raise `CorruptionError` if something is damaged."""
        for slot, message in self.damage.items():
            remedy = "'zarrow repair' keeps what can still be read"
            raise CorruptionError(f"{message}: {remedy}", path=root / OPEN_DIR / slot)


def visible_rows(
    slots: Iterable[OpenSegmentFacts],
    records: Iterable[tuple[SegmentRecord, int]],
    full: int,
) -> VisibleRows:
    """Apply the rule to the open segments of a store.

    Parameters
    ----------
    slots : iterable of OpenSegmentFacts
        All open segments whose creation was completed, also those without rows.
    records : iterable of (SegmentRecord, int)
        The records that may have rows of these, or that these may be copies of, each with the crc32c of its
        file (`catalog.read_records_for`).
    full : int
        Rows of a full segment.
    """
    slots = sorted(slots, key=lambda one: one.slot)
    names = {one.slot for one in slots}
    known = {record.segment: (record, checksum) for record, checksum in records}
    committed: dict[str, list[tuple[int, int]]] = {}
    there = {(one.owner.session, one.owner.sequence): full for one in slots}
    for source in (source for record, _ in known.values() for source in record.sources):
        committed.setdefault(source.slot, []).append((source.start, source.stop))
        place = source.session, source.sequence
        there[place] = there.get(place, 0) + source.rows
    copies, damage = [], {}
    for one in slots:
        of = one.owner.reopens
        if of in names or sum(stop - start for start, stop in committed.get(str(of), [])) >= full:
            copies.append(one.slot)
        elif isinstance(of, tuple) and of[0] in known and known[of[0]][1] == of[1]:
            copies.append(one.slot)
            if one.rows > known[of[0]][0].rows:
                damage[one.slot] = (
                    f"a copy of segment {of[0]}, and more rows, though that is still committed: {_COPIED}"
                )
    behind: dict[str, OpenSegmentFacts] = {}
    counted = [one for one in slots if one.slot not in copies]
    in_order = sorted(counted, key=lambda one: (one.owner.session, one.owner.sequence))
    for _, session in itertools.groupby(in_order, key=lambda one: one.owner.session):
        short = None
        for one in session:
            if short is not None:
                behind[one.slot] = short
            elif one.rows < full and _without(full, committed.get(one.slot, [])):
                short = one
    for one in counted:
        before = behind.get(one.slot)
        if before is not None and one.durable_rows:
            damage[one.slot] = (
                f"some of its rows were durable, but of {before.slot}, which the same writer filled before, "
                f"only {before.rows} rows are left"
            )
        place = one.owner.session, one.owner.sequence - 1
        if before is None and one.rows and place[1] >= 0 and there.get(place, 0) < full:
            damage[one.slot] = (
                f"the rows before its own are missing: open segment {place[1]} of the same writer is neither "
                f"here nor committed: {_COPIED}"
            )
    ranges = {
        one.slot: _without(one.rows, committed.get(one.slot, [])) for one in counted if one.slot not in behind
    }
    return VisibleRows(ranges, tuple(copies), behind, damage)


def lacking(claim: Claim, rows: Mapping[str, int]) -> list[Source]:
    """Return the sources of a claim that are not all there, given the rows of every open segment."""
    return [source for source in claim.sources if rows.get(source.slot, -1) < source.stop]


def lacking_error(claim: Claim, source: Source, rows: Mapping[str, int], root: Place) -> CorruptionError:
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
