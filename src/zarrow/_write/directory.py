"""Store directory — claiming a path for a writer by mode and lock, and replacing an old store by a new one.

A crash while a store is replaced leaves the old store or the new one at the path (on Linux), and the other
one next to it or in it, where the next writer removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from zarrow._format import layout
from zarrow._format.records import Identity, Owner, this_host
from zarrow._read.catalog import read_spec
from zarrow._read.view import take_view
from zarrow._storage import files
from zarrow._storage.lock import FileLock, is_running
from zarrow.errors import (
    CorruptionError,
    IncompleteStoreError,
    NotAStoreError,
    NotFoundError,
    StoreChangedError,
    StoreExistsError,
    StoreLockedError,
    WriteFailedError,
    ZarrowError,
)

__all__ = [
    "Claim",
    "Mode",
    "claim_store",
    "discard",
    "empty",
    "exclusively",
    "in_own_session",
    "install",
    "new_owner",
    "require_in_place",
    "require_rows",
]

Mode = Literal["x", "w", "a"]
LOCK_TIMEOUT_S = 10.0
"""How long to wait for the lock of a dead writer, which its forked data loader workers hold for a moment."""


def new_owner() -> Owner:
    """Return an owner for this process, with a new session."""
    return Owner(
        session=uuid.uuid4().hex,
        sequence=0,
        host=this_host(),
        pid=os.getpid(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def in_own_session(owner: Owner, *, from_segment: int = 0, reopens: tuple[int, int] | str | None) -> Owner:
    """Return an owner like another one, for an open segment that follows none."""
    session = uuid.uuid4().hex
    return replace(owner, session=session, sequence=0, from_segment=from_segment, reopens=reopens)


class Claim(NamedTuple):
    """A directory that a writer may write in.

    Parameters
    ----------
    root : Path
        The directory: the store's, or one next to it if ``mode="w"`` replaces a store. That may hold the rows
        of a run that was killed before: they are `empty`'s to remove, when there are new ones.
    lock : FileLock
        Held on it.
    is_new : bool
        Whether the directory was made for this writer.
    """

    root: Path
    lock: FileLock
    is_new: bool

    def drop(self) -> None:
        """Release the lock of a store that never began, and remove what the claim has made."""
        with contextlib.suppress(OSError):  # the next writer takes it for nothing, too
            self.lock.release(remove_file=True)
            files.remove_empty_dir(self.root / layout.OPEN_DIR)
            if self.is_new:
                files.remove_empty_dir(self.root)


def claim_store(path: Path, mode: Mode, *, shared: bool, owner: Owner, attempts: int = 5) -> Claim:
    """Claim a store's directory for a writer, and create it if necessary."""
    if not path.parent.is_dir():
        raise WriteFailedError(
            errno.ENOENT, f"{path.parent}: no such directory: create it, then write the store"
        )
    root = path
    state = _state(path)
    if state == "other":
        raise NotAStoreError(
            f"{path}: expected a zarrow store or nothing, got something else: choose another path"
        )
    if mode == "x" and state == "store":
        raise StoreExistsError(
            f"{path}: there is a store already: mode='a' resumes it or appends to it, mode='w' replaces it"
        )
    if mode == "a" and state == "store":
        _require_known(path)
    if mode == "w" and state == "store":
        root = path.with_name(path.name + layout.INCOMING_SUFFIX)
        if _state(root) == "other":
            raise NotAStoreError(
                f"{root}: the new store would grow here, but there is something that is not a zarrow store: "
                "move it away"
            )
    is_new = not os.path.lexists(root)
    with _refused(root):
        try:
            if root != path:
                files.make_dir_like(root, path)
            files.make_dir(root, exist_ok=True, link_ok=root == path)
            files.sync_dir(root.parent)
            files.make_dir(root / layout.OPEN_DIR, exist_ok=True)
            if root != path:
                _lock_old(path, owner=owner).release(remove_file=True)
            # Exclusive, because the directory may be emptied.
            lock = _lock_store(root, shared=shared and mode != "w", owner=owner)
        except FileNotFoundError:
            if attempts and path.parent.is_dir():  # another writer has replaced or dropped it meanwhile
                return claim_store(path, mode, shared=shared, owner=owner, attempts=attempts - 1)
            raise
        except OSError:
            if root != path:
                for made in (root / layout.OPEN_DIR, root):
                    files.remove_empty_dir(made)
            raise
    if mode != "a" and not shared and state == "nothing" and _state(path) == "store":
        lock.release()  # while this writer waited for the lock, another one has made a store
        return claim_store(path, mode, shared=shared, owner=owner)
    return Claim(root, lock, is_new)


