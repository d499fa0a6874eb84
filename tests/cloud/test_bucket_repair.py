"""Repair of a store in a bucket — as on a disk, also if it ends at any request, or a spool has rows."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import obstore
import pytest
from cloud.places import Place, dead, new_url, through
from test_repair import ROWS, append, expected, vectors
from typer.testing import CliRunner

import zarrow
from zarrow._format.bucket import HOLDER
from zarrow._storage.objects import located
from zarrow._write.quarantine import AsideInBucket
from zarrow._write.spooled import SpooledStore
from zarrow._write.tails import Tails
from zarrow.cli import app
from zarrow.errors import (
    CorruptionError,
    IncompleteStoreError,
    StoreChangedError,
    StoreLockedError,
    ZarrowError,
)

SEGMENT_ROWS = 8


@pytest.fixture(autouse=True)
def spool(tmp_path, monkeypatch) -> None:
    """Have spools in a directory of the test."""
    monkeypatch.setenv("ZARROW_SPOOL", str(tmp_path / "spool"))


def write(place: Any, *, finalize: bool) -> zarrow.Writer:
    """Write a store whose row r has the sample_index 1000 − r."""
    writer = zarrow.Writer(place, keys=["id"], segment_rows=SEGMENT_ROWS, codecs={"z": "zstd"})
    for start in range(0, ROWS, 5):
        append(writer, 1000 - np.arange(start, min(start + 5, ROWS)))
        writer.flush()
    if finalize:
        writer.finalize()
    writer.close()
    return writer


@pytest.fixture
def complete() -> str:
    """A complete store: four segments of eight rows, and one of five."""
    url = new_url()
    write(url, finalize=True)
    return url


@pytest.fixture
def unfinished() -> str:
    """An incomplete store: four segments of eight rows, and a tail of five."""
    url = new_url()
    write(url, finalize=False)
    return url


def get(url: str, path: str) -> bytes:
    return bytes(obstore.get(located(url).client, path).bytes())


def names(url: str, below: str = "") -> list[str]:
    found = [one["path"] for page in obstore.list(located(url).client) for one in page]
    return sorted(one for one in found if one.startswith(below))


def flip(url: str, path: str, byte: int = 20) -> None:
    data = bytearray(get(url, path))
    data[byte] ^= 1
    obstore.put(located(url).client, path, bytes(data))


def delete(url: str, path: str) -> None:
    obstore.delete(located(url).client, path)


def shard(number: int, name: str = "e") -> str:
    return f"embeddings.zarr/{name}/c/{number}/0"


def samples_in(url: Any) -> list[int]:
    """Return the sample_index values of all rows, after checking their vectors and columns."""
    with zarrow.open(url, partial=True) as opened:
        table = opened.table()
        samples = table["sample_index"].to_numpy()
        assert table["id"].to_pylist() == samples.tolist()
        assert table["row"].to_pylist() == list(range(len(samples)))
        np.testing.assert_array_equal(opened["e"][:], vectors(samples, 3))
        np.testing.assert_array_equal(opened["z"][:], vectors(samples, 2).astype("i4"))
    return sorted(samples.tolist())


def resume(url: str, missing: list[int]) -> None:
    with zarrow.Writer(url, mode="a") as writer:
        append(writer, np.array(missing))
        writer.finalize()


@pytest.mark.parametrize(
    ("template", "lost"),
    [
        *(("complete", lost) for lost in ((0,), (3,), (4,), (0, 1), (0, 4), (0, 1, 2), (2, 3, 4))),
        *(("unfinished", lost) for lost in ((0,), (3,), (1, 3), (0, 1, 2, 3))),
    ],
)
def test_damaged_segments_go_aside(request, template, lost):
    """Exactly the damaged rows are removed and listed; once predicted again, the store is complete."""
    url = request.getfixturevalue(template)
    for number in lost:
        flip(url, shard(number))
    plan = zarrow.repair(url, dry_run=True)
    done = zarrow.repair(url)
    assert (plan.set_aside, plan.moved_rows) == (done.set_aside, done.moved_rows)
    assert [one.segment for one in done.set_aside] == list(lost)
    missing = sorted({*expected()} - {*expected(*lost)})
    assert list(done.sample_index) == missing
    report = zarrow.verify(url, "full")
    assert [str(one) for one in report.findings if "quarantine" not in one.path] == []
    assert not report.complete
    with pytest.raises(IncompleteStoreError):
        zarrow.open(url)
    assert samples_in(url) == expected(*lost)
    assert zarrow.repair(url).nothing_to_do
    resume(url, missing)
    assert samples_in(url) == expected()
    assert zarrow.verify(url, "full").complete
    assert zarrow.verify(url, "full").ok


@pytest.mark.parametrize(
    "harm",
    [
        lambda url: flip(url, "segments/00000001.json"),
        lambda url: delete(url, "segments/00000001.json"),
        lambda url: flip(url, "table/part-00000001.parquet"),
        lambda url: delete(url, "table/part-00000001.parquet"),
        lambda url: delete(url, shard(1, "z")),
    ],
    ids=["record", "lost record", "part", "lost part", "lost shard"],
)
def test_whatever_is_damaged_of_a_segment_the_rest_of_it_goes_too(complete, harm):
    """A segment is set aside as a whole, and none of its objects is lost."""
    harm(complete)
    of_it = ["segments/00000001.json", "table/part-00000001.parquet", shard(1), shard(1, "z")]
    left = {get(complete, path) for path in of_it if path in names(complete)}
    (aside,) = zarrow.repair(complete).set_aside
    assert left <= {get(complete, path) for path in names(complete, aside.to)}
    assert samples_in(complete) == expected(1)
    assert zarrow.verify(complete, "full").ok


def test_rows_that_can_be_read_stay(complete):
    """A shard without its index costs no row; the segment gets new bytes, and the store is completed."""
    flip(complete, shard(1), -1)
    reader = zarrow.open(complete)
    done = zarrow.repair(complete, finalize=True)
    assert (done.set_aside[0].kept_rows, done.sample_index) == (8, ())
    assert samples_in(complete) == expected()
    assert zarrow.verify(complete, "full").complete
    for ask in (lambda: reader["e"][:], reader.table):
        with pytest.raises(StoreChangedError, match="open it again"):
            ask()


def tail_of(url: str) -> str:
    return names(url, "open/1")[0].rpartition("/")[0]


def test_a_damaged_tail_goes_aside(unfinished):
    """Its damaged rows are listed; what can still be read and checked stays."""
    flip(unfinished, f"{tail_of(unfinished)}/e.rows", 0)
    done = zarrow.repair(unfinished)
    assert list(done.sample_index) == [1000 - row for row in (34, 33, 32)]
    assert samples_in(unfinished) == sorted([*expected(4), 964, 965])
    resume(unfinished, list(done.sample_index))
    assert samples_in(unfinished) == expected()
    assert zarrow.verify(unfinished, "full").ok


@pytest.mark.parametrize("name", ["owner.json", "the holder", "more in the journal"])
def test_what_says_whose_a_tail_is_costs_no_row(unfinished, name):
    """A damaged owner or holder, or bytes behind the rows: all rows stay."""
    if name == "the holder":
        flip(unfinished, HOLDER)
    elif name == "owner.json":
        flip(unfinished, f"{tail_of(unfinished)}/{name}")
    else:
        path = f"{tail_of(unfinished)}/table.frames"
        obstore.put(located(unfinished).client, path, get(unfinished, path) + b"more" * 100)
    assert not zarrow.verify(unfinished).ok
    done = zarrow.repair(unfinished)
    assert (done.sample_index, done.nameless_rows) == ((), 0)
    assert samples_in(unfinished) == expected()
    assert zarrow.verify(unfinished, "full").ok
    assert zarrow.repair(unfinished).nothing_to_do
    resume(unfinished, [1])
    assert samples_in(unfinished) == [1, *expected()]


def test_what_is_derived_is_made_again(complete):
    """Zarr's metadata, statistics and the key index: the store stays complete, and has the same rows."""
    zarrow.build_index(complete)
    identity = zarrow.open(complete).identity
    for path in ("embeddings.zarr/zarr.json", "statistics.arrow", "index/keys.index"):
        flip(complete, path)
    assert not zarrow.repair(complete).set_aside
    report = zarrow.verify(complete, "full")
    assert report.findings == ()
    assert report.complete
    assert zarrow.open(complete).identity == identity
    assert names(complete, "open/") == []


