"""Compatibility — what this release does with the stores of later ones (FORMAT.md, section 15)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zarrow
from zarrow._format.documents import decode_document, encode_document
from zarrow.errors import NotAStoreError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    with zarrow.Writer(path, segment_rows=8) as writer:
        writer.append({"id": np.arange(12)}, {"e": np.ones((12, 2), np.float32)})
    return path


def add(path: Path, **members: Any) -> None:
    """Add members to a document, as a later release may."""
    body = decode_document(path.read_bytes(), str(path))
    path.write_bytes(encode_document(body | members))


def finish(path: Path) -> None:
    zarrow.Writer(path, mode="a").finalize()


def test_unknown_members_are_ignored(path):
    """Members that a later release adds to any document change nothing for readers and writers."""
    documents = [*path.glob("*.json"), *path.glob("segments/*"), *path.glob("open/*/owner.json")]
    assert [file.name for file in documents] == ["zarrow.json", "00000000.json", "owner.json"]
    for file in documents:
        add(file, later={"than": "this"})
    assert zarrow.open(path, partial=True).num_rows == 12
    assert zarrow.verify(path).ok
    finish(path)
    add(path / "manifest.json", later=None)
    assert zarrow.open(path).num_rows == 12
    assert zarrow.verify(path).ok


def test_a_later_format_is_refused(path):
    """A store of another format version is neither read nor written."""
    add(path / "zarrow.json", zarrow_format=2)
    with pytest.raises(NotAStoreError, match="reads format 1, got 2: upgrade zarrow"):
        zarrow.open(path, partial=True)
    with pytest.raises(NotAStoreError, match="upgrade zarrow"):
        finish(path)


def test_features_are_refused_by_those_they_concern(path):
    """A feature of readers forbids reading, one of writers only writing."""
    add(path / "zarrow.json", writer_features=["future"])
    assert zarrow.open(path, partial=True).num_rows == 12
    for change in (finish, lambda path: zarrow.repair(path, finalize=True)):
        with pytest.raises(NotAStoreError, match=r"cannot write stores with \['future'\]: upgrade zarrow"):
            change(path)
    add(path / "zarrow.json", reader_features=["future"])
    with pytest.raises(NotAStoreError, match=r"cannot read stores with \['future'\]: upgrade zarrow"):
        zarrow.open(path, partial=True)


def test_the_layout_of_zarr_metadata_is_free(path):
    """Another writer may order and indent the members of zarr.json as it likes."""
    finish(path)
    for file in path.rglob("zarr.json"):
        body = json.loads(file.read_bytes())
        file.write_text(json.dumps(dict(reversed(body.items())), indent=None))
    assert zarrow.verify(path).findings == ()
