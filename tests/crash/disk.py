"""Disk model — what is on the disk after a process died, or after a power cut.

`Recorder` replaces ``_storage.files.calls``: it logs every call that changes the disk, and can make one of
them fail, tear or be the last. `Disk` replays a log into a model of a file system that knows what was synced.
It yields `Tree` values, which can be written to a real disk and opened:

* `Disk.now`: what a killed process leaves, which is everything it wrote;
* `Disk.cut`: one possible result of a power cut. Each unsynced write to a file is kept, dropped, zeroed or
  torn; of a directory's unsynced entries, any prefix or any subset is kept. An fsync of a file does not make
  its name durable; a rename that lost the old name keeps the new one.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zarrow._storage import files

SECTOR_BYTES = 512


class Killed(BaseException):
    """The process is dead from now on: no handler of ours may catch this and continue writing."""


@dataclass(frozen=True)
class Call:
    """One call that changed the disk, and the rows promised when it started."""

    name: str
    args: tuple[Any, ...]
    promise: dict[Any, tuple[int, int]]

    def __str__(self) -> str:
        shown = (f"{len(arg)} bytes" if isinstance(arg, bytes) else str(arg) for arg in self.args)
        return f"{self.name}({', '.join(shown)})"


class Recorder(files.Calls):
    """Logs calls below a directory; `before` may refuse a call or replace it."""

    def __init__(self, top: Path) -> None:
        self.top = os.path.realpath(top)
        self.log: list[Call] = []
        self.promise: dict[Any, tuple[int, int]] = {}
        self.progress: Callable[[], dict[Any, tuple[int, int]]] = dict
        self.before: Callable[[int, str, tuple[Any, ...]], Any] = lambda number, name, args: None
        self.number = 0
        self.dead = False
        self.fsync_s = 0.0
        self._files: dict[int, tuple[object, str]] = {}
        self._lock = threading.RLock()

    def note(self) -> dict[Any, tuple[int, int]]:
        """Return the rows promised so far; the numbers never decrease."""
        for stream, (accepted, durable) in self.progress().items():
            before = self.promise.get(stream, (0, 0))
            self.promise = {
                **self.promise,
                stream: (max(before[0], accepted), max(before[1], durable)),
            }
        return self.promise

    def _relative(self, path: str) -> str:
        return os.path.relpath(
            os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)), self.top
        )

    def _do(self, name: str, args: tuple[Any, ...], act: Callable[[], Any]) -> Any:
        with self._lock:
            if self.dead:
                raise Killed
            promise = self.note()
            number, self.number = self.number, self.number + 1
            instead = self.before(number, name, args)
            if self.dead:
                raise Killed
            result = act() if instead is None else instead()
            if instead is None:
                self.log.append(Call(name, args, promise))
            return result

    def path_of(self, fd: int) -> str:
        """Return the name under which an open file was opened."""
        return self._files[fd][1]

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        file, name = object(), self._relative(path)

        def act() -> int:
            fd = files.Calls.open(self, path, flags, mode)
            self._files[fd] = (file, name)
            return fd

        return self._do("open", (name, file), act)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        held = bytes(data)
        args = (self._files[fd][0], held, offset)
        return self._do("pwrite", args, lambda: files.Calls.pwrite(self, fd, held, offset))

    def torn(self, fd_file: object, data: bytes, offset: int) -> None:
        """Write a part of the data, and log it."""
        fd = next(fd for fd, (file, _) in self._files.items() if file is fd_file)
        files.Calls.pwrite(self, fd, data, offset)
        self.log.append(Call("pwrite", (fd_file, data, offset), self.promise))

    def ftruncate(self, fd: int, size_bytes: int) -> None:
        self._do(
            "ftruncate",
            (self._files[fd][0], size_bytes),
            lambda: files.Calls.ftruncate(self, fd, size_bytes),
        )

    def fsync(self, fd: int) -> None:
        time.sleep(self.fsync_s)  # like a real disk, so that another thread can write meanwhile
        self._do("fsync", (self._files[fd][0], self._files[fd][1]), lambda: files.Calls.fsync(self, fd))

    def fsync_dir(self, path: str) -> None:
        self._do("fsync_dir", (self._relative(path),), lambda: files.Calls.fsync_dir(self, path))

    def mkdir(self, path: str) -> None:
        self._do("mkdir", (self._relative(path),), lambda: files.Calls.mkdir(self, path))

    def link(self, source: str, target: str) -> None:
        args = (self._relative(source), self._relative(target))
        self._do("link", args, lambda: files.Calls.link(self, source, target))

    def rename(self, source: str, target: str) -> None:
        args = (self._relative(source), self._relative(target))
        self._do("rename", args, lambda: files.Calls.rename(self, source, target))

    def exchange(self, one: str, other: str) -> bool:
        args = (self._relative(one), self._relative(other))
        return self._do("exchange", args, lambda: files.Calls.exchange(self, one, other))

    def unlink(self, path: str) -> None:
        self._do("unlink", (self._relative(path),), lambda: files.Calls.unlink(self, path))

    def rmdir(self, path: str) -> None:
        self._do("rmdir", (self._relative(path),), lambda: files.Calls.rmdir(self, path))


# The model


@dataclass(frozen=True)
class Tree:
    """Directories, and files by number; a file with two names is one file."""

    dirs: frozenset[str]
    names: tuple[tuple[str, int], ...]
    contents: tuple[tuple[int, bytes], ...]

    def put(self, top: Path) -> None:
        """Write the tree to a real disk, including hard links."""
        for path in sorted(self.dirs):
            os.mkdir(os.path.join(top, path))
        contents, first = dict(self.contents), {}
        for name, number in self.names:
            path = os.path.join(top, name)
            if number in first:
                os.link(first[number], path)
                continue
            first[number] = path
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.write(fd, contents[number])
            os.close(fd)

    def files(self) -> dict[str, bytes]:
        """Return the content of every file by name."""
        contents = dict(self.contents)
        return {name: contents[number] for name, number in self.names}

    @classmethod
    def take(cls, top: Path) -> Tree:
        """Read a tree from a real disk."""
        dirs, names, contents, numbers = set(), [], {}, {}
        for folder, subfolders, entries in os.walk(top):
            dirs.update(os.path.relpath(os.path.join(folder, name), top) for name in subfolders)
            for name in entries:
                path = os.path.join(folder, name)
                status = os.stat(path)
                number = numbers.setdefault((status.st_dev, status.st_ino), len(numbers))
                names.append((os.path.relpath(path, top), number))
                if number not in contents:
                    with open(path, "rb") as file:
                        contents[number] = file.read()
        return cls(frozenset(dirs), tuple(sorted(names)), tuple(sorted(contents.items())))


class File:
    """A file: its content, its synced content, and the changes since then."""

    __slots__ = ("data", "durable", "pending")

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.durable = bytes(data)
        self.pending: list[tuple[int, bytes | None]] = []


class Folder:
    """A directory: its current entries, and the synced ones."""

    __slots__ = ("durable", "entries")

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}
        self.durable: dict[str, Any] = {}


@dataclass(eq=False)
class Effect:
    """An unsynced change of a directory entry; if it is kept, the effects in `needs` are kept, too."""

    folder: Folder
    name: str
    node: Any
    needs: list[Effect] = field(default_factory=list)


class Disk:
    """A file system that knows what has been synced."""

    def __init__(self, tree: Tree | None = None) -> None:
        self.root = Folder()
        self.pending: list[Effect] = []
        self._files: dict[int, File] = {}
        if tree is not None:
            contents, made = dict(tree.contents), {}
            for path in sorted(tree.dirs):
                folder, name = self._parent(path)
                folder.entries[name] = folder.durable[name] = Folder()
            for path, number in tree.names:
                folder, name = self._parent(path)
                node = made.setdefault(number, File(contents[number]))
                folder.entries[name] = folder.durable[name] = node

    def _find(self, path: str) -> Any:
        node: Any = self.root
        for name in path.split("/"):
            if name != ".":
                node = node.entries[name]
        return node

    def _parent(self, path: str) -> tuple[Folder, str]:
        head, _, name = path.rpartition("/")
        return self._find(head or "."), name

    def _set(self, path: str, node: Any) -> Effect:
        folder, name = self._parent(path)
        if node is None:
            del folder.entries[name]
        else:
            folder.entries[name] = node
        effect = Effect(folder, name, node)
        self.pending.append(effect)
        return effect

    def do(self, call: Call) -> None:
        """Replay one call."""
        getattr(self, "_" + call.name)(*call.args)

    def file(self, handle: object) -> File:
        """Return the file that a call's handle refers to."""
        return self._files[id(handle)]

    def _open(self, path: str, file: object) -> None:
        folder, name = self._parent(path)
        if name not in folder.entries:
            self._set(path, File())
        self._files[id(file)] = folder.entries[name]

    def _pwrite(self, file: object, data: bytes, offset: int) -> None:
        node = self._files[id(file)]
        _apply(node.data, offset, data)
        node.pending.append((offset, data))

    def _ftruncate(self, file: object, size_bytes: int) -> None:
        node = self._files[id(file)]
        _apply(node.data, size_bytes, None)
        node.pending.append((size_bytes, None))

    def _fsync(self, file: object, _: str) -> None:
        node = self._files[id(file)]
        node.durable = bytes(node.data)
        node.pending.clear()

    def _fsync_dir(self, path: str) -> None:
        folder = self._find(path)
        kept = {id(effect) for effect in self.pending if effect.folder is folder}
        for effect in self.pending:
            if id(effect) in kept:
                kept.update(id(need) for need in effect.needs)
        rest = []
        for effect in self.pending:
            if id(effect) in kept:
                _apply_entry(effect.folder.durable, effect)
            else:
                rest.append(effect)
        self.pending = rest

    def _mkdir(self, path: str) -> None:
        self._set(path, Folder())

    def _link(self, source: str, target: str) -> None:
        self._set(target, self._find(source))

    def _rename(self, source: str, target: str) -> None:
        node = self._find(source)
        added = self._set(target, node)
        removed = self._set(source, None)
        removed.needs.append(added)
        if added.folder is removed.folder:
            added.needs.append(removed)

    def _exchange(self, one: str, other: str) -> None:
        first, second = self._find(one), self._find(other)
        effects = [self._set(one, second), self._set(other, first)]
        effects[0].needs.append(effects[1])
        effects[1].needs.append(effects[0])

    def _unlink(self, path: str) -> None:
        self._set(path, None)

    _rmdir = _unlink

    def now(self) -> Tree:
        """Return what a killed process leaves."""
        return _tree(self.root, lambda folder: folder.entries, lambda file: bytes(file.data))

    def cut(self, rng: random.Random) -> Tree:
        """Return what a power cut may leave."""
        folders = self._cut_folders(rng)
        way = rng.choice(("none", "all", "each", "each", "each"))
        contents: dict[int, bytes] = {}

        def content(file: File) -> bytes:
            if id(file) not in contents:
                contents[id(file)] = _cut_file(file, rng, way)
            return contents[id(file)]

        return _tree(self.root, lambda folder: folders.get(id(folder), folder.durable), content)

    def _cut_folders(self, rng: random.Random) -> dict[int, dict[str, Any]]:
        pending = self.pending
        way = rng.choice(("none", "all", "prefix", "folder", "folder", "any", "any", "one", "but"))
        if way == "none":
            kept = []
        elif way == "all":
            kept = pending
        elif way == "prefix":
            kept = pending[: rng.randint(0, len(pending))]
        elif way == "folder":
            choice = {id(effect.folder): rng.choice((0.0, 1.0, rng.random())) for effect in pending}
            seen: dict[int, int] = {}
            total: dict[int, int] = {}
            for effect in pending:
                total[id(effect.folder)] = total.get(id(effect.folder), 0) + 1
            kept = []
            for effect in pending:
                key = id(effect.folder)
                seen[key] = seen.get(key, 0) + 1
                if seen[key] <= round(choice[key] * total[key]):
                    kept.append(effect)
        elif way == "any":
            share = rng.choice((0.2, 0.5, 0.8))
            kept = [effect for effect in pending if rng.random() < share]
        else:
            chosen = rng.choice(pending) if pending else None
            kept = [effect for effect in pending if (effect is chosen) == (way == "one")]
        marks = {id(effect) for effect in kept}
        grown = True
        while grown:
            needed = {id(need) for effect in pending if id(effect) in marks for need in effect.needs}
            grown = not needed <= marks
            marks |= needed
        folders: dict[int, dict[str, Any]] = {}
        for effect in pending:
            if id(effect) in marks:
                entries = folders.setdefault(id(effect.folder), dict(effect.folder.durable))
                _apply_entry(entries, effect)
        return folders


