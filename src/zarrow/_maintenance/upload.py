"""Upload — a complete store, put into a bucket.

1. The prefix must be free: an unfinished copy of the same store is gone on with, anything else refused. A
   mark takes the prefix, so that of two copies which begin at once one is refused, and so is a service that
   would let both take it.
2. Every file goes to its final name; no object is there before it is whole. Shards and parts are compared
   with the checksums of their segment's record: first the bytes of the source, then what the bucket gives
   back. What an unfinished copy has is compared in the same way, not sent again.
3. ``zarrow.json`` comes last, and only if the name is free: before, there is no store.

A crash leaves objects which the next copy to the same place goes on with.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator

from zarrow._format import layout
from zarrow._format.statistics import statistics_of
from zarrow._maintenance.audit_segment import record_bytes
from zarrow._read.shard_rows import CommittedShard
from zarrow._read.view import View
from zarrow._storage.conditional import create, require_conditional
from zarrow._storage.objects import ObjectPath
from zarrow._storage.reading import Beneath, File, Place, open_file, read_file
from zarrow._write import publishing
from zarrow.errors import (
    CorruptionError,
    InvalidInputError,
    NotAStoreError,
    StoreExistsError,
    WriteFailedError,
)

__all__ = ["files_below", "statistics_file", "upload"]

_MARK = f"{layout.OPEN_DIR}/of.json"
"""In an unfinished copy: the ``zarrow.json`` of the source."""


def files_below(root: Place, *folders: str) -> Iterator[str]:
    """Yield the files in these folders of a store, but none of an active or killed process."""
    beneath = Beneath(root)
    stack = [*folders]
    while stack:
        folder = stack.pop()
        for name, kind in beneath.list(folder).items():
            path = f"{folder}/{name}"
            if kind == "directory" and not name.endswith(layout.INCOMING_SUFFIX):
                stack.append(path)
            elif kind == "file" and not name.endswith(layout.LOCK_SUFFIX):
                yield path


def statistics_file(view: View) -> bytes:
    """Return the statistics of a complete view's segments, as a store keeps them."""
    parts = [view.record(number).part for number in range(view.snapshot.segments)]
    return statistics_of(view.spec.table_schema, parts, view.identity)


def upload(view: View, root: Place, goal: ObjectPath, progress: Callable[[int, int], None] | None) -> int:
    """Put a complete store into a bucket.

    Parameters
    ----------
    view : View
        Its rows.
    root : Path or RemotePath
        Where it is.
    goal : ObjectPath
        Where it goes.
    progress : callable of (int, int) or None
        Called with the bytes copied so far and the total.

    Returns
    -------
    int
        The size of its segments' files.

    Raises
    ------
    StoreExistsError
        If there is a store already.
    NotAStoreError
        If there is something else.
    CorruptionError
        If the source is damaged; there is no copy then.
    WriteFailedError
        If the bucket gives back other bytes than were sent.
    """
    total = sum(record_bytes(view.record(number)) for number in range(view.snapshot.segments))
    done = 0
    declaration = read_file(root, layout.STORE_JSON)
    manifest = view.snapshot.manifest
    assert manifest is not None
    if _begin(goal, declaration, manifest.encode()):
        _unmark(goal)
        return total
    for number in range(view.snapshot.segments):
        record = view.record(number)
        for array in view.spec.arrays:
            if record.arrays[array.name].size_bytes:
                last = view.last_files.get(array.name) if view.is_short_last(number) else None
                path = array.shard_path(number)
                file = last or open_file(root, path)
                shard = CommittedShard(file, array, view.spec.segment_rows, record)
                if not all(map(shard.holds, range(len(shard.chunks)))):
                    raise _damaged(file)
                _put(goal, path, file, file.crc32c(0, file.size_bytes))
        last = view.last_files.get("") if view.is_short_last(number) else None
        file = last or open_file(root, layout.part_path(number))
        if file.size_bytes != record.part.size_bytes or not file.holds(
            0, file.size_bytes, record.part.crc32c
        ):
            raise _damaged(file)
        _put(goal, layout.part_path(number), file, record.part.crc32c)
        last_record = record.encode() if view.is_short_last(number) else None
        path = layout.record_path(number)
        _put_bytes(goal, path, last_record or read_file(root, path))
        done += record_bytes(record)
        if progress is not None:
            progress(done, total)
    for path in files_below(root, layout.INDEX_DIR, layout.DERIVED_DIR):
        file = open_file(root, path, whole=True)
        _put(goal, path, file, file.crc32c(0, file.size_bytes))
    # Of the rows of this copy; the source's may be ahead by now.
    for path, data in publishing.shape_documents(goal, view.spec, view.snapshot.segments, root):
        _put_bytes(goal, path, data)
    _put_bytes(goal, layout.STATISTICS, statistics_file(view))
    view.guard()
    _put_bytes(goal, layout.MANIFEST_JSON, manifest.encode())
    try:
        create(goal, layout.STORE_JSON, declaration)
    except FileExistsError:
        raise _made_meanwhile(goal) from None
    _unmark(goal)
    return total


