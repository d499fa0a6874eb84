"""Ways of using a store — each tried on hostile stores, in a process of its own."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numcodecs  # noqa: F401 - imported on first use; without this, again in every fork
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.pandas_compat
import pyarrow.parquet
from click.testing import CliRunner
from typer.main import get_command

import zarrow
from zarrow import errors, testing  # noqa: F401
from zarrow.cli import app

WAYS = ("verify", "open", "partial", "write")
READING = (
    *("verify", "repair", "open", "partial", "take", "join", "scan", "locate", "xarray", "zarr"),
    *("info", "info --json", "head", "watch", "zarrow verify", "zarrow repair"),
)
"""Ways that change nothing, on the surfaces of Python and of the command line."""

COMMANDS = get_command(app)
_UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def use(path: str, ways: Sequence[str], report: Connection) -> None:
    """Send the outcome of each way of using the store at `path`, and the bytes of memory they took."""
    report.send(_use(path, ways))


def use_many(ways: Sequence[str], paths: Connection) -> None:
    """Do the same for one path after another, until the other side hangs up."""
    while (path := paths.recv()) is not None:
        paths.send(_use(path, ways))


def _use(path: str, ways: Sequence[str]) -> dict[str, str | int]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _peak_bytes()
    ended: dict[str, str | int] = {way: _attempt(_way_of(path, way)) for way in ways}
    ended["grown_bytes"] = _peak_bytes() - before
    return ended


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _way_of(path: str, way: str) -> Callable[[], str]:
    reads: dict[str, Callable[[zarrow.Store], object]] = {
        "open": _read,
        "partial": _read,
        "take": lambda store: store.take(range(min(4, len(store)))),
        "join": lambda store: list(itertools.islice(store.join(), 2)),
        "scan": lambda store: [batch.num_rows for batch in store.scan(filter=pc.field("id") >= 0)],
        "locate": lambda store: store.locate(pa.table({"id": pa.array([3])})),
        "zarr": lambda store: [store[name].zarr() for name in (*store.arrays, *store.ragged)],
    }
    calls: dict[str, Callable[[], str]] = {
        "verify": lambda: "sound" if zarrow.verify(path, "full").ok else "found",
        "repair": lambda: str(zarrow.repair(path, dry_run=True)) and "found",
        "write": lambda: _write(path),
        "xarray": lambda: _xarray(path),
    }
    if way in reads:
        return lambda: _with(path, way != "open", reads[way])
    if way in calls:
        return calls[way]
    command, *options = way.removeprefix("zarrow ").split()
    options += {"watch": ["--once"], "repair": ["--dry-run"], "verify": ["--level", "full"]}.get(command, [])
    return lambda: _command([command, path, *options])


def _attempt(way: Callable[[], str]) -> str:
    try:
        return way()
    except errors.ZarrowError as error:
        text = f"{type(error).__name__}: {error}"
        return f"BAD unprintable: {text!r}" if _UNPRINTABLE.search(text.replace("\n", "\x00")) else text
    except BaseException as error:  # noqa: BLE001 - every exception is a result
        import traceback

        where = "".join(traceback.format_tb(error.__traceback__)[-4:])
        return f"BAD {type(error).__name__}: {error}\n{where}"


def _with(path: str, partial: bool, read: Callable[[zarrow.Store], object]) -> str:
    with zarrow.open(path, partial=partial) as store:
        read(store)
    return "read"


def _read(store: zarrow.Store) -> None:
    repr(store)
    for batch in store.table(columns=["id", "q"]).to_batches():
        batch.validate(full=True)
    for name in (*store.arrays, *store.ragged):
        repr(store[name])
        store[name][: min(64, len(store[name]))]
    for array in store.ragged.values():
        array[np.arange(min(8, len(array)))[::-1]]
        [array[row] for row in range(min(8, len(array)))]
        array.counts.sum(), array.offsets, array.num_vectors


def _xarray(path: str) -> str:
    import xarray as xr

    with xr.open_dataset(path, engine="zarrow", partial=True) as dataset:
        dataset.isel(row=slice(0, 4)).load()
    return "read"


def _command(arguments: list[str]) -> str:
    done = CliRunner().invoke(COMMANDS, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    if found := _UNPRINTABLE.search(done.output):
        raise AssertionError(f"prints {found[0]!r}: {done.output[:2000]!r}")
    return f"exit {done.exit_code}"


def _write(path: str) -> str:
    with zarrow.Writer(path, mode="a") as writer:
        for start in range(0, 16, 4):
            writer.append(
                {"id": np.arange(start, start + 4), "q": ["a"] * 4},
                {"e": np.zeros((4, 3), "f4"), "z": np.zeros((4, 2), "i2")},
            )
        writer.finalize()
    return "written"
