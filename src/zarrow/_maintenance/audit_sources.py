"""Audit of sources — whether every accepted row counts exactly once.

Claims, records and open segments say which rows of which open segments are committed, or about to be. No row
may be committed twice; a claim's rows must be there; and rows that a writer accepted after others count only
as long as those do.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path

from zarrow._format import layout
from zarrow._format.records import Claim
from zarrow._maintenance.audit_documents import DocumentsAudit
from zarrow._read.visible import OpenSegmentFacts, lacking, visible_rows

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
                    self._documents.doubled.add(other)
                    self._documents.damage(other, path, f"rows of {slot} that are also in segment {one}")
        for number, claim in self._documents.claims.items():
            if claim is not None:
                self._check_claim(number, claim)
        self._check_open()

    def _check_claim(self, number: int, claim: Claim) -> None:
        path = layout.claim_path(number)
        if number in self._documents.numbers:
            self._found.note(
                path, "the segment is committed; its writer has not removed the claim yet", segment=number
            )
            return
        missing = lacking(claim, {slot: facts.rows for slot, facts in self._slots.items()})
        if not isinstance(self._documents.files.root, Path):
            missing = []  # the rows of a bucket's claims are in the spools of their writers
        if missing and not self._documents.files.exists(layout.record_path(number)):
            names = ", ".join(f"{source.slot} up to {source.stop}" for source in missing)
            self._found.damage(path, f"claims rows that are missing: {names}", segment=number)
        elif self._documents.manifest is not None:
            self._found.damage(path, "a claim, but the store is complete without its segment", segment=number)
        else:
            rows = f"{claim.rows} rows are" if claim.sources else "a segment is"
            self._found.note(path, f"{rows} about to be committed", segment=number)

    def _check_open(self) -> None:
        documents = self._documents
        records = [(record, documents.checksums[number]) for number, record in documents.records.items()]
        full = documents.spec.segment_rows
        found = visible_rows(self._slots.values(), records, full)
        for slot in found.copies:
            of = self._slots[slot].owner.reopens
            what = f"segment {of[0]}, which is still committed" if isinstance(of, tuple) else of
            self._found.note(layout.slot_dir(slot), f"a copy of {what}")
        for slot, message in found.damage.items():
            if slot not in found.behind:
                self._found.damage(layout.slot_dir(slot), message)
        for slot, before in found.behind.items():
            if rows := self._slots[slot].rows:
                self._found.damage(
                    layout.slot_dir(slot),
                    f"{rows} rows, but {before.slot}, which the same writer filled first, has only "
                    f"{before.rows}: damaged, unless rows were lost in a power cut",
                )
        for slot, ranges in found.ranges.items():
            path, rows = layout.slot_dir(slot), sum(map(len, ranges))
            self.open_rows += rows
            if rows < self._slots[slot].rows:
                self._found.note(path, "its rows are committed; its writer has not removed it yet")
            elif rows and self._documents.manifest is not None:
                self._found.damage(path, f"{rows} rows in an open segment, but the store is complete")
