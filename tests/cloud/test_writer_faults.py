"""Writers to a bucket that fails, is killed, or is overtaken — no row lost, doubled or torn."""

import contextlib
import functools
import itertools
import os
import random
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import obstore
import pytest
from cloud import test_upload_faults as server
from cloud.places import KINDS, Place, dead, faulty, new_url, through
from cloud.test_bucket import _split as split

import zarrow
from zarrow._format.bucket import HOLDER, Holder, NumberClaim
from zarrow._storage import conditional
from zarrow._storage.objects import located
from zarrow._write import bucket as protocol
from zarrow._write import publishing
from zarrow._write.bucket import Bucket
from zarrow._write.hold import Hold
from zarrow._write.spooled import SpooledStore
from zarrow.errors import CorruptionError, StoreExistsError, StoreLockedError, StoreNotFoundError, ZarrowError

RUNS = {"ci": 25, "long": 4_000}
SERVER_RUNS = {"ci": 2, "long": 500}
OVERTAKEN = {"ci": 20, "long": 2_000}
SEGMENT_ROWS = 8
ROWS = 43
STEP = 5


WRITERS: list[zarrow.Writer] = []


@pytest.fixture(autouse=True)
def closed():
    """Close what a test leaves open."""
    yield
    while WRITERS:
        with contextlib.suppress(ZarrowError, OSError):
            WRITERS.pop().close()


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Do not wait between two attempts."""
    monkeypatch.setattr(conditional, "_AGAIN_SECONDS", (0.0, 0.0, 0.0, 0.0))
    monkeypatch.setattr(protocol, "_PATIENCE_SECONDS", (0.0, 0.0))
    monkeypatch.setattr("zarrow._storage.objects._RETRY", {"max_retries": 0})


@pytest.fixture
def quick_dir(tmp_path):
    """Return a directory where nothing waits for a disk, if there is one."""
    if not os.path.isdir("/dev/shm"):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


def batch(rows):
    """Return columns and arrays of these rows, by which each is known."""
    rows = np.asarray(rows)
    columns = {"id": rows, "text": [f"row {row}" for row in rows]}
    wide = np.repeat(rows[:, None], 8, 1).astype("f4")
    return columns, {"plain": wide, "packed": wide[:, :3]}


def opened(target, spool, mode="a", options=None, *, copies=False) -> zarrow.Writer:
    writer = zarrow.Writer(
        target,
        mode=mode,
        keys=["id"],
        segment_rows=SEGMENT_ROWS,
        codecs={"packed": "zstd"},
        storage_options=options,
        spool=spool,
        durability=zarrow.Durability(seconds=0.001) if copies else "segment",
    )
    WRITERS.append(writer)
    return writer


def add(writer, rows, step=STEP) -> None:
    for start in range(0, len(rows), step):
        writer.append(*batch(rows[start : start + step]))


def stored(target, options=None) -> list[int]:
    """Return the ids of all rows that a reader is shown, each of which is whole, and there once."""
    try:
        store = zarrow.open(target, storage_options=options, partial=True)
    except StoreNotFoundError:
        return []
    ids = store.table(["id", "text"])
    found = ids["id"].to_numpy()
    assert ids["text"].to_pylist() == [f"row {row}" for row in found]
    for name in ("plain", "packed") if store.arrays else ():
        values = store[name].read(0, store.num_rows, check="crc")
        assert (values == found[:, None]).all(), f"rows of {name} are torn"
    assert len(set(found.tolist())) == len(found), "a row is doubled"
    return found.tolist()


def check_complete(target, options=None) -> None:
    """Check that a store is complete, has every row, and nothing else lies there."""
    assert sorted(stored(target, options)) == list(range(ROWS)), "a row is lost"
    place = located(target, options)
    report = zarrow.verify(place)
    assert report.ok, report
    segments = range(-(-ROWS // SEGMENT_ROWS))
    expected = {"zarrow.json", "manifest.json", "statistics.arrow", "embeddings.zarr/zarr.json"}
    for number in segments:
        expected |= {f"segments/{number:08d}.json", f"table/part-{number:08d}.parquet"}
    for name in ("plain", "packed"):
        expected |= {f"embeddings.zarr/{name}/zarr.json"}
        expected |= {f"embeddings.zarr/{name}/c/{number}/0" for number in segments}
    assert set(place.names()) == expected


def sweep(target, options, set_hook, tmp_path, rng, happened) -> None:
    """Write through faults, kills and lost machines until the store is complete; look at it after each."""
    spool, here = tmp_path / "0", []
    for attempt in range(200):
        known, left, accepted, done = set(here), [], 0, False
        failing = set_hook(rng)
        with contextlib.suppress(ZarrowError, OSError):
            writer = opened(target, spool, options=options, copies=rng.random() < 0.5)
            try:
                set_hook(None)
                known = {*stored(target, options), *here}  # now: opening commits what had been decided
                left = [row for row in range(ROWS) if row not in known]
                set_hook(failing)
                assert writer.accepted_rows == len(known), "recovered rows are not those that were accepted"
                add(writer, left, rng.choice((2, 5, 20)))
                writer.flush()
                if rng.random() < 0.3:
                    writer.close()
                else:
                    writer.finalize()
                    done = True
            finally:
                accepted = writer.accepted_rows - len(known)
                set_hook(dead)
                with contextlib.suppress(ZarrowError, OSError):
                    writer.close()
        here = [*(row for row in here if row in known), *left[:accepted]]
        set_hook(None)
        if done:
            break
        if _is_complete(target, options):  # killed after that
            assert zarrow.verify(located(target, options)).ok
            opened(target, spool, options=options).finalize()
            break
        if rng.random() < 0.3:
            happened["lost machine"] += 1
            spool, here = tmp_path / f"{attempt + 1}", []
    else:
        raise AssertionError("the run never gets complete")
    check_complete(target, options)


def _is_complete(target, options) -> bool:
    with contextlib.suppress(ZarrowError):
        return zarrow.open(target, storage_options=options).complete
    return False


def _dying(rng: random.Random, make, die):
    """Return a hook like `make`, until at some request, served or not, the process dies."""
    left = itertools.count(rng.choice((1_000, rng.randrange(1, 120))), -1)

    def hook(*request):
        count = next(left)
        if count > 0:
            return make(*request)
        return die(*request, acts=count == 0 and rng.random() < 0.5)

    return hook


def sweep_memory(tmp_path, runs: int, seed: int) -> dict[str, int]:
    happened = dict.fromkeys((*KINDS, "killed", "lost machine"), 0)

    def die(name, path, act, *, acts: bool):
        if acts:
            happened["killed"] += 1
            act()
        return dead(name, path, act)

    for run in range(runs):
        rng = random.Random(f"{seed} {run}")
        place = Place(new_url(), through)

        def set_hook(given, place=place):
            if isinstance(given, random.Random):
                given = _dying(given, faulty(given, given.choice((0.0, 0.02, 0.05)), happened), die)
            place.hook = given or through
            return given

        (tmp_path / str(run)).mkdir()
        try:
            sweep(place, None, set_hook, tmp_path / str(run), rng, happened)
        except AssertionError as error:
            raise AssertionError(f"run {run}: {error}") from error
    return happened


def test_no_fault_and_no_kill_costs_a_row(quick_dir, profile, figures):
    """Answers wrong or lost, kills at any request, lost machines: every run gets whole, each row once."""
    happened = sweep_memory(quick_dir, RUNS[profile], 0)
    figures("runs of a writer to a bucket", runs=RUNS[profile], **happened)
    assert all(happened.values()), happened


def test_nor_do_those_of_a_server(bucket, quick_dir, profile, figures):
    """The same by HTTP, where connections are dropped, too."""
    happened = dict.fromkeys((*server.KINDS, "killed", "lost machine"), 0)
    for run in range(SERVER_RUNS[profile]):
        rng = random.Random(f"server {run}")
        target = bucket.url(f"{run}.zarrow")

        def die(environ, start_response, app, *, acts: bool):
            if acts:
                happened["killed"] += 1
                server._act(environ, app)
            return server._answer(start_response, "503 Slow Down")

        counted: list[dict[str, int]] = []

        def set_hook(given, die=die, counted=counted):
            if isinstance(given, random.Random):
                kinds = ("refused", "lost", "dropped", "conflict", "taken")
                serve, counts = server.faulty(given, given.choice((0.01, 0.03)), kinds)
                counted.append(counts)
                given = _dying(given, serve, die)
            elif given is dead:
                given = functools.partial(die, acts=False)
            bucket.fault = given
            return given

        (quick_dir / str(run)).mkdir()
        sweep(target, bucket.options, set_hook, quick_dir / str(run), rng, happened)
        _open_by_stock_readers(target, bucket.options)
        for counts in counted:
            happened.update({kind: happened[kind] + count for kind, count in counts.items()})
    figures("the same by HTTP", runs=SERVER_RUNS[profile], **happened)


def _open_by_stock_readers(target, options) -> None:
    import pyarrow.dataset
    import zarr
    from obstore.fsspec import FsspecStore

    client = obstore.store.from_url(f"{target}/embeddings.zarr", **split(options))
    group = zarr.open_group(zarr.storage.ObjectStore(client, read_only=True), mode="r")
    files = FsspecStore("s3", **split(options))
    table = pyarrow.dataset.dataset(target.removeprefix("s3://") + "/table", filesystem=files).to_table()
    assert sorted(table["id"].to_pylist()) == table["row"].to_pylist() == list(range(ROWS))
    assert (group["plain"][:, 0] == table["id"].to_numpy()).all()
    assert (group["packed"][:, 0] == table["id"].to_numpy()).all()


# One fault


def _requests_of_a_run(tmp_path) -> list[tuple[str, str]]:
    seen = []

    def hook(name, path, act):
        seen.append((name, path))
        return act()

    writer = opened(Place(new_url(), hook), tmp_path / "spool")
    add(writer, range(ROWS))
    writer.finalize()
    return seen


def ambiguous(tmp_path, kinds=KINDS) -> None:
    """Run once for every conditional put and way in which its answer can be wrong; each must succeed."""
    (tmp_path / "count").mkdir()
    puts = sum(name == "put_if" for name, _ in _requests_of_a_run(tmp_path / "count"))
    for kind, at in itertools.product(kinds, range(0, puts, 3)):
        counted = itertools.count()

        def hook(name, path, act, kind=kind, at=at, counted=counted):
            if name == "put_if" and next(counted) == at:
                return faulty(_Always(kind), 1.0, dict.fromkeys(KINDS, 0))(name, path, act)
            return act()

        place = Place(new_url(), hook)
        writer = opened(place, tmp_path / f"{kind} {at}")
        add(writer, range(ROWS))
        writer.finalize()
        place.hook = through
        check_complete(place)


class _Always:
    def __init__(self, kind: str) -> None:
        self._kind = kind

    def random(self) -> float:
        return 0.0

    def choice(self, _kinds) -> str:
        return self._kind


def test_an_answer_that_is_wrong_does_not_end_a_run(quick_dir):
    """Whichever conditional put is refused, or its answer lost, 409 or 412: the run goes on, by itself."""
    ambiguous(quick_dir)


def killed_during(tmp_path, step, every: int = 1) -> None:
    """Kill a writer at the requests of its last step, served or not; the next one has every row."""
    for at, acts in itertools.product(range(0, 1_000, every), (True, False)):
        counted, stepping = itertools.count(), threading.Event()

        def hook(name, path, act, at=at, acts=acts, counted=counted, stepping=stepping):
            if stepping.is_set() and (number := next(counted)) >= at:
                if number == at and acts:
                    act()
                return dead(name, path, act)
            return act()

        place, spool = Place(new_url(), hook), tmp_path / f"{at} {acts}"
        writer = opened(place, spool)
        add(writer, range(ROWS // 2))
        writer.close()
        writer = opened(place, spool)
        add(writer, range(ROWS // 2, ROWS))
        writer.flush(durable=True)
        stepping.set()
        with contextlib.suppress(ZarrowError, OSError):
            step(writer)
        with contextlib.suppress(ZarrowError, OSError):
            writer.close()
        place.hook = through
        stored(place)
        writer = opened(place, spool)
        assert writer.accepted_rows == ROWS
        writer.finalize()
        check_complete(place)
        if next(counted) <= at:
            break


@pytest.mark.parametrize("step", [zarrow.Writer.close, zarrow.Writer.finalize])
def test_a_writer_that_is_killed_at_its_end_loses_nothing(quick_dir, step, profile):
    """A row is in the spool or in the bucket, or in both and counts once."""
    killed_during(quick_dir, step, 1 if profile == "long" else 3)


# One that stood still


def overtake(tmp_path, at: int, acts: bool, resume_at: int | None, closes: bool) -> BaseException | None:
    """Hold a writer's request, write the rest elsewhere, let the writer go on; return its error.

    It goes on at a request of the other one, or after its last.
    """
    url = new_url()
    held, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    counted, raised = itertools.count(), []

    def hold(_name, _path, act):
        if next(counted) != at:
            return act()
        made = act() if acts else None
        held.set()
        assert go_on.wait(60)
        return made if acts else act()

    def first() -> None:
        try:
            writer = opened(Place(url, hold), tmp_path / "first", "x")
            try:
                add(writer, range(ROWS))
                writer.close() if closes else writer.finalize()
            except (ZarrowError, OSError):
                with contextlib.suppress(ZarrowError, OSError):
                    writer.close()
                raise
        except (ZarrowError, OSError) as error:
            raised.append(error)
        finally:
            ended.set()

    others = itertools.count()

    def meanwhile(_name, _path, act):
        if next(others) == resume_at:
            go_on.set()
            ended.wait(30)
        return act()

    thread = threading.Thread(target=first)
    thread.start()
    try:
        while not held.wait(0.01) and thread.is_alive():
            pass
        here: list[int] = []
        try:
            _write_the_rest(Place(url, meanwhile), tmp_path / "second", here)
        except (StoreExistsError, StoreLockedError):  # both had just begun
            ended.wait(30)
            _write_the_rest(Place(url, meanwhile), tmp_path / "second", here)
    finally:
        go_on.set()
        thread.join()
    check_complete(Place(url, through))
    return (raised or [None])[0]


def _write_the_rest(place, spool, here) -> None:
    writer = opened(place, spool)
    known = {*stored(Place(place._url, through)), *here}
    left = [row for row in range(ROWS) if row not in known][::-1]  # so that its segments have other rows
    try:
        assert writer.accepted_rows == len(known)
        add(writer, left)
        writer.finalize()
    except (ZarrowError, OSError):
        here.extend(left[: writer.accepted_rows - len(known)])
        with contextlib.suppress(ZarrowError, OSError):
            writer.close()
        raise


def overtakes(tmp_path, runs: int, seed: int) -> int:
    """Overtake writers at random requests; return how many of them had an error."""
    (tmp_path / "count").mkdir()
    requests, errors = len(_requests_of_a_run(tmp_path / "count")), 0
    rng = random.Random(seed)
    for run in range(runs):
        at, acts = rng.randrange(requests), rng.random() < 0.5
        resume_at = None if rng.random() < 0.3 else rng.randrange(120)
        (tmp_path / str(run)).mkdir()
        try:
            error = overtake(tmp_path / str(run), at, acts, resume_at, rng.random() < 0.3)
        except (AssertionError, ZarrowError) as wrong:
            raise AssertionError(f"request {at}, {acts}, {resume_at}: {wrong}") from wrong
        assert error is None or isinstance(error, ZarrowError), error
        errors += error is not None
    return errors


def test_a_writer_that_stood_still_adds_nothing(quick_dir, profile, figures):
    """Whatever request it wakes up in, before or after the other's: the rows are there once, and it knows."""
    errors = overtakes(quick_dir, OVERTAKEN[profile], 0)
    figures("writers that were overtaken", runs=OVERTAKEN[profile], noticed=errors)
    assert errors


