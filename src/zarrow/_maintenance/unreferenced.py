"""Unreferenced objects — what lies in a bucket beside a complete store, and is no part of it.

A copy or a writer that was killed, or overtaken by another one, leaves objects that no record and no
manifest names: readers never look at them, and they cost money. They are found by listing all objects below
the store's prefix, and removed only if that is asked for. What was derived (``index/``, ``derived/``) is part
of the store.

The client cannot list multipart uploads that were never completed. They are no objects: a lifecycle rule of
the bucket removes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from zarrow._format import layout
from zarrow._read.view import take_view
from zarrow._storage.objects import ObjectPath
from zarrow.errors import StoreChangedError

__all__ = ["remove_unreferenced", "unreferenced"]

_PART = re.compile(r"table/part-(\d{8})\.parquet\Z")
_RECORD = re.compile(r"segments/(\d{8})\.json\Z")
_SHARD = re.compile(r"embeddings\.zarr/([A-Za-z0-9_-]{1,64})/c/(0|[1-9]\d{0,7})((?:/0)+)\Z")


def unreferenced(place: ObjectPath) -> Iterator[str]:
    """Yield the objects below a complete store's prefix that are no part of it.

    Raises
    ------
    StoreNotFoundError, IncompleteStoreError
        If there is no store, or one that writers may be filling.
    """
    snapshot = take_view(place, partial=False).snapshot
    axes = {array.name: array.shard_ndim for array in snapshot.spec.arrays}
    documents = {layout.STORE_JSON, layout.MANIFEST_JSON, layout.STATISTICS, f"{layout.ARRAYS_DIR}/zarr.json"}
    documents |= {f"{layout.array_dir(name)}/zarr.json" for name in axes}
    for path in place.names():
        if path in documents or path.startswith((f"{layout.INDEX_DIR}/", f"{layout.DERIVED_DIR}/")):
            continue
        if (match := _PART.match(path) or _RECORD.match(path)) and int(match[1]) < snapshot.segments:
            continue
        match = _SHARD.match(path)
        if match and len(match[3]) == 2 * axes.get(match[1], 0) and int(match[2]) < snapshot.segments:
            continue
        yield path


def remove_unreferenced(place: ObjectPath) -> list[str]:
    """Remove the objects below a complete store's prefix that are no part of it, and return their paths."""
    view = take_view(place, partial=False)
    found = sorted(unreferenced(place))
    for path in found:
        view.guard()  # another store may have taken the place of this one
        if not place.exists(layout.MANIFEST_JSON):
            raise StoreChangedError(f"{place}: the store is not complete any more: look at it again")
        place.delete(path)
    return found
