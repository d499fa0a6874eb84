"""Quarantine — the directory of a store to which a repair moves what is damaged.

There is a directory per incident: ``00000003-0`` holds what was left of segment 3, ``18e5…-0`` an open
segment, ``claim-00000003-0`` a claim, ``stray-0`` and so on anything else. Files are moved there, and never
overwritten or removed: they may be the only copy. ``damage.json``, which is written first, says what was
damaged.

Recovery may use the number of a segment again (`_write.recovery`) only if it has such a directory, and no
record: a record that is missing for any other reason is damage that has not been examined yet.

Files are first linked there; only when all of them are durable there, their old names are removed, that of a
segment's record first. So a crash leaves a segment as it was, or one that no longer counts, and whose files
are all in quarantine, so that another segment may take their names (`_write.recovery`). Anything that is no
file is renamed. Repairing again does the rest.

In a bucket (`AsideInBucket`) the service copies the objects first. An interrupted attempt is not continued
there: its directory has copies, and the next attempt makes another one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from zarrow._format import layout
from zarrow._format.documents import encode_document
from zarrow._storage import files, reading
from zarrow._storage.objects import ObjectPath
from zarrow.errors import CorruptionError

__all__ = ["Aside", "AsideInBucket", "SetAside"]

DAMAGE_JSON = "damage.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:  # its fields are its parameters: numpydoc ignore=PR02
    """Something damaged that was set aside, or would be.

    Parameters
    ----------
    path : str
        Where it was, relative to the store: for example a segment's record or an open segment.
    to : str
        The directory to which it was moved.
    segment : int or None
        The number of the committed segment, if it was one.
    rows : (int, int) or None
        Its rows, as start and stop: rows of the store, or of the open segment.
    kept_rows : int
        How many of these rows stay in the store, because they can still be read and checked.
    sample_index : tuple of int or None
        The ``sample_index`` values of the other ones, in ascending order; None if they are unknown.
    reasons : tuple of str
        What was wrong with it.
    """

    path: str
    to: str = ""
    segment: int | None = None
    rows: tuple[int, int] | None = None
    kept_rows: int = 0
    sample_index: tuple[int, ...] | None = None
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.path} → {self.to}: {'; '.join(self.reasons)}"
        if self.rows is not None:
            kept = f", {self.kept_rows} of them kept" if self.kept_rows else ""
            text += f" ({self.rows[1] - self.rows[0]} rows{kept})"
        return text


class Aside:
    """A directory in quarantine that takes the files of one incident.

    Parameters
    ----------
    root : Path
        The store.
    name : str
        What it holds: a segment's eight digits, an open segment's name, …
    moves : mapping of str to str
        The files to move: where they are, relative to the store, and their names in the directory.
    facts : SetAside
        What was damaged; `facts` of the result also says where it goes.
    """

    def __init__(self, root: Path, name: str, moves: Mapping[str, str], facts: SetAside) -> None:
        self._root = root
        self._moves = {source: target for source, target in moves.items() if os.path.lexists(root / source)}
        base = root / layout.QUARANTINE_DIR
        # That of an interrupted attempt, which has some of the files; not one of an earlier incident.
        self.path = next(
            path
            for path in (base / f"{name}-{number}" for number in itertools.count())
            if all(_is_free_for(path / target, root / source) for source, target in self._moves.items())
        )
        self.facts = replace(facts, to=str(self.path.relative_to(root)))

    @property
    def files(self) -> tuple[str, ...]:
        """The files that exist and are to be moved, relative to the store."""
        return tuple(self._moves)

    def fill(self) -> None:
        """Move the files: durable on return."""
        files.make_dir(self._root / layout.QUARANTINE_DIR, exist_ok=True)
        files.sync_dir(self._root)
        files.make_dir(self.path, exist_ok=True)
        files.sync_dir(self.path.parent)
        if not os.path.lexists(self.path / DAMAGE_JSON):
            document = _document(self.facts)
            files.replace(self.path / DAMAGE_JSON, document, scratch=self._root / layout.OPEN_DIR)
        linked = []
        for source, target in self._moves.items():
            path = self._root / source
            if not os.path.lexists(path):
                continue  # it was moved with another incident
            reading.require_own_dirs(self._root, source)
            if not _is_free_for(self.path / target, path):
                raise CorruptionError("exists already, and would be overwritten", path=self.path / target)
            if stat.S_ISREG(path.lstat().st_mode):
                linked.append(path)
                if not os.path.lexists(self.path / target):
                    files.link(path, self.path / target)
            else:
                files.rename(path, self.path / target)
                # The new name becomes durable first: a power cut may leave both names, but not neither.
                files.sync_dir(self.path)
                files.sync_dir(path.parent)
        files.sync_dir(self.path)
        for path in reversed(linked):
            files.remove(path)
            files.sync_dir(path.parent)


class AsideInBucket:
    """What `Aside` is, of a store in a bucket; a file to move may be all that lies below a name.

    Parameters
    ----------
    place : ObjectPath
        The store.
    name, moves, facts
        As for `Aside`.
    """

    def __init__(self, place: ObjectPath, name: str, moves: Mapping[str, str], facts: SetAside) -> None:
        self._place = place
        self._moves: dict[str, str] = {}
        for source, target in moves.items():
            if place.exists(source):
                self._moves[source] = target
            else:
                below = (place / source).names()
                self._moves |= {f"{source}/{one}": f"{target}/{one}" for one in below}
        taken = place.list(layout.QUARANTINE_DIR)
        free = (f"{name}-{number}" for number in itertools.count())
        self.facts = replace(
            facts, to=f"{layout.QUARANTINE_DIR}/{next(one for one in free if one not in taken)}"
        )

    @property
    def files(self) -> tuple[str, ...]:
        """The objects that are to be moved, relative to the store."""
        return tuple(self._moves)

    def keep(self) -> None:
        """Copy the objects."""
        self._place.put_bytes(f"{self.facts.to}/{DAMAGE_JSON}", _document(self.facts))
        for source, target in self._moves.items():
            with contextlib.suppress(FileNotFoundError):  # it was moved with another incident
                self._place.copy(source, f"{self.facts.to}/{target}")

    def clear(self) -> None:
        """Remove those that were copied."""
        for source in reversed(self._moves):
            self._place.delete(source)


def _document(facts: SetAside) -> bytes:
    body = asdict(facts)
    del body["to"]
    return encode_document(body)


def _is_free_for(target: Path, source: Path) -> bool:
    """Tell whether nothing has a name in quarantine yet, or the file itself, since an interrupted attempt."""
    return not os.path.lexists(target) or os.path.samestat(target.lstat(), source.lstat())
