"""Several writers to one store in a bucket — no row lost, doubled or torn; who completes it, at what cost."""

import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from cloud import test_writer_faults as faults
from cloud.places import KINDS, Place, dead, faulty, new_url, through
from cloud.test_writer_faults import ROWS, check_complete, stored
from typer.testing import CliRunner

import zarrow
from zarrow._format.bucket import HOLDER, NumberClaim
from zarrow._read import catalog
from zarrow._write import bucket as protocol
from zarrow._write.bucket import Bucket
from zarrow._write.hold import Hold
from zarrow._write.spool import Spool
from zarrow._write.spooled import SpooledStore
from zarrow.cli import app
from zarrow.errors import BatchError, InvalidInputError, StoreLockedError, ZarrowError

RUNS = {"ci": 12, "long": 2_000}
WRITERS = (1, 2, 2, 3, 8)
closed, hasty, quick_dir = faults.closed, faults.hasty, faults.quick_dir


@pytest.fixture(autouse=True)
def impatient(monkeypatch, hasty):
    """Take whoever holds the lowest number to stand still at once."""
    monkeypatch.setattr(protocol, "_STANDSTILL_SECONDS", 0.0)
    monkeypatch.setattr(protocol, "_POLL_SECONDS", 0.0)


def opened(target, spool, *, shared=True, options=None, copies=False) -> zarrow.Writer:
    writer = zarrow.Writer(
        target,
        mode="a",
        keys=["id"],
        segment_rows=faults.SEGMENT_ROWS,
        codecs={"packed": "zstd"},
        storage_options=options,
        spool=spool,
        shared=shared,
        durability=zarrow.Durability(seconds=0.001) if copies else "segment",
    )
    faults.WRITERS.append(writer)
    return writer


class _Process(threading.Thread):
    """A writer on a machine that may die, or stand still, at a request."""

    def __init__(self, url, spool, rows, rng, happened) -> None:
        super().__init__()
        self.spool, self._url, self._rows, self._rng = spool, url, rows, rng
        self._happened = happened
        self._left = itertools.count(rng.choice((1_000, 1_000, rng.randrange(1, 60))), -1)
        self.stands = rng.random() < 0.2
        self.stopped, self.go_on = threading.Event(), threading.Event()
        self._make = faulty(rng, rng.choice((0.0, 0.02)), happened)
        self.accepted, self.opened = 0, False
        self.error: BaseException | None = None

    def _hook(self, name, path, act):
        if self.stands and not self.opened:  # ranks agree on their rows when all have joined
            return act()
        count = next(self._left)
        if count > 0:
            return self._make(name, path, act)
        acts = self._rng.random() < 0.5
        if count == 0 and self.stands:
            self._happened["stood still"] += 1
            made = act() if acts else None
            self.stopped.set()
            self.go_on.wait(60)
            return made if acts else act()
        if self.stands:
            return act()
        if count == 0:
            self._happened["killed"] += 1
            if acts:
                act()
        return dead(name, path, act)

    def run(self) -> None:
        place = Place(self._url, self._hook)
        try:
            writer = opened(place, self.spool, copies=self._rng.random() < 0.5)
            known, self.opened = writer.accepted_rows, True
            try:
                faults.add(writer, self._rows, self._rng.choice((2, 5, 20)))
                writer.flush()
                if self._rng.random() < 0.7:
                    writer.close()
            finally:
                self.accepted = writer.accepted_rows - known
                if not self.stands:
                    place.hook = dead
                with contextlib.suppress(ZarrowError, OSError):
                    writer.close()
        except (ZarrowError, OSError) as error:
            self.error = error
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.stopped.set()


def _rejoin(url, spools) -> None:
    """Put into the bucket what is left on every machine, then take the store over, as a resumed run does."""
    for spool in spools:
        opened(Place(url, through), spool).close()
    opened(Place(url, through), spools[0], shared=False).close()


