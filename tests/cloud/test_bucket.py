"""Stores in a bucket — read as on a disk, copied there and back, with few requests and clear errors."""

import copy
import itertools
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from cloud.servers import SECRET
from typer.testing import CliRunner

import zarrow
from zarrow.analysis import map_rows
from zarrow.cli import app
from zarrow.errors import (
    CorruptionError,
    IncompleteStoreError,
    InvalidInputError,
    NotAStoreError,
    StoreChangedError,
    StoreExistsError,
    StoreNotFoundError,
    UnknownNameError,
    WriteFailedError,
    ZarrowError,
)
from zarrow.transfer import export, import_

ROWS = 5_000


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """Return a complete store of three segments: plain and compressed arrays, an index, a derived array."""
    path = tmp_path_factory.mktemp("local") / "run.zarrow"
    rng = np.random.default_rng(0)
    with zarrow.Writer(path, keys=["id"], segment_rows=2048, codecs={"packed": "zstd"}) as writer:
        for start in range(0, ROWS, 500):
            ids = np.arange(start, start + 500)
            columns = {"id": ids, "text": [f"row {i}" for i in ids], "p": ids / ROWS}
            vectors = rng.standard_normal((500, 64)).astype("float32")
            wide = vectors.reshape(-1, 8, 8)
            writer.append(columns, {"plain": vectors, "packed": vectors.round(1), "wide": wide})
        writer.finalize()
    zarrow.build_index(path)
    with zarrow.open(path) as store:
        zarrow.add_array(store, "twice", np.asarray(store["plain"]) * 2)
    return path


@pytest.fixture
def url(bucket, local) -> str:
    """Return the URL of a copy of it."""
    target = bucket.url("run.zarrow")
    zarrow.copy(local, target, storage_options=bucket.options)
    bucket.requests.clear()
    return target


def _split(options):
    """Return options as obstore takes them."""
    rest = {key: value for key, value in options.items() if key != "allow_http"}
    return {"config": rest, "client_options": {"allow_http": True}}


def _boto(bucket):
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=bucket.endpoint,
        region_name="us-east-1",
        aws_access_key_id="me",
        aws_secret_access_key=SECRET,
    )


