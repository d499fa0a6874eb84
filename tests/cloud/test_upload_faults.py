"""Copies to a bucket that fails — no store before it is whole, no byte changed, and every copy can go on."""

import contextlib
import io
import itertools
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import obstore
import pytest
from cloud.test_bucket import _boto as boto

import zarrow
from zarrow._maintenance import upload
from zarrow._storage import conditional
from zarrow._storage.objects import ObjectPath, located
from zarrow.errors import (
    InvalidInputError,
    NotAStoreError,
    StoreExistsError,
    StoreNotFoundError,
    WriteFailedError,
    ZarrowError,
)

RUNS = {"ci": 12, "long": 2_000}
KINDS = ("refused", "lost", "dropped", "conflict", "taken", "torn", "flipped")
ROWS = 60


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """Return a small complete store of several segments."""
    path = tmp_path_factory.mktemp("local") / "run.zarrow"
    with zarrow.Writer(path, keys=["id"], segment_rows=16) as writer:
        vectors = np.random.default_rng(0).standard_normal((ROWS, 8)).astype("f4")
        writer.append({"id": range(ROWS)}, {"e": vectors})
        writer.finalize()
    return path


@pytest.fixture
def hasty(monkeypatch):
    """Do not wait between two attempts."""
    monkeypatch.setattr(conditional, "_AGAIN_SECONDS", (0.0, 0.0, 0.0, 0.0))
    monkeypatch.setattr("zarrow._storage.objects._RETRY", {"max_retries": 0})


def _answer(start_response, status: str) -> list[bytes]:
    start_response(status, [("Content-Length", "0")])
    return [b""]


def _act(environ, app) -> tuple[str, list[tuple[str, str]], bytes]:
    """Return what the server answers."""
    said: list = []
    body = b"".join(app(environ, lambda status, headers, *_: said.extend((status, headers))))
    return said[0], said[1], body


