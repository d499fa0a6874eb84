"""Agreement — partial reader, audit and recovery count the same rows of whatever a crash leaves."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import zarrow
from crash.disk import Tree
from crash.states import State, Tally, cuts, kills, record_recovery
from crash.workloads import (
    NAME,
    WORKLOADS,
    Recording,
    Workload,
    check_complete,
    check_promise,
    check_rows,
    record,
    require,
    scratch,
    small_chunks,
)
from zarrow.errors import CorruptionError
from zarrow.writer import Writer

pytestmark = pytest.mark.slow

STATES = {"ci": 20, "long": 4_000}  # of each kind, for each of eight workloads


def read(path: Path, workload: Workload) -> dict[int, int]:
    """Return the rows of every stream that a partial reader shows, after checking them."""
    with zarrow.open(path, partial=True) as store:
        table = store.table()
        vectors = {name: store[name].read(0, len(table), check="crc") for name in workload.arrays}
        return check_rows(workload, table["id"].to_numpy(), table["s"].to_pylist(), vectors, "partial reader")


def recover(path: Path, workload: Workload) -> dict[int, int]:
    """Return the rows of every stream that recovery keeps."""
    with small_chunks(workload):
        Writer(path, **workload.options).finalize()
    return check_complete(path, workload, "recovered", stock=False)


def compare(state: State, workload: Workload, *, damaged: bool = False) -> bool:
    """Check that reader, audit and recovery agree on a state; tell whether they show its rows.

    What a crash leaves they show. What is damaged they show or refuse, and the audit calls it damage if they
    refuse it.
    """
    with scratch() as top:
        state.tree.put(top)
        path = top / NAME
        if not (path / "zarrow.json").exists():
            return False
        report = zarrow.verify(path)
        try:
            seen = read(path, workload)
        except CorruptionError as error:
            require(damaged, f"the reader refuses it: {error}")
            require(report.counts["damage"] > 0, f"the reader refuses it, the audit does not: {error}")
            if not (path / "manifest.json").exists():  # else there is nothing to recover
                with contextlib.suppress(CorruptionError):
                    recover(path, workload)
                    require(False, f"the reader refuses it, recovery does not: {error}")
            return False
        counted = report.rows + report.open_rows
        if not report.counts["damage"]:
            require(counted == sum(seen.values()), f"the audit counts {counted} rows, the reader {seen}")
        complete = (path / "manifest.json").exists()
        try:
            kept = recover(path, workload)
        except CorruptionError as error:  # a reader of a complete store does not look at open segments
            require(damaged and complete and report.counts["damage"] > 0, f"recovery refuses it: {error}")
            return True
        require(seen == kept, f"the reader shows {seen}, recovery keeps {kept}")
        if not damaged:
            check_promise(kept, state.promise, workload.totals, "recovered")
        return True


def some(states: Iterator[State], count: int, rng: random.Random) -> Iterator[State]:
    """Yield a sample of distinct states."""
    distinct = {hash(state.tree): state for state in states}
    yield from rng.sample(list(distinct.values()), min(count, len(distinct)))


def crashes(recording: Recording, count: int, rng: random.Random) -> Iterator[State]:
    """Yield what kills, power cuts, and kills in the recovery from kills leave."""
    yield from some(kills(recording, torn=False), count, rng)
    yield from some(cuts(recording, rng, -(-2 * count // len(recording.log))), count, rng)
    for point in rng.sample(range(len(recording.log)), max(1, count // 20)):
        yield from some(kills(record_recovery(recording, point)[1], torn=False), 20, rng)


def _counts(name: str) -> bool:
    """Tell whether a file decides which rows there are."""
    return "/segments/" in name or ("/open/" in name and "/tmp-" not in name and not name.endswith("/lock"))


def flips(recording: Recording, count: int, rng: random.Random) -> Iterator[State]:
    """Yield what kills leave, with a bit of an open segment, a claim or a record flipped, or a file lost."""
    for state in some(kills(recording, torn=False), count, rng):
        links = Counter(number for _, number in state.tree.names)  # a shard in place is left to verify
        names = [one for one in state.tree.names if _counts(one[0]) and links[one[1]] == 1]
        if not names:
            continue
        name, number = rng.choice(names)
        contents = dict(state.tree.contents)
        if "/open/" in name and (rng.random() < 0.3 or not contents[number]):
            left = tuple(one for one in state.tree.names if one[0] != name)
            tree = Tree(state.tree.dirs, left, state.tree.contents)
            yield State(f"{state.label}, without {name}", tree, {})
            continue
        data = bytearray(contents[number])
        bit = rng.randrange(len(data) * 8)
        data[bit // 8] ^= 1 << bit % 8
        contents[number] = bytes(data)
        tree = Tree(state.tree.dirs, state.tree.names, tuple(contents.items()))
        yield State(f"{state.label}, bit {bit} of {name}", tree, {})


@pytest.mark.parametrize("name", WORKLOADS)
def test_reader_audit_and_recovery_agree_on_what_a_crash_leaves(name, figures, profile):
    """Of every crash state the reader shows the rows that recovery keeps, and the audit counts them."""
    rng, tally, shown = random.Random(name), Tally(), []
    workload = WORKLOADS[name]
    for state in crashes(record(workload), STATES[profile], rng):
        tally.states += 1
        tally.check(state, lambda state: shown.append(compare(state, workload)))
    figures("agreement after a crash", states=tally.states, shown=sum(shown), bad=len(tally.bad))
    assert not tally.bad, "\n".join(tally.bad[:20])


@pytest.mark.parametrize("name", WORKLOADS)
def test_reader_audit_and_recovery_agree_on_what_is_damaged(name, figures, profile):
    """Of what is damaged they show the same rows, without a hole, or all of them refuse it."""
    rng, tally, shown = random.Random(name), Tally(), []
    workload = WORKLOADS[name]
    for state in flips(record(workload), 3 * STATES[profile], rng):
        tally.states += 1
        tally.check(state, lambda state: shown.append(compare(state, workload, damaged=True)))
    figures("agreement on damage", states=tally.states, shown=sum(shown), bad=len(tally.bad))
    assert not tally.bad, "\n".join(tally.bad[:20])
