"""Audit of names — files that do not belong in a store.

Every Parquet reader takes a stray part for rows, a symbolic link may lead a writer out of the store, and what
a killed writer left is worth a note. Only the directories of the format are listed, so a deep tree or a long
list of strays costs no more than its own listing, and no link is followed.
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
"""Strays reported per directory; of any others, only their number is."""

_PART = re.compile(r"part-(\d{8})\.parquet\Z")
_NUMBER = re.compile(r"(0|[1-9]\d{0,7})\Z")
_TOP = {
    layout.STORE_JSON: "file",
    layout.MANIFEST_JSON: "file",
    layout.STATISTICS: "file",
    layout.ARRAYS_DIR: "directory",
    layout.TABLE_DIR: "directory",
    layout.SEGMENTS_DIR: "directory",
    layout.OPEN_DIR: "directory",
    layout.INDEX_DIR: "directory",
    layout.DERIVED_DIR: "directory",  # stores themselves; the audit of the store checks them
    layout.QUARANTINE_DIR: "directory",
}


class NamesAudit:
    """The audit of the names in a store's directories.

    Parameters
    ----------
    files : Beneath
        The store's files.
    spec : StoreSpec
        The store's declaration.
    found : AuditLog
        Collects the findings.
    """

    def __init__(self, files: Beneath, spec: StoreSpec, found: AuditLog) -> None:
        self._files = files
        self._spec = spec
        self._found = found

    def list(self, path: str) -> dict[str, str]:
        """Return the entries of a directory and their kinds; one that cannot be listed is damage."""
        try:
            return self._files.list(path)
        except CorruptionError as error:
            self._found.damage(path, error)
            return {}

    def add_strays(self, directory: str, names: dict[str, str], strays: Iterable[str]) -> None:
        """Add findings for the entries of a directory that are not part of the store."""
        strays = list(strays)
        for name in strays[:MAX_STRAYS]:
            path = f"{directory}/{name}" if directory else name
            kind = names[name]
            if kind in ("link", "other"):
                what = "a symbolic link" if kind == "link" else "neither file nor directory"
                self._found.defect(path, f"{what}, which a store never contains")
            else:
                self._found.note(path, f"a {kind} that is not part of the store")
        if len(strays) > MAX_STRAYS:
            self._found.note(directory, f"and {len(strays) - MAX_STRAYS} more that are not part of the store")

    def audit(self, committed: Collection[int], is_pending: Callable[[int], bool]) -> None:
        """Check all directories but ``open`` and ``segments``.

        Parameters
        ----------
        committed : collection of int
            The segments that have a record.
        is_pending : callable of int to bool
            Whether a killed writer may have left files under a segment number.
        """
        names = self.list("")
        self.add_strays("", names, [name for name, kind in names.items() if _TOP.get(name) != kind])
        aside = self.list(layout.QUARANTINE_DIR)
        if aside:
            self._found.note(
                layout.QUARANTINE_DIR,
                f"{len(aside)} {'entry' if len(aside) == 1 else 'entries'} that a repair set aside",
            )
        names = self.list(layout.INDEX_DIR)
        index = Path(layout.KEY_INDEX).name
        strays = [
            name
            for name, kind in names.items()
            if kind != "file" or not (name == index or name.endswith(layout.NEIGHBOURS_SUFFIX))
        ]
        self.add_strays(layout.INDEX_DIR, names, strays)
        self._parts(committed, is_pending)
        self._arrays(committed, is_pending)

    def audit_slot(self, slot: str) -> None:
        """Check an open segment's directory."""
        expected = {layout.OWNER_JSON, layout.LOCK, layout.FRAMES, layout.PART}
        for array in self._spec.arrays:
            expected.add(layout.rows_name(array.name))
            if not array.is_plain:
                expected |= {layout.tail_name(array.name, side) for side in (0, 1)}
        path = layout.slot_dir(slot)
        names = self.list(path)
        self.add_strays(
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
                self._found.defect(path, "not part of the store, but Parquet readers take it for rows")
            else:
                strays.append(name)
        self.add_strays(layout.TABLE_DIR, names, strays)

    def _arrays(self, committed: Collection[int], is_pending: Callable[[int], bool]) -> None:
        names = self.list(layout.ARRAYS_DIR)
        arrays = {array.name: array for array in self._spec.arrays}
        strays = [
            name
            for name, kind in names.items()
            if kind != ("directory" if name in arrays else "file")
            or (name not in arrays and name != "zarr.json")
        ]
        self.add_strays(layout.ARRAYS_DIR, names, strays)
        for name, array in arrays.items():
            path = layout.array_dir(name)
            names = self.list(path)
            expected = {"zarr.json": "file", "c": "directory"}
            self.add_strays(path, names, [one for one, kind in names.items() if expected.get(one) != kind])
            path = f"{path}/c"
            names = self.list(path)
            strays = []
            for one, kind in sorted(names.items()):
                number = int(one) if _NUMBER.match(one) else -1
                if kind == "directory" and number in committed:
                    self._shard_strays(f"{path}/{one}", array.shard_ndim)
                elif kind == "directory" and number >= 0 and is_pending(number):
                    self._found.note(f"{path}/{one}", "a shard whose segment is not committed")
                else:
                    strays.append(one)
            self.add_strays(path, names, strays)

    def _shard_strays(self, path: str, axes: int) -> None:
        """Check a shard's directories: one per axis of a row, each with one entry, ``0``."""
        for axis in range(axes):
            names = self.list(path)
            kind = "file" if axis == axes - 1 else "directory"
            self.add_strays(
                path, names, [one for one, actual in names.items() if one != "0" or actual != kind]
            )
            path = f"{path}/0"
            if names.get("0") != "directory":
                return
