"""State machine — in any order of appending, flushing, dying and finalizing, the store follows its model."""

import contextlib

import numpy as np
import pytest
from crash.disk import Tree
from crash.workloads import (
    NAME,
    OPTIONS,
    TOKENS,
    TWO,
    Run,
    Workload,
    check_complete,
    check_plain_readers,
    check_promise,
    scratch,
    small_chunks,
    vectors_of,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import zarrow
from zarrow.errors import ZarrowError

pytestmark = pytest.mark.slow

PLAIN = Workload(
    "machine",
    lambda run: None,
    {},
    arrays=TWO | {"t": TOKENS["t"]},
    options=OPTIONS | {"segment_rows": 16},
    chunk_bytes=64,
)
ZSTD = Workload(
    "zstd",
    lambda run: None,
    {},
    arrays=TWO | {"z": TOKENS["z"]},
    options=PLAIN.options | {"codecs": "zstd"},
    chunk_bytes=64,
)

SNAPSHOTS_KEPT = 20
"""More snapshots of thousands of segments would exceed the number of maps that a process may have."""


class _Silent:
    def note(self):
        pass


class Machine(RuleBasedStateMachine):
    """A store, at most two writers of it, and the number of rows that each stream must have."""

    workload = PLAIN

    def __init__(self):
        super().__init__()
        self.tops = contextlib.ExitStack()
        self.top = self.tops.enter_context(scratch())
        self.run = Run(self.top / NAME, self.workload, _Silent())
        self.open = {}
        self.next_stream = 0
        self.snapshots = []
        self.looked_at = None
        self.chunks = small_chunks(self.workload)
        self.chunks.__enter__()

    def teardown(self):
        self._close_all()
        for store, _ in self.snapshots:
            store.close()
        self.chunks.__exit__(None, None, None)
        self.tops.close()

    def _close_all(self):
        for writer in self.open.values():
            with contextlib.suppress(ZarrowError):
                writer.close()
        self.open.clear()

    @property
    def path(self):
        return self.top / NAME

    @precondition(lambda self: len(self.open) < 2)
    @rule()
    def open_a_writer(self):
        """Each writer writes its own stream; the first recovers what dead ones left."""
        stream = self.next_stream
        self.next_stream += 1
        writer = self.run.open(stream, shared=True)
        if not self.open:
            assert writer.accepted_rows == sum(self.run.counted.values())
        self.open[stream] = writer
        self.run.counted.setdefault(stream, 0)

    @precondition(lambda self: self.open)
    @rule(batches=st.lists(st.integers(0, 40), min_size=1, max_size=4), which=st.integers(0, 1))
    def append(self, batches, which):
        stream = list(self.open)[which % len(self.open)]
        for rows in batches:
            self.run.append(self.open[stream], rows, stream)

    @precondition(lambda self: self.open)
    @rule(durable=st.booleans(), which=st.integers(0, 1))
    def flush(self, durable, which):
        writer = list(self.open.values())[which % len(self.open)]
        writer.flush(durable=durable)
        assert writer.accepted_rows == writer.queued_rows
        assert writer.durable_rows <= writer.accepted_rows
        if durable:
            assert writer.durable_rows == writer.accepted_rows

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 1))
    def close(self, which):
        stream = list(self.open)[which % len(self.open)]
        self.open.pop(stream).close()

    @precondition(lambda self: self.open)
    @rule(flushed=st.booleans())
    def crash(self, flushed):
        """Every process dies; later ones find what is on the disk now."""
        if flushed:
            for writer in self.open.values():
                writer.flush()
        for stream, writer in self.open.items():
            writer._appender.stop()  # queued rows die with the process
            self.run.counted[stream] = self.run.progress()[stream][0]
        tree = Tree.take(self.top)
        for writer in self.open.values():
            writer._release()
        self.open.clear()
        self.run.writers.clear()
        self.top = self.tops.enter_context(scratch())
        tree.put(self.top)
        self.run.path = self.path

    @precondition(lambda self: self.next_stream and not self.open and self._has_store())
    @rule()
    def finalize(self):
        self.looked_at = None
        self.run.open(self.next_stream).finalize()
        self.run.writers.clear()
        counts = check_complete(self.path, self.workload, "finalized", stock=False)
        check_promise(counts, self.run.counted, self.run.counted, "finalized")
        with zarrow.open(self.path) as store:
            assert store.complete
            assert store.num_rows == sum(self.run.counted.values())

    def _has_store(self):
        return (self.path / "zarrow.json").exists()

    @precondition(lambda self: self._has_store())
    @rule()
    def take_a_snapshot(self):
        store = zarrow.open(self.path, partial=True)
        ids = store.table(columns=["id"])["id"].to_numpy()
        self.snapshots.append((store, ids))
        self._check_snapshot(store, ids)
        if len(self.snapshots) > SNAPSHOTS_KEPT:
            self.snapshots.pop(0)[0].close()

    @precondition(lambda self: self.snapshots)
    @rule(which=st.integers(0, 100))
    def read_an_old_snapshot(self, which):
        """A snapshot still reads the same rows, whatever writers did since, or raises `StoreChangedError`."""
        store, ids = self.snapshots[which % len(self.snapshots)]
        with contextlib.suppress(zarrow.errors.StoreChangedError):
            self._check_snapshot(store, ids)

    def _check_snapshot(self, store, ids):
        for name, expected in vectors_of(self.workload.arrays, ids).items():
            got = store[name][np.arange(len(ids))]
            same = got == expected if name in store.ragged else np.array_equal(got, expected)
            assert same, f"{name} of a snapshot of {len(ids)} rows"

    @invariant()
    def stock_readers_see_committed_rows_only(self):
        steps = (self.path, dict(self.run.counted), self.next_stream)
        if not self.open and self._has_store() and self.looked_at != steps:
            check_plain_readers(self.path, self.workload, stock=False)
            self.looked_at = steps


class Compressed(Machine):
    """The same machine with encoded chunks and tail files."""

    workload = ZSTD


@pytest.mark.parametrize("machine", [Machine, Compressed], ids=["plain", "compressed"])
def test_a_store_follows_its_model(machine, profile, figures):
    """Any sequence of steps leaves exactly the appended rows, in each writer's order."""
    examples, steps = {"ci": (60, 60), "long": (1_000, 500)}[profile]  # per machine
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=profile == "ci",
            suppress_health_check=list(HealthCheck),
        ),
    )
    figures("state machine", runs=examples, steps=examples * steps, bad=0)
