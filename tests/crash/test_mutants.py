"""Mutants of the protocol — without any one of its steps, the crash tests find a wrong store."""

import contextlib
import fnmatch
import random
import sys
from dataclasses import replace

import pytest

from crash import test_bits
from crash.disk import Recorder
from crash.states import cuts, judge_all, kills, record_recovery
from crash.workloads import NAME, WORKLOADS, record, scratch, small_chunks
from zarrow._format import frames, journal, layout, zarr_metadata
from zarrow._read import catalog, shard_rows
from zarrow._storage import files
from zarrow._write import publishing, recovery, seal, shards
from zarrow._write.open_segment import OpenSegment
from zarrow.errors import CorruptionError, ZarrowError

pytestmark = pytest.mark.slow

MUTANTS = {}


def mutant(workload="straddling", way="cuts"):
    """Register a change of the protocol, and the search that must find it."""

    def register(change):
        MUTANTS[change.__name__.strip("_").replace("_", " ")] = (change, workload, way)
        return change

    return register


# A missing fsync


class Forgetful(Recorder):
    """Silently skips the sync of paths that match a pattern."""

    def __init__(self, top, pattern):
        super().__init__(top)
        self.pattern = pattern

    def fsync(self, fd):
        if not fnmatch.fnmatchcase(self.path_of(fd), self.pattern):
            super().fsync(fd)

    def fsync_dir(self, path):
        if not fnmatch.fnmatchcase(self._relative(path), self.pattern):
            super().fsync_dir(path)


HEX = "[0-9a-f]" * 16
UNSYNCED = {
    "shard": (f"{NAME}/open/*/e.rows", "small"),
    "journal": (f"{NAME}/open/{HEX}/table.frames", "small"),
    "tails of a compressed array": (f"{NAME}/open/*/e.tail?", "compressed"),
    "part": (f"{NAME}/open/*/part.parquet", "straddling"),
    "documents": (f"{NAME}/open/tmp-{HEX}", "straddling"),
    "directory of records": (f"{NAME}/segments", "straddling"),
    "directory of parts": (f"{NAME}/table", "straddling"),
    "directory of a shard": (f"{NAME}/embeddings.zarr/e/c/*", "straddling"),
    "directory of shards": (f"{NAME}/embeddings.zarr/e/c", "straddling"),
    "directory of an array": (f"{NAME}/embeddings.zarr/e", "straddling"),
    "directory of arrays": (f"{NAME}/embeddings.zarr", "straddling"),
    "directory of open segments": (f"{NAME}/open", "straddling"),
    "directory of an open segment": (f"{NAME}/open/{HEX}", "many arrays"),
    "directory of the store": (NAME, "small"),
    "directory above the store": (".", "small"),
}


# Two steps swapped


@contextlib.contextmanager
def patched(owner, name, make):
    """Replace an attribute by something made from the original."""
    real = getattr(owner, name)
    raw = owner.__dict__[name]
    setattr(owner, name, make(real))
    try:
        yield
    finally:
        setattr(owner, name, raw)


@mutant()
@contextlib.contextmanager
def _record_before_shards():
    waiting = []

    def place(real):
        return lambda *args: waiting.append(lambda: real(*args))

    def commit(real):
        def early(*args):
            real(*args)
            while waiting:
                waiting.pop(0)()

        return early

    with patched(seal, "_place_shard", place), patched(publishing, "commit", commit):
        yield


@mutant()
@contextlib.contextmanager
def _record_before_part():
    waiting = []

    def rename(real):
        return lambda one, two: waiting.append((one, two)) if one.name == layout.PART else real(one, two)

    def commit(real):
        def late(*args):
            real(*args)
            for one, two in waiting:
                files.calls.rename(str(one), str(two))
            waiting.clear()

        return late

    with patched(files, "rename", rename), patched(publishing, "commit", commit):
        yield


@mutant(way="kills")
@contextlib.contextmanager
def _shape_before_record():
    def commit(real):
        def early(root, record, scratch):
            spec = catalog.read_spec(root)
            rows = record.segment * spec.segment_rows + record.rows
            data = zarr_metadata.group_json(spec, rows)
            files.replace(root / layout.ARRAYS_DIR / "zarr.json", data, scratch=scratch)
            real(root, record, scratch)

        return early

    with patched(publishing, "commit", commit):
        yield


