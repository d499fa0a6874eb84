"""zarrow: a hybrid store for what a model's ``predict`` yields.

Narrow columns stream into Parquet, wide vectors into Zarr v3 arrays, and neither is ever held in RAM.
See `Writer` for the way in, `open` and `Store` for the way out, ``zarrow.lightning.PredictionWriter`` for
the Lightning callback, and ``FORMAT.md`` beside this file for what lies on disk.
"""

from zarrow._key_index import build_index
from zarrow._pack import pack
from zarrow.derived import add_array, remove_array
from zarrow.repair import repair
from zarrow.store import Store, open
from zarrow.verify import verify
from zarrow.writer import Durability, Writer

__all__ = [
    "Durability",
    "Store",
    "Writer",
    "add_array",
    "build_index",
    "open",
    "pack",
    "remove_array",
    "repair",
    "verify",
]
