"""A plugin of pytest that puts every store of the tests into a bucket in memory.

``pytest -p cloud.in_bucket tests/test_store.py tests/test_writer.py`` checks there what these promise of a
store on a disk. Those that speak of what only a disk has are left out, by name and reason.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from zarrow._maintenance import build_index, copy, pack, repair, verify
from zarrow._storage import objects

assert all((build_index, copy, pack, repair, verify))
os.environ["ZARROW_SPOOL"] = tempfile.mkdtemp()
_located = objects.located


def located(path: object, options: Any = None) -> Any:
    """Return the place in a bucket that stands for a path of a test."""
    found = _located(path, options)
    if isinstance(found, Path) and "pytest-of" in str(found):
        return objects.ObjectPath(f"memory:/{found}", {})
    return found


def stock_readers(path: Path) -> tuple[pa.Table, zarr.Group, list[str]]:
    """Return what others see of a store: its table, its arrays, and what is left below ``open``."""
    place = located(path)
    parts = sorted(place.list("table"))
    tables = [pq.read_table(pa.BufferReader(place.fetch(f"table/{name}").content(1 << 30))) for name in parts]
    group = zarr.open_group(
        zarr.storage.ObjectStore(place.client, read_only=True), path="embeddings.zarr", mode="r"
    )
    return (pa.concat_tables(tables) if tables else pa.table({})), group, [*place.list("open")]


NEEDS_A_DISK = {
    "files are damaged, counted or looked at by their path": """
        test_a_compressed_chunk_is_always_checked test_the_shard_index_of_a_compressed_array
        test_a_truncated_shard_in_the_middle_of_a_scan test_a_damaged_part test_a_missing_last_shard
        test_a_missing_record test_a_missing_record_of_another_segment test_a_checked_read_finds_a_flipped_bit
        test_a_missing_file_of_an_open_segment test_a_flipped_bit_in_a_footer_hides_no_row
        test_no_reader_of_parts_takes_or_waits_for_what_is_none test_a_flipped_bit_in_live_rows
        test_a_stock_reader_sees_the_same test_a_large_store_opens_as_a_small_one_does
        test_files_that_a_filter_on_rows_rules_out_are_not_opened test_a_removed_store
        test_a_store_says_what_it_holds test_a_path_that_engines_cannot_take
        test_a_manifest_that_is_older_than_the_records_does_not_count
        test_too_many_open_segments_for_one_record_are_refused test_no_rows_make_a_store""",
    "arrays are not mapped": "test_plain_rows_are_not_copied test_rows_that_lie_together_are_not_copied",
    "there are directories, links and modes of files": """
        test_no_store test_what_is_no_store_is_left_alone test_a_missing_parent_is_told_at_once
        test_a_parent_that_cannot_be_written_is_told_at_once test_a_link_to_a_store_is_followed
        test_the_default_touches_no_store test_one_of_two_that_begin_a_store_at_once_wins_whole""",
    "a store can be replaced, and what is complete appended to": """
        test_a_replaced_store_is_not_mixed_with_the_old_one test_a_pickle_of_a_store_that_changed
        test_appending_does_not_disturb_a_reader test_reopening_a_complete_store
        test_vectors_of_rows_that_a_query_found_in_a_packed_store
        test_replacing_keeps_the_old_store_until_the_new_one_is_complete test_replacing_may_change_everything
        test_an_abandoned_replacement_leaves_the_old_store test_a_store_that_replaces_another_is_as_private
        test_a_store_replaced_keeps_what_is_not_its_own test_a_store_whose_old_one_was_removed_takes_its_place
        test_a_store_with_a_writer_at_work_is_not_replaced test_appending_extends_what_was_complete
        test_fewer_rows_than_expected_ask_for_partial test_nothing_stays_open
        test_what_lies_where_the_new_store_would_grow_is_left_alone
        test_a_killed_replacement_leaves_the_old_store test_what_a_writer_has_begun_can_be_discarded
        test_files_of_the_user_are_in_place_whenever_a_replacement_dies""",
    "accepted rows are visible at once, in order; in a bucket they are in a spool, or a tail": """
        test_shows_what_was_accepted test_a_call_sees_one_snapshot test_refresh_moves_on
        test_several_writers test_a_view_is_of_one_instant_whatever_writers_do test_an_interrupted_run
        test_appending_resumes_what_was_closed test_an_error_in_the_background_surfaces_at_the_next_call
        test_a_writer_lost_at_the_very_end test_a_clock_that_stands_still_or_runs_backwards""",
    "there are locks, and other processes see the same files": """
        test_a_store_that_is_being_written_names_its_writer test_who_holds_the_lock
        test_shared_writers_make_one_store test_a_forgotten_writer_is_closed_at_exit
        test_a_forked_child_does_not_keep_the_store_of_a_dead_writer
        test_a_killed_run_goes_on_at_exactly_the_next_row""",
    "sealing links and syncs files": """
        test_an_error_while_sealing_surfaces test_an_fsync_that_failed_once_is_not_believed_later""",
}
"""Of what these tests are: `cloud` has its own for most of it, with servers, kills and lost machines."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a disk, and have the helpers of the tests look into the bucket."""
    left_out = {name for names in NEEDS_A_DISK.values() for name in names.split()}
    gone = [one for one in items if one.originalname in left_out]  # type: ignore[attr-defined]
    assert {one.originalname for one in gone} == left_out  # type: ignore[attr-defined]
    config.hook.pytest_deselected(items=gone)
    items[:] = [one for one in items if one not in gone]
    for name, module in [*sys.modules.items()]:
        if name.startswith("zarrow") and getattr(module, "located", None) is _located:
            module.located = located  # type: ignore[attr-defined]
        if hasattr(module, "stock_readers") and name != __name__:
            module.stock_readers = stock_readers  # type: ignore[attr-defined]