@mutant(way="kills")
@contextlib.contextmanager
def _records_of_open_segments_not_read():
    with patched(catalog, "read_records_for", lambda real: lambda *args: []):
        yield


@mutant(way="kills")
@contextlib.contextmanager
def _open_segment_gone_before_its_record():
    def commit(real):
        def late(root, record, scratch):
            for source in record.sources:
                path = root / layout.slot_dir(source.slot)
                if path.exists():
                    aside = files.scratch_name(path.parent)
                    files.rename(path, aside)
                    files.rename(aside, path) if record.segment != 1 else None
            real(root, record, scratch)

        return late

    def discard(real):
        return lambda path: real(path) if path.exists() else None

    with (
        patched(publishing, "commit", commit),
        patched(seal, "discard", discard),
        patched(recovery, "discard", discard),
    ):
        yield


@mutant("reopen and append", "kills")
@contextlib.contextmanager
def _segment_taken_back_before_its_copy_is_there():
    def enter(real):
        def late(self, root):
            publishing.withdraw_manifest(root)
            publishing.uncommit(root, self.spec, self.owner.reopens[0], root / layout.OPEN_DIR)
            real(self, root)

        return late

    with patched(OpenSegment, "enter", enter):
        yield


@mutant("reopen and append", "kills")
@contextlib.contextmanager
def _manifest_left_while_appending():
    with patched(publishing, "withdraw_manifest", lambda real: lambda root: None):
        yield


@mutant("finalize", "kills")
@contextlib.contextmanager
def _manifest_before_the_tails_are_packed():
    def pack(real):
        def late(root, spec, *args, **options):
            publishing.publish_manifest(root, spec, None, root / layout.OPEN_DIR)
            real(root, spec, *args, **options)

        return late

    with patched(recovery, "_pack", pack):
        yield


@mutant("small")
@contextlib.contextmanager
def _open_segment_removed_before_its_name_is():
    def discard(real):
        def unsynced(path):
            aside = files.scratch_name(path.parent)
            files.rename(path, aside)
            files.remove_tree(aside)

        return unsynced

    with patched(seal, "discard", discard), patched(recovery, "discard", discard):
        yield


@mutant("small")
@contextlib.contextmanager
def _rows_called_durable_that_were_not_synced():
    def sync(real):
        def lie(self):
            self.durable_rows = self.rows

        return lie

    with patched(OpenSegment, "sync", sync):
        yield


# A check removed


@mutant("small")
@contextlib.contextmanager
def _row_bytes_not_checked():
    with patched(shard_rows, "sound_frames", lambda real: lambda *args: lambda frames: True):
        yield


@mutant("none", "bits")
@contextlib.contextmanager
def _frames_not_checked():
    def nothing(_real):
        return lambda *args: 0

    with patched(frames, "crc32c", nothing), patched(journal, "crc32c", nothing):
        yield


@mutant("straddling")
@contextlib.contextmanager
def _rows_after_a_gap_kept():
    def blind(real):
        return lambda *args: replace(real(*args), behind={}, damage={})

    with patched(recovery, "visible_rows", blind):
        yield


@mutant("reopen and append", "kills")
@contextlib.contextmanager
def _copy_of_a_committed_segment_counted():
    with patched(
        OpenSegment,
        "enter",
        lambda real: (
            lambda self, root: (
                setattr(self, "owner", replace(self.owner, reopens=None)),
                real(self, root),
            )
        ),
    ):
        yield


@mutant("compressed")
@contextlib.contextmanager
def _durable_tail_overwritten():
    with patched(shards.EncodedShard, "needs_sync", lambda real: lambda self, rows: False):
        yield


@mutant("compressed", "kills")
@contextlib.contextmanager
def _one_tail_file_instead_of_two():
    shards.EncodedShard._side = property(lambda self: 0, lambda self, side: None)
    try:
        yield
    finally:
        del shards.EncodedShard._side


