"""Audit of sources — whether every accepted row counts exactly once.

Claims, records and open segments say which rows of which open segments are committed, or about to be. No row
may be committed twice; a claim's rows must be there; and rows that a writer accepted after others count only
as long as those do.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable

from zarrow._format import layout
from zarrow._format.records import Claim, Source
from zarrow._maintenance.audit_documents import DocumentsAudit
from zarrow._maintenance.audit_open_segments import OpenSegmentFacts

__all__ = ["audit_sources"]


def audit_sources(documents: DocumentsAudit, slots: dict[str, OpenSegmentFacts]) -> int:
    """Compare claims, records and open segments; return the accepted rows that are not committed."""
    audit = _SourcesAudit(documents, slots)
    audit.run()
    return audit.open_rows


class _SourcesAudit:
    """The comparison, and the open rows counted so far."""

    def __init__(self, documents: DocumentsAudit, slots: dict[str, OpenSegmentFacts]) -> None:
        self._documents = documents
        self._found = documents.found
        self._slots = slots
        self.open_rows = 0

    def run(self) -> None:
        """Compare claims, records and open segments."""
        used: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
        for record in self._documents.records.values():
            for source in record.sources:
                used[source.slot].append((source.start, source.stop, record.segment))
        for slot, pieces in used.items():
            pieces.sort()
            for (_, stop, one), (start, _, other) in itertools.pairwise(pieces):
                if start < stop:
                    path = layout.record_path(other)
                    self._documents.damage(other, path, f"rows of {slot} that are also in segment {one}")
        for number, claim in self._documents.claims.items():
            if claim is not None:
                self._check_claim(number, claim)
        for slot, facts in self._slots.items():
            self._check_slot(facts, used.get(slot, []))
        self._check_order()

    def _check_claim(self, number: int, claim: Claim) -> None:
        path = layout.claim_path(number)
        if number in self._documents.numbers:
            self._found.note(
                path, "the segment is committed; its writer has not removed the claim yet", segment=number
            )
            return
        lacking = [source for source in claim.sources if not self._has(source)]
        if lacking and not self._documents.files.exists(layout.record_path(number)):
            names = ", ".join(f"{source.slot} up to {source.stop}" for source in lacking)
            self._found.damage(path, f"claims rows that are missing: {names}", segment=number)
        elif self._documents.manifest is not None:
            self._found.damage(path, "a claim, but the store is complete without its segment", segment=number)
        else:
            self._found.note(path, f"{claim.rows} rows are about to be committed", segment=number)

    def _has(self, source: Source) -> bool:
        facts = self._slots.get(source.slot)
        return facts is not None and source.stop <= facts.rows

    def _check_slot(self, facts: OpenSegmentFacts, used: Iterable[tuple[int, int, int]]) -> None:
        path = layout.slot_dir(facts.slot)
        committed = sum(stop - start for start, stop, _ in used)
        reopens = None if facts.owner is None else facts.owner.reopens
        if reopens is not None and reopens in self._documents.numbers:
            self._found.note(path, f"a copy of segment {reopens}, which is still committed")
            return
        rows = facts.rows - min(committed, facts.rows)
        self.open_rows += rows
        if committed:
            self._found.note(path, "its rows are committed; its writer has not removed it yet")
        elif rows and self._documents.manifest is not None:
            self._found.damage(path, f"{rows} rows in an open segment, but the store is complete")

    def _check_order(self) -> None:
        """Report rows that recovery would drop because rows before them are gone."""
        sessions: dict[str, list[OpenSegmentFacts]] = defaultdict(list)
        for facts in self._slots.values():
            if facts.owner is not None and facts.owner.reopens is None:
                sessions[facts.owner.session].append(facts)
        for group in sessions.values():
            group.sort(key=lambda facts: facts.owner.sequence if facts.owner else 0)
            for before, after in itertools.pairwise(group):
                if before.rows < self._documents.spec.segment_rows and after.rows:
                    self._found.damage(
                        layout.slot_dir(after.slot),
                        f"{after.rows} rows, but {before.slot}, which the same writer filled first, has only "
                        f"{before.rows}: damaged, unless rows were lost in a power cut",
                    )