def _require_known(path: Path) -> None:
    try:
        unknown = read_spec(path).writer_features
    except CorruptionError as error:
        raise CorruptionError(f"{error}; restore it from a copy, since it never changes") from error
    if unknown:
        raise NotAStoreError(f"{path}: this zarrow cannot write stores with {list(unknown)}: upgrade zarrow")


@contextlib.contextmanager
def _refused(root: Path) -> Iterator[None]:
    """Turn an error of the operating system into ours."""
    try:
        yield
    except ZarrowError:
        raise
    except OSError as error:
        raise WriteFailedError(
            error.errno or errno.EIO, f"{root}: cannot write a store here: {error.strerror}"
        ) from error


@contextlib.contextmanager
def exclusively(root: Path, of: Identity | None = None) -> Iterator[Owner]:
    """Hold the lock of a store, so that nothing else changes it; if given, its rows must be those `of`.

    Raises
    ------
    StoreLockedError
        If a writer is active.
    StoreChangedError
        If the store has other rows by now.
    """
    owner = new_owner()
    os.fspath(root)  # raises if it is not on a disk
    _require_known(root)
    with _refused(root):
        lock = _lock_old(root, owner=owner)
    try:
        if of is not None:
            require_rows(root, of)
        yield owner
    finally:
        lock.release(remove_file=(root / layout.MANIFEST_JSON).exists())


def require_rows(root: Path, of: Identity) -> None:
    """Raise `StoreChangedError` unless a store is complete and has exactly these rows."""
    try:
        if take_view(root, partial=False).identity == of:
            return
    except (IncompleteStoreError, NotFoundError):
        pass
    raise StoreChangedError(
        f"{root}: the store was written to, packed, repaired or removed since these rows were read: open it "
        "again, and compute what was computed from them again"
    )


def require_in_place(lock: FileLock) -> None:
    """Raise an `OSError` unless the store at its path is the one whose lock is held."""
    if not lock.is_in_place():
        found = lock.locked_path()
        fate = "was removed" if found is None else f"is at {found.parents[1]} now"
        raise OSError(errno.ESTALE, f"the store {fate}; nothing more is written at this path")


def _state(path: Path) -> Literal["nothing", "store", "other"]:
    """Tell what is at a path; the leftovers of a writer that died before its first batch are nothing."""
    if not os.path.lexists(path):
        return "nothing"
    if not path.is_dir():
        return "other"
    names = set(os.listdir(path))
    if layout.STORE_JSON in names:
        return "store"
    if not names:
        return "nothing"
    leftovers = set(os.listdir(path / layout.OPEN_DIR)) if names == {layout.OPEN_DIR} else {"?"}
    ours = {name for name in leftovers if name == layout.LOCK or name.startswith(layout.SCRATCH_PREFIX)}
    return "nothing" if leftovers == ours else "other"


def _lock_store(root: Path, *, shared: bool, owner: Owner) -> FileLock:
    """Take the store's lock: exclusive if no other writer is active, else shared if `shared`."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    path = root / layout.OPEN_DIR / layout.LOCK
    while True:
        for as_shared in (False, True) if shared else (False,):
            lock = FileLock(path, shared=as_shared, holder=b"" if as_shared else owner.encode())
            if lock.acquire():
                return lock
        if time.monotonic() > deadline:
            raise StoreLockedError(f"{root}: {_holder(lock)}, or open every writer with shared=True")
        time.sleep(0.05)


def _holder(lock: FileLock) -> str:
    """Say who holds a lock that could not be taken, and what can be done."""
    try:
        owner = Owner.decode(lock.holder(), str(lock.path))
    except ZarrowError:
        return "another writer is writing this store: wait for it, stop it"
    if owner.host == this_host() and owner.pid == os.getpid():
        return "a Writer of this process has it open: close() that one"
    if owner.host == this_host() and not is_running(owner.pid):
        return (
            f"another writer is writing this store; the one that opened it, {owner}, has ended: wait for the "
            "other, stop it"
        )
    return f"{owner} is writing this store: wait for it, stop it"


def empty(root: Path) -> None:
    """Remove everything of a store except the lock, which is held, and what is not the store's."""
    files.remove(root / layout.MANIFEST_JSON)
    files.remove(root / layout.STATISTICS)
    # What was derived from the rows goes before them, the records before the files that they vouch for.
    for name in (
        layout.INDEX_DIR,
        layout.DERIVED_DIR,
        layout.SEGMENTS_DIR,
        layout.TABLE_DIR,
        layout.ARRAYS_DIR,
    ):
        files.remove_tree(root / name)
    for path in (root / layout.OPEN_DIR).iterdir():
        if path.name != layout.LOCK:
            files.remove_tree(path) if path.is_dir() and not path.is_symlink() else files.remove(path)
    # Last: what a crash leaves without it is neither a store nor nothing, and no writer would touch it.
    for folder in (root, root / layout.OPEN_DIR):
        files.sync_dir(folder)
    files.remove(root / layout.STORE_JSON)


