"""Worker — a thread with a bounded queue, and what becomes of its items and errors."""

import subprocess
import sys
import threading
import time

import pytest

from zarrow._write.worker import ITEM_BYTES, Worker

MIB = 1 << 20


class Recorder(Worker[int]):
    """Notes what it worked on, once the gate is open."""

    def __init__(self, limit_bytes: int = 32 * MIB) -> None:
        self.groups: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        super().__init__("recorder", limit_bytes)

    def work(self, items: list[int]) -> None:
        self.groups.append(items)
        self.gate.wait()
        if 13 in items:
            raise ValueError("thirteen")


@pytest.fixture
def worker():
    worker = Recorder()
    yield worker
    worker.gate.set()
    worker.stop()


def until(condition) -> None:
    """Wait for what another thread is about to do."""
    for _ in range(10_000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("it never came to pass")


def test_items_are_worked_on_in_order_and_a_call_comes_behind_them(worker):
    """A function that is called sees the work on every item put before it."""
    seen = []
    for first in range(0, 1000, 100):
        for number in range(first, first + 100):
            worker.put(number + 100, 10)
        worker.call(lambda: seen.append(sum(map(len, worker.groups))))
    assert [item for group in worker.groups for item in group] == list(range(100, 1100))
    assert seen == list(range(100, 1100, 100))


def test_small_items_come_together_and_large_ones_alone(worker):
    """A group has a few MiB; a larger item is a group of its own."""
    worker.gate.clear()
    worker.put(0, 10)
    until(lambda: worker.groups)
    for number in range(1, 9):
        worker.put(number, MIB - ITEM_BYTES)
    worker.put(9, 8 * MIB)
    worker.put(10, 10)
    worker.gate.set()
    worker.call()
    assert worker.groups == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9], [10]]


@pytest.mark.parametrize("size_bytes", [MIB, 100 * MIB])
def test_whoever_puts_more_than_the_limit_waits(size_bytes):
    """Queued items and those in work stay below the limit; an item beyond it waits to be alone."""
    worker = Recorder(limit_bytes=4 * MIB)
    worker.gate.clear()
    put = []

    def fill() -> None:
        for number in range(8):
            worker.put(number, size_bytes - ITEM_BYTES)
            put.append(number)

    filler = threading.Thread(target=fill)
    filler.start()
    until(lambda: worker._waiting)
    assert len(put) == max(1, 4 * MIB // size_bytes)
    worker.gate.set()
    filler.join()
    worker.call()
    assert [item for group in worker.groups for item in group] == list(range(8))
    worker.stop()


def test_an_error_ends_the_thread_and_drops_what_is_behind(worker):
    """The error is kept for the caller, who is never left waiting."""
    worker.gate.clear()
    worker.put(13, 10)
    until(lambda: worker.groups)
    worker.put(14, 10)
    worker.gate.set()
    worker.call()
    assert isinstance(worker.error, ValueError)
    worker.put(15, 100 * MIB)
    worker.call()
    worker.stop()
    assert worker.groups == [[13]]


def test_a_stop_lets_a_waiting_caller_go():
    """A caller waiting for space returns when the worker is stopped, and its item is dropped."""
    worker = Recorder(limit_bytes=MIB)
    worker.gate.clear()
    worker.put(0, MIB)
    until(lambda: worker.groups)
    waiting = threading.Thread(target=worker.put, args=(1, MIB))
    waiting.start()
    until(lambda: worker._waiting)
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    waiting.join()
    worker.gate.set()
    stopping.join()
    assert worker.groups == [[0]]


def test_a_forgotten_owner_is_closed_at_the_end_of_the_interpreter():
    """No queued item is lost if its owner is never closed, or was lost a moment ago."""
    code = """
import time, weakref
from zarrow._write.worker import Worker, close_at_exit
class Prints(Worker):
    def work(self, items):
        time.sleep(0.1)
        print(*items)
class Owner:
    def __init__(self, name):
        self.worker = Prints(name, 1 << 20)
        close_at_exit(weakref.ref(self), self.worker)
    def close(self):
        print("closed")
owner, lost = Owner("owner"), Owner("lost")
lost.worker.put("queued", 1)
lost.worker.end_with(lambda: print("ended"))
del lost
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout == "queued\nended\nclosed\n"