def _begin(goal: ObjectPath, declaration: bytes, manifest: bytes) -> bool:
    """Take the prefix, or go on with an unfinished copy; return whether only the mark is left of it."""
    marked = _holds(goal, _MARK, declaration)
    if goal.exists(layout.STORE_JSON):
        same = _holds(goal, layout.STORE_JSON, declaration) and _holds(goal, layout.MANIFEST_JSON, manifest)
        if marked and same:
            return True
        raise StoreExistsError(f"{goal}: there is a store already: choose another place, or remove it")
    if not marked:
        if next(goal.names(), None) is not None:
            raise NotAStoreError(
                f"{goal}: there are objects that are no unfinished copy of this store: choose another place, "
                "or remove them"
            )
        try:
            create(goal, _MARK, declaration)
        except FileExistsError:
            raise NotAStoreError(
                f"{goal}: a copy of another store has begun here meanwhile: choose another place"
            ) from None
    try:
        require_conditional(goal, _MARK)
    except InvalidInputError:
        if not goal.exists(layout.STORE_JSON):
            raise
    if goal.exists(layout.STORE_JSON):  # made since, by a copy that has removed the mark
        _unmark(goal)
        raise _made_meanwhile(goal)
    return False


def _unmark(goal: ObjectPath) -> None:
    """Remove the mark, if that can be done: a store does not need it, and is whole without and with it."""
    with contextlib.suppress(OSError):
        goal.delete(_MARK)


def _made_meanwhile(goal: ObjectPath) -> StoreExistsError:
    return StoreExistsError(f"{goal}: another process has made a store here meanwhile")


def _holds(goal: ObjectPath, path: str, data: bytes) -> bool:
    """Tell whether an object has these bytes."""
    try:
        return goal.fetch(path).content(len(data)) == data
    except (FileNotFoundError, CorruptionError):
        return False


def _damaged(file: File) -> CorruptionError:
    return CorruptionError(
        "not the bytes that were committed: there is no copy: 'zarrow verify' says what is damaged, 'zarrow "
        "repair' sets it aside",
        path=file.path,
    )


def _put_bytes(goal: ObjectPath, path: str, data: bytes) -> None:
    """Write a document, unless it is there; compare what is there then."""
    if not _holds(goal, path, data):
        goal.put_bytes(path, data)
        if not _holds(goal, path, data):
            raise _other_bytes(goal / path)


def _put(goal: ObjectPath, path: str, file: File, checksum: int) -> None:
    """Copy a file, unless it is there; compare what is there then."""
    if _has(goal, path, file.size_bytes, checksum):
        return
    goal.put(path, file)
    if not _has(goal, path, file.size_bytes, checksum):
        raise _other_bytes(goal / path)


def _other_bytes(path: ObjectPath) -> WriteFailedError:
    return WriteFailedError(errno.EIO, f"{path}: the bucket gives back other bytes than were sent")


def _has(goal: ObjectPath, path: str, size_bytes: int, checksum: int) -> bool:
    """Tell whether an object has this size and checksum."""
    try:
        there = goal.open(path)
    except FileNotFoundError:
        return False
    return there.size_bytes == size_bytes and there.holds(0, size_bytes, checksum)
