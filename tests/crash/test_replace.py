"""Replacing a store — the old one stays in place and complete until the new one is."""

import random

import pytest

from crash.disk import Disk, Recorder, Tree
from crash.states import State, Tally
from crash.workloads import (
    NAME,
    OPTIONS,
    TWO,
    Run,
    Workload,
    calls,
    check_complete,
    check_plain_readers,
    scratch,
    small_chunks,
)

pytestmark = pytest.mark.slow

OLD, NEW = {0: 70}, {1: 90}
WORKLOAD = Workload("replace", lambda run: None, NEW, arrays=TWO, options=OPTIONS | {"segment_rows": 64})


def write_new(run):
    """Replace the store after an earlier attempt that left an incomplete one."""
    run.counted[1] = 0
    writer = run.open(1, mode="w")
    run.append(writer, 40, 1)
    writer.close()
    run.counted[1] = 0
    writer = run.open(1, mode="w")
    for rows in (50, 40):
        run.append(writer, rows, 1)
    writer.finalize()


def judge(state):
    """Check that either the old or the new store is there and complete, and can be replaced again."""
    with scratch() as top:
        state.tree.put(top)
        check_plain_readers(top / NAME, WORKLOAD, stock=False)
        counts = check_complete(top / NAME, WORKLOAD, "as found", stock=False, tidy=False)
        assert counts in (OLD, NEW), f"{counts} rows, neither the old store nor the new one"
        if state.promise:
            assert counts == NEW, "the new store was finalized, the old one is there"
        with small_chunks(WORKLOAD):
            run = Run(top / NAME, WORKLOAD, Recorder(top))
            writer = run.open(1, mode="w")
            run.append(writer, 90, 1)
            writer.finalize()
        assert check_complete(top / NAME, WORKLOAD, "replaced", stock=False) == NEW
        assert sorted(entry.name for entry in top.iterdir()) == [NAME]


def test_a_store_being_replaced_is_there_whole_at_every_instant(figures):
    """After a kill or a power cut at any call, the path holds all old rows or all new ones."""
    rng = random.Random(3)
    with scratch() as top, small_chunks(WORKLOAD):
        recorder = Recorder(top)
        run = Run(top / NAME, WORKLOAD, recorder)
        writer = run.open(0)
        run.append(writer, 70, 0)
        writer.finalize()
        base = Tree.take(top)
        run.writers.clear()
        with calls(recorder):
            write_new(run)
    disk = Disk(base)
    tally = Tally()
    for number, call in enumerate(recorder.log):
        for label, tree in (("killed", disk.now()), ("power cut", disk.cut(rng))):
            tally.states += 1
            tally.check(State(f"{label} before call {number}, {call}", tree, {}), judge)
        disk.do(call)
    for tree in (disk.now(), *(disk.cut(rng) for _ in range(5))):
        tally.states += 1
        tally.check(State("at the end", tree, NEW), judge)
    figures("replacing a store", calls=len(recorder.log), states=tally.states, bad=len(tally.bad))
    assert not tally.bad, "\n".join(tally.bad[:20])
