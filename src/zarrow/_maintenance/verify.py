"""Verify — whether a store is what was written.

`verify` compares everything that a store says about itself: ``zarrow.json``, the manifest, the commit
records, the files, their sizes and checksums, the shard indexes, the footers and pages of the parts, the
numbering of the rows, the journals of open segments, the claims, the metadata that Zarr readers use, the key
index, and the names of all files. The work is done by `_maintenance.audit`, which `repair` uses, too.

It only reads, needs no lock and no write permission, and may run while writers are active.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from zarrow._maintenance.findings import LEVELS, Finding, Level, Progress, Report, Severity
from zarrow._storage.objects import located
from zarrow.errors import InvalidInputError

__all__ = ["Finding", "Level", "Progress", "Report", "Severity", "verify"]


def verify(
    path: str | os.PathLike[str],
    level: Level = "checksums",
    progress: Progress | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> Report:
    """Check a store, and report what is wrong with it.

    Parameters
    ----------
    path : path or URL
        The store.
    level : {"structure", "checksums", "full"}
        What to check: documents, sizes and indexes; the checksum of every byte, too; or the decoded values
        as well.
    progress : callable of (int, int), optional
        Called with the bytes checked so far and the total.
    storage_options : dict of str, optional
        For a URL; see `zarrow.open`. From a bucket a chunk at a time is read.

    Returns
    -------
    Report
        Its `ok` tells whether every row is there, as it was written.

    Raises
    ------
    StoreNotFoundError, NotAStoreError
        If there is no store at the path.
    InvalidInputError
        If `level` is none of these.

    Examples
    --------
    >>> import zarrow, zarrow.testing
    >>> report = zarrow.verify(zarrow.testing.example_store().path)
    >>> report.ok, report.rows
    (True, 5000)
    """
    if level not in LEVELS:
        raise InvalidInputError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
    from zarrow._maintenance import audit  # which imports Parquet; `import zarrow` does not

    return audit.audit(located(path, storage_options), level, progress).report