def _apply_entry(entries: dict[str, Any], effect: Effect) -> None:
    if effect.node is None:
        entries.pop(effect.name, None)
    else:
        entries[effect.name] = effect.node


def _apply(data: bytearray, offset: int, piece: bytes | None) -> None:
    if piece is None:
        if offset < len(data):
            del data[offset:]
        else:
            data.extend(bytes(offset - len(data)))
        return
    if offset > len(data):
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(piece)] = piece


def _cut_file(file: File, rng: random.Random, way: str) -> bytes:
    if not file.pending or way == "none":
        return file.durable
    if way == "all":
        return bytes(file.data)
    data = bytearray(file.durable)
    style = rng.choice(("prefix", "suffix", "drop", "zero", "tear", "mix", "none", "all"))
    if style in ("none", "all"):
        return file.durable if style == "none" else bytes(file.data)
    limit = rng.randint(0, len(file.pending))
    for index, (offset, piece) in enumerate(file.pending):
        fate = style if style not in ("prefix", "suffix", "mix") else "keep"
        if style == "mix":
            fate = rng.choice(("keep", "keep", "drop", "zero", "tear"))
        elif fate in ("drop", "zero", "tear") and rng.random() < 0.5:
            fate = "keep"
        if (style == "prefix" and index >= limit) or (style == "suffix" and index < limit):
            fate = "drop"
        if piece is None:
            if fate == "keep":
                _apply(data, offset, None)
        elif fate == "keep":
            _apply(data, offset, piece)
        elif fate == "zero":
            _apply(data, offset, bytes(len(piece)))
        elif fate == "tear":
            if rng.random() < 0.5 or len(piece) <= SECTOR_BYTES:
                _apply(data, offset, piece[: rng.randint(0, len(piece))])
            else:
                for start in range(0, len(piece), SECTOR_BYTES):
                    if rng.random() < 0.5:
                        _apply(data, offset + start, piece[start : start + SECTOR_BYTES])
    return bytes(data)


def _tree(
    root: Folder, entries: Callable[[Folder], dict[str, Any]], content: Callable[[File], bytes]
) -> Tree:
    dirs: set[str] = set()
    names: list[tuple[str, int]] = []
    contents: dict[int, bytes] = {}
    numbers: dict[int, int] = {}

    def walk(folder: Folder, prefix: str) -> None:
        for name, node in sorted(entries(folder).items()):
            if isinstance(node, Folder):
                if prefix + name not in dirs:
                    dirs.add(prefix + name)
                    walk(node, prefix + name + "/")
            else:
                number = numbers.setdefault(id(node), len(numbers))
                names.append((prefix + name, number))
                contents[number] = content(node)

    walk(root, "")
    return Tree(frozenset(dirs), tuple(sorted(names)), tuple(sorted(contents.items())))
