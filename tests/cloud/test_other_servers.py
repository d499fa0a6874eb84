"""Other servers — what Azurite makes of Azure, and ministack of S3, each skipped unless it is installed.

Azurite comes from npm, in tests/cloud/azurite; ministack from PyPI, where it wants an environment of its own.
Each is a second implementation of what the tests on moto rely on.
"""

import base64
import contextlib
import hashlib
import hmac
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zarrow
from zarrow.errors import IncompleteStoreError, InvalidInputError, StoreChangedError, StoreLockedError

NODE = Path(__file__).with_name("azurite") / "node_modules" / ".bin"
AZURITE = shutil.which("azurite-blob", path=os.pathsep.join([str(NODE), os.environ.get("PATH", "")]))
MINISTACK = shutil.which("ministack")
ACCOUNT = "devstoreaccount1"  # whose key is in Azurite's documentation
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def make_container(endpoint: str, name: str) -> None:
    """Make a container by a signed request, which obstore has none for."""
    headers = {
        "x-ms-date": datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT"),
        "x-ms-version": "2021-08-06",
    }
    lines = "".join(f"{key}:{value}\n" for key, value in headers.items())
    text = f"PUT{12 * chr(10)}{lines}/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    digest = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    url = f"{endpoint}/{name}?restype=container"
    request = urllib.request.Request(url, b"", headers, method="PUT")
    request.add_unredirected_header("Content-Type", "")
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 201


@dataclass
class Server:
    """A server with an empty bucket or container, called *results*."""

    scheme: str
    options: dict[str, Any]

    def url(self, path: str) -> str:
        return f"{self.scheme}://{path}"


@contextlib.contextmanager
def running(command: list[str], port: int, folder: Path, **environment: str) -> Iterator[None]:
    """Run a server until the end of the block, which begins when it answers."""
    server = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def azurite(tmp_path_factory) -> Iterator[Server]:
    if AZURITE is None:
        pytest.skip("azurite is not installed")
    port = free_port()
    command = [AZURITE, "--inMemoryPersistence", "--skipApiVersionCheck", "--silent", "--disableTelemetry"]
    command += ["--blobHost", "127.0.0.1", "--blobPort", str(port)]
    with running(command, port, tmp_path_factory.mktemp("azurite")):
        endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        make_container(endpoint, "results")
        options = {"account_name": ACCOUNT, "account_key": KEY, "endpoint": endpoint, "allow_http": True}
        yield Server("az", options)


@pytest.fixture(scope="module")
def ministack(tmp_path_factory) -> Iterator[Server]:
    if MINISTACK is None:
        pytest.skip("ministack is not installed")
    port = free_port()
    set_to = {"GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1", "SERVICES": "s3", "S3_PERSIST": "0"}
    with running([MINISTACK], port, tmp_path_factory.mktemp("ministack"), **set_to):
        endpoint = f"http://127.0.0.1:{port}"
        request = urllib.request.Request(f"{endpoint}/results", method="PUT")
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200
        keys = {"access_key_id": "me", "secret_access_key": "secret", "region": "us-east-1"}
        yield Server("s3", {"endpoint": endpoint, "allow_http": True, **keys})


