"""Rows of an open segment that are put into the bucket in time — what the loss of a machine costs then."""

import time

import numpy as np
import pytest
from cloud import test_writer_faults as faults
from cloud.places import Place, new_url, through

import zarrow
from zarrow._format.bucket import HOLDER, Holder
from zarrow._write.spooled import SpooledStore
from zarrow._write.tails import Tails
from zarrow.errors import CorruptionError, InvalidInputError, StoreLockedError, ZarrowError

closed, hasty = faults.closed, faults.hasty


def opened(place, spool, seconds=0.02, **options) -> zarrow.Writer:
    writer = zarrow.Writer(
        place,
        mode="a",
        keys=["id"],
        segment_rows=16,
        codecs={"packed": "zstd"},
        spool=spool,
        durability=zarrow.Durability(seconds=seconds),
        **options,
    )
    faults.WRITERS.append(writer)
    return writer


def add(writer, rows) -> None:
    rows = np.array(rows)
    wide = np.repeat(rows[:, None], 4, 1).astype("f4")
    counts = rows % 4
    tokens = np.repeat(rows, counts)[:, None].repeat(3, 1).astype("f2")
    writer.append({"id": rows}, {"plain": wide, "packed": wide, "tokens": zarrow.Ragged(tokens, counts)})


def tails(place) -> tuple[str, ...]:
    with place.fetch(HOLDER) as file:
        return Holder.decode(file.content(1 << 20), "").tails


def copied(place, count: int) -> None:
    """Wait until the rows of an open segment are there in so many pieces."""
    deadline = time.monotonic() + 60
    while len(tails(place)) < count:
        assert time.monotonic() < deadline, tails(place)
        time.sleep(0.01)


def stored(place) -> list[int]:
    with zarrow.open(place, partial=True) as store:
        ids = store.table(["id"])["id"].to_pylist()
        assert store["plain"][:][:, 0].tolist() == store["packed"][:][:, 0].tolist() == ids
        assert [len(one) for one in store["tokens"][:]] == [row % 4 for row in ids]
        assert all((one == row).all() for one, row in zip(store["tokens"][:], ids, strict=True))
        return ids


@pytest.fixture
def place() -> Place:
    """Return a bucket in memory."""
    return Place(new_url(), through)


def test_a_lost_machine_costs_the_last_seconds(place, tmp_path):
    """Another machine has every row that was copied, an exact prefix, and goes on; the lost one adds none."""
    lost = opened(place, tmp_path / "lost")
    add(lost, range(20))
    copied(place, 1)
    add(lost, range(20, 23))
    copied(place, 2)
    lost._appender._durability = zarrow.Durability()  # nothing more is copied
    add(lost, range(23, 30))
    lost.flush()
    assert stored(place) == list(range(23))
    assert zarrow.verify(place).ok
    heir = opened(place, tmp_path / "elsewhere")
    assert heir.accepted_rows == 23
    add(heir, range(23, 40))
    with pytest.raises(StoreLockedError):
        lost.close()
    with pytest.raises(InvalidInputError, match="remove the spool"):
        opened(place, tmp_path / "lost")
    heir.finalize()
    assert sorted(stored(place)) == list(range(40))
    assert not [name for name in place.names() if name.startswith("open/")]


def test_finalize_elsewhere_completes_the_store_with_them(place, tmp_path):
    """The command's way: together with a writer that was not closed, then without it."""
    add(lost := opened(place, tmp_path / "lost", shared=True), range(20))
    copied(place, 1)
    with pytest.raises(StoreLockedError, match="not closed"):
        opened(place, tmp_path / "elsewhere", shared=True).finalize()
    opened(place, tmp_path / "elsewhere", shared=True).finalize(partial=True)
    assert stored(place) == list(range(20))
    with pytest.raises(StoreLockedError):
        lost.close()


def _life_of_a_segment(place, tmp_path) -> None:
    """Copy rows, fill the segment, and complete the store, through a kill; each row counts once."""
    writer = opened(place, tmp_path)
    add(writer, range(20))
    copied(place, 1)
    assert stored(place) == list(range(20))
    writer._appender._durability = zarrow.Durability()
    add(writer, range(20, 35))
    writer.flush(durable=True)
    assert sorted(stored(place)) == list(range(32))
    assert tails(place) == ()
    writer.close()
    assert sorted(stored(place)) == list(range(35))
    writer = opened(place, tmp_path)
    add(writer, range(35, 39))
    copied(place, 2)
    dead = Place(place._url, lambda *_: faults.dead(*_))
    writer._spooled.tails._place = writer._spooled.bucket.hold.place = dead  # the process is killed
    with pytest.raises((ZarrowError, OSError)):
        writer.close()
    writer = opened(place, tmp_path)
    assert writer.accepted_rows == 39
    assert sorted(stored(place)) == list(range(39))
    add(writer, range(39, 42))
    copied(place, 3)
    writer.finalize()
    assert sorted(stored(place)) == list(range(42))
    assert zarrow.verify(place).ok


def test_they_count_until_their_segment_does(place, tmp_path):
    """They are removed when it is committed or is there as a whole; after a kill they do not count."""
    _life_of_a_segment(place, tmp_path)


def test_verify_reads_them(place, tmp_path):
    """A flipped bit in one is damage; objects of one that does not count are named."""
    writer = opened(place, tmp_path)
    add(writer, range(20))
    copied(place, 1)
    place.put_bytes("open/00000000000000aa/owner.json", b"{}")
    report = zarrow.verify(place)
    assert report.ok
    assert report.open_rows == 4
    assert any("is being put here" in finding.message for finding in report.findings)
    path = f"open/{tails(place)[0]}/plain.rows"
    with place.fetch(path) as file:
        data = bytearray(file.content(1 << 20))
    data[3] ^= 1
    place.put_bytes(path, bytes(data))
    damaged = [one.path for one in zarrow.verify(place).findings if one.severity == "damage"]
    assert damaged == [path]


@pytest.mark.parametrize(
    ("where", "what", "mutant"),
    [
        (SpooledStore, "_without_copies", lambda _self, _spec, left: left),
        (Tails, "remove_copies", lambda _self, _slot: None),
    ],
    ids=["copies are packed", "copies stay"],
)
def test_a_rule_that_is_left_out_is_found(place, tmp_path, monkeypatch, where, what, mutant):
    """Each is needed: without it, the test above fails."""
    monkeypatch.setattr(where, what, mutant)
    with pytest.raises((AssertionError, CorruptionError, ZarrowError)):
        _life_of_a_segment(place, tmp_path)