def run_together(tmp_path, rng, happened) -> None:
    """Write with several writers, which are killed, stand still and lose machines, until all is there."""
    url, machines = new_url(), itertools.count()
    plain = Place(url, through)
    spools = [tmp_path / f"machine {next(machines)}" for _ in range(2)]
    standing: list[_Process] = []
    try:
        _run_together(tmp_path, rng, happened, url, machines, spools, standing)
    finally:
        for one in standing:
            one.go_on.set()
    opened(plain, spools[0]).finalize()
    check_complete(plain)


def _run_together(tmp_path, rng, happened, url, machines, spools, standing) -> None:
    plain = Place(url, through)
    safe: set[int] = set()
    for attempt in range(60):
        _rejoin(url, spools)
        known = set(stored(plain))
        assert safe <= known, "an accepted row is lost"
        left = [row for row in range(ROWS) if row not in known]
        if not left and not standing:
            break
        writers = rng.choice(WRITERS)
        processes = [
            _Process(url, rng.choice(spools), left[number::writers], rng, happened)
            for number in range(writers)
        ]
        for one in processes:
            if one.stands:
                one.spool = tmp_path / f"machine {next(machines)}"
            one.start()
        before = [*standing]
        standing += [one for one in processes if one.stands]
        for one in processes:
            assert one.stopped.wait(60)
        for one in before:  # they wake up when others have gone on
            one.go_on.set()
            one.join(60)
            assert not one.is_alive()
            assert one.error is None or isinstance(one.error, ZarrowError | OSError), one.error
            with contextlib.suppress(InvalidInputError):  # its spool has rows that others have written again
                opened(plain, one.spool).close()
        standing[:] = [one for one in processes if one.stands]
        for one in processes:
            if not one.stands:
                one.join(60)
                assert not one.is_alive()
                safe |= set(one._rows[: one.accepted])
        safe |= set(stored(plain))
        if rng.random() < 0.3:
            happened["lost machine"] += 1
            number = rng.randrange(2)
            on_it = {row for one in processes if one.spool == spools[number] for row in one._rows}
            shutil.rmtree(spools[number], ignore_errors=True)
            spools[number] = tmp_path / f"machine {next(machines)}"
            safe = (safe - on_it) | set(stored(plain))
        assert attempt < 59, "the run never gets complete"


def sweep(tmp_path, runs: int, seed: int) -> dict[str, int]:
    happened = dict.fromkeys((*KINDS, "killed", "stood still", "lost machine"), 0)
    for run in range(runs):
        (tmp_path / str(run)).mkdir()
        try:
            run_together(tmp_path / str(run), random.Random(f"{seed} {run}"), happened)
        except AssertionError as error:
            raise AssertionError(f"run {run}: {error}") from error
    return happened


def test_no_fault_kill_or_standstill_costs_a_row(quick_dir, profile, figures):
    """One to eight writers, wrong answers, kills, lost machines, writers that wake up: each row once."""
    happened = sweep(quick_dir, RUNS[profile], 0)
    figures("runs of several writers to a bucket", runs=RUNS[profile], **happened)
    assert all(happened.values()), happened


# Rules left out


def _waits_for_none(self, _number):
    return None


_CLAIMING = threading.local()  # several writers claim at once


def _takes_committed(self, sources, _claimed=Bucket._claimed):
    _CLAIMING.now = True
    try:
        return _claimed(self, sources)
    finally:
        _CLAIMING.now = False


def _has_record_but_while_claiming(place, number):
    return not getattr(_CLAIMING, "now", False) and catalog.has_record(place, number)


def _releases_by_removing(self, held):
    self._mine.remove(held)
    self.place.delete(held.path)


class _All(set):
    def __and__(self, _other):
        return True


def _adds_any_spool(_self):
    return _All()


def _buries_first(self, spec, _recover=SpooledStore.recover):
    for one in self._spools:
        one.empty()
    return _recover(self, spec)