def faulty(rng: random.Random, rate: float, kinds=KINDS):
    """Return a server that fails in these ways, at random, and the number of times of each.

    Conditional creates are few, and fail more often.
    """
    happened = dict.fromkeys(kinds, 0)

    def serve(environ, start_response, app):
        method, condition = environ["REQUEST_METHOD"], "HTTP_IF_NONE_MATCH" in environ
        kind = rng.choice(kinds) if rng.random() < rate * (20 if condition else 1) else ""
        if (
            (kind in ("conflict", "taken") and not (method == "PUT" and condition))
            or (kind == "torn" and method != "GET")
            or (kind == "flipped" and (method != "PUT" or condition))
        ):
            kind = ""
        if kind:
            happened[kind] += 1
        if kind == "refused":
            return _answer(start_response, rng.choice(("500 Internal Server Error", "503 Slow Down")))
        if kind == "conflict":
            return _answer(start_response, "409 Conflict")
        if kind == "flipped":
            data = bytearray(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
            if data:
                data[rng.randrange(len(data))] ^= 1
            environ["wsgi.input"] = io.BytesIO(bytes(data))
        status, headers, body = _act(environ, app)
        if kind == "lost":
            return _answer(start_response, "500 Internal Server Error")
        if kind == "taken":
            return _answer(start_response, "412 Precondition Failed")
        if kind == "dropped":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError
        start_response(status, headers)
        return [body[: len(body) // 2] if kind == "torn" else body]

    return serve, happened


def objects(target: str, options) -> dict[str, bytes]:
    """Return all objects of a copy."""
    place = located(target, options)
    assert isinstance(place, ObjectPath)
    return {name: bytes(obstore.get(place.client, name).bytes()) for name in place.names()}


def files(local: Path) -> dict[str, bytes]:
    """Return all files of a store that a copy has."""
    paths = {str(path.relative_to(local)): path for path in local.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if not name.startswith("open/")}


def sweep(bucket, local, runs: int, seed: int = 0) -> dict[str, int]:
    """Copy through faults and interruptions until it succeeds, and look at the target after every attempt."""
    expected, total = files(local), dict.fromkeys(KINDS, 0)
    for run in range(runs):
        rng = random.Random(f"{seed} {run}")
        target = bucket.url(f"{seed}-{run}.zarrow")

        def interrupt(done: int, of: int, rng=rng) -> None:
            if rng.random() < 0.05:
                raise KeyboardInterrupt

        for _attempt in range(200):
            serve, happened = faulty(rng, rng.choice((0.02, 0.08)))
            bucket.fault = serve
            try:
                zarrow.copy(local, target, storage_options=bucket.options, progress=interrupt)
                done = True
            except (WriteFailedError, KeyboardInterrupt):
                done = False
            finally:
                bucket.fault = None
            for kind, count in happened.items():
                total[kind] += count
            found = objects(target, bucket.options)
            if done or "zarrow.json" in found:
                assert {name: found.get(name) for name in expected} == expected, f"run {run}: not whole"
            if done:
                assert set(found) - {upload._MARK} == set(expected), f"run {run}: objects are left over"
                break
        else:
            raise AssertionError(f"run {run}: the copy never succeeds")
    return total


def test_no_fault_tears_a_copy(bucket, local, hasty, profile):
    """Requests refused, answers lost, dropped or cut, bytes flipped on their way: every copy gets whole."""
    happened = sweep(bucket, local, RUNS[profile], seed=2)
    assert all(happened.values()), happened


def _believes_answers(place, path, data):
    if place.put_if(path, data, None) is None:
        raise StoreExistsError("it says so")


def _declares_first(goal, declaration, manifest, _begin=upload._begin):
    done = _begin(goal, declaration, manifest)
    goal.put_bytes("zarrow.json", declaration)
    return done


def _compares_nothing(goal, path, file, _checksum):
    goal.put(path, file)


def _forgets_the_mark(goal, declaration, manifest, _begin=upload._begin):
    place = located(goal)
    done = _begin(place, declaration, manifest)
    place.delete(upload._MARK)
    return done


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("create", _believes_answers),
        ("_begin", _declares_first),
        ("_put", _compares_nothing),
        ("_begin", _forgets_the_mark),
    ],
    ids=["answers are believed", "zarrow.json first", "bytes not compared", "no mark"],
)
def test_the_sweep_finds_what_is_wrong(bucket, local, hasty, monkeypatch, name, mutant):
    """A copy that leaves out a rule does not get through."""
    monkeypatch.setattr(upload, name, mutant)
    with pytest.raises((AssertionError, ZarrowError)):
        sweep(bucket, local, 40, seed=1)


@pytest.mark.parametrize("at", [0, 1, 6, 13, -1])
@pytest.mark.parametrize("acts", [True, False], ids=["after it acted", "before"])
def test_a_killed_process_goes_on(bucket, local, at, acts):
    """A process that is killed at a request, which the server still serves or not, leaves no half a store."""
    target = bucket.url("run.zarrow")
    zarrow.copy(local, bucket.url("other.zarrow"), storage_options=bucket.options)
    # Puts of single objects: "at" counts them, from the end if it is negative.
    count = sum(one.method == "PUT" for one in bucket.requests)
    at %= count
    seen = itertools.count()
    code = f"import zarrow; zarrow.copy({str(local)!r}, {target!r}, storage_options={bucket.options!r})"

    def kill(environ, start_response, app):
        if environ["REQUEST_METHOD"] == "PUT" and next(seen) == at:
            if acts:
                _act(environ, app)
            process.kill()
            process.wait()
            raise ConnectionResetError
        return app(environ, start_response)

    bucket.fault = kill
    process = subprocess.Popen([sys.executable, "-c", code])
    assert process.wait(60) == -signal.SIGKILL
    bucket.fault = None
    if acts and at == count - 1:  # the last one makes it a store
        assert zarrow.open(target, storage_options=bucket.options).num_rows == ROWS
    else:
        with pytest.raises(StoreNotFoundError):
            zarrow.open(target, storage_options=bucket.options)
    zarrow.copy(local, target, storage_options=bucket.options)
    assert objects(target, bucket.options) == files(local)


class TestConditionalCreates:
    def _place(self, bucket) -> ObjectPath:
        place = located(bucket.url("run.zarrow"), bucket.options)
        assert isinstance(place, ObjectPath)
        return place

    @pytest.mark.parametrize("kind", ["refused", "lost", "dropped", "conflict", "taken"])
    def test_the_answer_does_not_decide(self, bucket, hasty, kind):
        """A first answer that is wrong or lost leads to the object, once; others' objects stay."""
        place = self._place(bucket)

        def first(environ, start_response, app):
            if environ["REQUEST_METHOD"] == "PUT":
                bucket.fault = None
                serve, _ = faulty(random.Random(0), 1.0, (kind,))
                return serve(environ, start_response, app)
            return app(environ, start_response)

        bucket.fault = first
        conditional.create(place, "claim", b"mine")
        for others in (b"other", b"one that is longer", b""):
            with pytest.raises(FileExistsError):
                conditional.create(place, "claim", others)
        assert objects(bucket.url("run.zarrow"), bucket.options) == {"claim": b"mine"}

    def test_a_name_that_stays_contended_is_an_error(self, bucket, hasty):
        """409 for ever is no other's object, but an error that says so."""
        bucket.fault, _ = faulty(random.Random(0), 1.0, ("conflict",))
        with pytest.raises(OSError, match="ask again"):
            conditional.create(self._place(bucket), "claim", b"mine")

    def test_a_service_without_conditions_is_refused(self, bucket, local, hasty):
        """It is found out before the first row, in words, and nothing is left there."""

        def careless(environ, start_response, app):
            environ.pop("HTTP_IF_NONE_MATCH", None)
            return app(environ, start_response)

        bucket.fault = careless
        with pytest.raises(InvalidInputError, match="If-None-Match"):
            zarrow.copy(local, bucket.url("run.zarrow"), storage_options=bucket.options)
        assert objects(bucket.url("run.zarrow"), bucket.options) == {}

    def test_a_mark_that_stays_is_no_failure(self, bucket, local, hasty):
        """The store is whole before the mark is removed: where that fails, nothing is lost."""

        def keep(environ, start_response, app):
            if environ["REQUEST_METHOD"] == "DELETE" or environ["QUERY_STRING"].startswith("delete"):
                return _answer(start_response, "500 Internal Server Error")
            return app(environ, start_response)

        target = bucket.url("run.zarrow")
        bucket.fault = keep
        zarrow.copy(local, target, storage_options=bucket.options)
        assert upload._MARK in objects(target, bucket.options)
        bucket.fault = None
        zarrow.copy(local, target, storage_options=bucket.options)  # goes on, and only removes the mark
        assert objects(target, bucket.options) == files(local)
        with pytest.raises(StoreExistsError):
            zarrow.copy(local, target, storage_options=bucket.options)

    @pytest.fixture
    def other(self, tmp_path) -> Path:
        """Return another store of the same shape."""
        path = tmp_path / "other.zarrow"
        with zarrow.Writer(path, keys=["id"], segment_rows=16) as writer:
            writer.append({"id": range(ROWS)}, {"e": np.zeros((ROWS, 8), "f4")})
            writer.finalize()
        return path

    def _race(self, bucket, local, other) -> dict[str, bytes]:
        """Begin a second copy after the first one has found the place free; return what is there."""
        target = bucket.url("run.zarrow")

        def interleave(environ, start_response, app):
            if environ["REQUEST_METHOD"] == "PUT":
                bucket.fault = None
                zarrow.copy(other, target, storage_options=bucket.options)
            return app(environ, start_response)

        bucket.fault = interleave
        with contextlib.suppress(NotAStoreError, StoreExistsError):
            zarrow.copy(local, target, storage_options=bucket.options)
            pytest.fail("both copies succeed")
        return objects(target, bucket.options)

    def test_two_copies_never_mix(self, bucket, local, hasty, other):
        """Of two stores that are copied to one place at once, one gets there and the other is refused."""
        assert self._race(bucket, local, other) == files(other)

    def test_the_race_finds_what_is_wrong(self, bucket, local, hasty, other, monkeypatch):
        """If a copy that has made its mark does not look again for a store, the two mix."""
        exists, asked = ObjectPath.exists, itertools.count()
        monkeypatch.setattr(
            ObjectPath, "exists", lambda place, path="": next(asked) == 0 and exists(place, path)
        )
        assert self._race(bucket, local, other) != files(other)

    def test_a_put_that_fails_leaves_nothing(self, bucket):
        """If its source fails half-way there is neither an object nor an unfinished upload."""

        class Failing:
            def blocks(self):
                yield from itertools.repeat(bytes(1 << 20), 20)
                raise OSError("the source fails")

        with pytest.raises(OSError, match="the source fails"):
            self._place(bucket).put("big", Failing())
        client = boto(bucket)
        assert "Contents" not in client.list_objects_v2(Bucket=bucket.name)
        assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket.name)
