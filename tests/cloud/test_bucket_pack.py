"""Packing from and to a bucket — the same rows as on a disk, and the old store stays."""

import numpy as np
import obstore
import pytest
from cloud.places import new_url
from typer.testing import CliRunner

import zarrow
from zarrow._storage.objects import located
from zarrow.cli import app
from zarrow.errors import CorruptionError, InvalidInputError, StoreExistsError

ROWS = 50


@pytest.fixture
def store(tmp_path, monkeypatch) -> str:
    """Return the URL of a store whose rows are in reverse order, with a derived array."""
    monkeypatch.setenv("ZARROW_SPOOL", str(tmp_path / "spool"))
    url = new_url()
    with zarrow.Writer(url, keys=["id"], segment_rows=8, provenance={"model": "m"}) as writer:
        vectors = np.arange(ROWS * 3, dtype="f4").reshape(ROWS, 3)
        tokens = [np.full((row % 3, 1), row, "f4") for row in range(ROWS)]
        writer.append({"id": np.arange(ROWS)[::-1]}, {"e": vectors, "tokens": tokens}, np.arange(ROWS)[::-1])
        writer.finalize()
    with zarrow.open(url) as written:
        zarrow.add_array(written, "double", vectors * 2)
    return url


def check(url, like) -> None:
    """Compare the rows by id, their vectors, their tokens and what was derived from them."""
    with zarrow.open(url) as found, zarrow.open(like) as expected:
        order = expected.table()["id"].to_numpy().argsort()
        assert found.table()["id"].to_pylist() == list(range(ROWS))
        assert found.provenance == expected.provenance
        for name in ("e", "double"):
            np.testing.assert_array_equal(found[name][:], expected[name][:][order])
        for row, old in enumerate(order.tolist()):
            np.testing.assert_array_equal(found["tokens"][row], expected["tokens"][old])
    assert zarrow.verify(url, "full").findings == ()


@pytest.mark.parametrize("target", ["a bucket", "a disk"])
@pytest.mark.parametrize("source", ["a bucket", "a disk"])
def test_the_rows_are_those_of_the_old_store_in_order(store, tmp_path, source, target):
    """From and to wherever: sorted, compressed, with derived arrays; each step is told."""
    if source == "a disk":
        zarrow.copy(store, tmp_path / "old.zarrow")
    old = store if source == "a bucket" else tmp_path / "old.zarrow"
    new = new_url() if target == "a bucket" else tmp_path / "new.zarrow"
    steps: list[str] = []
    zarrow.pack(old, new, order="id", codecs={"e": "zstd"}, progress=lambda what, *_: steps.append(what))
    check(new, old)
    assert zarrow.open(new)["e"].codecs != zarrow.open(old)["e"].codecs
    assert list(dict.fromkeys(steps)) == ["sort", "verify", "write", "verify the new store"] + (
        ["upload"] if target == "a bucket" else []
    )


def test_what_cannot_be_done_is_refused_and_nothing_is_left(store, tmp_path):
    """In place, onto another store, or from a damaged one."""
    client = located(store).client
    before = sorted(one["path"] for page in obstore.list(client) for one in page)
    for out in (None, store):
        with pytest.raises(InvalidInputError, match="to another URL or a path"):
            zarrow.pack(store, out, order="id")
    other = new_url()
    zarrow.copy(store, other)
    with pytest.raises(StoreExistsError, match="to another URL"):
        zarrow.pack(store, other, order="id")
    shard = bytes(obstore.get(client, "embeddings.zarr/e/c/1/0").bytes())
    obstore.put(client, "embeddings.zarr/e/c/1/0", bytes([shard[0] ^ 1, *shard[1:]]))
    new = new_url()
    with pytest.raises(CorruptionError, match="repair"):
        zarrow.pack(store, new, order="id")
    assert [*located(new).names()] == []
    assert sorted(one["path"] for page in obstore.list(client) for one in page) == before


def test_the_command_takes_urls(store):
    """STORE and OUT."""
    new = new_url()
    result = CliRunner().invoke(app, ["pack", store, new, "--order", "id", "--dtypes", "e=float16"])
    assert result.exit_code == 0, result.output
    assert zarrow.open(new)["e"].dtype == np.float16
    result = CliRunner().invoke(app, ["pack", store, "--order", "id"])
    assert result.exit_code != 0
    assert f"{store}: a store in a bucket cannot be replaced" in " ".join(result.output.split())
