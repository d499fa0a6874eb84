"""Audit of statistics — whether ``statistics.arrow`` says of the segments what their records say.

A filter skips parts by it, and would leave out rows unnoticed. So it is compared with the records, value by
value; and, at the level *full*, each record with the rows of its part (`audit_segment`). It is derived: what
is wrong with it is a defect, and no row is lost.
"""

from __future__ import annotations

from zarrow._format.layout import STATISTICS
from zarrow._format.statistics import MAX_STATISTICS_BYTES, decode_statistics, statistics_of
from zarrow._maintenance.audit_documents import DocumentsAudit, read_document
from zarrow.errors import CorruptionError

__all__ = ["audit_statistics"]


def audit_statistics(documents: DocumentsAudit) -> None:
    """Check the statistics of a complete store, whose documents were read."""
    found, manifest, spec = documents.found, documents.manifest, documents.spec
    try:
        data = read_document(documents.files, found, STATISTICS, MAX_STATISTICS_BYTES)
    except FileNotFoundError:
        if manifest is not None:
            found.note(STATISTICS, "missing: filters are slower; 'zarrow finalize' writes it")
        return
    except CorruptionError as error:
        found.defect(STATISTICS, error)
        return
    if manifest is None:
        found.note(STATISTICS, "of rows that the store had; readers ignore it")
        return
    try:
        given = decode_statistics(data, spec.table_schema, manifest.segments, manifest.identity)
    except CorruptionError as error:
        found.defect(STATISTICS, error)
        return
    records = [documents.records.get(number) for number in range(manifest.segments)]
    if given is None:
        found.defect(STATISTICS, "of other rows than the store has; readers ignore it")
    elif None not in records:
        parts = [record.part for record in records if record is not None]
        made = statistics_of(spec.table_schema, parts, manifest.identity)
        if given != decode_statistics(made, spec.table_schema, manifest.segments, manifest.identity):
            found.defect(STATISTICS, "despite a correct checksum, it is not what the records say")