class TestReading:
    def test_shows_the_same_rows(self, bucket, url, local):
        """Tables, filters, joins, keys, arrays and derived arrays are those of the store on disk."""
        there, here = zarrow.open(url, storage_options=bucket.options), zarrow.open(local)
        assert there.table().equals(here.table())
        chosen = (pc.field("p") > 0.3) & (pc.field("p") < 0.5)
        assert there.table(["text"], filter=chosen).equals(here.table(["text"], filter=chosen))
        rows = np.random.default_rng(1).integers(-ROWS, ROWS, 700)
        for name in ("plain", "packed", "wide", "twice"):
            assert np.array_equal(there[name][rows], here[name][rows])
            assert np.array_equal(there[name][2000:4100], here[name][2000:4100])
            assert np.array_equal(np.asarray(there[name]), np.asarray(here[name]))
            assert np.array_equal(there[name].read(10, 3000, check="crc"), here[name][10:3000])
        assert np.array_equal(there["plain"][[]], here["plain"][[]])
        for (a, x), (b, y) in zip(there.join(chosen), here.join(chosen), strict=True):
            assert a.equals(b)
            assert all(np.array_equal(x[name], y[name]) for name in x)
        assert there.locate({"id": [77, -1]}, missing=-1).tolist() == [77, -1]
        assert there.sql("select max(p) from predictions").fetchall() == [(0.9998,)]
        assert there.to_polars().collect().to_arrow().num_rows == ROWS
        assert there["plain"].zarr()[4999].tolist() == here["plain"][4999].tolist()
        assert not there.refresh()

    def test_is_found_by_other_names(self, bucket, url, monkeypatch):
        """A `Path` made of the URL, an obstore store and the environment lead to the same rows."""
        client = obstore.store.from_url(url, **_split(bucket.options))
        assert zarrow.open(client).num_rows == ROWS
        assert zarrow.open(Path(url), storage_options=bucket.options).num_rows == ROWS
        for name, value in bucket.options.items():
            monkeypatch.setenv(f"AWS_{name.upper()}", str(value))
        assert zarrow.open(url).num_rows == ROWS
        result = CliRunner().invoke(app, ["info", url, "--json"])
        assert result.exit_code == 0, result.output
        result = CliRunner().invoke(app, ["head", url, "--json"])
        assert "row 3" in result.output

    def test_works_behind_other_doors(self, bucket, url, local, tmp_path):
        """xarray, torch, the analyses, exports and pickles read it."""
        import xarray as xr

        from zarrow.analysis import describe, nearest
        from zarrow.torch import StoreDataset

        store, here = zarrow.open(url, storage_options=bucket.options), zarrow.open(local)
        dataset = xr.open_dataset(url, engine="zarrow", storage_options=bucket.options)
        assert np.array_equal(dataset.plain[100:110], here["plain"][100:110])
        assert np.array_equal(StoreDataset(store, arrays=["plain"])[7]["plain"], here["plain"][7])
        assert (
            nearest(store, [42], k=3, array="plain").rows.tolist()
            == nearest(here, [42], k=3, array="plain").rows.tolist()
        )
        assert describe(store, arrays=["plain"]).rows == ROWS
        export(store, tmp_path / "out.parquet", arrays=["plain"])
        assert pickle.loads(pickle.dumps(store)).table().num_rows == ROWS
        assert copy.copy(store).num_rows == ROWS

    def test_is_read_from_a_web_server(self, bucket, url, local):
        """A store whose objects are public opens by HTTP."""
        client = obstore.store.from_url(f"s3://{bucket.name}", **_split(bucket.options))
        assert obstore.head(client, "run.zarrow/zarrow.json")["size"]
        boto = _boto(bucket)
        for found in boto.list_objects_v2(Bucket=bucket.name)["Contents"]:
            boto.put_object_acl(Bucket=bucket.name, Key=found["Key"], ACL="public-read")
        address = f"{bucket.endpoint}/{bucket.name}/run.zarrow"
        store = zarrow.open(address, storage_options={"allow_http": True})
        assert store.table().equals(zarrow.open(local).table())
        assert store["packed"][[9, 4000]].tolist() == zarrow.open(local)["packed"][[9, 4000]].tolist()
        assert not store.derived

    def test_opens_by_three_requests(self, bucket, url):
        """Opening a complete store takes at most three requests, whatever its size."""
        zarrow.open(url, storage_options=bucket.options)
        assert len(bucket.requests) <= 3

    def test_reads_no_byte_of_a_gather_or_scan_twice(self, bucket, url):
        """1,000 rows are at most 1,000 ranges without overlap, and a scan reads each byte once."""
        array = zarrow.open(url, storage_options=bucket.options)["plain"]
        for read in (
            lambda: array[np.random.default_rng(2).integers(0, ROWS, 1000)],
            lambda: np.asarray(array),
        ):
            bucket.requests.clear()
            read()
            ranges = sorted(
                (one.path, one.start, one.stop) for one in bucket.requests if one.start is not None
            )
            assert 0 < len(ranges) <= 1000
            assert all(a != b or stop <= start for (a, _, stop), (b, start, _) in itertools.pairwise(ranges))
        assert sum(stop - start for _, start, stop in ranges) == ROWS * 256

    def test_no_message_shows_a_secret(self, bucket, url):
        """Neither representations nor errors hold the secret key."""
        store = zarrow.open(url, storage_options=bucket.options)
        obstore.delete(store.path.client, "table/part-00000000.parquet")
        with pytest.raises(CorruptionError) as caught:
            store.table()
        assert bucket.name in str(caught.value)
        for text in (repr(store), str(store.path), repr(store.path), str(caught.value), store._repr_html_()):
            assert SECRET not in text