@mutant("finalize", "kills")
@contextlib.contextmanager
def _packing_resumed_from_the_beginning():
    def pack(real):
        def again(root, spec, owner, dead, *args, **options):
            for one in dead.values():
                one.start = 0
            real(root, spec, owner, dead, *args, **options)

        return again

    with patched(recovery, "_pack", pack):
        yield


@mutant("finalize", "kills")
@contextlib.contextmanager
def _one_owner_for_all_tails():
    def adopt(real):
        def same(one, spec):
            owner = replace(one.rows.owner, session="0" * 32, sequence=0)
            return OpenSegment.adopt(one.rows, spec, owner, one.lock)

        return same

    with patched(recovery, "_adopt", adopt):
        yield


@mutant("straddling", "recovery")
@contextlib.contextmanager
def _names_that_recovery_finds_not_synced():
    def sync_dir(real):
        return lambda path: None if sys._getframe(1).f_code.co_name == "recover" else real(path)

    with patched(files, "sync_dir", sync_dir):
        yield


@mutant("none", "bits")
@contextlib.contextmanager
def _durable_mark_ignored():
    with patched(frames.Scan, "durable_rows", lambda real: property(lambda self: 0)):
        yield


@mutant("none", "bits")
@contextlib.contextmanager
def _frames_behind_a_damaged_one_not_looked_for():
    with patched(frames, "_resync", lambda real: lambda *args: iter(())):
        yield


def caught(workload, way, make=Recorder, every=1):
    """Return the first errors that the crash tests find; tries every n-th crash in recovery."""
    rng = random.Random(4)
    if way == "bits":
        return bits(test_bits.WORKLOADS[workload])
    try:
        recording = record(WORKLOADS[workload], make)
    except (ZarrowError, AssertionError) as error:  # it does not even survive an undisturbed run
        return [f"undisturbed: {error!r}"]
    if way == "kills":
        return judge_all(kills(recording), WORKLOADS[workload], thorough_every=0, enough=1).bad
    if way == "cuts":
        for _ in range(6):
            bad = judge_all(cuts(recording, rng, 2), WORKLOADS[workload], thorough_every=0, enough=1).bad
            if bad:
                return bad
        return []
    points = [
        point
        for point, call in enumerate(recording.log)
        if call.name == "fsync_dir" and call.args[0].endswith(("/open", "/segments"))
    ]
    for point in points[::every]:
        disk, recovered = record_recovery(recording, point)
        bad = judge_all(cuts(recovered, rng, 2, disk), WORKLOADS[workload], thorough_every=0, enough=1).bad
        if bad:
            return bad
    return []


def bits(workload):
    """Flip bits of a journal until a durable row is silently lost."""
    tree = test_bits.killed(workload)
    with scratch() as top, small_chunks(workload):
        tree.put(top)
        names = [name for name in tree.files() if "/open/" in name and name.endswith((".frames", ".rows"))]
        for where in test_bits.flips(top, names, every=29):
            try:
                test_bits.check_open(top / NAME, workload)
            except AssertionError as error:
                return [f"{where}: {error}"]
            except CorruptionError:
                pass
    return []


@pytest.mark.parametrize(("workload", "way"), [("none", "bits"), ("straddling", "recovery")])
def test_the_protocol_as_it_is_survives_what_catches_the_mutants(workload, way):
    """Unchanged, the protocol survives these searches; for cuts and kills see their own tests."""
    assert not caught(workload, way, every=5)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_changed_protocol_is_caught(name, figures):
    """With two steps swapped or a check removed, the crash tests find a wrong store."""
    change, workload, way = MUTANTS[name]
    with change():
        bad = caught(workload, way)
    figures("protocol mutants", tried=1, caught=bool(bad))
    assert bad, f"no error was found in spite of: {name}"


@pytest.mark.parametrize("name", UNSYNCED)
def test_a_sync_left_out_is_caught(name, figures):
    """Without any one of its fsyncs the protocol loses rows in a power cut, and the crash tests find it."""
    pattern, workload = UNSYNCED[name]
    bad = caught(workload, "cuts", lambda top: Forgetful(top, pattern))
    figures("protocol mutants", tried=1, caught=bool(bad))
    assert bad, f"no error was found although this was never synced: {name}"
