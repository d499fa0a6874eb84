"""Interrupts — Ctrl-C at any instruction, signal handlers that use the writer, stores that are moved away."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import zarrow
from zarrow._write import directory
from zarrow.errors import WriteFailedError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]

PACKAGE = f"{Path(zarrow.__file__).parent}{os.sep}"

ROWS = 40


def _append(writer, start, stop, step=5):
    for first in range(start, stop, step):
        ids = np.arange(first, min(first + step, stop))
        writer.append({"id": ids}, {"e": np.repeat(ids[:, None], 4, axis=1).astype("float32")})


def _ids(path, **options):
    store = zarrow.open(path, **options)
    ids = store.table(["id"])["id"].to_pylist()
    assert store["e"][:, 0].tolist() == ids
    return ids


def _run(path):
    with zarrow.Writer(path, mode="a", segment_rows=16) as writer:
        _append(writer, writer.accepted_rows, ROWS)
        writer.finalize()


class _CtrlC:
    """Raises `KeyboardInterrupt` at the given instruction of zarrow's code in this thread."""

    def __init__(self, at):
        self.left = at

    def __enter__(self):
        sys.settrace(self._enter)

    def __exit__(self, *_):
        sys.settrace(None)

    def _enter(self, frame, event, argument):
        if frame.f_code.co_filename.startswith(PACKAGE):
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            return self._step
        return None

    def _step(self, frame, event, argument):
        if event == "opcode":
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
        return self._step


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Python swallows Ctrl-C in __del__
def test_ctrl_c_at_any_instruction_leaves_no_lock(tmp_path, profile, monkeypatch, figures):
    """Wherever Ctrl-C strikes, the same process opens the store again, and no descriptor is closed twice."""
    monkeypatch.setattr(directory, "LOCK_TIMEOUT_S", 2.0)
    _run(tmp_path / "imports")
    counter = _CtrlC(-1)
    with counter:
        _run(tmp_path / "counted")
    instructions = -1 - counter.left
    at = random.Random(0)
    outcomes = {"before_the_end": 0}
    for number in range(3_000 if profile == "long" else 60):
        path = tmp_path / f"{number}"
        try:
            with _CtrlC(at.randrange(1, instructions)):
                _run(path)
        except KeyboardInterrupt:
            outcomes["before_the_end"] += 1
        gc.collect()
        if not (path / "manifest.json").exists():
            _run(path)
        assert _ids(path) == list(range(ROWS))
        shutil.rmtree(path)
    figures("Ctrl-C at an instruction", runs=number + 1, **outcomes)


HANDLER = """
import signal, sys, numpy, zarrow
path, action = sys.argv[1:]
writer = zarrow.Writer(path, segment_rows=4096, queue_bytes=1 << 20)
def append(first):
    ids = numpy.arange(first, first + 512)
    writer.append({"id": ids}, {"e": numpy.repeat(ids[:, None], 64, axis=1).astype("float32")})
def handle(*_):
    if action == "append":
        append((1 << 23))
    elif action == "finalize":
        writer.finalize()
    else:
        getattr(writer, action)()
    if action != "append":
        sys.exit(0)
signal.signal(signal.SIGTERM, handle)
append(0)
print("go", flush=True)
first = 512
while True:
    append(first)
    first += 512
"""


@pytest.mark.parametrize("action", ["flush", "close", "append", "finalize"])
def test_a_signal_handler_may_use_the_writer(tmp_path, action, profile):
    """A SIGTERM handler that flushes, closes, appends or finalizes does not hang, whatever it interrupted."""
    for number in range(40 if profile == "long" else 4):
        path = tmp_path / f"{number}"
        command = [sys.executable, "-c", HANDLER, str(path), action]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"go\n"
            try:
                process.wait(0.05 + 0.03 * (number % 10))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
            if action == "append":
                with pytest.raises(subprocess.TimeoutExpired):  # it goes on appending
                    process.wait(0.3)
                process.kill()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert process.returncode == (-signal.SIGKILL if action == "append" else 0)
        ids = _ids(path, partial=action != "finalize")
        own = [one for one in ids if one < 1 << 23]
        assert own == list(range(len(own)))
        assert (len(ids) - len(own)) in ((0, 512) if action == "append" else (0,))
        shutil.rmtree(path)


def _append_and_finalize(writer, start):
    _append(writer, start, start + 30)
    writer.flush()
    writer.finalize()


@pytest.mark.parametrize("fate", ["moved", "removed", "replaced"])
def test_a_writer_whose_store_is_gone_touches_no_other(tmp_path, fate, profile):
    """What lies at the path of a store that was moved or removed gets no row of its writer, who is told."""
    for fill in range(0, 34, 1 if profile == "long" else 5):
        path, aside = tmp_path / f"{fill}.zarrow", tmp_path / f"{fill}.aside"
        old = zarrow.Writer(path, segment_rows=16)
        _append(old, 0, fill)
        old.flush()
        if fate == "moved":
            path.rename(aside)
        while fate != "moved" and path.exists():  # the writer may be about to prepare a segment
            shutil.rmtree(path, ignore_errors=True)
        with contextlib.nullcontext() if fate != "replaced" else zarrow.Writer(path, segment_rows=16) as new:
            if new is not None:
                _append(new, 1000, 1010)
                new.flush()
            accepted = old.accepted_rows
            with pytest.raises(WriteFailedError) as caught:
                _append_and_finalize(old, fill)
            assert caught.value.errno in (errno.ESTALE, errno.ENOENT)
            if fate == "moved":
                assert str(aside) in str(caught.value)
            if fate == "moved":
                kept = _ids(aside, partial=True) if fill else []
                assert kept == list(range(len(kept)))
                assert len(kept) >= accepted
                assert len(kept) == old.accepted_rows
            with contextlib.suppress(WriteFailedError):  # again
                old.close()
            if new is not None:
                _append(new, 1010, 1030)
                new.finalize()
                assert _ids(path) == list(range(1000, 1030))
