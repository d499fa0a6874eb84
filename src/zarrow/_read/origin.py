"""Of which rows was something derived?

`origin` is what tells a store's rows from any others, as a derived array's provenance repeats it.

Place: tier 3, above `catalog`; used by `derived` (readers), `derived` (the writing) and `_maintenance.audit`.
Reads only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from zarrow._format import layout
from zarrow._format.checksum import crc32c
from zarrow._format.spec import StoreSpec
from zarrow._read.catalog import Snapshot
from zarrow._storage.reading import Beneath
from zarrow.errors import CorruptionError

__all__ = ["DERIVED_FROM", "derived_names", "origin", "said_origin"]

DERIVED_FROM = "derived_from"
"""The member of a derived store's provenance that says whose rows it has."""


def origin(snapshot: Snapshot) -> dict[str, Any]:
    """Return what tells these rows from any others; of an incomplete store they can still change."""
    manifest = snapshot.manifest
    checksums = np.array([] if manifest is None else manifest.records_crc32c, "<u4")
    return {
        "uuid": snapshot.spec.uuid,
        "rows": snapshot.rows,
        "records_crc32c": f"{crc32c(checksums.tobytes()):08x}",
    }


def said_origin(spec: StoreSpec) -> object:
    """Return the rows that a derived store says it is of."""
    return spec.provenance.get(DERIVED_FROM)


def derived_names(root: Path) -> list[str]:
    """Return the names under which there may be a derived array: own directories, no links."""
    try:
        found = Beneath(root).list(layout.DERIVED_DIR)
    except CorruptionError:
        return []
    return sorted(name for name, kind in found.items() if kind == "directory" and layout.is_name(name))
