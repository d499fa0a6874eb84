"""Putting finished files into place — a target gets its name in one step, when it is whole and durable.

1. ``.<name>.exporting`` next to the target is locked: of two exports to one target, the second is refused.
   Files at that name that are not its own are left alone.
2. Files grow in a directory of a random name, ``.<name>.<random>.exporting``, which only this user may enter.
   The lock's file says which: the next export to the target removes it if this one is killed.
3. They get the store's owner, group and mode, are made durable, and moved to the targets. Of several targets
   the later ones are cleared first: a crash leaves some of the old files, or of the new, never both.

A target with which another file would be lost is refused.

What goes into a bucket (`into_bucket`) is made in the directory for temporary files. A file is there whole or
not at all; of a folder, a crash leaves some files.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zarrow._storage import files
from zarrow._storage.lock import FileLock
from zarrow._storage.objects import ObjectPath, is_remote, located
from zarrow._storage.reading import open_file
from zarrow.errors import ConflictError, CorruptionError, InvalidInputError

__all__ = ["NO_FILES", "in_place", "into_bucket"]

NO_FILES = re.compile(r"(?!)")


@contextlib.contextmanager
def in_place(
    *targets: Path, store: Path | ObjectPath, overwrite: bool, known: re.Pattern[str] = NO_FILES
) -> Iterator[list[Path]]:
    """Yield a scratch path per target, and move what was written there to the targets.

    Parameters
    ----------
    *targets : Path
        Where the files are to be. Links are followed.
    store : Path
        The exported store. Who may not read it may not read what is exported.
    overwrite : bool
        Whether to replace what is at the targets.
    known : re.Pattern
        Matches the files of a folder that an export may replace.

    Raises
    ------
    InvalidInputError
        If a target lies in the store, or the store in a target.
    ConflictError
        If a target exists and must not be replaced, or another process exports to it.
    """
    goals = [Path(os.path.realpath(target)) for target in targets]
    _check(goals, store, overwrite, known)
    with contextlib.ExitStack() as stack:
        scratch = [stack.enter_context(_scratch(goal)) for goal in goals]
        made = [path / goal.name for path, goal in zip(scratch, goals, strict=True)]
        yield made
        for path in made:
            _finish(path, store)
        _check(goals, store, overwrite, known)
        for path, goal in zip(scratch[1:], goals[1:], strict=True):
            if os.path.lexists(goal):
                files.rename(goal, path / f"{goal.name}.old")
        for path, goal in zip(made, goals, strict=True):
            _move(path, goal, overwrite=overwrite)


@contextlib.contextmanager
def into_bucket(
    target: str | os.PathLike[str], options: Mapping[str, Any] | None, store: object, *, overwrite: bool
) -> Iterator[Path]:
    """Yield a path on a disk, and put what was written there, or beside it, where a URL says.

    Raises
    ------
    InvalidInputError
        If the URL is that of an obstore store, which has no name, or if the exported store is there.
    ConflictError
        If there is something already; it cannot be replaced in one step.
    """
    if not isinstance(target, str | os.PathLike):
        raise InvalidInputError("the target of an export is a path or a URL")
    goal = located(target, options)
    here = getattr(store, "path", None) or (located(store) if is_remote(store) else None)
    if isinstance(here, ObjectPath) and f"{here}/" in f"{goal}/":
        raise InvalidInputError(f"{goal}: lies within the exported store: choose another target")
    folder, _, name = os.fspath(target).rstrip("/").rpartition("/")
    above = located(folder, options)
    assert isinstance(above, ObjectPath)
    if overwrite or above.exists(name) or next((above / name).names(), None) is not None:
        raise ConflictError(
            f"{goal}: what is in a bucket cannot be replaced in one step: choose another target"
            if overwrite
            else f"{goal} exists already: choose another target"
        )
    with tempfile.TemporaryDirectory(prefix="zarrow-export-") as scratch:
        yield Path(scratch, name)
        for path in sorted(_files(Path(scratch))):
            found = str(path.relative_to(scratch))
            above.put(found, open_file(Path(scratch), found))


def _check(goals: list[Path], store: Path | ObjectPath, overwrite: bool, known: re.Pattern[str]) -> None:
    here = Path(os.path.realpath(store)) if isinstance(store, Path) else None
    for goal in goals:
        if here is not None and (here == goal or here in goal.parents):
            raise InvalidInputError(f"{goal}: lies within the exported store: choose another target")
        if here is not None and goal in here.parents:
            raise InvalidInputError(f"{goal}: contains the exported store: choose another target")
        if not os.path.lexists(goal):
            continue
        if not overwrite:
            raise ConflictError(
                f"{goal} exists already: choose another target, or replace it with overwrite=True"
            )
        kind = goal.lstat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise ConflictError(f"{goal}: neither a file nor a folder: choose another target")
        for path in _files(goal) if stat.S_ISDIR(kind) else ():
            if not known.fullmatch(found := str(path.relative_to(goal))):
                raise ConflictError(
                    f"{goal}: overwriting this folder would remove {found!r}, which is not of an export in "
                    "this format: choose another target, or remove it yourself"
                )


def _files(folder: Path) -> Iterator[Path]:
    """Yield what is in a folder and in those in it, other than folders; links are not followed."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        else:
            yield path


