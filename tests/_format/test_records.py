"""Records — commit records, claims, owners and manifests."""

from __future__ import annotations

from typing import Any

import pytest

from zarrow._format.documents import encode_document
from zarrow._format.records import Claim, Manifest, Owner, SegmentRecord, Source
from zarrow.errors import CorruptionError, InvalidInputError


@pytest.mark.parametrize("kind", [Claim, SegmentRecord, Manifest, Owner])
@pytest.mark.parametrize("body", [{}, {"segment": 1}, {"rows": [], "arrays": 3}])
def test_a_document_of_another_kind_is_refused(kind: Any, body: dict[str, Any]) -> None:
    """A sound checksum over the wrong members is no document either."""
    with pytest.raises(CorruptionError, match="here: breaks the format"):
        kind.decode(encode_document(body), "here")


@pytest.mark.parametrize(
    "place", [("../../../etc/x", 0, 1), ("0" * 16, -1, 1), ("0" * 16, 2, 1), ("A" * 16, 0, 1)]
)
def test_a_source_cannot_point_elsewhere(place: tuple[str, int, int]) -> None:
    """A claim cannot name rows that are not of an open segment of the store."""
    slot, start, stop = place
    with pytest.raises(InvalidInputError, match="not a source"):
        Source(slot=slot, start=start, stop=stop, session="a", sequence=0)
    with pytest.raises(CorruptionError, match="not a source"):
        Claim.decode(encode_document({"segment": 0, "sources": [[*place, "a", 0]]}), "here")


def test_an_owner_introduces_itself() -> None:
    """Messages about an owner say which process, on which machine, since when."""
    owner = Owner(session="c" * 32, sequence=0, host="node7", pid=41, since="2026-01-01T00:00:00+00:00")
    assert str(owner) == "process 41 on node7 since 2026-01-01T00:00:00+00:00"