def test_strays_and_a_damaged_manifest_go_aside(complete):
    """What Parquet readers would take for rows is moved; without its manifest the store is incomplete."""
    obstore.put(located(complete).client, "table/part-00000009.parquet", b"not a part")
    zarrow.repair(complete)
    assert zarrow.verify(complete).complete
    assert "quarantine/stray-0-0/part-00000009.parquet" in names(complete)
    flip(complete, "manifest.json")
    assert not zarrow.verify(complete).ok
    zarrow.repair(complete)
    assert not zarrow.verify(complete).complete
    zarrow.repair(complete, finalize=True)
    assert zarrow.verify(complete, "full").complete
    assert samples_in(complete) == expected()


def test_a_sound_store_is_left_alone(complete, unfinished):
    """No object is put, and a writer that is at work is not overtaken."""
    before = {path: get(complete, path) for path in names(complete)}
    assert zarrow.repair(complete).nothing_to_do
    assert before == {path: get(complete, path) for path in names(complete)}
    with zarrow.Writer(unfinished, mode="a") as writer:
        append(writer, np.arange(3))
        writer.flush()
        assert zarrow.repair(unfinished).nothing_to_do
        writer.finalize()
    assert samples_in(unfinished) == sorted([*expected(), 0, 1, 2])


def test_a_writer_at_work_is_overtaken(unfinished):
    """It stops with an error, and none of its later rows get in."""
    flip(unfinished, shard(0))
    writer = zarrow.Writer(unfinished, mode="a", spool=None)
    append(writer, np.arange(3))
    writer.flush()
    with pytest.raises(StoreLockedError):  # of its spool, on this machine
        zarrow.repair(unfinished)
    writer.close()
    zarrow.repair(unfinished)
    assert samples_in(unfinished) == sorted([*expected(0), 0, 1, 2])


