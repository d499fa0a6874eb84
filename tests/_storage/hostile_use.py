"""Ways of using a store — each tried on hostile stores by ``test_hostile``, in a process of its own."""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

import numcodecs  # noqa: F401 - imported on first use; without this, again in every fork
import numpy as np
import pyarrow.pandas_compat  # noqa: F401

import zarrow
from zarrow import errors, testing  # noqa: F401

WAYS = ("verify", "open", "partial", "write")


def use(path: str, ways: Sequence[str], report: Connection) -> None:
    """Send the outcome of each way of using the store at `path`, and the bytes of memory they took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    use = {
        "verify": lambda: "sound" if zarrow.verify(path, "full").ok else "found",
        "open": lambda: _read(path, partial=False),
        "partial": lambda: _read(path, partial=True),
        "write": lambda: _write(path),
    }
    ended: dict[str, str | int] = {way: _attempt(use[way]) for way in ways}
    ended["grown_bytes"] = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    report.send(ended)


def _attempt(way: Callable[[], str]) -> str:
    try:
        return way()
    except errors.ZarrowError as error:
        return f"{type(error).__name__}: {error}"
    except BaseException as error:  # noqa: BLE001 - every exception is a result
        return f"BAD {type(error).__name__}: {error}"


def _read(path: str, *, partial: bool) -> str:
    with zarrow.open(path, partial=partial) as store:
        for batch in store.table(columns=["id", "q"]).to_batches():
            batch.validate(full=True)
        for name in store.arrays:
            store[name][: min(64, len(store[name]))]
    return "read"


def _write(path: str) -> str:
    with zarrow.Writer(path, mode="a") as writer:
        for start in range(0, 16, 4):
            writer.append(
                {"id": np.arange(start, start + 4), "q": ["a"] * 4},
                {"e": np.zeros((4, 3), "f4"), "z": np.zeros((4, 2), "i2")},
            )
        writer.finalize()
    return "written"
