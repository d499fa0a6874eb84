"""Bucket documents — what writers of a store in a bucket tell each other.

On a disk the file system says who writes a store and whose a segment number is. In a bucket two documents do,
each replaced only by one who has seen the version before: the *holder* of the store, at ``open/lock``, which
names the writers that may add rows, and the claim of a segment number, which passes from a writer to the one
that takes over from it, until it is decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zarrow._format.documents import decode_document, encode_document
from zarrow._format.layout import LOCK, OPEN_DIR, is_slot
from zarrow._format.records import Claim, Owner, Source
from zarrow.errors import CorruptionError

__all__ = ["HOLDER", "Holder", "NumberClaim"]

HOLDER = f"{OPEN_DIR}/{LOCK}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who writes a store in a bucket, and the tails that count.

    Parameters
    ----------
    owner : Owner
        The writer that took the store over last, or began it.
    tails : tuple of str
        The names of open segments that writers have left in the bucket, all of whose objects are there.
    writers : tuple of Owner
        Those that may add rows: they were opened, were not closed, and nobody has taken the store from them.
    shared : bool
        Whether others have joined the first of them.
    completing : bool
        Whether the store is being completed by its one writer. Whoever joins takes the store over.
    """

    owner: Owner
    tails: tuple[str, ...] = ()
    writers: tuple[Owner, ...] = ()
    shared: bool = False
    completing: bool = False

    @property
    def sessions(self) -> set[str]:
        """The sessions of the writers."""
        return {one.session for one in self.writers}

    def encode(self) -> bytes:
        """Return the content of its object."""
        owner, *writers = (decode_document(one.encode(), "") for one in (self.owner, *self.writers))
        state = {"shared": self.shared, "completing": self.completing}
        return encode_document({**owner, "tails": list(self.tails), "writers": writers, **state})

    @classmethod
    def decode(cls, data: bytes, path: str) -> Holder:
        """Return the holder in an object; `CorruptionError` if it is damaged."""
        body = decode_document(data, path)
        tails, writers = body.get("tails"), body.get("writers")
        if not isinstance(tails, list) or not all(isinstance(one, str) and is_slot(one) for one in tails):
            raise CorruptionError("breaks the format: tails must be names of open segments", path=path)
        if not isinstance(writers, list) or not all(isinstance(one, dict) for one in writers):
            raise CorruptionError("breaks the format: writers must be a list of owners", path=path)
        return cls(
            owner=Owner.decode(data, path),
            tails=tuple(tails),
            writers=tuple(Owner.decode(encode_document(one), path) for one in writers),
            shared=body.get("shared") is True,
            completing=body.get("completing") is True,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberClaim:
    """A claim of a segment number in a bucket: `Claim`, and how far it has come.

    Parameters
    ----------
    segment : int
        The number.
    session : str
        The writer whose it is; empty if the one that had it has let it go.
    sources : tuple of Source
        The rows that the segment will consist of, once that is known.
    record : bytes or None
        What was decided: the content of the commit record. Nobody can take over the number then.
    """

    segment: int
    session: str
    sources: Sequence[Source] = ()
    record: bytes | None = None

    def encode(self) -> bytes:
        """Return the content of its object."""
        claim = decode_document(Claim(segment=self.segment, sources=tuple(self.sources)).encode(), "")
        record = None if self.record is None else self.record.decode()
        return encode_document({**claim, "session": self.session, "record": record})

    @classmethod
    def decode(cls, data: bytes, path: str) -> NumberClaim:
        """Return the claim in an object; `CorruptionError` if it is damaged."""
        body, claim = decode_document(data, path), Claim.decode(data, path)
        session, record = body.get("session"), body.get("record")
        if not isinstance(session, str) or not isinstance(record, str | None):
            raise CorruptionError("breaks the format: session and record must be text", path=path)
        return cls(
            segment=claim.segment,
            session=session,
            sources=claim.sources,
            record=None if record is None else record.encode(),
        )
