"""Where does a repair put what is damaged?

Under ``quarantine/``, one directory per incident: ``00000003-0`` holds what was left of segment 3,
``18e5…-0`` an open segment, ``claim-00000003-0`` a claim, ``stray-0`` and so on what was in the way. Files
are moved there, never copied over one another and never removed: they may be the only copy of something.
The first thing in it is ``damage.json``, which says what it was.

That a number has such a directory, and no record, is what allows recovery to use the number again
(`_write.recovery`): a record that is missing for any other reason is damage that nobody has looked at yet.

Place: tier 3, used by `repair` and `_write.recovery`. A crash leaves files here or there; doing it again
moves the
rest.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zarrow._format import layout
from zarrow._format.documents import encode_document
from zarrow._storage import files, reading
from zarrow.errors import CorruptionError

__all__ = ["Aside"]

DAMAGE_JSON = "damage.json"


class Aside:
    """A directory in quarantine that takes the files of one incident.

    Parameters
    ----------
    root : Path
        The store.
    name : str
        What it is: a segment's eight digits, an open segment's name, …
    moves : mapping of str to str
        The files to move: where they are, relative to the store, and what they are called then.
    """

    def __init__(self, root: Path, name: str, moves: Mapping[str, str]) -> None:
        self._root = root
        self._moves = {source: target for source, target in moves.items() if os.path.lexists(root / source)}
        base = root / layout.QUARANTINE_DIR
        # An earlier attempt's, which took some of the files; but not an earlier incident's, which has all.
        self.path = next(
            path
            for path in (base / f"{name}-{number}" for number in itertools.count())
            if not any(os.path.lexists(path / target) for target in self._moves.values())
        )

    @property
    def files(self) -> tuple[str, ...]:
        """What is there to move, relative to the store."""
        return tuple(self._moves)

    def fill(self, damage: Mapping[str, Any]) -> None:
        """Move the files: durable on return.

        Parameters
        ----------
        damage : mapping
            JSON values that say what it was.
        """
        files.make_dir(self._root / layout.QUARANTINE_DIR, exist_ok=True)
        files.sync_dir(self._root)
        files.make_dir(self.path, exist_ok=True)
        files.sync_dir(self.path.parent)
        if not os.path.lexists(self.path / DAMAGE_JSON):
            document = encode_document(damage)
            files.replace(self.path / DAMAGE_JSON, document, scratch=self._root / layout.OPEN_DIR)
        for source, target in self._moves.items():
            path = self._root / source
            if not os.path.lexists(path):
                continue  # it went with another incident
            reading.require_own_dirs(self._root, path)
            if os.path.lexists(self.path / target):
                raise CorruptionError(f"{self.path / target}: is there already, and would be overwritten")
            files.rename(path, self.path / target)
            # The new name before the old one is gone for good: a power cut may leave both, not neither.
            files.sync_dir(self.path)
            files.sync_dir(path.parent)