# Rules left out


def _believed(place, path, version, data):
    made = place.put_if(path, data, version)
    if made is None:
        raise FileExistsError(path)
    return made


def _lost_at_409(place, path, version, data, swap=conditional.swap):
    made = place.put_if(path, data, version)
    if made is not None:
        return made
    seen = conditional.look(place, path)
    if seen is None or seen.data != data:
        raise FileExistsError(path)
    return seen.version


def _record_first(self, held, directory, names, record, _publish=Bucket._publish):
    conditional.create(self.place, f"segments/{held.claim.segment:08d}.json", record)
    return _publish(self, held, directory, names, record)


def _not_decided(self, held, directory, names, record):
    for path, name in names.items():
        self._put(held, path, (directory / name).read_bytes())
    conditional.create(self.place, f"segments/{held.claim.segment:08d}.json", record)
    self.place.delete(held.path)
    return True


def _anybody(self):
    seen = conditional.look(self.place, HOLDER)
    return self._decode(seen.data) if seen else Holder(owner=self._owner)


def _leaves_claims(self, number, living, _taken=Bucket._taken):
    seen = conditional.look(self.place, f"segments/{number:08d}.claim")
    if seen is not None and NumberClaim.decode(seen.data, "").record is None:
        return None
    return _taken(self, number, living)


