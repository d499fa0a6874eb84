"""Segment statistics — those of a complete store, read from ``statistics.arrow`` when a filter first asks.

They are used only if they say that they are of the rows of this view, by the store's uuid and the checksums
of all records, and if their own checksum holds. Without them a filter opens each part, and answers the same.
"""

from __future__ import annotations

from zarrow._format.layout import STATISTICS
from zarrow._format.statistics import MAX_STATISTICS_BYTES, Statistics, decode_statistics
from zarrow._read.view import View
from zarrow._storage.reading import read_file
from zarrow.errors import CorruptionError

__all__ = ["read_statistics"]


def read_statistics(view: View) -> Statistics | None:
    """Return the statistics of a view's segments; None if there are none that can be trusted."""
    snapshot = view.snapshot
    if snapshot.manifest is None or snapshot.segments < 2:  # a single part says the same
        return None
    try:
        data = read_file(snapshot.root, STATISTICS, limit_bytes=MAX_STATISTICS_BYTES)
        return decode_statistics(data, view.spec.table_schema, snapshot.segments, snapshot.manifest.identity)
    except (FileNotFoundError, CorruptionError):  # which `verify` reports
        return None
