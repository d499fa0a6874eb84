"""Derived arrays — those computed from a complete store's rows, where they belong to the rows of a view.

A derived array (a projection, a score) lies in ``derived/NAME/``: a complete store of its own that holds
the one array *NAME*, row by row, and whose provenance says of which rows it is (`Identity`). Atomic commits,
checksums, memory mapping and stock readers come with that.

It is used only if those rows are exactly the ones of the view. After an append it is outdated and ignored,
and so is what a killed derivation left. A damaged one never keeps the store from opening. Reads only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from zarrow._format import layout
from zarrow._format.records import Identity
from zarrow._format.spec import StoreSpec
from zarrow._read.arrays import StoreArray
from zarrow._read.ragged_rows import StoreRagged
from zarrow._read.view import View, take_view
from zarrow._storage.reading import Beneath, Place
from zarrow.errors import CorruptionError, IncompleteStoreError, InvalidInputError, NotFoundError, ZarrowError

__all__ = ["DERIVED_FROM", "DerivedArrays", "derived_names", "find_derived", "is_of"]

DERIVED_FROM = "derived_from"
"""The member of a derived store's provenance that holds the identity of the rows."""


def derived_names(root: Place) -> list[str]:
    """Return the names that may be those of derived arrays: of directories in the store, not links."""
    try:
        found = Beneath(root).list(layout.DERIVED_DIR)
    except (CorruptionError, InvalidInputError):
        return []
    return sorted(name for name, kind in found.items() if kind == "directory" and layout.is_name(name))


def is_of(spec: StoreSpec, identity: Identity) -> bool:
    """Tell whether a derived store says that it was made of these rows."""
    return bool(spec.provenance.get(DERIVED_FROM) == asdict(identity))


@dataclass(frozen=True, slots=True)
class DerivedArrays:
    """The derived arrays of a view.

    Parameters
    ----------
    arrays : dict of str to StoreArray or StoreRagged
        Those that belong to its rows.
    unusable : dict of str to ZarrowError
        Why the others cannot be used.
    """

    arrays: dict[str, StoreArray | StoreRagged] = field(default_factory=dict)
    unusable: dict[str, ZarrowError] = field(default_factory=dict)


def find_derived(view: View, reopen: tuple[Callable[..., Any], tuple[Any, ...]]) -> DerivedArrays:
    """Look for the derived arrays of a view.

    Parameters
    ----------
    view : View
        The rows.
    reopen : callable and its arguments
        Opens the store where an array of it is unpickled.

    Returns
    -------
    DerivedArrays
        All that lie in the store, usable or not.
    """
    found = DerivedArrays()
    taken = {array.name for array in view.spec.arrays} | set(view.spec.schema.names)
    for name in derived_names(view.snapshot.root):
        if name in taken:
            continue
        try:
            one = _open(view, name)
        except ZarrowError as error:
            found.unusable[name] = error
        else:
            array = one.spec.array(name)
            kind = StoreRagged if array.is_ragged else StoreArray
            found.arrays[name] = kind(one, array, reopen)
    return found


def _open(view: View, name: str) -> View:
    root = view.snapshot.root
    path = root / layout.DERIVED_DIR / name
    try:
        one = take_view(path, partial=False)
    except (IncompleteStoreError, NotFoundError) as error:
        raise IncompleteStoreError(
            f"{path}: making the derived array {name!r} was not finished: make it again"
        ) from error
    if not view.snapshot.complete or not is_of(one.spec, view.identity):
        raise IncompleteStoreError(
            f"{path}: the derived array {name!r} was made of other rows than the store has now (it was "
            "appended to or reopened): make it again"
        )
    names = [array.name for array in one.spec.arrays if array.name not in one.spec.extents]
    if names != [name] or one.rows != view.rows:
        raise CorruptionError(
            f"does not hold the array {name!r} of {view.rows} rows: make it again", path=path
        )
    return one
