"""Hold — which writers may add rows to a store in a bucket.

They are listed in one object, the holder (`_format.bucket`), which is only replaced by one who has seen it as
it is:

1. a writer that has the store to itself *takes* it: those listed before may add no more;
2. a shared writer *joins* them;
3. a writer that is closed, and has left no row behind, *departs*;
4. one *completes* the store when no other is listed any more.

A writer that stood still asks before anything of it counts, and stops if it is not listed any more. A crash
leaves a writer listed. It departs when another one has put into the bucket what lies in its spool.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from dataclasses import replace

from zarrow._format.bucket import HOLDER, Holder
from zarrow._format.records import Owner
from zarrow._storage.conditional import look, swap
from zarrow._storage.objects import ObjectPath
from zarrow.errors import StoreExistsError, StoreLockedError, ZarrowError

__all__ = ["Hold"]

MayTake = Callable[[Holder | None], None]
"""Raises if the writer must not take or join a store from this holder."""


class Hold:
    """What one writer says in the holder, and asks of it.

    Parameters
    ----------
    place : ObjectPath
        The store.
    owner : Owner
        The writer.
    """

    def __init__(self, place: ObjectPath, owner: Owner) -> None:
        self.place = place
        self._owner = owner
        self._departed = False
        self.dead: set[str] = set()  # those whose spools this writer has locked

    def _change(self, changed: Callable[[Holder | None], Holder | None]) -> None:
        """Replace the holder by what a function makes of it; by nothing if that is None."""
        while True:
            seen = look(self.place, HOLDER)
            wanted = changed(None if seen is None else self._decode(seen.data))
            if wanted is None:
                return
            with contextlib.suppress(FileExistsError):  # another one has replaced it meanwhile
                swap(self.place, HOLDER, None if seen is None else seen.version, wanted.encode())
                return

    def _decode(self, data: bytes) -> Holder:
        return Holder.decode(data, str(self.place / HOLDER))

    def _look(self) -> Holder | None:
        seen = look(self.place, HOLDER)
        return None if seen is None else self._decode(seen.data)

    def take(self, may_take: MayTake) -> None:
        """Have the store to itself; `may_take` may object to the holder before."""

        def alone(before: Holder | None) -> Holder:
            may_take(before)
            return Holder(
                owner=self._owner, writers=(self._owner,), tails=() if before is None else before.tails
            )

        self._change(alone)

    def join(self, may_take: MayTake) -> None:
        """Write the store together with those that write it, but not with one that is completing it."""

        def joined(before: Holder | None) -> Holder:
            may_take(before)
            if before is None:
                return Holder(owner=self._owner, writers=(self._owner,), shared=True)
            others = () if before.completing else before.writers
            owner = before.owner if others else self._owner
            return Holder(owner=owner, writers=(*others, self._owner), tails=before.tails, shared=True)

        self._change(joined)

    def require_held(self) -> Holder:
        """Return the holder, which lists this writer; else raise `StoreLockedError`."""
        holder = self._look()
        if holder is None or self._owner.session not in holder.sessions:
            raise self.taken_over(holder)
        return holder

    def living(self) -> set[str]:
        """Return the sessions of the writers that may add rows, dead ones excepted that are known."""
        return self.require_held().sessions - self.dead

    def is_held(self) -> bool:
        """Tell whether this writer may still add rows."""
        holder = self._look()
        return holder is not None and self._owner.session in holder.sessions

    def taken_over(self, holder: Holder | None) -> StoreLockedError:
        """Return the error of a writer that is not listed any more."""
        who = "another writer" if holder is None else str(holder.owner)
        return StoreLockedError(
            f"{self.place}: {who} has taken the store over or completed it, so this writer stops; its rows "
            "that are not in the bucket stay in its spool"
        )

    def lost(self) -> StoreLockedError:
        """Return the same, naming who holds the store now."""
        return self.taken_over(self._look())

    def add_tail(self, slot: str) -> None:
        """Have a tail count, all of whose objects are there, unless the store was taken over."""
        self.change_tails([slot], ())

    def remove_tails(self, slots: Collection[str]) -> None:
        """Have tails count no more, whose rows are committed."""
        self.change_tails((), slots)

    def change_tails(self, added: Collection[str], removed: Collection[str]) -> None:
        """Do both in one step."""

        def with_tails(before: Holder | None) -> Holder | None:
            if before is None or self._owner.session not in before.sessions:
                raise self.taken_over(before)
            tails = tuple(dict.fromkeys((*(one for one in before.tails if one not in removed), *added)))
            return None if tails == before.tails else replace(before, tails=tails)

        self._change(with_tails)

    def depart(self, dead: Collection[str] = (), *, stays: bool = False) -> tuple[Owner, ...]:
        """Be listed no more, nor have dead writers be, none of whose rows are left elsewhere.

        Returns the writers that are left.
        """
        gone = {*dead} if stays else {*dead, self._owner.session}
        left: tuple[Owner, ...] = ()

        def without(before: Holder | None) -> Holder | None:
            nonlocal left
            if before is None:
                return None
            left = tuple(one for one in before.writers if one.session not in gone)
            return None if left == before.writers else replace(before, writers=left)

        self._change(without)
        self._departed = not stays
        return left

    def complete(self, *, alone: bool = False) -> tuple[Owner, ...]:
        """Have the store to itself in order to complete it; return the writers that are in the way.

        With `alone`, none is: those listed may add no more.
        """
        others: tuple[Owner, ...] = ()

        def completing(before: Holder | None) -> Holder | None:
            nonlocal others
            listed = before is not None and self._owner.session in before.sessions
            if before is None or not (listed or (self._departed and (alone or not before.writers))):
                raise self.taken_over(before)
            others = tuple(one for one in before.writers if one.session != self._owner.session)
            if others and not alone:
                return None
            others = ()
            return replace(before, owner=self._owner, writers=(self._owner,), shared=False, completing=True)

        self._change(completing)
        return others

    def store_exists(self) -> StoreExistsError:
        """Return the error of one that took a store which another one had just made."""
        with contextlib.suppress(OSError, ZarrowError):
            self.require_held()
            self.place.delete(HOLDER)
        return StoreExistsError(f"{self.place}: another writer has made a store here meanwhile")
