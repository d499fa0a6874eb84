"""Faults — a system call is refused; the writer reports it and the safe rows, and the store reopens."""

import contextlib
import errno
import random

import pytest

from crash.disk import Disk, Recorder, Tree
from crash.states import State, Tally
from crash.workloads import (
    NAME,
    WORKLOADS,
    Run,
    calls,
    check_state,
    finish_and_check,
    record,
    scratch,
    small_chunks,
)
from zarrow._storage import files
from zarrow._write import directory
from zarrow.errors import WriteFailedError, ZarrowError

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    monkeypatch.setattr(directory, "LOCK_TIMEOUT_S", 0.0)


KINDS = {
    "pwrite": ("ENOSPC", "EDQUOT", "EIO", "short", "EINTR", "nothing", "dead"),
    "fsync": ("EIO", "ENOSPC", "EDQUOT", "dead"),
    "fsync_dir": ("EIO", "dead"),
    "open": ("ENOSPC", "EMFILE", "EIO", "dead"),
    "mkdir": ("ENOSPC", "EDQUOT", "EIO", "dead"),
    "link": ("ENOSPC", "EMLINK", "EIO", "dead"),
    "rename": ("ENOSPC", "EIO", "dead"),
    "unlink": ("EIO", "EACCES", "dead"),
    "rmdir": ("EIO", "dead"),
    "ftruncate": ("EIO", "EFBIG", "dead"),
}


class Faulty(Recorder):
    """Refuses one call, or carries out a part of it."""

    def __init__(self, top, number, kind=None, turn=0):
        super().__init__(top)
        self.target, self.kind, self.turn = number, kind, turn
        self.hit, self.hit_call = None, ""
        self.before = self.fault

    def fault(self, number, name, args):
        if number != self.target:
            return None
        kinds, self.hit_call = KINDS[name], name
        self.hit = kind = self.kind if self.kind is not None else kinds[(number + self.turn) % len(kinds)]
        if kind not in kinds:
            self.hit = None
            return None
        if kind == "dead":
            self.dead = True
            return None
        if kind == "short":
            file, data, offset = args
            part = data[: max(1, len(data) // 2)]

            def short():
                self.torn(file, part, offset)
                return len(part)

            return short
        if kind == "nothing":
            return lambda: 0

        def refuse():
            raise OSError(getattr(errno, kind), f"refused by the test ({kind})")

        return refuse


def run_with_fault(recording, number, kind, turn, rng):
    """Run a workload with one call refused and judge the outcome; return the kind of the fault."""
    workload, base = recording.workload, recording.base
    with scratch() as top, small_chunks(workload):
        recorder = Faulty(top, number, kind, turn)
        run = Run(top / NAME, workload, recorder)
        base.put(top)
        run.counted = {stream: rows for stream, (rows, _) in recording.base_promise.items()}
        recorder.promise = dict(recording.base_promise)
        recorder.progress = run.progress
        error = None
        with calls(recorder):
            try:
                workload.script(run)
            except BaseException as raised:  # noqa: BLE001 - Killed is one, and all are judged
                error = raised
            writers = [writer for writer, _ in run.writers.values()]
            for writer in writers:
                with contextlib.suppress(BaseException):
                    writer.close()
        promise = recorder.note()
        if recorder.hit is None:
            return None
        if recorder.hit == "short":
            assert error is None, f"a short write was not continued: {error!r}"
        elif recorder.hit != "dead" and error is not None:
            wanted = errno.EIO if recorder.hit == "nothing" else getattr(errno, recorder.hit)
            assert isinstance(error, OSError), f"not an OSError: {error!r}"
            assert error.errno == wanted, f"errno {error.errno}, the system said {recorder.hit}"
            if isinstance(error, WriteFailedError) and writers:
                for writer in writers:
                    assert error.durable_rows <= error.accepted_rows <= writer.queued_rows
                with contextlib.suppress(StopIteration), pytest.raises((ZarrowError, OSError)):
                    writers[-1].append({"id": [1], "s": ["x"]}, {})
        accepted = {stream: rows for stream, (rows, _) in promise.items()}
        durable = {stream: rows for stream, (_, rows) in promise.items()}
        if error is None:
            accepted = dict(run.counted)  # no fault was reported, so nothing may be missing
        after = Tree.take(top)
        if recorder.hit != "dead":  # a writer that raised must have released the store
            finish_and_check(top / NAME, workload, accepted)
    if recorder.hit == "dead":
        check_state(after, workload, accepted, thorough=False)
    if recorder.hit_call.startswith("fsync") and recorder.hit != "dead":
        disk = Disk(base)
        for call in recorder.log:
            disk.do(call)
        # A failed fsync leaves what a power cut leaves: the kernel has dropped the bytes.
        check_state(disk.cut(rng), workload, durable, thorough=False)
    return recorder.hit


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_refused_call_loses_no_accepted_row_and_is_not_swallowed(name, figures, profile):
    """After any failed call the writer raises its errno, and all accepted rows are still there."""
    workload, rng = WORKLOADS[name], random.Random(name)
    tally, kinds = Tally(), {}
    kinds_tried = (None,) if profile == "ci" else sorted({kind for some in KINDS.values() for kind in some})
    recording = record(workload)
    numbers = len(recording.log)
    turn = list(WORKLOADS).index(name)
    every, first = (2, turn // 2 % 2) if profile == "ci" else (1, 0)  # so that all kinds are tried
    for number in range(first, numbers, every):
        for kind in kinds_tried:
            state = State(f"{name}, call {number}, {kind}", None, {})

            def judge(state, number=number, kind=kind):
                hit = run_with_fault(recording, number, kind, turn, rng)
                if hit is not None:
                    tally.states += 1
                    kinds[hit] = kinds.get(hit, 0) + 1

            tally.check(state, judge)
    figures("faults at calls", calls=numbers, faults=tally.states, bad=len(tally.bad), **kinds)
    assert not tally.bad, "\n".join(tally.bad[:20])


class FirstSync(Faulty):
    """Refuses the first fsync of a shard, found by its name, because its number depends on the threads."""

    def fault(self, number, name, args):
        if self.target is None and name == "fsync" and args[1].endswith("e.rows"):
            self.target = number
        return super().fault(number, name, args)


def test_an_fsync_that_failed_is_not_tried_again():
    """A writer whose fsync failed never calls fsync on that file again."""
    workload = WORKLOADS["small"]
    with scratch() as top, small_chunks(workload):
        recorder = FirstSync(top, None, "EIO")
        run = Run(top / NAME, workload, recorder)
        with calls(recorder), pytest.raises(WriteFailedError):
            workload.script(run)
        with calls(recorder), pytest.raises((WriteFailedError, ZarrowError)):
            run.writers[0][0].close()
        again = [call for call in recorder.log if call.name == "fsync" and call.args[1].endswith("e.rows")]
        assert recorder.hit == "EIO"
        assert not again, f"the one that failed was call {recorder.target}: {again}"


def test_a_write_that_writes_nothing_and_reports_no_error_is_an_error(tmp_path):
    """A file system that writes nothing without reporting an error does not hang the writer."""
    with calls(files.Calls()) as table:
        table.pwrite = lambda fd, data, offset: 0
        fd = files.create(tmp_path / "file")
        with pytest.raises(OSError, match="wrote nothing"):
            files.write(fd, b"rows", 0)