def _takes_decided(self, number, _living):
    seen = conditional.look(self.place, path := f"segments/{number:08d}.claim")
    claim = NumberClaim(segment=number, session=self._owner.session)
    return protocol._Held(claim, conditional.swap(self.place, path, seen.version, claim.encode()))


def _puts_over(self, held, path, data):
    self.place.put_bytes(path, bytes(data))


def _asks_no_claim(self, held, path, data):
    version = None
    while True:
        with contextlib.suppress(FileExistsError):
            return conditional.swap(self.place, path, version, data)
        version = self.place.open(path).version


def _adds_tail_to_all(self, slot):
    holder = _anybody(self)
    self.place.put_bytes(HOLDER, replace(holder, tails=(*holder.tails, slot)).encode())


def _no_starts(self, spec, left):
    return dict.fromkeys(left, 0)


def _manifest_first(self, spec, expected_rows, *, partial, _finalize=SpooledStore.finalize):
    with contextlib.suppress(CorruptionError):
        manifest = publishing.manifest_of(spec, publishing.all_records(self.place, spec), expected_rows)
        self.bucket.replace("manifest.json", manifest.encode())
    return _finalize(self, spec, expected_rows, partial=partial)


def _swept(path):
    sweep_memory(path, 60, 1)


def _overtaken(path):
    overtakes(path, 300, 1)