@pytest.fixture(params=["azurite", "ministack"])
def server(request) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(autouse=True)
def spool(tmp_path, monkeypatch) -> Path:
    """Return the directory of the spools."""
    for name in [name for name in os.environ if name.startswith(("AZURE_", "AWS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ZARROW_SPOOL", str(tmp_path / "spool"))
    return tmp_path / "spool"


def add(writer, rows) -> None:
    ids = np.array(rows)
    wide = np.repeat(ids[:, None], 8, 1).astype("f4")
    writer.append({"id": ids}, {"plain": wide, "packed": wide})


def opened(url, options, **more) -> zarrow.Writer:
    more = {"mode": "a", "keys": ["id"], "segment_rows": 16, "codecs": {"packed": "zstd"}} | more
    return zarrow.Writer(url, storage_options=options, **more)


def test_a_store_is_written_resumed_and_read(server, tmp_path):
    """By two writers, then from another machine; read by ranges, by engines, verified, and copied back."""
    url, options = server.url("results/run.zarrow"), server.options
    one, other = (opened(url, options, shared=True) for _ in range(2))
    add(one, range(20))
    add(other, range(20, 40))
    with pytest.raises(StoreLockedError, match="not closed"):
        one.finalize()
    other.close()
    with pytest.raises(IncompleteStoreError, match="40 rows"):
        zarrow.open(url, storage_options=options)
    with zarrow.open(url, storage_options=options, partial=True) as store:
        assert sorted(store.table(["id"])["id"].to_pylist()) == list(range(40))
        assert zarrow.verify(store.path).ok
    writer = opened(url, options, spool=tmp_path / "elsewhere")
    assert writer.accepted_rows == 40
    add(writer, range(40, 70))
    writer.finalize()
    with zarrow.open(url, storage_options=options) as store:
        ids = store.table(["id"])["id"].to_numpy()
        assert sorted(ids.tolist()) == list(range(70))
        rows = [69, 3, 17]
        assert (
            store["plain"][rows][:, 0].tolist() == store["packed"][rows][:, 0].tolist() == ids[rows].tolist()
        )
        assert store.sql("SELECT count(*) FROM predictions WHERE id > 60").fetchall() == [(9,)]
        assert zarrow.verify(store.path, "full").ok
    zarrow.copy(url, tmp_path / "back.zarrow", storage_options=options)
    assert zarrow.verify(tmp_path / "back.zarrow", "full").ok
    again = server.url("results/again.zarrow")
    zarrow.copy(tmp_path / "back.zarrow", again, storage_options=options)
    assert zarrow.open(again, storage_options=options).num_rows == 70


def test_one_that_was_overtaken_adds_nothing(server, tmp_path):
    """Conditions of puts are kept, by which a writer finds out."""
    url, options = server.url("results/overtaken.zarrow"), server.options
    first = opened(url, options)
    add(first, range(10))
    second = opened(url, options, spool=tmp_path / "second")
    add(second, range(40))
    with pytest.raises(StoreLockedError):
        first.close()
    second.finalize()
    assert zarrow.open(url, storage_options=options).num_rows == 40


def test_a_bucket_that_does_not_exist(server):
    """It is found out when the store is opened, in words."""
    with pytest.raises(InvalidInputError, match="no such bucket"):
        opened(server.url("nowhere/run.zarrow"), server.options)


def test_wrong_credentials(azurite):
    """They are found out when the store is opened, in words, without a secret; ministack takes any."""
    wrong = base64.b64encode(b"the secret of another account...").decode()
    for open_it in (zarrow.open, zarrow.Writer):
        with pytest.raises(PermissionError, match="credentials") as caught:
            open_it("az://results/run.zarrow", storage_options={**azurite.options, "account_key": wrong})
        assert wrong not in str(caught.value)


def test_two_that_begin_at_once(server, tmp_path):
    """Of writers that create a store in the same moment, one does, and the others add to it."""
    url, options = server.url("results/race.zarrow"), server.options

    def write(number: int) -> None:
        writer = opened(url, options, shared=True, spool=tmp_path / str(number))
        add(writer, range(number * 40, number * 40 + 40))
        writer.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    zarrow.Writer(url, mode="a", storage_options=options, spool=tmp_path / "last").finalize()
    assert sorted(zarrow.open(url, storage_options=options).table()["id"].to_pylist()) == list(range(160))
    assert zarrow.verify(url, "full", storage_options=options).ok


def test_a_damaged_store_is_repaired_and_packed(server, tmp_path):
    """The service copies what is damaged; the last rows take its place, and can be sorted."""
    url, options = server.url("results/damaged.zarrow"), server.options
    writer = opened(url, options)
    add(writer, range(70))
    writer.finalize()
    with zarrow.open(url, storage_options=options) as reader:
        path = "embeddings.zarr/plain/c/1/0"
        data = bytearray(reader.path.open(path).content(1 << 20))
        data[20] ^= 1
        reader.path.put_bytes(path, bytes(data))
        time.sleep(1.1)  # times of modification are in seconds
        done = zarrow.repair(url, storage_options=options, finalize=True)
        assert [one.segment for one in done.set_aside] == [1]
        with pytest.raises(StoreChangedError):
            reader["plain"][:]
    left = [row for row in range(70) if not 16 <= row < 32]
    packed = server.url("results/packed.zarrow")
    zarrow.pack(url, packed, order="id", storage_options=options)
    for one in (url, packed):
        assert zarrow.verify(one, "full", storage_options=options).ok
        with zarrow.open(one, storage_options=options) as store:
            ids = store.table(["id"])["id"].to_numpy()
            assert sorted(ids.tolist()) == left
            assert store["plain"][:, 0].tolist() == ids.tolist()
    assert ids.tolist() == left
