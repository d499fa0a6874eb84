"""Origin — which rows something was derived from.

`origin` tells a store's rows from any others: by the store's uuid, their number, and a checksum of their
records. A derived array repeats it in its provenance. Reads only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zarrow._format import layout
from zarrow._format.spec import StoreSpec
from zarrow._read.catalog import Snapshot
from zarrow._storage.reading import Beneath
from zarrow.errors import CorruptionError

__all__ = ["DERIVED_FROM", "derived_names", "origin", "said_origin"]

DERIVED_FROM = "derived_from"
"""The member of a derived store's provenance that holds the origin of its rows."""


def origin(snapshot: Snapshot) -> dict[str, Any]:
    """Return what tells these rows from any others. The rows of an incomplete store can still change."""
    checksum = 0 if snapshot.manifest is None else snapshot.manifest.fingerprint
    return {"uuid": snapshot.spec.uuid, "rows": snapshot.rows, "records_crc32c": checksum}


def said_origin(spec: StoreSpec) -> object:
    """Return the origin that a derived store names, of whatever form."""
    return spec.provenance.get(DERIVED_FROM)


def derived_names(root: Path) -> list[str]:
    """Return the names that may be those of derived arrays: of directories in the store, not links."""
    try:
        found = Beneath(root).list(layout.DERIVED_DIR)
    except CorruptionError:
        return []
    return sorted(name for name, kind in found.items() if kind == "directory" and layout.is_name(name))