def _finalized(path):
    killed_during(path, zarrow.Writer.finalize)


def _lost_answers(path):
    ambiguous(path, ["lost", "taken"])


def _conflicts(path):
    ambiguous(path, ["conflict"])


MUTANTS = {
    "an answer is believed": (protocol, "swap", _believed, _lost_answers),
    "409 is taken for lost": (protocol, "swap", _lost_at_409, _conflicts),
    "record before shards": (Bucket, "_publish", _record_first, _swept),
    "not decided": (Bucket, "_publish", _not_decided, _overtaken),
    "no fencing": (Hold, "require_held", _anybody, _overtaken),
    "claims of the dead stay": (Bucket, "_taken", _leaves_claims, _swept),
    "what is decided is taken over": (Bucket, "_taken", _takes_decided, _overtaken),
    "puts without condition": (Bucket, "_put", _puts_over, _overtaken),
    "the claim is not asked": (Bucket, "_put", _asks_no_claim, _overtaken),
    "tails of anybody": (Hold, "add_tail", _adds_tail_to_all, _overtaken),
    "rows are packed again": (SpooledStore, "_starts", _no_starts, _finalized),
    "manifest first": (SpooledStore, "finalize", _manifest_first, _swept),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_rule_that_is_left_out_is_found(quick_dir, monkeypatch, name):
    """Each rule of the protocol is needed: without it, one of the tests above fails."""
    where, what, mutant, harness = MUTANTS[name]
    monkeypatch.setattr(where, what, mutant)
    if where is protocol:
        monkeypatch.setattr(protocol, "create", lambda place, path, data: mutant(place, path, None, data))
    with pytest.raises((AssertionError, ZarrowError, OSError)):
        harness(quick_dir)
