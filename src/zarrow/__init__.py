"""zarrow — a hybrid store for what a model's ``predict`` yields.

Narrow columns stream into Parquet, wide vectors into Zarr v3 arrays, and neither is ever held in memory.
`Writer` writes a store, `open` and `Store` read it, `zarrow.lightning` has the callback that stores
predictions, and ``FORMAT.md`` describes the bytes.

Modules without an underscore are public. Behind them lie seven rooms, each described by its docstring:
`_format` (bytes and their meaning), `_storage` (disks), `_read` (from a path to rows), `_write` (from a batch
to a committed segment), `_maintenance` (verifying, repairing, rewriting), `_predict` (behind
`zarrow.lightning`) and `_commands` (behind `zarrow.cli`). Imports go downwards only; ``pyproject.toml`` has
the contracts.
"""

from typing import Any

from zarrow._maintenance.build_index import build_index
from zarrow._maintenance.copy import copy
from zarrow._maintenance.pack import pack
from zarrow.derived import add_array, remove_array
from zarrow.repair import repair
from zarrow.several import union
from zarrow.store import Store, open
from zarrow.verify import verify
from zarrow.writer import Durability, Writer

__all__ = [
    "Durability",
    "Store",
    "Writer",
    "add_array",
    "build_index",
    "copy",
    "open",
    "pack",
    "remove_array",
    "repair",
    "union",
    "verify",
]

_LATER = {"analysis", "everyquery", "lightning", "testing", "torch", "transfer", "xarray"}
"""Modules that are imported when they are first used, since they load what an extra brings."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        from importlib import import_module

        return import_module(f"zarrow.{name}")
    if name == "__version__":
        from importlib.metadata import version

        return version("zarrow")
    raise AttributeError(f"module 'zarrow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_LATER, "__version__"]
