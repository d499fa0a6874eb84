"""zarrow: a hybrid store for what a model's ``predict`` yields.

Narrow columns stream into Parquet, wide vectors into Zarr v3 arrays, and neither is ever held in RAM.
See `Writer` for the way in, `open` and `Store` for the way out, ``zarrow.lightning.PredictionWriter`` for
the Lightning callback, and ``FORMAT.md`` beside this file for what lies on disk.
"""

# Find your way. The first line of every module is the question that it answers; pyproject.toml has the tiers.
#
# A batch comes in   writer, _declaration and _first_batch (which store?), _given, _batches (one of it?),
#                    _queue, _appender (the thread), _open_segment, _shards and _frames
# Sealing a segment  _seal, _parts, _records, _zarr_metadata; every byte through _files
# A writer has died  _lock, _recovery, _reopening
# Rows go out        store, _opened, _catalog and _view (which rows?), _columns, _arrays, _join; _part_files
#                    for Parquet, _mapping for plain bytes, _chunks for encoded ones
# ... found by key   _key_index, _keys, _key_values
# Is all well?       verify, _audit_*, _findings; repair, _mending, _quarantine
# A predict          lightning, _predict_run, _predict_loaders, _prediction_rules, _identifiers, _host_copies
# ... on many ranks  _ranks; resumed: _rows_left, _chosen_batches, _run_identity
# From a shell       cli, _commands, _analysis_commands, _picture_commands; _console, _reports, _store_view

from zarrow._maintenance.build_index import build_index
from zarrow._maintenance.pack import pack
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
