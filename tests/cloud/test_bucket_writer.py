"""Writers to a bucket — the promises of one on a disk, what is found out at opening, kills, Lightning."""

from pathlib import Path

import numpy as np
import pytest
from cloud.servers import SECRET
from cloud.test_upload_faults import objects
from typer.testing import CliRunner

import zarrow
from zarrow._format.bucket import Holder
from zarrow._write.directory import new_owner
from zarrow.cli import app
from zarrow.errors import (
    IncompleteStoreError,
    InvalidInputError,
    NotAStoreError,
    StoreExistsError,
    StoreLockedError,
    WriteFailedError,
)

ROWS = 70


@pytest.fixture(autouse=True)
def spool(tmp_path, monkeypatch) -> Path:
    """Return the directory of the spools."""
    monkeypatch.setenv("ZARROW_SPOOL", str(tmp_path / "spool"))
    return tmp_path / "spool"


def write(target, *, rows=range(ROWS), finalize=True, **options) -> zarrow.Writer:
    """Write rows, by which each is known; plain and compressed arrays."""
    options = {"keys": ["id"], "segment_rows": 16, "codecs": {"packed": "zstd"}} | options
    with zarrow.Writer(target, **options) as writer:
        for row in range(rows.start, rows.stop, 7):
            ids = np.arange(row, min(row + 7, rows.stop))
            wide = np.repeat(ids[:, None], 8, 1).astype("f4")
            writer.append({"id": ids, "text": [f"row {i}" for i in ids]}, {"plain": wide, "packed": wide})
        writer.finalize() if finalize else writer.close()
    return writer


def test_is_the_store_that_a_disk_has(bucket, tmp_path, spool):
    """The rows and files are those of a local store; the spool is gone; opening takes three requests."""
    target = bucket.url("run.zarrow")
    writer = write(target, storage_options=bucket.options, provenance={"model": "x"})
    assert writer.accepted_rows == writer.durable_rows == ROWS
    write(tmp_path / "local.zarrow")
    bucket.requests.clear()
    there, here = zarrow.open(target, storage_options=bucket.options), zarrow.open(tmp_path / "local.zarrow")
    assert len(bucket.requests) <= 3
    assert there.table().equals(here.table())
    for name in ("plain", "packed"):
        assert np.array_equal(there[name].read(0, ROWS, check="crc"), here[name][:])
    assert zarrow.verify(target, storage_options=bucket.options).ok
    local = tmp_path / "local.zarrow"
    names = {str(path.relative_to(local)) for path in local.rglob("*") if path.is_file()}
    found = objects(target, bucket.options)
    assert set(found) == names
    assert not any(SECRET.encode() in data for data in found.values())
    assert not list(spool.iterdir())
    assert SECRET not in repr(there.provenance)


def test_a_segment_takes_eight_requests(bucket):
    """A segment with two arrays takes eight requests, with one array seven; the spool keeps no full one."""
    writer = zarrow.Writer(bucket.url("run.zarrow"), segment_rows=16, storage_options=bucket.options)
    for arrays in (["a"], ["a", "b"]):
        target = bucket.url("-".join(arrays))
        writer.close()
        writer = zarrow.Writer(target, segment_rows=16, storage_options=bucket.options)
        writer.append({"id": range(1)}, {name: np.zeros((1, 4)) for name in arrays})
        writer.flush()
        bucket.requests.clear()
        writer.append({"id": range(47)}, {name: np.zeros((47, 4)) for name in arrays})
        writer.flush(durable=True)
        assert len(bucket.requests) == 3 * (6 + len(arrays))
    writer.close()


class TestResuming:
    def test_another_machine_goes_on(self, bucket, tmp_path):
        """What was closed is in the bucket, shown to partial readers, and completed from anywhere."""
        target = bucket.url("run.zarrow")
        write(target, rows=range(40), finalize=False, storage_options=bucket.options)
        with pytest.raises(IncompleteStoreError, match="40 rows are safe"):
            zarrow.open(target, storage_options=bucket.options)
        store = zarrow.open(target, storage_options=bucket.options, partial=True)
        assert store.table()["id"].to_pylist() == list(range(40))
        assert store["plain"][[3, 39]][:, 0].tolist() == store["packed"][[3, 39]][:, 0].tolist() == [3, 39]
        assert zarrow.verify(target, storage_options=bucket.options).ok
        writer = write(
            target,
            rows=range(40, ROWS),
            mode="a",
            finalize=False,
            storage_options=bucket.options,
            spool=tmp_path / "elsewhere",
        )
        assert writer.accepted_rows == ROWS

    def test_the_command_completes_it(self, bucket, monkeypatch):
        """`zarrow finalize URL` completes a store, once; --sort needs a disk, and says so before."""
        target = bucket.url("run.zarrow")
        write(target, rows=range(40), finalize=False, storage_options=bucket.options)
        for name, value in bucket.options.items():
            monkeypatch.setenv(f"AWS_{name.upper()}", str(value))
        result = CliRunner().invoke(app, ["finalize", target, "--sort"])
        assert result.exit_code == 1
        assert "on a disk only" in result.output
        for said in (f"complete: {target} has 40 rows", f"{target} is complete already: 40 rows"):
            result = CliRunner().invoke(app, ["finalize", target], env={"COLUMNS": "200"})
            assert said in result.output
        assert zarrow.open(target).num_rows == 40
        zarrow.open(target).path.put_bytes("open/lock", Holder(owner=new_owner()).encode())
        assert "complete already" in CliRunner().invoke(app, ["finalize", target]).output
        assert "open/lock" not in objects(target, bucket.options)

    def test_a_complete_store_stays_as_it_is(self, bucket):
        """No row is appended to it, and it is neither replaced nor begun again."""
        target = bucket.url("run.zarrow")
        write(target, storage_options=bucket.options)
        before = objects(target, bucket.options)
        for mode, error in (("x", StoreExistsError), ("w", StoreExistsError), ("a", InvalidInputError)):
            with pytest.raises(error, match=r"s3://"):
                write(target, mode=mode, storage_options=bucket.options)
        zarrow.Writer(target, mode="a", storage_options=bucket.options).finalize()
        assert objects(target, bucket.options) == before

    def test_a_machine_that_comes_back_doubles_nothing(self, bucket, tmp_path):
        """A spool whose rows may have been written again elsewhere is refused, in words, and kept."""
        target = bucket.url("run.zarrow")
        first = zarrow.Writer(target, storage_options=bucket.options, spool=tmp_path / "first")
        first.append({"id": [1, 2]}, {"e": np.zeros((2, 4))})
        first.flush()
        options = {"mode": "a", "storage_options": bucket.options}
        second = zarrow.Writer(target, **options, spool=tmp_path / "second")
        second.append({"id": [1, 2]}, {"e": np.zeros((2, 4))})
        second.flush()
        with pytest.raises(StoreLockedError, match="stay in its spool"):
            first.close()
        with pytest.raises(InvalidInputError, match=r"spool has rows that are not in .* remove the spool"):
            zarrow.Writer(target, **options, spool=tmp_path / "first")
        second.finalize()
        with pytest.raises(InvalidInputError, match="remove the spool"):
            zarrow.Writer(target, **options, spool=tmp_path / "first")
        assert zarrow.open(target, storage_options=bucket.options).num_rows == 2