def test_what_is_written_during_the_audit_is_noticed(unfinished, monkeypatch):
    """Rows that got in after the audit are not judged by it."""
    flip(unfinished, shard(0))

    def progress(done: int, total: int) -> None:
        if done == total:
            with zarrow.Writer(unfinished, mode="a") as writer:
                append(writer, np.arange(9))

    with pytest.raises(StoreChangedError, match="repair it again"):
        zarrow.repair(unfinished, progress=progress)
    zarrow.repair(unfinished)
    assert samples_in(unfinished) == sorted([*expected(0), *range(9)])


def test_the_rows_of_a_spool_get_in(unfinished, monkeypatch):
    """A killed writer's rows on this machine are put there first, though what they follow is damaged."""
    writer = zarrow.Writer(unfinished, mode="a")
    append(writer, np.arange(11))  # a segment, and three rows that follow it
    writer.flush()
    writer._appender.stop()
    writer._release()
    assert not names(unfinished, "open/0")
    flip(unfinished, shard(4))
    done = zarrow.repair(unfinished)
    assert list(done.sample_index) == list(range(8))
    assert samples_in(unfinished) == sorted([*expected(), 8, 9, 10])


def test_the_command_takes_a_url(complete):
    """As on a disk: the exit code says that there is damage, and the rows to predict again are listed."""
    flip(complete, shard(1))
    memory = CliRunner().invoke(app, ["repair", complete, "--dry-run"])
    assert memory.exit_code == 1, memory.output
    assert "985" in memory.output
    assert CliRunner().invoke(app, ["repair", complete]).exit_code == 0
    assert samples_in(complete) == expected(1)


def harmed(template: str) -> tuple[str, list[int]]:
    url = new_url()
    write(url, finalize=template == "complete")
    flip(url, shard(0))
    flip(url, "segments/00000002.json")
    if template == "unfinished":
        flip(url, f"{tail_of(url)}/e.rows", 0)
        return url, sorted([*expected(0, 2, 4), 964, 965])
    return url, expected(0, 2)


class Ending:
    """A process that ends at its change of this number, which the bucket makes or not."""

    def __init__(self, number: int, *, acts: bool) -> None:
        self.left = number
        self.acts = acts
        self.ended = False

    def __call__(self, name: str, path: str, act: Callable[[], Any]) -> Any:
        if self.ended:
            return dead(name, path, act)
        if name in ("put", "put_if", "put_bytes", "copy", "delete"):
            if not self.left:
                self.ended = True
                if self.acts:
                    act()
                return dead(name, path, act)
            self.left -= 1
        return act()


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["the request", "its answer"])
@pytest.mark.parametrize("template", ["complete", "unfinished"])
def test_a_repair_that_ends_at_any_request_is_finished_by_the_next(
    template: str, lost: str, profile: str, figures: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a writer: no sound row is lost or doubled, no damaged object discarded."""
    states = sweep(template, lost, 1 if profile == "long" else 3, monkeypatch)
    figures("a repair in a bucket that ends at a request", states=states, bad=0)
    assert states > 10


def sweep(template: str, lost: str, step: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """End a repair at every change of this step, finish it, and return how often it was ended."""
    monkeypatch.setattr("zarrow._write.bucket._PATIENCE_SECONDS", ())
    monkeypatch.setattr("zarrow._storage.conditional._AGAIN_SECONDS", ())
    for number in itertools.count(0, step):
        url, left = harmed(template)
        originals = {get(url, path) for path in (shard(0), shard(2), "segments/00000002.json")}
        hook = Ending(number, acts=lost == "its answer")
        with contextlib.suppress(OSError):
            zarrow.repair(Place(url, hook))
        what = f"{template}, without {lost} {number}"
        if not zarrow.verify(url).counts["damage"]:
            found = samples_in(url)
            assert len({*found}) == len(found), what
            assert {*found} <= {*left}, what
        if hook.ended and (number // step) % 2:
            with contextlib.suppress(CorruptionError):
                zarrow.Writer(url, mode="a").close()
        zarrow.repair(Place(url, through))
        report = zarrow.verify(url, "full")
        assert report.ok, (what, report.findings)
        assert samples_in(url) == left, what
        assert originals <= {get(url, path) for path in names(url, "quarantine/")}, what
        if not hook.ended:
            return number // step + 1
    raise AssertionError("there is no last number")


MUTANTS = {
    "tails rely on records that go": (SpooledStore, "_detach_tails", lambda *_: None),
    "a segment is withdrawn before its rows are elsewhere": (Tails, "put_built", lambda *_: "0" * 16),
    "nothing is kept": (AsideInBucket, "keep", lambda *_: None),
    "what was kept is not removed": (AsideInBucket, "clear", lambda *_: None),
    "gaps stay": (SpooledStore, "_close_gaps", lambda *_: None),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_rule_that_is_left_out_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step is needed: without it, the test above fails."""
    monkeypatch.setattr(*MUTANTS[name])
    with pytest.raises((AssertionError, ZarrowError, OSError)):
        sweep("complete", "its answer", 3, monkeypatch)
