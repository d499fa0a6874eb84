"""Which files are in a store that nobody asked for?

A stray part is taken for rows by every Parquet reader, a symbolic link may lead a writer out of the store,
and what a dead writer left is worth a note. Only directories that the format knows are looked into, so a
deep tree or a long list costs no more than itself, and no link is followed.

Place: tier 3, used by `audit`. Reads only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from zarrow._format import layout
from zarrow._format.spec import StoreSpec
from zarrow._maintenance.findings import AuditLog
from zarrow._storage.reading import Beneath
from zarrow.errors import CorruptionError

__all__ = ["NamesAudit"]

MAX_STRAYS = 100
"""Strays listed per directory; of more, only their number is told."""

_PART = re.compile(r"part-(\d{8})\.parquet\Z")
_NUMBER = re.compile(r"(0|[1-9]\d{0,7})\Z")
_TOP = {
    layout.STORE_JSON: "file",
    layout.MANIFEST_JSON: "file",
    layout.ARRAYS_DIR: "directory",
    layout.TABLE_DIR: "directory",
    layout.SEGMENTS_DIR: "directory",
    layout.OPEN_DIR: "directory",
    layout.INDEX_DIR: "directory",
    layout.DERIVED_DIR: "directory",  # stores of their own; the audit of the store looks into them
    layout.QUARANTINE_DIR: "directory",
}


class NamesAudit:
    """The names in a store's directories.

    Parameters
    ----------
    files : Beneath
        The store's.
    spec : StoreSpec
        What the store is.
    found : AuditLog
        Takes what is wrong.
    """

    def __init__(self, files: Beneath, spec: StoreSpec, found: AuditLog) -> None:
        self._files = files
        self._spec = spec
        self._found = found

    def list(self, path: str) -> dict[str, str]:
        """Return what a directory holds, by kind; one that cannot be listed is damage."""
        try:
            return self._files.list(path)
        except CorruptionError as error:
            self._found.damage(path, error)
            return {}

    def tell(self, directory: str, names: dict[str, str], strays: Iterable[str]) -> None:
        """Take down the entries of a directory that are not the store's."""
        strays = list(strays)
        for name in strays[:MAX_STRAYS]:
            path = f"{directory}/{name}" if directory else name
            kind = names[name]
            if kind in ("link", "other"):
                what = "a symbolic link" if kind == "link" else "neither file nor directory"
                self._found.defect(path, f"{what}, which a store never has")
            else:
                self._found.note(path, f"a {kind} that is not the store's")
        if len(strays) > MAX_STRAYS:
            self._found.note(directory, f"and {len(strays) - MAX_STRAYS} more that are not the store's")

    def audit(self, committed: Collection[int], is_pending: Callable[[int], bool]) -> None:
        """Look at all directories but ``open`` and ``segments``.

        Parameters
        ----------
        committed : collection of int
            The segments that have a record.
        is_pending : callable of int to bool
            Whether a writer that was killed may have left files under a segment number.
        """
        names = self.list("")
        self.tell("", names, [name for name, kind in names.items() if _TOP.get(name) != kind])
        aside = self.list(layout.QUARANTINE_DIR)
        if aside:
            self._found.note(
                layout.QUARANTINE_DIR,
                f"{len(aside)} {'entry' if len(aside) == 1 else 'entries'} that a repair put aside",
            )
        names = self.list(layout.INDEX_DIR)
        index = Path(layout.KEY_INDEX).name
        strays = [
            name
            for name, kind in names.items()
            if kind != "file" or not (name == index or name.endswith(layout.NEIGHBOURS_SUFFIX))
        ]
        self.tell(layout.INDEX_DIR, names, strays)
        self._parts(committed, is_pending)
        self._arrays(committed, is_pending)

    def audit_slot(self, slot: str) -> None:
        """Look beside the files of an open segment."""
        expected = {layout.OWNER_JSON, layout.LOCK, layout.FRAMES, layout.PART}
        for array in self._spec.arrays:
            expected.add(layout.rows_name(array.name))
            if not array.is_plain:
                expected |= {layout.tail_name(array.name, side) for side in (0, 1)}
        path = layout.slot_dir(slot)
        names = self.list(path)
        self.tell(
            path, names, [name for name, kind in names.items() if name not in expected or kind != "file"]
        )

    def _parts(self, committed: Collection[int], is_pending: Callable[[int], bool]) -> None:
        names = self.list(layout.TABLE_DIR)
        strays = []
        for name, kind in sorted(names.items()):
            path = f"{layout.TABLE_DIR}/{name}"
            match = _PART.match(name)
            if kind == "file" and match is not None and int(match[1]) in committed:
                continue
            if kind == "file" and match is not None and is_pending(int(match[1])):
                self._found.note(path, "a part whose segment is not committed")
            elif kind == "file" and name.endswith(".parquet"):
                self._found.defect(path, "Parquet readers take it for rows of the store, which it is not")
            else:
                strays.append(name)
        self.tell(layout.TABLE_DIR, names, strays)

    def _arrays(self, committed: Collection[int], is_pending: Callable[[int], bool]) -> None:
        names = self.list(layout.ARRAYS_DIR)
        arrays = {array.name: array for array in self._spec.arrays}
        strays = [
            name
            for name, kind in names.items()
            if kind != ("directory" if name in arrays else "file")
            or (name not in arrays and name != "zarr.json")
        ]
        self.tell(layout.ARRAYS_DIR, names, strays)
        for name, array in arrays.items():
            path = layout.array_dir(name)
            names = self.list(path)
            expected = {"zarr.json": "file", "c": "directory"}
            self.tell(path, names, [one for one, kind in names.items() if expected.get(one) != kind])
            path = f"{path}/c"
            names = self.list(path)
            strays = []
            for one, kind in sorted(names.items()):
                number = int(one) if _NUMBER.match(one) else -1
                if kind == "directory" and number in committed:
                    self._shard_strays(f"{path}/{one}", len(array.row_shape))
                elif kind == "directory" and number >= 0 and is_pending(number):
                    self._found.note(f"{path}/{one}", "a shard whose segment is not committed")
                else:
                    strays.append(one)
            self.tell(path, names, strays)

    def _shard_strays(self, path: str, axes: int) -> None:
        """Look beside a shard: a directory per axis of a row, each of which holds one entry, ``0``."""
        for axis in range(axes):
            names = self.list(path)
            kind = "file" if axis == axes - 1 else "directory"
            self.tell(path, names, [one for one, actual in names.items() if one != "0" or actual != kind])
            path = f"{path}/0"
            if names.get("0") != "directory":
                return