class TestOpening:
    def test_says_what_does_not_work_before_the_first_row(self, bucket, tmp_path):
        """No bucket, no permission, another thing at the place, a bad spool, a web server: all at once."""
        with pytest.raises(InvalidInputError, match="no such bucket"):
            zarrow.Writer("s3://no-bucket/x", storage_options=bucket.options)
        with pytest.raises(InvalidInputError, match="web server"):
            zarrow.Writer("https://host/x")
        (tmp_path / "file").write_text("")
        with pytest.raises(WriteFailedError, match="ZARROW_SPOOL"):
            zarrow.Writer(bucket.url("x"), storage_options=bucket.options, spool=tmp_path / "file")
        with pytest.raises(InvalidInputError, match="spool is for a store at a URL"):
            zarrow.Writer(tmp_path / "x", spool=tmp_path)
        place = zarrow.Writer(bucket.url("x"), storage_options=bucket.options)
        with pytest.raises(StoreLockedError, match="has it open"):
            zarrow.Writer(bucket.url("x"), mode="a", storage_options=bucket.options)
        place.path.put_bytes("notes.txt", b"mine")
        place.close()
        with pytest.raises(NotAStoreError, match=r"notes\.txt"):
            zarrow.Writer(bucket.url("x"), storage_options=bucket.options)

    @pytest.mark.parametrize("condition", ["HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"])
    def test_refuses_a_service_without_conditions(self, bucket, condition):
        """It is found out before the first row, and nothing is left there."""

        def careless(environ, start_response, app):
            environ.pop(condition, None)
            return app(environ, start_response)

        bucket.fault = careless
        with pytest.raises(InvalidInputError, match="ignores If-"):
            zarrow.Writer(bucket.url("run.zarrow"), storage_options=bucket.options)
        assert objects(bucket.url("run.zarrow"), bucket.options) == {}

    def test_says_that_writing_is_forbidden(self, bucket):
        """A prefix that may only be read is a `PermissionError`, without a secret."""

        def forbid(environ, start_response, app):
            if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
                return app(environ, start_response)
            start_response("403 Forbidden", [("Content-Type", "text/xml")])
            return [b"<Error><Code>AccessDenied</Code></Error>"]

        bucket.fault = forbid
        with pytest.raises(PermissionError, match="credentials") as caught:
            zarrow.Writer(bucket.url("run.zarrow"), storage_options=bucket.options)
        assert SECRET not in str(caught.value)


def test_rows_of_any_number_of_vectors(bucket):
    """A ragged array is filled by several writers in turn, completed, and loses nothing to a clean-up."""
    url, options = bucket.url("ragged.zarrow"), {"storage_options": bucket.options}
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 6, 300)
    tokens = zarrow.Ragged(rng.standard_normal((counts.sum(), 5)).astype("f4"), counts)
    for stop in (30, 100, 300):
        with zarrow.Writer(url, mode="a", segment_rows=64, keys=["id"], **options) as writer:
            for start in range(writer.accepted_rows, stop, 20):
                ids = np.arange(start, min(start + 20, stop))
                writer.append({"id": ids}, {"t": tokens[ids]})
            writer.close()
        with zarrow.open(url, partial=True, **options) as store:
            assert store["t"][:] == tokens[store.table(["id"])["id"].to_pylist()]
    with zarrow.Writer(url, mode="a", **options) as writer:
        writer.finalize()
    assert zarrow.repair(url, remove_unreferenced=True, **options).nothing_to_do
    with zarrow.open(url, **options) as store:
        ids = store.table(["id"])["id"].to_pylist()
        assert sorted(ids) == list(range(300))
        assert store["t"].take([5, 3, 299], check="crc") == tokens[[ids[5], ids[3], ids[299]]]
    assert not zarrow.verify(url, "full", **options).findings
