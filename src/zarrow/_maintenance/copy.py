"""Copy — the committed rows of a store, also of one that is being written, as a store of their own.

1. One instant of the source is taken: its committed segments, and the files of a short last one, which a
   writer may take back. Whatever is written meanwhile is not copied.
2. The files are written into ``NAME.incoming`` next to the target, which has the mode, owner and group of the
   source before it has the first byte: each under a scratch name, synced, then renamed; a segment's record
   after its files.
3. ``zarrow.json`` comes last, so that there is no store before; then every byte of the copy is compared with
   the checksums of its records.
4. The directory is renamed to the target.

A crash leaves ``NAME.incoming``, which the next copy of the same store goes on with: a segment that has the
record of the source is not copied again.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zarrow._format import layout
from zarrow._maintenance.audit import audit
from zarrow._maintenance.audit_segment import record_bytes
from zarrow._maintenance.upload import files_below, statistics_file, upload
from zarrow._read.view import View, take_view
from zarrow._storage import files
from zarrow._storage.lock import FileLock
from zarrow._storage.objects import ObjectPath, is_remote, located
from zarrow._storage.reading import File, Place, open_file, read_file
from zarrow._write import publishing
from zarrow.errors import (
    CorruptionError,
    InvalidInputError,
    NotAStoreError,
    StoreExistsError,
    StoreLockedError,
    WriteFailedError,
    ZarrowError,
)

__all__ = ["Copied", "copy"]

_BLOCK_BYTES = 8 << 20
_MARK = "of.json"
"""In an unfinished copy: the ``zarrow.json`` of the source."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:  # its fields are its parameters: numpydoc ignore=PR02
    """What `copy` did.

    Parameters
    ----------
    path : str
        The copy.
    complete : bool
        Whether it is complete, as the source was.
    rows, segments : int
        What it has.
    left_rows : int
        Rows of the source that were accepted, but not committed, and so are not in the copy.
    size_bytes : int
        The size of the segments' files.
    """

    path: str
    complete: bool
    rows: int
    segments: int
    left_rows: int
    size_bytes: int

    def to_json(self) -> str:
        """Return it as one JSON object."""
        return json.dumps(asdict(self))


