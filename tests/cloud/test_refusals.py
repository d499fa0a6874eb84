"""What is wrong with a bucket, its credentials or a spool — said when a store is opened; nothing is lost."""

import errno
import os

import numpy as np
import pytest
from cloud.servers import SECRET
from cloud.test_upload_faults import objects
from cloud.test_writer_faults import closed, hasty  # noqa: F401 - fixtures

import zarrow
from zarrow._storage import files
from zarrow.errors import (
    InvalidInputError,
    NotAStoreError,
    StoreNotFoundError,
    WriteFailedError,
    ZarrowError,
)

VALUES = {"e": np.ones((20, 4), "f4")}


@pytest.fixture(autouse=True)
def spool(tmp_path, monkeypatch):
    """Return the directory of the spools."""
    monkeypatch.setenv("ZARROW_SPOOL", str(tmp_path / "spool"))
    return tmp_path / "spool"


def opened(bucket, **options) -> zarrow.Writer:
    options = {"segment_rows": 16, "mode": "a", "storage_options": bucket.options} | options
    return zarrow.Writer(bucket.url("run.zarrow"), **options)


@pytest.mark.parametrize(
    ("status", "code", "error", "said"),
    [
        ("301 Moved Permanently", "PermanentRedirect", InvalidInputError, "another region: name its region"),
        ("400 Bad Request", "ExpiredToken", PermissionError, "credentials have expired"),
        ("403 Forbidden", "RequestTimeTooSkewed", PermissionError, "clock|credentials do not allow"),
        ("403 Forbidden", "InvalidAccessKeyId", PermissionError, "credentials do not allow"),
        ("404 Not Found", "NoSuchBucket", InvalidInputError, "no such bucket"),
    ],
)
def test_what_the_service_refuses_is_said_at_once(bucket, status, code, error, said):
    """Reading and writing: before the first row, with the URL, without a secret."""

    def refuse(_environ, start_response, _app):
        start_response(status, [("Content-Type", "text/xml")])
        return [f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()]

    bucket.fault = refuse
    for open_it in (zarrow.open, zarrow.Writer, zarrow.verify):
        with pytest.raises(error, match=said) as caught:
            open_it(bucket.url("run.zarrow"), storage_options=bucket.options)
        assert bucket.url("run.zarrow") in str(caught.value)
        assert SECRET not in str(caught.value)


def test_without_credentials(bucket, monkeypatch):
    """No key, and no machine that would give one: what can be set is named."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    options = {name: value for name, value in bucket.options.items() if "key" not in name}
    with pytest.raises(PermissionError, match=r"no credentials.*skip_signature"):
        zarrow.open(bucket.url("run.zarrow"), storage_options=options)


def test_a_spool_that_is_full_loses_nothing(bucket, monkeypatch):
    """The writer says which rows are safe, and the next one has them."""
    writer = opened(bucket)
    writer.append({"id": range(20)}, VALUES)
    writer.flush()
    with monkeypatch.context() as full:

        def refuse(_fd, _data, _offset=0):
            raise OSError(errno.ENOSPC, "No space left on device")

        full.setattr(files, "write", refuse)
        writer.append({"id": range(20, 40)}, VALUES)
        with pytest.raises(WriteFailedError, match=r"No space left.*20 rows are accepted"):
            writer.flush()
        with pytest.raises(WriteFailedError):
            writer.close()
    writer = opened(bucket)
    assert writer.accepted_rows == 20
    writer.append({"id": range(20, 40)}, VALUES)
    writer.finalize()
    store = zarrow.open(bucket.url("run.zarrow"), storage_options=bucket.options)
    assert sorted(store.table(["id"])["id"].to_pylist()) == list(range(40))


def test_a_spool_that_cannot_be_made(bucket, tmp_path):
    """Where no directory can be made, what to set is named, and nothing is left in the bucket."""
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteFailedError, match=r"no spool can be made here: .*ZARROW_SPOOL"):
        opened(bucket, spool=tmp_path / "file" / "spool")
    assert objects(bucket.url("run.zarrow"), bucket.options) == {}


def test_a_spool_with_rows_of_another_store(bucket):
    """If the store was removed and another one is there, the rows of the first one are not added to it."""
    writer = opened(bucket)
    writer.append({"id": range(5)}, {"e": VALUES["e"][:5]})
    writer.flush()
    writer._appender.stop()
    writer._release()  # as if the process had ended
    for name in list(writer.path.names()):
        writer.path.delete(name)
    with pytest.raises(NotAStoreError, match=r"rows of another store.*move it away, or remove it"):
        opened(bucket)
    with pytest.raises(NotAStoreError, match="rows of another store"):
        opened(bucket, shared=True)
    assert objects(bucket.url("run.zarrow"), bucket.options) == {}


def test_a_store_that_is_half_removed(bucket):
    """Without zarrow.json there is no store; without a part or a record, what is missing is named."""
    writer = opened(bucket)
    writer.append({"id": range(20)}, VALUES)
    writer.finalize()
    place = writer.path
    place.delete("table/part-00000001.parquet")
    store = zarrow.open(place)
    with pytest.raises((ZarrowError, FileNotFoundError), match=r"part-00000001|changed|removed"):
        store.table()
    assert not zarrow.verify(place).ok
    place.delete("zarrow.json")
    with pytest.raises(StoreNotFoundError):
        zarrow.open(place)
    with pytest.raises(NotAStoreError, match="not a store's, such as"):
        opened(bucket)
    assert "manifest.json" in objects(bucket.url("run.zarrow"), bucket.options)


def test_nothing_shows_a_secret(bucket, caplog):
    """Neither writer nor store nor provenance nor the log."""
    writer = opened(bucket, provenance={"model": "x"})
    writer.append({"id": range(20)}, VALUES)
    shown = [repr(writer), repr(writer.path), str(writer.path)]
    writer.finalize()
    store = zarrow.open(writer.path)
    shown += [repr(store), store._repr_html_(), repr(store.provenance), caplog.text, repr(os.listdir("."))]
    assert not any(SECRET in one for one in shown)
    assert not any(
        SECRET.encode() in one for one in objects(bucket.url("run.zarrow"), bucket.options).values()
    )
