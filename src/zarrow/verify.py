"""Is a store what was written?

`verify` holds everything that a store says of itself against everything else: what the store is, the
manifest, the commit records, the files and their sizes, their checksums, the shard indexes, the footers and
pages of the parts, the numbering of the rows, the journals of open segments, the claims, the metadata that
Zarr readers believe, and the names of all files. It runs the audit (`_maintenance.audit`), which `repair`
runs
too.

Place: tier 4, with `writer`, `store` and `repair`, which it must not import. Reads only, needs no lock and
no write permission; may run while writers are at work.
"""

from __future__ import annotations

import os
from pathlib import Path

from zarrow._maintenance.findings import LEVELS, Finding, Level, Progress, Report, Severity
from zarrow.errors import InvalidInputError

__all__ = ["Finding", "Level", "Progress", "Report", "Severity", "verify"]


def verify(
    path: str | os.PathLike[str], level: Level = "checksums", progress: Progress | None = None
) -> Report:
    """Tell what is wrong with a store.

    Parameters
    ----------
    path : path
        The store.
    level : {"structure", "checksums", "full"}
        How closely to look: at documents, sizes and indexes; at every byte's checksum too; or at the decoded
        values as well.
    progress : callable of (int, int), optional
        Called with the bytes checked so far and those to check.

    Returns
    -------
    Report
        Its `ok` is whether every row is there, as it was written.

    Raises
    ------
    StoreNotFoundError, NotAStoreError
        If there is no store at the path.
    InvalidInputError
        If there is no such level.

    Examples
    --------
    >>> import zarrow, zarrow.testing
    >>> report = zarrow.verify(zarrow.testing.example_store().path)
    >>> report.ok, report.rows
    (True, 5000)
    """
    if level not in LEVELS:
        raise InvalidInputError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
    from zarrow._maintenance import audit  # imports Parquet and the codecs, which `import zarrow` does not

    return audit.audit(Path(path), level, progress).report