@contextlib.contextmanager
def _scratch(goal: Path) -> Iterator[Path]:
    """Make a directory of this process, next to a target that no other one exports to."""
    lock = FileLock(goal.with_name(f".{goal.name}.exporting"))

    def scratch(name: str) -> Path:
        return goal.with_name(f".{goal.name}.{name}.exporting")

    try:
        acquired = lock.acquire()
        before = lock.holder().decode("ascii", "replace") if acquired else ""
    except CorruptionError as error:
        raise ConflictError(f"{error}: an export to {goal} needs this name: move it away") from error
    if not acquired:
        raise ConflictError(f"{goal}: another process is exporting to it: wait, or choose another target")
    try:
        if before and not re.fullmatch("[0-9a-f]{16}", before):
            lock.release()
            raise ConflictError(f"{lock.path}: an export to {goal} needs this name: move it away")
        if before:
            _remove(scratch(before))  # of an export that was killed
        name = secrets.token_hex(8)
        lock.describe(name.encode())
        files.make_dir(scratch(name))
        try:
            with contextlib.suppress(OSError):  # a file system without modes
                os.chmod(scratch(name), 0o700)
            yield scratch(name)
        finally:
            _remove(scratch(name))
    finally:
        lock.release(remove_file=True)


def _move(path: Path, goal: Path, *, overwrite: bool) -> None:
    try:
        if not overwrite and not path.is_dir():
            _link(path, goal)
        elif os.path.lexists(goal) and (goal.is_dir() or path.is_dir()):
            files.exchange(path, goal)
        else:
            files.rename(path, goal)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConflictError(
            f"{goal} exists by now: choose another target, or replace it with overwrite=True"
        ) from error
    files.sync_dir(goal.parent)


def _link(path: Path, goal: Path) -> None:
    """Give a file its name, which must be free."""
    try:
        files.link(path, goal)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        files.rename(path, goal)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        files.remove_tree(path)
    else:
        files.remove(path)


def _finish(path: Path, store: Path | ObjectPath) -> None:
    """Give a file, or a folder and everything in it, the access of a store on a disk; make it durable."""
    if path.is_dir():
        for entry in sorted(path.iterdir()):
            _finish(entry, store)
        if isinstance(store, Path):
            files.give_access(path, store)
        files.sync_dir(path)
        return
    if isinstance(store, Path):
        files.give_access(path, store)
    fd = os.open(path, os.O_RDONLY)
    try:
        files.sync(fd)
    finally:
        os.close(fd)