class TestErrors:
    def test_says_what_is_not_there(self, bucket, url, local):
        """A missing bucket, a missing store and something else are told apart."""
        with pytest.raises(InvalidInputError, match=r"s3://no-bucket/run\.zarrow.*no such bucket"):
            zarrow.open("s3://no-bucket/run.zarrow", storage_options=bucket.options)
        with pytest.raises(StoreNotFoundError, match="no store"):
            zarrow.open(bucket.url("other"), storage_options=bucket.options)
        with pytest.raises(InvalidInputError, match="begins with one of"):
            zarrow.open("ftp://host/run.zarrow")
        with pytest.raises(InvalidInputError, match="storage_options are for stores at a URL"):
            zarrow.open(local, storage_options=bucket.options)

    def test_says_that_something_is_forbidden(self, bucket, url):
        """Without permission there is a `PermissionError`, at open."""

        def forbid(environ, start_response, _app):
            start_response("403 Forbidden", [("Content-Type", "text/xml")])
            return [b"<Error><Code>AccessDenied</Code></Error>"]

        bucket.fault = forbid
        with pytest.raises(PermissionError, match="credentials"):
            zarrow.open(url, storage_options=bucket.options)

    def test_notices_another_store_in_its_place(self, bucket, url, local, tmp_path):
        """Rows of a store that took its place are never returned, not from shards read before either."""
        store = zarrow.open(url, storage_options=bucket.options)
        seen = zarrow.open(url, storage_options=bucket.options)
        assert seen["plain"][[5, 2100, 4999]].any()
        assert seen["packed"][[5, 2100, 4999]].any()
        assert seen.table(["p"]).num_rows == ROWS
        other = tmp_path / "other.zarrow"
        with zarrow.Writer(other, keys=["id"], segment_rows=2048) as writer:
            arrays = {"plain": np.zeros((ROWS, 64), "f4"), "packed": np.zeros((ROWS, 64), "f4")}
            writer.append({"id": range(ROWS), "text": ["x"] * ROWS, "p": [0.5] * ROWS}, arrays)
            writer.finalize()
        for path in other.rglob("*"):
            if path.is_file():
                obstore.put(store.path.client, str(path.relative_to(other)), path.read_bytes())
        for read in (
            lambda: store.table(["p"]),
            lambda: store["plain"][:10],
            lambda: store["plain"][[5, 4000]],
            lambda: seen["plain"][:10],
            lambda: seen["plain"][[6, 4000]],
            lambda: seen.table(["text"]),
            lambda: store["packed"][:10],
            store.refresh,
        ):
            with pytest.raises(StoreChangedError):
                read()
        try:  # chunks that were decoded before are kept, and are the rows of the store that was opened
            kept = seen["packed"][[1900, 4900]]
        except StoreChangedError:
            pass
        else:
            assert np.array_equal(kept, zarrow.open(local)["packed"][[1900, 4900]])

    def test_notices_damage(self, bucket, url):
        """A missing, short or flipped object is an error that names it; other rows stay readable."""
        store = zarrow.open(url, storage_options=bucket.options)
        client, shard = store.path.client, "embeddings.zarr/plain/c/1/0"
        data = bytearray(obstore.get(client, shard).bytes())
        data[1000] ^= 1
        obstore.put(client, shard, bytes(data))
        with pytest.raises(CorruptionError, match="chunk 0"):
            store["plain"].read(2048, 2100, check="crc")
        obstore.put(client, shard, bytes(data[:1000]))
        with pytest.raises((CorruptionError, OSError), match="plain/c/1/0"):
            store["plain"][2048:3000]
        obstore.delete(client, shard)
        with pytest.raises(CorruptionError, match="missing"):
            store["plain"][2048:3000]
        assert store["plain"][:2048].shape == (2048, 64)

    def test_verify_reads_a_bucket(self, bucket, url):
        """It accepts what is sound, and names every object that is flipped, short, missing or foreign."""
        options = {"level": "full", "storage_options": bucket.options}
        report = zarrow.verify(url, **options)
        assert report.ok, report.findings
        assert not report.findings
        assert report.rows == ROWS
        client = zarrow.open(url, storage_options=bucket.options).path.client
        for path in (
            "zarrow.json",
            "manifest.json",
            "segments/00000001.json",
            "table/part-00000001.parquet",
            "embeddings.zarr/packed/c/0/0",
            "embeddings.zarr/plain/zarr.json",
            "index/keys.index",
            "derived/twice/embeddings.zarr/twice/c/0/0",
        ):
            whole = bytes(obstore.get(client, path).bytes())
            flipped = bytearray(whole)
            flipped[len(whole) // 2] ^= 4
            for data in (bytes(flipped), whole[:-3], None):
                obstore.delete(client, path) if data is None else obstore.put(client, path, data)
                try:
                    found = zarrow.verify(url, **options).findings
                except (StoreNotFoundError, NotAStoreError):
                    assert (path, data) == ("zarrow.json", None)
                else:
                    missing_derived = data is None and path in ("index/keys.index", "manifest.json")
                    assert found or missing_derived, (path, data is None)
            obstore.put(client, path, whole)
        obstore.put(client, "notes.txt", b"mine")
        assert [one.path for one in zarrow.verify(url, **options).findings] == ["notes.txt"]

    def test_refuses_what_needs_a_disk(self, bucket, url, tmp_path, monkeypatch):
        """What needs a disk says so, and makes no directory called s3:."""
        monkeypatch.chdir(tmp_path)
        store = zarrow.open(url, storage_options=bucket.options)
        for call in (
            lambda: os.fspath(store.path),
            lambda: import_(bucket.url("x.parquet"), tmp_path / "x.zarrow"),
        ):
            with pytest.raises(InvalidInputError, match=r"s3://.*disk"):
                call()
        assert not list(tmp_path.iterdir())

    def test_without_obstore_says_what_to_install(self, monkeypatch):
        """The message has the line that installs it."""
        monkeypatch.setitem(__import__("sys").modules, "obstore", None)
        with pytest.raises(ZarrowError, match=r"pip install 'zarrow\[cloud\]'"):
            zarrow.open("s3://bucket/run.zarrow")


class TestCopying:
    def test_goes_there_and_back(self, bucket, url, local, tmp_path):
        """A copy of a copy of a copy is sound, and has the same bytes."""
        second = bucket.url("second.zarrow")
        assert zarrow.copy(url, second, storage_options=bucket.options).rows == ROWS
        zarrow.copy(second, tmp_path / "back.zarrow", storage_options=bucket.options)
        assert zarrow.verify(tmp_path / "back.zarrow").ok
        for path in local.rglob("*"):
            if path.is_file() and "open" not in path.relative_to(local).parts:
                assert (tmp_path / "back.zarrow" / path.relative_to(local)).read_bytes() == path.read_bytes()

    def test_a_killed_copy_goes_on(self, bucket, local):
        """Before the last object there is no store, and what is there is not sent again."""
        target = bucket.url("run.zarrow")

        def stop(done: int, total: int) -> None:
            if done * 2 > total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            zarrow.copy(local, target, storage_options=bucket.options, progress=stop)
        with pytest.raises(StoreNotFoundError):
            zarrow.open(target, storage_options=bucket.options)
        sent = {one.path for one in bucket.requests if one.method in ("PUT", "POST")}
        bucket.requests.clear()
        zarrow.copy(local, target, storage_options=bucket.options)
        again = {one.path for one in bucket.requests if one.method in ("PUT", "POST")}
        assert not any("part-00000000" in path for path in again & sent)
        assert zarrow.open(target, storage_options=bucket.options).table().equals(zarrow.open(local).table())

    def test_overwrites_nothing(self, bucket, url, local):
        """A store, and foreign objects, stay as they are."""
        with pytest.raises(StoreExistsError):
            zarrow.copy(local, url, storage_options=bucket.options)
        with pytest.raises(NotAStoreError):
            zarrow.copy(local, bucket.url("run.zarrow/table"), storage_options=bucket.options)

    def test_copies_no_damage(self, bucket, local, tmp_path):
        """A damaged or incomplete source is refused, and the target is no store."""
        for path in ("embeddings.zarr/plain/c/1/0", "table/part-00000001.parquet"):
            damaged = tmp_path / path.replace("/", "-")
            shutil.copytree(local, damaged)
            data = bytearray((damaged / path).read_bytes())
            data[1000] ^= 1
            (damaged / path).write_bytes(data)
            target = bucket.url(damaged.name)
            with pytest.raises(CorruptionError):
                zarrow.copy(damaged, target, storage_options=bucket.options)
            with pytest.raises(StoreNotFoundError):
                zarrow.open(target, storage_options=bucket.options)
        with zarrow.Writer(tmp_path / "open.zarrow") as writer:
            writer.append({"id": [1]}, {"e": np.zeros((1, 4))})
            with pytest.raises(IncompleteStoreError):
                zarrow.copy(tmp_path / "open.zarrow", bucket.url("open"), storage_options=bucket.options)
            writer.finalize()

    def test_a_lost_answer_is_no_failure(self, bucket, local):
        """If the last object was made though the answer was lost, the copy is complete."""

        def lose(environ, start_response, app):
            if environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].endswith("run.zarrow/zarrow.json"):
                bucket.fault = None
                list(app(environ, lambda *_: None))
                start_response("500 Internal Server Error", [])
                return [b""]
            return app(environ, start_response)

        bucket.fault = lose
        zarrow.copy(local, bucket.url("run.zarrow"), storage_options=bucket.options)
        assert zarrow.open(bucket.url("run.zarrow"), storage_options=bucket.options).num_rows == ROWS

    def test_a_partial_view_shows_committed_rows(self, bucket, url, local):
        """Without a manifest the store opens with partial=True only."""
        client = zarrow.open(url, storage_options=bucket.options).path.client
        obstore.delete(client, "manifest.json")
        with pytest.raises(IncompleteStoreError):
            zarrow.open(url, storage_options=bucket.options)
        store = zarrow.open(url, partial=True, storage_options=bucket.options)
        assert store.table().equals(zarrow.open(local).table())
        assert isinstance(store.table(), pa.Table)


