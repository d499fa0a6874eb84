"""Bucket documents — what writers of a store in a bucket tell each other.

On a disk the file system says who writes a store and whose a segment number is. In a bucket two documents do,
each replaced only by one who has seen the version before: the *holder* of the store, at ``open/lock``, and
the claim of a segment number, which passes from a writer to the one that takes over from it, until it is
decided.
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
        The writer that took the store over last.
    tails : tuple of str
        The names of open segments that writers have left in the bucket, all of whose objects are there.
    """

    owner: Owner
    tails: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """Return the content of its object."""
        owner = decode_document(self.owner.encode(), "")
        return encode_document({**owner, "tails": list(self.tails)})

    @classmethod
    def decode(cls, data: bytes, path: str) -> Holder:
        """Return the holder in an object; `CorruptionError` if it is damaged."""
        tails = decode_document(data, path).get("tails")
        if not isinstance(tails, list) or not all(isinstance(one, str) and is_slot(one) for one in tails):
            raise CorruptionError("breaks the format: tails must be names of open segments", path=path)
        return cls(owner=Owner.decode(data, path), tails=tuple(tails))


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberClaim:
    """A claim of a segment number in a bucket: `Claim`, and how far it has come.

    Parameters
    ----------
    segment : int
        The number.
    session : str
        The writer whose it is.
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