def copy(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Copied:
    """Copy the committed rows of a store, with its index and derived arrays if it is complete.

    The source may be written meanwhile: the copy has the segments that were committed when it began. It takes
    its name only when every byte was compared with its checksum; if a copy was killed, the next one goes on.
    Copies by other tools of a store that is being written have some files as they were early, and others as
    they were late: readers refuse what does not fit together.

    Parameters
    ----------
    source : path or URL
        The store; in a bucket only a complete one.
    target : path or URL
        Where the copy goes: nothing, or an empty directory. It gets the mode, owner and group of the source.
        In a bucket the copy must be complete, and its last object makes it a store.
    storage_options : dict of str, optional
        For URLs; see `zarrow.open`.
    progress : callable of (int, int), optional
        Called with the bytes copied so far and the total.

    Returns
    -------
    Copied
        What the copy has.

    Raises
    ------
    StoreNotFoundError, NotAStoreError
        If there is no store at `source`, or something else where the copy grows.
    InvalidInputError
        If one of the two paths is inside of the other.
    StoreExistsError
        If there is something at `target`.
    CorruptionError
        If the source is damaged; there is no copy then.
    StoreLockedError
        If the same copy is being made.
    StoreChangedError
        If the source was replaced, repaired or removed meanwhile.
    WriteFailedError
        If the copy cannot be written; calling this again goes on.

    Examples
    --------
    >>> import zarrow, zarrow.testing, tempfile
    >>> store = zarrow.testing.example_store()
    >>> zarrow.copy(store.path, tempfile.mkdtemp() + "/copy.zarrow").rows
    5000
    """
    root, place = (located(one, storage_options if is_remote(one) else None) for one in (source, target))
    if isinstance(root, Path):
        root = Path(os.path.realpath(root))
    if isinstance(place, ObjectPath):
        return _to_bucket(root, place, progress)
    goal = Path(os.path.realpath(place))
    view = take_view(root, partial=isinstance(root, Path))
    _check_target(root, goal)
    incoming = goal.with_name(goal.name + layout.INCOMING_SUFFIX)
    try:
        _make_dir(incoming, root)
        _make_dir(incoming / layout.OPEN_DIR, root / layout.OPEN_DIR)
        lock = FileLock(incoming / layout.OPEN_DIR / layout.LOCK)
        if not lock.acquire():
            raise StoreLockedError(f"{incoming}: another process is making this copy: wait for it")
        try:
            one = _Copy(view, root, incoming, progress)
            one.run()
            lock.release(remove_file=True)
            if os.path.isdir(goal):
                os.rmdir(goal)  # empty, or an error
            files.rename(incoming, goal)
            files.sync_dir(goal.parent)
        finally:
            lock.release()
    except ZarrowError:
        raise
    except OSError as error:
        message = f"{incoming}: the copy cannot be written: {error.strerror}; to go on, copy again"
        raise WriteFailedError(error.errno or errno.EIO, message) from error
    return _copied(view, os.fspath(target), one.total_bytes)


def _copied(view: View, path: str, size_bytes: int) -> Copied:
    snapshot = view.snapshot
    return Copied(
        path=path,
        complete=snapshot.complete,
        rows=snapshot.rows,
        segments=snapshot.segments,
        left_rows=view.rows - snapshot.rows,
        size_bytes=size_bytes,
    )


def _to_bucket(root: Place, goal: ObjectPath, progress: Progress | None) -> Copied:
    view = take_view(root, partial=False)
    try:
        size_bytes = upload(view, root, goal, progress)
    except ZarrowError:
        raise
    except OSError as error:
        message = f"{goal}: the copy cannot be written: {error.strerror}; to go on, copy again"
        raise WriteFailedError(error.errno or errno.EIO, message) from error
    return _copied(view, str(goal), size_bytes)


def _make_dir(path: Path, model: Any) -> None:
    """Make a directory if it is not there, for the users of its model, if that is on a disk."""
    if isinstance(model, Path):
        files.make_dir_like(path, model)
    else:
        files.make_dir(path, exist_ok=True)


def _check_target(root: Place, goal: Path) -> None:
    if isinstance(root, Path) and (root == goal or root in goal.parents or goal in root.parents):
        raise InvalidInputError(
            f"the copy must lie outside of the store, and not contain it: got {goal} for a copy of {root}"
        )
    if not goal.parent.is_dir():
        raise WriteFailedError(errno.ENOENT, f"{goal.parent}: no such directory: create it, then copy")
    if os.path.lexists(goal) and not (goal.is_dir() and not os.listdir(goal)):
        what = "a store" if (goal / layout.STORE_JSON).exists() else "something else"
        raise StoreExistsError(f"{goal}: there is {what} already: choose another path, or move it away")


class _Copy:
    """One copy, and how far it has come."""

    def __init__(self, view: View, root: Place, incoming: Path, progress: Progress | None) -> None:
        self._view = view
        self._root = root
        self._incoming = incoming
        self._scratch = incoming / layout.OPEN_DIR
        self._progress = progress
        self._done_bytes = 0
        self.total_bytes = sum(record_bytes(view.record(one)) for one in range(view.snapshot.segments))

    def run(self) -> None:
        """Write everything, and compare it."""
        view, spec, complete = self._view, self._view.spec, self._view.snapshot.complete
        declaration = read_file(self._root, layout.STORE_JSON)
        self._begin(declaration)
        try:
            for name in (layout.ARRAYS_DIR, layout.TABLE_DIR, layout.SEGMENTS_DIR):
                _make_dir(self._incoming / name, self._root / name)
            for number in reversed(range(view.snapshot.segments)):  # the last one may be taken back
                self._segment(number)
            for path in [*files_below(self._root, layout.INDEX_DIR, layout.DERIVED_DIR)] if complete else []:
                self._file(path)
            for array in spec.arrays:
                for path in (layout.array_dir(array.name), f"{layout.array_dir(array.name)}/c"):
                    self._dirs(f"{path}/x")
        except (FileNotFoundError, NotADirectoryError) as error:
            view.guard()
            raise CorruptionError("missing, though the store has rows of it", path=error.filename) from error
        view.guard()
        # The source's may be ahead by now.
        model = self._root if isinstance(self._root, Path) else None
        publishing.publish_shape(self._incoming, spec, self._scratch, attributes_of=model)
        if view.snapshot.manifest is not None:
            self._put(layout.STATISTICS, statistics_file(view))
            self._put(layout.MANIFEST_JSON, view.snapshot.manifest.encode())
        self._put(layout.STORE_JSON, declaration)
        report = audit(self._incoming, "checksums").report
        if not report.ok:
            worst = report.findings[0]
            files.remove(self._incoming / layout.STORE_JSON)
            files.remove_tree(self._incoming)
            raise CorruptionError(
                f"{worst.message}: nothing was copied: 'zarrow verify' says what is damaged, 'zarrow repair' "
                "sets it aside",
                path=self._root / worst.path,
            )
        files.remove(self._scratch / _MARK)

    def _begin(self, declaration: bytes) -> None:
        """Go on with an unfinished copy of this store; refuse anything else."""
        mark = self._scratch / _MARK
        names = set(os.listdir(self._incoming)) - {layout.OPEN_DIR}
        # Without its mark it may be whole, and was about to get its name.
        known = (mark, self._incoming / layout.STORE_JSON)
        if names and not any(one.is_file() and one.read_bytes() == declaration for one in known):
            raise NotAStoreError(
                f"{self._incoming}: the copy would grow here, but there is something that is no unfinished "
                "copy of this store: move it away"
            )
        files.remove(self._incoming / layout.STORE_JSON)
        files.remove(self._incoming / layout.MANIFEST_JSON)
        for name in os.listdir(self._scratch):
            if name.startswith(layout.SCRATCH_PREFIX):
                files.remove(self._scratch / name)
        files.replace(mark, declaration, scratch=self._scratch)

    def _segment(self, number: int) -> None:
        """Copy a segment's files, then its record, unless the copy has that already."""
        view, path = self._view, layout.record_path(number)
        record = view.record(number)
        last = view.last_files if view.is_short_last(number) else {}
        data = record.encode() if last else read_file(self._root, path)
        kept = self._incoming / path
        if kept.is_file() and kept.read_bytes() == data:
            self._advance(record_bytes(record))
            return
        for array in view.spec.arrays:
            if record.arrays[array.name].size_bytes:
                shard = array.shard_path(number)
                self._file(shard, last.get(array.name))
        self._file(layout.part_path(number), last.get(""))
        self._put(path, data)

    def _dirs(self, path: str) -> None:
        """Make the directories of a path, each like that of the source."""
        for parent in reversed(Path(path).parents[:-1]):
            _make_dir(self._incoming / parent, self._root / str(parent))

    def _file(self, path: str, opened: File | None = None) -> None:
        """Copy a file: durable on return."""
        self._dirs(path)
        file = open_file(self._root, path) if opened is None else opened
        scratch = files.scratch_name(self._scratch)
        fd = files.create(scratch)
        try:
            if isinstance(self._root, Path):
                files.give_access(scratch, self._root / path if opened is None else self._root)
            for start in range(0, file.size_bytes, _BLOCK_BYTES):
                block = file.read(start, min(_BLOCK_BYTES, file.size_bytes - start))
                files.write(fd, block, start)
                self._advance(len(block))
            files.sync(fd)
        finally:
            os.close(fd)
        files.rename(scratch, self._incoming / path)
        files.sync_dir((self._incoming / path).parent)

    def _put(self, path: str, data: bytes) -> None:
        """Write a document: durable on return."""
        files.replace(self._incoming / path, data, scratch=self._scratch)
        if isinstance(self._root, Path):
            files.give_access(self._incoming / path, self._root / layout.STORE_JSON)

    def _advance(self, size_bytes: int) -> None:
        self._done_bytes += size_bytes
        if self._progress is not None:
            self._progress(min(self._done_bytes, self.total_bytes), self.total_bytes)
