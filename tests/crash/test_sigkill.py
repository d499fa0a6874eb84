"""SIGKILL of a writer — a real process, killed at a random moment."""

import contextlib
import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crash.states import Tally
from crash.workloads import NAME, OPTIONS, TWO, Run, Workload, finish_and_check, scratch, small_chunks

pytestmark = pytest.mark.slow

ROWS = 320
PLAIN = Workload("plain", lambda run: None, {0: ROWS}, arrays=TWO, options=OPTIONS | {"segment_rows": 64})
ZSTD = Workload("zstd", lambda run: None, {0: ROWS}, arrays=TWO, options=PLAIN.options | {"codecs": "zstd"})

# Forks a writer per command, so that modules are imported only once.
SERVER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from crash import test_sigkill
from crash.workloads import scratch
for codecs in ("plain", "zstd"):  # import also what is imported only on use
    with scratch() as top:
        test_sigkill.write(str(top), codecs, "0")
for line in sys.stdin:
    child = os.fork()
    if not child:
        test_sigkill.write(*line.rstrip("\\n").split("\\t"))
        os._exit(0)
    sys.stdout.write(f"{child}\\n")
    sys.stdout.flush()
    os.waitpid(child, 0)
    sys.stdout.write("ended\\n")
    sys.stdout.flush()
"""


class _Silent:
    """A recorder that records nothing."""

    def note(self):
        pass


def write(top: str, codecs: str, seed: str) -> None:
    """Write rows in random batches, and report how many are accepted and durable, until killed."""
    workload = ZSTD if codecs == "zstd" else PLAIN
    rng = random.Random(int(seed))
    reported = os.open(Path(top) / "reported", os.O_WRONLY | os.O_CREAT)
    run = Run(Path(top) / NAME, workload, _Silent())
    with small_chunks(workload):
        writer = run.open(durability=rng.choice(("segment", "batch")))
        left = ROWS
        while left:
            rows = min(left, rng.choice((1, 3, 16, 40, 64, 100)))
            run.append(writer, rows)
            left -= rows
            if rng.random() < 0.5:
                writer.flush(durable=rng.random() < 0.3)
            os.pwrite(reported, struct.pack("<QQ", writer.accepted_rows, writer.durable_rows), 0)
        os.pwrite(reported, struct.pack("<QQ", writer.accepted_rows, writer.durable_rows), 0)
        writer.finalize()


def test_a_writer_killed_at_random_loses_no_row_that_it_called_accepted(figures, profile):
    """After a SIGKILL at any time, every row reported as accepted is there, once and correct."""
    rng = random.Random(12)
    tally = Tally()
    killed = 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(Path(__file__).parent.parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    longest_s = 0.05
    with server:
        for number in range(200 if profile == "ci" else 10_000):
            workload = rng.choice((PLAIN, ZSTD))
            with scratch() as top:
                server.stdin.write(f"{top}\t{workload.name}\t{number}\n")
                server.stdin.flush()
                started = time.monotonic()
                child = int(server.stdout.readline())
                time.sleep(rng.random() * longest_s)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                assert server.stdout.readline() == "ended\n"
                path = top / NAME
                if (path / "manifest.json").exists():
                    longest_s = max(0.01, min(longest_s, time.monotonic() - started) * 0.95)
                else:
                    killed += 1
                    longest_s = min(longest_s * 1.05, 2.0)
                reported = top / "reported"
                data = reported.read_bytes() if reported.exists() else b""
                accepted, durable = struct.unpack("<QQ", data) if len(data) == 16 else (0, 0)
                tally.states += 1
                try:
                    assert durable <= accepted
                    if path.exists():
                        finish_and_check(path, workload, {0: accepted})
                    else:
                        assert not accepted
                except Exception as error:  # noqa: BLE001 - any exception makes the state bad
                    tally.bad.append(f"kill {number} ({workload.name}): {error!r}")
        server.stdin.close()
    figures("random SIGKILL of a writer", runs=tally.states, before_the_end=killed, bad=len(tally.bad))
    assert killed > tally.states // 3, "most runs ended before they were killed, so this tests little"
    assert not tally.bad, "\n".join(tally.bad[:20])