class TestMaking:
    def test_an_index_is_made_and_used(self, bucket, url):
        """`build_index` puts one object, by which keys are found without the table."""
        client = zarrow.open(url, storage_options=bucket.options).path.client
        obstore.delete(client, "index/keys.index")
        zarrow.build_index(url, storage_options=bucket.options)
        bucket.requests.clear()
        store = zarrow.open(url, storage_options=bucket.options)
        assert store.locate({"id": [4321, 7]}).tolist() == [4321, 7]
        assert not any("/table/" in request.path for request in bucket.requests)
        assert zarrow.verify(store.path, "full").findings == ()

    def test_a_derived_array_is_made_replaced_and_removed(self, bucket, url, local):
        """`add_array`, and analyses that use it, in place of an older one; `remove_array` leaves nothing."""
        options = {"storage_options": bucket.options}
        before = set(zarrow.open(url, **options).path.names())
        for factor in (3, 5):
            zarrow.add_array(url, "more", zarrow.open(local)["plain"][:] * factor, **options)
            store = zarrow.open(url, **options)
            np.testing.assert_array_equal(store["more"][:10], zarrow.open(local)["plain"][:10] * factor)
        made = map_rows(store, "plain")
        assert zarrow.open(url, **options)[made.name].shape == (ROWS, 2)
        assert zarrow.verify(store.path, "full").findings == ()
        with pytest.raises(InvalidInputError, match="must have a row for each"):
            zarrow.add_array(store, "more", np.zeros((3, 2)))
        assert zarrow.open(url, **options)["more"].shape == (ROWS, 64)  # a refused one leaves the old one
        for name in ("more", made.name):
            zarrow.remove_array(url, name, **options)
        assert set(store.path.names()) == before
        with pytest.raises(UnknownNameError, match="more"):
            zarrow.remove_array(url, "more", **options)

    def test_one_that_was_not_put_whole_is_made_again(self, bucket, url):
        """A process that dies leaves an array that readers name and ignore, and the next one replaces it."""

        def fail(environ, start_response, app):
            if environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].endswith("manifest.json"):
                start_response("403 Forbidden", [])
                return [b""]
            return app(environ, start_response)

        values, options = np.ones((ROWS, 2), "f4"), {"storage_options": bucket.options}
        bucket.fault = fail
        with pytest.raises(WriteFailedError, match="more: the derived array cannot be put here"):
            zarrow.add_array(url, "more", values, **options)
        bucket.fault = None
        with pytest.raises(IncompleteStoreError, match="make it again"):
            zarrow.open(url, **options)["more"]
        zarrow.add_array(url, "more", values, **options)
        assert zarrow.open(url, **options)["more"][:].sum() == 2 * ROWS

    def test_files_are_imported(self, bucket, tmp_path, monkeypatch):
        """Into a free place only; the command names the URL as it was given."""
        pq.write_table(pa.table({"id": [1, 2], "v": [[1.0, 2.0], [3.0, 4.0]]}), tmp_path / "x.parquet")
        target, options = bucket.url("imported.zarrow"), {"storage_options": bucket.options}
        assert import_(tmp_path / "x.parquet", target, keys=["id"], **options) == 2
        assert zarrow.open(target, **options)["v"][1].tolist() == [3.0, 4.0]
        with pytest.raises(StoreExistsError, match="choose another URL"):
            import_(tmp_path / "x.parquet", target, **options)
        with pytest.raises(InvalidInputError, match="cannot be replaced at once"):
            import_(tmp_path / "x.parquet", target, overwrite=True, **options)
        for name, value in bucket.options.items():
            monkeypatch.setenv(f"AWS_{name.upper()}", str(value))
        for command in (["index", target], ["info", target], ["remove", target, "id"]):
            result = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
            assert target in result.output, command
