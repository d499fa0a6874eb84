"""Two writers of one store — in any interleaving, even if one dies, no row is lost or doubled."""

import contextlib
import inspect
import random
import threading

import pytest

from crash.disk import Killed, Tree
from crash.states import Tally
from crash.workloads import (
    NAME,
    OPTIONS,
    Run,
    Workload,
    calls,
    check_complete,
    check_plain_readers,
    finish_and_check,
    scratch,
    small_chunks,
)
from zarrow._storage import files

pytestmark = pytest.mark.slow

BOTH = Workload("two writers", lambda run: None, {0: 80, 1: 80}, options=OPTIONS)
A, B = 0, 1


class Interleaved(files.Calls):
    """Runs all of B's turn before one call of A's, and can kill A there."""

    def __init__(self):
        self.number = 0
        self.stop_at = -1
        self.turn = None
        self.kills = self.a_dead = False
        self.b = None
        self.b_acts_here = None
        self._lock = threading.Lock()

    def note(self):
        pass

    def _is_b(self):
        thread = threading.current_thread()
        if self.b is None or thread is self.b_acts_here:
            return True
        appender = self.b._appender
        return thread is appender._thread or thread in appender._sealer._threads

    def step(self):
        if self._is_b():
            return
        with self._lock:
            turn = self.number == self.stop_at
            self.number += 1
        if turn:
            self.b_acts_here = threading.current_thread()
            try:
                self.turn()
            finally:
                self.b_acts_here = None
            self.a_dead = self.kills
        if self.a_dead:
            raise Killed


def _wrap(name, real):
    def method(self, *args):
        self.step()
        return real(self, *args)

    setattr(Interleaved, name, method)


for _name, _real in inspect.getmembers(files.Calls, inspect.isfunction):
    if not _name.startswith("_"):
        _wrap(_name, _real)


def run_both(stop_at, kills):
    """Let A write, with B's turn before call `stop_at`; return the number of A's calls."""
    table = Interleaved()
    with scratch() as top, small_chunks(BOTH):
        run = Run(top / NAME, BOTH, table)
        first, second = run.open(A, shared=True), run.open(B, shared=True)
        for stream, writer in ((A, first), (B, second)):
            run.append(writer, 30, stream)
            writer.flush(durable=True)

        def turn():
            run.append(second, 20, B)
            run.append(second, 20, B)
            second.flush(durable=True)

        table.turn, table.stop_at, table.kills, table.b = turn, stop_at, kills, second
        with calls(table):
            with contextlib.suppress(BaseException if kills else ()):
                run.append(first, 40, A)
                first.flush(durable=True)
                run.append(first, 10, A)
                first.close()
            made = table.number
            accepted = {A: run.progress()[A][0], B: run.progress()[B][0]}
            if not kills:
                assert accepted[A] == 80
            table.b_acts_here = threading.current_thread()
            run.append(second, 80 - run.counted[B], B)
            second.close()
            with contextlib.suppress(BaseException):
                first.close()
        accepted[B] = 80
        left = Tree.take(top)
        check_plain_readers(top / NAME, BOTH)
    with scratch() as top:
        left.put(top)
        counts = finish_and_check(top / NAME, BOTH, accepted)
        assert counts[B] == 80
    return made


@pytest.mark.parametrize("kills", [False, True], ids=["both live", "one dies"])
def test_two_writers_lose_and_double_no_row_wherever_one_overtakes_the_other(kills, figures):
    """B fills and seals a segment before any of A's calls; A continues, or is dead from then on."""
    points = run_both(10**9, kills=False)
    tally = Tally()
    for stop_at in range(points):
        tally.states += 1
        try:
            run_both(stop_at, kills)
        except Exception as error:  # noqa: BLE001 - any exception makes the state bad
            tally.bad.append(f"call {stop_at}: {error!r}")
    figures("two writers", interleavings=tally.states, bad=len(tally.bad))
    assert tally.states > 50
    assert not tally.bad, "\n".join(tally.bad[:20])


def test_writers_at_full_speed_do_not_disturb_each_other(figures):
    """Three threads with a writer each make a store with all rows of each, in order."""
    streams = 3
    workload = Workload("threads", lambda run: None, dict.fromkeys(range(streams), 300), options=OPTIONS)
    for seed in range(5):
        with scratch() as top, small_chunks(workload):
            run = Run(top / NAME, workload, Interleaved())
            writers = [run.open(stream, shared=True) for stream in range(streams)]
            run.append(writers[0], 1, 0)
            failed = []

            def write(stream, run=run, writers=writers, seed=seed, failed=failed):
                rng = random.Random(seed * streams + stream)
                try:
                    while run.counted.get(stream, 0) < 300:
                        left = 300 - run.counted.get(stream, 0)
                        run.append(writers[stream], min(left, rng.randint(1, 50)), stream)
                    writers[stream].close()
                except BaseException as error:  # noqa: BLE001 - reported below
                    failed.append(error)

            threads = [threading.Thread(target=write, args=(stream,)) for stream in range(streams)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not failed
            finish_and_check(top / NAME, workload, workload.totals)
            assert check_complete(top / NAME, workload, "threads") == workload.totals
    figures("writers at full speed", runs=5, bad=0)
