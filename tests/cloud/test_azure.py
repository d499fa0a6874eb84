"""Stores on Azure, as Azurite plays it — skipped unless it is installed (npm, in tests/cloud/azurite)."""

import base64
import hashlib
import hmac
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

import zarrow
from zarrow.errors import IncompleteStoreError, InvalidInputError, StoreLockedError

NODE = Path(__file__).with_name("azurite") / "node_modules" / ".bin"
AZURITE = shutil.which("azurite-blob", path=os.pathsep.join([str(NODE), os.environ.get("PATH", "")]))
ACCOUNT = "devstoreaccount1"  # whose key is in Azurite's documentation
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

pytestmark = pytest.mark.skipif(AZURITE is None, reason="azurite is not installed")


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


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> Iterator[dict]:
    """Return the `storage_options` of a server that has one container."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert AZURITE is not None
    command = [AZURITE, "--inMemoryPersistence", "--skipApiVersionCheck", "--silent", "--disableTelemetry"]
    server = subprocess.Popen(
        [*command, "--blobHost", "127.0.0.1", "--blobPort", str(port)],
        cwd=tmp_path_factory.mktemp("azurite"),
        stdout=subprocess.DEVNULL,
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
        endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        make_container(endpoint, "results")
        yield {"account_name": ACCOUNT, "account_key": KEY, "endpoint": endpoint, "allow_http": True}
    finally:
        server.kill()
        server.wait()


@pytest.fixture(autouse=True)
def spool(tmp_path, monkeypatch) -> Path:
    """Return the directory of the spools."""
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
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


def test_a_store_is_written_resumed_and_read(options, tmp_path):
    """By two writers, then from another machine; read by ranges, by engines, verified, and copied back."""
    url = "az://results/run.zarrow"
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
    zarrow.copy(tmp_path / "back.zarrow", "az://results/again.zarrow", storage_options=options)
    assert zarrow.open("az://results/again.zarrow", storage_options=options).num_rows == 70


def test_one_that_was_overtaken_adds_nothing(options, tmp_path):
    """Conditions of puts are kept, by which a writer finds out."""
    url = "az://results/overtaken.zarrow"
    first = opened(url, options)
    add(first, range(10))
    second = opened(url, options, spool=tmp_path / "second")
    add(second, range(40))
    with pytest.raises(StoreLockedError):
        first.close()
    second.finalize()
    assert zarrow.open(url, storage_options=options).num_rows == 40


def test_wrong_credentials_and_no_container(options):
    """Both are found out when the store is opened, in words, without a secret."""
    with pytest.raises(InvalidInputError, match="no such bucket"):
        opened("az://nowhere/run.zarrow", options)
    wrong = base64.b64encode(b"the secret of another account...").decode()
    for open_it in (zarrow.open, zarrow.Writer):
        with pytest.raises(PermissionError, match="credentials") as caught:
            open_it("az://results/run.zarrow", storage_options={**options, "account_key": wrong})
        assert wrong not in str(caught.value)