MUTANTS = {
    "committed numbers are taken again": (Bucket, "_claimed", _takes_committed),
    "a number is left without a claim": (Bucket, "_release", _releases_by_removing),
    "spools of fenced writers are added": (Spool, "sessions", _adds_any_spool),
    "dead writers depart with their rows": (SpooledStore, "recover", _buries_first),
}
LONG = {
    "lower numbers are not waited for": (Bucket, "_lower", _waits_for_none),
    "fenced writers go on": (Hold, "require_held", faults._anybody),
    "tails of fenced writers count": (Hold, "add_tail", faults._adds_tail_to_all),
    "claims that are decided are taken": (Bucket, "_taken", faults._takes_decided),
    "puts without condition": (Bucket, "_put", faults._puts_over),
    "the claim is not asked": (Bucket, "_put", faults._asks_no_claim),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("name", [*MUTANTS, *(pytest.param(name, marks=pytest.mark.long) for name in LONG)])
def test_a_rule_that_is_left_out_is_found(quick_dir, monkeypatch, name):
    """Each rule of the protocol is needed: without it, the test above fails."""
    where, what, mutant = (MUTANTS | LONG)[name]
    monkeypatch.setattr(where, what, mutant)
    found = {**vars(catalog), "has_record": _has_record_but_while_claiming}
    monkeypatch.setattr(protocol, "catalog", SimpleNamespace(**found))
    with pytest.raises((AssertionError, ZarrowError, OSError)):
        sweep(quick_dir, 600 if name in LONG else 60, 1)


class TestTogether:
    """Through a server."""

    def _opened(self, bucket, spool, **options) -> zarrow.Writer:
        options = {"mode": "a", "shared": True, "keys": ["id"], "segment_rows": 16} | options
        writer = zarrow.Writer(
            bucket.url("run.zarrow"), storage_options=bucket.options, spool=spool, **options
        )
        faults.WRITERS.append(writer)
        return writer

    def _ids(self, bucket) -> list[int]:
        store = zarrow.open(bucket.url("run.zarrow"), storage_options=bucket.options, partial=True)
        ids = store.table(["id"])["id"].to_pylist()
        assert store["e"][:][:, 0].tolist() == ids
        return sorted(ids)

    def _add(self, writer, rows) -> None:
        writer.append({"id": list(rows)}, {"e": np.repeat(np.array(rows)[:, None], 4, 1).astype("f4")})

    def test_the_last_one_completes_the_store(self, bucket, tmp_path):
        """Segments of both are committed meanwhile; finalize() of the first leaves its rows, and says so."""
        first, second = (self._opened(bucket, tmp_path / "spool") for _ in range(2))
        for start in range(0, 200, 10):
            self._add((first, second)[start // 10 % 2], range(start, start + 10))
        first.flush(durable=True)
        second.flush()
        with pytest.raises(StoreLockedError, match=r"1 other writers were not closed: process \d+ on"):
            first.finalize()
        first.close()
        assert set(self._ids(bucket)) >= {row for row in range(200) if row // 10 % 2 == 0}
        place = zarrow.open(bucket.url("run.zarrow"), storage_options=bucket.options, partial=True).path
        number = NumberClaim(segment=50, session="", sources=[second._owner.source("0" * 16, 0, 16)])
        place.put_bytes("segments/00000050.claim", number.encode())
        assert zarrow.verify(place).ok  # its rows are in a spool
        place.delete("segments/00000050.claim")
        second.finalize()
        assert self._ids(bucket) == list(range(200))
        store = zarrow.open(bucket.url("run.zarrow"), storage_options=bucket.options)
        assert store.complete
        assert zarrow.verify(store.path, "full").ok
        assert not list((tmp_path / "spool").iterdir())

    def test_of_all_that_finalize_at_once_one_completes_it(self, bucket, tmp_path):
        """Whatever their order, exactly one of four succeeds, and the others are told."""
        writers = [self._opened(bucket, tmp_path / "spool") for _ in range(4)]
        for number, writer in enumerate(writers):
            self._add(writer, range(number * 5, number * 5 + 5))
        told: list[str] = []

        def finalize(writer) -> None:
            try:
                writer.finalize()
            except StoreLockedError as error:
                told.append(str(error))

        threads = [threading.Thread(target=finalize, args=(writer,)) for writer in writers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(told) == 3, told
        assert zarrow.open(bucket.url("run.zarrow"), storage_options=bucket.options).num_rows == 20
        assert self._ids(bucket) == list(range(20))

    def test_finalize_elsewhere_says_whose_rows_are_missing(self, bucket, tmp_path, monkeypatch):
        """It refuses, naming the process; --partial completes the store without, and that one is told."""
        there = self._opened(bucket, tmp_path / "there")
        self._add(there, range(20))
        there.flush(durable=True)
        here = self._opened(bucket, tmp_path / "here")
        self._add(here, range(20, 25))
        here.close()
        monkeypatch.setenv("ZARROW_SPOOL", str(tmp_path / "elsewhere"))
        for name, value in bucket.options.items():
            monkeypatch.setenv(f"AWS_{name.upper()}", str(value))
        url = bucket.url("run.zarrow")
        result = CliRunner().invoke(app, ["finalize", url], env={"COLUMNS": "500"})
        assert result.exit_code == 1
        assert f"process {os.getpid()} on" in result.output
        assert "finalize --partial" in result.output
        self._add(there, [100])  # it goes on
        there.flush()
        result = CliRunner().invoke(app, ["finalize", url, "--partial"], env={"COLUMNS": "500"})
        assert f"complete: {url} has 21 rows" in result.output
        with pytest.raises(StoreLockedError, match="stay in its spool"):
            there.close()
        with pytest.raises(InvalidInputError, match="remove the spool"):
            self._opened(bucket, tmp_path / "there")
        assert self._ids(bucket) == [*range(16), *range(20, 25)]

    def test_another_writer_of_the_machine_adds_the_rows_of_a_killed_one(self, bucket, tmp_path):
        """Without taking the store from a third one, which goes on; no row of it is lost."""
        living = self._opened(bucket, tmp_path / "elsewhere")
        self._add(living, range(100, 110))
        code = f"""
            import os, numpy as np, zarrow
            writer = zarrow.Writer({bucket.url("run.zarrow")!r}, mode="a", shared=True, keys=["id"],
                segment_rows=16, storage_options={bucket.options!r}, spool={str(tmp_path / "spool")!r})
            rows = np.arange(21)
            writer.append({{"id": rows}}, {{"e": np.repeat(rows[:, None], 4, 1).astype("f4")}})
            writer.flush()
            os.kill(os.getpid(), 9)
        """
        process = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
        assert process.returncode == -signal.SIGKILL
        heir = self._opened(bucket, tmp_path / "spool")
        heir.close()
        assert set(range(21)) <= set(self._ids(bucket))
        living.finalize()
        assert self._ids(bucket) == [*range(21), *range(100, 110)]

    def test_a_writer_that_is_not_shared_takes_the_store_over(self, bucket, tmp_path):
        """The others are told at their next segment, and add nothing."""
        others = [self._opened(bucket, tmp_path / "spool") for _ in range(2)]
        for writer in others:
            self._add(writer, range(3))
        alone = self._opened(bucket, tmp_path / "alone", shared=False)
        self._add(alone, range(50))
        for writer in others:
            with pytest.raises(StoreLockedError, match="has taken the store over"):
                writer.close()
        alone.finalize()
        assert self._ids(bucket) == list(range(50))

    def test_all_write_what_the_first_batch_was(self, bucket, tmp_path):
        """A writer with other columns is refused at its first batch; one without any completes the store."""
        first, second, third = (self._opened(bucket, tmp_path / "spool") for _ in range(3))
        self._add(first, range(3))
        with pytest.raises(BatchError, match="expected int64"):
            second.append({"id": ["a"]}, {"e": np.zeros((1, 4), "f4")})
        first.close()
        second.close()
        third.finalize()
        assert self._ids(bucket) == [0, 1, 2]

    def test_a_segment_takes_one_request_more_than_alone(self, bucket, tmp_path):
        """Eight with one array, as long as no other writer commits meanwhile."""
        writer = self._opened(bucket, tmp_path)
        self._add(writer, range(33))
        writer.flush(durable=True)
        bucket.requests.clear()
        self._add(writer, range(33, 81))
        writer.flush(durable=True)
        assert len(bucket.requests) == 3 * 8
        writer.close()
        assert (
            HOLDER
            in zarrow.open(
                bucket.url("run.zarrow"), storage_options=bucket.options, partial=True
            ).path.names()
        )
