"""zarrow — a hybrid store for what a model's ``predict`` yields.

Narrow columns stream into Parquet, wide vectors into Zarr v3 arrays, and neither is ever held in memory.
`Writer` writes a store, `open` and `Store` read it, `zarrow.lightning` has the callback that stores
predictions, and ``FORMAT.md`` describes the bytes.

Modules without an underscore are public. Behind them lie seven rooms, each described by its docstring:
`_format` (bytes and their meaning), `_storage` (disks), `_read` (from a path to rows), `_write` (from a batch
to a committed segment), `_maintenance` (verifying, repairing, rewriting), `_predict` (behind
`zarrow.lightning`) and `_commands` (behind `zarrow.cli`). Imports go downwards only; ``pyproject.toml`` has
the contracts.

Names and modules are imported when they are first used: the command line can then answer Ctrl-C before numpy
and Arrow are loaded, and nobody loads what only an extra brings.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing would take longer than all the rest
if TYPE_CHECKING:
    from typing import Any

    from zarrow._format.ragged import Ragged, ragged
    from zarrow._maintenance.build_index import build_index
    from zarrow._maintenance.copy import copy
    from zarrow._maintenance.pack import pack
    from zarrow._maintenance.repair import repair
    from zarrow._maintenance.verify import verify
    from zarrow.derived import add_array, remove_array
    from zarrow.several import union
    from zarrow.store import Store, open
    from zarrow.writer import Durability, Writer

__all__ = [
    "Durability",
    "Ragged",
    "Store",
    "Writer",
    "add_array",
    "build_index",
    "copy",
    "open",
    "pack",
    "ragged",
    "remove_array",
    "repair",
    "union",
    "verify",
]

_HOMES = {
    "Durability": "writer",
    "Ragged": "_format.ragged",
    "Store": "store",
    "Writer": "writer",
    "add_array": "derived",
    "build_index": "_maintenance.build_index",
    "copy": "_maintenance.copy",
    "open": "store",
    "pack": "_maintenance.pack",
    "ragged": "_format.ragged",
    "remove_array": "derived",
    "repair": "_maintenance.repair",
    "union": "several",
    "verify": "_maintenance.verify",
}
_DOORS = {
    "analysis",
    "demo",
    "derived",
    "errors",
    "everyquery",
    "lightning",
    "ray",
    "several",
    "store",
    "testing",
    "torch",
    "transfer",
    "writer",
    "xarray",
}
_NEEDED = {
    "demo": "lightning",
    "everyquery": "lightning",
    "lightning": "lightning",
    "ray": "ray",
    "torch": "torch",
    "xarray": "xarray",
}
"""The packages without which a door does not open."""


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOMES:
        value = getattr(import_module(f"zarrow.{_HOMES[name]}"), name)
    elif name in _DOORS:
        value = import_module(f"zarrow.{name}")
    elif name == "__version__":
        from importlib.metadata import version

        value = version("zarrow")
    else:
        raise AttributeError(f"module 'zarrow' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    from importlib.util import find_spec

    # Without doors whose package is missing: `help` imports all that is listed.
    closed = {door for door, package in _NEEDED.items() if find_spec(package) is None}
    return sorted({*globals(), *_HOMES, *_DOORS, "__version__"} - closed)
