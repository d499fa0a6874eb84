"""Spool — the directories of this machine in which writers keep the open segments of a store in a bucket.

Each writer has a directory of its own, like that of an incomplete store, and a list of the sessions that have
used it. The directories of one store lie together. A writer that is opened locks those of dead writers, too,
to put what is in them into the bucket; the first of these becomes its own.

A crash leaves a directory, with rows or without, for the next writer of the store on this machine.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import sys
import time
from pathlib import Path

from zarrow._format import layout
from zarrow._format.records import Owner, this_host
from zarrow._format.spec import StoreSpec
from zarrow._read import catalog
from zarrow._read.open_rows import read, slots
from zarrow._storage import files
from zarrow._storage.lock import FileLock, is_running
from zarrow._storage.objects import ObjectPath
from zarrow._write.directory import LOCK_TIMEOUT_S, Claim, claim_store, empty
from zarrow.errors import CorruptionError, StoreLockedError, WriteFailedError, ZarrowError

__all__ = ["Spool", "open_spools", "spools_of"]

_STORE = "store"
_SESSIONS = "sessions"
_NAME = re.compile(r"[^A-Za-z0-9_.-]+")


def spools_of(place: ObjectPath, above: str | os.PathLike[str] | None) -> Path:
    """Return where the spools of a store are: by default in the user's cache."""
    given = above or os.environ.get("ZARROW_SPOOL")
    if given:
        parent = Path(given).absolute()
    else:
        cache = "Library/Caches" if sys.platform == "darwin" else ".cache"
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / cache) / "zarrow" / "spool"
    text = f"{place} {place.client!r}" if str(place).startswith("object:") else str(place)
    name = _NAME.sub("-", place.name)[-40:] or "store"
    return parent / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


class Spool:
    """A spool, locked.

    Parameters
    ----------
    folder : Path
        Its directory, created if it does not exist.
    owner : Owner
        The writer that locks it.
    lock : FileLock, optional
        Held on it.
    """

    def __init__(self, folder: Path, owner: Owner, lock: FileLock | None = None) -> None:
        self.folder = folder
        if lock is not None:
            self.claim = Claim(folder / _STORE, lock, is_new=False)
            return
        os.makedirs(folder, exist_ok=True)
        self.claim = claim_store(folder / _STORE, "a", shared=False, owner=owner)

    @property
    def root(self) -> Path:
        """The directory of the open segments."""
        return self.claim.root

    @property
    def spec(self) -> StoreSpec | None:
        """What the store is whose rows it has, or had; None if it is new."""
        return catalog.read_spec(self.root) if (self.root / layout.STORE_JSON).exists() else None

    def holds_rows(self) -> bool:
        """Tell whether it has rows."""
        spec = self.spec
        found = (read(path, spec) for path in slots(self.root)) if spec is not None else ()
        return any(one is not None and one.rows for one in found)

    def sessions(self) -> set[str]:
        """Return the writers that have used it."""
        try:
            return set((self.folder / _SESSIONS).read_text().split())
        except FileNotFoundError:
            return set()

    def note(self, session: str) -> None:
        """Add a writer to these: durable on return."""
        fd = files.create(self.folder / _SESSIONS, exist_ok=True)
        try:
            files.write(fd, f"{session}\n".encode(), os.fstat(fd).st_size)
            files.sync(fd)
        finally:
            os.close(fd)
        files.sync_dir(self.folder)

    def empty(self) -> None:
        """Remove what is in it."""
        empty(self.root)

    def drop(self) -> None:
        """Unlock it, and remove it if no store was ever in it."""
        if self.spec is None:
            self.claim.drop()
            files.remove(self.folder / _SESSIONS)
            files.remove_empty_dir(self.folder)
        else:
            self.claim.lock.release()

    def remove(self) -> None:
        """Remove it with all that is in it, and the directory above if it is the last one."""
        aside = files.scratch_name(self.folder.parent)
        with contextlib.suppress(FileNotFoundError):  # it was removed before
            files.rename(self.folder, aside)  # in one step: another writer may look for spools just now
            files.remove_tree(aside)
        self.claim.lock.release()
        files.remove_empty_dir(self.folder.parent)


def open_spools(above: Path, owner: Owner, *, shared: bool) -> list[Spool]:
    """Lock the spools that no living writer has, or a new one; the first is this writer's own.

    Parameters
    ----------
    above : Path
        Where they are.
    owner : Owner
        The writer.
    shared : bool
        Whether living writers may have others.

    Raises
    ------
    StoreLockedError
        If a living writer has one and this one is not shared.
    WriteFailedError
        If no directory can be made there.
    """
    found: list[Spool] = []
    try:
        for folder in _folders(above):
            spool = _shared_spool(folder, owner) if shared else _own_spool(folder, owner)
            found += [] if spool is None else [spool]
        if not found:
            found.append(Spool(above / owner.session, owner))
    except BaseException as error:
        for one in found:
            one.claim.lock.release()
        if not isinstance(error, OSError) or isinstance(error, ZarrowError):
            raise
        raise WriteFailedError(
            error.errno or errno.EIO,
            f"{above}: no spool can be made here: {error.strerror}: choose another directory (spool=, or "
            "ZARROW_SPOOL)",
        ) from error
    return found


def _folders(above: Path) -> list[Path]:
    os.makedirs(above, exist_ok=True)
    try:
        return sorted(path for path in above.iterdir() if path.is_dir())
    except FileNotFoundError:  # another writer has removed the last one just now
        return []


def _own_spool(folder: Path, owner: Owner) -> Spool | None:
    try:
        return Spool(folder, owner)
    except StoreLockedError as error:
        raise StoreLockedError(str(error).removesuffix(", or open every writer with shared=True")) from None
    except OSError:
        if folder.exists():
            raise
        return None


def _shared_spool(folder: Path, owner: Owner) -> Spool | None:
    """Lock a dead writer's spool, which forked children may hold for a moment; None if it is in use."""
    path = folder / _STORE / layout.OPEN_DIR / layout.LOCK
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while path.exists():
        lock = FileLock(path, holder=owner.encode())
        with contextlib.suppress(
            FileNotFoundError, CorruptionError
        ):  # removed, or taken by another, just now
            if lock.acquire():
                return Spool(folder, owner, lock)
            holder = Owner.decode(lock.holder(), str(path))
            if holder.host != this_host() or is_running(holder.pid):
                return None
        if time.monotonic() > deadline:
            return None
        time.sleep(0.05)
    return None
