"""Crash states — the states in which a crash can leave a run, and whether they are all sound."""

from __future__ import annotations

import contextlib
import itertools
import random
import secrets
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from typing import NamedTuple
from unittest import mock

from crash.disk import Disk, Recorder, Tree, _apply
from crash.workloads import (
    NAME,
    Recording,
    Workload,
    calls,
    check_state,
    finish_and_check,
    scratch,
    small_chunks,
)
from zarrow._write import declaration


class State(NamedTuple):
    """What a crash left, in words and on disk, and how many rows of every stream must be there."""

    label: str
    tree: Tree
    promise: dict[int, int]


class Tally:
    """Counts states, and keeps the errors of the bad ones."""

    def __init__(self) -> None:
        self.states = 0
        self.distinct = 0
        self.bad: list[str] = []

    def check(self, state: State, judge: Callable[[State], None]) -> None:
        """Judge a state: any exception makes it bad."""
        try:
            judge(state)
        except Exception as error:  # noqa: BLE001 - any exception makes the state bad
            self.bad.append(f"{state.label}: {type(error).__name__}: {error}")


def _accepted(promise: dict[int, tuple[int, int]]) -> dict[int, int]:
    return {stream: rows for stream, (rows, _) in promise.items()}


def _durable(promise: dict[int, tuple[int, int]]) -> dict[int, int]:
    return {stream: rows for stream, (_, rows) in promise.items()}


def _walk(
    recording: Recording, disk: Disk | None = None
) -> Iterator[tuple[int, Disk, dict[int, tuple[int, int]], str]]:
    """Yield the disk before every call and after the last, and the rows promised by then."""
    disk = Disk(recording.base) if disk is None else disk
    for number, call in enumerate(recording.log):
        yield number, disk, call.promise, f"{recording.workload.name}, before call {number}, {call}"
        disk.do(call)
    yield len(recording.log), disk, recording.promise, f"{recording.workload.name}, at the end"


def kills(recording: Recording, *, torn: bool = True) -> Iterator[State]:
    """Yield what a SIGKILL leaves before each call and within each write."""
    for number, disk, promise, label in _walk(recording):
        yield State(label, disk.now(), _accepted(promise))
        if torn and number < len(recording.log) and recording.log[number].name == "pwrite":
            file, data, offset = recording.log[number].args
            node = disk.file(file)
            before = bytes(node.data)
            for size in {1, len(data) // 2, len(data) - 1} - {0, len(data)}:
                _apply(node.data, offset, data[:size])
                yield State(f"{label}, {size} bytes in", disk.now(), _accepted(promise))
                node.data[:] = before


def cuts(
    recording: Recording, rng: random.Random, per_call: int, disk: Disk | None = None, every: int = 1
) -> Iterator[State]:
    """Yield what power cuts may leave: `per_call` states before each call, or before every n-th one."""
    for number, now, promise, label in _walk(recording, disk):
        for _ in range(per_call if number % every == 0 else 0):
            yield State(f"{label}, power cut", now.cut(rng), _durable(promise))


def _judge(state: State, workload: Workload, *, thorough: bool) -> None:
    check_state(state.tree, workload, state.promise, thorough=thorough)


def judge_all(
    states: Iterable[State], workload: Workload, *, thorough_every: int = 1, enough: int = 20
) -> Tally:
    """Check each distinct state once."""
    tally = Tally()
    seen: set[int] = set()
    for state in states:
        tally.states += 1
        key = hash((state.tree, tuple(sorted(state.promise.items()))))
        if key in seen:
            continue
        seen.add(key)
        tally.distinct += 1
        thorough = bool(thorough_every) and tally.distinct % thorough_every == 0
        tally.check(state, partial(_judge, workload=workload, thorough=thorough))
        if len(tally.bad) >= enough:
            break
    return tally


class _Then(datetime):
    @classmethod
    def now(cls, tz: object = None) -> datetime:
        return datetime(2100, 1, 1)


@contextlib.contextmanager
def the_same_names() -> Iterator[None]:
    """Replace random names and clocks by counters, so that equal results of two recoveries are one state."""
    numbers, moments = itertools.count(1), itertools.count(4_000_000_000_000_000_000, 0x1000)
    with (
        mock.patch.object(time, "time_ns", moments.__next__),
        mock.patch.object(secrets, "token_hex", lambda size: f"{next(numbers):0{2 * size}x}"),
        mock.patch.object(secrets, "randbelow", return_value=0),
        mock.patch.object(uuid, "uuid4", (uuid.UUID(int=number) for number in numbers).__next__),
        mock.patch.object(declaration, "datetime", _Then),
    ):
        yield


def record_recovery(
    recording: Recording, calls_before: int, tree: Tree | None = None
) -> tuple[Disk, Recording]:
    """Recover and finalize what a crash left, and record the calls.

    Parameters
    ----------
    recording : Recording
        The run that was killed.
    calls_before : int
        The number of calls before the crash.
    tree : Tree, optional
        What a power cut left; by default the crash is a kill.

    Returns
    -------
    Disk, Recording
        The file system as recovery found it, including what was synced, and recovery's calls.
    """
    disk = Disk(recording.base)
    for call in recording.log[:calls_before]:
        disk.do(call)
    whole = calls_before == len(recording.log)
    promise = recording.promise if whole else recording.log[calls_before].promise
    if tree is None:
        tree = disk.now()
    else:
        disk = Disk(tree)
        promise = {stream: (rows, rows) for stream, (_, rows) in promise.items()}
    workload = recording.workload
    with scratch() as top, small_chunks(workload):
        tree.put(top)
        recorder = Recorder(top)
        recorder.promise = promise
        with calls(recorder), the_same_names():
            finish_and_check(top / NAME, workload, {})
        return disk, Recording(workload, tree, recorder.log, promise, promise, Tree.take(top))