def discard(root: Path, uuid: str) -> None:
    """Remove the store of this uuid, unless another writer goes on with it by now; errors leave it there."""
    lock = FileLock(root / layout.OPEN_DIR / layout.LOCK)
    with contextlib.suppress(ZarrowError, OSError):
        if lock.acquire():
            with lock:
                if read_spec(root).uuid == uuid:
                    files.remove_tree(root)


def install(root: Path, path: Path, *, owner: Owner, check: Callable[[Path], None] | None = None) -> None:
    """Replace the old store by the new, complete one, unless `check` raises; then remove the old one.

    The old store is moved into the new one before it is removed. This prevents a crash that leaves half of it
    next to the new one, where no writer would touch it; inside, it is scratch that the next writer removes.
    What lies in the old one's directory and is not a store's, such as a user's notes or what `repair` put
    aside, is in the new one too before that takes its place.
    """
    check = check or (lambda _root: None)
    if root == path:
        check(root)
        return
    if not os.path.lexists(path):  # the old one was removed meanwhile
        check(root)
        files.rename(root, path)
        files.sync_dir(path.parent)
        return
    try:
        lock = _lock_old(path, owner=owner)
    except StoreLockedError as error:
        raise StoreLockedError(
            f"{error}; the store that replaces it is complete: move {root} there yourself"
        ) from error
    try:
        check(root)
    except BaseException:
        lock.release(remove_file=True)  # the old store is as before
        raise
    aside = files.scratch_name(path / layout.OPEN_DIR)
    try:
        foreign = set(os.listdir(path)) - layout.STORE_NAMES
        left = [name for name in foreign if not _take_along(path / name, root / name)]
        files.sync_dir(root)
        files.exchange(root, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            lock.release(remove_file=True)
        if not isinstance(error, OSError):
            raise
        raise WriteFailedError(
            error.errno or errno.EIO,
            f"{path}: the new store, at {root if os.path.lexists(root) else path}, is complete, but the "
            f"exchange failed: {error.strerror}",
        ) from error
    try:
        files.sync_dir(path.parent)
        for name in left:
            files.rename(root / name, path / name)
        files.sync_dir(path)
        files.rename(root, aside)
        files.sync_dir(path.parent)
        files.remove_tree(aside)
    except OSError as error:
        old = root if os.path.lexists(root) else aside
        raise WriteFailedError(
            error.errno or errno.EIO,
            f"{path}: the new store is in place, but what is left of the old one is at {old}: "
            f"{error.strerror}: remove it yourself",
        ) from error
    finally:
        lock.release()


def _take_along(source: Path, target: Path) -> bool:
    """Give a file, or all files of a directory, a second name; False if that may not be done."""
    try:
        if source.is_dir() and not source.is_symlink():
            files.make_dir_like(target, source)
            done = [_take_along(path, target / path.name) for path in source.iterdir()]
            files.sync_dir(target)
            return all(done)
        if not (os.path.lexists(target) and os.path.samestat(source.lstat(), target.lstat())):
            files.remove(target)
            files.link(source, target)
    except OSError:  # another user's file, for example
        return False
    return True


def _lock_old(path: Path, *, owner: Owner) -> FileLock:
    """Take the lock of the store to be replaced, so that no writer goes on writing it."""
    files.make_dir(path / layout.OPEN_DIR, exist_ok=True)
    return _lock_store(path, shared=False, owner=owner)
